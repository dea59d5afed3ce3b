"""``--backbone FOLDER`` and ``hf://…``: what save_pretrained wrote, in every verb that runs one."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from loopback import LoopbackHub
from typer.testing import CliRunner, Result

import trunkline
from trunkline.benchmarking.bench import seeded_backbone
from trunkline.benchmarking.contestants import eager
from trunkline.benchmarking.memory import _ready
from trunkline.cli.bench import bench_command
from trunkline.cli.loaded import build_network
from trunkline.cli.root import app
from trunkline.errors import UnknownVariantError, WeightsNotFoundError
from trunkline.extraction.features import features
from trunkline.images import IMAGENET
from trunkline.weights.opening import is_saved, open_backbone
from trunkline.weights.sources import file_in

if TYPE_CHECKING:
    from tests.conftest import Family


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="trunkline", catch_exceptions=False)


def report(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    assert "RANDOM" not in result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def own(families: dict[str, Family]) -> trunkline.Backbone:
    """A network of one's own, which returns two of its maps and states its preprocessing."""
    backbone = families["resnet-pooled"].build(return_idx=(2, 0)).eval()
    backbone.preprocessing = IMAGENET.with_size(40)
    return backbone


@pytest.fixture
def folder(own: trunkline.Backbone, tmp_path: Path) -> str:
    return str(trunkline.save_pretrained(own, tmp_path / "runs" / "own"))


def test_features_of_a_saved_network(photo: str, folder: str, own: trunkline.Backbone) -> None:
    got = report("features", photo, "--backbone", folder)
    expected = features(photo, own)
    assert got["input_size"] == [40, 40]
    assert (got["weights"], got["seed"]) == ("saved", None)
    assert [(m["level"], m["stride"]) for m in got["maps"]] == [("stage2", 16), ("stage0", 4)]
    for row, one in zip(got["maps"], expected, strict=True):
        assert (row["mean"], row["std"]) == pytest.approx((one.mean, one.std), rel=1e-5)
    one = report("features", photo, "--backbone", folder, "--levels", "1")["maps"]
    assert [m["level"] for m in one] == ["stage1"]
    text = run("features", photo, "--backbone", folder)
    assert text.exit_code == 0
    assert "weights saved" in text.stdout
    assert "RANDOM" not in text.stdout + text.stderr


def test_deploy_of_a_saved_network(folder: str, tmp_path: Path, own: trunkline.Backbone) -> None:
    out = tmp_path / "runner"
    got = report("deploy", folder, "--runtime", "torch", "--out", str(out))
    assert got["variant"] is None
    assert [one["level"] for one in got["fidelity"]] == ["stage2", "stage0"]
    runner = trunkline.load_runner(out)
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for got_map, wanted in zip(runner(images), own(images), strict=True):
            torch.testing.assert_close(got_map, wanted, rtol=1e-4, atol=1e-5)
    assert "of one" in run("deploy", folder, "--runtime", "torch").stdout


def test_export_of_a_saved_network(folder: str, tmp_path: Path) -> None:
    out = tmp_path / "model.pt2"
    got = report("export", folder, str(out), "--format", "torch-export")
    assert (got["backbone"], got["weights"], got["seed"]) == (None, "saved", None)
    assert out.is_file()


def test_extract_of_a_saved_network(photo: str, folder: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    store = tmp_path / "store.parquet"
    arguments = ("extract", str(Path(photo).parent / "*.png"), str(store), "--backbone", folder)
    got = report(*arguments, "--runtime", "torch", "--workers", "1", "--pool", "avg")
    assert (got["images"], got["failed"]) == (1, 0)
    assert got["levels"] == ["stage2_stride_16", "stage0_stride_4"]


def test_bench_of_a_saved_network(folder: str, own: trunkline.Backbone) -> None:
    images = torch.randn(1, 3, 64, 64)
    network = seeded_backbone(folder, "none")
    with torch.inference_mode():
        wanted = own(images)
        assert all(torch.equal(a, b) for a, b in zip(network(images), wanted, strict=True))
    # What a process of its own builds to measure memory.
    job = {**eager(network, images, folder).memory_job(Path(folder)), "threads": 1}
    again: Any = _ready(job)(images.numpy())
    assert all(torch.equal(a, b) for a, b in zip(again, wanted, strict=True))


def test_a_repository_of_the_hub(
    photo: str, folder: str, hub: LoopbackHub, own: trunkline.Backbone
) -> None:
    for path in Path(folder).iterdir():
        hub.add_file("somebody/own", path.name, path.read_bytes())
    got = report("features", photo, "--backbone", "hf://somebody/own")
    expected = features(photo, own)
    assert [m["mean"] for m in got["maps"]] == pytest.approx([m.mean for m in expected], rel=1e-5)


@pytest.mark.parametrize("verb", ["features", "bench"])
def test_a_repository_of_the_hub_comes_with_a_bar(
    photo: str, folder: str, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert photo
    for path in Path(folder).iterdir():
        hub.add_file("somebody/own", path.name, path.read_bytes())
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    if verb == "features":
        network = build_network(
            "hf://somebody/own", "none", None, seed=0, allow_noncommercial=False
        )
        assert network.load_report is not None
    else:
        monkeypatch.setattr("trunkline.benchmarking.bench.bench", lambda *_, **__: {})
        with pytest.raises(AttributeError, match="to_dict"):
            bench_command(["hf://somebody/own"], as_json=True)
    assert "model.safetensors" in screen.getvalue()
    assert hub.gets("model.safetensors") == 1


def test_info_of_a_saved_network(folder: str, own: trunkline.Backbone) -> None:
    got = report("info", folder)
    assert (got["source"], got["variant"], got["family"]) == (folder, None, "resnet")
    assert (got["num_parameters"], got["macs"]) == (own.num_parameters, own.macs())
    assert got["levels"][0]["name"] == "stem"
    assert (got["returned_strides"], got["num_classes"]) == ([16, 4], None)
    assert got["preprocessing"] == IMAGENET.with_size(40).to_dict()
    shown = run("info", folder).stdout
    assert f"{folder}  (a resnet of its own)" in shown
    assert "returns     strides 16, 4" in shown
    assert re.search(r"stage2 +16 +\d+", shown)


def test_info_of_a_saved_classifier(tmp_path: Path) -> None:
    model = trunkline.create_classifier("dla46-c", 7)
    folder = trunkline.save_pretrained(model, tmp_path / "seven", license="MIT")
    shown = run("info", str(folder)).stdout
    assert f"{folder}  (dla46-c)" in shown
    assert "classifier  7 classes" in shown
    assert "licence     MIT" in shown
    assert "not recorded; ImageNet's usual way is assumed" in shown
    (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace('"num_classes": 7', '"num_classes": "x"')
    )
    wrong = run("info", str(folder))
    assert wrong.exit_code == 2
    assert "config.json is no config" in wrong.stderr


def test_info_of_a_repository_fetches_no_weights(folder: str, hub: LoopbackHub) -> None:
    for path in Path(folder).iterdir():
        hub.add_file("somebody/own", path.name, path.read_bytes())
    assert report("info", "hf://somebody/own")["returned_strides"] == [16, 4]
    assert hub.gets("model.safetensors") == 0


def test_info_of_other_folders(tmp_path: Path) -> None:
    wrong = run("info", str(tmp_path))
    assert wrong.exit_code == 2
    assert "holds no config.json; give a folder that save_pretrained wrote" in wrong.stderr


def test_convert_of_a_saved_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trunkline.create_classifier("dla46-c", 7)
    trunkline.save_pretrained(model, tmp_path / "seven")
    monkeypatch.chdir(tmp_path)
    for named in ("seven", "./seven"):
        got = report("convert", named, "timm.safetensors", "--to", "timm")
        assert (got["variant"], got["classifier"]) == ("dla46-c", True)
        again = trunkline.load_classifier("dla46-c", tmp_path / "timm.safetensors")
        for name, tensor in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor)


def test_convert_says_what_a_folder_lacks(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(
        WeightsNotFoundError, match=r"runs is a folder without model\.safetensors, .* no checkpoint"
    ):
        trunkline.convert(tmp_path / "runs", tmp_path / "o.pth", "timm")
    for name in ("b.pth", "a.ckpt", "notes.txt"):
        (tmp_path / "runs" / name).touch()
    wrong = run("convert", str(tmp_path / "runs"), str(tmp_path / "o.pth"), "--to", "timm")
    assert wrong.exit_code == 2
    assert "it holds a.ckpt, b.pth. Give the path of a file." in wrong.stderr


def test_a_folder_called_as_a_tag_is_the_tag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "timm-in1k").mkdir()
    assert file_in("dla34", "timm-in1k") == "timm-in1k"
    with pytest.raises(WeightsNotFoundError, match="is a folder without"):
        file_in("dla34", "./timm-in1k")


@pytest.mark.parametrize(
    "arguments",
    [
        ("features", "PHOTO", "--backbone", "FOLDER"),
        ("deploy", "FOLDER", "--runtime", "torch"),
        ("export", "FOLDER", "model.onnx"),
        ("bench", "FOLDER", "--runtime", "eager"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_weights_beside_a_saved_network_are_refused(
    photo: str, folder: str, arguments: tuple[str, ...]
) -> None:
    words = [word.replace("PHOTO", photo).replace("FOLDER", folder) for word in arguments]
    result = run(*words, "--weights", "default")
    assert result.exit_code == 2
    message = "is a saved backbone, which has its weights, and weights='default' was given too;"
    assert message in result.stderr


def test_a_folder_is_told_from_a_name(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet18").mkdir()
    (tmp_path / "mine").mkdir()
    assert not is_saved("resnet18")  # the variant
    assert not is_saved("facebook/regnet-y-040")
    assert not is_saved("missing/folder")
    assert all(map(is_saved, ("./resnet18", "mine", folder, "runs/own", "hf://somebody/own")))
    with pytest.raises(UnknownVariantError, match="no variant 'nothing'"):
        open_backbone("nothing")


@pytest.mark.parametrize("build", [trunkline.create_backbone, trunkline.ResNet], ids=["name", "c"])
def test_python_points_from_a_folder_to_from_pretrained(
    build: Any, tmp_path: Path, families: dict[str, Family]
) -> None:
    # Without a word, the last part of the path would have been taken for a variant.
    folder = trunkline.save_pretrained(families["resnet-basic"].build(), tmp_path / "resnet18")
    for source in (str(folder), "hf://somebody/resnet18"):
        with pytest.raises(
            UnknownVariantError, match=r"not the name of a .*from_pretrained builds"
        ):
            build(source)
