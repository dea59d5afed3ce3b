"""Folders that are not what save_pretrained wrote, and that are not believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

import trunkline
from trunkline import Backbone
from trunkline.errors import (
    CheckpointError,
    TrunklineError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from trunkline.weights.pretrained import from_pretrained, save_pretrained

if TYPE_CHECKING:
    from tests.conftest import Family

pytestmark = pytest.mark.usefixtures("weights_home")


def maps(backbone: Backbone, channels: int = 3) -> list[Tensor]:
    torch.manual_seed(0)
    with torch.inference_mode():
        found: list[Tensor] = backbone.eval()(torch.randn(1, channels, 64, 96))
    return found


@pytest.fixture
def folder(tmp_path: Path, families: dict[str, Family]) -> Path:
    return save_pretrained(families["resnet-pooled"].build(), tmp_path / "net")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(WeightsNotFoundError, match=f"holds no {name}; give a folder that save_pre"):
        from_pretrained(folder)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match=r"none holds no config\.json"):
        from_pretrained(tmp_path / "none")


Edit = Callable[[dict[str, Any]], object]
BROKEN: dict[str, tuple[Edit, str]] = {
    "another library": (lambda c: c.update(library="timm"), "is not trunkline's"),
    "no library": (lambda c: c.pop("library"), r"create_backbone\(NAME, weights=PATH or hf"),
    "another family": (lambda c: c.update(family="vit"), "no family 'vit'"),
    "family of another kind": (
        lambda c: c.update(family=["resnet"]),
        r"Expected `str`, got `array` - at `\$\.family`",
    ),
    "no options": (
        lambda c: c.pop("options"),
        "is not a config of this version .*required field `options`",
    ),
    "options of another kind": (
        lambda c: c.update(options=[1]),
        r"Expected `object`, got `array` - at `\$\.options`",
    ),
    "an option of the future": (lambda c: c["options"].update(window=7), "window"),
    "an option of ours alone": (lambda c: c["options"].update(weights="x"), "weights"),
    "a bad option": (lambda c: c["options"].update(output_stride=7), "output_stride must be"),
    "no architecture": (lambda c: c.pop("architecture"), "required field `architecture`"),
    "architecture of another kind": (
        lambda c: c.update(architecture=None),
        r"got `null` - at `\$\.architecture`",
    ),
    "a field of the future": (lambda c: c["architecture"].update(window=7), "window"),
    "a bad field": (lambda c: c["architecture"].update(depths=[0]), "depths"),
    "a field of another kind": (lambda c: c["architecture"].update(depths="x"), "depths"),
    "no preprocessing": (lambda c: c.pop("preprocessing"), "required field `preprocessing`"),
    "bad preprocessing": (lambda c: c.update(preprocessing={"mean": 1}), "preprocessing"),
    "a flag that is a word": (
        lambda c: c["architecture"].update(bottleneck="no"),
        "Expected `bool`",
    ),
    "a network without end": (
        lambda c: c["architecture"].update(depths=[1, 1, 1, 9**6]),
        "has at most",
    ),
    "channels without end": (lambda c: c["options"].update(in_channels=9**9), "must be at most"),
    "the name of another network": (
        lambda c: c.update(variant="resnet50"),
        "the architecture is not that of variant 'resnet50'",
    ),
    "a name of no network": (lambda c: c.update(variant="x" * 10**6), "is not that of variant"),
    "another format": (lambda c: c.update(format=1), "its format is 1, and 2 is read"),
    "no format": (lambda c: c.pop("format"), "its format is 0, and 2 is read"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_config_that_is_not_ours_is_refused(folder: Path, case: str) -> None:
    edit, message = BROKEN[case]
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["version"] = "9.8.7"
    edit(config)
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message) as caught:
        from_pretrained(folder)
    assert str(path) in str(caught.value)
    if "library" not in case:
        assert f"trunkline 9.8.7, this is {trunkline.__version__}" in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"trunkline"', b'{"a":' + b"[" * 10**6]
)
def test_a_config_that_is_no_config_is_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"config\.json is no config \(.+\); write the folder"
    ):
        from_pretrained(folder)


def test_a_config_of_another_version_that_is_understood_is_read(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "version": "9.8.7", "more": [1]}))
    assert from_pretrained(folder).channels


def test_weights_of_another_network_are_refused(
    folder: Path, tmp_path: Path, families: dict[str, Family]
) -> None:
    other = save_pretrained(families["resnet-grouped"].build(), tmp_path / "other")
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(
        WeightsMismatchError,
        match=r"holds a resnet of one's own, and this network computes something else \(depths .*"
        "build it with that config",
    ):
        from_pretrained(folder)


def test_weights_that_are_cut_off_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        from_pretrained(folder)


def test_training_does_not_reach_the_folder(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    backbone = from_pretrained(folder)
    with torch.no_grad():
        for tensor in backbone.state_dict().values():
            tensor.zero_()
    assert (folder / "model.safetensors").read_bytes() == before
    again = from_pretrained(folder)
    assert again.state_dict()["stem.0.conv.weight"].any()
    expected = maps(again)
    (folder / "model.safetensors").unlink()
    for one, other in zip(expected, maps(again), strict=True):
        assert torch.equal(one, other)


def test_every_error_is_one_of_ours(folder: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        content = (folder / name).read_bytes()
        for cut in (0, 1, 9, len(content) // 2):
            (folder / name).write_bytes(content[:cut])
            with pytest.raises(TrunklineError):
                from_pretrained(folder)
        (folder / name).write_bytes(content)
    assert from_pretrained(folder).channels
