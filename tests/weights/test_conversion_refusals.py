"""What convert() refuses, which leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from upstream_files import hollow_tensors, saved

from trunkline import create_backbone
from trunkline.errors import (
    ConfigError,
    OutputError,
    UnknownLayoutError,
    UnknownVariantError,
    UnsafeCheckpointError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from trunkline.weights.checkpoint import read_checkpoint
from trunkline.weights.conversion import convert
from trunkline.weights.layouts import TARGETS

pytestmark = pytest.mark.usefixtures("weights_home")


def refuse(
    source: Path, dst: Path, to: str, error: type[Exception], match: str, **more: Any
) -> None:
    folder = dst.parent
    before = sorted(folder.iterdir()) if folder.is_dir() else None
    content = dst.read_bytes() if dst.is_file() else None
    with pytest.raises(error, match=match):
        convert(source, dst, to, **more)
    assert (sorted(folder.iterdir()) if folder.is_dir() else None) == before
    assert (dst.read_bytes() if dst.is_file() else None) == content


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return saved(tmp_path / "source.safetensors", hollow_tensors("timm-dla", "dla46-c"))


def test_an_unknown_target_is_refused(tmp_path: Path, source: Path) -> None:
    allowed = ", ".join(TARGETS)
    refuse(source, tmp_path / "x.pth", "keras", ConfigError, f"to='keras' .*allowed: {allowed}")


@pytest.mark.parametrize(
    ("name", "to"), [("x.onnx", "timm"), ("x", "timm"), ("x.pkl", "timm"), ("x.tar.gz", "dla")]
)
def test_an_ending_that_is_not_written_is_refused(
    tmp_path: Path, source: Path, name: str, to: str
) -> None:
    refuse(source, tmp_path / name, to, OutputError, f"not written for {to}; use .safetensors")


@pytest.mark.parametrize(
    ("to", "instead"),
    [("torchvision", "timm, rtdetr, dla"), ("pycls", "timm"), ("detectron2", "timm")],
)
def test_a_network_that_the_target_lacks_is_refused(
    tmp_path: Path, source: Path, to: str, instead: str
) -> None:
    message = f"{to} has no dla46-c; it can be written for: trunkline, {instead}"
    refuse(source, tmp_path / "x.pth", to, WeightsMismatchError, message)


def test_what_is_no_checkpoint_of_ours_is_refused(tmp_path: Path) -> None:
    foreign = saved(tmp_path / "f.safetensors", {"visual.conv1.weight": torch.zeros(3)})
    message = "looks like none of our networks"
    refuse(foreign, tmp_path / "x.pth", "timm", UnknownLayoutError, message)
    tensors = hollow_tensors("timm-dla", "dla46-c")
    del tensors["level5.root.bn.bias"]
    part = saved(tmp_path / "p.safetensors", tensors)
    message = r"most like dla46-c as timm's DLA names it \(99% of its tensors, 0 unexplained\)"
    refuse(part, tmp_path / "x.pth", "timm", UnknownLayoutError, message)
    message = r"Missing: 1 \(level5\.root\.bn\.bias\)"
    refuse(part, tmp_path / "x.pth", "timm", WeightsMismatchError, message, variant="dla46-c")


def test_a_wrong_name_is_refused(tmp_path: Path, source: Path) -> None:
    dst = tmp_path / "x.pth"
    message = "The file holds dla46-c as timm's DLA"
    refuse(source, dst, "timm", WeightsMismatchError, message, variant="dla46x-c")
    refuse(source, dst, "timm", UnknownVariantError, "no variant 'dla47'", variant="dla47")
    refuse(source, dst, "timm", ConfigError, "no layout 'x'", variant="dla46-c", layout="x")
    refuse(source, dst, "timm", UnknownLayoutError, "looks most like|whole", layout="pycls")


def test_names_that_do_not_tell_the_stride_have_to_be_helped(tmp_path: Path) -> None:
    with torch.device("meta"):
        state = create_backbone("resnet50-caffe").state_dict()
    tensors = {name: torch.empty_like(tensor, device="cpu") for name, tensor in state.items()}
    unsaid = saved(tmp_path / "unsaid.safetensors", tensors)
    message = "fits resnet50 and resnet50-caffe, .* say variant=NAME"
    refuse(unsaid, tmp_path / "x.pth", "detectron2", UnknownLayoutError, message)
    report = convert(unsaid, tmp_path / "x.pth", "detectron2", variant="resnet50-caffe")
    assert report.written_as == "detectron2-msra"
    said = saved(tmp_path / "said.safetensors", tensors, {"variant": "resnet50-caffe"})
    assert convert(said, tmp_path / "x.pth", "detectron2").variant == "resnet50-caffe"
    message = "calls itself resnet50-caffe, and resnet50 computes something else"
    refuse(said, tmp_path / "y.pth", "timm", WeightsMismatchError, message, variant="resnet50")


def test_a_source_that_is_not_there_is_refused(tmp_path: Path) -> None:
    dst = tmp_path / "x.pth"
    refuse(tmp_path / "none.pth", dst, "timm", WeightsNotFoundError, "no file")
    with pytest.raises(WeightsNotFoundError, match="is no file here, and no tag"):
        convert("torchvision-in1k-v1", dst, "timm")


def test_a_place_that_cannot_be_written_is_refused(
    tmp_path: Path, source: Path, walled: Path
) -> None:
    folder = tmp_path / "folder.pth"
    folder.mkdir()
    refuse(source, folder, "timm", OutputError, "is a folder; give the path of a file")
    assert list(folder.iterdir()) == []
    refuse(source, walled / "x.pth", "timm", OutputError, "cannot be written")


def test_an_old_file_survives_a_failed_conversion(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dst = tmp_path / "x.pth"
    dst.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    refuse(source, dst, "timm", OutputError, "No space left on device")
    assert dst.read_text() == "old"


class _Poison:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


def test_a_poisoned_source_is_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / "x.pth"
    torch.save({"state_dict": hollow_tensors("timm-dla", "dla46-c"), "x": _Poison(canary)}, path)
    refuse(path, tmp_path / "y.pth", "timm", UnsafeCheckpointError, "mkdir")
    assert not canary.exists()


def test_what_is_written_is_read_by_the_restricted_reader(tmp_path: Path, source: Path) -> None:
    for name, format_ in (("x.pth", "torch-zip"), ("x.safetensors", "safetensors")):
        path = convert(source, tmp_path / name, "timm").path
        checkpoint = read_checkpoint(path)
        assert (checkpoint.format, checkpoint.container, checkpoint.notes) == (format_, "", ())
