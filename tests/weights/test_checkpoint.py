"""Every format of checkpoint file, made here with the real writers."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import WRITERS, Tensors, arrays, assert_same
from safetensors.torch import save_file
from torch import Tensor, nn

from trunkline.errors import CheckpointError, UnsafeCheckpointError
from trunkline.weights.checkpoint import Checkpoint, file_sha256, read_checkpoint

# Formats.


def test_safetensors(tmp_path: Path, state: Tensors) -> None:
    path = tmp_path / "model.safetensors"
    contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(contiguous, path, metadata={"format": "pt", "license": "mit"})
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint, state)
    assert checkpoint.format == "safetensors"
    assert checkpoint.metadata == {"format": "pt", "license": "mit"}
    assert checkpoint.container == checkpoint.prefix == ""


def test_safetensors_under_another_suffix(tmp_path: Path, state: Tensors) -> None:
    path = tmp_path / "model.bin"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    assert read_checkpoint(path).format == "safetensors"


def test_torch_files(written: Callable[[object], Checkpoint], state: Tensors) -> None:
    checkpoint = written(state)
    assert_same(checkpoint, state)
    assert list(checkpoint.tensors) == list(state)


def test_a_real_state_dict(written: Callable[[object], Checkpoint]) -> None:
    # An OrderedDict that carries _metadata, with parameters and buffers.
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert_same(written(module.state_dict()), dict(module.state_dict()))


def test_parameters_and_tensors_with_attributes(written: Callable[[object], Checkpoint]) -> None:
    parameter = nn.Parameter(torch.arange(3.0))
    marked = nn.Parameter(torch.arange(4.0))
    marked.note = "kept by Python only"  # type: ignore[attr-defined]
    tensor = torch.arange(5.0)
    tensor.note = "the same"  # type: ignore[attr-defined]
    held = {"parameter": parameter, "marked": marked, "tensor": tensor}
    checkpoint = written(held)
    assert_same(checkpoint, {name: value.detach() for name, value in held.items()})
    assert not any(tensor.requires_grad for tensor in checkpoint.tensors.values())


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32),
        *(torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128),
        *(torch.uint16, torch.uint32, torch.uint64),
    ],
)
def test_every_dtype(written: Callable[[object], Checkpoint], dtype: torch.dtype) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    assert_same(written({"a": tensor}), {"a": tensor})


def test_what_torch_itself_reads_without_running_code(tmp_path: Path, state: Tensors) -> None:
    for name, write in WRITERS.items():
        path = tmp_path / name
        write(state, path)
        assert_same(read_checkpoint(path), torch.load(path, weights_only=True))


@pytest.mark.parametrize("protocol", range(6))
def test_numpy_pickles(tmp_path: Path, state: Tensors, protocol: int) -> None:
    path = tmp_path / "R-50.pkl"
    held = {
        "model": arrays(state),
        "__author__": "torchvision",
        "matching_heuristics": True,
    }
    path.write_bytes(pickle.dumps(held, protocol=protocol))
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint, {f"model.{name}": tensor for name, tensor in state.items()})
    assert checkpoint.format == "numpy-pickle"
    assert checkpoint.containers == ("model.",)
    assert checkpoint.metadata == {"__author__": "torchvision", "matching_heuristics": "True"}


def test_the_oldest_torch_files(tmp_path: Path) -> None:
    # PyTorch 0.1 to 0.3: _rebuild_tensor, and storages that are views of others.
    path = tmp_path / "dla34.pth"
    values = torch.arange(6.0)
    path.write_bytes(_old_file(values, view=("view", 2, 4)))
    assert torch.equal(read_checkpoint(path).tensors["fc.weight"], values[2:].view(2, 2))
    path.write_bytes(_old_file(values, view=("view", 3, 4)))
    with pytest.raises(CheckpointError, match="part of a storage lies outside it"):
        read_checkpoint(path)


class _OldTensor:
    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor, (_OldStorage(), 0, (2, 2), (2, 1))


class _OldStorage:
    pass


def _old_file(values: Tensor, view: tuple[str, int, int]) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, held: object) -> object:
            if isinstance(held, _OldStorage):
                return ("storage", torch.FloatStorage, "root", "cuda:0", values.numel(), view)
            return None

    file = io.BytesIO()
    for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(part, file, protocol=2)
    Pickler(file, protocol=2).dump(OrderedDict({"fc.weight": _OldTensor()}))
    pickle.dump(["root"], file, protocol=2)
    file.write(struct.pack("<q", values.numel()) + values.numpy().tobytes())
    return file.getvalue()


def test_a_single_tensor_is_no_checkpoint(written: Callable[[object], Checkpoint]) -> None:
    with pytest.raises(CheckpointError, match="holds one tensor, not a dictionary"):
        written(torch.ones(2))


def test_of_a_whole_module_the_tensors_are_read(written: Callable[[object], Checkpoint]) -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
    checkpoint = written(module)
    assert_same(checkpoint, dict(module.state_dict()))
    assert checkpoint.objects[""] == "torch.nn.modules.container.Sequential"


def test_sparse_tensors_are_refused(
    written: Callable[[object], Checkpoint],
) -> None:
    with pytest.raises(UnsafeCheckpointError, match="_rebuild_sparse_tensor"):
        written({"a": torch.eye(3).to_sparse()})


# Tensors are views of the file that do not change it.


@pytest.mark.parametrize("kind", ["zip", "legacy", "numpy", "safetensors"])
def test_writing_to_a_tensor_leaves_the_file_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"model.{kind}"
    held = {"weight": torch.arange(10_000.0)}
    if kind == "safetensors":
        save_file(held, path)
    elif kind == "numpy":
        path.write_bytes(pickle.dumps(arrays(held)))
    else:
        torch.save(held, path, _use_new_zipfile_serialization=kind == "zip")
    before = path.read_bytes()
    read_checkpoint(path).tensors["weight"].zero_()
    assert path.read_bytes() == before
    again = read_checkpoint(path)
    path.unlink()
    assert torch.equal(again.tensors["weight"], held["weight"])


def test_where_mapping_fails_the_file_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: Tensors
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("this file system cannot map")

    path = tmp_path / "model.pth"
    torch.save(state, path)
    monkeypatch.setattr("trunkline.weights.checkpoint.mmap.mmap", refuse)
    monkeypatch.setattr("trunkline.weights.checkpoint._release", lambda _: None)
    assert_same(read_checkpoint(path), state)


def test_the_hash_is_of_the_whole_file(tmp_path: Path, state: Tensors) -> None:
    path = tmp_path / "model.pth"
    torch.save(state, path)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert file_sha256(path) == expected
    assert read_checkpoint(path, hashed=True).sha256 == expected
    assert read_checkpoint(path).sha256 == ""


# Safetensors that claim too much.


def _safetensors(header: object, data: bytes = b"\0" * 16, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


_ENTRIES = [json.dumps(_entry([1], 0, 4)).encode(), json.dumps(_entry([3], 4, 16)).encode()]


@pytest.mark.parametrize(
    "content",
    [
        _safetensors({"a": _entry([10**12], 0, 4 * 10**12)}),
        _safetensors({"a": _entry([10**12], 0, 16)}),
        _safetensors({"a": _entry([2**62, 4], 0, 16)}),
        _safetensors({"a": _entry([4], 0, 16), "b": _entry([4], 0, 16)}),
        _safetensors({"a": _entry([2], 0, 8), "b": _entry([2], 4, 12)}),
        _safetensors({"a": _entry([4], 16, 0)}),
        _safetensors({"a": _entry([4], -16, 0)}),
        _safetensors({"a": _entry([4], 0, 16, "F31")}),
        _safetensors({"a": _entry([2], 0, 8)}),
        _safetensors({"a": None}),
        _safetensors(b'{"a":%s,"a":%s,"b":%s}' % (_ENTRIES[0], _ENTRIES[1], _ENTRIES[0])),
        _safetensors(b'{"__metadata__":{"x":"1","x":"2"},"a":%s}' % _ENTRIES[0], data=bytes(4)),
        _safetensors({"a": _entry([4], 0, 16)}) + b"\0",
        _safetensors(b"{"),
        _safetensors(b'{"a":' + b"[" * 100_000),
        _safetensors({}, length=2**40),
        _safetensors({}, length=2**63),
        _safetensors({"a": _entry([4], 0, 16)}, length=10),
        b"\x08\0\0\0\0\0\0\0",
        b"\x80\x02}.",
    ],
)
def test_safetensors_that_claim_what_is_not_there(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is not a safetensors file, or a damaged one \(.+"):
        read_checkpoint(path)


def test_safetensors_without_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({}, path)
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read_checkpoint(path)
