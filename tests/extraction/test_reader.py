"""Feature stores as other libraries want them, of every format, half done, and on their own."""

import itertools
import pickle
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
import torch
from feature_blocks import (
    MADE_BY,
    block,
    map_schema,
    newer_python,
    pooled_schema,
    write_shard,
    write_store,
)
from torch.utils.data import DataLoader

from trunkline.errors import ConfigError, NotInstalledError, StoreError
from trunkline.extraction import clip_retrieval, parquet_files
from trunkline.extraction.reader import FeatureStore, open_features
from trunkline.extraction.records import ROW_COLUMNS, Schema

TOTAL = 25
LEVELS = ("stage1_stride_8", "stage3_stride_32")
LAYOUTS = {"f.parquet": None, "f": "clip-retrieval"}


def expected(schema: Schema) -> tuple[list[str], dict[str, np.ndarray[Any, Any]]]:
    """Keys and features of the images that did not fail."""
    made = block(schema, range(TOTAL))
    done = np.array([row.status == "ok" for row in made.rows])
    keys = [row.key for row in made.rows if row.status == "ok"]
    return keys, {name: values[done] for name, values in made.values.items()}


@pytest.fixture(params=itertools.product(LAYOUTS, ["float32", "float16"]), ids="-".join)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[FeatureStore, Schema]:
    name, dtype = request.param
    schema = pooled_schema(dtype, levels=1 if LAYOUTS[name] else 2)
    with pytest.MonkeyPatch.context() as patch:
        for format_ in (parquet_files.ParquetFiles, clip_retrieval.ClipRetrieval):
            patch.setattr(format_, "block_size", 4)
        write_store(tmp_path / name, schema, TOTAL, LAYOUTS[name])
    shutil.rmtree(tmp_path / f"{name}.trunkline")
    return open_features(tmp_path / name), schema


def test_facts(written: tuple[FeatureStore, Schema]) -> None:
    store, schema = written
    assert store.levels == LEVELS[: len(schema.columns)]
    assert store.dtype == schema.dtype
    assert store.made_by == MADE_BY
    assert (len(store), store.num_failed) == (TOTAL, 6)
    assert "25 images, stage1_stride_8" in repr(store)


def test_arrays_and_keys(written: tuple[FeatureStore, Schema]) -> None:
    store, schema = written
    keys, values = expected(schema)
    assert store.keys == keys
    for place, name in enumerate(store.levels):
        for level in (name, name.partition("_")[0], place, place - len(store.levels)):
            np.testing.assert_array_equal(store.numpy(level), values[name], strict=True)
        tensor = store.torch(name)
        assert tensor.dtype == getattr(torch, schema.dtype)
        np.testing.assert_array_equal(tensor.numpy(), values[name])
    out = np.zeros((19, 4), np.float64)
    assert store.numpy(0, out=out) is out
    np.testing.assert_array_equal(out, values[LEVELS[0]].astype(np.float64))


@pytest.mark.parametrize("size", [1, 5, 19, 100])
def test_batches_have_one_size(written: tuple[FeatureStore, Schema], size: int) -> None:
    store, schema = written
    keys, values = expected(schema)
    batches = list(store.batches(0, size))
    assert {len(batch.keys) for batch in batches[:-1]} <= {size}
    assert [len(batch.keys) for batch in batches] == [len(batch.values) for batch in batches]
    assert [key for batch in batches for key in batch.keys] == keys
    found = np.concatenate([batch.values for batch in batches])
    np.testing.assert_array_equal(found, values[LEVELS[0]], strict=True)


def test_tables(written: tuple[FeatureStore, Schema]) -> None:
    store, schema = written
    rows = block(schema, range(TOTAL)).rows
    values = expected(schema)[1][LEVELS[0]]
    table = store.table()
    assert table.column_names == [*ROW_COLUMNS, *store.levels]
    assert table.select(ROW_COLUMNS).to_pylist() == [row.__dict__ for row in rows]
    assert table[LEVELS[0]].null_count == 6
    lists = table[LEVELS[0]].combine_chunks().flatten().to_numpy()
    np.testing.assert_array_equal(lists.reshape(-1, 4), values, strict=True)
    assert store.table(["stage1", "key"]).column_names == [LEVELS[0], "key"]


def test_failures(written: tuple[FeatureStore, Schema]) -> None:
    table = written[0].failures()
    assert table.column_names == ["key", "path", "error"]
    assert table["key"].to_pylist() == [f"folder/{number:04d}.jpg" for number in range(1, 25, 4)]
    assert set(table["error"].to_pylist()) == {"not an image: unknown format"}


def test_frames(written: tuple[FeatureStore, Schema]) -> None:
    store, schema = written
    values = expected(schema)[1][LEVELS[0]]
    frame = store.pandas()
    assert len(frame) == TOTAL
    found = np.stack(frame.loc[frame["status"] == "ok", LEVELS[0]])
    np.testing.assert_array_equal(found, values, strict=True)
    other = store.polars()
    found = other.drop_nulls(LEVELS[0])[LEVELS[0]].to_numpy()
    np.testing.assert_array_equal(found, values, strict=True)
    relation = store.duckdb()
    found = relation.filter("status = 'ok'").project(LEVELS[0]).fetchnumpy()[LEVELS[0]]
    np.testing.assert_array_equal(np.stack(list(found)), values.astype(np.float32))
    (nearest,) = (
        store.duckdb()
        .filter("status = 'ok'")
        .order(f"array_distance({LEVELS[0]}::FLOAT[4], {values[2].tolist()}::FLOAT[4])")
        .project("key")
        .limit(1)
        .fetchall()
    )
    assert nearest == ("folder/0003.jpg",)


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_block_is_not_copied(tmp_path: Path, name: str) -> None:
    schema = pooled_schema(shard_size=TOTAL, levels=1)
    write_store(tmp_path / name, schema, TOTAL, LAYOUTS[name])
    store = open_features(tmp_path / name)
    found = store.numpy()
    assert not found.flags.owndata
    np.testing.assert_array_equal(found, expected(schema)[1][LEVELS[0]])
    assert store.torch().add_(1).shape == (19, 4)  # a tensor's memory is its own


def test_one_part_file_opens_by_itself(tmp_path: Path) -> None:
    write_store(tmp_path / "f.parquet", pooled_schema(), TOTAL)
    store = open_features(tmp_path / "f.parquet" / "part-00001.parquet")
    assert len(store) == 10
    assert store.table(["key"])["key"][0].as_py() == "folder/0010.jpg"


def test_a_half_done_store_opens_with_the_shards_there_are(tmp_path: Path) -> None:
    schema = pooled_schema()
    store = write_store(tmp_path / "f.parquet", schema, TOTAL)
    writer = store.writer(3)
    writer.append(block(schema, range(4)))
    store.remove(0)
    assert len(open_features(tmp_path / "f.parquet")) == 15
    writer.discard()


def test_shards_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    schema = pooled_schema(shard_size=1)
    store = write_store(tmp_path / "f.parquet", schema, 1)
    for shard in (100_000, 99_999):
        write_shard(store, schema, shard, 1)
    keys = open_features(tmp_path / "f.parquet").table(["key"])["key"].to_pylist()
    assert [key[-9:-4] for key in keys] == ["/0000", "99999", "00000"]


def test_a_store_of_failures_only(tmp_path: Path) -> None:
    schema = pooled_schema(shard_size=1)
    store = write_store(tmp_path / "f.parquet", schema, 0)
    write_shard(store, schema, 1, 1)
    opened = open_features(tmp_path / "f.parquet")
    assert opened.numpy().shape == opened.torch().shape == (0, 6)
    assert list(opened.batches()) == []
    assert opened.num_failed == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda store: store.numpy("stage2"), "no level 'stage2'; it has stage1_stride_8, stage3"),
        (lambda store: store.numpy(2), "no level 2; it has"),
        (lambda store: store.batches("stage"), "no level 'stage'"),
        (lambda store: store.maps(), r"holds pooled features, no maps; use numpy"),
        (lambda store: store.table(["keys"]), "no column 'keys'; it has key, path, .*stage3"),
    ],
)
def test_what_is_not_there_is_told(
    tmp_path: Path, call: Callable[[FeatureStore], Any], message: str
) -> None:
    write_store(tmp_path / "f.parquet", pooled_schema(), 5)
    with pytest.raises(StoreError, match=message):
        call(open_features(tmp_path / "f.parquet"))


def test_wrong_arguments_are_told(tmp_path: Path) -> None:
    write_store(tmp_path / "f.parquet", pooled_schema(), 5)
    store = open_features(tmp_path / "f.parquet")
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        store.batches(size=0)
    with pytest.raises(ConfigError, match=r"out has shape \(3, 6\), but stage3_stride_32 is"):
        store.numpy(out=np.zeros((3, 6)))


def test_what_is_no_store_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a store of features: there is nothing"):
        open_features(tmp_path / "f.parquet")
    (tmp_path / "f.txt").touch()
    with pytest.raises(StoreError, match="it is some other file"):
        open_features(tmp_path / "f.txt")
    (tmp_path / "g.parquet").mkdir()
    with pytest.raises(StoreError, match="has no finished shard"):
        open_features(tmp_path / "g.parquet")
    pa.parquet.write_table(pa.table({"key": ["a"]}), tmp_path / "h.parquet")
    with pytest.raises(StoreError, match="a Parquet file, but none of a store of features"):
        open_features(tmp_path / "h.parquet")
    (tmp_path / "i.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match=r"i\.parquet cannot be read"):
        open_features(tmp_path / "i.parquet")


def test_arrays_of_clip_retrieval_itself_are_told_apart(tmp_path: Path) -> None:
    for folder in ("img_emb", "metadata"):
        (tmp_path / "f" / folder).mkdir(parents=True)
    np.save(tmp_path / "f/img_emb/img_emb_0.npy", np.zeros((1, 4), np.float32))
    table = pa.table({"image_path": ["a.jpg"], "position": [0]})
    pa.parquet.write_table(table, tmp_path / "f/metadata/metadata_0.parquet")
    with pytest.raises(StoreError, match=r"not written by trunkline extract; read .* numpy\.load"):
        open_features(tmp_path / "f")


def test_parts_of_two_jobs_are_told(tmp_path: Path) -> None:
    schema = pooled_schema()
    write_store(tmp_path / "f.parquet", schema, 10)
    store = write_store(tmp_path / "g.parquet", replace(schema, made_by={}), TOTAL)
    store.path(1).rename(tmp_path / "f.parquet" / "part-00001.parquet")  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match=r"part-00001.* belongs to another job than .*part-00000"):
        open_features(tmp_path / "f.parquet")


@pytest.mark.parametrize("name", ["pandas", "polars", "duckdb"])
def test_a_library_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_store(tmp_path / "f.parquet", pooled_schema(), 5)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(NotInstalledError, match=f"pip install {name}$"):
        getattr(open_features(tmp_path / "f.parquet"), name)()


def test_the_relation_outlives_the_store(tmp_path: Path) -> None:
    write_store(tmp_path / "f.parquet", pooled_schema(), TOTAL)
    relation = open_features(tmp_path / "f.parquet").duckdb()
    assert isinstance(relation, duckdb.DuckDBPyRelation)
    assert relation.aggregate("count(*), count(stage3_stride_32)").fetchall() == [(25, 19)]


@newer_python
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_maps_of_a_zarr_store(tmp_path: Path, dtype: str) -> None:
    schema = map_schema(dtype)
    write_store(tmp_path / "m.zarr", schema, TOTAL)
    shutil.rmtree(tmp_path / "m.zarr.trunkline")
    keys, values = expected(schema)
    store = open_features(tmp_path / "m.zarr")
    assert store.levels == LEVELS
    assert store.dtype == dtype
    assert store.made_by == MADE_BY
    assert (len(store), store.num_failed, store.keys) == (TOTAL, 6, keys)
    assert store.table().column_names == [*ROW_COLUMNS, "row"]
    maps = store.maps()
    assert len(maps) == 19
    for place in (0, 7, -1):
        example = maps[place]
        assert example["key"] == keys[place]
        for name in LEVELS:
            wanted = values[name][place].astype(np.float32)
            np.testing.assert_array_equal(example[name].numpy(), wanted, strict=True)
    with pytest.raises(IndexError):
        maps[19]
    assert store.maps("stage3", dtype=torch.float16)[0][LEVELS[1]].dtype == torch.float16
    found = np.concatenate([batch.values for batch in store.batches(0, 4)])
    np.testing.assert_array_equal(found, values[LEVELS[0]], strict=True)


@newer_python
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_maps_in_forked_workers(tmp_path: Path) -> None:
    schema = map_schema()
    write_store(tmp_path / "m.zarr", schema, TOTAL)
    keys, values = expected(schema)
    maps = open_features(tmp_path / "m.zarr").maps()
    assert maps[3]["key"] == keys[3]  # read here first: a fork must not use these arrays
    loader = DataLoader(maps, batch_size=8, num_workers=1, multiprocessing_context="fork")
    batches = list(loader)
    assert [key for batch in batches for key in batch["key"]] == keys
    for name in LEVELS:
        found = torch.cat([batch[name] for batch in batches]).numpy()
        np.testing.assert_array_equal(found, values[name].astype(np.float32))


@newer_python
def test_a_dataset_of_maps_can_be_pickled(tmp_path: Path) -> None:
    write_store(tmp_path / "m.zarr", map_schema(), TOTAL)
    maps = open_features(tmp_path / "m.zarr").maps("stage1")
    wanted = maps[5]
    copy = pickle.loads(pickle.dumps(maps))  # noqa: S301
    assert copy[5]["key"] == wanted["key"]
    assert torch.equal(copy[5][LEVELS[0]], wanted[LEVELS[0]])


@newer_python
def test_maps_are_no_vectors(tmp_path: Path) -> None:
    write_store(tmp_path / "m.zarr", map_schema(), TOTAL)
    store = open_features(tmp_path / "m.zarr")
    for call in (store.numpy, store.torch):
        with pytest.raises(StoreError, match=r"stage3_stride_32 .* are maps of shape \(5, 2, 1\)"):
            call("stage3")
    (tmp_path / "m.zarr" / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match=r"zarr\.json cannot be read.*store is damaged"):
        open_features(tmp_path / "m.zarr")
