"""Which tensor of a file belongs where: every one that is needed, and a reason for every other."""

from __future__ import annotations

import re
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
from trunkline.weights.layouts.layout import (
    BATCH_COUNTER,
    CLASSIFIER,
    CLASSIFIER_LEFT,
    Layout,
    Name,
)

SHOWN = 10  # names of a long list that an error prints
_CLASSIFIER_NAMES = (f"{CLASSIFIER}weight", f"{CLASSIFIER}bias")
_OWN_HEAD = re.compile(r"(head|fc|classifier)\.")  # what most scripts call it
BESIDE = "beside the backbone, no part of it"
# Tensors of such modules next to a stem and its stages may change what they compute: a filter in
# the pool, a second stem, one stage more.
_PARTS = re.compile(
    r"((conv|bn|norm|relu|act|prelu|maxpool|pool|layer|stage|res|block|level|s)_?\d*|downsample)"
)


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
    own = own_parts(layout, backbone.architecture)
    head = classifier_names(layout, backbone.architecture)
    if not _held(head, spelled):
        beside = {short: tensors[full] for short, full in spelled.items() if short not in used}
        head = _own_head(beside, backbone.levels[-1].channels)
    reasons = {name.upstream: CLASSIFIER_LEFT for name in head.values()}
    beyond, lacking = _beyond(backbone, layout, left.keys() - reasons.keys())
    reasons |= dict.fromkeys(beyond.values(), "in a stage that return_idx does not keep")
    dropped, unexpected = _explain(layout, left, reasons, own, counts=any(map(_is_counter, wanted)))
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


def _own_head(beside: Mapping[str, Tensor], width: int) -> dict[str, Name]:
    """Return the linear layer that a script of one's own put beside a network of another library.

    Such as ``backbone.conv1.weight`` with ``head.weight``: the only one, alone in its module, and
    as wide as the network's last map.
    """
    heads = [name for name in beside if _OWN_HEAD.match(name)]
    weights = [name for name in heads if name.endswith(".weight")]
    stem = weights[0].removesuffix("weight") if len(weights) == 1 else None
    if stem is None or beside[weights[0]].shape[1:] != (width,):
        return {}
    if not {*heads} <= {f"{stem}weight", f"{stem}bias"}:
        return {}
    return {f"{CLASSIFIER}{name.removeprefix(stem)}": Name(name) for name in heads}


def _held(names: Mapping[str, Name], spelled: Mapping[str, str]) -> dict[str, Name]:
    """Return those names that a file has, with the spelling of the file."""
    return {
        native: Name(spelled[name.upstream], name.change)
        for native, name in names.items()
        if name.upstream in spelled
    }


def _explain(
    layout: Layout,
    left: Mapping[str, str],
    reasons: Mapping[str, str],
    own: Collection[str],
    *,
    counts: bool,
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Sort what is left over into what has a reason, by reason, and what has none."""
    dropped: dict[str, list[str]] = {}
    unexpected = []
    for short, full in left.items():
        reason = reasons.get(short) or layout.drop_reason(short)
        if reason is None and _is_counter(short):
            reason = None if counts else "frozen norms count no batches"
        if reason is None:
            reason = None if is_inside(short, own) else BESIDE
        if reason is None:
            unexpected.append(full)
        else:
            dropped.setdefault(reason, []).append(full)
    return {reason: tuple(sorted(names)) for reason, names in dropped.items()}, unexpected


def is_inside(upstream: str, own: Collection[str]) -> bool:
    """Return whether a name is one of a network's own parts, or of what may stand between them."""
    part = _part(upstream)
    return part in own or _PARTS.fullmatch(part) is not None


def _part(upstream: str) -> str:
    # Caffe2 has no dots: conv1_w, res2_0_branch1_bn_b.
    return upstream.partition(".")[0] if "." in upstream else upstream.partition("_")[0]


@cache
def own_parts(layout: Layout, architecture: Architecture) -> tuple[str, ...]:
    """Return what a layout's names of a network begin with, in order: all else stands beside it."""
    weights = [name for name in native_shapes(architecture) if name.endswith(".weight")]
    names = layout.names(architecture, weights).values()
    return tuple(dict.fromkeys(_part(name.upstream) for name in names))


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


def survey(backbone: Backbone, tensors: Mapping[str, Tensor], layout: str = "auto") -> list[Match]:
    """Hold tensors against what a backbone needs, under every layout that they could have.

    Args:
        backbone: What the file is for.
        tensors: A part of what the file holds, by names without wrappers.
        layout: A name of ``LAYOUTS``, or ``"auto"``.

    Raises:
        WeightsMismatchError: The layout that was asked for has no such network.
    """
    if layout != "auto":
        chosen = get_layout(layout)
        if not chosen.applies(backbone.architecture):
            raise WeightsMismatchError(
                f"{chosen.title} has no {spoken(backbone)}; layouts that have it: "
                f"{', '.join(known.name for known in layouts_for(backbone.architecture))}."
            )
        return [match_layout(backbone, tensors, chosen)]
    possible = possible_layouts(backbone)
    # A look at the stem before the match; perhaps nothing else but it is missing.
    opening = [known for known in possible if _opens(backbone, tensors, known)]
    return [match_layout(backbone, tensors, known) for known in opening or possible]


def settled(
    matches: Sequence[Match], tensors: Mapping[str, Tensor], *, asked: bool = False
) -> Match | None:
    """Return the match among several that is complete; None where none is.

    Args:
        matches: Of the same tensors.
        tensors: These.
        asked: Their layout was asked for.

    Raises:
        UnknownLayoutError: Several are, with different meanings, or one that must be asked for.
    """
    fitting = [match for match in matches if match.complete]
    free = [match for match in fitting if not match.layout.told or _proven(match, tensors)]
    # Whoever knows the classifier's name knows whose file it is.
    strangers = [len(match.dropped.get(BESIDE, ())) for match in free]
    free = [match for match, n in zip(free, strangers, strict=True) if n == min(strangers)]
    if fitting and not free:
        if asked:
            return fitting[0]
        raise UnknownLayoutError(f"{fitting[0].layout.told}.")
    if free and all(_same(match, free[0]) for match in free):
        return free[0]
    if free:
        names = ", ".join(match.layout.name for match in free)
        raise UnknownLayoutError(f"these names fit several layouts: {names}. Say layout=NAME.")
    return None


def possible_layouts(backbone: Backbone) -> list[Layout]:
    """Return the layouts that have such a network with such norms."""
    kind = norm_kind(backbone)
    return [known for known in layouts_for(backbone.architecture) if _fits_norm(known, kind)]


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


def refusal(
    backbone: Backbone, match: Match, tensors: Mapping[str, Tensor], where: str = ""
) -> WeightsMismatchError:
    """Return the error that lists all that does not fit.

    Args:
        backbone: What the file is for.
        match: The best that was found.
        tensors: Those that it speaks of.
        where: In the file, "" for at its top.
    """
    found = f", which was found at {where!r}" if where else ""
    parts = [f"the file does not fit {spoken(backbone)} as {match.layout.title} names it{found}."]
    parts += listed("Missing", match.missing)
    parts += listed("Left over", match.unexpected)
    parts += listed("Of another shape", wrong_shapes(backbone, match, tensors))
    return WeightsMismatchError(" ".join(parts))


def listed(title: str, names: Sequence[str]) -> list[str]:
    """Return a sentence that counts and lists names, cut at ten; none for no names."""
    if not names:
        return []
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"{title}: {len(names)} ({'; '.join(sorted(names)[:SHOWN])}{more})."]


def spoken(backbone: Backbone) -> str:
    """Return what to call a backbone in a sentence."""
    return backbone.variant or "this network"
