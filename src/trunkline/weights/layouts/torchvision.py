"""torchvision's names, which timm's ResNets share; both give layers and blocks as their modules do.

Sources: torchvision 0.29 ``models/resnet.py``, ``models/regnet.py``; timm 1.0 ``models/resnet.py``.
"""

from __future__ import annotations

from trunkline.backbones.backbone import Architecture
from trunkline.weights.layouts.layout import Layout, Rule, feature, is_plain_resnet, modules


def resnet_rules(architecture: Architecture) -> list[Rule]:
    """Return the rules of a ResNet, with timm's additions for deep stems and pooled shortcuts."""
    block = "stages.{s}.blocks.{b}", "layer{s+1}.{b}"
    # The upstream counts the pool of a pooled shortcut, even where stage 0 has none.
    conv, norm = (1, 2) if feature(architecture, "pooled_shortcut") else (0, 1)
    return [
        *_stem(architecture),
        *modules(
            (f"{block[0]}.conv{{k}}.conv", f"{block[1]}.conv{{k}}"),
            (f"{block[0]}.conv{{k}}.norm", f"{block[1]}.bn{{k}}"),
            (f"{block[0]}.shortcut.conv", f"{block[1]}.downsample.{conv}"),
            (f"{block[0]}.shortcut.norm", f"{block[1]}.downsample.{norm}"),
            ("classifier", "fc"),
        ),
    ]


def _stem(architecture: Architecture) -> list[Rule]:
    if len(architecture.stem_widths) == 1:  # type: ignore[attr-defined]
        return modules(("stem.conv", "conv1"), ("stem.norm", "bn1"))
    return modules(
        ("stem.0.conv", "conv1.0"),
        ("stem.0.norm", "conv1.1"),
        ("stem.1.conv", "conv1.3"),
        ("stem.1.norm", "conv1.4"),
        ("stem.2.conv", "conv1.6"),
        ("stem.2.norm", "bn1"),  # the last norm is outside the deep stem
    )


def _regnet_rules(_architecture: Architecture) -> list[Rule]:
    block = "stages.{s}.blocks.{b}", "trunk_output.block{s+1}.block{s+1}-{b}"
    return modules(
        ("stem.conv", "stem.0"),
        ("stem.norm", "stem.1"),
        *(
            pair
            for k, letter in enumerate("abc", start=1)
            for pair in (
                (f"{block[0]}.conv{k}.conv", f"{block[1]}.f.{letter}.0"),
                (f"{block[0]}.conv{k}.norm", f"{block[1]}.f.{letter}.1"),
            )
        ),
        (f"{block[0]}.se.reduce", f"{block[1]}.f.se.fc1"),
        (f"{block[0]}.se.expand", f"{block[1]}.f.se.fc2"),
        (f"{block[0]}.shortcut.conv", f"{block[1]}.proj.0"),
        (f"{block[0]}.shortcut.norm", f"{block[1]}.proj.1"),
        ("classifier", "fc"),
    )


TORCHVISION_RESNET = Layout(
    name="torchvision-resnet",
    title="torchvision's ResNet",
    applies=is_plain_resnet,
    rules=resnet_rules,
)

TORCHVISION_REGNET = Layout(
    name="torchvision-regnet",
    title="torchvision's RegNet",
    applies=lambda a: a.family == "regnet",
    rules=_regnet_rules,
)
