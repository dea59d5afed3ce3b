"""timm's names; the original DLA's are the same.

Sources: timm 1.0 ``models/resnet.py``, ``models/dla.py``, ``models/regnet.py``; ucbdrive/dla
``dla.py``.
"""

from __future__ import annotations

from trunkline.backbones.backbone import Architecture
from trunkline.weights.layouts.layout import (
    Change,
    Drop,
    Layout,
    Rule,
    feature,
    has_no_extra_projection,
    modules,
)
from trunkline.weights.layouts.torchvision import resnet_rules

CONV_CLASSIFIER = Change(
    why="the classifier is a 1×1 convolution there, a linear layer here",
    to_native=lambda weight: weight.flatten(1) if weight.ndim == 4 else weight,  # or another head
    to_upstream=lambda weight: weight[:, :, None, None],
)


DEAD_PROJECTION = Drop(
    r"level\d(\.tree[12])*\.project\.[01]\.\w+",
    "the original computes this projection and throws the result away",
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


def dead_projections(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the projections that the original owns and never uses.

    Every inner node of a tree that changes the width has one, on the way to the first leaf.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    entering = architecture.stem_channels
    for stage, num_blocks in enumerate(architecture.stage_depths):
        leaving = architecture.stage_channels[stage]
        depth = num_blocks.bit_length() - 1
        for inner in range(depth - 1 if entering != leaving else 0):
            project = f"level{stage + 2}{'.tree1' * inner}.project"
            shapes[f"{project}.0.weight"] = (leaving, entering, 1, 1)
            for leaf in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{project}.1.{leaf}"] = (leaving,)
            shapes[f"{project}.1.num_batches_tracked"] = ()
        entering = leaving
    return shapes


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


TIMM_RESNET = Layout(
    name="timm-resnet",
    title="timm's ResNet",
    applies=lambda a: (
        a.family == "resnet" and has_no_extra_projection(a) and not feature(a, "stride_in_1x1")
    ),
    rules=resnet_rules,
)

TIMM_RESNET_GROUP_NORM = Layout(
    name="timm-resnet-group-norm",
    title="timm's ResNet with group norms",
    # torchvision's networks have these names too, given a group norm as their norm_layer.
    applies=TIMM_RESNET.applies,
    rules=resnet_rules,
    counts_batches=False,
    norm="group",
)

TIMM_DLA = Layout(
    name="timm-dla",
    title="timm's DLA",
    applies=lambda a: a.family == "dla",
    rules=dla_rules,
    drops=(DEAD_PROJECTION,),  # its first copies of the original's files kept them
)

DLA = Layout(
    name="dla",
    title="the original DLA",
    applies=lambda a: a.family == "dla",
    rules=dla_rules,
    drops=(DEAD_PROJECTION,),
)

TIMM_REGNET = Layout(
    name="timm-regnet",
    title="timm's RegNet",
    applies=lambda a: a.family == "regnet",
    rules=_regnet_rules,
)
