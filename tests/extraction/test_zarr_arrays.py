"""Zarr stores: maps back exactly, readable by zarr-python as they grow, shards apart on disk."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pandas
import pytest
from feature_blocks import (
    MADE_BY,
    assert_shard,
    block,
    contents,
    fill_disk,
    map_schema,
    opened,
    pooled_schema,
    scratch_of,
    write_shard,
    write_store,
)

from trunkline.errors import ConfigError, OutputError, StoreError
from trunkline.extraction.zarr_group import images_per_file
from trunkline.outputs import sha256_of

LEVELS = ("stage1_stride_8", "stage3_stride_32")

zarr = pytest.importorskip("zarr", reason="Zarr 3 has no Python 3.10")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_shard_reads_back_as_it_was_written(tmp_path: Path, dtype: str) -> None:
    schema = map_schema(dtype)
    store = opened(tmp_path / "m.zarr", schema)
    digests = write_shard(store, schema, 1, 10)
    assert_shard(store, schema, 1, 10)
    names = ["index/rows.parquet/part-00001.parquet", "index/c.1"]
    names += [f"{level}/c.1.0.0.0" for level in LEVELS]
    assert digests == {name: sha256_of(tmp_path / "m.zarr" / name) for name in names}
    write_shard(store, schema, 0, 10)
    assert_shard(store, schema, 0, 10)


def test_zarr_python_reads_the_group_without_warnings(tmp_path: Path) -> None:
    schema = map_schema()
    write_store(tmp_path / "m.zarr", schema, 25)
    group = zarr.open_group(tmp_path / "m.zarr", mode="r")
    assert sorted(group.array_keys()) == ["index", *LEVELS]
    assert group.attrs["trunkline"] == MADE_BY
    array = group[LEVELS[0]]
    assert (array.shape, array.chunks) == ((25, 3, 4, 2), (1, 3, 4, 2))
    assert array.dtype == np.float16
    assert array.attrs["stride"] == 8
    wanted = block(schema, range(25))
    for name in LEVELS:
        np.testing.assert_array_equal(group[name][:], wanted.values[name])
    assert group["index"][:].tolist() == [row.status == "ok" for row in wanted.rows]


def test_the_table_of_images_says_where_the_maps_are(tmp_path: Path) -> None:
    write_store(tmp_path / "m.zarr", map_schema(), 25)
    frame = pandas.read_parquet(tmp_path / "m.zarr" / "index" / "rows.parquet")
    assert frame["row"].tolist() == list(range(25))
    assert (frame["status"] == "failed").sum() == 6


def test_the_same_store_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.zarr", "b.zarr"):
        store = write_store(tmp_path / name, map_schema(), 25)
    write_shard(store, map_schema(), 1, 10)
    assert contents(tmp_path / "a.zarr") == contents(tmp_path / "b.zarr")


def test_shards_may_come_in_any_order_and_gaps_are_nan(tmp_path: Path) -> None:
    schema = map_schema()
    store = opened(tmp_path / "m.zarr", schema)
    write_shard(store, schema, 2, 5)
    array = zarr.open_array(tmp_path / "m.zarr" / LEVELS[0], mode="r")
    assert array.shape[0] == 25
    assert np.isnan(array[:20]).all()
    write_shard(store, schema, 0, 10)
    assert zarr.open_array(tmp_path / "m.zarr" / LEVELS[0], mode="r").shape[0] == 25
    with pytest.raises(StoreError, match=r"part-00001\.parquet cannot be read"):
        list(store.blocks(1))
    write_shard(store, schema, 1, 10)
    write_store(tmp_path / "a.zarr", schema, 25)
    assert contents(tmp_path / "a.zarr") == contents(tmp_path / "m.zarr")


def test_finish_sets_the_length(tmp_path: Path) -> None:
    schema = map_schema()
    store = opened(tmp_path / "m.zarr", schema)
    write_shard(store, schema, 0, 4)
    for total in (20, 4, 4):
        store.finish(total)
        for name in ("index", *LEVELS):
            assert zarr.open_array(tmp_path / "m.zarr" / name, mode="r").shape[0] == total


def test_no_file_holds_images_of_two_shards(tmp_path: Path) -> None:
    assert [images_per_file(n) for n in (10_000, 64, 100, 7, 9_973, 1)] == [50, 64, 50, 7, 1, 1]
    schema = map_schema(shard_size=130)
    store = opened(tmp_path / "m.zarr", schema)
    assert store.block_size == 26
    write_shard(store, schema, 1, 130)
    folder = tmp_path / "m.zarr" / LEVELS[0]
    names = {path.name for path in folder.iterdir()} - {"zarr.json"}
    assert names == {f"c.{number}.0.0.0" for number in range(5, 10)}
    assert_shard(store, schema, 1, 130)


def test_failed_images_take_little_room_and_a_second_commit_replaces_files(tmp_path: Path) -> None:
    schema = map_schema(shard_size=1)
    store = opened(tmp_path / "m.zarr", schema)
    write_shard(store, schema, 0, 1)
    folder = tmp_path / "m.zarr" / LEVELS[0]
    assert (folder / "c.0.0.0.0").exists()
    writer = store.writer(0)
    writer.append(block(schema, range(1, 2)))
    digests = writer.commit()
    assert digests[f"{LEVELS[0]}/c.0.0.0.0"] == sha256_of(folder / "c.0.0.0.0")
    assert (folder / "c.0.0.0.0").stat().st_size < 60
    assert np.isnan(next(store.blocks(0)).values[LEVELS[0]]).all()


def test_nothing_is_seen_before_commit_and_nothing_is_left_after_discard(tmp_path: Path) -> None:
    schema = map_schema()
    store = opened(tmp_path / "m.zarr", schema)
    before = contents(tmp_path / "m.zarr")
    writer = store.writer(0)
    writer.append(block(schema, range(10)))
    assert contents(tmp_path / "m.zarr") == before
    writer.discard()
    writer.discard()
    assert [path.name for path in scratch_of(tmp_path / "m.zarr").iterdir()] == ["zarr.lock"]
    assert contents(tmp_path / "m.zarr") == before


def test_a_full_disk_is_told_and_leaves_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = map_schema()
    store = opened(tmp_path / "m.zarr", schema)
    writer = store.writer(0)
    writer.append(block(schema, range(10)))
    fill_disk(monkeypatch)
    with pytest.raises(OutputError, match=r"m\.zarr.* cannot be written: No space left"):
        writer.commit()
    writer.discard()
    assert list((tmp_path / "m.zarr/index/rows.parquet").iterdir()) == []
    assert [path.name for path in scratch_of(tmp_path / "m.zarr").iterdir()] == ["zarr.lock"]


def test_create_goes_on_where_a_killed_one_stopped(tmp_path: Path) -> None:
    schema = map_schema()
    opened(tmp_path / "a.zarr", schema)
    opened(tmp_path / "b.zarr", schema)
    (tmp_path / "b.zarr" / "zarr.json").unlink()  # it is renamed last
    opened(tmp_path / "b.zarr", schema)
    assert contents(tmp_path / "a.zarr") == contents(tmp_path / "b.zarr")


def _write(out: Path, shard: int) -> None:
    schema = map_schema()
    write_shard(opened(out, schema), schema, shard, 10)


def test_processes_that_write_at_once_make_the_same_store(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    started = [
        context.Process(target=_write, args=(tmp_path / "m.zarr", shard)) for shard in (1, 0)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
        assert process.exitcode == 0
    write_store(tmp_path / "a.zarr", map_schema(), 20)
    assert contents(tmp_path / "m.zarr") == contents(tmp_path / "a.zarr")


def test_a_damaged_file_of_maps_is_told_and_can_be_removed(tmp_path: Path) -> None:
    schema = map_schema()
    store = opened(tmp_path / "m.zarr", schema)
    write_shard(store, schema, 0, 10)
    path = tmp_path / "m.zarr" / LEVELS[0] / "c.0.0.0.0"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(StoreError, match="cannot be read"):
        list(store.blocks(0))
    store.remove(0)
    store.remove(0)
    about = json.loads((tmp_path / "m.zarr" / LEVELS[0] / "zarr.json").read_text())
    assert about["shape"] == [10, 3, 4, 2]
    assert np.isnan(zarr.open_array(tmp_path / "m.zarr" / LEVELS[0], mode="r")[:]).all()


def test_pooled_features_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Zarr holds maps of one size, but stage1_stride_8"):
        opened(tmp_path / "m.zarr", pooled_schema())
