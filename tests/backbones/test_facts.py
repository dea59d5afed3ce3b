"""What is recorded of every variant, against what is built."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import trunkline
from trunkline.backbones import regnet
from trunkline.backbones.blocks import Bottleneck

VARIANTS = trunkline.list_backbones()
# The same parameters as the variant of the name before the suffix; only the stride moves.
CAFFE = {name: name.removesuffix("-caffe") for name in VARIANTS if name.endswith("-caffe")}


def test_every_variant_is_recorded(facts: dict[str, Any]) -> None:
    assert sorted([*facts["variants"], *CAFFE]) == sorted(VARIANTS)
    assert len(facts["variants"]) == 62
    assert list(CAFFE) == ["resnet50-caffe", "resnet101-caffe"]


@pytest.mark.parametrize("name", list(CAFFE))
def test_caffe_variants_differ_in_where_they_halve(name: str) -> None:
    early, late = trunkline.info(name), trunkline.info(CAFFE[name])
    assert early.num_parameters == late.num_parameters
    assert early.levels == late.levels
    # The first 1×1 of three stages runs at a quarter of the positions.
    saved = sum(
        256 * 2**stage * 128 * 2**stage * ((56 // 2**stage) ** 2 - (28 // 2**stage) ** 2)
        for stage in range(3)
    )
    assert late.macs - early.macs == saved


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in CAFFE])
def test_info_equals_what_is_recorded(name: str, facts: dict[str, Any]) -> None:
    recorded = facts["variants"][name]
    known = trunkline.info(name)
    assert known.name == name
    assert known.num_parameters == recorded["params_backbone"]
    assert round(known.macs / 1e9, 4) == recorded["gmacs_backbone"]
    assert [[level.stride, level.channels] for level in known.levels] == recorded["levels"]
    assert [level.name for level in known.levels] == [
        "stem",
        "stage0",
        "stage1",
        "stage2",
        "stage3",
    ]


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_built_equals_info(name: str) -> None:
    known = trunkline.info(name)
    with torch.device("meta"):
        backbone = trunkline.create_backbone(name)
    assert backbone.variant == name
    assert backbone.num_parameters == known.num_parameters
    assert backbone.levels == known.levels
    assert backbone.channels == tuple(level.channels for level in known.levels[1:])
    assert backbone.strides == (4, 8, 16, 32)


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["resnet18vd", "resnet50d", "resnext50-32x4d", "dla34", "dla60x", "regnet-y-002"]
)
def test_macs_are_half_of_what_pytorch_counts(name: str) -> None:
    with torch.device("meta"):
        backbone = trunkline.create_backbone(name).eval()
        with FlopCounterMode(display=False) as counter:
            backbone(torch.empty(1, 3, 224, 224))
    assert backbone.macs() * 2 == counter.get_total_flops()
    assert trunkline.info(name).macs == backbone.macs()


@pytest.mark.parametrize("name", list(regnet.VARIANTS))
def test_regnet_formula_gives_the_recorded_network(name: str, facts: dict[str, Any]) -> None:
    recorded = facts["variants"][name]
    config = regnet.VARIANTS[name]
    assert list(config.stage_depths) == recorded["depths"]
    assert [config.stem_channels, *config.stage_channels] == [c for _, c in recorded["levels"]]
    assert config.squeeze == name.startswith("regnet-y")

    with torch.device("meta"):
        backbone = trunkline.create_backbone(name, norm=lambda _channels: nn.Identity())
    for index, stage in enumerate(backbone.stages):
        blocks = [module for module in stage.modules() if isinstance(module, Bottleneck)]
        assert len(blocks) == recorded["depths"][index]
        group_widths = {b.conv2.conv.in_channels // b.conv2.conv.groups for b in blocks}
        assert group_widths == {recorded["group_widths"][index]}
        squeezed = [None if b.se is None else b.se.reduce.out_channels for b in blocks]
        if not config.squeeze:
            assert set(squeezed) == {None}
            continue
        # A quarter of the block's input, so the first block of a stage differs.
        below, width = backbone.levels[index].channels, backbone.levels[index + 1].channels
        first, rest = recorded.get("squeezed", [(round(below / 4), round(width / 4))] * 4)[index]
        assert squeezed == [first] + [rest] * (len(blocks) - 1)


def test_squeezed_widths_are_recorded_for_the_y_variants_of_the_paper(
    facts: dict[str, Any],
) -> None:
    recorded = [name for name, row in facts["variants"].items() if "squeezed" in row]
    assert len(recorded) == 12
    assert facts["variants"]["regnet-y-002"]["squeezed"][0] == [8, 6]


def test_classes_build_the_same_variants_as_names() -> None:
    with torch.device("meta"):
        assert trunkline.ResNet(depth=101).variant == "resnet101"
        assert trunkline.ResNet().variant == "resnet50"
        assert trunkline.DLANet(dla="DLA60x_C").variant == "dla60x-c"
        assert trunkline.DLANet().variant == "dla34"
        assert trunkline.RegNet(variant="regnet-x-002").variant == "regnet-x-002"
        assert trunkline.RegNet().variant == "regnet-y-040"
