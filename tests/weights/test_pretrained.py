"""A backbone as a folder or a repository: what goes in comes out, and nothing else is believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import trunkline
from trunkline import Backbone, Preprocessing, create_backbone
from trunkline.errors import (
    ConfigError,
    LevelIndexError,
    OutputError,
    WeightsMismatchError,
)
from trunkline.weights.conversion import convert
from trunkline.weights.loading import LoadReport, load_weights
from trunkline.weights.pretrained import from_pretrained, save_pretrained

if TYPE_CHECKING:
    from tests.conftest import Family

pytestmark = pytest.mark.usefixtures("weights_home")

PREPROCESSING = Preprocessing(
    resize=232,
    crop=(224, 224),
    interpolation="bicubic",
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    value_range="0..1",
    channel_order="RGB",
)


def equal(one: Backbone, other: Backbone) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def maps(backbone: Backbone, channels: int = 3) -> list[Tensor]:
    torch.manual_seed(0)
    with torch.inference_mode():
        found: list[Tensor] = backbone.eval()(torch.randn(1, channels, 64, 96))
    return found


# There and back.


def test_every_family_comes_back_as_it_was(tmp_path: Path, family: Family) -> None:
    backbone = family.build()
    backbone.preprocessing = PREPROCESSING
    assert save_pretrained(backbone, tmp_path / "net") == tmp_path / "net"
    again = from_pretrained(tmp_path / "net")
    assert type(again) is type(backbone)
    assert again.architecture == backbone.architecture
    assert again.options == backbone.options
    assert again.preprocessing == PREPROCESSING
    assert equal(backbone, again)
    for one, other in zip(maps(backbone), maps(again), strict=True):
        assert torch.equal(one, other)
    assert {path.name for path in (tmp_path / "net").iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }


OPTIONS: list[dict[str, Any]] = [
    {"return_idx": (2, 0)},
    {"return_idx": (-1,), "return_stem": True},
    {"in_channels": 1},
    {"in_channels": 6},
    {"output_stride": 8},
    {"norm": "frozen"},
    {"norm": "group"},
    {"norm": "sync"},
    {"act": "silu"},
    {"drop_path_rate": 0.25, "checkpointing": True},
    {"frozen_stages": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_survive(
    tmp_path: Path, families: dict[str, Family], options: dict[str, Any]
) -> None:
    backbone = families["resnet-pooled"].build(**options)
    save_pretrained(backbone, tmp_path / "net")
    again = from_pretrained(str(tmp_path / "net"))
    assert again.options == backbone.options
    assert (again.channels, again.strides) == (backbone.channels, backbone.strides)
    assert again.frozen_stages == backbone.frozen_stages
    assert equal(backbone, again)
    channels = options.get("in_channels", 3)
    for one, other in zip(maps(backbone, channels), maps(again, channels), strict=True):
        assert torch.equal(one, other)


def test_a_published_network_keeps_its_name(tmp_path: Path) -> None:
    backbone = create_backbone("regnet-x-002", return_idx=(0,))
    save_pretrained(backbone, tmp_path)
    again = from_pretrained(tmp_path)
    assert again.variant == "regnet-x-002"
    assert len(again.stages) == 1
    assert again.load_report is not None
    assert again.load_report.layout == "trunkline"
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    words = json.loads(metadata.pop("trunkline"))
    assert metadata == {"format": "pt"}
    assert words.pop("architecture")["group_width"] == 8
    assert words == {
        **{"format": 2, "layout": "trunkline", "family": "regnet", "variant": "regnet-x-002"},
        "act": "relu",
    }


def test_the_weights_alone_are_an_ordinary_checkpoint(tmp_path: Path) -> None:
    backbone = create_backbone("regnet-x-002")
    backbone.preprocessing = PREPROCESSING
    save_pretrained(backbone, tmp_path)
    other = create_backbone("regnet-x-002")
    report = load_weights(other, tmp_path / "model.safetensors")
    assert report.layout == "trunkline"
    assert equal(backbone, other)
    assert other.preprocessing == PREPROCESSING
    assert convert(tmp_path / "model.safetensors", tmp_path / "x.pth", "timm").variant == (
        "regnet-x-002"
    )


def test_weights_with_the_stride_elsewhere_are_told_apart(tmp_path: Path) -> None:
    save_pretrained(create_backbone("resnet50-caffe", return_idx=(0,)), tmp_path)
    assert from_pretrained(tmp_path).variant == "resnet50-caffe"
    plain = create_backbone("resnet50", return_idx=(0,))
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    with pytest.raises(
        WeightsMismatchError,
        match=r"holds resnet50-caffe, and resnet50 computes something else \(stride_in_1x1 True, "
        r"here False\)\. Nothing was loaded; build resnet50-caffe",
    ):
        load_weights(plain, tmp_path / "model.safetensors")
    assert all(torch.equal(before[n], t) for n, t in plain.state_dict().items())


def test_options_may_be_changed_when_it_is_loaded(
    tmp_path: Path, families: dict[str, Family]
) -> None:
    backbone = families["dla-basic"].build()
    save_pretrained(backbone, tmp_path)
    changed = from_pretrained(tmp_path, return_idx=(1, 0), frozen_stages=1, norm="frozen")
    assert changed.strides == (8, 4)
    assert changed.frozen_stages == 1
    assert len(changed.stages) == 2
    expected = maps(backbone)
    for one, other in zip((expected[1], expected[0]), maps(changed), strict=True):
        torch.testing.assert_close(one, other)
    grey = from_pretrained(tmp_path, in_channels=1)
    weight = backbone.state_dict()["stem.0.conv.weight"]
    assert torch.equal(grey.state_dict()["stem.0.conv.weight"], weight.sum(1, keepdim=True))
    assert from_pretrained(tmp_path).options == backbone.options


def test_what_a_folder_cannot_give_is_an_error(tmp_path: Path, families: dict[str, Family]) -> None:
    save_pretrained(families["dla-basic"].build(return_idx=(1, 0)), tmp_path)
    with pytest.raises(WeightsMismatchError, match=r"Missing: .*stages\.2\."):
        from_pretrained(tmp_path, return_idx=(0, 3))
    with pytest.raises(WeightsMismatchError, match=r"Left over: \d+ \(.*running_mean"):
        from_pretrained(tmp_path, norm="group")
    with pytest.raises(LevelIndexError, match="out of range"):
        from_pretrained(tmp_path, return_idx=(4,))
    with pytest.raises(ConfigError, match="unknown option depth; allowed: act"):
        from_pretrained(tmp_path, depth=3)


def test_saving_again_replaces_the_files(tmp_path: Path, families: dict[str, Family]) -> None:
    first, second = families["regnet-x"].build(seed=1), families["regnet-x"].build(seed=2)
    save_pretrained(first, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    save_pretrained(second, tmp_path)
    assert equal(from_pretrained(tmp_path), second)
    assert not equal(from_pretrained(tmp_path), first)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 4


def test_a_network_may_be_saved_over_the_file_it_was_loaded_from(
    tmp_path: Path, families: dict[str, Family]
) -> None:
    save_pretrained(families["regnet-y"].build(), tmp_path)
    backbone = from_pretrained(tmp_path)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(2)
    save_pretrained(backbone, tmp_path)
    assert equal(from_pretrained(tmp_path), backbone)


def test_channels_last_and_half_precision_are_saved(
    tmp_path: Path, families: dict[str, Family]
) -> None:
    backbone = families["regnet-x"].build().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    save_pretrained(backbone, tmp_path / "last")
    assert equal(from_pretrained(tmp_path / "last"), backbone)
    half = families["regnet-x"].build().half()
    save_pretrained(half, tmp_path / "half")
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert stored["stem.conv.weight"].dtype == torch.float16
    wide = from_pretrained(tmp_path / "half")
    assert wide.load_report is not None
    assert wide.load_report.adapted == ("torch.float16 was cast to torch.float32.",)


# What is written beside the weights.


def test_config_is_plain_and_complete(tmp_path: Path) -> None:
    backbone = create_backbone("dla46-c", return_idx=(1,), in_channels=4)
    save_pretrained(backbone, tmp_path, license="Apache-2.0")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["library"] == "trunkline"
    assert config["version"] == trunkline.__version__
    assert (config["family"], config["variant"]) == ("dla", "dla46-c")
    assert config["options"]["return_idx"] == [1]
    assert config["options"]["in_channels"] == 4
    assert config["architecture"]["channels"] == [64, 64, 128, 256]
    assert (config["preprocessing"], config["license"]) == (None, "Apache-2.0")
    assert config["trained_as"] is None


def test_the_card_says_how_to_use_it(tmp_path: Path) -> None:
    backbone = create_backbone("dla46-c", return_idx=(3, 1))
    backbone.preprocessing = PREPROCESSING
    save_pretrained(backbone, tmp_path, license="BSD-3-Clause")
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlicense: bsd-3-clause\nlibrary_name: trunkline\n")
    assert "# dla46-c" in card
    assert "from_pretrained(" in card
    assert "strides [32, 8], channels [256, 64]" in card
    assert f"{backbone.num_parameters:,}" in card
    assert PREPROCESSING.describe() in card
    assert "- licence: BSD-3-Clause" in card


def test_a_licence_that_the_hub_does_not_know_has_a_name_beside_other(tmp_path: Path) -> None:
    save_pretrained(create_backbone("dla46-c"), tmp_path, license="LicenseRef-SEER")
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlicense: other\nlicense_name: licenseref-seer\n")
    save_pretrained(create_backbone("dla46-c"), tmp_path)
    assert "license" not in (tmp_path / "README.md").read_text()


def test_tag_and_licence_travel_from_folder_to_folder_as_a_file_s_own_word(tmp_path: Path) -> None:
    backbone = create_backbone("regnet-x-002")
    report = LoadReport("pycls", tmp_path / "x.pyth", "0", "pycls", "MIT", "pycls", "", 3)
    backbone.load_report = report  # as of a download by its tag
    for step in ("one", "two", "three"):
        save_pretrained(backbone, tmp_path / step)
        config = json.loads((tmp_path / step / "config.json").read_text())
        assert (config["license"], config["trained_as"]) == ("MIT", "pycls")
        card = (tmp_path / step / "README.md").read_text()
        said = "" if step == "one" else ", as their file says"
        assert f"- weights: pycls{said}\n- licence: MIT{said}\n" in card
        assert card.startswith("---\nlicense: mit\n") == (step == "one")
        backbone = from_pretrained(tmp_path / step)
        assert backbone.load_report is not None
        assert (backbone.load_report.tag, backbone.load_report.license) == (None, None)
        assert backbone.load_report.claims == {"tag": "pycls", "license": "MIT"}
    save_pretrained(backbone, tmp_path / "four", license="MIT")  # now somebody vouches for it
    assert (tmp_path / "four" / "README.md").read_text().startswith("---\nlicense: mit\n")


def test_nobody_agrees_to_a_licence_for_the_next_one(
    tmp_path: Path, families: dict[str, Family]
) -> None:
    backbone = families["regnet-x"].build(allow_noncommercial=True)
    save_pretrained(backbone, tmp_path)
    assert "noncommercial" not in (tmp_path / "config.json").read_text()
    assert not from_pretrained(tmp_path).options.allow_noncommercial
    assert from_pretrained(tmp_path, allow_noncommercial=True).options == backbone.options


# What cannot be saved.


def _own_norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels)


@pytest.mark.parametrize(("option", "value"), [("norm", _own_norm), ("act", nn.ReLU)])
def test_a_callable_cannot_be_saved(
    tmp_path: Path, families: dict[str, Family], option: str, value: object
) -> None:
    options: dict[str, Any] = {option: value}
    backbone = families["regnet-x"].build(**options)
    with pytest.raises(ConfigError, match=f"{option} was given as a callable"):
        save_pretrained(backbone, tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_a_place_that_cannot_be_written(
    tmp_path: Path, families: dict[str, Family], walled: Path
) -> None:
    backbone = families["regnet-x"].build()
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OutputError, match="is a file; give the path of a folder"):
        save_pretrained(backbone, file)
    with pytest.raises(OutputError, match="cannot be written"):
        save_pretrained(backbone, walled / "net")
    assert file.read_text() == ""
