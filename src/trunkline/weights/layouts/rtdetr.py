"""RT-DETR's names for its ResNet-vd; and for its DLA, which holds the original's as ``model``.

Sources: RT-DETR ``src/nn/backbone/presnet.py``, ``dla.py``. Neither has a classifier.
"""

from __future__ import annotations

from trunkline.backbones.backbone import Architecture
from trunkline.weights.layouts.layout import CLASSIFIER, Layout, Rule, feature, modules
from trunkline.weights.layouts.timm import dla_rules


def _rules(architecture: Architecture) -> list[Rule]:
    ours, theirs = "stages.{s}.blocks.{b}", "res_layers.{s}.blocks.{b}"
    rules = modules(
        ("stem.{i}.conv", "conv1.conv1_{i+1}.conv"),
        ("stem.{i}.norm", "conv1.conv1_{i+1}.norm"),
        *(
            (f"{ours}.conv{k}.{part}", f"{theirs}.branch2{letter}.{part}")
            for k, letter in enumerate("abc", start=1)
            for part in ("conv", "norm")
        ),
    )
    for stage in range(len(architecture.stage_depths)):
        short = f"res_layers.{stage}.blocks.0.short"
        inner = ".conv" if stage else ""  # beside the pool, which stage 0 does not have
        rules += modules(
            (f"stages.{stage}.blocks.0.shortcut.conv", f"{short}{inner}.conv"),
            (f"stages.{stage}.blocks.0.shortcut.norm", f"{short}{inner}.norm"),
        )
    return rules


RTDETR_RESNET = Layout(
    name="rtdetr-resnet",
    title="RT-DETR's ResNet-vd",
    applies=lambda a: bool(feature(a, "project_first")),
    rules=_rules,
)

RTDETR_DLA = Layout(
    name="rtdetr-dla",
    title="RT-DETR's DLA",
    applies=lambda a: a.family == "dla",
    rules=lambda a: [rule for rule in dla_rules(a) if not rule.native.startswith(CLASSIFIER)],
    prefix="model.",
)
