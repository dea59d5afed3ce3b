"""Norms, activations and channels in every family; and everything that must be refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import trunkline
from trunkline import DLANet, RegNet, ResNet, TrunklineError
from trunkline.backbones.dla import DLAConfig
from trunkline.backbones.layers import ACTS, NORMS, FrozenBatchNorm2d
from trunkline.backbones.regnet import RegNetConfig
from trunkline.backbones.resnet import ResNetConfig
from trunkline.errors import ConfigError, InputError, UnknownVariantError

if TYPE_CHECKING:
    from tests.conftest import Family


def kinds(backbone: nn.Module, kind: type[nn.Module]) -> int:
    return sum(type(module) is kind for module in backbone.modules())


def label(value: object) -> str | None:
    """Name a case without an address in it, which every worker would spell differently."""
    if isinstance(value, dict):
        return " ".join(value) or None
    return None if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)


def layer_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)


# Norms, activations, channels


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        ("batch", nn.BatchNorm2d),
        ("frozen", FrozenBatchNorm2d),
        ("sync", nn.SyncBatchNorm),
        ("group", nn.GroupNorm),
        (layer_norm, nn.GroupNorm),
    ],
    ids=["batch", "frozen", "sync", "group", "callable"],
)
def test_a_norm_replaces_every_norm(family: Family, norm: Any, kind: type[nn.Module]) -> None:
    expected = kinds(family.build(), nn.BatchNorm2d)
    backbone = family.build(norm=norm).eval()
    assert expected > 0
    assert kinds(backbone, kind) == expected
    assert kind is nn.BatchNorm2d or kinds(backbone, nn.BatchNorm2d) == 0
    with torch.no_grad():
        maps = backbone(torch.randn(2, 3, 40, 56))
    assert all(m.isfinite().all() and m.std() > 0 for m in maps)


@torch.no_grad()
@pytest.mark.parametrize("norm", ["frozen", "sync"])
def test_norms_with_statistics_are_the_same_function_in_eval_mode(
    family: Family, norm: str
) -> None:
    batch = family.build().eval()
    other = family.build(norm=norm).eval()
    other.load_state_dict(batch.state_dict())
    images = torch.randn(2, 3, 40, 56)
    for one, two in zip(other(images), batch(images), strict=True):
        assert torch.equal(one, two)


def test_frozen_norms_have_no_parameters_and_do_not_move(one_of_each: Family) -> None:
    backbone = one_of_each.build(norm="frozen").train()
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    names = dict(backbone.named_parameters())
    assert names
    assert not any(".norm." in name for name in names)
    backbone(torch.randn(2, 3, 40, 40))[-1].sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in backbone.named_buffers())


def test_all_names_of_norms_and_activations_are_covered_here() -> None:
    assert set(NORMS) == {"batch", "frozen", "sync", "group"}
    assert set(ACTS) == {"relu", "leaky-relu", "elu", "gelu", "hardswish", "mish", "silu"}


@torch.no_grad()
@pytest.mark.parametrize("act", [*sorted(ACTS), nn.Tanh])
def test_an_activation_replaces_every_activation(
    one_of_each: Family, act: str | Callable[[], nn.Module]
) -> None:
    expected = kinds(one_of_each.build(), nn.ReLU)
    kind = type(ACTS[act]()) if isinstance(act, str) else nn.Tanh
    backbone = one_of_each.build(act=act).eval()
    assert kinds(backbone, kind) == expected > 0
    assert kind is nn.ReLU or kinds(backbone, nn.ReLU) == 0
    maps = backbone(torch.randn(1, 3, 40, 40))
    assert all(m.isfinite().all() for m in maps)
    assert bool((maps[0] < 0).any()) == (act != "relu")


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_other_channel_counts(family: Family, channels: int) -> None:
    backbone = family.build(in_channels=channels).eval()
    usual = family.build()
    maps = backbone(torch.randn(2, channels, 33, 48))
    assert [m.shape[1] for m in maps] == list(usual.channels)
    first = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    assert first.in_channels == channels
    per_channel = first.weight[:, :1].numel()
    assert backbone.num_parameters - usual.num_parameters == (channels - 3) * per_channel
    with pytest.raises(InputError, match=rf"shape \(N, {channels}, H, W\), got 3 channels"):
        backbone(torch.zeros(1, 3, 8, 8))


# Images that are refused


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 3, 8, 8), np.float32), r"got ndarray; use torch\.as_tensor first"),
        ([[0.0]], r"expected a float tensor of shape \(N, 3, H, W\), got list"),
        (torch.zeros(3, 8, 8), r"got 3 dimensions, \(3, 8, 8\); add the batch with images\[None\]"),
        (torch.zeros(8, 8), r"got 2 dimensions, \(8, 8\)\."),
        (torch.zeros(1, 1, 3, 8, 8), r"got 5 dimensions"),
        (torch.zeros(1, 8, 8, 3), r"got 8 channels, .*permute\(0, 3, 1, 2\) puts channels second"),
        (torch.zeros(1, 4, 8, 8), r"got 4 channels, .*build the backbone with in_channels=4"),
        (torch.zeros(1, 3, 0, 8), r"with H and W of 1 or more, got \(1, 3, 0, 8\)"),
        (torch.zeros(1, 3, 8, 0), r"with H and W of 1 or more, got \(1, 3, 8, 0\)"),
        (
            torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
            r"got torch\.uint8; divide uint8 by 255, then normalise",
        ),
        (torch.zeros(1, 3, 8, 8, dtype=torch.bool), r"got torch\.bool"),
        (
            torch.zeros(1, 3, 8, 8, dtype=torch.float64),
            r"images are torch\.float64 but the network is torch\.float32; "
            r"use images\.to\(torch\.float32\), or backbone\.to\(torch\.float64\)",
        ),
        (
            torch.zeros(1, 3, 8, 8, dtype=torch.float16),
            r"images are torch\.float16 but the network",
        ),
    ],
    ids=label,
)
def test_images_that_cannot_be_taken_are_refused(
    one_of_each: Family, images: object, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        one_of_each.build().eval()(images)


# Options that are refused


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"output_stride": 12}, r"output_stride must be 8, 16 or 32, got 12"),
        ({"output_stride": 4}, r"output_stride must be 8, 16 or 32, got 4"),
        ({"output_stride": 16.0}, r"output_stride must be 8, 16 or 32, got 16\.0"),
        ({"in_channels": 0}, r"in_channels must be an integer of 1 or more, got 0"),
        ({"in_channels": 3.0}, r"in_channels must be an integer of 1 or more, got 3\.0"),
        ({"in_channels": True}, r"in_channels must be an integer of 1 or more, got True"),
        ({"drop_path_rate": 1}, r"drop_path_rate must be at least 0 and less than 1, got 1"),
        ({"drop_path_rate": -0.1}, r"drop_path_rate must be at least 0 .*got -0\.1"),
        ({"drop_path_rate": float("nan")}, r"drop_path_rate must be .*got nan"),
        ({"drop_path_rate": "0.1"}, r"drop_path_rate must be .*got '0\.1'"),
        ({"return_stem": 1}, r"return_stem must be True or False, got 1"),
        ({"checkpointing": "yes"}, r"checkpointing must be True or False, got 'yes'"),
        ({"norm": "bn"}, r"norm='bn' is not known; allowed: batch, frozen, group, sync"),
        ({"norm": None}, r"norm must be one of batch, .*got NoneType"),
        ({"norm": nn.BatchNorm2d(3)}, r"or a callable that takes .*got BatchNorm2d"),
        ({"norm": lambda channels: channels}, r"callable given as norm returned int; it must"),
        ({"act": "swish"}, r"act='swish' is not known; allowed: elu, gelu, .*silu"),
        ({"act": 3}, r"act must be one of elu, .*got int"),
        ({"act": nn.ReLU()}, r"or a callable that takes nothing, got ReLU"),
        ({"act": lambda: torch.relu}, r"callable given as act returned builtin_function"),
        ({"stem": True}, r"unknown option stem; allowed: act, .*return_stem"),
        ({"a": 1, "b": 2}, r"unknown option a, b; allowed"),
        (
            {"pretrained": "yes"},
            r"pretrained must be True or False, got 'yes'; .*goes into weights",
        ),
        ({"pretrained": True, "weights": "x"}, r"weights='x' was given too; give one of the two"),
    ],
    ids=label,
)
def test_options_that_cannot_be_built_are_refused(
    one_of_each: Family, option: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        one_of_each.build(**option)


def test_every_refusal_is_a_trunkline_error_and_a_value_error() -> None:
    with pytest.raises(TrunklineError) as refused:
        ResNet(18, output_stride=12)  # type: ignore[arg-type]
    assert isinstance(refused.value, ValueError)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("depth", [20, "50", "20", 50.0, True, None])
def test_depths_that_no_resnet_has_are_refused(depth: Any) -> None:
    with pytest.raises(UnknownVariantError, match=r"depth=.* is not a ResNet; allowed: 18, 34, 50"):
        ResNet(depth=depth)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DLANet(dla="dla35"), r"no variant 'dla35'; closest: dla34"),
        (lambda: DLANet(dla="resnet50"), r"'resnet50' is no variant of DLANet; ResNet\("),
        (
            lambda: RegNet(variant="regnet-y-081"),
            r"no variant 'regnet-y-081'; closest: regnet-y-08",
        ),
        (lambda: RegNet(variant=80), r"a variant is named by a string, not int"),  # type: ignore[arg-type]
        (lambda: trunkline.create_backbone("resnet51"), r"no variant 'resnet51'; closest: resnet5"),
        (
            lambda: trunkline.create_backbone("vit"),
            r"no variant 'vit'; .*`trunkline list` shows all",
        ),
        (lambda: trunkline.create_backbone(""), r"no variant ''; for example: resnet18"),
        (lambda: trunkline.create_backbone(None), r"named by a string, not NoneType"),  # type: ignore[arg-type]
        (lambda: trunkline.info("dla"), r"no variant 'dla'; closest: dla"),
    ],
)
def test_unknown_names_are_refused_with_the_closest(
    build: Callable[[], object], message: str
) -> None:
    with pytest.raises(UnknownVariantError, match=message):
        build()


# Configurations that are refused

RESNET: dict[str, Any] = {"depths": (1, 1, 1, 1), "bottleneck": True}
DLA: dict[str, Any] = {"depths": (1, 1, 1, 1), "channels": (32,) * 4, "bottleneck": True}
REGNET: dict[str, Any] = {
    "depth": 8, "initial_width": 8, "width_slope": 6.0, "width_multiplier": 2.0, "group_width": 6
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "base", "change", "message"),
    [
        (ResNetConfig, RESNET, {"depths": (1, 1, 1)}, r"depths must be four numbers .*\(1, 1, 1\)"),
        (
            ResNetConfig,
            RESNET,
            {"depths": (1, 0, 1, 1)},
            r"depths must be four numbers of 1 or more",
        ),
        (ResNetConfig, RESNET, {"depths": ()}, r"depths must be four numbers"),
        (
            ResNetConfig,
            RESNET,
            {"groups": 0},
            r"groups and width_per_group must be 1 or more, got 64, 0",
        ),
        (ResNetConfig, RESNET, {"width": -8}, r"must be 1 or more, got -8"),
        (ResNetConfig, RESNET, {"stem_widths": (8, 8)}, r"one width .* or three .*got \(8, 8\)"),
        (ResNetConfig, RESNET, {"stem_widths": ()}, r"stem_widths must be one width"),
        (ResNetConfig, RESNET, {"stem_widths": (0,)}, r"stem_widths must be .*got \(0,\)"),
        (
            ResNetConfig,
            RESNET,
            {"bottleneck": False, "groups": 32},
            r"need bottleneck blocks, which start at depth 50; got groups=32",
        ),
        (
            ResNetConfig,
            RESNET,
            {"width": 8, "width_per_group": 4},
            r"width=8 with width_per_group=4 leaves no channel in a group; .* 64 or more",
        ),
        (DLAConfig, DLA, {"depths": (1, 1, 1)}, r"depths must be four numbers of 1 or more"),
        (DLAConfig, DLA, {"channels": (8, 8, 8, 0)}, r"channels must be four numbers of 1 or more"),
        (DLAConfig, DLA, {"stem_channels": 7}, r"stem_channels must be even, got 7"),
        (DLAConfig, DLA, {"stem_channels": 0}, r"stem_channels must be even, got 0"),
        (DLAConfig, DLA, {"cardinality": 0}, r"cardinality must be 1, .*got 0"),
        (
            DLAConfig,
            DLA,
            {"cardinality": 32, "bottleneck": False},
            r"or more with bottleneck blocks, got 32 with bottleneck=False",
        ),
        (
            DLAConfig,
            DLA,
            {"channels": (32, 32, 40, 32), "cardinality": 32},
            r"40 channels give a bottleneck of 40, which cardinality 32 does not divide",
        ),
        (DLAConfig, DLA, {"channels": (1, 8, 8, 8)}, r"1 channels give a bottleneck of 0"),
        (RegNetConfig, REGNET, {"initial_width": 12}, r"positive multiple of 8, got 12"),
        (RegNetConfig, REGNET, {"initial_width": 0}, r"positive multiple of 8, got 0"),
        (RegNetConfig, REGNET, {"width_slope": -1.0}, r"width_slope must be 0 or more .*got -1\.0"),
        (
            RegNetConfig,
            REGNET,
            {"width_multiplier": 1.0},
            r"width_multiplier above 1, got 6\.0 and 1",
        ),
        (RegNetConfig, REGNET, {"group_width": 0}, r"group_width and stem_width must be 1 or more"),
        (RegNetConfig, REGNET, {"stem_width": 0}, r"stem_width must be 1 or more, got 8, 6 and 0"),
        (RegNetConfig, REGNET, {"depth": 0}, r"must be 1 or more, got 0, 6 and 32"),
        (
            RegNetConfig,
            REGNET,
            {"depth": 3},
            r"give 3 stages, of widths \[8, 16, 24\]|give 2 stages|a backbone has four",
        ),
        (RegNetConfig, REGNET, {"width_slope": 60.0}, r"these numbers give \d stages.*has four"),
    ],
    ids=label,
)
def test_configurations_are_checked_at_birth(
    config: Callable[..., object], base: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    config(**base)  # without the change it is fine
    with pytest.raises(ConfigError, match=message):
        config(**{**base, **change})


def test_arguments_of_resnet_are_those_of_its_config() -> None:
    with torch.device("meta"):
        assert ResNet(50, groups=32, width_per_group=4).variant == "resnext50-32x4d"
        assert ResNet(50, width_per_group=128).variant == "wide-resnet50-2"
        deep = ResNet(50, stem_widths=[32, 32, 64], pooled_shortcut=True)
        assert deep.variant == "resnet50d"
        vd = ResNet(18, stem_widths=[32, 32, 64], pooled_shortcut=True, project_first=True)
        assert vd.variant == "resnet18vd"
        assert ResNet(50, groups=2, width_per_group=64).variant is None
    with pytest.raises(ConfigError, match=r"need bottleneck blocks"):
        ResNet(18, groups=32)


def test_a_network_of_ones_own_says_that_it_has_no_name(one_of_each: Family) -> None:
    backbone = one_of_each.build()
    assert backbone.variant is None
    assert repr(backbone).splitlines()[1].strip().startswith("variant=None, channels=(")


def test_indices_from_numpy_are_integers_too(one_of_each: Family) -> None:
    backbone = one_of_each.build(return_idx=np.array([3, 1]), frozen_stages=np.int64(1))
    assert backbone.strides == (32, 8)
    images: Tensor = torch.zeros(1, 3, 32, 32)
    assert [m.shape[2] for m in backbone.eval()(images)] == [1, 4]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            lambda: ResNetConfig(depths=("a", 1, 1, 1), bottleneck=True),  # type: ignore[arg-type]
            "depths must be an integer, or a tuple",
        ),
        (
            lambda: ResNetConfig(depths=(1, 1, 1, 1), bottleneck=True, groups=2.0),  # type: ignore[arg-type]
            "groups must be an integer",
        ),
        (
            lambda: DLAConfig(depths=(1, 1, 1, 1.5), channels=(8,) * 4, bottleneck=False),  # type: ignore[arg-type]
            "depths must be an integer",
        ),
        (
            lambda: RegNetConfig(
                depth=13,
                initial_width=24,
                width_slope=float("nan"),
                width_multiplier=2.49,
                group_width=8,
            ),
            "width_slope must be 0 or more",
        ),
    ],
)
def test_configs_refuse_what_is_no_number_of_that_kind(
    config: Callable[[], object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config()


def test_a_backbone_with_a_norm_of_one_s_own_can_be_pickled() -> None:
    backbone = trunkline.create_backbone("resnet18", norm=lambda c: nn.BatchNorm2d(c, eps=1e-3))
    assert backbone.options.norm == "custom"
    assert pickle.loads(pickle.dumps(backbone)).options == backbone.options  # noqa: S301 - our own
