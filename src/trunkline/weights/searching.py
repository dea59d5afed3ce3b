"""Where in a file a backbone is: at its top, or inside anything.

A file holds a backbone wherever all of its names stand behind one prefix: the keys of containers,
the attributes of the model that it was a part of. Every such place is looked up by a few of the
backbone's own names, and held against it there. Words of wrappers (``module``, ``_orig_mod``, …)
are taken out of names wherever they stand.

Where several places fit with different numbers, a convention decides if there is one:

* weights averaged over training (EMA, SWA) before those as trained; of pycls's ``model_state`` and
  ``ema_state`` those with the lower error, as pycls does itself;
* the query encoder before the key encoder, an online network before its target, as what was
  trained by gradients;
* the teacher before the student, as DINO and mean teachers evaluate.

Else nobody knows what is meant, and the caller says ``prefix``.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from trunkline.backbones.backbone import Backbone
from trunkline.errors import ConfigError, UnknownLayoutError, WeightsMismatchError, legible
from trunkline.weights.checkpoint import Checkpoint
from trunkline.weights.layouts import get_layout
from trunkline.weights.layouts.layout import BATCH_COUNTER, MAX_POOL, Layout
from trunkline.weights.matching import (
    Match,
    own_parts,
    possible_layouts,
    refusal,
    settled,
    spoken,
    stem_weight,
    survey,
    wrong_shapes,
)
from trunkline.weights.reading.unwrapping import listed

_WRAPPERS = (
    "module",  # DataParallel and its kin; SWA's AveragedModel
    "_orig_mod",  # torch.compile
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_fpw_module",  # FairScale
    "_forward_module",  # Lightning Fabric
)
_WRAPPED = re.compile(rf"(?:(?<=\.)|^)(?:{'|'.join(_WRAPPERS)})\.")
_CLASSIFIER = re.compile(
    r"(heads\..+|(head(\.fc|\.linear)?|fc|classifier(\.\d+)?)\.(weight|bias)|"
    rf"{re.escape(MAX_POOL)})"
)
_COUNTERS = ("n_averaged", "steps")  # beside the names of averaged models

_AVERAGED = re.compile(r"(.*_)?ema(_.*)?|(.*_)?swa(_.*)?|averaged_model|avg_model")
_NETWORK = r"(encoder|backbone|net|network|model)"
_PREFERENCES = (  # (what is taken, what is left where both are there): patterns for a key
    (
        re.compile(rf"((base|online|query|q)_)?{_NETWORK}(_(q|query|online))?|online"),
        re.compile(
            rf"(momentum|target|key|k|m)_{_NETWORK}|{_NETWORK}_(k|key|m|momentum|target)|target"
        ),
    ),
    (
        re.compile(r"(.*_)?teacher(_.*)?|[a-z]+Teacher"),
        re.compile(r"(.*_)?student(_.*)?|[a-z]+Student"),
    ),
)
_BACKBONE = "backbone"  # of a detector or segmenter, before another network in it
_CHILDREN = ("0", "1", "4", "5", "6", "7")  # of conv1, bn1, an activation, a pool, four layers
_LAYERS = tuple(f"layer{n}" for n in range(1, 5))
_NUMBERED = (  # a convolution of a network whose children are numbered, and these children
    ("4.0.conv1.weight", ("conv1", "bn1", *_LAYERS)),
    ("1.0.conv1.weight", ("conv1", "bn1", *_LAYERS)),  # the stem is a child
    ("3.tree1.conv1.weight", ("base_layer", *(f"level{n}" for n in range(6)))),
    ("1.b1.conv1.conv.weight", ("stem", *(f"s{n}" for n in range(1, 5)))),
    ("1.block1.block1-0.f.a.0.weight", ("stem", "trunk_output")),
)
_At = TypeVar("_At")
_LANDMARKS = 5  # names of a backbone that are looked for, spread over it
_MOST_PLACES = 64  # that are held against it, the fullest first
_MOST_NAMES = 40_000  # in all of them: places within places count each other's
_MOST_KINDS, _LEAST = 16, 20  # where nobody says which network: places, and tensors of one
_SHARE = 0.3  # of a backbone's tensors: less behind a prefix is not looked at


@dataclass(frozen=True)
class Place:
    """The tensors behind one prefix, without it.

    Attributes:
        prefix: What is in front of their names, wrappers taken out; "" or with a dot behind.
        tensors: By the names that are left.
        above: Names in the file, wrappers taken out, of a classifier that stands beside the prefix
            and is among the tensors all the same.
        layout: The one layout that they may have; None for any.
        notes: What was done to their names, in sentences.
        also: Other prefixes behind which the same numbers stand.
        fault: Why it is no backbone although the names are there, "" for no reason.
    """

    prefix: str
    tensors: dict[str, Tensor]
    above: frozenset[str] = frozenset()
    layout: Layout | None = None
    notes: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    fault: str = ""


class Names:
    """All names of a file without the words of wrappers, to be looked up by their beginnings."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        plain = {name: _WRAPPED.sub("", name) for name in tensors}
        bare = {name for name, clean in plain.items() if name == clean}
        taken = set(bare)
        self.tensors: dict[str, Tensor] = {}
        self.training: list[str] = []  # state of training that lies among the weights
        for name, clean in plain.items():
            if name not in bare:  # of two tensors one keeps its wrapper
                clean = name if clean in taken else clean
                taken.add(clean)
            if clean.rpartition(".")[2] in _COUNTERS:
                self.training.append(clean)
            else:
                self.tensors[clean] = tensors[name]
        self._sorted = sorted(self.tensors)
        self._heads: list[str] | None = None
        self._order = {name: n for n, name in enumerate(self.tensors)}

    def _span(self, prefix: str) -> tuple[int, int]:
        if not prefix:
            return 0, len(self._sorted)
        after = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        return bisect_left(self._sorted, prefix), bisect_left(self._sorted, after)

    def count(self, prefix: str) -> int:
        """Return how many names begin so."""
        low, high = self._span(prefix)
        return high - low

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin so, by the rest of these, in the file's order."""
        low, high = self._span(prefix)
        found = sorted(self._sorted[low:high], key=self._order.__getitem__)
        return {n[len(prefix) :]: self.tensors[n] for n in found if n != prefix}

    def heads_in(self, prefix: str) -> list[str]:
        """Return the names of a linear classifier right behind a prefix.

        A module with more in it than that, such as a norm before it, is another function.
        """
        if self._heads is None:
            self._heads = [
                n for n in self.tensors if "head" in n or "fc." in n or "classifier" in n
            ]
        found: dict[str, list[str]] = {}
        for name in self._heads:
            short = name[len(prefix) :]
            if name.startswith(prefix) and _CLASSIFIER.fullmatch(short):
                found.setdefault(f"{prefix}{short.partition('.')[0]}.", []).append(name)
        whole = (names for at, names in found.items() if self.count(at) == len(names))
        return [name for names in whole for name in names]

    def first(self, prefix: str) -> int:
        """Return where in the file the first such name stands."""
        low, high = self._span(prefix)
        return min(map(self._order.__getitem__, self._sorted[low:high]), default=0)


def find(
    backbone: Backbone, checkpoint: Checkpoint, layout: str = "auto", prefix: str | None = None
) -> tuple[Checkpoint, Match]:
    """Find a backbone in what a file holds.

    Args:
        backbone: What is looked for.
        checkpoint: All that the file holds.
        layout: A name of ``LAYOUTS``, or ``"auto"``.
        prefix: Where it is, with or without a dot behind; a part of the way that only one place
            has is enough. None looks everywhere.

    Returns:
        The backbone's tensors by their plain names, with notes on where they were and what stands
        beside them; and which of them belongs where.

    Raises:
        UnknownLayoutError: No place has such names, or they are those of several layouts.
        WeightsMismatchError: The best place lacks tensors, or has more; or several are complete
            and differ; or there is nothing at ``prefix``.
    """
    names = Names(checkpoint.tensors)
    asked = layout != "auto"
    layouts = [get_layout(layout)] if asked else possible_layouts(backbone)
    places = _places(backbone, names, checkpoint, layouts)
    if prefix is not None:
        places = _at(prefix, places, backbone)
    fitting: list[tuple[Place, Match]] = []
    closest: tuple[Place, Match] | None = None
    unclear: UnknownLayoutError | None = None
    fault = ""
    for place in places:
        matches = survey(backbone, place.tensors, place.layout.name if place.layout else layout)
        sound = [m for m in matches if not wrong_shapes(backbone, m, place.tensors)]
        try:
            match = settled(sound, place.tensors, asked=asked)
        except UnknownLayoutError as error:
            unclear = unclear or error
            continue
        if match is not None and place.fault:
            fault = fault or place.fault
            continue
        if match is not None:
            fitting.append((place, match))
        best = max(matches, key=lambda one: one.num_held, default=None)
        if best is not None and (closest is None or best.num_held > closest[1].num_held):
            closest = place, best
    if fitting:
        place, match, said = _chosen(fitting, checkpoint, backbone)
        return _narrowed(checkpoint, names, place, said), match
    if unclear is not None:
        raise unclear
    if fault:
        raise WeightsMismatchError(fault)
    if closest is None or (not asked and len(closest[1].missing) > closest[1].num_held):
        raise UnknownLayoutError(
            f"no layout of {spoken(backbone)} has names such as "
            f"{', '.join(sorted(checkpoint.tensors)[:3]) or '(the file holds no tensor)'}."
        )
    place, match = closest
    refused = refusal(backbone, match, place.tensors, place.prefix.removesuffix("."))
    raise WeightsMismatchError(" ".join((str(refused), *_as_objects(checkpoint, match, place))))


def _as_objects(checkpoint: Checkpoint, match: Match, place: Place) -> Iterator[str]:
    """Say which missing tensors the file has in a form that is not read."""
    there = {
        _clean(path + said.partition(" (")[0]): said.partition(" (")[2].removesuffix(")")
        for path, names in checkpoint.others.items()
        for said in names
        if said.endswith(")")
    }
    for name in match.missing:
        if kind := there.get(place.prefix + name):
            if " " in kind:  # no class, but a tensor of a kind and what to do with it
                yield f"{name} is there as {kind}."
            else:
                yield f"{name} is there as an object of class {kind}, which holds no numbers."
            return


def _places(
    backbone: Backbone, names: Names, checkpoint: Checkpoint, layouts: Sequence[Layout]
) -> list[Place]:
    """Return where in a file a backbone could be, as the file has them."""
    wanted = backbone.state_dict()
    landmarks = _landmarks(backbone, wanted)
    least = _SHARE * sum(not name.endswith(BATCH_COUNTER) for name in wanted)
    found: dict[tuple[str, Layout | None], None] = {}
    for layout in layouts:
        if not layout.applies(backbone.architecture):
            found[("", layout)] = None  # it is told so
            continue
        marks = [name.upstream for name in layout.names(backbone.architecture, landmarks).values()]
        found.update({(prefix, None): None for prefix in _before(names.tensors, marks)})
        found |= {(prefix, layout): None for prefix in _numbered(names.tensors, marks)}
        if layout.respell:
            for container in checkpoint.containers:
                prefix = _WRAPPED.sub("", container)
                if not {layout.respelled(n) for n in names.under(prefix)}.isdisjoint(marks):
                    found[(prefix, None)] = None
    counted = {at: names.count(at[0]) for at in found}
    fullest = _affordable(sorted(found, key=lambda at: -counted[at])[:_MOST_PLACES], counted)
    kept = [at for at in fullest if counted[at] >= least] or fullest[:1]
    places = []
    for prefix, only in sorted(kept, key=lambda at: (names.first(at[0]), len(at[0]))):
        place = Place(prefix, names.under(prefix), layout=only)
        if only is not None and only.applies(backbone.architecture):
            place = _renamed(place, only, backbone)
        places.append(_with_classifier(names, _with_stem(place)))
    return places


def _affordable(places: Sequence[_At], counted: Mapping[_At, int]) -> list[_At]:
    """Return the first places, as long as all of them together hold no more names than are read."""
    total = 0
    kept: list[_At] = []
    for at in places:
        total += counted[at]
        if kept and total > _MOST_NAMES:
            break
        kept.append(at)
    return kept


def places_like(tensors: Mapping[str, Tensor], stems: Sequence[str]) -> list[Place]:
    """Return where in a file a backbone of any kind could be, the fullest first.

    Args:
        tensors: All that the file holds.
        stems: What the stem's weight may be called.
    """
    names = Names(tensors)
    found = dict.fromkeys(("", *_before(names.tensors, stems)))
    counted = {prefix: names.count(prefix) for prefix in found}
    fullest = sorted(found, key=lambda prefix: -counted[prefix])
    places = []
    for prefix in _affordable(fullest[:_MOST_KINDS], counted):
        if not prefix or names.count(prefix) >= _LEAST:
            place = _with_stem(Place(prefix, names.under(prefix)))
            places.append(_with_classifier(names, place))
    return [*places, *_numbered_like(names)]


def _numbered_like(names: Names) -> Iterator[Place]:
    """Return where the children of a backbone of any kind are numbered as that numbers them."""
    for mark, parts in _NUMBERED:
        for prefix in list(dict.fromkeys(_before(names.tensors, (mark,))))[:_MOST_KINDS]:
            if not _LEAST <= names.count(prefix) <= _MOST_NAMES // _MOST_KINDS:
                continue
            place = Place(prefix, names.under(prefix))
            called, fault = _children(place, parts)
            if not fault:
                yield _with_classifier(names, _with_parts(place, called))


def _landmarks(backbone: Backbone, wanted: Mapping[str, Tensor]) -> list[str]:
    """Return a few convolutions spread over a backbone, the stem's first."""
    weights = [name for name, tensor in wanted.items() if tensor.ndim == 4]
    step = max(len(weights) // _LANDMARKS, 1)
    return list(dict.fromkeys((stem_weight(backbone.architecture), *weights[::step], weights[-1])))


def _before(names: Iterable[str], marks: Sequence[str]) -> Iterator[str]:
    """Return what stands in front of landmarks."""
    ends = tuple(marks)
    for name in names:
        if name.endswith(ends):
            for mark in marks:
                if name.endswith(mark) and (len(name) == len(mark) or name[-len(mark) - 1] == "."):
                    yield name[: -len(mark)]


def _numbered(names: Iterable[str], marks: Sequence[str]) -> Iterator[str]:
    """Return what stands in front of landmarks whose first word is a number.

    ``nn.Sequential(*network.children())`` numbers the children: ``4.0.conv1.weight``.
    """
    rests = [rest for mark in marks if (rest := mark.partition(".")[2]).count(".") > 1]
    ends = tuple(f".{rest}" for rest in rests)
    for name in names:
        if not name.endswith(ends):
            continue
        for end in ends:
            before, _, number = name.removesuffix(end).rpartition(".")
            if name.endswith(end) and number.isdecimal():
                yield f"{before}." if before else ""


def _renamed(place: Place, layout: Layout, backbone: Backbone) -> Place:
    """Give numbered children the names that they have in their network."""
    parts = own_parts(layout, backbone.architecture)
    called, fault = _children(place, parts)
    if fault:
        fault = (
            f"the file numbers the parts of a {spoken(backbone)} {fault}: an activation or a pool "
            "is not where that has it, so the maps would be others. If it is right all the same, "
            f"give the tensors their names in {layout.title}."
        )
    return replace(_with_parts(place, called), fault=fault)


def _with_parts(place: Place, called: Mapping[str, str]) -> Place:
    tensors = {}
    for name, tensor in place.tensors.items():
        first, dot, rest = name.partition(".")
        if first not in called and (pair := f"{first}.{rest.partition('.')[0]}") in called:
            first, dot, rest = pair, ".", rest.partition(".")[2]
        tensors[called.get(first, first) + dot + rest] = tensor
    said = ", ".join(f"{number} is {part}" for number, part in called.items())
    notes = (f"Children are numbered: {said}.",)
    return replace(place, tensors=tensors, notes=notes)


def _children(place: Place, parts: Sequence[str]) -> tuple[dict[str, str], str]:
    """Return number → part; and, where pools or activations are not counted, what is there."""
    firsts = {name.partition(".")[0] for name in place.tensors}
    numbers = sorted((n for n in firsts if n.isdecimal()), key=int)
    expected = [str(n) for n in range(len(parts))]
    if parts[:2] == ("conv1", "bn1"):
        if "0.0.weight" in place.tensors and "1.weight" not in place.tensors:
            expected = ["0.0", "0.1", *expected[1:-1]]  # the stem is a child
        else:
            expected = [*_CHILDREN, *expected][: len(parts)]
    if expected[0] == "0" and not {*numbers[: len(parts)]} <= {*expected}:
        there = dict(zip(numbers, parts, strict=False))
        return there, f"{', '.join(there)}, and not {', '.join(expected)}"
    return dict(zip(expected, parts, strict=True)), ""


def _with_stem(place: Place) -> Place:
    """Give the stem its names where it was put into a module of its own, ``layer0``."""
    if "layer0.0.weight" not in place.tensors or "conv1.weight" in place.tensors:
        return place
    called = {"layer0.0.": "conv1.", "layer0.1.": "bn1."}
    tensors = {
        next((new + n[len(old) :] for old, new in called.items() if n.startswith(old)), n): tensor
        for n, tensor in place.tensors.items()
    }
    return replace(place, tensors=tensors, notes=(*place.notes, "The stem was in layer0."))


def _with_classifier(names: Names, place: Place) -> Place:
    """Add a classifier that stands beside a backbone and not in it.

    ``backbone.conv1.weight`` goes with ``head.fc.weight``.
    """
    found: dict[str, str] = {}
    above = place.prefix
    while above:
        above = above[: above[:-1].rfind(".") + 1]
        for name in names.heads_in(above):
            if name[len(above) :] not in place.tensors and not name.startswith(place.prefix):
                found.setdefault(name[len(above) :], name)
    if not found:
        return place
    heads = {short: names.tensors[name] for short, name in found.items()}
    return replace(place, tensors=place.tensors | heads, above=frozenset(found.values()))


def _at(prefix: str, places: Sequence[Place], backbone: Backbone) -> list[Place]:
    """Return the places that a caller means.

    Raises:
        ConfigError: The prefix is no text.
        WeightsMismatchError: There is none; those that there are, are named.
    """
    if not isinstance(prefix, str):
        raise ConfigError(
            f"prefix={prefix!r} is no text; give where the network is as names have it, such as "
            "prefix='model.backbone'."
        )
    written = prefix.strip(".")  # first: names that collide without their wrappers keep them
    unwrapped = _WRAPPED.sub("", f"{written}.").strip(".")
    for asked in (written, unwrapped):
        if exact := [place for place in places if place.prefix.strip(".") == asked]:
            return exact
    found = [place for place in places if f".{unwrapped}." in f".{place.prefix}"]
    if not found:
        there = listed(repr(place.prefix.removesuffix(".")) for place in places)
        raise WeightsMismatchError(
            f"no {spoken(backbone)} is at prefix={prefix!r}; something like it is at: {there}."
        )
    return found


def _chosen(
    fitting: Sequence[tuple[Place, Match]], checkpoint: Checkpoint, backbone: Backbone
) -> tuple[Place, Match, tuple[str, ...]]:
    """Return the place that is meant, and why where there are several."""
    distinct: list[tuple[Place, Match]] = []
    for place, match in fitting:
        for n, (known, its) in enumerate(distinct):
            if _same_numbers(place, match, known, its):
                distinct[n] = replace(known, also=(*known.also, place.prefix)), its
                break
        else:
            distinct.append((place, match))
    said: list[str] = []
    left = _best_average([place for place, _ in distinct], checkpoint, said)
    for taken, other in _PREFERENCES:
        left = _preferred(left, taken, other, said)
    if len(left) > 1 and sum(_BACKBONE in _words(place, left) for place in left) == 1:
        left = _preferred(left, re.compile(_BACKBONE), re.compile("(?!backbone$).+"), said)
    if len(left) > 1:
        there = " and ".join(f"prefix={place.prefix.removesuffix('.')!r}" for place in left)
        raise WeightsMismatchError(
            f"the file holds {len(left)} networks that are {spoken(backbone)} and differ; say "
            f"which: {there}."
        )
    place, match = next(pair for pair in distinct if pair[0] is left[0])
    if also := {*place.also} - {place.prefix}:
        shown = listed(repr(prefix.removesuffix(".")) for prefix in also)
        said.append(f"the same numbers stand at {shown} too")
    return place, match, tuple(said)


def _preferred(
    places: list[Place], taken: re.Pattern[str], other: re.Pattern[str], said: list[str]
) -> list[Place]:
    """Leave the places that go by ``other`` where there are some that go by ``taken`` alone."""
    words = [_words(place, places) for place in places]
    left = [any(map(other.fullmatch, of)) and not any(map(taken.fullmatch, of)) for of in words]
    for n, of in enumerate(words):
        if not left[n] and (word := next(filter(taken.fullmatch, of), "")):
            said += [
                f"{word} was taken, and another left: prefix={p.prefix.removesuffix('.')!r} takes "
                "that"
                for p, is_left in zip(places, left, strict=True)
                if is_left
            ]
            return [p for p, is_left in zip(places, left, strict=True) if not is_left]
    return places


def _words(place: Place, places: Sequence[Place]) -> list[str]:
    """Return the keys on the way to a place that do not lead to all the others as well."""
    ways = [_way(one) for one in places]
    common = set(ways[0]).intersection(*ways[1:]) if len(ways) > 1 else set()
    return [word for word in _way(place) if word not in common]


def _way(place: Place) -> list[str]:
    return [word for prefix in (place.prefix, *place.also) for word in prefix.split(".") if word]


def _goes_by(place: Place, word: str) -> bool:
    return word in _way(place)


def _same_numbers(place: Place, match: Match, other: Place, known: Match) -> bool:
    pairs = (
        (place.tensors[name.upstream], other.tensors[known.found[native].upstream])
        for native, name in match.found.items()
        if native in known.found and not native.endswith(BATCH_COUNTER)
    )
    return all(
        one is two or (one.shape == two.shape and torch.equal(one, two)) for one, two in pairs
    )


def _best_average(places: list[Place], checkpoint: Checkpoint, said: list[str]) -> list[Place]:
    """Of weights as trained and weights averaged over training, keep the averaged."""
    averaged = {id(p): word for p in places for word in _way(p) if _AVERAGED.fullmatch(word)}
    plain = [place for place in places if id(place) not in averaged]
    if not averaged:
        return places
    word = next(iter(averaged.values()))
    if not plain:
        said.append(f"EMA weights ({word}): the file has no others")
        return places
    if word == "ema_state" and any(_goes_by(place, "model_state") for place in plain):
        raw, average = (_error(checkpoint, key) for key in ("test_err", "ema_err"))
        better = "ema_state" if average < raw else "model_state"
        said.append(
            f"{better} was taken, as pycls does: test_err {raw:g}, ema_err {average:g} "
            "(100 where the file has none)"
        )
        return [place for place in places if _goes_by(place, better)]
    other = plain[0].prefix.partition(".")[0]
    said.append(f"EMA weights ({word}) were preferred over {other or 'those at the top'}")
    return [place for place in places if id(place) in averaged]


def _error(checkpoint: Checkpoint, key: str) -> float:
    try:
        return float(checkpoint.metadata.get(key, 100))
    except ValueError:
        return 100.0


def _narrowed(
    checkpoint: Checkpoint, names: Names, place: Place, said: tuple[str, ...]
) -> Checkpoint:
    """Return what a file holds of one backbone, its classifier with it, and say what it leaves."""
    around = [c for c in map(_clean, checkpoint.containers) if place.prefix.startswith(c)]
    container = max(around, key=len, default="")  # none holds tensors: modules within modules
    beside = Counter(
        _branch(name, place.prefix)
        for name in names.tensors
        if not name.startswith(place.prefix) and name not in place.above
    )
    notes = [*said, *place.notes]
    for path, kind in checkpoint.objects.items():
        if place.prefix.startswith(_clean(path)):
            what = f"An object of class {legible(kind)}"
            where = f" at {path.removesuffix('.')}" if path else ""
            notes.append(f"{what}{where} was not made; its tensors were read")
            break
    if beside:
        shown = listed(f"{part} {count}" for part, count in beside.items())
        notes.append(
            f"only the {len(place.tensors)} tensors under {place.prefix} were taken, "
            f"{beside.total()} others were left aside ({shown})"
        )
    if names.training:
        notes.append(f"left out, for they are the state of training: {listed(names.training)}")
    if others := checkpoint.others.get(container):
        notes.append(f"left out, for they are no tensors: {listed(others)}")
    return replace(
        checkpoint,
        tensors=place.tensors,
        container=container.removesuffix("."),
        prefix=place.prefix[len(container) :],
        notes=(*checkpoint.notes, *notes, *_dtype_notes(place.tensors)),
        beside={
            name: tuple(tensor.shape)
            for name, tensor in names.tensors.items()
            if not name.startswith(place.prefix) and name not in place.above
        },
    )


def _clean(name: str) -> str:
    return _WRAPPED.sub("", name)


def _branch(name: str, prefix: str) -> str:
    """Return where a name leaves the way to a prefix."""
    parts, way = name.split("."), prefix.split(".")
    same = 0
    while same < min(len(parts), len(way)) and parts[same] == way[same]:
        same += 1
    return ".".join(parts[: same + 1])


def _dtype_notes(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    unusual = Counter(
        tensor.dtype
        for tensor in tensors.values()
        if tensor.is_floating_point() and tensor.dtype != torch.float32
    )
    return tuple(
        f"{str(dtype).removeprefix('torch.')} kept: {count} tensors"
        for dtype, count in unusual.items()
    )
