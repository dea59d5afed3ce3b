"""Dense maps as Zarr 3: one array ``(N, C, h, w)`` per level, a chunk per image.

Chunks of up to 64 images share a file, and no file holds images of two shards, so that processes
never write the same one. A shard is encoded aside and its files are renamed into the arrays. The
arrays grow as shards arrive; rows whose shard is not there yet, and failed ones, are NaN.

The table of images stands inside the array ``index``, which tells where maps are: zarr-python
warns about files of a group that are no arrays, but does not look into the folder of an array.
The table's part of a shard is renamed last, so where it is, the maps are.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from trunkline.errors import ConfigError
from trunkline.extraction.durable import aside, put_text, remove, sync, writing
from trunkline.extraction.parquet_files import (
    TableWriter,
    arrow_schema,
    row_groups,
    rows_of,
    rows_table,
    unreadable,
)
from trunkline.extraction.records import Block, Column, Schema
from trunkline.runtimes.optional import require

if TYPE_CHECKING:
    import pyarrow as pa

INDEX = "index"
ROWS = f"{INDEX}/rows.parquet"  # the table's folder of parts
ROW = "row"  # the column that says where an image's maps are
MADE_BY, LEVELS = "trunkline", "levels"  # of the group's attributes
_IMAGES_PER_FILE = 64
_META = "zarr.json"
_PURPOSE = "a store of maps"
_DOTS = {"name": "default", "separator": "."}  # c.12.0.0.0: one folder per level, not per file


class _ZarrWriter:
    """One shard of a ``ZarrArrays``, see ``formats.ShardWriter``."""

    def __init__(self, store: ZarrArrays, shard: int, scratch: Path, schema: Schema) -> None:
        self._store = store
        self._schema = schema
        self._first = shard * schema.shard_size
        self._count = 0
        self._folder = aside(scratch, f"maps-{shard:05d}")
        self._arrays: dict[str, Any] = {}
        self._read = np.zeros(schema.shard_size, bool)
        self._tables = index_schema(schema)
        self._index = TableWriter(store.index(shard), scratch, self._tables)

    def append(self, block: Block) -> None:
        pa = require("pyarrow", _PURPOSE)
        end = self._count + len(block.rows)
        with writing(self._store.out):
            if not self._arrays:
                self._begin()
            for name, values in block.values.items():
                self._arrays[name][self._count : end] = values
        self._read[self._count : end] = [row.status == "ok" for row in block.rows]
        numbers = pa.array(range(self._first + self._count, self._first + end), pa.int64())
        self._index.append(pa.table([*rows_table(block.rows).columns, numbers], self._tables))
        self._count = end

    def commit(self) -> dict[str, str]:
        with writing(self._store.out):
            if not self._arrays:
                self._begin()
            self._arrays[INDEX][: self._count] = self._read[: self._count]
            for column in self._schema.columns:
                self._place(column.name)
            self._store.lengthen(self._first + self._count)
            self._place(INDEX)
        digest = self._index.commit()
        self.discard()
        return {self._index.target.relative_to(self._store.out).as_posix(): digest}

    def discard(self) -> None:
        self._index.discard()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _begin(self) -> None:
        """Make arrays of this shard's length."""
        shutil.rmtree(self._folder, ignore_errors=True)
        make_group(self._folder, self._schema, self._schema.shard_size)
        self._arrays = _open_arrays(self._folder)

    def _place(self, name: str) -> None:
        """Rename one level's files, whose numbers go on where the shard before ends."""
        folder = self._store.out / name
        per_shard = 1 if name == INDEX else self._schema.shard_size // self._store.block_size
        tail = "" if name == INDEX else ".0.0.0"
        first = self._first // self._schema.shard_size * per_shard
        for number in range(per_shard):
            written = self._folder / name / f"c.{number}{tail}"
            target = folder / f"c.{first + number}{tail}"
            if written.exists():
                sync(written)
                written.replace(target)
            else:  # nothing but NaN, which needs no file
                remove(target)
        sync(folder)


class ZarrArrays:
    """A Zarr group of maps; see ``formats.ShardFormat``.

    Args:
        out: The group's folder.
        scratch: Where shards are encoded.
        schema: Levels of shape ``(C, h, w)``.

    Raises:
        ConfigError: A level is pooled.
        NotInstalledError: zarr or pyarrow is not there; Zarr 3 needs Python 3.11.
    """

    name = "zarr"

    def __init__(self, out: Path, scratch: Path, schema: Schema) -> None:
        pooled = [one.name for one in schema.columns if len(one.shape) != 3]
        if pooled:
            raise ConfigError(
                f"Zarr holds maps of one size, but {', '.join(pooled)} would not be; choose no "
                "pool and a fixed size of images, or a store called NAME.parquet."
            )
        require("zarr", _PURPOSE)
        require("pyarrow", _PURPOSE)
        self.out = out
        self._scratch = scratch
        self._schema = schema

    @property
    def block_size(self) -> int:
        """Images of a file: a divisor of the shard's size."""
        return images_per_file(self._schema.shard_size)

    def create(self) -> None:
        """Make the group and its arrays, of length 0."""
        with writing(self.out):
            self._scratch.mkdir(parents=True, exist_ok=True)
            with self._lock():
                if not (self.out / _META).exists():
                    self._create()

    def _create(self) -> None:
        """Make the group aside and rename it piece by piece, itself last."""
        folder = aside(self._scratch, "group")
        shutil.rmtree(folder, ignore_errors=True)
        make_group(folder, self._schema, 0)
        (folder / ROWS).mkdir(parents=True)
        for path in folder.rglob("*"):
            sync(path)
        self.out.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.iterdir(), key=lambda path: path.name == _META):
            target = self.out / path.name
            if not target.exists():
                path.replace(target)
        sync(self.out)
        shutil.rmtree(folder)

    def index(self, shard: int) -> Path:
        """Return where the table of a shard's images is."""
        return self.out / ROWS / f"part-{shard:05d}.parquet"

    def writer(self, shard: int) -> _ZarrWriter:
        """Begin a shard."""
        return _ZarrWriter(self, shard, self._scratch, self._schema)

    def blocks(self, shard: int) -> Iterator[Block]:
        """Read a shard back, file by file."""
        first = shard * self._schema.shard_size
        arrays: dict[str, Any] | None = None
        for table in row_groups(self.index(shard)):
            arrays = arrays or _open_arrays(self.out)
            rows = rows_of(table)
            end = first + len(rows)
            try:
                values = {one.name: arrays[one.name][first:end] for one in self._schema.columns}
            except (OSError, ValueError, RuntimeError, KeyError) as error:
                raise unreadable(self.index(shard), error) from error
            first = end
            yield Block(rows, values)

    def finish(self, total: int) -> None:
        """Set the length of the arrays."""
        with writing(self.out), self._lock():
            self._set_length(total)

    def lengthen(self, length: int) -> None:
        """Let the arrays have ``length`` images at least."""
        with self._lock():
            self._set_length(max(length, _length(self.out / INDEX)))

    def remove(self, shard: int) -> None:
        """Remove a shard's part of the table first, then its maps."""
        with writing(self.out):
            remove(self.index(shard))
            remove(self.out / INDEX / f"c.{shard}")
            per_shard = self._schema.shard_size // self.block_size
            for number in range(shard * per_shard, (shard + 1) * per_shard):
                for column in self._schema.columns:
                    remove(self.out / column.name / f"c.{number}.0.0.0")

    def _set_length(self, length: int) -> None:
        # Not by zarr-python's resize, which older releases do not write aside, and none syncs.
        for name in (*(one.name for one in self._schema.columns), INDEX):
            path = self.out / name / _META
            about = json.loads(path.read_bytes())
            if about["shape"][0] != length:
                about["shape"][0] = length
                written = aside(self._scratch, f"{name}-{_META}")
                put_text(written, path, json.dumps(about, indent=2))

    def _lock(self) -> FileLock:
        return FileLock(self._scratch / "zarr.lock")


def images_per_file(shard_size: int) -> int:
    """Return the greatest divisor of a shard's size that is not above 64."""
    return max(n for n in range(1, _IMAGES_PER_FILE + 1) if shard_size % n == 0)


def index_schema(schema: Schema) -> pa.Schema:
    """Return the columns of the table of images: those of ``ROW_COLUMNS`` and ``row``."""
    pa = require("pyarrow", _PURPOSE)
    return arrow_schema(schema, levels=False).append(pa.field(ROW, pa.int64()))


def make_group(folder: Path, schema: Schema, length: int) -> None:
    """Make a group with the arrays of a store.

    Args:
        folder: What is not there yet.
        schema: What the arrays hold.
        length: Images of each.
    """
    zarr = require("zarr", _PURPOSE)
    attributes = {MADE_BY: schema.made_by, LEVELS: [one.name for one in schema.columns]}
    group = zarr.create_group(folder, zarr_format=3, attributes=attributes)
    for column in schema.columns:
        _make_level(group, column, schema, length)
    group.create_array(
        INDEX,
        shape=(length,),
        chunks=(schema.shard_size,),
        dtype="bool",
        fill_value=False,
        chunk_key_encoding=_DOTS,
        dimension_names=("image",),
    )


def _make_level(group: Any, column: Column, schema: Schema, length: int) -> None:
    zarr = require("zarr", _PURPOSE)
    group.create_array(
        column.name,
        shape=(length, *column.shape),
        chunks=(1, *column.shape),
        shards=(images_per_file(schema.shard_size), *column.shape),
        dtype=schema.dtype,
        fill_value=math.nan,
        # Maps after a ReLU shrink to six tenths; higher levels take longer for the same size.
        compressors=[zarr.codecs.ZstdCodec(level=1)],
        chunk_key_encoding=_DOTS,
        # Of each level their own: xarray wants dimensions of one name to be of one size.
        dimension_names=("image", *(f"{column.name}_{axis}" for axis in ("channel", "y", "x"))),
        attributes={"stride": column.stride},
    )


def _open_arrays(folder: Path) -> dict[str, Any]:
    """Open the arrays of a group for reading and writing, by name."""
    zarr = require("zarr", _PURPOSE)
    return dict(zarr.open_group(folder, mode="r+", zarr_format=3).arrays())


def _length(folder: Path) -> int:
    return int(json.loads((folder / _META).read_bytes())["shape"][0])
