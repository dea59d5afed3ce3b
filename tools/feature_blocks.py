"""Small shards with known numbers, for what tests write and read of feature stores."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from trunkline.extraction.formats import ShardFormat, format_of
from trunkline.extraction.manifests import Manifest, ShardRecord, new_id
from trunkline.extraction.plan_files import write_items
from trunkline.extraction.records import Block, Column, Item, Row, Schema
from trunkline.extraction.sources import Source
from trunkline.extraction.store import Store
from trunkline.preprocessing import IMAGENET

newer_python = pytest.mark.skipif(sys.version_info < (3, 11), reason="Zarr 3 has no Python 3.10")

MADE_BY = {"backbone": "resnet18", "pool": "avg", "versions": {"trunkline": "0"}}


def pooled_schema(dtype: str = "float32", shard_size: int = 10, levels: int = 2) -> Schema:
    """Two levels of 4 and 6 channels, pooled."""
    columns = (
        Column(name="stage1_stride_8", stride=8, shape=(4,)),
        Column(name="stage3_stride_32", stride=32, shape=(6,)),
    )
    return Schema(
        columns=columns[:levels],
        dtype=dtype,  # type: ignore[arg-type]
        shard_size=shard_size,
        made_by=MADE_BY,
    )


def map_schema(dtype: str = "float16", shard_size: int = 10) -> Schema:
    """Maps of 3 × 4 × 2 and 5 × 2 × 1: not square, which catches swapped axes."""
    columns = (
        Column(name="stage1_stride_8", stride=8, shape=(3, 4, 2)),
        Column(name="stage3_stride_32", stride=32, shape=(5, 2, 1)),
    )
    return Schema(
        columns=columns,
        dtype=dtype,  # type: ignore[arg-type]
        shard_size=shard_size,
        made_by=MADE_BY,
    )


def row(number: int) -> Row:
    """One image; every fourth, beginning with the second, failed."""
    key = f"folder/{number:04d}.jpg"
    if number % 4 == 1:
        return Row(
            key=key,
            path=f"/photos/{key}",
            width=None,
            height=None,
            sha256=None,
            status="failed",
            error="not an image: unknown format",
        )
    return Row(
        key=key,
        path=f"/photos/{key}",
        width=500 + number,
        height=375,
        sha256=hashlib.sha256(key.encode()).hexdigest(),
        status="ok",
        error=None,
    )


def block(schema: Schema, numbers: range) -> Block:
    """Images of these numbers; features depend on the number alone."""
    made = schema.empty_block([row(number) for number in numbers])
    for place, number in enumerate(numbers):
        if made.rows[place].status == "ok":
            for column in schema.columns:
                random = np.random.default_rng([number, column.stride])
                made.values[column.name][place] = random.normal(size=column.shape)
    return made


def blocks(schema: Schema, numbers: range, size: int) -> Iterator[Block]:
    """The same, piece by piece."""
    for start in range(numbers.start, numbers.stop, size):
        yield block(schema, range(start, min(start + size, numbers.stop)))


def scratch_of(out: Path) -> Path:
    """Where files of this store grow."""
    return out.with_name(f"{out.name}.trunkline") / "tmp"


def opened(out: Path, schema: Schema, layout: str | None = None) -> ShardFormat:
    """The format of this name, its folders made."""
    store = format_of(out, layout)(out, scratch_of(out), schema)
    store.create()
    return store


def write_shard(store: ShardFormat, schema: Schema, shard: int, count: int) -> dict[str, str]:
    """Write one shard of ``count`` images."""
    first = shard * schema.shard_size
    writer = store.writer(shard)
    for one in blocks(schema, range(first, first + count), store.block_size):
        writer.append(one)
    return writer.commit()


def write_store(out: Path, schema: Schema, total: int, layout: str | None = None) -> ShardFormat:
    """Write a whole store."""
    store = opened(out, schema, layout)
    for shard, first in enumerate(range(0, total, schema.shard_size)):
        write_shard(store, schema, shard, min(schema.shard_size, total - first))
    store.finish(total)
    return store


def job_for(schema: Schema) -> dict[str, Any]:
    """A job whose numbers such a schema holds."""
    names = [column.name.partition("_stride_")[0] for column in schema.columns]
    return {
        "network": {"variant": "resnet18", "state_sha256": "ab" * 32, "structure": None},
        "runtime": "torch",
        "precision": "fp32",
        "batch_size": 4,
        "images": {
            "preprocessing": IMAGENET.to_dict(),
            "decode": "exact",
            "max_pixels": 1_000_000,
            "max_bytes": 1_000_000,
        },
        "levels": names,
        "strides": [column.stride for column in schema.columns],
        "pool": "avg" if len(schema.columns[0].shape) == 1 else "none",
        "normalize": False,
        "dtype": schema.dtype,
        "versions": {"trunkline": "0"},
    }


def write_kept_store(out: Path, schema: Schema, total: int, layout: str | None = None) -> Store:
    """Write a whole store with its bookkeeping, as a run leaves it, but for the runner."""
    job, store = job_for(schema), Store(out)
    schema = replace(schema, made_by=job, store_id=new_id())
    source = Source(kind="folder", location="/photos")
    store.create_folders()
    store.runner_folder.mkdir()
    store.write_manifest(
        Manifest(source=source, layout=layout, job=job, schema=schema, machine="a processor")
    )
    form = store.format(store.manifest())
    form.create()
    size = schema.shard_size
    for shard in range(-(-total // size)):
        rows = [row(number) for number in range(shard * size, min(total, (shard + 1) * size))]
        items = [Item(one.key, one.path) for one in rows]
        write_items(store.plan_folder / f"{shard:05d}.parquet", shard, size, items)
        files = write_shard(form, schema, shard, len(rows))
        failures = [(one.key, str(one.error)) for one in rows if one.status == "failed"]
        store.write_record(
            ShardRecord(
                shard=shard,
                images=len(rows),
                failed=len(failures),
                seconds={"compute": 1.5, "total": 2.0},
                files=files,
                failures=failures,
            )
        )
    totals = {"shards": -(-total // size), "images": total}
    (store.plan_folder / "complete.json").write_text(json.dumps(totals))
    form.finish(total)
    return store


def assert_shard(store: ShardFormat, schema: Schema, shard: int, count: int) -> None:
    """Read a shard back and compare it with what was written, block by block."""
    first = shard * schema.shard_size
    wanted = list(blocks(schema, range(first, first + count), store.block_size))
    found = list(store.blocks(shard))
    np.testing.assert_equal([one.rows for one in found], [one.rows for one in wanted])
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_equal(sorted(ours.values), sorted(theirs.values))
        for name, values in theirs.values.items():
            np.testing.assert_array_equal(ours.values[name], values, strict=True)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every sync fail as on a full disk."""

    def full(_descriptor: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
