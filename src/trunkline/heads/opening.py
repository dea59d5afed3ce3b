"""A checkpoint for those who run or write a network: of a classifier of ours its logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trunkline.backbones.backbone import Backbone
from trunkline.backbones.options import ALL_STAGES, WeightsLike
from trunkline.heads.held import classes_in, create_head, likely_labels, report_with_head
from trunkline.heads.network import Classifier
from trunkline.weights.hub import Progress
from trunkline.weights.layouts.native import TRUNKLINE
from trunkline.weights.loading import adopt, understood
from trunkline.zoo import create_backbone, weights_of_name


def load_network(
    name: str,
    weights: WeightsLike,
    return_idx: Sequence[int] | None = None,
    *,
    in_channels: int = 3,
    prefix: str | None = None,
    check: bool = False,
    allow_noncommercial: bool = False,
    progress: Progress | None = None,
) -> Backbone:
    """Build a variant from a checkpoint: the logits of a classifier of ours, or else maps.

    What ``save_pretrained`` wrote or a training script saved of a ``Classifier`` is meant for its
    logits, as its folder is. Published checkpoints, which hold a classifier as well, are backbones
    here; ``load_classifier`` has their logits.

    Args:
        name: A variant, as for ``create_backbone``.
        weights: As for ``load_weights``.
        return_idx: Which maps, and then maps of a classifier too; None for its logits, and for all
            maps of a backbone.
        in_channels: Of the images.
        prefix: As for ``load_weights``.
        check: As for ``load_weights``.
        allow_noncommercial: As for ``load_weights``.
        progress: As for ``load_weights``.

    Returns:
        A backbone with its weights; a ``LogitsNetwork`` where it gives logits.

    Raises:
        UnknownVariantError: No such variant.
        ConfigError: An option outside what is allowed.
        WeightsError: Weights that cannot be had or do not fit.
    """

    def build(stages: Sequence[int]) -> Backbone:
        with torch.device("meta"):  # no numbers until they come from the file
            return create_backbone(name, return_idx=stages, in_channels=in_channels)

    backbone = build(ALL_STAGES if return_idx is None else return_idx)
    read = understood(
        backbone,
        weights_of_name(name, weights) if isinstance(weights, str) else weights,
        prefix=prefix,
        allow_noncommercial=allow_noncommercial,
        progress=progress,
    )
    own = read.match.layout is TRUNKLINE and classes_in(read, backbone) is not None
    if return_idx is not None or not own:
        adopt(backbone, read, check=check)
        return backbone
    backbone = build((len(ALL_STAGES) - 1,))  # has the same tensors, so what was read fits it
    head = create_head(backbone, read)
    backbone.load_report = report_with_head(adopt(backbone, read, check=check), head, read)
    labels = likely_labels(read, head.linear.out_features)
    return Classifier(backbone, head, labels).as_network()
