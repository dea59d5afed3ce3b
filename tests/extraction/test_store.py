"""Manifests that tell when they were touched, records, and claims that one run holds."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from feature_blocks import job_for

from trunkline.errors import OutputError, StoreError
from trunkline.extraction.manifests import Manifest, ShardRecord, differences, new_id
from trunkline.extraction.records import Column, Schema
from trunkline.extraction.sources import Source, source_of
from trunkline.extraction.store import Store


@pytest.fixture
def manifest(photos: Path) -> Manifest:
    """Of a job of two levels."""
    columns = tuple(
        Column(name=f"stage{i}_stride_{4 << i}", stride=4 << i, shape=(8,)) for i in (1, 3)
    )
    schema = Schema(columns=columns, dtype="float32", shard_size=7, store_id=new_id())
    job = job_for(schema)
    return Manifest(
        source=source_of(photos),
        layout=None,
        job=job,
        schema=replace(schema, made_by=job),
        machine="a processor",
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Empty."""
    made = Store(tmp_path / "f.parquet")
    made.create_folders()
    return made


def record(shard: int, failed: int = 0) -> ShardRecord:
    failures = [(f"{number}.jpg", "broken") for number in range(failed)]
    return ShardRecord(
        shard=shard,
        images=500,
        failed=failed,
        seconds={"compute": 1.5},
        files={"part": "ab" * 32},
        failures=failures,
    )


def test_a_manifest_is_read_as_it_was_written(store: Store, manifest: Manifest) -> None:
    assert not store.begun
    with pytest.raises(StoreError, match=r"has no bookkeeping: .*manifest\.json is not there"):
        store.manifest()
    store.write_manifest(manifest)
    assert store.begun
    assert store.manifest() == manifest
    assert not store.out.exists()  # bookkeeping is beside the data
    assert list(store.scratch.iterdir()) == []


def test_a_source_whose_name_is_not_utf8(store: Store, manifest: Manifest) -> None:
    place = os.fsdecode(b"/photos/caf\xe9/*.jpg")
    odd = replace(manifest, source=Source(kind="glob", location=place))
    store.write_manifest(odd)
    assert store.manifest() == odd
    assert r"caf\\udce9" in (store.home / "manifest.json").read_text()  # for people


def test_a_manifest_that_was_touched(store: Store, manifest: Manifest) -> None:
    store.write_manifest(manifest)
    path = store.home / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"avg"', '"max"'))
    with pytest.raises(StoreError, match="was changed after it was written; restore it"):
        store.manifest()
    path.write_text(text.replace('"format": 2', '"format": 1'))
    with pytest.raises(StoreError, match="has format 1 and this version of trunkline reads 2"):
        store.manifest()
    path.write_text(text[:50])
    with pytest.raises(StoreError, match=r"manifest\.json cannot be read .*restore it"):
        store.manifest()


def test_records_say_what_is_done(store: Store) -> None:
    for shard in (10, 2, 100_000):
        assert not store.is_done(shard)
        store.write_record(record(shard, failed=300))
        assert store.is_done(shard)
    assert [one.shard for one in store.records()] == [2, 10, 100_000]
    found = store.record(2)
    assert (found.images, found.failed, found.seconds) == (500, 300, {"compute": 1.5})
    assert len(found.failures) == 100  # the rows have all of them
    store.write_record(record(2))
    assert store.record(2).failed == 0


def test_a_damaged_record(store: Store) -> None:
    store.write_record(record(0))
    path = store.home / "shards" / "00000.json"
    path.write_text(json.dumps({"shard": 0}))
    with pytest.raises(
        StoreError, match=r"00000\.json cannot be read as the record of a shard: .* Remove it, and"
    ):
        store.record(0)
    path.write_text("{")
    with pytest.raises(StoreError, match=r"00000\.json cannot be read"):
        list(store.records())


def test_one_claim_at_a_time(store: Store) -> None:
    other = Store(store.out)
    first = store.claim(3)
    assert first is not None
    assert other.claim(3) is None
    assert store.claim(3) is None
    beside = other.claim(4)
    assert beside is not None
    first.release()
    again = other.claim(3)
    assert again is not None
    for lock in (again, beside):
        lock.release()


def test_a_claim_is_given_back_by_another_thread_than_took_it(store: Store) -> None:
    taken = store.claim(3)
    assert taken is not None
    with ThreadPoolExecutor(1) as writer:  # the one that writes shards
        writer.submit(taken.release).result()
    again = Store(store.out).claim(3)
    assert again is not None
    again.release()


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "f.parquet.trunkline").write_text("")
    with pytest.raises(OutputError, match=r"f\.parquet cannot be written: .*choose another place"):
        Store(tmp_path / "f.parquet").create_folders()


def test_differences_in_words() -> None:
    stored = {"a": 1, "same": 0, "b": {"c": [1, 2], "unknown": None}, "gone": "x" * 100}
    given = {"a": 2, "same": 0, "b": {"c": [2], "unknown": 5}, "new": 3}
    assert differences(stored, given) == ["a 1 there, 2 now", "b.c [1, 2] there, [2] now"]
    (long,) = differences({"a": "x" * 100}, {"a": "y"})
    assert long == f"a {'x' * 57}... there, y now"
    assert differences(stored, stored) == []
