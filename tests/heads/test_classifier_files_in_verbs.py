"""export, deploy and bench give the logits of a classifier's file, as they do of its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import trunkline
from trunkline import Backbone, Classifier, create_backbone, create_classifier
from trunkline.benchmarking.bench import BenchConfig, _network_of, seeded_backbone
from trunkline.cli.root import app
from trunkline.heads.logits import LogitsNetwork
from trunkline.heads.opening import load_network

LABELS = ("tabby", "poodle", "wren")
IMAGES = torch.randn((1, 3, 64, 96), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def own() -> Classifier:
    torch.manual_seed(3)
    return create_classifier("dla46-c", labels=LABELS, pool="max").eval()


@pytest.fixture(scope="module")
def file(own: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "run.pth"
    torch.save(own.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def folder(own: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trunkline.save_pretrained(own, tmp_path_factory.mktemp("folder") / "own")


def run(*arguments: object) -> Any:
    done = CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def logits(own: Classifier) -> Tensor:
    with torch.inference_mode():
        return torch.as_tensor(own(IMAGES))


SAID = "run.pth is a classifier of 3 classes: these are its logits. --levels gives maps of its"


def test_an_export_of_the_file_has_logits(tmp_path: Path, own: Classifier, file: Path) -> None:
    session = pytest.importorskip("onnxruntime").InferenceSession
    out = tmp_path / "own.onnx"
    done = run("export", "dla46-c", out, "--weights", file, "--json")
    assert json.loads(done.stdout)["output_names"] == ["logits"]
    assert SAID in done.stderr
    (got,) = session(out).run(None, {"image": IMAGES.numpy()})
    assert np.allclose(got, logits(own).numpy(), atol=1e-4)


@pytest.mark.parametrize("source", ["file", "folder"])
def test_levels_ask_for_maps(request: pytest.FixtureRequest, tmp_path: Path, source: str) -> None:
    path = request.getfixturevalue(source)
    given = (path,) if source == "folder" else ("dla46-c",)
    weights = () if source == "folder" else ("--weights", path)
    out = tmp_path / "maps.onnx"
    done = run("export", *given, out, *weights, "--levels", "1", "3", "--json")
    assert json.loads(done.stdout)["output_names"] == ["stride_8", "stride_32"]
    assert "is a classifier" not in done.stderr


def test_maps_of_a_saved_classifier_before_the_last(folder: Path) -> None:
    cat = Path(__file__).parents[2] / "examples" / "cat.jpg"
    done = run("features", cat, "--backbone", folder, "--levels", "1", "--size", 64, "--json")
    assert [one["stride"] for one in json.loads(done.stdout)["maps"]] == [8]


def test_a_runner_of_the_file_gives_logits(tmp_path: Path, own: Classifier, file: Path) -> None:
    done = run(
        *("deploy", "dla46-c", "--weights", file, "--runtime", "torch"),
        *("--out", tmp_path / "runner", "--json"),
    )
    assert SAID in done.stderr
    runner = trunkline.load_runner(tmp_path / "runner")
    assert torch.allclose(runner(IMAGES)[0], logits(own), atol=1e-4)


@pytest.mark.parametrize("source", ["file", "folder"])
def test_a_bench_is_one_of_logits(request: pytest.FixtureRequest, source: str) -> None:
    path = request.getfixturevalue(source)
    given = (path,) if source == "folder" else ("dla46-c", "--weights", path)
    done = run(
        *("bench", *given, "--shape", "1x32x32", "--rounds", "1", "--no-memory"),
        *("--runtime", "eager", "--runtime", "torch"),
    )
    assert "at 1x32x32, 1 rounds, to the logits" in done.stdout


def test_peers_meet_maps(own: Classifier, file: Path, folder: Path) -> None:
    against = BenchConfig(against=("timm",), weights=str(file))
    for one in (
        _network_of("dla46-c", against),
        _network_of(str(folder), BenchConfig(against=("timm",))),
        _network_of(own, against),
    ):
        assert not isinstance(one, LogitsNetwork)
    assert isinstance(seeded_backbone("dla46-c", str(file)), LogitsNetwork)
    assert isinstance(seeded_backbone(str(folder), "none"), LogitsNetwork)


def test_other_files_give_maps(tmp_path: Path, own: Classifier, file: Path) -> None:
    torch.save(own.backbone.state_dict(), tmp_path / "backbone.pth")
    trunkline.convert(file, tmp_path / "timm.safetensors", "timm", variant="dla46-c")
    for weights in (tmp_path / "backbone.pth", tmp_path / "timm.safetensors"):
        network = load_network("dla46-c", weights)
        assert not isinstance(network, LogitsNetwork)
        assert network.strides == (4, 8, 16, 32)
    network = load_network("dla46-c", file)
    assert isinstance(network, LogitsNetwork)
    assert isinstance(network, Backbone)
    assert network.load_report is not None
    assert network.load_report.dropped == {}
    random = create_backbone("dla46-c")
    assert random.load_report is None
