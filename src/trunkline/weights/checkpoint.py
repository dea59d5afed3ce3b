"""Checkpoint files of every upstream → tensors by name; no code in a file is ever run.

``read_checkpoint`` goes by what is in a file, not by its suffix:

* *safetensors*, through the library of that name;
* *torch-zip* and *torch-legacy*, what ``torch.save`` writes and wrote (``torch_files``);
* *numpy-pickle*, dictionaries of numpy arrays as detectron2, Caffe2 and Paddle write them.

All pickles go through the restricted machine of ``unpickling``. Tensors are views of the mapped
file, copied on the first write to them, so a file costs its own size in memory once and is never
changed. Whoever keeps them beyond the file's life clones them: a file that another process cuts
short takes its pages with it.
"""

from __future__ import annotations

import json
import mmap
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.parameter import is_lazy

from trunkline.errors import CheckpointError, UnsafeCheckpointError, WeightsNotFoundError
from trunkline.outputs import sha256_of
from trunkline.weights.reading.records import Array
from trunkline.weights.reading.torch_files import LEGACY_MAGIC, read_legacy, read_zip
from trunkline.weights.reading.unpickling import Unpickler
from trunkline.weights.reading.unwrapping import MAX_DEPTH, Leaf, check_names, flatten, scalars
from trunkline.weights.reading.words import words_beside

_MAX_CLAIM = 4  # all tensors together, as a multiple of the file: more is a bomb of views
_SLACK_BYTES = 1 << 16

_FOREIGN = (  # (where, bytes, what it is and what to do)
    (0, b"\x1f\x8b", "a gzip archive. Unpack it first"),
    (0, b"BZh", "a bzip2 archive. Unpack it first"),
    (0, b"\xfd7zXZ", "an xz archive. Unpack it first"),
    (0, b"7z\xbc\xaf", "a 7z archive. Unpack it first"),
    (0, b"PK\x05\x06", "an empty zip archive"),
    (0, b"\x89HDF", "an HDF5 file, which Keras writes. Convert it to safetensors"),
    (0, b"\x93NUMPY", "a single numpy array without a name"),
    (0, b"GGUF", "a GGUF file, which holds language models"),
    (257, b"ustar", "a tar archive. Unpack it; if PyTorch 0.1 wrote it, save it again with 1.0"),
)
_TEXTS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself. Run `git lfs pull`"),
    (b"<", "a page of HTML or XML, probably an error that was saved. Download the file again"),
    (b"", "text, not a checkpoint. Download the file again"),
)
_TEXT_PICKLES = b"(c]}"  # what a dictionary or list of protocol 0 begins with


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        tensors: On the CPU, in the file's dtypes; views of the file. As it was read, all that it
            holds, each by the keys that lead to it joined by dots, such as
            ``"state_dict.module.backbone.conv1.weight"``. Once a backbone was found in it, that
            backbone's, by their plain names.
        format: ``"safetensors"``, ``"torch-zip"``, ``"torch-legacy"``, ``"numpy-pickle"`` or
            ``"memory"``.
        containers: The dictionaries that hold tensors, as beginnings of names; "" for the whole.
        others: Container → its entries that are no tensors.
        objects: Containers that are objects of a class, which were not made → the class.
        container: Where the backbone was found, such as ``"ema.module"``; "" for at the top.
        prefix: What was taken off its names besides, such as ``"module.backbone."``.
        beside: Once a backbone was found: the names that stand elsewhere in the file → shapes.
        notes: What was decided or left aside, one sentence each.
        metadata: Of safetensors; of other formats the numbers and short texts beside the
            container, such as ``epoch``, ``arch`` or detectron2's ``__author__``.
        sha256: Of the whole file, where it was asked for, else "".
    """

    tensors: dict[str, Tensor] = field(repr=False)
    format: str
    containers: tuple[str, ...] = ("",)
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    objects: Mapping[str, str] = field(default_factory=dict)
    container: str = ""
    prefix: str = ""
    beside: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    sha256: str = ""


def read_checkpoint(path: str | os.PathLike[str], *, hashed: bool = False) -> Checkpoint:
    """Read the tensors of a checkpoint, all of them, without running anything that is in it.

    Args:
        path: The file. What it is, is seen from its content.
        hashed: Give the file's sha256 too, which reads it once more.

    Returns:
        The tensors by the keys that lead to them.

    Raises:
        WeightsNotFoundError: There is no such file.
        UnsafeCheckpointError: A pickle asks for more than arrays and plain containers.
        CheckpointError: It is not a checkpoint, damaged, cut off, or without tensors.

    Example:
        >>> checkpoint = read_checkpoint("resnet50.pth")  # doctest: +SKIP
        >>> checkpoint.format, checkpoint.containers  # doctest: +SKIP
        ('torch-zip', ('state_dict.',))
    """
    path = Path(path)
    with naming(path):
        return _read(path, hashed=hashed)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file in hexadecimal, read piece by piece.

    Args:
        path: The file.

    Raises:
        WeightsNotFoundError: There is no such file.
        CheckpointError: It cannot be read.
    """
    path = Path(path)
    with naming(path):
        return _sha256(path)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name in front of what is wrong with it."""
    try:
        yield
    except CheckpointError as error:
        raise type(error)(f"{path} {error}") from error


def _sha256(path: Path) -> str:
    check_file(path)
    try:
        return sha256_of(path)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}.") from error


def _read(path: Path, *, hashed: bool) -> Checkpoint:
    data = _mapped(path)
    _refuse_foreign(data)
    root: object
    if _is_safetensors(path, data):
        kind = "safetensors"
        metadata, root = _read_safetensors(path, data)
    else:
        kind, root = _read_pickled(data)
        metadata = words_beside(root) | scalars(root)
    tree = flatten(root)
    _check_claims(tree.leaves, data.nbytes)
    tensors = {
        name: leaf.tensor() if isinstance(leaf, Array) else leaf
        for name, leaf in tree.leaves.items()
    }
    _release(data)
    return Checkpoint(
        tensors=tensors,
        format=kind,
        containers=tuple(tree.containers),
        others={path: tuple(names) for path, names in tree.others.items()},
        objects=tree.objects,
        metadata=metadata,
        sha256=_sha256(path) if hashed else "",
    )


def held_checkpoint(state: Mapping[str, Any]) -> Checkpoint:
    """Return tensors that are in memory as what a file would hold.

    Args:
        state: A state dict, or what training scripts put one into. Arrays of NumPy are welcome.

    Raises:
        CheckpointError: It holds no tensors.
    """
    tree = flatten(_plain(state, {}))
    return Checkpoint(
        tensors={name: _whole(leaf) for name, leaf in tree.leaves.items()},
        format="memory",
        containers=tuple(tree.containers),
        others={path: tuple(names) for path, names in tree.others.items()},
        metadata=scalars(dict(state)),
    )


def _plain(value: Any, made: dict[int, Any], depth: int = 0) -> Any:
    """Return containers as plain dictionaries and arrays as tensors, each object once."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        # A copy: some arrays are read-only, in the other byte order, or somebody's to change.
        wide = value.dtype.kind == "f" and value.dtype.itemsize > 8  # PyTorch has no long double
        dtype = np.dtype(np.float64) if wide else value.dtype.newbyteorder("=")
        return torch.from_numpy(np.array(value, dtype, order="C"))
    if isinstance(value, list | tuple):
        return [_plain(inner, made, depth) for inner in value if isinstance(inner, Mapping)]
    if not isinstance(value, Mapping) or depth > MAX_DEPTH:  # deeper is not looked at
        return value
    if id(value) not in made:  # it may hold itself
        made[id(value)] = {}
        made[id(value)].update({k: _plain(inner, made, depth + 1) for k, inner in value.items()})
    return made[id(value)]


def _whole(leaf: Leaf) -> Tensor:
    """Return a tensor as a plain one on the CPU; one that is spread over devices is joined."""
    if isinstance(leaf, Tensor) and is_lazy(leaf):
        raise CheckpointError(
            "holds a parameter that is not initialized; run the network once before."
        )
    tensor = leaf.tensor() if isinstance(leaf, Array) else leaf.detach()
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    elif type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        raise CheckpointError(
            f"holds a {type(tensor).__name__}, which keeps its numbers in other tensors; give "
            "plain ones, such as its dequantize() returns."
        )
    if tensor.is_meta:
        raise CheckpointError("holds tensors on the meta device, which have no numbers.")
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return tensor.as_subclass(Tensor).cpu().resolve_neg()


def check_file(path: Path) -> None:
    """Refuse what is no file, by its name alone.

    Raises:
        WeightsNotFoundError: There is no such file.
        CheckpointError: It is a folder or a device, or cannot be reached.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise WeightsNotFoundError(f"no file {path}; give the path of a checkpoint.") from error
    except (OSError, ValueError) as error:  # no permission, a name too long, a null in it
        raise CheckpointError(f"cannot be opened: {error}.") from error
    if stat.S_ISDIR(mode):
        raise CheckpointError("is a folder; give the path of the file in it.")
    if not stat.S_ISREG(mode):
        raise CheckpointError("is not a regular file; copy its content into one.")


def _mapped(path: Path) -> memoryview:
    """Return the file's content as memory that may be written to, without changing the file."""
    check_file(path)
    try:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise CheckpointError("is empty. Download it again.")
            try:
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
            except (OSError, ValueError):  # a file system that cannot map
                return memoryview(bytearray(file.read()))
    except OSError as error:
        raise CheckpointError(f"cannot be opened: {error.strerror}.") from error


def _release(data: memoryview) -> None:
    """Give back the pages that checksums and copies have touched; views load them again."""
    if isinstance(data.obj, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        data.obj.madvise(mmap.MADV_DONTNEED)


def _refuse_foreign(data: memoryview) -> None:
    head = bytes(data[:512])
    for start, signature, what in _FOREIGN:
        if head[start : start + len(signature)] == signature:
            raise CheckpointError(f"is {what}.")
    if _is_text(head) and head[0] not in _TEXT_PICKLES:
        raise _is_only_text(head)


def _is_text(head: bytes) -> bool:
    return all(byte >= 0x20 or byte in b"\t\r\n" for byte in head)


def _is_only_text(head: bytes) -> CheckpointError:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    what = next(what for beginning, what in _TEXTS if text.startswith(beginning))
    return CheckpointError(f"is {what}. It begins {head[:60].decode('utf-8', 'replace')!r}.")


def _is_safetensors(path: Path, data: memoryview) -> bool:
    if path.suffix == ".safetensors":
        return True
    # Eight bytes of header length, then JSON; no pickle and no zip begins so.
    return data.nbytes > 8 and data[8] == ord("{") and not any(data[5:8])


def _read_safetensors(path: Path, data: memoryview) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            names = file.keys()
            check_names(names)  # before a tensor is made
            # Of a name that is there twice another reader may take the other tensor.
            header = bytes(data[8 : 8 + int.from_bytes(data[:8], "little")])
            json.loads(header, object_pairs_hook=_each_once)
            return metadata, {name: file.get_tensor(name) for name in names}
    except CheckpointError:
        raise
    except (SafetensorError, OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"is not a safetensors file, or a damaged one ({reason}). Download it again."
        ) from error


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _read_pickled(data: memoryview) -> tuple[str, object]:
    if bytes(data[:4]) == b"PK\x03\x04":
        return "torch-zip", read_zip(data)
    unpickler = Unpickler(data)
    try:
        first = unpickler.load()
    except UnsafeCheckpointError:
        raise
    except CheckpointError as error:
        head = bytes(data[:512])
        if _is_text(head):
            raise _is_only_text(head) from error
        raise
    if type(first) is int and first == LEGACY_MAGIC:
        return "torch-legacy", read_legacy(data, unpickler.position)
    if unpickler.position != data.nbytes:
        raise CheckpointError(
            f"is damaged: {data.nbytes - unpickler.position} bytes follow its end. "
            "Download it again."
        )
    return "numpy-pickle", first


def _check_claims(leaves: Mapping[str, Leaf], file_bytes: int) -> None:
    """Refuse many views of the same bytes, which would fill memory once they are copied."""
    claimed = sum(leaf.nbytes for leaf in leaves.values())
    if claimed > _MAX_CLAIM * file_bytes + _SLACK_BYTES:
        raise CheckpointError(
            f"claims {claimed} bytes of tensors in {file_bytes} bytes: the same numbers again and "
            "again. No network needs that."
        )
