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

import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from trunkline.errors import StoreError
from trunkline.extraction.durable import aside, put_text, remove_leftovers, writing
from trunkline.extraction.formats import ShardFormat, format_of
from trunkline.extraction.plan import Plan
from trunkline.extraction.records import Column, Schema
from trunkline.extraction.sources import Source
from trunkline.outputs import digest_of

SUFFIX = ".trunkline"
_FORMAT = 1
_KEPT_FAILURES = 100  # of a shard, in its record; the rows have all of them


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What ``manifest.json`` says.

    Attributes:
        source: Where the images come from.
        layout: "clip-retrieval", or None where the name of the store says the format.
        job: All that decides a number: network, preprocessing, levels, pooling, versions.
        schema: What every shard holds.
        machine: Processor of the run that began it; differences in the last bits come from there.
    """

    source: Source
    layout: str | None
    job: dict[str, Any]
    schema: Schema
    machine: str

    def to_json(self) -> str:
        """Return the text of the file; its last field is the digest of the others."""
        fields = {
            "format": _FORMAT,
            "source": self.source.to_dict(),
            "layout": self.layout,
            "job": self.job,
            "columns": [asdict(one) for one in self.schema.columns],
            "dtype": self.schema.dtype,
            "shard_size": self.schema.shard_size,
            "machine": self.machine,
        }
        return json.dumps({**fields, "sha256": digest_of(fields)}, indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read the file back.

        Raises:
            StoreError: It is missing, damaged, edited, or of another version of the format.
        """
        fields = _read_json(path)
        digest = fields.pop("sha256", None)
        if fields.get("format") != _FORMAT:
            raise StoreError(
                f"{path} has format {fields.get('format')!r} and this version of trunkline reads "
                f"{_FORMAT}; use the version that wrote it, or extract into a new place."
            )
        if digest != digest_of(fields):
            raise StoreError(
                f"{path} was changed after it was written; restore it, or extract into a new place."
            )
        job = fields["job"]
        columns = tuple(
            Column(name=one["name"], stride=one["stride"], shape=tuple(one["shape"]))
            for one in fields["columns"]
        )
        return cls(
            source=Source.from_dict(fields["source"]),
            layout=fields["layout"],
            job=job,
            schema=Schema(
                columns=columns,
                dtype=fields["dtype"],
                shard_size=fields["shard_size"],
                made_by=job,
            ),
            machine=fields["machine"],
        )


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What is known of a finished shard.

    Attributes:
        shard: Its number.
        images: Rows that it has.
        failed: Those of them that failed.
        seconds: Where the time went, see ``pipeline.Seconds``; and "total", from begin to end.
        files: Name relative to the store → SHA-256.
        failures: Key and reason of the first failed images.
        host: That computed it.
    """

    shard: int
    images: int
    failed: int
    seconds: dict[str, float]
    files: dict[str, str]
    failures: list[tuple[str, str]] = field(default_factory=list)
    host: str = field(default_factory=socket.gethostname)

    def first_failures(self) -> ShardRecord:
        """Return the same with no more failures than a record keeps."""
        return replace(self, failures=self.failures[:_KEPT_FAILURES])


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
        self._manifest = self.home / "manifest.json"
        self._shards = self.home / "shards"
        self._claims = self.home / "claims"

    @property
    def begun(self) -> bool:
        """Whether there is a manifest."""
        return self._manifest.is_file()

    def create_folders(self) -> None:
        """Make the folders of the bookkeeping, and remove what dead processes left.

        Raises:
            OutputError: The place cannot be written to.
        """
        with writing(self.out):
            for folder in (self.plan_folder, self._shards, self._claims, self.scratch):
                folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.scratch)

    def setup_lock(self) -> BaseFileLock:
        """Return a lock for whoever writes the manifest; others wait and read it."""
        return FileLock(self.home / "setup.lock")

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
        return self._record(shard).is_file()

    def done(self) -> list[int]:
        """Return the numbers of all finished shards, in order, without reading their records."""
        return sorted(int(path.stem) for path in self._shards.glob("*.json"))

    def record(self, shard: int) -> ShardRecord:
        """Read the record of a finished shard.

        Raises:
            StoreError: It is damaged.
        """
        path = self._record(shard)
        try:
            return ShardRecord(**_read_json(path))
        except TypeError as error:
            raise StoreError(
                f"{path} is no record of a shard ({error}); remove it and run the same command "
                "again to compute the shard anew."
            ) from error

    def records(self) -> Iterator[ShardRecord]:
        """Read the records of all finished shards, in order."""
        for shard in self.done():
            yield self.record(shard)

    def write_record(self, record: ShardRecord) -> None:
        """Say that a shard is finished. Its data must be on the disk."""
        text = json.dumps(asdict(record.first_failures()), indent=1) + "\n"
        self._write(self._record(record.shard), text)

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

    def _record(self, shard: int) -> Path:
        return self._shards / f"{shard:05d}.json"

    def _write(self, path: Path, text: str) -> None:
        written = aside(self.scratch, path.name)
        with writing(self.out):
            put_text(written, path, text)


def differences(stored: Mapping[str, Any], given: Mapping[str, Any], above: str = "") -> list[str]:
    """Say in words where two jobs differ.

    Entries that are None on either side are not compared: a runner does not know all that a
    backbone does.
    """
    found = []
    for key in [*stored, *(key for key in given if key not in stored)]:
        one, other = stored.get(key), given.get(key)
        name = f"{above}{key}"
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += differences(one, other, f"{name}.")
        elif one is not None and other is not None and one != other:
            found.append(f"{name} {_short(one)} there, {_short(other)} now")
    return found


def _short(value: object) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 60 else f"{text[:57]}..."


def _read_json(path: Path) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(
            f"{path} cannot be read ({error}); restore it, or extract into a new place."
        ) from error
    return fields
