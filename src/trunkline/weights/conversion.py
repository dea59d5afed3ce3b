"""A checkpoint of one upstream, rewritten as another's.

The way goes through our own names, with everything that a file means: colours are turned where the
two differ, a classifier travels along, and fixed values that one format leaves out are put in.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from trunkline.backbones.backbone import Architecture, Backbone
from trunkline.backbones.layers import FrozenBatchNorm2d, NormStandIn
from trunkline.errors import (
    ConfigError,
    OutputError,
    UnknownLayoutError,
    WeightsMismatchError,
    legible,
)
from trunkline.outputs import written_whole
from trunkline.weights.checkpoint import Checkpoint, naming, read_checkpoint
from trunkline.weights.hub import Progress
from trunkline.weights.identify import Candidate, candidates
from trunkline.weights.layouts import LAYOUTS, TARGETS
from trunkline.weights.layouts.layout import CLASSIFIER, Layout
from trunkline.weights.loading import Read, read_for
from trunkline.weights.lookalikes import computes_alike, lookalikes
from trunkline.weights.matching import classifier_names, stem_weight
from trunkline.weights.numbers import check_kinds, unsound
from trunkline.weights.sources import Located, locate
from trunkline.weights.statements import Statement, said_elsewhere, statement_of
from trunkline.weights.translation import to_upstream
from trunkline.zoo import canonical_name, variant_config, weights_of_name

logger = logging.getLogger(__name__)

_GROUP_NORMS = ("detectron2", "trunkline")  # the targets that have such norms under these names
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".pyth", ".pkl")


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    Attributes:
        path: The file that was written.
        variant: The network that it holds.
        read_as: Layout of the source.
        written_as: Layout of the result.
        num_tensors: Tensors that were written.
        classifier: Whether a classifier is among them.
        notes: What a reader of the result should know, in sentences.
    """

    path: Path
    variant: str
    read_as: str
    written_as: str
    num_tensors: int
    classifier: bool
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = "with its classifier" if self.classifier else "without a classifier"
        said = (
            f"{self.path}: {self.variant}, {self.num_tensors} tensors {head}, "
            f"read as {self.read_as}, written as {self.written_as}."
        )
        return legible("\n".join([said, *self.notes]))  # they hold words of the file


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    to: str,
    *,
    variant: str | None = None,
    layout: str = "auto",
    prefix: str | None = None,
    classifier: bool = True,
    allow_noncommercial: bool = False,
    progress: Progress | None = None,
) -> ConversionReport:
    """Rewrite a checkpoint under another library's names.

    Args:
        src: A path, ``hf://owner/repo[/file]``, or a tag of the catalog (with ``variant``). A
            folder is one that ``save_pretrained`` wrote.
        dst: Where the result goes. The ending says how it is written: ``.safetensors``; ``.pth``,
            ``.pt``, ``.bin`` or ``.pyth`` as PyTorch does, in the upstream's own container;
            ``.pkl`` for detectron2.
        to: ``"timm"``, ``"torchvision"``, ``"transformers"``, ``"detectron2"``, ``"mmpretrain"``,
            ``"pycls"``, ``"rtdetr"``, ``"dla"`` or ``"trunkline"``.
        variant: What the file holds, where its names and shapes do not say.
        layout: How the file names its tensors; ``"auto"`` recognises it.
        prefix: Where in the file the backbone is, see ``load_weights``.
        classifier: Take the classifier along; False leaves it out. One of your own that ``to`` has
            no place for is not left out silently: then the call is refused.
        allow_noncommercial: Agree to licences that forbid commercial use.
        progress: Called while a file arrives; by default nothing is shown.

    Returns:
        The report.

    Raises:
        ConfigError: Another ``to``.
        OutputError: An ending that cannot be written, or a place that cannot be written to.
        UnknownLayoutError: The file is of no known network, or of several.
        WeightsMismatchError: The upstream has no such network, or the file is incomplete.
        WeightsError: The source cannot be had or read, see ``load_weights``.
    """
    _check_target(Path(dst), to)
    named = None if variant is None else canonical_name(variant)
    if variant is not None and isinstance(src, str):
        src = weights_of_name(variant, src)
    located = locate(named, src, allow_noncommercial=allow_noncommercial, progress=progress)
    checkpoint = read_checkpoint(located.path)
    with naming(located.path):
        statement = statement_of(checkpoint)
    name = named or _identified(located, checkpoint, statement, layout, to)
    architecture = variant_config(name)
    target = _target(to, name, architecture)
    act = statement.act if statement else None
    stand_in = _stand_in(located, checkpoint, name, layout, act)
    read = read_for(stand_in, located, checkpoint, layout, prefix=prefix)
    if read.match.layout.norm == "group" and to not in _GROUP_NORMS:
        raise WeightsMismatchError(
            f"{located.path} holds group norms, and {to}'s {name} has batch norms; it can be "
            f"written for: {', '.join(_GROUP_NORMS)}."
        )
    state, notes = dict(read.native.state), [*read.native.adapted, *read.notes]
    if read.native.head and classifier:
        own = read.match.layout.name == "trunkline"
        state.update(_head_for(target, architecture, read, notes, own=own))
    tensors = to_upstream(target, architecture, state)
    held = any(native.startswith(CLASSIFIER) for native in state)
    told = _statement(read, name, target, held=held)
    _write(Path(dst), to, tensors, told)
    warnings = _warnings(target, Path(dst), architecture, list(state), told.pool)
    return ConversionReport(
        path=Path(dst),
        variant=name,
        read_as=read.match.layout.name,
        written_as=target.name,
        num_tensors=len(tensors),
        classifier=held,
        notes=(*notes, *unsound(state), *warnings),
    )


def _head_for(
    target: Layout, architecture: Architecture, read: Read, notes: list[str], *, own: bool
) -> Mapping[str, Tensor]:
    """Return the classifier of a file, if it can go along.

    Raises:
        WeightsMismatchError: It is one of the user's own and cannot.
    """
    head, path = read.native.head, read.located.path
    weight, bias = (head.get(f"{CLASSIFIER}{leaf}") for leaf in ("weight", "bias"))
    linear = (
        weight is not None
        and bias is not None
        and weight.shape
        == (
            bias.numel(),
            architecture.stage_channels[-1],
        )
    )
    if classifier_names(target, architecture) and (linear or not own):
        check_kinds(head, path, read.checkpoint.tensors)
        return head
    why = (
        f"{target.title} has no classifier"
        if linear or not own
        else "the head in it is not one linear layer on the last map"
    )
    if own:
        raise WeightsMismatchError(
            f"{path} holds a classifier, and {why}; classifier=False, or --without-classifier on "
            "the command line, leaves it out."
        )
    notes.append(f"{why}; that of the file was left out.")
    return {}


def _check_target(dst: Path, to: str) -> None:
    if to not in TARGETS:
        raise ConfigError(f"to={to!r} is not known; allowed: {', '.join(TARGETS)}.")
    if dst.suffix not in SUFFIXES or (dst.suffix == ".pkl") > (to == "detectron2"):
        raise OutputError(
            f"{dst} has an ending that is not written for {to}; use .safetensors, .pth, .pt, .bin "
            "or .pyth (.pkl for detectron2 only)."
        )


def _identified(
    located: Located,
    checkpoint: Checkpoint,
    statement: Statement | None,
    layout: str,
    to: str,
) -> str:
    """Return which variant a file holds, by the catalog, its own words, or its tensors."""
    if located.entry is not None:
        return located.entry.variant
    if statement is not None:
        if statement.variant is None:
            raise WeightsMismatchError(
                f"{located.path} holds {statement.named}, which no upstream has. from_pretrained "
                "reads the folder that it is from."
            )
        return statement.variant
    found = candidates(checkpoint.tensors)  # anywhere in it
    whole = [one for one in found if one.whole and layout in ("auto", one.layout.name)]
    # A layout that must be asked for is that of a file only where no other one fits.
    whole = [one for one in whole if not one.layout.told] or whole
    if not whole:
        raise UnknownLayoutError(f"{located.path} {_closest(found)}")
    apart = {one.place.prefix: one.variant for one in reversed(whole)}  # the best of each place
    if len(set(apart.values())) > 1:
        there = " and ".join(f"{name} at {at.removesuffix('.')!r}" for at, name in apart.items())
        raise UnknownLayoutError(
            f"{located.path} holds {there}; say variant=NAME, or --variant NAME on the command "
            "line."
        )
    return _settled(located, checkpoint, list(dict.fromkeys(one.variant for one in whole)), to)


def _settled(located: Located, checkpoint: Checkpoint, fitting: list[str], to: str) -> str:
    """Return one of the variants that a file fits, if it is known which function it computes."""
    alike = [v for v in fitting if _alike(v, fitting[0])]
    if len(alike) < len(fitting):
        said = said_elsewhere(located, checkpoint, fitting)
        alike = [v for v in fitting if any(_alike(v, one) for one in said)]
    if not alike or not all(_alike(v, alike[0]) for v in alike):
        raise UnknownLayoutError(
            f"{located.path} fits {' and '.join(sorted(fitting))}, which compute different things "
            "of the same names and shapes, and nothing says which it is; say variant=NAME, or "
            "--variant NAME on the command line."
        )
    # Several names for one function (resnet50d, resnet50vd): take the one that the target has.
    for variant in alike:
        if any(layout.applies(variant_config(variant)) for layout in TARGETS[to]):
            return variant
    return alike[0]


def _alike(one: str, other: str) -> bool:
    return computes_alike(variant_config(one), variant_config(other))


def _closest(found: list[Candidate]) -> str:
    if not found:
        return "looks like none of our networks; `trunkline list` shows them."
    best = found[0]
    return (
        f"holds no whole network; it looks most like {best.variant} as {best.layout.title} names "
        f"it ({best.percent}% of its tensors, {best.unexplained} unexplained). "
        "If you know better, say variant=NAME and layout=NAME."
    )


def _target(to: str, variant: str, architecture: Architecture) -> Layout:
    for layout in TARGETS[to]:
        if layout.applies(architecture):
            return layout
    fitting = [
        name for name, row in TARGETS.items() if any(one.applies(architecture) for one in row)
    ]
    raise WeightsMismatchError(
        f"{to} has no {variant}; it can be written for: {', '.join(fitting)}."
    )


def _stand_in(
    located: Located, checkpoint: Checkpoint, variant: str, layout: str, act: str | None
) -> Backbone:
    """Return a network on the meta device that wants what the file should hold."""
    found = candidates(checkpoint.tensors, (variant,))
    needed = _norm_of(found, located.layout or layout)
    norms: dict[str, Any] = {"frozen": FrozenBatchNorm2d, "group": "group"}
    with torch.device("meta"):
        return Backbone(
            variant_config(variant),
            variant=variant,
            norm=norms.get(needed, NormStandIn),
            act=act or "relu",
            in_channels=_in_channels(found),
        )


def _norm_of(found: Sequence[Candidate], layout: str) -> str:
    """Return ``"frozen"`` or ``"group"`` where a file fits such norms only, else ``""``."""
    if layout in LAYOUTS:
        return LAYOUTS[layout].norm
    return next((one.layout.norm for one in found if one.layout.norm and one.whole), "")


def _in_channels(found: Sequence[Candidate]) -> int:
    """Return the stem's input channels of a file, three where no layout finds the stem."""
    if not found:
        return 3
    best = found[0]
    architecture = variant_config(best.variant)
    first = stem_weight(architecture)
    stem = best.layout.names(architecture, [first])[first].upstream
    for name, tensor in best.place.tensors.items():
        if best.layout.respelled(name) == stem and tensor.ndim == 4:
            return int(tensor.shape[1])
    return 3


def _statement(read: Read, variant: str, target: Layout, *, held: bool) -> Statement:
    report, said = read.report(), read.statement
    architecture = variant_config(variant)
    return Statement(
        layout=target.name,
        family=architecture.family,
        architecture=asdict(architecture),  # type: ignore[call-overload]
        variant=variant,
        act=said.act if said else None,
        preprocessing=read.preprocessing,
        tag=report.tag or report.claims.get("tag"),
        license=report.license or report.claims.get("license"),
        source_sha256=read.located.sha256,
        labels=said.labels if said and held else None,
        pool=read.pool if held else None,
    )


def _warnings(
    target: Layout, dst: Path, architecture: Architecture, native: list[str], pool: str | None
) -> list[str]:
    said = []
    if lost := _lost_pool(target, dst, pool):
        logger.warning("%s: %s", dst, lost)  # the logits of the result are others
        said.append(lost)
    if target.bgr:
        said.append("The stem takes BGR, as that library's networks do.")
    if dst.suffix == ".safetensors":  # which says the rest in its metadata
        return said
    if target.told:
        said.append(f"Read it back with layout={target.name!r}: {target.told}.")
    backbone = [name for name in native if not name.startswith(CLASSIFIER)]
    others = [one.variant for one in lookalikes(architecture, target, backbone)]
    if others and not target.told:
        said.append(
            f"Nothing in it tells it from {' or '.join(others)}, which computes something else; a "
            "file in .safetensors says what it is."
        )
    return said


def _lost_pool(target: Layout, dst: Path, pool: str | None) -> str:
    """Return a sentence where the result does not say how its classifier pools, else ``""``."""
    if pool != "max":
        return ""
    if target.name != "trunkline":
        return (
            "The classifier was trained on the maximum over H and W, and that library's networks "
            "take the average there: give them a global max pooling, or the logits are others."
        )
    if dst.suffix == ".safetensors":
        return ""
    return (
        "The classifier was trained with pool='max', which this kind of file cannot say: give "
        "it to load_classifier, or write .safetensors."
    )


def _write(dst: Path, to: str, tensors: Mapping[str, Tensor], statement: Statement) -> None:
    with written_whole(dst) as path:
        if dst.suffix == ".safetensors":
            path.write_bytes(save(dict(tensors), statement.metadata()))
        elif dst.suffix == ".pkl":
            # numpy knows no bfloat16
            wide = {n: t.float() if t.dtype is torch.bfloat16 else t for n, t in tensors.items()}
            arrays = {name: tensor.numpy() for name, tensor in wide.items()}
            content = {"model": arrays, "__author__": "trunkline", "matching_heuristics": True}
            path.write_bytes(pickle.dumps(content, protocol=4))
        else:
            torch.save(_CONTAINERS.get(to, dict)(dict(tensors)), path)


# What an upstream's own files put around a state dict. The others' are bare.
_CONTAINERS: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "detectron2": lambda state: {"model": state},
    "mmpretrain": lambda state: {"state_dict": state, "meta": {}},
    "pycls": lambda state: {"model_state": state},
}
