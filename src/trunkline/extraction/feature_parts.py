"""The parts of a finished or growing feature store, opened for reading, whatever its format.

A part is a shard as it lies on the disk. What is in place is complete, so the bookkeeping beside
a store is not looked at, and a store without it, or half done, opens as well.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trunkline.errors import StoreError
from trunkline.extraction.clip_retrieval import (
    LEVEL,
    METADATA,
    POSITION,
    VECTORS,
    paths_of,
    read_tables,
    read_vectors,
)
from trunkline.extraction.data_files import opened, readable, unreadable
from trunkline.extraction.parquet_files import (
    MADE_BY,
    STORE,
    parquet_file,
    row_fields,
)
from trunkline.extraction.records import ROW_COLUMNS
from trunkline.extraction.zarr_arrays import ROW, ROWS
from trunkline.extraction.zarr_group import Maps, read_array, read_group
from trunkline.files import DocumentError, parse_document
from trunkline.runtimes.optional import require

if TYPE_CHECKING:
    import pyarrow as pa

Piece = tuple["pa.Array", NDArray[Any]]  # keys of images and their features
_PURPOSE = "a store of features"
_MAPS_AT_ONCE, _BYTES_AT_ONCE = 64, 256 << 20  # whichever is less, but one map at least


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What all parts of a store have in common.

    Attributes:
        levels: Level's column → shape of an image's features.
        columns: Of ``table``.
        dtype: Of the features.
        made_by: All that decides the numbers.
    """

    columns: tuple[str, ...]
    levels: dict[str, tuple[int, ...]]
    dtype: np.dtype[Any]
    made_by: dict[str, Any]


class Part(Protocol):
    """One shard."""

    path: Path

    @property
    def facts(self) -> Facts:
        """What must be the same in every part."""

    @property
    def num_rows(self) -> int:
        """Images, failed ones too."""

    @property
    def num_ok(self) -> int:
        """Images that have features."""

    def table(self, columns: Sequence[str] | None) -> pa.Table:
        """Read columns, in the order of the plan; None means all."""

    def pieces(self, level: str) -> Iterator[Piece]:
        """Read the features of the images that have some: arrays ``(n, *shape)``, bit by bit."""


def parts_of(out: Path) -> list[Part]:
    """List the parts of a store, in the order of the plan.

    Args:
        out: Folder of a store, or one of its Parquet files.

    Raises:
        StoreError: It is not there, is no store, or has no finished shard.
    """
    if os.path.isfile(out) and out.suffix == ".parquet":
        return [ParquetPart(out)]
    if not os.path.isdir(out):
        raise StoreError(
            f"{out} is not a store of features: "
            f"{'it is some other file' if os.path.lexists(out) else 'there is nothing'}. Give the "
            "OUT of trunkline extract, or one of its .parquet files."
        )
    parts: list[Part]
    if os.path.isdir(out / ROWS):
        group = _Group(out)
        parts = [ZarrPart(path, out, group) for path in _sorted(out / ROWS, "*.parquet")]
    elif os.path.isdir(out / VECTORS) and os.path.isdir(out / METADATA):
        vectors = _sorted(out / VECTORS, f"{VECTORS}_*.npy")
        parts = [ClipPart(out, path.stem.rpartition("_")[2]) for path in vectors]
    else:
        parts = [ParquetPart(path) for path in _sorted(out, "*.parquet")]
    if not parts:
        raise StoreError(
            f"{out} has no finished shard of features. If it is the OUT of a run of trunkline "
            "extract, wait for its first shard, or run the same command again to go on."
        )
    return parts


class ParquetPart:
    """A Parquet file of pooled features."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def facts(self) -> Facts:
        """Read from the file's columns and metadata."""
        pa = require("pyarrow", _PURPOSE)
        with self._file() as file, readable(self.path):
            schema = file.schema_arrow
            fields, metadata = list(schema), schema.metadata or {}
            names = schema.names
        levels = [one for one in fields if pa.types.is_fixed_size_list(one.type)]
        is_ours = MADE_BY in metadata and fields[: len(ROW_COLUMNS)] == row_fields()
        if not is_ours or not levels or len({*names}) < len(names):
            raise StoreError(
                f"{self.path} is a Parquet file, but none of a store of features. Give the OUT of "
                "trunkline extract."
            )
        dtypes = {one.type.value_type for one in levels}
        if len(dtypes) > 1 or not dtypes <= {pa.float32(), pa.float16()}:
            raise unreadable(self.path, "its levels are not of one dtype of a store")
        if min(one.type.list_size for one in levels) < 1:
            raise unreadable(self.path, "a level has no numbers")
        return Facts(
            columns=tuple(names),
            levels={one.name: (int(one.type.list_size),) for one in levels},
            dtype=np.dtype(dtypes.pop().to_pandas_dtype()),
            made_by=made_by_of(metadata, self.path),
        )

    @cached_property
    def num_rows(self) -> int:
        """Read from the end of the file."""
        with self._file() as file, readable(self.path):
            return int(file.metadata.num_rows)

    @cached_property
    def num_ok(self) -> int:
        """Counted."""
        return _count_ok(self.table(["status"]))

    def table(self, columns: Sequence[str] | None) -> pa.Table:
        """Read columns."""
        with self._file() as file, readable(self.path):
            table = file.read(columns=None if columns is None else list(columns))
            if len(table) != file.metadata.num_rows:
                raise ValueError(f"it has not the {file.metadata.num_rows} rows that it tells of")
            _check_nulls(table)
            return table if columns is None else table.select(list(columns))

    def pieces(self, level: str) -> Iterator[Piece]:
        """Read row group by row group, without a copy of what Arrow decoded."""
        shape = self.facts.levels[level]
        with self._file() as file:
            for number in range(file.num_row_groups):
                with readable(self.path):
                    table = file.read_row_group(number, columns=["key", "status", level])
                    _check_nulls(table)
                    keys = table.filter(has_status(table, "ok"))["key"].combine_chunks()
                    lists = table[level].combine_chunks()
                    values = lists.flatten().to_numpy().reshape(-1, *shape)  # without nulls
                    if not lists.is_valid().equals(has_status(table, "ok").combine_chunks()):
                        raise ValueError(f"{level} is not of the rows that are ok")
                yield keys, values

    def _file(self) -> Any:
        with opened(self.path):  # a pipe or a folder of this name is refused
            return parquet_file(self.path, self.path)


class ClipPart:
    """A .npy file of vectors and its two tables."""

    def __init__(self, out: Path, number: str) -> None:
        self.path, *tables = paths_of(out, number)
        self._tables = tuple(tables)

    @cached_property
    def _vectors(self) -> NDArray[Any]:
        return read_vectors(self.path)

    @cached_property
    def facts(self) -> Facts:
        """Read from the table's metadata and the array's header."""
        metadata = read_tables(self._tables[:1]).schema.metadata
        with readable(self._tables[0]):
            level = metadata[LEVEL].decode()
        return Facts(
            columns=(*ROW_COLUMNS, level),
            levels={level: self._vectors.shape[1:]},
            dtype=self._vectors.dtype,
            made_by=made_by_of(metadata, self._tables[0]),
        )

    @cached_property
    def num_rows(self) -> int:
        """Counted."""
        return len(read_tables(self._tables))

    @property
    def num_ok(self) -> int:
        """Vectors."""
        return len(self._vectors)

    def table(self, columns: Sequence[str] | None) -> pa.Table:
        """Read columns; that of the level is made from the vectors."""
        pa = require("pyarrow", _PURPOSE)
        (level, (size,)) = next(iter(self.facts.levels.items()))
        table = read_tables(self._tables).drop_columns([POSITION])
        if columns is None or level in columns:
            with readable(self._tables[0]):
                done = np.array(has_status(table, "ok"))
            if done.sum() != len(self._vectors):
                raise unreadable(self.path, "it has not one vector per row of its table")
            places = pa.array(np.cumsum(done) - 1, pa.int64(), mask=~done)
            lists = pa.FixedSizeListArray.from_arrays(pa.array(self._vectors.reshape(-1)), size)
            table = table.append_column(level, lists.take(places))  # null where the place is
        return table if columns is None else table.select(list(columns))

    def pieces(self, level: str) -> Iterator[Piece]:
        """Give the file as it is mapped into memory."""
        keys = read_tables(self._tables[:1])["key"].combine_chunks()
        if level not in self.facts.levels or len(keys) != len(self._vectors):
            raise unreadable(self.path, "it has not one vector per row of its table")
        yield keys, self._vectors


class _Group:
    """What all parts of a store of maps have in common, read once."""

    def __init__(self, out: Path) -> None:
        self._out = out

    @cached_property
    def store(self) -> str:
        """Id of the store."""
        return read_group(self._out).attributes.store

    @cached_property
    def facts(self) -> Facts:
        """Read from the group's and the arrays' metadata."""
        group = read_group(self._out).attributes
        arrays = {name: read_array(self._out / name)[1] for name in group.levels}
        kinds = {(one.data_type, len(one.shape)) for one in arrays.values()}
        if len(kinds) > 1 or not kinds <= {("float32", 4), ("float16", 4)}:
            raise unreadable(self._out, "its arrays are not maps of one dtype")
        if {one.attributes.store for one in arrays.values()} != {group.store}:
            raise unreadable(self._out, "its arrays are not of one store")
        return Facts(
            columns=(*ROW_COLUMNS, ROW),
            levels={name: one.shape[1:] for name, one in arrays.items()},
            dtype=np.dtype(next(iter(arrays.values())).data_type),
            made_by=group.trunkline,
        )


class ZarrPart:
    """A shard's part of the table of images, and the maps it tells of."""

    def __init__(self, path: Path, out: Path, group: _Group) -> None:
        self.path = path
        self.out = out
        self._group = group

    @cached_property
    def facts(self) -> Facts:
        """Read once for all parts; each must be of the same store."""
        pa = require("pyarrow", _PURPOSE)
        with opened(self.path), parquet_file(self.path, self.path) as file, readable(self.path):
            schema = file.schema_arrow
        if not schema.equals(pa.schema([*row_fields(), pa.field(ROW, pa.int64())])):
            raise unreadable(self.path, "it is no table of maps")
        if (schema.metadata or {}).get(STORE) != self._group.store.encode():
            raise unreadable(self.path, "it is of another store than the arrays")
        return self._group.facts

    @cached_property
    def num_rows(self) -> int:
        """Read from the end of the table."""
        return ParquetPart(self.path).num_rows

    @cached_property
    def num_ok(self) -> int:
        """Counted."""
        return _count_ok(self.table(["status"]))

    def table(self, columns: Sequence[str] | None) -> pa.Table:
        """Read columns of the table of images."""
        return ParquetPart(self.path).table(columns)

    def pieces(self, level: str) -> Iterator[Piece]:
        """Read some maps at a time."""
        table = self.table(["key", "status", ROW])
        table = table.filter(has_status(table, "ok"))
        maps = Maps(self.out / level)
        size = math.prod(self.facts.levels[level]) * self.facts.dtype.itemsize
        step = max(1, min(_MAPS_AT_ONCE, _BYTES_AT_ONCE // size))
        for start in range(0, len(table), step):
            some = table.slice(start, step)
            yield some["key"].combine_chunks(), maps.some(some[ROW].to_numpy())


def _check_nulls(table: pa.Table) -> None:
    """Refuse a table that does not say of every row what every row has."""
    for name in ("key", "status", ROW):
        if name in table.column_names and table[name].null_count:
            raise ValueError(f"a row has no {name}")


def made_by_of(metadata: dict[bytes, bytes], path: Path) -> dict[str, Any]:
    """Return what decides the numbers, from the metadata of a table.

    Raises:
        StoreError: It is damaged.
    """
    try:
        return parse_document(metadata[MADE_BY], dict[str, Any])
    except DocumentError as error:
        raise unreadable(path, f"its metadata say {error}") from error


def _sorted(folder: Path, pattern: str) -> list[Path]:
    """Sort by name, and longer numbers after shorter ones."""
    with readable(folder):
        return sorted(folder.glob(pattern), key=lambda path: (len(path.name), path.name))


def has_status(table: pa.Table, status: str) -> pa.ChunkedArray:
    """Return per row whether its status is this one."""
    return import_module("pyarrow.compute").equal(table["status"], status)


def _count_ok(table: pa.Table) -> int:
    return int(has_status(table, "ok").to_numpy().sum())
