"""mmpretrain's names, and those of mmsegmentation and mmdetection where they differ.

Sources: mmpretrain ``models/backbones/resnet.py`` (V1c and V1d: ``deep_stem``, ``avg_down``; the
stride of a bottleneck: ``style``, which no name tells, and which configs of style "caffe" feed with
BGR) and ``regnet.py``; ``configs/_base_/datasets/imagenet_bs128_mbv3.py`` for the RegNets' BGR
input; mmsegmentation ``models/backbones/resnet.py`` (a deep stem that counts its activations).
"""

from __future__ import annotations

from trunkline.backbones.backbone import Architecture
from trunkline.weights.layouts.layout import (
    Layout,
    Rule,
    feature,
    has_no_extra_projection,
    modules,
)


def _block_rules(architecture: Architecture) -> list[Rule]:
    ours, theirs = "stages.{s}.blocks.{b}", "layer{s+1}.{b}"
    rules = modules(
        (f"{ours}.conv{{k}}.conv", f"{theirs}.conv{{k}}"),
        (f"{ours}.conv{{k}}.norm", f"{theirs}.bn{{k}}"),
        ("classifier", "head.fc"),
    )
    for stage in range(len(architecture.stage_depths)):
        # A pool in front of the convolution is counted, and stage 0 has none.
        conv = 1 if stage and feature(architecture, "pooled_shortcut") else 0
        shortcut = f"stages.{stage}.blocks.0.shortcut"
        rules += modules(
            (f"{shortcut}.conv", f"layer{stage + 1}.0.downsample.{conv}"),
            (f"{shortcut}.norm", f"layer{stage + 1}.0.downsample.{conv + 1}"),
        )
    return rules


def _plain_rules(architecture: Architecture) -> list[Rule]:
    return [
        *modules(("stem.conv", "conv1"), ("stem.norm", "bn1")),
        *_block_rules(architecture),
    ]


def _deep_stem_rules(architecture: Architecture) -> list[Rule]:
    return [
        *modules(("stem.{i}.conv", "stem.{i}.conv"), ("stem.{i}.norm", "stem.{i}.bn")),
        *_block_rules(architecture),
    ]


def _counted_stem_rules(architecture: Architecture) -> list[Rule]:
    # One flat list: convolution, norm, activation, three times.
    return [
        *modules(
            *((f"stem.{i}.conv", f"stem.{3 * i}") for i in range(3)),
            *((f"stem.{i}.norm", f"stem.{3 * i + 1}") for i in range(3)),
        ),
        *_block_rules(architecture),
    ]


def _has_mmpretrain(architecture: Architecture, *, deep: bool) -> bool:
    return (
        architecture.family == "resnet"
        and (len(architecture.stem_widths) == 3) == deep  # type: ignore[attr-defined]
        and has_no_extra_projection(architecture)
        and not feature(architecture, "stride_in_1x1")
    )


MMPRETRAIN_RESNET = Layout(
    name="mmpretrain-resnet",
    title="mmpretrain's ResNet",
    applies=lambda a: _has_mmpretrain(a, deep=False),
    rules=_plain_rules,
    prefix="backbone.",
)

MMPRETRAIN_RESNET_CAFFE = Layout(
    name="mmpretrain-resnet-caffe",
    title="mmpretrain's ResNet of style 'caffe'",
    applies=lambda a: bool(feature(a, "stride_in_1x1")) and len(a.stem_widths) == 1,  # type: ignore[attr-defined]
    rules=_plain_rules,
    prefix="backbone.",
    bgr=True,
    respell=((r"^fc\.", "head.fc."),),  # as torchvision calls it, whose names the rest has
    fused=True,
    told=(
        "these names do not say where the stride is or how the colours are ordered, and the norms "
        "have statistics of their own, as those of torchvision's networks do; build the network "
        "without -caffe, or say layout='mmpretrain-resnet-caffe' (style 'caffe': stride in the "
        "first 1×1, BGR)"
    ),
)

MMPRETRAIN_RESNET_DEEP_STEM = Layout(
    name="mmpretrain-resnet-deep-stem",
    title="mmpretrain's ResNetV1c or V1d",
    applies=lambda a: _has_mmpretrain(a, deep=True),
    rules=_deep_stem_rules,
    prefix="backbone.",
)

MMSEGMENTATION_RESNET_DEEP_STEM = Layout(
    name="mmsegmentation-resnet-deep-stem",
    title="mmsegmentation's ResNetV1c or V1d",
    applies=lambda a: _has_mmpretrain(a, deep=True),
    rules=_counted_stem_rules,
    prefix="backbone.",
)

MMPRETRAIN_REGNET = Layout(
    name="mmpretrain-regnet",
    title="mmpretrain's RegNet",
    applies=lambda a: (
        a.family == "regnet"
        and not feature(a, "squeeze")
        and not feature(a, "torchvision_rounding")
    ),
    rules=_plain_rules,
    prefix="backbone.",
    bgr=True,
)
