"""The layout of clip-retrieval: aligned arrays and tables, and the failed images beside them."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from feature_blocks import (
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
from trunkline.extraction import clip_retrieval
from trunkline.outputs import sha256_of

LAYOUT = "clip-retrieval"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_shard_reads_back_as_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setattr(clip_retrieval.ClipRetrieval, "block_size", 4)
    schema = pooled_schema(dtype, levels=1)
    store = opened(tmp_path / "f", schema, LAYOUT)
    digests = write_shard(store, schema, 2, 10)
    assert_shard(store, schema, 2, 10)
    assert digests == {
        name: sha256_of(tmp_path / "f" / name)
        for name in (
            "failed/failed_00002.parquet",
            "metadata/metadata_00002.parquet",
            "img_emb/img_emb_00002.npy",
        )
    }


def test_vectors_and_rows_stand_side_by_side(tmp_path: Path) -> None:
    schema = pooled_schema(levels=1)
    write_store(tmp_path / "f", schema, 25, LAYOUT)
    wanted = block(schema, range(10, 20))
    done = [row.status == "ok" for row in wanted.rows]
    vectors = np.load(tmp_path / "f/img_emb/img_emb_00001.npy", mmap_mode="r")
    table = pq.read_table(tmp_path / "f/metadata/metadata_00001.parquet")
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, wanted.values["stage1_stride_8"][done])
    assert table["image_path"].to_pylist() == [
        row.path for row in wanted.rows if row.status == "ok"
    ]
    failed = pq.read_table(tmp_path / "f/failed/failed_00001.parquet")
    assert failed["position"].to_pylist() == [3, 7]
    assert set(failed["error"].to_pylist()) == {"not an image: unknown format"}


def test_the_same_shard_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_store(tmp_path / name, pooled_schema(levels=1), 25, LAYOUT)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(contents(tmp_path / "a")) == 9


def test_a_shard_of_failures_only(tmp_path: Path) -> None:
    schema = pooled_schema(levels=1)
    store = opened(tmp_path / "f", schema, LAYOUT)
    writer = store.writer(0)
    writer.append(block(schema, range(1, 2)))
    writer.commit()
    assert np.load(tmp_path / "f/img_emb/img_emb_00000.npy").shape == (0, 4)
    (found,) = store.blocks(0)
    assert [row.status for row in found.rows] == ["failed"]


def test_a_full_disk_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = pooled_schema(levels=1)
    store = opened(tmp_path / "f", schema, LAYOUT)
    writer = store.writer(0)
    writer.append(block(schema, range(8)))
    assert contents(tmp_path / "f") == {}
    fill_disk(monkeypatch)
    with pytest.raises(OutputError, match="cannot be written: No space left on device"):
        writer.commit()
    writer.discard()
    writer.discard()
    assert contents(tmp_path / "f") == {}
    assert list(scratch_of(tmp_path / "f").iterdir()) == []


def test_files_that_do_not_fit_each_other_are_told(tmp_path: Path) -> None:
    schema = pooled_schema(levels=1)
    store = opened(tmp_path / "f", schema, LAYOUT)
    write_shard(store, schema, 0, 10)
    vectors = tmp_path / "f/img_emb/img_emb_00000.npy"
    found = np.load(vectors)
    for wrong in (found[:-1], np.concatenate([found, found])):
        np.save(vectors, wrong)
        with pytest.raises(StoreError, match="not one vector per row"):
            list(store.blocks(0))
    vectors.write_bytes(b"PK")
    with pytest.raises(StoreError, match=r"img_emb_00000\.npy cannot be read"):
        list(store.blocks(0))
    store.remove(0)
    assert contents(tmp_path / "f") == {}
    with pytest.raises(StoreError, match="cannot be read"):
        list(store.blocks(0))


def test_several_levels_and_maps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 levels were asked for: stage1_stride_8, stage3"):
        opened(tmp_path / "f", pooled_schema(), LAYOUT)
    schema = map_schema()
    one = type(schema)(
        columns=schema.columns[:1], dtype=schema.dtype, shard_size=10, made_by=schema.made_by
    )
    with pytest.raises(ConfigError, match="stage1_stride_8 would be maps"):
        opened(tmp_path / "f", one, LAYOUT)
