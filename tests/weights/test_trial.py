"""One image through a loaded network tells what names, shapes and finite numbers do not."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from trunkline import Backbone, create_backbone, load_weights
from trunkline.preprocessing import IMAGENET
from trunkline.weights.fused import never_trained, norms_are_fused
from trunkline.weights.trial import SIZE, trial, trial_image

pytestmark = pytest.mark.usefixtures("weights_home")

WIDE = replace(IMAGENET, value_range="0..255", mean=(0.0,) * 3, std=(1.0,) * 3)


@pytest.fixture(scope="module")
def trained() -> dict[str, torch.Tensor]:
    """Return the state of a ResNet-18 whose norms know images in ImageNet's preprocessing."""
    torch.manual_seed(0)
    backbone = create_backbone("resnet18")
    images = [trial_image(3, IMAGENET).roll((7 * i, 13 * i), (2, 3)) for i in range(4)]
    with torch.no_grad():
        for _ in range(25):
            backbone(torch.cat(images) + 0.1 * torch.randn(4, 3, SIZE, SIZE))
        for name, value in backbone.named_parameters():
            if "norm" in name:
                value.add_(torch.randn_like(value), alpha=0.01)
    return backbone.state_dict()


def loaded(state: dict[str, torch.Tensor]) -> Backbone:
    backbone = create_backbone("resnet18")
    backbone.load_state_dict(state)
    return backbone


def test_a_healthy_network_passes_and_the_report_says_so(
    trained: dict[str, torch.Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_file(trained, tmp_path / "x.safetensors")
    with caplog.at_level(logging.WARNING):
        built = create_backbone("resnet18", weights=tmp_path / "x.safetensors", check=True)
        report = load_weights(create_backbone("resnet18"), tmp_path / "x.safetensors", check=True)
        silent = load_weights(create_backbone("resnet18"), tmp_path / "x.safetensors")
    assert not caplog.records
    assert report.notes[-1].startswith("Checked with one image of 128×128: the stem up to ")
    assert built.load_report is not None
    assert built.load_report.notes == report.notes
    assert not any("Checked" in note for note in silent.notes)


def test_values_of_another_range_are_found(trained: dict[str, torch.Tensor]) -> None:
    backbone = loaded(trained)
    assert trial(backbone, IMAGENET).warnings == ()
    assert any(
        w.startswith("OTHER VALUES: what meets the norm stem.norm is ") and "times larger" in w
        for w in trial(backbone, WIDE).warnings
    )
    with torch.no_grad():
        backbone.stem.conv.weight /= 100  # type: ignore[union-attr, operator]
    (said,) = trial(backbone, IMAGENET).warnings
    assert "times smaller than its statistics say" in said
    assert "RGB in 0..1" in said


def test_weights_that_were_never_trained_are_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fresh = create_backbone("dla34", return_idx=(0,))
    save_file(fresh.state_dict(), tmp_path / "x.safetensors")
    report = load_weights(fresh, tmp_path / "x.safetensors", check=True)
    assert any(note.startswith("NEVER TRAINED: every norm is as PyTorch") for note in report.notes)
    assert "NEVER TRAINED" in caplog.text
    assert "x.safetensors" in caplog.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.fill_(float("nan")), "NOT FINITE: the map of stage 0 holds NaN or infinity"),
        (lambda w: w.mul_(1e6), "EXPLODING: the map of stage 0 reaches "),
    ],
    ids=["nan", "large"],
)
def test_maps_that_are_no_use_are_found(
    trained: dict[str, torch.Tensor],
    change: object,
    said: str,
) -> None:
    state = {name: value.clone() for name, value in trained.items()}
    for name, value in state.items():
        if name.startswith("stages.0.") and name.endswith("norm.weight"):
            change(value)  # type: ignore[operator]
    assert trial(loaded(state), IMAGENET).warnings[0].startswith(said)


def test_a_dead_network_is_found(trained: dict[str, torch.Tensor]) -> None:
    state = {name: value.clone() for name, value in trained.items()}
    for name, value in state.items():
        if name.startswith("stages.1.") and name.endswith(("norm.bias", "norm.weight")):
            value.fill_(-1.0 if name.endswith("bias") else 0.0)
    assert trial(loaded(state), IMAGENET).warnings == (
        "DEAD: 100% of the channels of stage 1 are the same everywhere, whatever the image shows.",
    )


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
def test_nothing_of_the_network_changes(norm: str) -> None:
    backbone = create_backbone("resnet18", norm=norm, return_idx=(1,), in_channels=5)
    backbone.stages[0].eval()
    modes = [module.training for module in backbone.modules()]
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, other = trial(backbone), trial(backbone)
    assert torch.equal(torch.rand(1), expected)
    assert one == other
    assert [module.training for module in backbone.modules()] == modes
    assert all(torch.equal(v, before[n]) for n, v in backbone.state_dict().items())
    assert all(value.grad is None for value in backbone.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.modules())


def test_it_runs_in_the_network_s_own_dtype(trained: dict[str, torch.Tensor]) -> None:
    assert trial(loaded(trained).double(), IMAGENET).warnings == ()


@pytest.mark.parametrize("channels", [1, 3, 13])
def test_the_image_is_always_the_same(channels: int) -> None:
    image = trial_image(channels)
    assert image.shape == (1, channels, SIZE, SIZE)
    assert image.dtype == torch.float32
    assert torch.equal(image, trial_image(channels))
    assert abs(float(image.mean())) < 1e-4
    assert abs(float(image.std()) - 1) < 1e-2


def test_the_image_is_prepared_as_a_photo_would_be() -> None:
    photo = trial_image(3, replace(IMAGENET, mean=(0.0,) * 3, std=(1.0,) * 3))
    assert 0 <= float(photo.min()) < float(photo.max()) <= 1
    assert torch.allclose(trial_image(3, WIDE) / 255, photo, atol=1e-6)


def test_fused_norms_are_told_from_those_that_were_never_trained() -> None:
    norm = nn.BatchNorm2d(4)

    def state() -> dict[str, torch.Tensor]:
        return {f"stem.norm.{name}": value.clone() for name, value in norm.state_dict().items()}

    assert never_trained(state())
    assert not norms_are_fused(state())
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 0.0, 1.0, 1.0]))  # as zero_init_residual leaves some
    assert never_trained(state())
    with torch.no_grad():
        norm.bias[2] = 0.5
    assert norms_are_fused(state())
    assert not never_trained(state())
    for name, value in (("running_mean", 1e-3), ("running_var", 1.01)):
        changed = state()
        changed[f"stem.norm.{name}"][0] = value
        assert not norms_are_fused(changed)
        assert not never_trained(changed)
    fresh = {f"stem.norm.{name}": value for name, value in nn.BatchNorm2d(4).state_dict().items()}
    assert not norms_are_fused(fresh)
    del fresh["stem.norm.num_batches_tracked"]  # which Caffe's files do not have
    assert norms_are_fused(fresh)
    assert not norms_are_fused({"stem.norm.weight": torch.ones(4)})
    assert not never_trained({})
