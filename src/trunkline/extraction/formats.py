"""What a feature store can be written as, and what every such format can do.

A format knows the data files of a store, shard by shard, and nothing of images, manifests or
claims: one shard goes in as blocks of rows and comes out as the same blocks.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from trunkline.errors import ConfigError
from trunkline.extraction.clip_retrieval import ClipRetrieval
from trunkline.extraction.data_files import Hashes
from trunkline.extraction.parquet_files import ParquetFiles
from trunkline.extraction.records import Block, Schema
from trunkline.extraction.zarr_arrays import ZarrArrays

CLIP_RETRIEVAL = "clip-retrieval"


class ShardWriter(Protocol):
    """One shard on its way to the disk, invisible to readers before ``commit``."""

    def append(self, block: Block) -> None:
        """Take the next images of the shard.

        Args:
            block: In the order of the plan, of ``block_size`` rows; the last one may have fewer.

        Raises:
            OutputError: The disk refused it; what is left to do is ``discard``.
        """

    def commit(self, replacing: Callable[[], None] | None = None) -> dict[str, str]:
        """Put the shard in place, synced; one of this store that was there is replaced.

        Args:
            replacing: Called when all is on the disk, just before the first file gets its place.

        Returns:
            Name of a file relative to the store → SHA-256 of its bytes, as ``files`` has them.

        Raises:
            OutputError: The disk refused it; what is left to do is ``discard``.
            StoreError: What is there is not of this store; nothing was replaced.
        """

    def discard(self) -> None:
        """Leave nothing of what was not committed. Can be called twice, and after ``commit``."""


class ShardFormat(Protocol):
    """The data files of one store.

    Args:
        out: The store's folder.
        scratch: A folder on the same file system, for files that are not complete.
        schema: What every shard holds.

    Raises:
        ConfigError: The format cannot hold such features.
        NotInstalledError: It needs a library that is not there.
    """

    name: str
    files_per_shard: int
    """Files of a finished shard that ``found`` counts."""

    def __init__(self, out: Path, scratch: Path, schema: Schema) -> None: ...

    @property
    def block_size(self) -> int:
        """Rows of a block, save the last one of a shard."""

    def create(self) -> None:
        """Make folders and what all shards share. Safe to call again, and by several at once.

        Raises:
            OutputError: The place cannot be written to.
            StoreError: What is there is damaged, or not of this store.
        """

    def writer(self, shard: int) -> ShardWriter:
        """Begin a shard.

        Args:
            shard: Its number, from 0.
        """

    def blocks(self, shard: int, hashes: Hashes | None = None) -> Iterator[Block]:
        """Read a finished shard back: the rows that were appended, in blocks of ``block_size``.

        Args:
            shard: Its number.
            hashes: What ``commit`` returned. Every file is compared before it is read; whoever
                writes the rows again must do so. None compares nothing.

        Raises:
            StoreError: It is not there, is damaged, or is not what was written.
        """

    def files(self, shard: int, images: int) -> list[str]:
        """Return the names, relative to the store, of all files of a finished shard.

        Args:
            shard: Its number.
            images: That it has.
        """

    def found(self) -> Counter[int]:
        """Count, by names alone, the files that are there of each shard, finished or not.

        Raises:
            StoreError: A folder cannot be listed.
        """

    def owners(self, shard: int) -> dict[Path, str | None]:
        """Return what stands where a shard's files shall be: the id that each says it is of."""

    def damaged(self, length: int, *, complete: bool) -> list[str]:
        """Return the names of damaged files that belong to no single shard.

        Args:
            length: Images up to the end of the last finished shard.
            complete: Whether there are no others.
        """

    def finish(self, total: int) -> None:
        """Note that the store is complete. Can be called again.

        Args:
            total: Rows of all shards.
        """

    def remove(self, shard: int) -> None:
        """Remove a shard's files, if there are any."""


def format_of(out: str | os.PathLike[str], layout: str | None = None) -> type[ShardFormat]:
    """Choose a format by the name of the store.

    Args:
        out: The store's folder: ``….parquet`` or ``….zarr``; of any other name with a layout.
        layout: "clip-retrieval" for arrays of NumPy and tables beside them, None otherwise.

    Returns:
        A class to be called with the folder, a scratch folder and a schema.

    Raises:
        ConfigError: No format fits the name.
    """
    place = os.fspath(out)
    if "://" in place:
        raise ConfigError(
            f"features cannot be written to {place}: OUT is a folder of this machine or of a disk "
            "that it mounts. Write there, and copy the finished store."
        )
    suffix = Path(place).suffix
    if layout is None:
        if suffix == ".parquet":
            return ParquetFiles
        if suffix == ".zarr":
            return ZarrArrays
        raise ConfigError(
            f"no format for {place}: a store is called NAME.parquet (a row per image) or NAME.zarr "
            f'(maps), or has the layout "{CLIP_RETRIEVAL}".'
        )
    if layout != CLIP_RETRIEVAL:
        raise ConfigError(
            f'no layout {layout!r}; the one that there is, is "{CLIP_RETRIEVAL}". Without a '
            "layout, OUT is called NAME.parquet or NAME.zarr."
        )
    if suffix in (".parquet", ".zarr"):
        raise ConfigError(
            f'{place} is not a name for the layout "{CLIP_RETRIEVAL}", whose files are neither; '
            f"leave out the ending, or the layout to write {suffix[1:]}."
        )
    return ClipRetrieval
