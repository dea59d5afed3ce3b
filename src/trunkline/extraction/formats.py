"""What a feature store can be written as, and what every such format can do.

A format knows the data files of a store, shard by shard, and nothing of images, manifests or
claims: one shard goes in as blocks of rows and comes out as the same blocks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from trunkline.errors import ConfigError
from trunkline.extraction.clip_retrieval import ClipRetrieval
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

    def commit(self) -> dict[str, str]:
        """Put the shard in place, synced; one that was there is replaced.

        Returns:
            Name of a file relative to the store → SHA-256 of its bytes, for the files that belong
            to this shard alone and are written once.

        Raises:
            OutputError: The disk refused it; what is left to do is ``discard``.
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

    def __init__(self, out: Path, scratch: Path, schema: Schema) -> None: ...

    @property
    def block_size(self) -> int:
        """Rows of a block, save the last one of a shard."""

    def create(self) -> None:
        """Make folders and what all shards share. Safe to call again, and by several at once.

        Raises:
            OutputError: The place cannot be written to.
        """

    def writer(self, shard: int) -> ShardWriter:
        """Begin a shard.

        Args:
            shard: Its number, from 0.
        """

    def blocks(self, shard: int) -> Iterator[Block]:
        """Read a finished shard back: the rows that were appended, in blocks of ``block_size``.

        Raises:
            StoreError: It is not there, or is damaged.
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
