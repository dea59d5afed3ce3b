"""Dense maps as Zarr 3: one array ``(N, C, h, w)`` per level, a chunk per image.

Chunks of up to 64 images share a file, and no file holds images of two shards, so that processes
never write the same one. A shard is encoded aside and its files are renamed into the arrays. The
arrays grow as shards arrive; rows whose shard is not there yet, and failed ones, are NaN. Of a
shard every file is there, even if it holds nothing but NaN: a file that is not there was lost.

The table of images stands inside the array ``index``, which tells where maps are: zarr-python
warns about files of a group that are no arrays, but does not look into the folder of an array.
The table's part of a shard is renamed last, so where it is, the maps are.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from trunkline.errors import ConfigError, StoreError
from trunkline.extraction.data_files import (
    Hashes,
    check_owners,
    content_of,
    numbers_in,
    readable,
)
from trunkline.extraction.durable import aside, put_text, remove, sync, writing
from trunkline.extraction.parquet_files import (
    PART,
    TableWriter,
    arrow_schema,
    owners_of,
    row_groups,
    rows_of,
    rows_table,
)
from trunkline.extraction.records import Block, Schema
from trunkline.extraction.zarr_group import (
    INDEX,
    META,
    images_per_file,
    make_group,
    maps_of,
    owner_of,
    read_array,
    read_group,
    sealed,
)
from trunkline.outputs import sha256_of
from trunkline.runtimes.optional import require

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = f"{INDEX}/rows.parquet"  # the table's folder of parts
ROW = "row"  # the column that says where an image's maps are
_MOST_FILES = 400_000  # of a shard, so that its record can be read
_PURPOSE = "a store of maps"


class _ZarrWriter:
    """One shard of a ``ZarrArrays``, see ``formats.ShardWriter``."""

    def __init__(self, store: ZarrArrays, shard: int, scratch: Path, schema: Schema) -> None:
        self._store = store
        self._shard = shard
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

    def commit(self, replacing: Callable[[], None] | None = None) -> dict[str, str]:
        with writing(self._store.out):
            if not self._arrays:
                self._begin()
            self._arrays[INDEX][: self._count] = self._read[: self._count]
            table, *names = self._store.files(self._shard, self._count)
            hashes = {table: self._index.finish()}
            for name in names:
                written = self._written(name)
                sync(written)
                hashes[name] = sha256_of(written)
            check_owners(self._store.owners(self._shard), self._schema.store_id)
            self._store.lengthen(self._first + self._count)
            if replacing is not None:
                replacing()
            self._place(names)
        self._index.commit()
        self.discard()
        return hashes

    def discard(self) -> None:
        self._index.discard()
        remove(self._folder)

    def _begin(self) -> None:
        """Make arrays of this shard's length."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._arrays = make_group(self._folder, self._schema, self._schema.shard_size)

    def _written(self, name: str) -> Path:
        """Return where a file is before it has its place: the numbers there begin with 0."""
        level, _, file = name.partition("/")
        mark, number, *tail = file.split(".")
        per_shard = self._store.files_of(level)
        return self._folder / level / ".".join([mark, str(int(number) % per_shard), *tail])

    def _place(self, names: list[str]) -> None:
        """Rename the files into the arrays, those of the index last."""
        for name in sorted(names, key=lambda name: name.startswith(f"{INDEX}/")):
            self._written(name).replace(self._store.out / name)
        for column in self._schema.columns:
            sync(self._store.out / column.name)
        sync(self._store.out / INDEX)


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
    files_per_shard = 1

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
        files = len(schema.columns) * self.files_of(schema.columns[0].name)
        if files > _MOST_FILES:
            raise ConfigError(
                f"a shard of {schema.shard_size} images would have {files} files of maps, since "
                f"no number up to 64 but {self.block_size} divides it, and "
                f"{_MOST_FILES} are the most; choose a shard size such as 10000."
            )

    @property
    def block_size(self) -> int:
        """Images of a file: a divisor of the shard's size."""
        return images_per_file(self._schema.shard_size)

    def files_of(self, array: str) -> int:
        """Return how many files of an array a whole shard has."""
        return 1 if array == INDEX else self._schema.shard_size // self.block_size

    def create(self) -> None:
        """Make the group and its arrays, of length 0; what is there must be undamaged."""
        with writing(self.out):
            self._scratch.mkdir(parents=True, exist_ok=True)
            with self._lock():
                check_owners(self._group_owners(), self._schema.store_id)
                if (self.out / META).exists():
                    read_group(self.out)
                    for name in self._arrays():
                        read_array(self.out / name)
                else:
                    self._create()

    def _create(self) -> None:
        """Make the group aside and rename it piece by piece, itself last."""
        folder = aside(self._scratch, "group")
        shutil.rmtree(folder, ignore_errors=True)
        make_group(folder, self._schema, 0)
        for path in folder.rglob(META):
            path.write_text(sealed(json.loads(path.read_bytes())), encoding="utf-8")
        (folder / ROWS).mkdir(parents=True)
        for path in folder.rglob("*"):
            sync(path)
        self.out.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.iterdir(), key=lambda path: path.name == META):
            target = self.out / path.name
            if not target.exists():
                path.replace(target)
        sync(self.out)
        remove(folder)

    def _arrays(self) -> dict[str, tuple[tuple[int, ...], str, int]]:
        """Return of each array what an image has in it, its dtype, and the images of a file."""
        found = {
            one.name: (one.shape, self._schema.dtype, self.block_size)
            for one in self._schema.columns
        }
        return {**found, INDEX: ((), "bool", self._schema.shard_size)}

    def _group_owners(self) -> dict[Path, str | None]:
        """Return the stores that what is there of the group says it is of."""
        places = [self.out, *(self.out / name for name in self._arrays())]
        there = [place for place in places[1:] if os.path.lexists(place)]
        if os.path.lexists(self.out / META):
            there.append(self.out)
        return {place / META: owner_of(place / META) for place in there}

    def index(self, shard: int) -> Path:
        """Return where the table of a shard's images is."""
        return self.out / ROWS / f"part-{shard:05d}.parquet"

    def writer(self, shard: int) -> _ZarrWriter:
        """Begin a shard."""
        return _ZarrWriter(self, shard, self._scratch, self._schema)

    def blocks(self, shard: int, hashes: Hashes | None = None) -> Iterator[Block]:
        """Read a shard back, file by file."""
        table, first = self.index(shard), shard * self._schema.shard_size
        about = {one.name: read_array(self.out / one.name)[0] for one in self._schema.columns}
        sha256 = None
        if hashes is not None:
            part, index, *_ = self.files(shard, 0)
            sha256 = hashes[part]
            content_of(self.out / index, hashes[index])  # it says what the table says
        for group in row_groups(table, sha256):
            with readable(table):
                if not group.schema.equals(index_schema(self._schema)):
                    raise ValueError("its columns are not those of a table of maps")
                rows = rows_of(group)
                if first % self.block_size or len(rows) > self.block_size:
                    raise ValueError("its pieces are not those that the files of maps have")
                if group[ROW].to_pylist() != [*range(first, first + len(rows))]:
                    raise ValueError("its rows are not those of the shard")
            values = {
                name: self._maps(about[name], name, slice(first, first + len(rows)), hashes)
                for name in about
            }
            first += len(rows)
            yield Block(rows, values)

    def _maps(
        self, about: dict[str, Any], level: str, images: slice, hashes: Hashes | None
    ) -> NDArray[Any]:
        """Read the one file that holds a block's maps of a level."""
        name = f"c.{images.start // self.block_size}.0.0.0"
        path = self.out / level / name
        content = content_of(path, None if hashes is None else hashes[f"{level}/{name}"])
        with readable(path):
            return maps_of(about, name, content, images)

    def files(self, shard: int, images: int) -> list[str]:
        """Return the table's part, then the files of the arrays."""
        names = [self.index(shard).relative_to(self.out).as_posix(), f"{INDEX}/c.{shard}"]
        for column in self._schema.columns:
            begin = shard * self.files_of(column.name)
            end = begin - (-images // self.block_size)
            names += [f"{column.name}/c.{number}.0.0.0" for number in range(begin, end)]
        return names

    def found(self) -> Counter[int]:
        """Count the parts of the table, by names."""
        return numbers_in(self.out / ROWS, PART)

    def owners(self, shard: int) -> dict[Path, str | None]:
        """Ask the group, and the part of the table."""
        return {**self._group_owners(), **owners_of(self.index(shard))}

    def damaged(self, length: int, *, complete: bool) -> list[str]:
        """Look at the ``zarr.json`` of the group and of its arrays."""
        found = [] if self._is_group_intact() else [META]
        for name, (shape, dtype, per_file) in self._arrays().items():
            try:
                about = read_array(self.out / name)[1]
            except StoreError:
                found.append(f"{name}/{META}")
                continue
            images = about.shape[0]
            if (
                about.attributes.store != self._schema.store_id
                or (about.shape[1:], about.data_type, about.images_per_file)
                != (shape, dtype, per_file)
                or images < length
                or (complete and images != length)
            ):
                found.append(f"{name}/{META}")
        return found

    def _is_group_intact(self) -> bool:
        try:
            found = read_group(self.out).attributes
        except StoreError:
            return False
        schema = self._schema
        levels = tuple(one.name for one in schema.columns)
        wanted = (schema.store_id, schema.made_by, levels)
        return (found.store, found.trunkline, found.levels) == wanted

    def finish(self, total: int) -> None:
        """Set the length of the arrays, if it is another."""
        if any(self._length(name) != total for name in self._arrays()):
            with writing(self.out), self._lock():
                self._set_length(total)

    def lengthen(self, length: int) -> None:
        """Let the arrays have ``length`` images at least."""
        with self._lock():
            self._set_length(max(length, self._length(INDEX)))

    def remove(self, shard: int) -> None:
        """Remove a shard's part of the table first, then its maps."""
        with writing(self.out):
            for name in self.files(shard, self._schema.shard_size):
                remove(self.out / name)

    def _length(self, name: str) -> int:
        return read_array(self.out / name)[1].shape[0]

    def _set_length(self, length: int) -> None:
        # Not by zarr-python's resize, which older releases do not write aside, and none syncs.
        for name in self._arrays():
            about, understood = read_array(self.out / name)
            if understood.shape[0] != length:
                about["shape"][0] = length
                written = aside(self._scratch, f"{name}-{META}")
                put_text(written, self.out / name / META, sealed(about))

    def _lock(self) -> FileLock:
        return FileLock(self._scratch / "zarr.lock")


def index_schema(schema: Schema) -> pa.Schema:
    """Return the columns of the table of images: those of ``ROW_COLUMNS`` and ``row``."""
    pa = require("pyarrow", _PURPOSE)
    return arrow_schema(schema, levels=False).append(pa.field(ROW, pa.int64()))
