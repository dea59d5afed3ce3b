"""What an export refuses, and that nothing half-written is left behind by any failure."""

from __future__ import annotations

import errno
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from trunkline import Backbone
from trunkline.errors import (
    ConfigError,
    DeploymentError,
    FidelityError,
    ImageError,
    NotInstalledError,
    OutputError,
    PrecisionError,
)
from trunkline.runtimes import export_formats
from trunkline.runtimes.export import export, format_of_path
from trunkline.runtimes.export_files import written_together
from trunkline.runtimes.onnx_writer import onnx_model

if TYPE_CHECKING:
    from tests.conftest import Family

Format = Literal["onnx", "openvino", "torch-export", "torchscript"]
SUFFIXES: dict[Format, str] = {
    "onnx": ".onnx",
    "openvino": ".xml",
    "torch-export": ".pt2",
    "torchscript": ".pt",
}


@pytest.fixture
def tiny(families: dict[str, Family]) -> Backbone:
    return families["resnet-basic"].build(return_idx=(0,))


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.rglob("*"))


@pytest.mark.parametrize(
    ("kind", "options", "error", "text"),
    [
        ("tensorrt", {}, ConfigError, "'tensorrt' is unknown; use one of onnx, openvino"),
        ("onnx", {"opset": 13}, ConfigError, "opset=13 cannot be written; allowed: 14 to 23"),
        ("onnx", {"opset": 24}, ConfigError, "opset=24 cannot"),
        ("openvino", {"opset": "18"}, ConfigError, "opset='18' cannot"),
        ("torchscript", {"opset": 17}, ConfigError, "opset=17 says nothing .* use onnx or openv"),
        ("onnx", {"dynamic": ("time",)}, ConfigError, r"\('time',\) must .* batch, height, width"),
        ("onnx", {"dynamic": ("batch", "batch")}, ConfigError, "at most once"),
        ("onnx", {"dynamic": "batch"}, ConfigError, "dynamic='batch' must be a sequence"),
        ("torchscript", {"dynamic": ()}, ConfigError, r"fixes no sizes, so dynamic=\(\) would"),
        ("onnx", {"input_shape": (1, 0, 9)}, ConfigError, r"\(1, 0, 9\) must be \(N, H, W\)"),
        ("onnx", {"input_shape": (True, 8, 9)}, ConfigError, "integers from 1 on"),
        ("onnx", {"input_shape": 224}, ConfigError, "input_shape=224 must be"),
        ("onnx", {"preprocess": 1}, ConfigError, "preprocess must be True or False, got 1"),
        ("onnx", {"simplify": True}, ConfigError, "unknown option simplify; allowed: calibration"),
        ("onnx", {"precision": "fp16"}, PrecisionError, "'fp16' is unknown; onnx holds fp32 and"),
        ("onnx", {"precision": "bf16"}, PrecisionError, r"not written .* deploy\(backbone"),
        ("torch-export", {"precision": "int8"}, PrecisionError, "cannot hold int8; use onnx or"),
        ("onnx", {"precision": "int8"}, ConfigError, "fitted to photos; give calibration="),
        ("onnx", {"calibration": "photos"}, ConfigError, "is for precision='int8', got .*'fp32'"),
    ],
)
def test_options_outside_what_is_allowed(
    kind: Any, options: dict[str, Any], error: type[Exception], text: str, tmp_path: Path, tiny: Any
) -> None:
    with pytest.raises(error, match=text):
        export(tiny, tmp_path / "new" / "net.onnx", kind, **options)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        (
            "onnx",
            "net.pt",
            "must end in .onnx for format='onnx'; .*, or use .*'torchscript'",
        ),
        ("openvino", "net.bin", "must end in .xml for format='openvino'; rename it"),
        ("torch-export", "net.pt", "must end in .pt2"),
        ("torchscript", "net", "must end in .pt "),
        ("onnx", "", "must end in .onnx"),
    ],
)
def test_a_suffix_of_another_format(
    kind: Format, name: str, text: str, tiny: Backbone, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=text):
        export(tiny, tmp_path / name, kind)
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", SUFFIXES)
def test_what_is_no_backbone_with_numbers(
    kind: Format, families: dict[str, Family], tmp_path: Path
) -> None:
    path = tmp_path / f"net{SUFFIXES[kind]}"
    with pytest.raises(ConfigError, match="backbone is expected, got Linear; create_backbone"):
        export(nn.Linear(3, 3), path, kind)  # type: ignore[arg-type]
    with torch.device("meta"):
        empty = families["dla-basic"].create()
    with pytest.raises(ConfigError, match=r"on the meta device .* load weights into it first"):
        export(empty, path, kind)
    four = families["dla-basic"].build(in_channels=4)
    with pytest.raises(ConfigError, match=r"preprocess=True makes three channels, .* takes 4"):
        export(four, path, kind, preprocess=True)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("kind", "library", "extra"),
    [
        ("onnx", "onnx", "onnx"),
        ("onnx", "onnxruntime", "onnx"),
        ("openvino", "onnx", "onnx"),
        ("openvino", "openvino", "openvino"),
    ],
)
def test_a_library_that_is_not_installed(
    kind: Format,
    library: str,
    extra: str,
    tiny: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    install = rf'needs {library}, which .* install it with: pip install "trunkline\[{extra}\]"'
    with pytest.raises(NotInstalledError, match=install):
        export(tiny, tmp_path / f"net{SUFFIXES[kind]}", kind)
    assert names(tmp_path) == []


def test_calibration_that_cannot_be_read(tiny: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    with pytest.raises(ImageError, match="'nowhere' does not exist; give a folder"):
        export(tiny, path, precision="int8", calibration="nowhere")
    (tmp_path / "a.jpg").write_bytes(b"no photo")
    with pytest.raises(ImageError, match=r"calibration image 0: .*a\.jpg"):
        export(tiny, path, precision="int8", calibration=tmp_path)
    assert names(tmp_path) == ["a.jpg"]


@pytest.mark.parametrize("kind", SUFFIXES)
def test_a_folder_in_the_way(kind: Format, tiny: Backbone, tmp_path: Path) -> None:
    (tmp_path / f"net{SUFFIXES[kind]}").mkdir()
    with pytest.raises(OutputError, match=r"net\.\w+ is a folder; give the path of a file"):
        export(tiny, tmp_path / f"net{SUFFIXES[kind]}", kind)
    assert names(tmp_path) == [f"net{SUFFIXES[kind]}"]


def test_a_folder_in_the_way_of_the_second_file(tiny: Backbone, tmp_path: Path) -> None:
    (tmp_path / "net.bin").mkdir()
    (tmp_path / "net.xml").write_text("old")
    with pytest.raises(OutputError, match=r"net\.bin is a folder, and a file has to be there"):
        export(tiny, tmp_path / "net.xml", "openvino")
    assert names(tmp_path) == ["net.bin", "net.xml"]
    assert (tmp_path / "net.xml").read_text() == "old"


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """Let writing fail in the kernel, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", SUFFIXES)
def test_writing_that_fails_leaves_the_old_files(
    kind: Format, tiny: Backbone, tmp_path: Path
) -> None:
    old = [f"net{SUFFIXES[kind]}"] + (["net.bin"] if kind == "openvino" else [])
    for name in old:
        (tmp_path / name).write_text("old")
    with (
        no_file_beyond(4096),
        pytest.raises(OutputError, match=r"cannot be written: .*choose another place"),
    ):
        export(tiny, tmp_path / f"net{SUFFIXES[kind]}", kind)
    assert names(tmp_path) == sorted(old)
    assert all((tmp_path / name).read_text() == "old" for name in old)


def test_a_full_disk_is_named(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"net\.pt2 cannot be written: No space left on device"):
        export(tiny, tmp_path / "net.pt2", "torch-export", dynamic=(), input_shape=(1, 32, 32))
    assert names(tmp_path) == []


def test_a_file_that_computes_other_maps_is_not_kept(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dishonest(*arguments: Any, **options: Any) -> Any:
        model = onnx_model(*arguments, **options)
        weight = max(model.graph.initializer, key=lambda one: len(one.raw_data))
        numbers = np.frombuffer(weight.raw_data, np.float32).copy()
        numbers[0] += 0.1
        weight.raw_data = numbers.tobytes()
        return model

    export(tiny, tmp_path / "net.onnx")
    before = (tmp_path / "net.onnx").read_bytes()
    monkeypatch.setattr(export_formats, "onnx_model", dishonest)
    for kind in ("onnx", "openvino"):
        with pytest.raises(FidelityError, match=f"the {kind} file at 1x225x161 differs .* stage0"):
            export(tiny, tmp_path / f"net{SUFFIXES[kind]}", kind)
    assert names(tmp_path) == ["net.onnx"]
    assert (tmp_path / "net.onnx").read_bytes() == before


def test_a_graph_that_an_engine_refuses(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown_operator(*arguments: Any, **options: Any) -> Any:
        model = onnx_model(*arguments, **options)
        model.graph.node[0].op_type = "Convolve"
        return model

    monkeypatch.setattr(export_formats, "onnx_model", unknown_operator)
    for kind, engine in (("onnx", r"onnx\.checker"), ("openvino", "openvino")):
        with pytest.raises(DeploymentError, match=f"{engine} refuses the graph: .*Convolve"):
            export(tiny, tmp_path / f"net{SUFFIXES[kind]}", kind)  # type: ignore[index, arg-type]
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_layer_that_onnx_has_no_operator_for(
    kind: Format, families: dict[str, Family], tmp_path: Path
) -> None:
    backbone = families["resnet-basic"].build(return_idx=(0,), act=nn.Softplus)
    with pytest.raises(DeploymentError, match=r"Softplus, which .* or format='torch-export'"):
        export(backbone, tmp_path / f"net{SUFFIXES[kind]}", kind)
    assert names(tmp_path) == []


def test_openvino_needs_the_weights_in_one_message(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_formats, "MESSAGE_BYTES", 1000)
    with pytest.raises(DeploymentError, match=r"at most 2 GB; use format='onnx' or 'torch-export'"):
        export(tiny, tmp_path / "net.xml", "openvino")
    assert names(tmp_path) == []


def write_three(path: Path) -> None:
    with written_together(path) as written:
        for name in ("a.bin", "b.bin", path.name):
            written.with_name(name).write_text("new")


@pytest.mark.parametrize("failing", ["b.bin", "net.xml"])
def test_files_are_replaced_together_or_not_at_all(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b.bin", "net.xml"):
        (tmp_path / name).write_text("old")
    move = Path.replace

    def fails(self: Path, target: Path) -> Path:
        if self.name == failing and self.parent != tmp_path:
            raise OSError(errno.EIO, "Input/output error")
        return move(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OutputError, match="Input/output error; choose another place"):
        write_three(tmp_path / "net.xml")
    assert names(tmp_path) == ["b.bin", "net.xml"]
    assert [(tmp_path / name).read_text() for name in names(tmp_path)] == ["old", "old"]


def test_files_that_are_replaced(tmp_path: Path) -> None:
    for name in ("net.bin", "net.xml", "other"):
        (tmp_path / name).write_text("old")
    with written_together(tmp_path / "net.xml") as written:
        for name in ("net.bin", "net.xml"):
            written.with_name(name).write_text("new")
    assert names(tmp_path) == ["net.bin", "net.xml", "other"]
    assert [(tmp_path / name).read_text() for name in names(tmp_path)] == ["new", "new", "old"]


def test_a_place_below_a_file(tiny: Backbone, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(OutputError, match=r"net\.onnx cannot be written: .*choose another place"):
        export(tiny, tmp_path / "file" / "net.onnx")
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("ending", "name"),
    [(".onnx", "onnx"), (".xml", "openvino"), (".pt2", "torch-export"), (".PT", "torchscript")],
)
def test_the_ending_says_the_format(ending: str, name: str) -> None:
    assert format_of_path(f"a/b{ending}") == name


def test_an_ending_of_no_format_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"has an ending of no format; use one of \.onnx \(onnx\)"
    ):
        format_of_path("b.engine")
