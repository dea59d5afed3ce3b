"""What a pickle may describe, written down and not yet done.

Nothing here is an object that the file named. A tensor is a note of where its numbers lie, an
object of somebody else's class an ``Inert`` with what was said of it, and a global is its two
names. Only the tensors that are wanted in the end are made, as views of the mapped file.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trunkline.errors import CheckpointError

MAX_DIMENSIONS = 32
MAX_LENGTH = 2**40  # of one dimension, also where another one is 0


class Global(NamedTuple):
    """A class or function that a pickle names; never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


# Tensors that are no array of numbers, and what to do with one before it is saved.
_QUANTIZED = "a quantized tensor: save what its dequantize() returns"
_SPARSE = "a sparse tensor: save what its to_dense() returns"
_OTHER_TENSORS = {
    "_rebuild_qtensor": _QUANTIZED,
    **dict.fromkeys(("QUInt4x2Storage", "QUInt2x4Storage"), _QUANTIZED),
    **dict.fromkeys(("_rebuild_sparse_tensor", "_rebuild_sparse_csr_tensor"), _SPARSE),
    "NegatedView": "a negated view: save what its resolve_neg() returns",
    "_rebuild_nested_tensor": "a nested tensor, whose rows differ in length",
    "_rebuild_meta_tensor_no_storage": "a tensor on the meta device, which has no numbers",
}


def kind_of_tensor(asked: Global) -> str:
    """Return which tensor a global makes that is no array of numbers, "" for anything else."""
    is_torch = asked.module.partition(".")[0] == "torch"
    return _OTHER_TENSORS.get(asked.name, "") if is_torch else ""


@dataclass(slots=True, eq=False)
class Inert:
    """Stands for an object that was not made: a loss, a scheduler, a class of somebody's script.

    ``state`` is what the pickle would have given it, as attributes, and ``entries`` what it would
    have put into it, as into a dictionary.
    """

    kind: Global
    state: object = None
    entries: dict[object, object] | None = None

    def contents(self) -> dict[object, object]:
        """Return the entries and attributes by name; of a PyTorch module, its state dict's."""
        held: dict[object, object] = dict(self.entries or {})
        for part in self.state if type(self.state) is tuple else (self.state,):  # slots come second
            if type(part) is not dict:
                continue
            if type(part.get("_modules")) is dict:  # hooks and flags are no part of its weights
                for name in _MODULE_PARTS:
                    inner = part.get(name)
                    held |= inner if type(inner) is dict else {}
            else:
                held |= part
        return held


_MODULE_PARTS = ("_parameters", "_buffers", "_modules")


class Blob(NamedTuple):
    """A long string or byte string, left where it lies in the file."""

    memory: memoryview
    encoding: str  # "" for bytes


@dataclass(slots=True, eq=False)
class DType:
    """A numpy dtype: kind and size, such as ``"f4"``, and whether the bytes are reversed."""

    code: str
    swapped: bool = False

    @property
    def torch(self) -> torch.dtype | None:
        """The dtype of the tensor, None for what no tensor holds."""
        return NUMPY_DTYPES.get(self.code)


@dataclass(slots=True, eq=False)
class Storage:
    """A run of bytes that tensors are cut from.

    ``memory`` is None until the file has said where the bytes lie; ``crc`` is checked on first use.
    """

    nbytes: int
    memory: memoryview | None = None
    crc: int | None = None
    parent: Storage | None = None
    start: int = 0

    def bytes(self) -> memoryview:
        """Return the bytes.

        Raises:
            CheckpointError: They are missing or not what was written.
        """
        if self.parent is not None:
            return self.parent.bytes()[self.start : self.start + self.nbytes]
        if self.memory is None:
            raise CheckpointError("is damaged: the numbers of a tensor are not in it.")
        if self.crc is not None and zlib.crc32(self.memory) != self.crc:
            raise CheckpointError(
                "is damaged: the checksum of a tensor does not match. Download it again."
            )
        self.crc = None
        return self.memory


class TypedStorage(NamedTuple):
    """A storage as a pickle of torch's refers to it: with the dtype of its class."""

    storage: Storage
    dtype: torch.dtype


@dataclass(slots=True, eq=False)
class Array:
    """A tensor or numpy array: its storage and how to read it. Counts are of elements."""

    storage: Storage | None = None
    dtype: torch.dtype = torch.float32
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    offset: int = 0
    swapped: bool = False
    foreign: bool = False  # holds dates or strings: no tensor, and never asked for

    @property
    def nbytes(self) -> int:
        """Bytes that a contiguous copy takes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def check(self) -> None:
        """See that all of it lies within its storage, before anything is allocated.

        Raises:
            CheckpointError: It does not, or its numbers make no sense.
        """
        if (
            self.storage is None
            or not is_shape(self.shape)
            or not is_shape(self.stride)
            or not is_shape((self.offset,))
            or len(self.shape) != len(self.stride)
        ):
            raise CheckpointError("is damaged: the shape of a tensor makes no sense.")
        held = self.storage.nbytes // self.dtype.itemsize
        # An expanded tensor (stride 0) holds less than it claims, and a copy of it needs it all.
        if self.offset + self.span() > held or math.prod(self.shape) > held:
            raise CheckpointError(
                f"is damaged: a tensor of shape {self.shape} claims more than the {held} "
                f"elements that are stored for it."
            )

    def span(self) -> int:
        """Elements from the first to the last, both included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))

    def tensor(self) -> Tensor:
        """Return the tensor: a view of the file where alignment and byte order allow.

        Raises:
            CheckpointError: Its bytes are missing or damaged.
        """
        self.check()
        assert self.storage is not None  # noqa: S101 (checked in the line above)
        memory = self.storage.bytes()
        span, width = self.span(), self.dtype.itemsize
        if not span:
            return torch.empty(self.shape, dtype=self.dtype)
        raw = torch.frombuffer(
            memory, dtype=torch.uint8, count=span * width, offset=self.offset * width
        )
        if self.swapped:
            raw = raw.view(-1, width).flip(1).reshape(-1)
        elif raw.data_ptr() % width:
            raw = raw.clone()  # vector instructions want whole elements at whole addresses
        return raw.view(self.dtype).as_strided(self.shape, self.stride)


NUMPY_DTYPES = {
    "b1": torch.bool,
    "?": torch.bool,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "u2": torch.uint16,
    "u4": torch.uint32,
    "u8": torch.uint64,
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "c8": torch.complex64,
    "c16": torch.complex128,
}

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "QInt8Storage": torch.int8,  # of what _rebuild_qtensor makes, which is no array
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}


def is_shape(numbers: object) -> bool:
    """Whether these are a few natural numbers of a sane size: lengths, strides or an offset."""
    return (
        type(numbers) is tuple
        and len(numbers) <= MAX_DIMENSIONS
        and all(type(number) is int and 0 <= number < MAX_LENGTH for number in numbers)
    )


def contiguous(shape: tuple[int, ...], *, fortran: bool = False) -> tuple[int, ...]:
    """Return the strides of an array without gaps, the last index fastest, or the first."""
    strides = []
    step = 1
    for length in shape if fortran else reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return tuple(strides if fortran else reversed(strides))
