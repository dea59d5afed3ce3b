"""What a Zarr group of maps is: how it is made, what its ``zarr.json`` files say, how it is read.

Those files change while a store grows, so no record of a shard can hold their hashes. Instead each
has a seal among its attributes: the digest of all else that it says, as manifests have one. Whoever
reads or changes one compares the seal first.

Zarr takes a file that is missing for nothing but NaN. Here every file of a shard is written, and a
reader that misses one says so.
"""

from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from trunkline.errors import StoreError
from trunkline.extraction.data_files import readable, unreadable
from trunkline.extraction.locations import open_regular
from trunkline.extraction.records import NAME, Column, Schema
from trunkline.files import DOCUMENT_BYTES, DocumentError, parse_document
from trunkline.outputs import digest_of
from trunkline.runtimes.optional import require

META = "zarr.json"
INDEX = "index"
_IMAGES_PER_FILE = 64
_EVERY_FILE = {"write_empty_chunks": True}
_DOTS = {"name": "default", "separator": "."}  # c.12.0.0.0: one folder per level, not per file
_PURPOSE = "a store of maps"
_NUMBERS = 1 << 27  # of one image's map, half a gigabyte of float32

Count = Annotated[int, Meta(ge=0, le=1 << 40)]
Size = Annotated[int, Meta(ge=1, le=1 << 30)]
Name = Annotated[str, Meta(pattern=NAME)]


@dataclass(frozen=True, kw_only=True)
class _Seal:
    store: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class _GroupAttributes(_Seal):
    trunkline: dict[str, Any]
    levels: Annotated[tuple[Name, ...], Meta(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class Group:
    """What the group's file says.

    Attributes:
        attributes: What decides the numbers, the names of the levels, and the store's id.
    """

    attributes: _GroupAttributes
    node_type: Literal["group"]
    zarr_format: Literal[3]


@dataclass(frozen=True, kw_only=True)
class _Chunks:
    chunk_shape: tuple[Size, ...]


@dataclass(frozen=True, kw_only=True)
class _Grid:
    name: Literal["regular"]
    configuration: _Chunks


@dataclass(frozen=True, kw_only=True)
class _Inner:
    chunk_shape: tuple[Size, ...] = ()
    codecs: tuple[_Codec, ...] = ()
    index_codecs: tuple[_Codec, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Codec:
    name: Literal["bytes", "crc32c", "sharding_indexed", "zstd"]  # none that could do more
    configuration: _Inner = field(default_factory=_Inner)


@dataclass(frozen=True, kw_only=True)
class Array:
    """What an array's file says.

    Attributes:
        shape: ``(N, C, h, w)`` of maps, ``(N,)`` of the index.
        data_type: Of its numbers.
        chunk_grid: What a file holds.
        codecs: How.
        attributes: The store's id.
    """

    shape: tuple[Count, ...]
    data_type: Literal["float32", "float16", "bool"]
    chunk_grid: _Grid
    codecs: tuple[_Codec, ...]
    attributes: _Seal
    node_type: Literal["array"]
    zarr_format: Literal[3]

    def __post_init__(self) -> None:
        file, *inner = self.chunk_grid.configuration.chunk_shape
        numbers = math.prod(self.shape[1:])
        if not self.shape or tuple(inner) != self.shape[1:] or not 0 < numbers <= _NUMBERS:
            raise ValueError(f"an array {self.shape} has no files of {(file, *inner)}")

    @property
    def images_per_file(self) -> int:
        """How many images a file holds."""
        return self.chunk_grid.configuration.chunk_shape[0]


def images_per_file(shard_size: int) -> int:
    """Return the greatest divisor of a shard's size that is not above 64."""
    return max(n for n in range(1, _IMAGES_PER_FILE + 1) if shard_size % n == 0)


def make_group(folder: Path, schema: Schema, length: int) -> dict[str, Any]:
    """Make a group with the arrays of a store.

    Args:
        folder: What is not there yet.
        schema: What the arrays hold.
        length: Images of each.

    Returns:
        The arrays by name. What is written into them is on the disk, even where it is but NaN.
    """
    zarr = require("zarr", _PURPOSE)
    levels = [one.name for one in schema.columns]
    attributes = {"trunkline": schema.made_by, "levels": levels, "store": schema.store_id}
    group = zarr.create_group(folder, zarr_format=3, attributes=attributes)
    arrays = {one.name: _make_level(group, one, schema, length) for one in schema.columns}
    arrays[INDEX] = group.create_array(
        INDEX,
        shape=(length,),
        chunks=(schema.shard_size,),
        dtype="bool",
        fill_value=False,
        chunk_key_encoding=_DOTS,
        dimension_names=("image",),
        attributes={"store": schema.store_id},
        config=_EVERY_FILE,
    )
    return arrays


def _make_level(group: Any, column: Column, schema: Schema, length: int) -> Any:
    zarr = require("zarr", _PURPOSE)
    return group.create_array(
        column.name,
        shape=(length, *column.shape),
        chunks=(1, *column.shape),
        shards=(images_per_file(schema.shard_size), *column.shape),
        dtype=schema.dtype,
        fill_value=math.nan,
        # Maps after a ReLU shrink to six tenths; higher levels take longer for the same size.
        # Checksums, so that damage is seen by whoever reads, too.
        compressors=[zarr.codecs.ZstdCodec(level=1, checksum=True)],
        chunk_key_encoding=_DOTS,
        # Of each level their own: xarray wants dimensions of one name to be of one size.
        dimension_names=("image", *(f"{column.name}_{axis}" for axis in ("channel", "y", "x"))),
        attributes={"stride": column.stride, "store": schema.store_id},
        config=_EVERY_FILE,
    )


def sealed(fields: dict[str, Any]) -> str:
    """Return the text of a ``zarr.json`` with a seal of what it says now."""
    attributes = {**fields["attributes"], "sha256": _seal_of(fields)}
    return json.dumps({**fields, "attributes": attributes}, indent=2)


def _seal_of(fields: dict[str, Any]) -> str:
    attributes = {key: one for key, one in fields["attributes"].items() if key != "sha256"}
    return digest_of({**fields, "attributes": attributes})


def read_group(folder: Path) -> Group:
    """Read the file of a group.

    Raises:
        StoreError: It is missing, damaged, edited, or none of a store.
    """
    group: Group = _read(folder / META, Group)[1]
    return group


def read_array(folder: Path) -> tuple[dict[str, Any], Array]:
    """Read the file of an array, as it stands there and as it was understood.

    Raises:
        StoreError: It is missing, damaged, edited, or none of a store.
    """
    return _read(folder / META, Array)


def _read(path: Path, kind: Any) -> tuple[dict[str, Any], Any]:
    try:
        content = _text_of(path)
        fields = parse_document(content, dict[str, Any])
        understood = parse_document(content, kind)
        if understood.attributes.sha256 != _seal_of(fields):
            raise DocumentError("it was changed after it was written")
    except (OSError, DocumentError, RecursionError) as error:
        raise StoreError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}. The store is "
            "damaged, since all of its shards need this file; put back a copy of it, or extract "
            "into a new place."
        ) from error
    return fields, understood


def _text_of(path: Path) -> bytes:
    """Return what is in a file, at once: a run may replace it between two looks."""
    with open_regular(os.fspath(path)) as file:
        content = file.read(DOCUMENT_BYTES + 1)
    if len(content) > DOCUMENT_BYTES:
        raise DocumentError(f"it has more than {DOCUMENT_BYTES} bytes")
    return content


def owner_of(path: Path) -> str | None:
    """Return the store that a ``zarr.json`` says it is of, None where it does not say."""
    try:
        return parse_document(_text_of(path), _Owned).attributes.store
    except (OSError, DocumentError):
        return None


@dataclass(frozen=True, kw_only=True)
class _Owned:
    attributes: _Seal


class Maps:
    """One array, opened for reading.

    Args:
        folder: Of the array.

    Raises:
        StoreError: Its ``zarr.json`` cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        zarr = require("zarr", _PURPOSE)
        self._folder = folder
        self._about = read_array(folder)[1]
        with readable(folder / META):
            self._array = zarr.open_array(folder, mode="r", zarr_format=3)

    def one(self, row: int) -> NDArray[Any]:
        """Read the map ``(C, h, w)`` of one image.

        Raises:
            StoreError: It is not there, or its file is damaged.
        """
        self._check(np.array([row]))
        with readable(self._file(row)):
            return np.asarray(self._array[row])

    def some(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Read the maps ``(n, C, h, w)`` of some images.

        Raises:
            StoreError: One is not there, or its file is damaged.
        """
        self._check(rows)
        with readable(self._folder):
            found = np.empty((len(rows), *self._about.shape[1:]), self._about.data_type)
        files = rows // self._about.images_per_file
        breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(files) != 0)) + 1
        for run in np.split(np.arange(len(rows)), breaks):  # within a file, so that errors name it
            if len(run):
                begin, end = int(rows[run[0]]), int(rows[run[-1]]) + 1
                with readable(self._file(begin)):
                    found[run[0] : run[-1] + 1] = self._array[begin:end]
        return found

    def _check(self, rows: NDArray[np.int64]) -> None:
        """Refuse what Zarr would take for NaN, wait for, or count from the end."""
        if len(rows) and not 0 <= rows.min() <= rows.max() < self._about.shape[0]:
            raise unreadable(
                self._folder, f"it has {self._about.shape[0]} images, and no image {rows.max()}"
            )
        for number in np.unique(rows // self._about.images_per_file):
            path = self._file(int(number) * self._about.images_per_file)
            with readable(path):
                if not stat.S_ISREG(os.stat(path).st_mode):
                    raise OSError(None, "it is a pipe or a device, not a regular file")

    def _file(self, row: int) -> Path:
        return self._folder / f"c.{row // self._about.images_per_file}.0.0.0"


def maps_of(about: dict[str, Any], name: str, content: bytes, images: slice) -> NDArray[Any]:
    """Return maps from the bytes of a file, which were compared with what was written.

    Args:
        about: Of ``read_array``.
        name: Of the file.
        content: Of the file.
        images: Which ones of the array.

    Raises:
        ValueError: The array does not go so far.
    """
    zarr = require("zarr", _PURPOSE)
    as_buffer = import_module("zarr.core.buffer").default_buffer_prototype().buffer.from_bytes
    files = {META: as_buffer(json.dumps(about).encode()), name: as_buffer(content)}
    maps = np.asarray(zarr.open_array(files, mode="r", zarr_format=3)[images])
    if len(maps) != images.stop - images.start:
        raise ValueError(f"its array ends before image {images.stop}")
    return maps
