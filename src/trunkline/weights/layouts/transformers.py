"""Hugging Face transformers' names.

Sources: transformers 5.23 ``models/resnet``, ``models/regnet``, ``models/rt_detr``
(``RTDetrResNetBackbone`` is the vd network). Models with a classifier put ``resnet.`` or
``regnet.`` in front of everything but that; bare models and backbones do not.
"""

from __future__ import annotations

from trunkline.backbones.backbone import Architecture
from trunkline.weights.layouts.layout import Layout, Rule, feature, is_plain_resnet, modules

_BLOCK = "stages.{s}.blocks.{b}", "encoder.stages.{s}.layers.{b}"
_CONV, _NORM = "convolution", "normalization"


def _resnet_rules(_architecture: Architecture) -> list[Rule]:
    ours, theirs = _BLOCK
    return modules(
        ("stem.conv", f"embedder.embedder.{_CONV}"),
        ("stem.norm", f"embedder.embedder.{_NORM}"),
        (f"{ours}.conv{{k}}.conv", f"{theirs}.layer.{{k-1}}.{_CONV}"),
        (f"{ours}.conv{{k}}.norm", f"{theirs}.layer.{{k-1}}.{_NORM}"),
        (f"{ours}.shortcut.conv", f"{theirs}.shortcut.{_CONV}"),
        (f"{ours}.shortcut.norm", f"{theirs}.shortcut.{_NORM}"),
        ("classifier", "classifier.1"),  # classifier.0 flattens
    )


def _regnet_rules(architecture: Architecture) -> list[Rule]:
    ours, theirs = _BLOCK
    # In Y, squeeze-and-excitation is layer 2 and pushes the last convolution to 3.
    last = 3 if feature(architecture, "squeeze") else 2
    return modules(
        ("stem.conv", f"embedder.embedder.{_CONV}"),
        ("stem.norm", f"embedder.embedder.{_NORM}"),
        *(
            pair
            for k, layer in ((1, 0), (2, 1), (3, last))
            for pair in (
                (f"{ours}.conv{k}.conv", f"{theirs}.layer.{layer}.{_CONV}"),
                (f"{ours}.conv{k}.norm", f"{theirs}.layer.{layer}.{_NORM}"),
            )
        ),
        (f"{ours}.se.reduce", f"{theirs}.layer.2.attention.0"),
        (f"{ours}.se.expand", f"{theirs}.layer.2.attention.2"),
        (f"{ours}.shortcut.conv", f"{theirs}.shortcut.{_CONV}"),
        (f"{ours}.shortcut.norm", f"{theirs}.shortcut.{_NORM}"),
        ("classifier", "classifier.1"),
    )


def _rtdetr_rules(architecture: Architecture) -> list[Rule]:
    rules = modules(
        ("stem.{i}.conv", f"embedder.embedder.{{i}}.{_CONV}"),
        ("stem.{i}.norm", f"embedder.embedder.{{i}}.{_NORM}"),
        (f"{_BLOCK[0]}.conv{{k}}.conv", f"{_BLOCK[1]}.layer.{{k-1}}.{_CONV}"),
        (f"{_BLOCK[0]}.conv{{k}}.norm", f"{_BLOCK[1]}.layer.{{k-1}}.{_NORM}"),
    )
    for stage in range(len(architecture.stage_depths)):
        ours, theirs = f"stages.{stage}.blocks.0", f"encoder.stages.{stage}.layers.0"
        pooled = "1." if stage else ""  # behind the pool, which stage 0 does not have
        rules += modules(
            (f"{ours}.shortcut.conv", f"{theirs}.shortcut.{pooled}{_CONV}"),
            (f"{ours}.shortcut.norm", f"{theirs}.shortcut.{pooled}{_NORM}"),
        )
    return rules


def _is_ungrouped(a: Architecture) -> bool:
    sizes = feature(a, "groups"), feature(a, "width_per_group"), feature(a, "width")
    return sizes == (1, 64, 64)


TRANSFORMERS_RESNET = Layout(
    name="transformers-resnet",
    title="transformers' ResNet",
    applies=lambda a: is_plain_resnet(a) and _is_ungrouped(a),
    rules=_resnet_rules,
    prefix="resnet.",
)

TRANSFORMERS_RESNET_1X1 = Layout(
    name="transformers-resnet-1x1",
    title="transformers' ResNet with downsample_in_bottleneck",
    applies=lambda a: bool(feature(a, "stride_in_1x1")) and _is_ungrouped(a),
    rules=_resnet_rules,
    prefix="resnet.",
    told=(
        "transformers' names do not say where the stride is, its config does; say "
        "layout='transformers-resnet-1x1' (downsample_in_bottleneck: in the first 1×1, RGB), or "
        "build the network without -caffe"
    ),
)

TRANSFORMERS_REGNET = Layout(
    name="transformers-regnet",
    title="transformers' RegNet",
    applies=lambda a: a.family == "regnet" and not feature(a, "torchvision_rounding"),
    rules=_regnet_rules,
    prefix="regnet.",
)

TRANSFORMERS_RTDETR = Layout(
    name="transformers-rtdetr",
    title="transformers' RT-DETR backbone",
    applies=lambda a: bool(feature(a, "project_first")),
    rules=_rtdetr_rules,
)
