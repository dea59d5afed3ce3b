"""A stem of any number of input channels, for a network of any other number."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from trunkline import create_backbone, load_weights
from trunkline.errors import ConfigError, WeightsMismatchError
from trunkline.preprocessing import IMAGENET
from trunkline.weights.channels import fit_channels, mapped_preprocessing
from trunkline.weights.layouts import LAYOUTS
from trunkline.weights.translation import to_upstream

pytestmark = pytest.mark.usefixtures("weights_home")

NUMBERS = (1, 2, 3, 4, 7, 13)
PAIRS = [(held, wanted) for held in NUMBERS for wanted in NUMBERS]


def stem(channels: int) -> Tensor:
    return torch.randn(8, channels, 3, 3, generator=torch.Generator().manual_seed(channels))


@pytest.mark.parametrize(("held", "wanted"), PAIRS)
def test_images_whose_channels_are_alike_give_what_they_gave(held: int, wanted: int) -> None:
    weight = torch.ones(8, 1, 3, 3) * torch.randn(8, 1, 1, 1) * torch.ones(1, held, 1, 1)
    fitted, _ = fit_channels(weight, wanted, bgr=False)
    assert fitted.shape == (8, wanted, 3, 3)
    assert torch.allclose(fitted.sum(1), weight.sum(1), rtol=1e-5)
    if wanted == 1 or wanted % held == 0:  # every channel of the file is there as often
        fitted, _ = fit_channels(stem(held), wanted, bgr=False)
        assert torch.allclose(fitted.sum(1), stem(held).sum(1), atol=1e-5)


@pytest.mark.parametrize(("held", "wanted"), PAIRS)
def test_the_rule_is_the_one_that_is_stated(held: int, wanted: int) -> None:
    weight = stem(held)
    fitted, said = fit_channels(weight, wanted, bgr=False)
    if wanted == held:
        assert torch.equal(fitted, weight)
        assert said == ()
        return
    (sentence,) = said
    if wanted == 1:
        assert torch.equal(fitted, weight.sum(1, keepdim=True))
        assert sentence.endswith("input channels were added up for one.")
        return
    for channel in range(wanted):
        assert torch.equal(fitted[:, channel], weight[:, channel % held] * (held / wanted))
    assert f"scaled by {held}/{wanted}" in sentence


def test_blue_first_is_turned_before_anything_else() -> None:
    weight = stem(3)
    fitted, said = fit_channels(weight, 2, bgr=True)
    assert torch.equal(fitted, weight[:, [2, 1]] * 1.5)
    assert said[0] == "The stem's input channels were turned from BGR to RGB."
    mapped, _ = fit_channels(weight, 1, bgr=True, channel_map=[0])  # red, the file's last
    assert torch.equal(mapped[:, 0], weight[:, 2])
    assert torch.equal(fit_channels(stem(4), 4, bgr=True)[0], stem(4))  # four have no such order


def test_a_map_says_which_band_feeds_which_channel() -> None:
    weight = stem(13)
    fitted, (said,) = fit_channels(weight, 5, bgr=False, channel_map=(3, 2, 1, None, 2))
    assert torch.equal(fitted[:, 0], weight[:, 3])
    assert torch.equal(fitted[:, 1], weight[:, 2] / 2)
    assert torch.equal(fitted[:, 2], weight[:, 1])
    assert not fitted[:, 3].any()
    assert torch.equal(fitted[:, 4], weight[:, 2] / 2)
    assert said == (
        "The stem's input channels are, by channel_map, the file's 3, 2, 1, none, 2. Those that "
        "feed several are shared among them: 2 by 2. Unused of the file: 0, 4, 5, 6, 7, 8, 9, 10, "
        "11, 12."
    )


@pytest.mark.parametrize(
    ("channel_map", "said"),
    [
        ((0, 1), "has 2 entries; give 3 entries, one for each input channel of this network"),
        ((0, 1, 3), r"holds 3; give 3 entries, .* the file's channel that feeds it \(0 to 2\)"),
        ((0, 1, -1), "holds -1;"),
        ((0, 1, True), "holds True;"),
        ((0, 1, 1.0), r"holds 1\.0;"),
        ((None, None, None), "feeds no channel, so the image would not matter"),
        ("012", "is no sequence; give 3 entries"),
        (3, "is no sequence; give 3 entries"),
    ],
    ids=["short", "beyond", "negative", "boolean", "float", "nothing", "text", "number"],
)
def test_a_map_that_does_not_fit_says_what_does(
    tmp_path: Path, channel_map: object, said: str
) -> None:
    path = tmp_path / "x.safetensors"
    backbone = create_backbone("resnet18", return_idx=(0,))
    save_file(backbone.state_dict(), path)
    before = backbone.state_dict()["stem.conv.weight"].clone()
    with pytest.raises(ConfigError, match=f"channel_map=.*{said}"):
        load_weights(backbone, path, channel_map=channel_map)  # type: ignore[arg-type]
    assert torch.equal(backbone.state_dict()["stem.conv.weight"], before)


@pytest.mark.parametrize(("held", "wanted"), [(13, 3), (2, 12), (1, 3), (4, 4), (3, 1)])
def test_files_of_other_channels_load_and_the_report_says_how(
    tmp_path: Path, held: int, wanted: int
) -> None:
    theirs = create_backbone("resnet18", return_idx=(0,), in_channels=held)
    save_file(theirs.state_dict(), tmp_path / "x.safetensors")
    backbone = create_backbone(
        "resnet18", return_idx=(0,), in_channels=wanted, weights=tmp_path / "x.safetensors"
    )
    expected, said = fit_channels(theirs.state_dict()["stem.conv.weight"], wanted, bgr=False)
    assert torch.equal(backbone.state_dict()["stem.conv.weight"], expected)
    assert backbone.load_report is not None
    assert backbone.load_report.adapted == said


def test_upstream_names_and_deep_stems_are_fitted_too(tmp_path: Path) -> None:
    theirs = create_backbone("resnet50d", return_idx=(0,), in_channels=6)
    layout = LAYOUTS["timm-resnet"]
    tensors = to_upstream(layout, theirs.architecture, theirs.state_dict())
    torch.save(tensors, tmp_path / "x.pth")
    backbone = create_backbone(
        "resnet50d", return_idx=(0,), weights=tmp_path / "x.pth", channel_map=(5, None, 0)
    )
    weight = backbone.state_dict()["stem.0.conv.weight"]
    assert torch.equal(weight[:, 0], tensors["conv1.0.weight"][:, 5])
    assert not weight[:, 1].any()
    assert torch.equal(weight[:, 2], tensors["conv1.0.weight"][:, 0])


def test_the_preprocessing_turns_with_the_colours_and_stays_otherwise() -> None:
    turned = mapped_preprocessing(IMAGENET, (2, 1, 0))
    assert turned is not None
    assert turned == replace(
        IMAGENET, mean=IMAGENET.mean[::-1], std=IMAGENET.std[::-1], channel_order="BGR"
    )
    assert mapped_preprocessing(turned, [2, 1, 0]) == IMAGENET
    for other in (None, (0, 1, 2), (0, 0, 0), (0, 1, 2, None), (2, 1)):
        assert mapped_preprocessing(IMAGENET, other) is IMAGENET
    assert mapped_preprocessing(None, (2, 1, 0)) is None


def test_the_shape_of_a_stem_is_still_looked_at(tmp_path: Path) -> None:
    state = create_backbone("resnet18", return_idx=(0,)).state_dict()
    for shape in ((64, 3, 3, 3), (32, 3, 7, 7), (64, 0, 7, 7), (64, 147)):
        save_file({**state, "stem.conv.weight": torch.zeros(shape)}, tmp_path / "x.safetensors")
        said = re.escape(f"stem.conv.weight is {'×'.join(map(str, shape))}, needs 64×3×7×7")
        with pytest.raises(WeightsMismatchError, match=said):
            create_backbone("resnet18", return_idx=(0,), weights=tmp_path / "x.safetensors")
