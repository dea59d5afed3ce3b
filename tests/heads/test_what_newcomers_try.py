"""What people try first with classifiers and networks of their own, and what they are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import trunkline
from trunkline import Classifier, create_backbone, create_classifier, load_classifier
from trunkline.backbones.resnet import ResNetConfig
from trunkline.errors import (
    ConfigError,
    UnknownVariantError,
    WeightsMismatchError,
    WeightsNotFoundError,
)

OWN = ResNetConfig(depths=(1, 1, 1, 1), bottleneck=False, width=8)
IMAGES = torch.randn((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))


def test_a_config_stands_in_the_place_of_a_name(tmp_path: Path) -> None:
    assert create_backbone(OWN, return_idx=(3,)).channels == (64,)
    classifier = create_classifier(OWN, labels=["a", "b", "c"]).eval()
    torch.save(classifier.state_dict(), tmp_path / "run.pth")
    again = load_classifier(OWN, tmp_path / "run.pth")
    with torch.no_grad():
        assert torch.equal(again(IMAGES), classifier(IMAGES))
    kept = create_classifier(OWN, 3, weights=str(tmp_path / "run.pth"))
    assert torch.equal(kept.head.linear.weight, classifier.head.linear.weight)
    with pytest.raises(ConfigError, match=r"RegNetConfig, of trunkline\.backbones\.resnet, .dla"):
        create_backbone("resnet18", depths=(1, 1, 1, 1))  # type: ignore[call-arg]


def test_what_was_saved_is_used_as_it_was_saved(tmp_path: Path) -> None:
    backbone = create_backbone(OWN).eval()
    again = trunkline.from_pretrained(trunkline.save_pretrained(backbone, tmp_path / "maps"))
    assert not again.training
    with torch.no_grad():
        assert all(map(torch.equal, again(IMAGES), backbone(IMAGES)))
    card = (tmp_path / "maps" / "README.md").read_text()
    assert "maps = backbone(images)  # images: (N, 3, H, W)" in card
    folder = trunkline.save_pretrained(create_classifier(OWN, 2), tmp_path / "classes")
    card = (folder / "README.md").read_text()
    assert "trunkline.classify(" in card
    assert "backbone(images)" not in card


@pytest.mark.parametrize("labels", [{"dog", "cat"}, {"dog": 1, "cat": 0}], ids=["set", "dict"])
def test_labels_without_an_order_are_refused(labels: object) -> None:
    with pytest.raises(ConfigError, match=r"in the order of the classes, got .*class_to_idx\.get"):
        create_classifier(OWN, labels=labels)  # type: ignore[arg-type]


def test_parts_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Backbone and a ClassifierHead, got ResNet and int; cr"):
        Classifier(create_backbone(OWN), 3)  # type: ignore[arg-type]
    classifier = create_classifier(OWN, 2)
    torch.save(classifier.state_dict(), tmp_path / "run.pth")
    with pytest.raises(ConfigError, match=r"into a backbone, got Classifier; .*its \.backbone"):
        trunkline.load_weights(classifier, tmp_path / "run.pth")  # type: ignore[arg-type]
    with pytest.raises(UnknownVariantError, match=r"run\.pth' is a file, .*--weights FILE"):
        create_backbone(str(tmp_path / "run.pth"))


def test_a_runner_of_logits_is_not_extracted_with(tmp_path: Path) -> None:
    runner = trunkline.deploy(create_classifier(OWN, 2).eval(), "torch", input_shape=(1, 64, 64))
    (tmp_path / "photos").mkdir()
    with pytest.raises(ConfigError, match=r"gives the logits of a classifier, and features are ma"):
        trunkline.extract(tmp_path / "photos", tmp_path / "f.parquet", runner)
    assert [one.name for one in tmp_path.iterdir()] == ["photos"]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """A network of torchvision's names, as a part of somebody's model."""
    folder = tmp_path_factory.mktemp("foreign")
    trunkline.save_pretrained(create_backbone("resnet18"), folder / "saved")
    trunkline.convert(folder / "saved", folder / "tv.pth", "torchvision", variant="resnet18")
    state = torch.load(folder / "tv.pth")
    return {f"model.backbone.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("called", ["head", "fc", "classifier", "head.fc"])
def test_a_head_beside_a_foreign_network_is_loaded(
    foreign: dict[str, torch.Tensor], tmp_path: Path, called: str
) -> None:
    linear = nn.Linear(512, 3)
    own = {f"model.{called}.{name}": one for name, one in linear.state_dict().items()}
    torch.save({"state_dict": foreign | own}, tmp_path / "run.ckpt")
    loaded = load_classifier("resnet18", tmp_path / "run.ckpt")
    assert torch.equal(loaded.head.linear.weight, linear.weight)
    assert torch.equal(loaded.head.linear.bias, linear.bias)
    kept = create_classifier("resnet18", 3, weights=tmp_path / "run.ckpt")
    assert torch.equal(kept.head.linear.weight, linear.weight)
    assert kept.backbone.load_report is not None
    assert kept.backbone.load_report.dropped == {}


OTHERS: dict[str, nn.Module] = {
    "a norm": nn.Sequential(nn.BatchNorm1d(512), nn.Linear(512, 3)),
    "two layers": nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 3)),
    "behind dropout": nn.Sequential(nn.Dropout(), nn.Linear(512, 3)),
    "a norm by name": nn.ModuleDict({"norm": nn.LayerNorm(512), "fc": nn.Linear(512, 3)}),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_head_that_is_no_linear_layer_alone_is_named(
    foreign: dict[str, torch.Tensor], tmp_path: Path, kind: str
) -> None:
    own = {f"model.head.{name}": one for name, one in OTHERS[kind].state_dict().items()}
    torch.save(foreign | own, tmp_path / "run.pth")
    named = r"head\.\w+\.weight \(\d+×512\)"
    with pytest.raises(WeightsMismatchError, match=rf"holds no classifier under a name .*{named}"):
        load_classifier("resnet18", tmp_path / "run.pth")
    report = create_classifier("resnet18", 3, weights=tmp_path / "run.pth").backbone.load_report
    assert report is not None
    assert "may be one" in report.notes[-1]
    ours = {f"net.{n}": one for n, one in create_backbone("resnet18").state_dict().items()}
    torch.save(ours | {n[len("model.") :]: one for n, one in own.items()}, tmp_path / "ours.pth")
    with pytest.raises(WeightsMismatchError, match=rf"holds no classifier under a name .*{named}"):
        load_classifier("resnet18", tmp_path / "ours.pth")


def test_a_wrapped_network_is_named_by_what_holds_it(tmp_path: Path) -> None:
    classifier = create_classifier(OWN, 2).eval()
    averaged: Any = AveragedModel(classifier)
    with pytest.raises(ConfigError, match=r"got AveragedModel; of a wrapper .*\.module or \._orig"):
        trunkline.save_pretrained(averaged, tmp_path / "saved")
    with pytest.raises(ConfigError, match=r"got AveragedModel; .* Of a wrapper .*\.module or \._"):
        trunkline.classify("photo.jpg", averaged)
    with pytest.raises(ConfigError, match=r"got AveragedModel, which has one: give its \.module\."):
        trunkline.deploy(averaged, "torch")
    parallel: Any = nn.DataParallel(classifier.backbone)
    with pytest.raises(ConfigError, match=r"got DataParallel, which has one: give its \.module\."):
        trunkline.deploy(parallel, "torch")


def test_a_saved_folder_is_weights_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    backbone = create_backbone("dla46-c").eval()
    trunkline.save_pretrained(backbone, "mine")
    for given in ("mine", "mine/", "./mine", Path("mine")):
        again = create_backbone("dla46-c", weights=given).eval()
        with torch.no_grad():
            assert all(map(torch.equal, again(IMAGES), backbone(IMAGES)))
    Path("other").mkdir()
    Path("other/run.pth").touch()
    with pytest.raises(WeightsNotFoundError, match=r"without model\.safetensors, .* run\.pth"):
        create_backbone("dla46-c", weights="other")
