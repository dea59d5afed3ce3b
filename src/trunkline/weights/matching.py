"""Which tensor of a file belongs where: every one that is needed, and a reason for every other."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from trunkline.backbones.backbone import Architecture, Backbone
from trunkline.backbones.layers import NormStandIn
from trunkline.errors import UnknownLayoutError, WeightsMismatchError
from trunkline.weights.fused import norms_are_fused
from trunkline.weights.layouts import get_layout, layouts_for
from trunkline.weights.layouts.layout import BATCH_COUNTER, CLASSIFIER, Layout, Name

SHOWN = 10  # names of a long list that an error prints
_CLASSIFIER_NAMES = (f"{CLASSIFIER}weight", f"{CLASSIFIER}bias")


@dataclass(frozen=True)
class Match:
    """How the tensors of a file fit the names that a network needs, under one layout.

    Attributes:
        layout: The layout.
        found: Native name → the name in the file, and how the value changes.
        filled: Native names that the file leaves out because their value is fixed.
        head: As ``found``, for a classifier that the file holds.
        missing: Upstream names that should be in the file and are not.
        beyond: Native name → the name in the file, of stages that the backbone does not keep.
        dropped: Reason → names in the file that have no place here.
        unexpected: Names in the file that nothing explains.
    """

    layout: Layout
    found: dict[str, Name]
    filled: tuple[str, ...]
    missing: tuple[str, ...]
    head: dict[str, Name] = field(default_factory=dict)
    beyond: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unexpected: tuple[str, ...] = ()

    @property
    def num_held(self) -> int:
        """How many tensors of the network the file holds, classifier apart."""
        return len(self.found) + len(self.beyond)

    @property
    def complete(self) -> bool:
        """Whether nothing is missing and nothing unexplained."""
        return not self.missing and not self.unexpected


def stem_weight(architecture: Architecture) -> str:
    """Return the native name of the weight that meets the images."""
    deep = architecture.family == "dla" or len(getattr(architecture, "stem_widths", (0,))) > 1
    return "stem.0.conv.weight" if deep else "stem.conv.weight"


def match_layout(backbone: Backbone, tensors: Mapping[str, Tensor], layout: Layout) -> Match:
    """Hold the tensors of a file against what a backbone needs, under one layout."""
    wanted = backbone.state_dict()
    spelled = {layout.respelled(name): name for name in tensors}
    names = layout.names(backbone.architecture, wanted)
    found = _held(names, spelled)
    absent = [native for native in names if native not in found]
    used = {name.upstream for name in found.values()}
    left = {short: full for short, full in spelled.items() if full not in used}
    left.update({full: full for full in tensors.keys() - set(spelled.values())})  # two alike
    head = classifier_names(layout, backbone.architecture)
    reasons = {name.upstream: "classifier, not part of a backbone" for name in head.values()}
    beyond, lacking = _beyond(backbone, layout, left.keys() - reasons.keys())
    reasons |= dict.fromkeys(beyond.values(), "in a stage that return_idx does not keep")
    dropped, unexpected = _explain(layout, left, reasons, counts=any(map(_is_counter, wanted)))
    lacking += [names[native].upstream for native in absent if not _is_counter(native)]
    return Match(
        layout=layout,
        found=found,
        filled=(*(name for name in wanted if name not in names), *filter(_is_counter, absent)),
        head=_held(head, spelled),
        beyond={native: spelled[short] for native, short in beyond.items()},
        missing=tuple(sorted(layout.prefix + name for name in lacking)),
        dropped=dropped,
        unexpected=tuple(sorted(unexpected)),
    )


def _held(names: Mapping[str, Name], spelled: Mapping[str, str]) -> dict[str, Name]:
    """Return those names that a file has, with the spelling of the file."""
    return {
        native: Name(spelled[name.upstream], name.change)
        for native, name in names.items()
        if name.upstream in spelled
    }


def _explain(
    layout: Layout, left: Mapping[str, str], reasons: Mapping[str, str], *, counts: bool
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Sort what is left over into what has a reason, by reason, and what has none."""
    dropped: dict[str, list[str]] = {}
    unexpected = []
    for short, full in left.items():
        reason = reasons.get(short) or layout.drop_reason(short)
        if reason is None and _is_counter(short):
            reason = None if counts else "frozen norms count no batches"
        if reason is None:
            unexpected.append(full)
        else:
            dropped.setdefault(reason, []).append(full)
    return {reason: tuple(sorted(names)) for reason, names in dropped.items()}, unexpected


def classifier_names(layout: Layout, architecture: Architecture) -> dict[str, Name]:
    """Return what a layout calls the classifier; nothing where its files are backbones only."""
    try:
        return layout.names(architecture, _CLASSIFIER_NAMES)
    except LookupError:
        return {}


def _is_counter(name: str) -> bool:
    return name.endswith(BATCH_COUNTER)


def _beyond(
    backbone: Backbone, layout: Layout, left: Collection[str]
) -> tuple[dict[str, str], list[str]]:
    """Look for the stages that a backbone does not keep among what is left over of a file.

    A file that holds a part of such a stage only is that of another network, whose first stages
    happen to be the same.

    Returns:
        What there is of them, native name → the upstream's, and upstream's names that are missing.
    """
    kept = len(backbone.stages)
    if kept == len(backbone.architecture.stage_depths) or not left:
        return {}, []
    # A network of group norms has no statistics, which the whole one here stands in for.
    leaves = {name.rpartition(".")[2] for name in backbone.state_dict()} | {BATCH_COUNTER}
    whole = native_shapes(backbone.architecture)
    rest = [n for n in whole if stage_of(n) >= kept and n.rpartition(".")[2] in leaves]
    names = layout.names(backbone.architecture, rest)
    there = {native: name.upstream for native, name in names.items() if name.upstream in left}
    begun = {stage_of(native) for native in there}
    absent = [n for n in names.keys() - there.keys() if stage_of(n) in begun]
    return there, [names[n].upstream for n in absent if not _is_counter(n)]


def stage_of(native: str) -> int:
    """Return the stage that a native name is in, −1 for the stem's."""
    return int(native.split(".")[1]) if native.startswith("stages.") else -1


@cache
def native_shapes(architecture: Architecture) -> dict[str, Tensor]:
    """Return the state dict of a whole network on the meta device, without a classifier."""
    with torch.device("meta"):
        return dict(Backbone(architecture, norm=NormStandIn).state_dict())


def recognise(backbone: Backbone, tensors: Mapping[str, Tensor], layout: str = "auto") -> Match:
    """Find the layout of a file, or hold it against the one that was asked for.

    Args:
        backbone: What the file is for.
        tensors: What the file holds.
        layout: A name of ``LAYOUTS``, or ``"auto"``.

    Returns:
        A match with nothing missing and nothing unexplained.

    Raises:
        UnknownLayoutError: No layout fits, or several fit with different meanings.
        WeightsMismatchError: The layout is clear, but names are missing or left over.
    """
    if layout != "auto":
        chosen = get_layout(layout)
        if not chosen.applies(backbone.architecture):
            raise WeightsMismatchError(
                f"{chosen.title} has no {_spoken(backbone)}; layouts that have it: "
                f"{', '.join(known.name for known in layouts_for(backbone.architecture))}."
            )
        return _complete(backbone, match_layout(backbone, tensors, chosen), tensors)
    kind = norm_kind(backbone)
    matches = [
        match_layout(backbone, tensors, known)
        for known in layouts_for(backbone.architecture)
        if _fits_norm(known, kind) and _opens(backbone, tensors, known)
    ]
    fitting = [match for match in matches if match.complete]
    free = [match for match in fitting if not match.layout.told or _proven(match, tensors)]
    if fitting and not free:
        raise UnknownLayoutError(f"{fitting[0].layout.told}.")
    if free and all(_same(match, free[0]) for match in free):
        return free[0]
    if free:
        names = ", ".join(match.layout.name for match in free)
        raise UnknownLayoutError(f"these names fit several layouts: {names}. Say layout=NAME.")
    if not matches:  # perhaps nothing but the stem is missing
        matches = [
            match_layout(backbone, tensors, known)
            for known in layouts_for(backbone.architecture)
            if _fits_norm(known, kind)
        ]
    best = max(matches, key=lambda match: match.num_held, default=None)
    if best is None or len(best.missing) > best.num_held:
        raise UnknownLayoutError(
            f"no layout of {_spoken(backbone)} has names such as "
            f"{', '.join(sorted(tensors)[:3]) or '(the file holds no tensor)'}."
        )
    return _complete(backbone, best, tensors)


def _proven(match: Match, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the numbers say what the names of a layout do not."""
    found = {native: tensors[name.upstream] for native, name in match.found.items()}
    return match.layout.fused and norms_are_fused(found)


def check_norm(backbone: Backbone, layout: Layout) -> None:
    """Refuse a layout whose files fit other norms than the backbone's.

    Raises:
        WeightsMismatchError: They do.
    """
    if layout.norm and norm_kind(backbone) != layout.norm:
        raise WeightsMismatchError(
            f"{layout.title} fits {layout.norm} norms only, and this backbone has "
            f"{norm_kind(backbone)} norms; build it with norm={layout.norm!r}."
        )


def _opens(backbone: Backbone, tensors: Mapping[str, Tensor], layout: Layout) -> bool:
    """Return whether a file has the layout's name of the stem's weight: a look before the match."""
    first = stem_weight(backbone.architecture)
    name = layout.names(backbone.architecture, [first])[first].upstream
    return any(layout.respelled(there) == name for there in tensors)


def _fits_norm(layout: Layout, kind: str) -> bool:
    # Only our own files and Caffe2's have group norms; others' batch norms do not fit them.
    if layout.name == "trunkline":
        return True
    return kind == layout.norm if layout.norm or kind == "group" else True


def norm_kind(backbone: Backbone) -> str:
    """Return ``"batch"``, ``"frozen"``, ``"group"`` or ``"other"``, by what the norms store."""
    stem = stem_weight(backbone.architecture).removesuffix("conv.weight") + "norm."
    held = backbone.stem.state_dict(prefix="stem.")
    leaves = {name.removeprefix(stem) for name in held if name.startswith(stem)}
    kinds = {
        frozenset({"weight", "bias", "running_mean", "running_var", BATCH_COUNTER}): "batch",
        frozenset({"weight", "bias", "running_mean", "running_var"}): "frozen",
        frozenset({"weight", "bias"}): "group",
    }
    return kinds.get(frozenset(leaves), "other")


def _same(one: Match, other: Match) -> bool:
    return (
        one.layout.bgr == other.layout.bgr
        and one.found.keys() == other.found.keys()
        and all(one.found[n].upstream == other.found[n].upstream for n in one.found)
    )


def wrong_shapes(backbone: Backbone, match: Match, tensors: Mapping[str, Tensor]) -> list[str]:
    """Return a sentence for every tensor whose shape does not fit; the stem may be adapted."""
    wanted = backbone.state_dict()
    if match.beyond:
        wanted = native_shapes(backbone.architecture) | wanted
    first = stem_weight(backbone.architecture)
    wrong = []
    there = {native: name.upstream for native, name in match.found.items()} | match.beyond
    for native, name in there.items():
        has, needs = tensors[name].shape, wanted[native].shape
        if native == first and len(has) == 4 and has[1]:  # any number of channels is fitted
            has = torch.Size((has[0], needs[1], *has[2:]))
        if has != needs:
            wrong.append(f"{name} is {_size(tensors[name].shape)}, needs {_size(needs)}")
    return wrong


def _size(shape: torch.Size) -> str:
    return "×".join(map(str, shape)) or "a scalar"


def _complete(backbone: Backbone, match: Match, tensors: Mapping[str, Tensor]) -> Match:
    if match.complete:
        return match
    parts = [f"the file does not fit {_spoken(backbone)} as {match.layout.title} names it."]
    parts += listed("Missing", match.missing)
    parts += listed("Left over", match.unexpected)
    parts += listed("Of another shape", wrong_shapes(backbone, match, tensors))
    raise WeightsMismatchError(" ".join(parts))


def listed(title: str, names: Sequence[str]) -> list[str]:
    """Return a sentence that counts and lists names, cut at ten; none for no names."""
    if not names:
        return []
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"{title}: {len(names)} ({'; '.join(sorted(names)[:SHOWN])}{more})."]


def _spoken(backbone: Backbone) -> str:
    return backbone.variant or "this network"
