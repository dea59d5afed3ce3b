"""Pooled features as Parquet: a folder of parts that every reader takes for one table.

A part is a shard, a row group is a block. The columns are those of ``ROW_COLUMNS``, then one list
of C numbers per level, null where the image failed. The same rows give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from io import BufferedWriter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trunkline.errors import ConfigError, StoreError
from trunkline.extraction.durable import GrowingFile, remove, writing
from trunkline.extraction.records import ROW_COLUMNS, Block, Row, Schema, as_utf8
from trunkline.runtimes.optional import require

if TYPE_CHECKING:
    import pyarrow as pa

# Of a table's metadata; its value is the JSON of ``Schema.made_by``.
MADE_BY = b"trunkline"
ROW_GROUP = 1024  # of 3 840 float32 numbers 16 MB: little memory, and large enough to read fast
_PURPOSE = "a store of features"
_INTEGERS = ("width", "height")
_REPEATED = ("status", "error")  # few different texts: a dictionary of them is smaller


def arrow_schema(schema: Schema, levels: bool = True) -> pa.Schema:
    """Return the columns of a table of features.

    Args:
        schema: What the store holds.
        levels: Whether its levels are among them; those must be pooled.

    Returns:
        Columns whose metadata tell a level's stride, and the table's what the numbers depend on.
    """
    pa = require("pyarrow", _PURPOSE)
    fields = _row_fields()
    element = pa.from_numpy_dtype(schema.numpy_dtype)
    for column in schema.columns if levels else ():
        about = {"stride": str(column.stride)}
        fields.append(pa.field(column.name, pa.list_(element, column.shape[0]), metadata=about))
    return pa.schema(fields, {MADE_BY: json.dumps(schema.made_by, sort_keys=True).encode()})


def rows_table(rows: list[Row]) -> pa.Table:
    """Return what is known of images besides their features: the columns of ``ROW_COLUMNS``."""
    pa = require("pyarrow", _PURPOSE)
    fields = _row_fields()
    arrays = [
        pa.array([_plain(getattr(row, field.name)) for row in rows], field.type) for field in fields
    ]
    return pa.table(arrays, pa.schema(fields))


def rows_of(table: pa.Table) -> list[Row]:
    """Return the rows that a table was made from."""
    return [Row(**row) for row in table.select(ROW_COLUMNS).to_pylist()]


def table_of(block: Block, schema: pa.Schema) -> pa.Table:
    """Return a block as a table.

    Args:
        block: Values ``(n, C)`` per level.
        schema: Of ``arrow_schema``.

    Returns:
        A table whose numbers share the block's memory.
    """
    pa = require("pyarrow", _PURPOSE)
    arrays = list(rows_table(block.rows).columns)
    failed = pa.array([row.status == "failed" for row in block.rows], pa.bool_())
    for field in list(schema)[len(ROW_COLUMNS) :]:
        values = np.ascontiguousarray(block.values[field.name])
        numbers = pa.array(values.reshape(-1), field.type.value_type)
        arrays.append(pa.FixedSizeListArray.from_arrays(numbers, values.shape[1], mask=failed))
    return pa.table(arrays, schema)


def block_of(table: pa.Table, schema: Schema) -> Block:
    """Return the block that a table was made from, in memory of its own."""
    block = schema.empty_block(rows_of(table))
    done = np.array([row.status == "ok" for row in block.rows], bool)
    for column in schema.columns:
        numbers = table.column(column.name).combine_chunks().flatten()  # nulls are left out
        block.values[column.name][done] = numbers.to_numpy().reshape(-1, *column.shape)
    return block


class TableWriter:
    """A Parquet file that grows aside by row groups and exists whole or not at all.

    Args:
        target: What it shall be called.
        scratch: Where it grows.
        schema: Of the tables to come.
    """

    def __init__(self, target: Path, scratch: Path, schema: pa.Schema) -> None:
        self.target = target
        self._file = GrowingFile(target, scratch)
        self._schema = schema
        self._writer: Any = None

    def append(self, table: pa.Table) -> None:
        """Write a row group.

        Raises:
            OutputError: The disk refused it.
        """
        with writing(self.target):
            self._opened().write_table(table, row_group_size=max(len(table), 1))

    def commit(self) -> str:
        """Put the file in place, and return its SHA-256.

        Raises:
            OutputError: The disk refused it.
        """
        with writing(self.target):
            self._opened().close()  # without rows a table that has columns only
            return self._file.commit()

    def discard(self) -> None:
        """Remove what was not put in place."""
        with suppress(OSError):  # it writes what it still holds, onto a disk that may be full
            if self._writer is not None:
                self._writer.close()
        self._file.discard()

    def _opened(self) -> Any:
        if self._writer is None:
            # Python's file: its errors keep their number, Arrow's own are texts.
            self._writer = _parquet_writer(self._file.open(), self._schema)
        return self._writer


def _parquet_writer(file: BufferedWriter, schema: pa.Schema) -> Any:
    parquet = require("pyarrow.parquet", _PURPOSE)
    levels = [field for field in schema if str(field.type).startswith("fixed_size_list")]
    # The bytes of a number apart from one another compress to nine tenths. DuckDB reads half
    # precision only without this.
    split = [f"{one.name}.list.element" for one in levels if one.type.value_type.bit_width > 16]
    return parquet.ParquetWriter(
        file,
        schema,
        compression="zstd",
        use_dictionary=list(_REPEATED),
        use_byte_stream_split=split,
        write_statistics=[name for name in schema.names if name in ROW_COLUMNS],
    )


class _PartWriter:
    """One part of a ``ParquetFiles``, see ``formats.ShardWriter``."""

    def __init__(self, target: Path, scratch: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._table = TableWriter(target, scratch, schema)

    def append(self, block: Block) -> None:
        self._table.append(table_of(block, self._schema))

    def commit(self) -> dict[str, str]:
        return {self._table.target.name: self._table.commit()}

    def discard(self) -> None:
        self._table.discard()


class ParquetFiles:
    """A folder of Parquet files, one per shard; see ``formats.ShardFormat``.

    Args:
        out: The folder.
        scratch: Where parts grow.
        schema: Levels of shape ``(C,)``.

    Raises:
        ConfigError: A level is a map.
        NotInstalledError: pyarrow is not there.
    """

    name = "parquet"
    block_size = ROW_GROUP

    def __init__(self, out: Path, scratch: Path, schema: Schema) -> None:
        maps = [one.name for one in schema.columns if len(one.shape) != 1]
        if maps:
            raise ConfigError(
                f"Parquet holds pooled features, but {', '.join(maps)} would be maps; choose a "
                "pool (avg, max or gem), or a store called NAME.zarr."
            )
        self._out = out
        self._scratch = scratch
        self._schema = schema
        self._arrow_schema = arrow_schema(schema)

    def create(self) -> None:
        """Make the folders."""
        with writing(self._out):
            self._out.mkdir(parents=True, exist_ok=True)
            self._scratch.mkdir(parents=True, exist_ok=True)

    def path(self, shard: int) -> Path:
        """Return where a shard is."""
        return self._out / f"part-{shard:05d}.parquet"

    def writer(self, shard: int) -> _PartWriter:
        """Begin a part."""
        return _PartWriter(self.path(shard), self._scratch, self._arrow_schema)

    def blocks(self, shard: int) -> Iterator[Block]:
        """Read a part back, row group by row group."""
        for table in row_groups(self.path(shard)):
            yield block_of(table, self._schema)

    def finish(self, _total: int) -> None:
        """Do nothing: the parts tell all."""

    def remove(self, shard: int) -> None:
        """Remove a part."""
        with writing(self._out):
            remove(self.path(shard))


def row_groups(path: Path, empty: bool = False) -> Iterator[pa.Table]:
    """Read a Parquet file piece by piece.

    Args:
        path: Of the file.
        empty: Whether a file without rows gives a table without rows, rather than nothing.

    Raises:
        StoreError: It is not there, or is damaged.
    """
    pa = require("pyarrow", _PURPOSE)
    parquet = require("pyarrow.parquet", _PURPOSE)
    try:
        with parquet.ParquetFile(path) as file:
            for number in range(file.num_row_groups):
                yield file.read_row_group(number)
            if empty and file.num_row_groups == 0:
                yield file.schema_arrow.empty_table()
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> StoreError:
    """Return the error for a file of a store that is missing or damaged."""
    return StoreError(
        f"{path} cannot be read: {error}. Remove it, and run the command that made the store "
        "again to have it computed anew."
    )


def _row_fields() -> list[pa.Field]:
    pa = require("pyarrow", _PURPOSE)
    return [
        pa.field(name, pa.int32() if name in _INTEGERS else pa.string()) for name in ROW_COLUMNS
    ]


def _plain(value: object) -> object:
    return as_utf8(value) if isinstance(value, str) else value
