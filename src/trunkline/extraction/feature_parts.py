"""The parts of a finished or growing feature store, opened for reading, whatever its format.

A part is a shard as it lies on the disk. What is in place is complete, so the bookkeeping beside
a store is not looked at, and a store without it, or half done, opens as well.
"""

from __future__ import annotations

import json
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
from trunkline.extraction.parquet_files import MADE_BY, unreadable
from trunkline.extraction.records import ROW_COLUMNS
from trunkline.extraction.zarr_arrays import LEVELS, ROW, ROWS
from trunkline.runtimes.optional import require

if TYPE_CHECKING:
    import pyarrow as pa

Piece = tuple["pa.Array", NDArray[Any]]  # keys of images and their features
_PURPOSE = "a store of features"
_MAPS_AT_ONCE = 64


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
    if out.is_file() and out.suffix == ".parquet":
        return [ParquetPart(out)]
    if not out.is_dir():
        raise StoreError(
            f"{out} is not a store of features: "
            f"{'it is some other file' if out.exists() else 'there is nothing'}. Give the OUT of "
            "trunkline extract, or one of its .parquet files."
        )
    parts: list[Part]
    if (out / ROWS).is_dir():
        parts = [ZarrPart(path, out) for path in _sorted(out / ROWS, "*.parquet")]
    elif (out / VECTORS).is_dir() and (out / METADATA).is_dir():
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
        schema = self._file().schema_arrow
        made_by = (schema.metadata or {}).get(MADE_BY)
        levels: dict[str, tuple[int, ...]] = {
            field.name: (int(field.type.list_size),)
            for field in schema
            if pa.types.is_fixed_size_list(field.type)
        }
        if made_by is None or not levels or tuple(schema.names[: len(ROW_COLUMNS)]) != ROW_COLUMNS:
            raise StoreError(
                f"{self.path} is a Parquet file, but none of a store of features. Give the OUT of "
                "trunkline extract."
            )
        element = schema.field(next(iter(levels))).type.value_type
        return Facts(
            columns=tuple(schema.names),
            levels=levels,
            dtype=np.dtype(element.to_pandas_dtype()),
            made_by=json.loads(made_by),
        )

    @cached_property
    def num_rows(self) -> int:
        """Read from the end of the file."""
        return int(self._file().metadata.num_rows)

    @cached_property
    def num_ok(self) -> int:
        """Counted."""
        return _count_ok(self.table(["status"]))

    def table(self, columns: Sequence[str] | None) -> pa.Table:
        """Read columns."""
        pa = require("pyarrow", _PURPOSE)
        try:
            table = self._file().read(columns=None if columns is None else list(columns))
        except (OSError, pa.ArrowException) as error:
            raise unreadable(self.path, error) from error
        return table if columns is None else table.select(list(columns))

    def pieces(self, level: str) -> Iterator[Piece]:
        """Read row group by row group, without a copy of what Arrow decoded."""
        pa = require("pyarrow", _PURPOSE)
        shape = self.facts.levels[level]
        file = self._file()
        for number in range(file.num_row_groups):
            try:
                table = file.read_row_group(number, columns=["key", "status", level])
            except (OSError, pa.ArrowException) as error:
                raise unreadable(self.path, error) from error
            keys = table.filter(has_status(table, "ok"))["key"].combine_chunks()
            numbers = table[level].combine_chunks().flatten()  # nulls are left out
            yield keys, numbers.to_numpy().reshape(-1, *shape)

    def _file(self) -> Any:
        pa = require("pyarrow", _PURPOSE)
        parquet = require("pyarrow.parquet", _PURPOSE)
        try:
            return parquet.ParquetFile(self.path, memory_map=True)
        except (OSError, pa.ArrowException) as error:
            raise unreadable(self.path, error) from error


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
        metadata = read_tables(self._tables[:1]).schema.metadata or {}
        if MADE_BY not in metadata or LEVEL not in metadata:
            raise StoreError(
                f"{self._tables[0]} was not written by trunkline extract; read {self.path} with "
                "numpy.load."
            )
        level = metadata[LEVEL].decode()
        return Facts(
            columns=(*ROW_COLUMNS, level),
            levels={level: self._vectors.shape[1:]},
            dtype=self._vectors.dtype,
            made_by=json.loads(metadata[MADE_BY]),
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
            done = np.array(has_status(table, "ok"))
            places = pa.array(np.cumsum(done) - 1, pa.int64(), mask=~done)
            lists = pa.FixedSizeListArray.from_arrays(pa.array(self._vectors.reshape(-1)), size)
            table = table.append_column(level, lists.take(places))  # null where the place is
        return table if columns is None else table.select(list(columns))

    def pieces(self, level: str) -> Iterator[Piece]:
        """Give the file as it is mapped into memory."""
        keys = read_tables(self._tables[:1])["key"].combine_chunks()
        if level not in self.facts.levels or len(keys) != len(self._vectors):
            raise unreadable(self.path, ValueError("not one vector per row of its table"))
        yield keys, self._vectors


class ZarrPart:
    """A shard's part of the table of images, and the maps it tells of."""

    def __init__(self, path: Path, out: Path) -> None:
        self.path = path
        self.out = out

    @cached_property
    def facts(self) -> Facts:
        """Read from the group's and the arrays' metadata."""
        group = _about(self.out)["attributes"]
        arrays = {name: _about(self.out / name) for name in group[LEVELS]}
        return Facts(
            columns=(*ROW_COLUMNS, ROW),
            levels={name: tuple(about["shape"][1:]) for name, about in arrays.items()},
            dtype=np.dtype(next(iter(arrays.values()))["data_type"]),
            made_by=group[MADE_BY.decode()],
        )

    @cached_property
    def num_rows(self) -> int:
        """Read from the end of the table."""
        return len(self.table([ROW]))

    @cached_property
    def num_ok(self) -> int:
        """Counted."""
        return _count_ok(self.table(["status"]))

    def table(self, columns: Sequence[str] | None) -> pa.Table:
        """Read columns of the table of images."""
        return ParquetPart(self.path).table(columns)

    def pieces(self, level: str) -> Iterator[Piece]:
        """Read some maps at a time."""
        zarr = require("zarr", _PURPOSE)
        table = self.table(["key", "status", ROW])
        table = table.filter(has_status(table, "ok"))
        array = zarr.open_array(self.out / level, mode="r", zarr_format=3)
        for start in range(0, len(table), _MAPS_AT_ONCE):
            some = table.slice(start, _MAPS_AT_ONCE)
            yield some["key"].combine_chunks(), array.oindex[some[ROW].to_numpy()]


def _sorted(folder: Path, pattern: str) -> list[Path]:
    """Sort by name, and longer numbers after shorter ones."""
    return sorted(folder.glob(pattern), key=lambda path: (len(path.name), path.name))


def has_status(table: pa.Table, status: str) -> pa.ChunkedArray:
    """Return per row whether its status is this one."""
    return import_module("pyarrow.compute").equal(table["status"], status)


def _count_ok(table: pa.Table) -> int:
    return int(has_status(table, "ok").to_numpy().sum())


def _about(folder: Path) -> Any:
    try:
        return json.loads((folder / "zarr.json").read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{folder / 'zarr.json'} cannot be read: {error}. The store is damaged; remove it, "
            "and run the command that made it again."
        ) from error
