"""What exported files say of themselves, read as somebody without trunkline would."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch
from safetensors.torch import save_file

import trunkline
from trunkline.preprocessing import IMAGENET
from trunkline.runtimes.export import export
from trunkline.runtimes.provenance import state_digest
from trunkline.weights.checkpoint import file_sha256

if TYPE_CHECKING:
    from tests.conftest import Family

onnx: Any = pytest.importorskip("onnx")
openvino: Any = pytest.importorskip("openvino")

Format = Literal["onnx", "openvino", "torch-export", "torchscript"]
SUFFIXES: dict[Format, str] = {
    "onnx": ".onnx",
    "openvino": ".xml",
    "torch-export": ".pt2",
    "torchscript": ".pt",
}


def stated(path: Path, kind: Format) -> dict[str, str]:
    """Read the metadata as somebody without trunkline would."""
    if kind == "onnx":
        return {one.key: one.value for one in onnx.load(path).metadata_props}
    if kind == "openvino":
        info = openvino.Core().read_model(path).get_rt_info(["trunkline"]).value
        return {f"trunkline.{key}": value for key, value in info.items()}
    if kind == "torch-export":
        files: dict[str, Any] = {"trunkline.json": ""}
        torch.export.load(path, extra_files=files)
    else:
        files = {"trunkline.json": ""}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*torch\.jit\.")
            torch.jit.load(path, _extra_files=files)  # type: ignore[no-untyped-call]
    read: dict[str, str] = json.loads(files["trunkline.json"])
    return read


@pytest.mark.parametrize("kind", SUFFIXES)
def test_metadata_is_in_the_file(kind: Format, families: dict[str, Family], tmp_path: Path) -> None:
    backbone = families["resnet-basic"].build(return_idx=(0, 2))
    save_file(backbone.state_dict(), tmp_path / "w.safetensors")
    trunkline.load_weights(backbone, tmp_path / "w.safetensors")
    report = export(backbone, tmp_path / f"net{SUFFIXES[kind]}", kind, preprocess=True)
    found = stated(report.path, kind)
    assert found == report.metadata
    assert found["trunkline.version"] == trunkline.__version__
    assert found["trunkline.precision"] == "fp32"
    assert found["trunkline.state_sha256"] == state_digest(backbone)
    assert json.loads(found["trunkline.outputs"]) == ["stride_4", "stride_16"]
    assert json.loads(found["trunkline.levels"]) == ["stage0", "stage2"]
    assert json.loads(found["trunkline.strides"]) == [4, 16]
    assert json.loads(found["trunkline.channels"]) == list(backbone.channels)
    assert json.loads(found["trunkline.preprocessing"]) == IMAGENET.to_dict()
    weights = json.loads(found["trunkline.weights"])
    assert weights["sha256"] == file_sha256(tmp_path / "w.safetensors")
    assert weights["layout"] == "trunkline"
    assert json.loads(found["trunkline.input"]) == {
        "name": "image",
        "dtype": "uint8",
        "layout": "NHWC",
        "channels": 3,
        "sizes": {"batch": -1, "height": -1, "width": -1},
    }
    assert str(tmp_path) not in json.dumps(found)


def test_digest_is_of_the_numbers(families: dict[str, Family]) -> None:
    one, other = (families["dla-basic"].build() for _ in range(2))
    assert state_digest(one) == state_digest(other)
    assert state_digest(one.bfloat16()) != state_digest(other)
    with torch.no_grad():
        next(other.parameters()).view(-1)[3] += 1e-6
    assert state_digest(families["dla-basic"].build()) != state_digest(other)
