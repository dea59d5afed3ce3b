"""pycls' names, for RegNets and for ResNets written as AnyNets; and VISSL's, which descend from it.

Sources: pycls ``models/anynet.py``, ``models/blocks.py``, ``datasets/imagenet.py`` (images are
normalised in RGB order and then turned to BGR); classy_vision ``models/regnet.py``; VISSL
``models/trunks/regnet.py`` and ``regnet_fsdp.py``.
"""

from __future__ import annotations

from trunkline.backbones.backbone import Architecture
from trunkline.weights.layouts.layout import (
    Drop,
    Layout,
    Rule,
    feature,
    is_plain_resnet,
    modules,
)

_OURS = "stages.{s}.blocks.{b}"


def _pycls_rules(_architecture: Architecture) -> list[Rule]:
    block = "s{s+1}.b{b+1}"
    return modules(
        ("stem.conv", "stem.conv"),
        ("stem.norm", "stem.bn"),
        *(
            pair
            for k, letter in enumerate("abc", start=1)
            for pair in (
                (f"{_OURS}.conv{k}.conv", f"{block}.f.{letter}"),
                (f"{_OURS}.conv{k}.norm", f"{block}.f.{letter}_bn"),
            )
        ),
        (f"{_OURS}.se.reduce", f"{block}.f.se.f_ex.0"),
        (f"{_OURS}.se.expand", f"{block}.f.se.f_ex.2"),
        (f"{_OURS}.shortcut.conv", f"{block}.proj"),
        (f"{_OURS}.shortcut.norm", f"{block}.bn"),
        ("classifier", "head.fc"),
    )


def _vissl_rules(_architecture: Architecture) -> list[Rule]:
    block = "res{s+2}.block{s+1}-{b}"
    return modules(
        ("stem.conv", "conv1.stem.0"),
        ("stem.norm", "conv1.stem.1"),
        (f"{_OURS}.conv1.conv", f"{block}.f.a.0"),
        (f"{_OURS}.conv1.norm", f"{block}.f.a.1"),
        (f"{_OURS}.conv2.conv", f"{block}.f.b.0"),
        (f"{_OURS}.conv2.norm", f"{block}.f.b.1"),
        (f"{_OURS}.se.reduce", f"{block}.f.se.excitation.0"),
        (f"{_OURS}.se.expand", f"{block}.f.se.excitation.2"),
        (f"{_OURS}.conv3.conv", f"{block}.f.c"),
        (f"{_OURS}.conv3.norm", f"{block}.f.final_bn"),
        (f"{_OURS}.shortcut.conv", f"{block}.proj"),
        (f"{_OURS}.shortcut.norm", f"{block}.bn"),
        ("classifier", "heads.0.clf.0"),
    )


PYCLS = Layout(
    name="pycls",
    title="pycls",
    applies=lambda a: (
        (a.family == "regnet" and not feature(a, "torchvision_rounding")) or is_plain_resnet(a)
    ),
    rules=_pycls_rules,
    bgr=True,
)

VISSL = Layout(
    name="vissl",
    title="VISSL's RegNet",
    applies=lambda a: a.family == "regnet" and not feature(a, "torchvision_rounding"),
    rules=_vissl_rules,
    prefix="_feature_blocks.",
    respell=((r"(res\d\.)block\d-part\d+\.", r"\1"),),  # FSDP cuts a stage into parts
    drops=(Drop(r"heads\..+", "a head of self-supervised training"),),
)
