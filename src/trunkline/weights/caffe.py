"""Caffe's style under torchvision's names: the stride in the first 1×1, norms fused, colours BGR.

mmdetection, mmpretrain and their relatives keep such networks under the names that torchvision
uses, so they fit torchvision's network tensor by tensor and give other maps in it. What tells them:
numbers, for their norms have no statistics left, or a config that says ``style='caffe'``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import Tensor

from trunkline.backbones.backbone import Architecture, Backbone
from trunkline.errors import WeightsMismatchError
from trunkline.preprocessing import Preprocessing
from trunkline.weights.files.huggingface import SCHEME
from trunkline.weights.fused import norms_are_fused
from trunkline.weights.layouts.layout import feature
from trunkline.weights.layouts.mmpretrain import MMPRETRAIN_RESNET_CAFFE
from trunkline.weights.matching import Match
from trunkline.weights.sources import Located
from trunkline.zoo import list_backbones, variant_config

logger = logging.getLogger(__name__)

STYLE = "style"  # the word of mmdetection's configs, as ``reading.words`` keeps it
CAFFE = "caffe"
_NAMED_ALIKE = ("torchvision-resnet", "timm-resnet", "mmpretrain-resnet")

MSRA = Preprocessing(
    resize=None,
    crop=None,
    interpolation="bilinear",
    mean=(123.675, 116.28, 103.53),
    std=(1.0, 1.0, 1.0),
    value_range="0..255",
    channel_order="RGB",
)
"""What Caffe's ResNets want, once the stem is turned to RGB: means taken off, nothing divided."""

_NAMED = (CAFFE, "msra")  # as mmdetection's files are called

_FUSED = "all means of its norms are 0 and all variances 1, as Caffe's conversions leave them"
_SAID = "its config says style='caffe'"


def is_caffe(match: Match) -> bool:
    """Return whether a file was read as one of Caffe's style."""
    return match.layout is MMPRETRAIN_RESNET_CAFFE


def said_caffe(metadata: Mapping[str, str]) -> bool:
    """Return whether the config in a file says that its network is of Caffe's style."""
    return metadata.get(STYLE) == CAFFE


def check_style(
    backbone: Backbone,
    match: Match,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    located: Located,
) -> tuple[str, ...]:
    """Refuse a file of Caffe's style for a network of another, unless its layout was said.

    Args:
        backbone: What the file is for.
        match: How its names were read.
        tensors: What it holds.
        metadata: What it says beside that.
        located: Where it came from.

    Returns:
        What the reader of a report should know of the style, in sentences.

    Raises:
        WeightsMismatchError: It halves elsewhere, or sees its colours in another order.
    """
    if is_caffe(match):
        return (_read_as_caffe(match, tensors, metadata),)
    if match.layout.name not in _NAMED_ALIKE:
        return ()
    proven = norms_are_fused(by_our_names(match, tensors))
    if not proven and not said_caffe(metadata):
        return tuple(_hint(backbone, located))
    why = _FUSED if proven else _SAID
    if feature(backbone.architecture, "bottleneck"):
        raise WeightsMismatchError(f"{located.path}: {why}. {_other_network(backbone, match)}")
    note = (
        f"Of this file, {why}. It was taken for RGB; if its network takes BGR, say "
        "channel_map=(2, 1, 0)."
    )
    logger.warning("%s: %s", located.path, note)
    return (note,)


def _hint(backbone: Backbone, located: Located) -> Iterator[str]:
    """Say, where it hangs on no more than a name, that a file may be of this style."""
    is_hub = located.source.startswith(SCHEME)
    name = located.source if is_hub else located.path.name  # not the folders that it lies in
    words = re.split(r"[^a-z0-9]+", name.lower())
    found = next((word for word in words if word in _NAMED), None)
    if found is None or not feature(backbone.architecture, "bottleneck"):
        return
    ours = backbone.variant or "this network"
    note = (
        f"The file's name holds {found!r}, and its norms have statistics of their own; it was "
        f"taken for {ours}: stride in the 3×3 of a bottleneck, RGB. If it is of Caffe's style, "
        f"build the network with the stride in the first 1×1 (…-caffe) and say "
        f"layout={MMPRETRAIN_RESNET_CAFFE.name!r}."
    )
    logger.warning("%s: %s", located.path, note)
    yield note


def by_our_names(match: Match, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that a match has found, by our names."""
    return {native: tensors[name.upstream] for native, name in match.found.items()}


def _read_as_caffe(match: Match, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    proven = norms_are_fused(by_our_names(match, tensors))
    why = _FUSED if proven else _SAID if said_caffe(metadata) else "the layout was said"
    return (
        f"Read as Caffe's style ({why}): stride in the first 1×1, BGR from 0 to 255 with means "
        "taken off; the preprocessing is that of such networks, which the file does not say."
    )


def _other_network(backbone: Backbone, match: Match) -> str:
    """Say what a file of this style is, why it is not this network, and how to load it."""
    ours = backbone.variant or "this network"
    anyway = (
        f"If it is {ours} after all, say layout={match.layout.name!r}, and channel_map=(2, 1, 0) "
        "where it takes BGR."
    )
    if feature(backbone.architecture, "groups") != 1:
        return (
            f"Such a network usually takes BGR, and may halve in the first 1×1 of a bottleneck, "
            f"where {ours} halves in the 3×3; no name tells. Nothing was loaded. {anyway}"
        )
    return (
        "It is probably the network of Caffe's style, which halves in the first 1×1 of a "
        f"bottleneck and takes BGR; {ours} halves in the 3×3 and would give other maps of the same "
        f"tensors. Nothing was loaded; {_how(backbone.architecture)} {anyway}"
    )


def _how(architecture: Architecture) -> str:
    for variant in list_backbones("resnet"):
        config = variant_config(variant)
        if feature(config, "stride_in_1x1") and _as_late(config) == architecture:
            return (
                f'load it by create_backbone("{variant}", weights=PATH), or convert it with '
                f'variant="{variant}".'
            )
    return (
        "load it into ResNet(dataclasses.replace(backbone.architecture, stride_in_1x1=True), "
        f"weights=PATH, layout={MMPRETRAIN_RESNET_CAFFE.name!r})."
    )


def _as_late(config: Architecture) -> Architecture:
    return replace(config, stride_in_1x1=False)  # type: ignore[type-var]
