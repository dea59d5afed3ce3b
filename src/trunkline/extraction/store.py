"""The bookkeeping of a feature store: its job, which shards are done, whose turn it is.

::

    features.parquet/                      the data, and nothing else
    features.parquet.trunkline/
        manifest.json                      the job: source, network, numbers, versions
        plan/                              the listing, frozen shard by shard
        runner/                            the runner that computed, so that any machine can go on
        shards/00000.json                  the record of a finished shard, written last
        claims/                            locks of shards that somebody works on now
        tmp/                               what is not complete

A shard is done if its record is there. A claim is a lock of the operating system: it goes away
with its process, however that ends.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from trunkline.errors import StoreError
from trunkline.extraction.data_files import numbers_in
from trunkline.extraction.durable import (
    aside,
    put_text,
    remove,
    remove_leftovers,
    sync,
    writing,
)
from trunkline.extraction.formats import ShardFormat, format_of
from trunkline.extraction.manifests import Manifest, ShardRecord
from trunkline.extraction.owners import owning
from trunkline.extraction.plan import Plan
from trunkline.extraction.records import Block, Schema

SUFFIX = ".trunkline"
_RECORD = re.compile(r"([0-9]{5,})\.json")


class Store:
    """One store on disk.

    Args:
        out: The folder of its data.
    """

    def __init__(self, out: str | os.PathLike[str]) -> None:
        self.out = Path(out)
        self.home = self.out.with_name(self.out.name + SUFFIX)
        self.scratch = self.home / "tmp"
        self.plan_folder = self.home / "plan"
        self.runner_folder = self.home / "runner"
        self.records_folder = self.home / "shards"
        self._manifest = self.home / "manifest.json"
        self._claims = self.home / "claims"

    @property
    def begun(self) -> bool:
        """Whether there is a manifest."""
        return os.path.isfile(self._manifest)

    def create_folders(self) -> None:
        """Make the folders of the bookkeeping, and remove what dead processes left.

        Raises:
            OutputError: The place cannot be written to.
        """
        with writing(self.out):
            for folder in (self.plan_folder, self.records_folder, self._claims, self.scratch):
                folder.mkdir(parents=True, exist_ok=True)
        self.clean()

    def clean(self) -> None:
        """Remove what dead processes left, where it can be removed."""
        for folder in (self.scratch, self.plan_folder):
            remove_leftovers(folder)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Let others know that what is written into the store is being written; see ``owners``.

        Raises:
            OutputError: The place cannot be written to.
        """
        with ExitStack() as held:
            with writing(self.out):
                for folder in (self.scratch, self.plan_folder):
                    held.enter_context(owning(folder))
            yield

    @contextmanager
    def setup_lock(self) -> Iterator[None]:
        """Lock out all others that would write the manifest; they wait, and read it.

        Raises:
            OutputError: The place cannot be written to.
        """
        lock = FileLock(self.home / "setup.lock")
        with writing(self.out):
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def manifest(self) -> Manifest:
        """Read the manifest.

        Raises:
            StoreError: There is none, or it cannot be used.
        """
        if not self.begun:
            raise StoreError(
                f"{self.out} has no bookkeeping: {self._manifest} is not there. Give the OUT of a "
                f"`trunkline extract`, with the folder {self.home.name} beside it."
            )
        return Manifest.read(self._manifest)

    def write_manifest(self, manifest: Manifest) -> None:
        """Write the manifest, whole or not at all."""
        self._write(self._manifest, manifest.to_json())

    def format(self, manifest: Manifest) -> ShardFormat:
        """Return what writes and reads the data files."""
        return self.format_for(manifest.layout, manifest.schema)

    def format_for(self, layout: str | None, schema: Schema) -> ShardFormat:
        """Return the same for a store without a manifest.

        Raises:
            ConfigError: The format cannot hold such features.
        """
        return format_of(self.out, layout)(self.out, self.scratch, schema)

    def plan(self, manifest: Manifest) -> Plan:
        """Return the listing of the store's source, as far as it is frozen now."""
        return Plan(self.plan_folder, manifest.source, manifest.schema.shard_size)

    def is_done(self, shard: int) -> bool:
        """Say whether a shard is finished."""
        return os.path.isfile(self.record_path(shard))

    def done(self) -> list[int]:
        """Return the numbers of all finished shards, in order, without reading their records.

        What else is in the folder does not count.

        Raises:
            StoreError: The folder cannot be listed.
        """
        return sorted(numbers_in(self.records_folder, _RECORD, regular=True))

    def record(self, shard: int) -> ShardRecord:
        """Read the record of a finished shard.

        Raises:
            StoreError: It is damaged.
        """
        return ShardRecord.read(self.record_path(shard), shard)

    def records(self) -> Iterator[ShardRecord]:
        """Read the records of all finished shards, in order."""
        for shard in self.done():
            yield self.record(shard)

    def write_record(self, record: ShardRecord) -> None:
        """Say that a shard is finished. Its data must be on the disk."""
        self._write(self.record_path(record.shard), record.to_json())

    def forget(self, shard: int) -> None:
        """Say that a shard is not finished, on the disk, before its data become others."""
        with writing(self.out):
            remove(self.record_path(shard))
            sync(self.records_folder)

    def blocks(self, form: ShardFormat, shard: int) -> Iterator[Block]:
        """Read a finished shard back in order to write it anew; see ``ShardFormat.blocks``.

        Raises:
            StoreError: A file is not the one that was written.
        """
        record = self.record(shard)
        self.check_files(form, record)
        try:
            yield from form.blocks(shard, record.files)
        except StoreError as error:
            raise StoreError(f"{error} The record is {self.record_path(shard)}.") from error

    def check_files(self, form: ShardFormat, record: ShardRecord) -> None:
        """Make sure that a record tells of the files that its shard has, and of no others.

        Raises:
            StoreError: It does not.
        """
        if record.files.keys() != {*form.files(record.shard, record.images)}:
            path = self.record_path(record.shard)
            raise StoreError(
                f"{path} does not tell of the files of a shard of {record.images} images; remove "
                "it, and run the same command again to have the shard computed anew."
            )

    def claim(self, shard: int) -> BaseFileLock | None:
        """Take a shard, or return None where somebody works on it. Release it when it is done."""
        # Taken by the thread that computes, released by the one that writes.
        lock = FileLock(self._claims / f"{shard:05d}.lock", thread_local=False)
        with writing(self.out):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return None
        return lock

    def record_path(self, shard: int) -> Path:
        """Return where the record of a shard is, or shall be."""
        return self.records_folder / f"{shard:05d}.json"

    def _write(self, path: Path, text: str) -> None:
        with writing(self.out):
            put_text(aside(self.scratch, path.name), path, text)
