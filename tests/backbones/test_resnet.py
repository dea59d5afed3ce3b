"""ResNet: how its stems, shortcuts and widths differ between relatives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trunkline.backbones.blocks import BasicBlock, Bottleneck, DilatedAvgPool2d, Sampling
from trunkline.backbones.layers import Layers
from trunkline.backbones.resnet import VARIANTS, ResNet, ResNetConfig

LAYERS = Layers(norm=nn.BatchNorm2d, act=nn.ReLU)


def meta(name: str) -> ResNet:
    with torch.device("meta"):
        return ResNet(VARIANTS[name])


def convolutions(module: nn.Module) -> list[tuple[int, int, int, int]]:
    """Return input and output channels, kernel and stride of each."""
    return [
        (m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0])
        for m in module.modules()
        if isinstance(m, nn.Conv2d)
    ]


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("resnet50", [(3, 64, 7, 2)]),
        ("resnet50c", [(3, 32, 3, 2), (32, 32, 3, 1), (32, 64, 3, 1)]),
        ("resnet50d", [(3, 32, 3, 2), (32, 32, 3, 1), (32, 64, 3, 1)]),
        ("resnet18vd", [(3, 32, 3, 2), (32, 32, 3, 1), (32, 64, 3, 1)]),
        ("resnet50s", [(3, 64, 3, 2), (64, 64, 3, 1), (64, 128, 3, 1)]),
        ("resnet50t", [(3, 24, 3, 2), (24, 32, 3, 1), (32, 64, 3, 1)]),
    ],
)
def test_stems(name: str, stem: list[tuple[int, int, int, int]]) -> None:
    assert convolutions(meta(name).stem) == stem


@pytest.mark.parametrize(
    ("name", "first", "later"),
    [
        ("resnet18", None, ["conv", "norm"]),
        ("resnet18d", None, ["pool", "conv", "norm"]),
        ("resnet18vd", ["conv", "norm"], ["pool", "conv", "norm"]),
        ("resnet50", ["conv", "norm"], ["conv", "norm"]),
        ("resnet50c", ["conv", "norm"], ["conv", "norm"]),
        ("resnet50d", ["conv", "norm"], ["pool", "conv", "norm"]),
    ],
)
def test_shortcuts(name: str, first: list[str] | None, later: list[str]) -> None:
    found = []
    for stage in meta(name).stages:
        blocks = [m for m in stage.modules() if isinstance(m, BasicBlock | Bottleneck)]
        shortcut = blocks[0].shortcut
        found.append(None if shortcut is None else [part for part, _ in shortcut.named_children()])
        assert all(block.shortcut is None for block in blocks[1:])
    assert found == [first, later, later, later]


@pytest.mark.parametrize(
    ("name", "mid", "groups"),
    [
        ("resnet50", 64, 1),
        ("resnext50-32x4d", 128, 32),
        ("resnext101-32x8d", 256, 32),
        ("resnext101-64x4d", 256, 64),
        ("wide-resnet50-2", 128, 1),
    ],
)
def test_bottlenecks_of_resnext_and_wide(name: str, mid: int, groups: int) -> None:
    for index, stage in enumerate(meta(name).stages):
        blocks = [m for m in stage.modules() if isinstance(m, Bottleneck)]
        convs = [block.conv2.conv for block in blocks]
        assert {conv.out_channels for conv in convs} == {mid * 2**index}
        assert {conv.groups for conv in convs} == {groups}


@pytest.mark.parametrize(("name", "strides"), [("resnet50", (1, 2)), ("resnet50-caffe", (2, 1))])
def test_where_a_bottleneck_halves(name: str, strides: tuple[int, int]) -> None:
    for index, stage in enumerate(meta(name).stages):
        first = next(m for m in stage.modules() if isinstance(m, Bottleneck))
        halved = (first.conv1.conv.stride[0], first.conv2.conv.stride[0])
        assert halved == (strides if index else (1, 1))


def test_the_pool_to_stride_4_opens_stage_0() -> None:
    stage = meta("resnet18").stages[0]
    pool = next(stage.children())
    assert isinstance(pool, nn.MaxPool2d)
    x = -torch.arange(1.0, 10).reshape(1, 1, 3, 3)
    # 3×3 maxima around every second pixel; what lies outside never wins over what is negative.
    assert torch.equal(pool(x), torch.tensor([[[[-1.0, -2], [-4, -5]]]]))


def test_a_dilated_stage_keeps_its_resolution() -> None:
    config = ResNetConfig(depths=(1, 1, 1, 2), bottleneck=False, width=8, pooled_shortcut=True)
    stage = config.build_stage(
        3, 32, Sampling(stride=1, first_dilation=2, dilation=4), LAYERS
    ).eval()
    dilations = [m.dilation[0] for m in stage.modules() if isinstance(m, nn.Conv2d)]
    assert dilations == [1, 2, 4, 4, 4]  # shortcut; first block; second block
    assert [m.dilation for m in stage.modules() if isinstance(m, DilatedAvgPool2d)] == [2]
    assert stage(torch.zeros(1, 32, 7, 5)).shape == (1, 64, 7, 5)
