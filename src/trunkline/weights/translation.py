"""Values between an upstream's names and ours, with what they mean.

Every backbone here takes RGB, so the stem of a network that was trained on BGR is turned on the
way in, and turned back on the way out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trunkline.backbones.backbone import Architecture, Backbone
from trunkline.errors import WeightsMismatchError
from trunkline.weights.channels import ChannelMap, fit_channels, turned
from trunkline.weights.layouts.layout import BATCH_COUNTER, Layout
from trunkline.weights.layouts.timm import DLA, dead_projections
from trunkline.weights.matching import Match, listed, stem_weight, wrong_shapes
from trunkline.weights.numbers import FLOATS

# Half precision ends at 65504 batches.
_NO_COUNTS = "Counters of batches that are no numbers were set to 0; no map depends on them."


@dataclass(frozen=True)
class Native:
    """A network's tensors under our names, in RGB.

    Attributes:
        state: The backbone's whole state dict, in the file's dtypes.
        head: ``classifier.weight`` and ``classifier.bias``, where the file has them.
        adapted: What was changed on the way, in sentences.
        casts: What becomes of the dtypes once they are in the network, in sentences.
    """

    state: dict[str, Tensor]
    head: dict[str, Tensor]
    adapted: tuple[str, ...]
    casts: tuple[str, ...]


def to_native(
    backbone: Backbone,
    match: Match,
    tensors: Mapping[str, Tensor],
    *,
    bgr: bool,
    channel_map: ChannelMap | None = None,
) -> Native:
    """Return the tensors of a file under our names.

    Args:
        backbone: The network that they are for.
        match: Which of them belongs where.
        tensors: What the file holds.
        bgr: The file's stem takes blue, green, red.
        channel_map: Which of its input channels feeds which, see ``fit_channels``.

    Raises:
        ConfigError: A channel map that does not fit.
        WeightsMismatchError: Tensors of another shape; all are listed.
    """
    wanted = backbone.state_dict()
    first = stem_weight(backbone.architecture)
    state: dict[str, Tensor] = {}
    adapted: tuple[str, ...] = ()
    casts: dict[str, None] = {}  # a set that keeps its order
    if wrong := wrong_shapes(backbone, match, tensors):
        raise WeightsMismatchError(
            f"the file does not fit {backbone.variant or 'this network'} as "
            f"{match.layout.title} names it. " + " ".join(listed("Of another shape", wrong))
        )
    for native, like in wanted.items():
        if native not in match.found:
            state[native] = match.layout.fill_for(native, like)
            continue
        name = match.found[native]
        tensor = tensors[name.upstream]
        if native == first:
            channels = like.shape[1]
            tensor, adapted = fit_channels(tensor, channels, bgr=bgr, channel_map=channel_map)
        if native.endswith(BATCH_COUNTER):
            if not _counts(tensor):
                casts[_NO_COUNTS] = None
                tensor = match.layout.fill_for(native, like)
            tensor = tensor.to(like.dtype)
        elif tensor.dtype != like.dtype and like.is_floating_point():
            casts[f"{tensor.dtype} was cast to {like.dtype}."] = None
        state[native] = tensor
    return Native(state, _head(match, tensors), adapted, tuple(casts))


def _counts(tensor: Tensor) -> bool:
    """Return whether a counter of batches is a number that an integer can be."""
    if tensor.dtype in FLOATS:
        return bool(tensor.isfinite())
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)


def _head(match: Match, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        native: tensors[name.upstream]
        if name.change is None
        else name.change.to_native(tensors[name.upstream])
        for native, name in match.head.items()
    }


def to_upstream(
    layout: Layout, architecture: Architecture, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return native tensors under an upstream's names, as its own files have them.

    Args:
        layout: The upstream's names.
        architecture: Of the network.
        state: Native tensors in RGB, ``classifier.weight`` and ``.bias`` too where there are any
            and the upstream has names for them.
    """
    first = stem_weight(architecture)
    counted = {n: t for n, t in state.items() if layout.counts_batches or not _is_counter(n)}
    written: dict[str, Tensor] = {}
    for native, name in layout.names(architecture, counted).items():
        tensor = state[native]
        if name.change is not None:
            tensor = name.change.to_upstream(tensor)
        if native == first and layout.bgr and tensor.shape[1] == 3:
            tensor = turned(tensor)
        written[layout.written(native, name.upstream)] = tensor.contiguous()
    if layout is DLA:
        written.update(_dead(architecture))
    return written


def _is_counter(native: str) -> bool:
    return native.endswith(BATCH_COUNTER)


def _dead(architecture: Architecture) -> dict[str, Tensor]:
    # The original's strict load wants its unused projections; these compute nothing of note.
    return {
        name: torch.zeros(shape, dtype=torch.int64 if _is_counter(name) else torch.float32)
        + name.endswith("running_var")
        for name, shape in dead_projections(architecture).items()
    }
