"""``trunkline export``: what it writes and prints, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import trunkline
from trunkline.cli.root import app

onnxruntime: Any = pytest.importorskip("onnxruntime")
openvino: Any = pytest.importorskip("openvino")


def run(*arguments: object) -> Result:
    words = ["export", *map(str, arguments)]
    return CliRunner().invoke(app, words, prog_name="trunkline", catch_exceptions=False)


def names(folder: Path) -> list[str]:
    return sorted(str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file())


def test_a_file_with_the_same_maps(tmp_path: Path) -> None:
    path = tmp_path / "out" / "net.onnx"
    flags = ("--levels", 3, 1, "--seed", 5, "--opset", 17, "--dynamic", "height,width")
    result = run("dla46-c", path, *flags, "--batch", 2)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "The network is RANDOM (--weights none, --seed 5)" in result.stdout
    assert f"file      {path} ({path.stat().st_size:,} bytes)" in result.stdout
    assert re.search(r"sha256    [0-9a-f]{64}\nformat    onnx, fp32, opset 17\n", result.stdout)
    assert "axes      of any size: height, width\noutputs   stride_32, stride_8\n" in result.stdout
    for shape in ("2x225x161", "2x97x129"):
        assert re.search(rf"{shape} +stage3 +32 +\d\.\de-0\d +1\.0000000\n", result.stdout)
    torch.manual_seed(5)
    backbone = trunkline.create_backbone("dla46-c", return_idx=(3, 1)).eval()
    images = np.random.default_rng(0).standard_normal((2, 3, 50, 61), np.float32)
    got = onnxruntime.InferenceSession(path).run(None, {"image": images})
    with torch.no_grad():
        for one, other in zip(got, backbone(torch.from_numpy(images)), strict=True):
            assert np.abs(one - other.numpy()).max() <= 2e-5 * np.abs(other.numpy()).max()


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "net.xml"
    result = run("dla46-c", path, "--format", "openvino", "--preprocess", "--json")
    assert result.exit_code == 0
    assert result.stderr.startswith("The network is RANDOM")
    report = json.loads(result.stdout)
    assert (report["backbone"], report["weights"], report["seed"]) == ("dla46-c", None, 0)
    assert [Path(file["path"]).name for file in report["files"]] == ["net.xml", "net.bin"]
    assert (report["format"], report["opset"], report["loaded"]) == ("openvino", 18, None)
    assert [one["shape"] for one in report["fidelity"]] == [[1, 225, 161], [3, 97, 129]]
    assert json.loads(report["metadata"]["trunkline.input"])["dtype"] == "uint8"
    assert names(tmp_path) == ["net.bin", "net.xml"]


def test_weights_of_a_file(dla46: Path, tmp_path: Path) -> None:
    result = run("dla46-c", tmp_path / "net.onnx", "--weights", dla46, "--json")
    assert result.exit_code == 0
    assert re.fullmatch(r"The preprocessing is ASSUMED: .*\n", result.stderr)
    report = json.loads(result.stdout)
    assert report["loaded"]["layout"] == "timm-dla"
    weights = json.loads(report["metadata"]["trunkline.weights"])
    assert weights["sha256"] == report["loaded"]["sha256"]
    shown = run("dla46-c", tmp_path / "net.onnx", "--weights", dla46, "--levels", 0).stdout
    assert "RANDOM" not in shown
    assert re.search(r"loaded    \d+ tensors from dla46\.safetensors, read as timm-dla", shown)
    assert "licence   " in shown


def test_int8_from_a_folder(photo: str, tmp_path: Path) -> None:
    flags = ("--precision", "int8", "--calibration", Path(photo).parent, "--levels", 0)
    result = run("resnet18", tmp_path / "out" / "net.onnx", *flags)
    assert result.exit_code == 0, result.output
    assert "format    onnx, int8, opset 18" in result.stdout


def test_a_repository_for_triton(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    flags = ("--serve", "triton", "--repo", repo, "--size", "64x96", "--max-batch-size", 4)
    result = run("dla46-c", *flags)
    assert (result.exit_code, result.stderr) == (0, "")
    assert names(repo) == ["dla46-c/1/model.onnx", "dla46-c/config.pbtxt"]
    config = (repo / "dla46-c" / "config.pbtxt").read_text()
    assert "max_batch_size: 4\n" in config
    assert "dims: [3, 64, 96] zero_data" in config
    assert "dims: [3, -1, -1]" in config
    assert f"config    {repo / 'dla46-c' / 'config.pbtxt'}\n" in result.stdout
    assert result.stdout.endswith(f"start     tritonserver --model-repository={repo}\n")
    again = run("dla46-c", "--serve", "triton", "--repo", repo)
    assert again.exit_code == 2
    assert re.search(r"error: .*dla46-c/1 exists.* version=2 is free", again.stderr)


def test_a_repository_for_openvino(tmp_path: Path) -> None:
    flags = ("--serve", "ovms", "--repo", tmp_path, "--name", "net", "--model-version", 7)
    result = run("dla46-c", *flags, "--json", "--levels", 1)
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert (report["server"], report["name"], report["version"]) == ("ovms", "net", 7)
    assert report["export"]["output_names"] == ["stride_8"]
    assert report["start"].startswith("ovms --config_path ")
    assert names(tmp_path) == ["config.json", "net/7/model.bin", "net/7/model.xml"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["resnet18"], r"no OUT was given; give a path such as model\.onnx, or --serve"),
        (["resnet18", "n.onnx", "--repo", "r"], "--repo is for --serve; add --serve triton or"),
        (["resnet18", "--serve", "triton"], "--serve needs --repo"),
        (["resnet18", "n.onnx", "--serve", "triton", "--repo", "r"], "--serve triton decides on"),
        (["resnet18", "--format", "onnx", "--serve", "ovms", "--repo", "r"], "leave OUT and"),
        (["resnet18", "--serve", "torch", "--repo", "r"], "'torch' is unknown; use one of triton"),
        (["resnet18", "n.onnx", "--name", "x"], "--name is for --serve; leave it out"),
        (["resnet18", "n.onnx", "--model-version", "0"], "--model-version is for --serve"),
        (["resnet18", "n.onnx", "--max-batch-size", "8"], "--max-batch-size is for --serve"),
        (["resnet18", "n.onnx", "--size", "320"], "--size 320 fixes axes that --dynamic leaves"),
        (["resnet18", "n.onnx", "--batch", "4"], "--batch 4 fixes an axis that --dynamic leaves"),
        (["resnet18", "n.onnx", "--dynamic", "none", "--size", "original"], "give N or HxW"),
        (["resnet18", "n.onnx", "--dynamic", "none", "--size", "0"], "--size got '0'; give N or"),
        (["resnet18", "n.onnx", "--dynamic", "none", "--batch", "0"], r"\(0, 224, 224\) must be"),
        (["resnet18", "n.onnx", "--dynamic", "time"], r"\('time',\) must .* batch, height, width"),
        (["resnet18", "n.onnx", "--format", "caffe"], "format='caffe' is unknown; use one of onnx"),
        (["resnet18", "n.onnx", "--precision", "bf16"], "'bf16' is not written to files"),
        (["resnet18", "n.onnx", "--opset", "99"], "opset=99 cannot be written; allowed: 14 to 23"),
        (
            ["resnet18", "n.pt2", "--format", "onnx"],
            r"must end in \.onnx .* or use format='torch-export'",
        ),
        (["resnet18", "n.onnx", "--levels", "7"], "holds 7, out of range"),
        (["resnet1800", "n.onnx"], "no variant 'resnet1800'; closest: resnet18"),
    ],
)
def test_what_is_refused(
    arguments: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert re.fullmatch(rf"trunkline: error: .*{text}.*\n", result.stderr), result.stderr
    assert result.stdout == ""
    assert names(tmp_path) == []
