"""Pooled features as Parquet: a folder of parts that every reader takes for one table.

A part is a shard, a row group is a block. The columns are those of ``ROW_COLUMNS``, then one list
of C numbers per level, null where the image failed. The same rows give the same bytes.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BufferedWriter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trunkline.errors import ConfigError, StoreError
from trunkline.extraction.data_files import Hashes, check_owners, numbers_in, opened, readable
from trunkline.extraction.durable import GrowingFile, remove, writing
from trunkline.extraction.records import ROW_COLUMNS, Block, Row, Schema, as_utf8
from trunkline.runtimes.optional import require

if TYPE_CHECKING:
    import pyarrow as pa

# Of a table's metadata: the JSON of ``Schema.made_by``, and ``Schema.store_id``.
MADE_BY, STORE = b"trunkline", b"trunkline.store"
ROW_GROUP = 1024  # of 3 840 float32 numbers 16 MB: little memory, and large enough to read fast
_PURPOSE = "a store of features"
_INTEGERS = ("width", "height")
PART = re.compile(r"part-([0-9]{5,})\.parquet")
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
    fields = row_fields()
    element = pa.from_numpy_dtype(schema.numpy_dtype)
    for column in schema.columns if levels else ():
        about = {"stride": str(column.stride)}
        fields.append(pa.field(column.name, pa.list_(element, column.shape[0]), metadata=about))
    made_by = json.dumps(schema.made_by, sort_keys=True).encode()
    return pa.schema(fields, {MADE_BY: made_by, STORE: schema.store_id.encode()})


def rows_table(rows: list[Row]) -> pa.Table:
    """Return what is known of images besides their features: the columns of ``ROW_COLUMNS``."""
    pa = require("pyarrow", _PURPOSE)
    fields = row_fields()
    arrays = [
        pa.array([_plain(getattr(row, field.name)) for row in rows], field.type) for field in fields
    ]
    return pa.table(arrays, pa.schema(fields))


def rows_of(table: pa.Table) -> list[Row]:
    """Return the rows that a table was made from.

    Raises:
        ValueError: One has no key or path, or a status that no row has.
    """
    rows = [Row(**row) for row in table.select(ROW_COLUMNS).to_pylist()]
    if table["key"].null_count or table["path"].null_count:
        raise ValueError("a row has no key or no path")
    if not {row.status for row in rows} <= {"ok", "failed"}:
        raise ValueError("a row is neither ok nor failed")
    return rows


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
    """Return the block that a table was made from, in memory of its own.

    Raises:
        ValueError: It is not a table of such a block.
    """
    if not table.schema.equals(arrow_schema(schema)):  # before memory is taken for its numbers
        raise ValueError("its columns are not those of the store")
    block = schema.empty_block(rows_of(table))
    done = np.array([row.status == "ok" for row in block.rows], bool)
    for column in schema.columns:
        lists = table.column(column.name).combine_chunks()
        if not np.array_equal(lists.is_valid().to_numpy(False), done):
            raise ValueError(f"{column.name} is not of the rows that are ok")
        numbers = lists.flatten()  # nulls are left out
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

    def finish(self) -> str:
        """Write what is left, and return the SHA-256 of what ``commit`` puts in place.

        Raises:
            OutputError: The disk refused it.
        """
        with writing(self.target):
            self._opened().close()  # without rows a table that has columns only
            return self._file.finish()

    def commit(self) -> str:
        """Put the file in place, and return its SHA-256.

        Raises:
            OutputError: The disk refused it.
        """
        self.finish()
        with writing(self.target):
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
        write_page_checksum=True,  # so that damage is seen by whoever reads, too
    )


class _PartWriter:
    """One part of a ``ParquetFiles``, see ``formats.ShardWriter``."""

    def __init__(self, target: Path, scratch: Path, schema: Schema) -> None:
        self._schema = arrow_schema(schema)
        self._store_id = schema.store_id
        self._table = TableWriter(target, scratch, self._schema)

    def append(self, block: Block) -> None:
        self._table.append(table_of(block, self._schema))

    def commit(self, replacing: Callable[[], None] | None = None) -> dict[str, str]:
        target = self._table.target
        self._table.finish()
        check_owners(owners_of(target), self._store_id)
        if replacing is not None:
            replacing()
        return {target.name: self._table.commit()}

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
    files_per_shard = 1

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
        require("pyarrow", _PURPOSE)

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
        return _PartWriter(self.path(shard), self._scratch, self._schema)

    def blocks(self, shard: int, hashes: Hashes | None = None) -> Iterator[Block]:
        """Read a part back, row group by row group."""
        path = self.path(shard)
        for table in row_groups(path, None if hashes is None else hashes[path.name]):
            with readable(path):
                block = block_of(table, self._schema)
            yield block

    def files(self, shard: int, _images: int) -> list[str]:
        """Return the name of a part."""
        return [self.path(shard).name]

    def found(self) -> Counter[int]:
        """Count by names."""
        return numbers_in(self._out, PART)

    def owners(self, shard: int) -> dict[Path, str | None]:
        """Ask the part."""
        return owners_of(self.path(shard))

    def damaged(self, _length: int, *, complete: bool) -> list[str]:  # noqa: ARG002
        """Return nothing: no file belongs to several shards."""
        return []

    def finish(self, _total: int) -> None:
        """Do nothing: the parts tell all."""

    def remove(self, shard: int) -> None:
        """Remove a part."""
        with writing(self._out):
            remove(self.path(shard))


def row_groups(path: Path, sha256: str | None = None, *, empty: bool = False) -> Iterator[pa.Table]:
    """Read a Parquet file piece by piece.

    Args:
        path: Of the file.
        sha256: That it must have, None for no check.
        empty: Whether a file without rows gives a table without rows, rather than nothing.

    Raises:
        StoreError: It is not there, is damaged, or not the one that was written.
    """
    with opened(path, sha256) as file, parquet_file(file, path) as table:
        for number in range(table.num_row_groups):
            with readable(path):
                group = table.read_row_group(number)
            yield group
        if empty and table.num_row_groups == 0:
            yield table.schema_arrow.empty_table()


def parquet_file(file: Any, path: Path) -> Any:
    """Return what pyarrow makes of an open file, or of a path; checksums of pages are compared.

    Raises:
        StoreError: It is no Parquet file, or is damaged.
    """
    parquet = require("pyarrow.parquet", _PURPOSE)
    with readable(path):
        return parquet.ParquetFile(
            file, page_checksum_verification=True, memory_map=isinstance(file, Path)
        )


def owners_of(*paths: Path) -> dict[Path, str | None]:
    """Return the stores that Parquet files say they are of, None where one does not say.

    Args:
        paths: Of files, of which those that are not there are left out.
    """
    return {path: _owner(path) for path in paths if os.path.lexists(path)}


def _owner(path: Path) -> str | None:
    try:
        with opened(path) as file, parquet_file(file, path) as table, readable(path):
            store = (table.schema_arrow.metadata or {}).get(STORE)
            return None if store is None else str(store.decode())
    except StoreError:
        return None


def row_fields() -> list[pa.Field]:
    """Return the columns of ``ROW_COLUMNS``."""
    pa = require("pyarrow", _PURPOSE)
    return [
        pa.field(name, pa.int32() if name in _INTEGERS else pa.string()) for name in ROW_COLUMNS
    ]


def _plain(value: object) -> object:
    return as_utf8(value) if isinstance(value, str) else value
