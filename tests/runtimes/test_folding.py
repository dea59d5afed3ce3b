"""fold: the same maps without norms, for every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import trunkline
from trunkline import fold
from trunkline.errors import ConfigError, WeightsMismatchError

if TYPE_CHECKING:
    from tests.conftest import Family

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, trunkline.backbones.layers.FrozenBatchNorm2d)


def largest_difference(wanted: list[Tensor], got: list[Tensor]) -> float:
    pairs = zip(wanted, got, strict=True)
    return max(float(((a - b).abs().max() / a.abs().max()).detach()) for a, b in pairs)


@pytest.mark.parametrize("norm", ["batch", "frozen", "sync"])
def test_maps_stay_the_same_and_no_norm_is_left(family: Family, norm: str) -> None:
    backbone = family.build(norm=norm).eval()
    folded = fold(backbone)
    images = torch.randn(2, 3, 65, 97)
    assert not [m for m in folded.modules() if isinstance(m, NORMS)]
    assert largest_difference(backbone(images), folded(images)) < 1e-5


def test_in_double_precision_nothing_but_rounding_is_lost(family: Family) -> None:
    backbone = family.build().double().eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert largest_difference(backbone(images), fold(backbone)(images)) < 1e-13


@pytest.mark.parametrize(
    "options", [{"output_stride": 8}, {"return_stem": True}, {"in_channels": 5}, {"act": "silu"}]
)
def test_options_are_kept(one_of_each: Family, options: dict[str, Any]) -> None:
    backbone = one_of_each.build(**options).eval()
    folded = fold(backbone)
    images = torch.randn(1, backbone.in_channels, 64, 32)
    assert (folded.channels, folded.strides) == (backbone.channels, backbone.strides)
    assert largest_difference(backbone(images), folded(images)) < 1e-5


def test_the_backbone_itself_is_left_as_it_was(one_of_each: Family) -> None:
    backbone = one_of_each.build().train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    fold(backbone)
    after = backbone.state_dict()
    assert backbone.training
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_copy_is_for_inference(one_of_each: Family) -> None:
    folded = fold(one_of_each.build().train())
    assert not folded.training
    assert not any(parameter.requires_grad for parameter in folded.parameters())


def test_norms_that_depend_on_the_images_stay(families: dict[str, Family]) -> None:
    backbone = families["resnet-basic"].build(norm="group").eval()
    folded = fold(backbone)
    images = torch.randn(1, 3, 64, 64)
    assert sum(isinstance(m, nn.GroupNorm) for m in folded.modules()) == sum(
        isinstance(m, nn.GroupNorm) for m in backbone.modules()
    )
    assert largest_difference(backbone(images), folded(images)) == 0.0


def test_a_norm_without_statistics_cannot_be_folded(families: dict[str, Family]) -> None:
    def untracked(channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels, track_running_stats=False)

    backbone = families["resnet-basic"].build(norm=untracked)
    with pytest.raises(ConfigError, match=r"without running statistics .* track_running_stats"):
        fold(backbone)


def test_a_folded_network_takes_no_checkpoint(
    tmp_path: Path, randomizer: Callable[[nn.Module], None]
) -> None:
    backbone = trunkline.create_backbone("resnet18")
    randomizer(backbone)
    torch.save(backbone.state_dict(), tmp_path / "resnet18.pt")
    with pytest.raises(WeightsMismatchError):
        trunkline.load_weights(fold(backbone), tmp_path / "resnet18.pt")


def test_what_is_no_backbone_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a trunkline backbone is expected, got Linear"):
        fold(nn.Linear(1, 1))  # type: ignore[arg-type]


def test_a_backbone_without_numbers_is_refused(families: dict[str, Family]) -> None:
    with torch.device("meta"):
        backbone = families["dla-basic"].create()
    with pytest.raises(ConfigError, match=r"on the meta device .* load weights"):
        fold(backbone)
