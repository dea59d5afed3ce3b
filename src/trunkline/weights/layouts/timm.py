"""timm's names; the original DLA's are the same.

Sources: timm 1.0 ``models/resnet.py``, ``models/dla.py``, ``models/regnet.py``; ucbdrive/dla
``dla.py``.
"""

from __future__ import annotations

from trunkline.backbones.backbone import Architecture
from trunkline.weights.layouts.layout import Change, Layout, Rule, modules
from trunkline.weights.layouts.torchvision import resnet_rules

CONV_CLASSIFIER = Change(
    why="the classifier is a 1×1 convolution there, a linear layer here",
    to_native=lambda weight: weight.flatten(1),
    to_upstream=lambda weight: weight[:, :, None, None],
)


def dla_rules(architecture: Architecture) -> list[Rule]:
    """Return the rules of a DLA, whose stages are trees upstream and lists of leaves here."""
    rules = modules(
        ("stem.0.conv", "base_layer.0"),
        ("stem.0.norm", "base_layer.1"),
        ("stem.1.conv", "level0.0"),
        ("stem.1.norm", "level0.1"),
        ("stem.2.conv", "level1.0"),
        ("stem.2.norm", "level1.1"),
    )
    for stage, num_blocks in enumerate(architecture.stage_depths):
        for node in range(num_blocks // 2):
            ours = f"stages.{stage}.nodes.{node}"
            theirs = f"level{stage + 2}{_path(node, num_blocks // 2)}"
            rules += modules(
                (f"{ours}.project.conv", f"{theirs}.project.0"),
                (f"{ours}.project.norm", f"{theirs}.project.1"),
                (f"{ours}.block{{k}}.conv{{c}}.conv", f"{theirs}.tree{{k}}.conv{{c}}"),
                (f"{ours}.block{{k}}.conv{{c}}.norm", f"{theirs}.tree{{k}}.bn{{c}}"),
                (f"{ours}.root.proj.conv", f"{theirs}.root.conv"),
                (f"{ours}.root.proj.norm", f"{theirs}.root.bn"),
            )
    return [
        *rules,
        Rule("classifier.weight", "fc.weight", CONV_CLASSIFIER),
        Rule("classifier.bias", "fc.bias"),
    ]


def _path(node: int, num_nodes: int) -> str:
    """Return the way to a leaf from the root of its tree: left is ``.tree1``, right ``.tree2``."""
    steps = num_nodes.bit_length() - 1
    return "".join(f".tree{(node >> step & 1) + 1}" for step in reversed(range(steps)))


def _regnet_rules(_architecture: Architecture) -> list[Rule]:
    block = "stages.{s}.blocks.{b}", "s{s+1}.b{b+1}"
    return modules(
        ("stem.conv", "stem.conv"),
        ("stem.norm", "stem.bn"),
        (f"{block[0]}.conv{{k}}.conv", f"{block[1]}.conv{{k}}.conv"),
        (f"{block[0]}.conv{{k}}.norm", f"{block[1]}.conv{{k}}.bn"),
        (f"{block[0]}.se.reduce", f"{block[1]}.se.fc1"),
        (f"{block[0]}.se.expand", f"{block[1]}.se.fc2"),
        (f"{block[0]}.shortcut.conv", f"{block[1]}.downsample.conv"),
        (f"{block[0]}.shortcut.norm", f"{block[1]}.downsample.bn"),
        ("classifier", "head.fc"),
    )


def _projects_as_timm(architecture: Architecture) -> bool:
    # vd's projection in stage 0 is one that timm's 18 and 34 do not have.
    return not getattr(architecture, "project_first", False) or getattr(
        architecture, "bottleneck", False
    )


TIMM_RESNET = Layout(
    name="timm-resnet",
    title="timm's ResNet",
    applies=lambda a: a.family == "resnet" and _projects_as_timm(a),
    rules=resnet_rules,
)

TIMM_DLA = Layout(
    name="timm-dla",
    title="timm's DLA",
    applies=lambda a: a.family == "dla",
    rules=dla_rules,
)

TIMM_REGNET = Layout(
    name="timm-regnet",
    title="timm's RegNet",
    applies=lambda a: a.family == "regnet",
    rules=_regnet_rules,
)
