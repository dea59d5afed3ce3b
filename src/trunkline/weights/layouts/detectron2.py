"""detectron2's names, and those of the Caffe2 files that it reads.

Sources: detectron2 ``modeling/backbone/resnet.py``, ``checkpoint/c2_model_loading.py``,
``checkpoint/catalog.py``, ``tools/convert-torchvision-to-d2.py``.

Neither naming says where a bottleneck has its stride or in which order its stem wants the colours.
The Caffe2 files of R-50 and R-101 (MSRA) have the stride in the first 1×1, the grouped X-101 in
the 3×3; all want BGR. Names of detectron2 itself must be asked for, unless the file says that it
came from torchvision.
"""

from __future__ import annotations

from trunkline.backbones.backbone import Architecture
from trunkline.weights.layouts.layout import (
    Drop,
    Fill,
    Layout,
    Rule,
    feature,
    is_plain_resnet,
    modules,
)

_OURS = "stages.{s}.blocks.{b}"
_FROZEN_EPS = 1e-5
_TOLD = (
    "detectron2's names do not say where the stride is or how the colours are ordered; say "
    "layout='detectron2' (stride in the 3×3, RGB) or 'detectron2-msra' (in the first 1×1, BGR)"
)


def _detectron2_rules(_architecture: Architecture) -> list[Rule]:
    block = "res{s+2}.{b}"
    return [
        Rule("stem.conv.weight", "stem.conv1.weight"),
        Rule("stem.norm.*", "stem.conv1.norm.*"),
        Rule(f"{_OURS}.conv{{k}}.conv.weight", f"{block}.conv{{k}}.weight"),
        Rule(f"{_OURS}.conv{{k}}.norm.*", f"{block}.conv{{k}}.norm.*"),
        Rule(f"{_OURS}.shortcut.conv.weight", f"{block}.shortcut.weight"),
        Rule(f"{_OURS}.shortcut.norm.*", f"{block}.shortcut.norm.*"),
        *modules(("classifier", "linear")),
    ]


_BATCH_NORM = {"weight": "bn_s", "bias": "bn_b", "running_mean": "bn_rm", "running_var": "bn_riv"}
_AFFINE = {"weight": "bn_s", "bias": "bn_b"}
_GROUP_NORM = {"weight": "gn_s", "bias": "gn_b"}


def _caffe2_rules(leaves: dict[str, str], stem: str) -> list[Rule]:
    branches = [("shortcut", "1"), ("conv1", "2a"), ("conv2", "2b"), ("conv3", "2c")]
    rules = [
        Rule("stem.conv.weight", "conv1_w"),
        Rule("classifier.weight", "pred_w"),
        Rule("classifier.bias", "pred_b"),
        *(Rule(f"stem.norm.{ours}", f"{stem}_{theirs}") for ours, theirs in leaves.items()),
    ]
    for part, branch in branches:
        block = f"res{{s+2}}_{{b}}_branch{branch}"
        conv = f"{_OURS}.{part}.conv.weight"
        norm = f"{_OURS}.{part}.norm"
        rules.append(Rule(conv, f"{block}_w"))
        rules += [Rule(f"{norm}.{ours}", f"{block}_{theirs}") for ours, theirs in leaves.items()]
    return rules


def _has_caffe2(architecture: Architecture) -> bool:
    # Ungrouped networks were trained with the stride in the 1×1, grouped ones in the 3×3.
    if not feature(architecture, "bottleneck") or feature(architecture, "project_first"):
        return False
    if feature(architecture, "stride_in_1x1"):
        return True
    return is_plain_resnet(architecture) and feature(architecture, "groups") != 1


_RESPELL = (
    (r"^fc1000_", "pred_"),
    (r"_bn_gamma$", "_bn_s"),
    (r"_bn_beta$", "_bn_b"),
    (r"_bn_running_mean$", "_bn_rm"),
    (r"_bn_running_var$", "_bn_riv"),
)
_DROPS = (
    Drop(r".+_momentum", "the optimizer's momentum"),
    Drop("lr", "the learning rate"),
    # In MSRA's R-50; the norm behind it has a bias, and detectron2 has no place for this one.
    Drop("conv1_b", "a bias of the stem that detectron2 leaves aside too"),
)

# Its conversion from torchvision puts everything outside the layers under the stem.
_CLASSIFIER = ((r"^stem\.fc\.", "linear."),)

DETECTRON2 = Layout(
    name="detectron2",
    title="detectron2, stride in the 3×3",
    applies=is_plain_resnet,
    rules=_detectron2_rules,
    respell=_CLASSIFIER,
    told=_TOLD,
)

DETECTRON2_MSRA = Layout(
    name="detectron2-msra",
    title="detectron2, stride in the first 1×1",
    applies=lambda a: bool(feature(a, "stride_in_1x1")),
    rules=_detectron2_rules,
    respell=_CLASSIFIER,
    bgr=True,
    told=_TOLD,
)

CAFFE2 = Layout(
    name="caffe2",
    title="Caffe2's ResNet",
    applies=_has_caffe2,
    rules=lambda _: _caffe2_rules(_BATCH_NORM, "res_conv1"),
    bgr=True,
    counts_batches=False,
    respell=_RESPELL,
    drops=_DROPS,
)

CAFFE2_AFFINE = Layout(
    name="caffe2-affine",
    title="Caffe2's ResNet with fused norms",
    applies=_has_caffe2,
    rules=lambda _: _caffe2_rules(_AFFINE, "res_conv1"),
    bgr=True,
    counts_batches=False,
    respell=_RESPELL,
    drops=_DROPS,
    norm="frozen",
    fills=(
        Fill(r".+\.running_mean", 0.0, "fused into the bias"),
        # With the norm's own epsilon this is a variance of one.
        Fill(r".+\.running_var", 1.0 - _FROZEN_EPS, "fused into the weight"),
    ),
)

CAFFE2_GROUP_NORM = Layout(
    name="caffe2-group-norm",
    title="Caffe2's ResNet with group norm",
    # Trained later than the others, with the stride in the 3×3.
    applies=lambda a: is_plain_resnet(a) and bool(feature(a, "bottleneck")),
    rules=lambda _: _caffe2_rules(_GROUP_NORM, "conv1"),
    bgr=True,
    counts_batches=False,
    respell=_RESPELL,
    drops=_DROPS,
    norm="group",
)
