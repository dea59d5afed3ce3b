"""``--backbone FOLDER`` and ``hf://…``: what save_pretrained wrote, in every verb that runs one."""

from __future__ import annotations

import json
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
from trunkline.cli.root import app
from trunkline.errors import UnknownVariantError
from trunkline.extraction.features import features
from trunkline.images import IMAGENET
from trunkline.weights.opening import is_saved, open_backbone

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
