"""Files that are no checkpoints are told by what they are."""

from __future__ import annotations

import gzip
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import Tensors, arrays
from safetensors.torch import save_file

from trunkline.errors import CheckpointError, UnsafeCheckpointError, WeightsNotFoundError
from trunkline.weights.checkpoint import file_sha256, read_checkpoint


@pytest.mark.parametrize("read", [read_checkpoint, file_sha256])
def test_no_such_file(tmp_path: Path, read: Callable[[Path], object]) -> None:
    for path in (tmp_path / "missing.pth", tmp_path / "missing" / "model.pth"):
        with pytest.raises(WeightsNotFoundError, match=r"no file .*; give the path"):
            read(path)


@pytest.mark.parametrize("read", [read_checkpoint, file_sha256])
def test_a_folder(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(CheckpointError, match=r"\S+ is a folder; give the path of the file"):
        read(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        read_checkpoint(tmp_path / "pipe")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "model.pth"
    path.write_bytes(b"\x80\x02}.")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=r"model\.pth cannot be opened: Permission denied"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"model\.pth cannot be read: Permission denied"):
        file_sha256(path)


def test_a_path_that_cannot_be() -> None:
    with pytest.raises(CheckpointError, match="cannot be opened"):
        read_checkpoint("null\0character")


def _gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(b"weights"))


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as file:
        file.addfile(tarfile.TarInfo("storages"))


def _npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, weight=np.ones(2))


def _torchscript(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            file.writestr(f"net/{name}", b"")


def _photos(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("photos/cat.jpg", b"")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty. Download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html><body>404", "page of HTML or XML.*It begins '<!DOCTYPE html>"),
        (b"\n\n<?xml version='1.0'?><Error>AccessDenied</Error>", "page of HTML or XML"),
        (b'{"error": "Repository not found"}', "is text, not a checkpoint"),
        (b"Not Found", "is text, not a checkpoint.*It begins 'Not Found'"),
        (b"Page not found", "is text, not a checkpoint"),
        (b"(a remark) about weights", "is text, not a checkpoint"),
        (b"import torch\nimport os\n", "is text, not a checkpoint"),
        (_gzip, "gzip archive. Unpack it first"),
        (_tar, "tar archive. Unpack it"),
        (_npz, r"holds numpy's .npy files. Read it with numpy\.load"),
        (_torchscript, "TorchScript program, not a checkpoint.*torch.jit.load"),
        (_photos, r"no NAME/data\.pkl among its 1 members \('photos/cat\.jpg'\)"),
        (b"PK\x05\x06" + b"\0" * 18, "empty zip archive"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 100, "HDF5 file"),
        (b"\x93NUMPY\x01\0" + b"\0" * 100, "single numpy array"),
        (b"GGUF\x03\0\0\0", "GGUF file"),
        (b"\0" * 100, "is no checkpoint, or damaged: byte 0 is no instruction"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "is no checkpoint, or damaged"),
        (pickle.dumps([1, 2]), "holds a list, not a dictionary of tensors by name"),
        (pickle.dumps(3), "holds a single value, not a dictionary"),
        (pickle.dumps({}), "holds no tensors where a state dict could be. Its keys: none"),
        (pickle.dumps({"a": {"b": 1}}), r"Its keys: a\. Save a state_dict"),
        (pickle.dumps({"\x1b[31mred": 1}), r"Its keys: '\\x1b\[31mred'"),
        (pickle.dumps({"w": np.ones(2)}) + b"x", "1 bytes follow its end"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2), "cut off"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1), "unknown version of torch"),
        (
            pickle.dumps(0x1950A86A20F9469CFC6C, 2)
            + pickle.dumps(1001)
            + pickle.dumps({"little_endian": False}),
            "big-endian machine",
        ),
    ],
)
def test_other_files_are_told_by_what_they_are(
    tmp_path: Path, content: bytes | Callable[[Path], None], match: str
) -> None:
    path = tmp_path / "model.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    with pytest.raises(CheckpointError, match=rf"(?s)model\.pth .*{match}") as caught:
        read_checkpoint(path)
    assert not isinstance(caught.value, UnsafeCheckpointError)


@pytest.mark.parametrize("kind", ["zip", "legacy", "numpy", "safetensors"])
def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, state: Tensors, kind: str) -> None:
    path = tmp_path / "model.pth"
    if kind == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    elif kind == "numpy":
        path.write_bytes(pickle.dumps(arrays(state)))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for length in range(1, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"model\.pth (is|was|cannot)"):
            read_checkpoint(path)
