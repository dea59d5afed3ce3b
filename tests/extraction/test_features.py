"""The maps of one photo: what is run, in which mode, and what the file says."""

from __future__ import annotations

import dataclasses
import doctest
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import trunkline
from trunkline.errors import ConfigError, ImageError, InputError, OutputError
from trunkline.extraction import features as module
from trunkline.extraction.features import FeatureMap, features, preprocessing_of, save_features
from trunkline.heads.classifier import Classifier, ClassifierHead
from trunkline.images import IMAGENET, decode_image, preprocess

ROOT = Path(__file__).parents[2]
SMALL = IMAGENET.with_size(33)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    noise = torch.randint(256, (40, 50, 3), generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.byte().numpy()).save(path)
    return path


def tiny(**options: Any) -> trunkline.Backbone:
    torch.manual_seed(0)
    return trunkline.create_backbone("resnet18", **options)


def test_maps_are_those_of_the_backbone_in_eval_mode(photo: Path) -> None:
    backbone = tiny(return_idx=(2, 0))
    maps = features(photo, backbone, preprocessing=SMALL)
    backbone.eval()
    with torch.no_grad():
        expected = backbone(preprocess(decode_image(photo), SMALL)[None])
    assert [(m.level, m.stride) for m in maps] == [("stage2", 16), ("stage0", 4)]
    assert [m.shape for m in maps] == [(256, 3, 3), (64, 9, 9)]
    for one, tensor in zip(maps, expected, strict=True):
        assert torch.equal(one.tensor, tensor[0])
        assert one.mean == pytest.approx(tensor.mean().item(), rel=1e-4)
        assert one.std == pytest.approx(tensor.std(correction=0).item(), rel=1e-4)
        assert (one.dtype, one.model, one.preprocessing) == ("float32", "resnet18", SMALL)


def test_modes_of_all_modules_and_statistics_stay(photo: Path) -> None:
    backbone = tiny(frozen_stages=1).train()
    backbone.stages[2].eval()  # by hand, which train() would undo
    before = [module.training for module in backbone.modules()]
    state = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    features(photo, backbone, preprocessing=SMALL)
    assert {True, False} == set(before)
    assert [module.training for module in backbone.modules()] == before
    assert all(torch.equal(state[name], now) for name, now in backbone.state_dict().items())


def test_modes_stay_when_the_backbone_fails(photo: Path) -> None:
    backbone = tiny().train()

    def fails(*_: object) -> None:
        raise RuntimeError("no memory")

    backbone.stages[1].register_forward_hook(fails)
    with pytest.raises(RuntimeError, match="no memory"):
        features(photo, backbone, preprocessing=SMALL)
    assert backbone.training


def test_a_backbone_of_other_channels_takes_no_photo(photo: Path) -> None:
    with pytest.raises(InputError, match=r"takes 1 channels, and a photo has three.*in_channels=3"):
        features(photo, tiny(in_channels=1), preprocessing=SMALL)


def test_a_head_may_train_on_the_maps(photo: Path) -> None:
    [one] = features(photo, tiny(return_idx=(3,)), preprocessing=SMALL)
    assert not one.tensor.is_inference()
    scale = torch.ones(1, requires_grad=True)
    [gradient] = torch.autograd.grad((one.tensor * scale).sum(), scale)
    assert gradient.item() == pytest.approx(one.tensor.sum().item(), rel=1e-5)


def test_image_follows_the_dtype_of_the_backbone(photo: Path) -> None:
    [one] = features(photo, tiny(return_idx=(0,)).double(), preprocessing=SMALL)
    assert one.dtype == "float64"


def test_preprocessing_of_the_backbone_comes_before_imagenet(photo: Path) -> None:
    backbone = tiny(return_idx=(0,))
    assert preprocessing_of(backbone) is IMAGENET
    backbone.preprocessing = dataclasses.replace(SMALL, channel_order="BGR")
    [own] = features(photo, backbone)
    assert own.preprocessing is backbone.preprocessing
    [rgb] = features(photo, backbone, preprocessing=SMALL)
    assert rgb.shape == own.shape
    assert not torch.equal(rgb.tensor, own.tensor)
    with pytest.raises(ConfigError, match=r"preprocessing is a dict; set a Preprocessing, or None"):
        backbone.preprocessing = {"resize": 256}  # type: ignore[assignment]
    assert backbone.preprocessing is own.preprocessing


def test_several_photos_give_a_list_each(photo: Path) -> None:
    backbone = tiny(return_idx=(1, 0))
    one = features(photo, backbone, preprocessing=SMALL)
    array = np.asarray(decode_image(photo))
    several: Any
    for several in (
        [photo, str(photo)],
        (path.read_bytes() for path in (photo, photo)),
        (decode_image(photo), torch.from_numpy(array.copy())),
        np.stack([array, array]),
    ):
        found: Any = features(several, backbone, preprocessing=SMALL)
        assert [[m.level for m in maps] for maps in found] == [["stage1", "stage0"]] * 2
        for maps in found:
            assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(maps, one, strict=True))
    assert features([], backbone) == []
    alone: Any = features(array[None], backbone, preprocessing=SMALL)
    assert torch.equal(alone[0][0].tensor, one[0].tensor)
    assert torch.equal(features(array, backbone, preprocessing=SMALL)[0].tensor, one[0].tensor)


def test_photos_of_different_sizes_each_keep_theirs() -> None:
    backbone = tiny(return_idx=(0,))
    own_size = IMAGENET.with_size(None)
    shapes = [np.zeros((h, w, 3), np.uint8) for h, w in ((33, 40), (50, 20))]
    found = features(shapes, backbone, preprocessing=own_size)
    assert [maps[0].shape for maps in found] == [(64, 9, 10), (64, 13, 5)]


def test_a_classifier_and_an_average_are_their_backbone(photo: Path) -> None:
    backbone = tiny(return_idx=(3,))
    classifier = Classifier(backbone, ClassifierHead(512, 4))
    averaged = torch.optim.swa_utils.AveragedModel(classifier)
    [expected] = features(photo, backbone, preprocessing=SMALL)
    for wrapped in (classifier, averaged):
        [got] = features(photo, wrapped, preprocessing=SMALL)
        assert torch.equal(got.tensor, expected.tensor)
        assert got.model == "resnet18"


@pytest.mark.parametrize("preprocess_inside", [False, True], ids=["normalised", "pixels"])
def test_a_runner_gives_the_maps_of_its_backbone(photo: Path, preprocess_inside: bool) -> None:
    backbone = tiny(return_idx=(0, 1))
    runner = trunkline.deploy(backbone, runtime="torch", preprocess=preprocess_inside)
    expected = features(photo, backbone, preprocessing=SMALL)
    got = features(photo, runner, preprocessing=SMALL)
    assert [(m.level, m.stride, m.model) for m in got] == [
        (m.level, m.stride, m.model) for m in expected
    ]
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.tensor, other.tensor, rtol=1e-4, atol=1e-5)
    assert runner.preprocessing == IMAGENET
    if preprocess_inside:
        other_numbers = dataclasses.replace(SMALL, mean=(0.0, 0.0, 0.0))
        with pytest.raises(ConfigError, match="the runner normalises by itself"):
            features(photo, runner, preprocessing=other_numbers)


@pytest.mark.parametrize("given", ["resnet18", None, torch.nn.Linear(2, 2)], ids=repr)
def test_what_is_no_backbone(photo: Path, given: Any) -> None:
    with pytest.raises(ConfigError, match=r"takes a backbone, a runner, .*, got \w+; create_back"):
        features(photo, given)


def test_bad_photo(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.jpg does not exist"):
        features(tmp_path / "none.jpg", tiny(return_idx=(0,)))


def test_file_holds_the_maps_and_where_they_come_from(photo: Path, tmp_path: Path) -> None:
    # Two levels of one stride: their names must differ.
    backbone = tiny(return_idx=(3, 1), return_stem=True, output_stride=8)
    maps = features(photo, backbone, preprocessing=SMALL)
    path = tmp_path / "new" / "folder" / "maps.safetensors"
    assert save_features(maps, path, metadata={"weights": "none"}) == path
    assert [p.name for p in path.parent.iterdir()] == ["maps.safetensors"]
    with safe_open(path, "pt") as file:
        header = file.metadata()
        names = [f"{m.level}_stride_{m.stride}" for m in maps]
        assert names == ["stem_stride_2", "stage3_stride_8", "stage1_stride_8"]
        assert sorted(file.keys()) == sorted(names)
        for name, one in zip(names, maps, strict=True):
            assert torch.equal(file.get_tensor(name), one.tensor)
    assert header["model"] == "resnet18"
    assert json.loads(header["levels"]) == ["stem", "stage3", "stage1"]
    assert json.loads(header["strides"]) == [2, 8, 8]
    assert json.loads(header["preprocessing"]) == SMALL.to_dict()
    assert header["trunkline"] == trunkline.__version__
    assert header["weights"] == "none"


def one_map(**changes: Any) -> FeatureMap:
    one = FeatureMap("stage0", 4, torch.arange(6.0).reshape(1, 2, 3), "tiny", IMAGENET)
    return dataclasses.replace(one, **changes)


def test_old_file_is_replaced_and_survives_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "maps.safetensors"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OutputError, match=r"No space left on device; choose another place"):
            save_features([one_map()], path)
    assert path.read_bytes() == b"old"
    save_features([one_map()], path)
    assert path.read_bytes() != b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    with pytest.raises(OutputError, match=r"folder\.safetensors is a folder; give the path of a f"):
        save_features([one_map()], folder)
    photo = tmp_path / "cat.jpg"
    photo.write_bytes(b"photo")
    with pytest.raises(OutputError, match=r"cat\.jpg does not end in \.safetensors.*rename it"):
        save_features([one_map()], photo)
    with pytest.raises(OutputError, match=r"cannot be written: (File exists|Not a dir).*; choose"):
        save_features([one_map()], photo / "maps.safetensors")
    assert photo.read_bytes() == b"photo"


def test_maps_that_make_no_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "maps.safetensors"
    wrong: Any = {"seed": 0}
    with pytest.raises(ConfigError, match=r"no maps to save; give what features\(\) returned"):
        save_features([], path)
    for other in (one_map(), one_map(level="stage1", model="b"), one_map(preprocessing=SMALL)):
        with pytest.raises(ConfigError, match=r"do not come from one call of features\(\); save"):
            save_features([one_map(), other], path)
    with pytest.raises(ConfigError, match=r"metadata model is written by save_features; rename"):
        save_features([one_map()], path, metadata={"model": "mine"})
    with pytest.raises(ConfigError, match=r"metadata 'seed': 0 must be text; convert it with str"):
        save_features([one_map()], path, metadata=wrong)
    assert not path.parent.exists()


def test_examples_in_docstrings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
