"""The two documents of a store: what it is, and what each finished shard is.

Both end with a digest of all else that they say, and are read by a schema: whoever wrote them, what
they say is of the kind that it must be.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta

from trunkline.errors import StoreError
from trunkline.extraction.locations import is_utf8
from trunkline.extraction.pooling import Pool
from trunkline.extraction.records import NAME, Column, Dtype, Schema, as_utf8
from trunkline.extraction.sources import Source
from trunkline.files import DocumentError, parse_document, read_document
from trunkline.outputs import digest_of
from trunkline.photos import Alpha, Decode, Truncated
from trunkline.preprocessing import Preprocessing
from trunkline.rasters import Bands

MOST_IMAGES = 10**9
"""Images of a shard, at most."""
MOST_NUMBERS = 1 << 27
"""Numbers of one image's map, at most: half a gigabyte of float32."""
MOST_OF_A_BATCH = 65_536
"""Images of a batch, at most."""
MOST_OF_AN_IMAGE = 1 << 40
"""Pixels of an image, and bytes of its file, that may be allowed."""

_FORMAT = 2
_KEPT_FAILURES = 100  # of a shard, in its record; the rows have all of them
_NEW_PLACE = "restore it, or extract into a new place."

Count = Annotated[int, Meta(ge=0, le=MOST_IMAGES)]
Size = Annotated[int, Meta(ge=1, le=MOST_OF_AN_IMAGE)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Seconds = Annotated[float, Meta(ge=0)]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class _Network:
    variant: str | None
    state_sha256: str
    structure: str | None


@dataclass(frozen=True, kw_only=True)
class _Images:
    preprocessing: Preprocessing
    decode: Decode
    max_pixels: Size
    max_bytes: Size
    alpha: Alpha = "white"
    truncated: Truncated = "refuse"
    bands: Bands | None = None


@dataclass(frozen=True, kw_only=True)
class _Job:
    network: _Network
    runtime: str
    precision: str
    batch_size: Annotated[int, Meta(ge=1, le=MOST_OF_A_BATCH)]
    images: _Images
    levels: tuple[str, ...]
    strides: tuple[Size, ...]
    pool: Pool
    normalize: bool
    dtype: Dtype
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class _Column:
    name: Annotated[str, Meta(pattern=NAME)]
    stride: Size
    shape: Annotated[tuple[Size, ...], Meta(min_length=1, max_length=3)]


@dataclass(frozen=True, kw_only=True)
class _Fields:
    id: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
    source: Source
    location_hex: str | None
    layout: Literal["clip-retrieval"] | None
    job: _Job
    columns: Annotated[tuple[_Column, ...], Meta(min_length=1)]
    dtype: Dtype
    shard_size: Annotated[int, Meta(ge=1, le=MOST_IMAGES)]
    machine: str

    def __post_init__(self) -> None:
        pairs = zip(self.job.levels, self.job.strides, strict=True)
        names = [f"{level}_stride_{stride}" for level, stride in pairs]
        if names != [one.name for one in self.columns] or len({*names}) < len(names):
            raise ValueError("its columns are not those of its levels")
        if self.dtype != self.job.dtype:
            raise ValueError("it has two dtypes")
        if max(math.prod(one.shape) for one in self.columns) > MOST_NUMBERS:
            raise ValueError(f"a level has more than {MOST_NUMBERS} numbers")


def new_id() -> str:
    """Return the id of a new store."""
    return secrets.token_hex(16)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What ``manifest.json`` says.

    Attributes:
        source: Where the images come from.
        layout: "clip-retrieval", or None where the name of the store says the format.
        job: All that decides a number: network, preprocessing, levels, pooling, versions.
        schema: What every shard holds, and the id that every data file carries.
        machine: Processor of the run that began it; differences in the last bits come from there.
    """

    source: Source
    layout: str | None
    job: dict[str, Any]
    schema: Schema
    machine: str

    @property
    def id(self) -> str:
        """Of this store alone, whatever it is called and wherever it is copied to."""
        return self.schema.store_id

    def to_json(self) -> str:
        """Return the text of the file; its last field is the digest of the others."""
        location, is_text = self.source.location, is_utf8(self.source.location)
        fields = {
            "format": _FORMAT,
            "id": self.id,
            "source": {**self.source.to_dict(), "location": as_utf8(location)},
            "location_hex": None if is_text else os.fsencode(location).hex(),
            "layout": self.layout,
            "job": self.job,
            "columns": [asdict(one) for one in self.schema.columns],
            "dtype": self.schema.dtype,
            "shard_size": self.schema.shard_size,
            "machine": self.machine,
        }
        return _with_digest(fields, indent=2)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read the file back.

        Raises:
            StoreError: It is missing, damaged, edited, or of another version of the format.
        """
        try:
            fields = read_document(path, dict[str, Any])
            if fields.get("format") != _FORMAT:
                raise StoreError(
                    f"{path} has format {fields.get('format')!r} and this version of trunkline "
                    f"reads {_FORMAT}; use the version that wrote it, or extract into a new place."
                )
            if not _has_digest(fields):
                raise StoreError(f"{path} was changed after it was written; {_NEW_PLACE}")
            checked = parse_document(json.dumps(fields), _Fields)
            source = checked.source
            if checked.location_hex is not None:
                source = replace(source, location=_location(checked.location_hex))
        except (OSError, DocumentError, RecursionError) as error:
            raise StoreError(f"{path} cannot be read ({error}); {_NEW_PLACE}") from error
        columns = tuple(Column(**vars(one)) for one in checked.columns)
        job = fields["job"]
        schema = Schema(
            columns=columns,
            dtype=checked.dtype,
            shard_size=checked.shard_size,
            made_by=job,
            store_id=checked.id,
        )
        return cls(
            source=source, layout=checked.layout, job=job, schema=schema, machine=checked.machine
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

    shard: Count
    images: Count
    failed: Count
    seconds: dict[str, Seconds]
    files: dict[str, Sha256]
    failures: list[tuple[str, str]] = field(default_factory=list)
    host: str = field(default_factory=socket.gethostname)

    def to_json(self) -> str:
        """Return the text of the file, with no more failures than a record keeps."""
        kept = [[as_utf8(key), as_utf8(why)] for key, why in self.failures[:_KEPT_FAILURES]]
        return _with_digest({**asdict(self), "failures": kept}, indent=1)

    @classmethod
    def read(cls, path: Path, shard: int) -> ShardRecord:
        """Read the file back.

        Raises:
            StoreError: It is missing, damaged, edited, or of another shard.
        """
        try:
            fields = read_document(path, dict[str, Any])
            if not _has_digest(fields):
                raise DocumentError("it was changed after it was written")
            found = parse_document(json.dumps(fields), cls)
            if found.shard != shard or found.failed > found.images:
                raise DocumentError("what it says is not of this shard")
        except (OSError, DocumentError, RecursionError) as error:
            raise StoreError(
                f"{path} cannot be read as the record of a shard: {error}. Remove it, and run the "
                "same command again to have the shard computed anew."
            ) from error
        return found


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


def _with_digest(fields: dict[str, Any], *, indent: int) -> str:
    return json.dumps({**fields, "sha256": digest_of(fields)}, indent=indent) + "\n"


def _has_digest(fields: dict[str, Any]) -> bool:
    """Take the digest out, and say whether it is that of the rest."""
    return bool(fields.pop("sha256", None) == digest_of(fields))


def _location(as_hex: str) -> str:
    try:
        return os.fsdecode(bytes.fromhex(as_hex))
    except ValueError as error:
        raise DocumentError(f"location_hex: {error}") from error
