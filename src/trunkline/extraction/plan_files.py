"""The files of a plan, each for itself: what is in one, and whether it is what it should be."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from trunkline.errors import StoreError, TrunklineError
from trunkline.extraction.locations import open_regular
from trunkline.extraction.records import Item
from trunkline.files import DocumentError, parse_document, read_document
from trunkline.runtimes.optional import require

_VERSION = 1
_ABOUT = b"trunkline.plan"

Count = Annotated[int, Meta(ge=0, le=1 << 50)]


@dataclass(frozen=True, kw_only=True)
class _About:
    """What a plan file says of itself."""

    version: int
    shard: Count
    shard_size: Count


@dataclass(frozen=True, kw_only=True)
class _Totals:
    """What ``complete.json`` says."""

    shards: Annotated[int, Meta(ge=1, le=1 << 50)]
    images: Count


@dataclass(frozen=True)
class PlanFile:
    """One shard's file.

    Attributes:
        path: Where it is.
        shard: Its number.
        shard_size: Of the plan.
    """

    path: Path
    shard: int
    shard_size: int

    def rows(self) -> int:
        """Count its images without reading them.

        Raises:
            StoreError: It is missing, damaged, or of another plan.
        """
        with self._undamaged(), self._opened() as file:
            return int(file.metadata.num_rows)

    def items(self) -> list[Item]:
        """Read its images, in order.

        Raises:
            StoreError: It is missing, damaged, or of another plan.
        """
        with self._undamaged(), self._opened() as file:
            if not file.schema_arrow.equals(_columns()):
                raise ValueError("its columns are not those of a plan")
            table = file.read(use_threads=False)
            if table["key"].null_count or table["path"].null_count:
                raise ValueError("an image has no key or no path")
            columns = (table.column(name).to_pylist() for name in Item._fields)
            return [Item(*values) for values in zip(*columns, strict=True)]

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """Open it, and compare its own words with what it should be."""
        parquet = require("pyarrow.parquet", "reading a plan")
        wanted = _About(version=_VERSION, shard=self.shard, shard_size=self.shard_size)
        with (
            open_regular(os.fspath(self.path)) as content,
            parquet.ParquetFile(content, page_checksum_verification=True) as file,
        ):
            about = parse_document((file.schema_arrow.metadata or {})[_ABOUT], _About)
            if about != wanted:
                raise StoreError(
                    f"{self.path} is a plan file of {asdict(about)}, where {asdict(wanted)} "
                    "belongs; give the shard size that the plan was begun with, or another place."
                )
            if file.metadata.num_rows > self.shard_size:
                raise StoreError(
                    f"{self.path} has more rows than a shard; extract into a new place."
                )
            yield file

    @contextmanager
    def _undamaged(self) -> Iterator[None]:
        try:
            yield
        except TrunklineError:
            raise
        except Exception as error:  # a damaged Parquet file makes its reader raise nearly anything
            raise StoreError(
                f"{self.path} is missing or damaged ({error}); put back a copy, or extract into a "
                "new place."
            ) from error


def write_items(path: Path, shard: int, shard_size: int, items: list[Item]) -> None:
    """Write the file of a shard.

    Args:
        path: Where.
        shard: Its number.
        shard_size: Of the plan.
        items: Of the shard, in order.
    """
    arrow = require("pyarrow", "keeping a plan")
    parquet = require("pyarrow.parquet", "keeping a plan")
    about = _About(version=_VERSION, shard=shard, shard_size=shard_size)
    schema = _columns().with_metadata({_ABOUT: json.dumps(asdict(about)).encode()})
    columns = zip(*items, strict=True) if items else ((), (), (), ())
    arrays = [
        arrow.array(column, type_) for column, type_ in zip(columns, schema.types, strict=True)
    ]
    table = arrow.Table.from_arrays(arrays, schema=schema)
    parquet.write_table(table, path, compression="zstd", write_page_checksum=True)


def read_totals(path: Path, shard_size: int) -> tuple[int, int]:
    """Read how many shards and images a complete plan has.

    Args:
        path: Of ``complete.json``.
        shard_size: Of the plan.

    Raises:
        StoreError: It is damaged, or of another plan.
    """
    try:
        totals = read_document(path, _Totals)
    except (OSError, DocumentError) as error:
        raise StoreError(
            f"{path} is damaged ({error}); remove it, and it is made again from the files beside "
            "it."
        ) from error
    if -(-totals.images // shard_size) != totals.shards:
        raise StoreError(
            f"{path} counts {totals.images} images in {totals.shards} shards, which are not "
            f"shards of {shard_size}; give the shard size that the plan was begun with."
        )
    return totals.shards, totals.images


def _columns() -> Any:
    """Return the columns of a plan file: those of ``Item``."""
    arrow = require("pyarrow", "keeping a plan")
    types = (arrow.string(), arrow.string(), arrow.int64(), arrow.int64())
    return arrow.schema(zip(Item._fields, types, strict=True))
