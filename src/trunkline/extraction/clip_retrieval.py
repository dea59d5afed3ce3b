"""Pooled features of one level as clip-retrieval and autofaiss read them.

Per shard ``img_emb/img_emb_00000.npy`` holds the vectors and ``metadata/metadata_00000.parquet``
a row for each of them, in the same order; images that failed are apart, in
``failed/failed_00000.parquet``, since a vector stands for every row of the former two. Upstream
pads numbers to the width of the largest; ours have five digits from the start, because that many
shards are not known then, and readers sort by name.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from io import BufferedWriter
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from trunkline.errors import ConfigError, StoreError
from trunkline.extraction.data_files import (
    Hashes,
    check_owners,
    numbers_in,
    opened,
    readable,
    unreadable,
)
from trunkline.extraction.durable import GrowingFile, remove, writing
from trunkline.extraction.parquet_files import (
    MADE_BY,
    ROW_GROUP,
    STORE,
    TableWriter,
    arrow_schema,
    owners_of,
    row_fields,
    row_groups,
    rows_of,
    rows_table,
)
from trunkline.extraction.records import Block, Column, Row, Schema
from trunkline.runtimes.optional import require

if TYPE_CHECKING:
    import pyarrow as pa

VECTORS, METADATA, FAILED = "img_emb", "metadata", "failed"
POSITION = "position"  # of an image in its shard, the column that puts both tables together again
IMAGE_PATH = "image_path"  # what clip-retrieval calls the column ``path``
LEVEL = b"trunkline.level"  # of a table's metadata: the name of the level
_NAMES = {
    VECTORS: re.compile(rf"{VECTORS}_([0-9]{{5,}})\.npy"),
    METADATA: re.compile(rf"{METADATA}_([0-9]{{5,}})\.parquet"),
    FAILED: re.compile(rf"{FAILED}_([0-9]{{5,}})\.parquet"),
}
_PURPOSE = "a store of features"


class VectorWriter:
    """A .npy file of vectors that grows aside and exists whole or not at all.

    Args:
        target: What it shall be called.
        scratch: Where it grows.
        column: Of shape ``(C,)``.
        dtype: Of the numbers.
    """

    def __init__(self, target: Path, scratch: Path, column: Column, dtype: np.dtype[Any]) -> None:
        self.target = target
        self._file = GrowingFile(target, scratch)
        self._shape = column.shape
        self._dtype = dtype
        self._count = 0

    def append(self, values: NDArray[Any]) -> None:
        """Write vectors ``(n, C)``.

        Raises:
            OutputError: The disk refused them.
        """
        with writing(self.target):
            self._opened().write(np.ascontiguousarray(values, self._dtype).data)
            self._count += len(values)

    def finish(self) -> str:
        """Write the header anew, and return the SHA-256 of what ``commit`` puts in place.

        Raises:
            OutputError: The disk refused it.
        """
        with writing(self.target):
            file = self._opened()
            if not file.closed:
                file.seek(0)
                self._write_header(file)
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
        self._file.discard()

    def _opened(self) -> BufferedWriter:
        is_new = not self._file.is_open
        file = self._file.open()
        if is_new:
            self._write_header(file)
        return file

    def _write_header(self, file: BufferedWriter) -> None:
        """Write the shape so far; NumPy leaves room for a longer one, so the size is the same."""
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._count, *self._shape),
        }
        np.lib.format.write_array_header_1_0(file, header)


class _ClipWriter:
    """One shard of a ``ClipRetrieval``, see ``formats.ShardWriter``."""

    def __init__(self, store: ClipRetrieval, shard: int, scratch: Path, schema: Schema) -> None:
        self._store = store
        self._shard = shard
        self._store_id = schema.store_id
        self._column = schema.columns[0]
        self._schema = _tables_schema(schema)
        self._count = 0
        vectors, metadata, failed = store.paths(shard)
        self._out = vectors.parent.parent
        self._vectors = VectorWriter(vectors, scratch, self._column, schema.numpy_dtype)
        self._metadata = TableWriter(metadata, scratch, self._schema)
        self._failed = TableWriter(failed, scratch, self._schema)

    def append(self, block: Block) -> None:
        done = np.array([row.status == "ok" for row in block.rows], bool)
        table = _table_of(block.rows, self._count, self._schema)
        self._count += len(block.rows)
        if done.any():
            self._vectors.append(block.values[self._column.name][done])
            self._metadata.append(table.filter(done))
        if not done.all():
            self._failed.append(table.filter(~done))

    def commit(self, replacing: Callable[[], None] | None = None) -> dict[str, str]:
        # The vectors last: where they are, the other two are.
        files = (self._failed, self._metadata, self._vectors)
        for file in files:
            file.finish()
        check_owners(self._store.owners(self._shard), self._store_id)
        if replacing is not None:
            replacing()
        digests = {file.target: file.commit() for file in files}
        return {path.relative_to(self._out).as_posix(): one for path, one in digests.items()}

    def discard(self) -> None:
        for file in (self._failed, self._metadata, self._vectors):
            file.discard()


class ClipRetrieval:
    """Arrays of vectors with tables beside them; see ``formats.ShardFormat``.

    Args:
        out: The store's folder.
        scratch: Where files grow.
        schema: One level of shape ``(C,)``.

    Raises:
        ConfigError: There are more levels, or it is a map.
        NotInstalledError: pyarrow is not there.
    """

    name = "clip-retrieval"
    block_size = ROW_GROUP
    files_per_shard = 3

    def __init__(self, out: Path, scratch: Path, schema: Schema) -> None:
        if len(schema.columns) != 1:
            raise ConfigError(
                "the layout clip-retrieval holds one vector per image, but "
                f"{len(schema.columns)} levels were asked for: "
                f"{', '.join(one.name for one in schema.columns)}. Choose one of them, or a store "
                "called NAME.parquet."
            )
        if len(schema.columns[0].shape) != 1:
            raise ConfigError(
                "the layout clip-retrieval holds pooled features, but "
                f"{schema.columns[0].name} would be maps; choose a pool (avg, max or gem), or a "
                "store called NAME.zarr."
            )
        require("pyarrow", _PURPOSE)
        self._out = out
        self._scratch = scratch
        self._schema = schema

    def create(self) -> None:
        """Make the folders."""
        with writing(self._out):
            for folder in (VECTORS, METADATA, FAILED):
                (self._out / folder).mkdir(parents=True, exist_ok=True)
            self._scratch.mkdir(parents=True, exist_ok=True)

    def paths(self, shard: int) -> tuple[Path, Path, Path]:
        """Return where a shard's vectors, their table, and the table of failed images are."""
        return paths_of(self._out, f"{shard:05d}")

    def writer(self, shard: int) -> _ClipWriter:
        """Begin a shard."""
        return _ClipWriter(self, shard, self._scratch, self._schema)

    def blocks(self, shard: int, hashes: Hashes | None = None) -> Iterator[Block]:
        """Read a shard back, the failed images between the others as they were."""
        path, *tables = self.paths(shard)
        sha256 = [None if hashes is None else hashes[name] for name in self.files(shard, 0)]
        with opened(path, sha256[0]) as file:
            vectors = _mapped(file, path)
            table = read_tables(tuple(tables), tuple(sha256[1:]))
            column, begin = self._schema.columns[0], 0
            if vectors.dtype != self._schema.numpy_dtype or vectors.shape[1:] != column.shape:
                raise unreadable(path, "its vectors are not those of the store")
            for start in range(0, len(table), self.block_size):
                with readable(tables[0]):
                    rows = rows_of(table.slice(start, self.block_size))
                block = self._schema.empty_block(rows)
                done = np.array([row.status == "ok" for row in rows], bool)
                end = begin + int(done.sum())
                if end > len(vectors):
                    raise _misfit(path)
                block.values[column.name][done] = vectors[begin:end]
                begin = end
                yield block
            if begin != len(vectors):
                raise _misfit(path)

    def files(self, shard: int, _images: int) -> list[str]:
        """Return the names of the three files."""
        return [path.relative_to(self._out).as_posix() for path in self.paths(shard)]

    def found(self) -> Counter[int]:
        """Count by names."""
        return sum(
            (numbers_in(self._out / folder, pattern) for folder, pattern in _NAMES.items()),
            Counter[int](),
        )

    def owners(self, shard: int) -> dict[Path, str | None]:
        """Ask the tables; the vectors are of the store that their table is of."""
        vectors, *tables = self.paths(shard)
        found = owners_of(*tables)
        if os.path.lexists(vectors):
            found[vectors] = found.get(tables[0])
        return found

    def damaged(self, _length: int, *, complete: bool) -> list[str]:  # noqa: ARG002
        """Return nothing: no file belongs to several shards."""
        return []

    def finish(self, _total: int) -> None:
        """Do nothing: the files tell all."""

    def remove(self, shard: int) -> None:
        """Remove a shard's files, the vectors first."""
        with writing(self._out):
            for path in self.paths(shard):
                remove(path)


def paths_of(out: Path, number: str) -> tuple[Path, Path, Path]:
    """Return the three files of a shard.

    Args:
        out: The store's folder.
        number: Of the shard, as names have it.
    """
    return (
        out / VECTORS / f"{VECTORS}_{number}.npy",
        out / METADATA / f"{METADATA}_{number}.parquet",
        out / FAILED / f"{FAILED}_{number}.parquet",
    )


def read_vectors(path: Path) -> NDArray[Any]:
    """Map vectors ``(n, C)`` into memory without reading them.

    Raises:
        StoreError: The file is not there, or is damaged.
    """
    with opened(path) as file:
        return _mapped(file, path)


def _mapped(file: BinaryIO, path: Path) -> NDArray[Any]:
    """Map an open .npy file; nothing but vectors of the dtypes of a store is one."""
    with readable(path):
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("it is a .npy file of another version")
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if is_fortran or len(shape) != 2 or dtype not in (np.float32, np.float16):
            raise ValueError(f"it holds an array {shape} of {dtype}, and no vectors")
        begin, size = file.tell(), math.prod(shape) * dtype.itemsize
        if min(shape) < 0 or os.fstat(file.fileno()).st_size != begin + size:
            raise ValueError(f"its header tells of {shape} numbers, and it has others")
        if not size:
            return np.zeros(shape, dtype)
        return np.memmap(file, dtype, "r", begin, shape)


def read_tables(paths: tuple[Path, ...], hashes: tuple[str | None, ...] = (None, None)) -> pa.Table:
    """Read what is known of the images of one shard, in the order of the plan.

    Args:
        paths: Of the table of vectors, that of failed images, or both.
        hashes: SHA-256 that each must have, None for no check.

    Returns:
        The columns of ``ROW_COLUMNS`` and ``position``.

    Raises:
        StoreError: One is not there, is damaged, or is not of the same store as the other.
    """
    pa = require("pyarrow", _PURPOSE)
    parts: list[Any] = []
    for path, sha256 in zip(paths, hashes, strict=False):
        parts.extend(row_groups(path, sha256, empty=True))
        _check_table(parts[-1], path)
    if len({(part.schema.metadata or {}).get(STORE) for part in parts}) > 1:
        raise unreadable(paths[0], f"it is of another store than {paths[-1]}")
    with readable(paths[0]):
        table = pa.concat_tables(parts)
        names = ["path" if name == IMAGE_PATH else name for name in table.column_names]
        ordered = table.rename_columns(names).sort_by(POSITION)
        return ordered.replace_schema_metadata(table.schema.metadata)  # sorting loses it


def _check_table(table: pa.Table, path: Path) -> None:
    """Refuse a table that is none of this layout as trunkline writes it."""
    metadata = table.schema.metadata or {}
    if LEVEL not in metadata or MADE_BY not in metadata:
        raise StoreError(
            f"{path} was not written by trunkline extract; read what it belongs to with "
            "numpy.load and pyarrow."
        )
    if not table.schema.equals(_columns()):
        raise unreadable(path, "its columns are not those of a table of clip-retrieval")


def _tables_schema(schema: Schema) -> pa.Schema:
    """Return the columns of both tables."""
    metadata = arrow_schema(schema, levels=False).metadata
    return _columns().with_metadata({**metadata, LEVEL: schema.columns[0].name.encode()})


def _columns() -> pa.Schema:
    pa = require("pyarrow", _PURPOSE)
    fields = [
        field.with_name(IMAGE_PATH) if field.name == "path" else field for field in row_fields()
    ]
    return pa.schema([*fields, pa.field(POSITION, pa.int64())])


def _table_of(rows: list[Row], start: int, schema: pa.Schema) -> pa.Table:
    """Return rows with their positions in the shard, the first of which is ``start``."""
    pa = require("pyarrow", _PURPOSE)
    table = rows_table(rows)
    positions = pa.array(range(start, start + len(rows)), pa.int64())
    return pa.table([*table.columns, positions], schema)


def _misfit(path: Path) -> StoreError:
    return StoreError(
        f"{path} has not one vector per row of its table: the store is damaged. Remove the file, "
        "and run the command that made the store again to have it computed anew."
    )
