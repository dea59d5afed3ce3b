"""Parquet stores: read back exactly, the same bytes twice, whole or not at all, read by four."""

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
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

from trunkline.errors import ConfigError, NotInstalledError, OutputError, StoreError
from trunkline.extraction import durable, parquet_files
from trunkline.extraction.formats import format_of
from trunkline.extraction.records import ROW_COLUMNS, Block, Row, Schema
from trunkline.outputs import sha256_of

LEVELS = ("stage1_stride_8", "stage3_stride_32")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_shard_reads_back_as_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setattr(parquet_files.ParquetFiles, "block_size", 4)
    schema = pooled_schema(dtype)
    store = opened(tmp_path / "f.parquet", schema)
    digests = write_shard(store, schema, 3, 10)
    assert_shard(store, schema, 3, 10)
    assert digests == {
        "part-00003.parquet": sha256_of(tmp_path / "f.parquet" / "part-00003.parquet")
    }
    assert pq.ParquetFile(tmp_path / "f.parquet/part-00003.parquet").num_row_groups == 3


def test_the_same_shard_gives_the_same_bytes_and_replaces_the_old_file(tmp_path: Path) -> None:
    schema = pooled_schema()
    for name in ("a.parquet", "b.parquet"):
        write_store(tmp_path / name, schema, 25)
    assert contents(tmp_path / "a.parquet") == contents(tmp_path / "b.parquet")
    store = opened(tmp_path / "a.parquet", schema)
    write_shard(store, schema, 1, 10)
    assert contents(tmp_path / "a.parquet") == contents(tmp_path / "b.parquet")


def test_columns_types_and_metadata(tmp_path: Path) -> None:
    write_store(tmp_path / "f.parquet", pooled_schema("float16"), 5)
    schema = pq.read_schema(tmp_path / "f.parquet" / "part-00000.parquet")
    assert schema.names == [*ROW_COLUMNS, *LEVELS]
    assert schema.field("width").type == pa.int32()
    assert schema.field(LEVELS[1]).type == pa.list_(pa.float16(), 6)
    assert schema.field(LEVELS[1]).metadata == {b"stride": b"32"}
    assert polars.Series([schema.metadata[b"trunkline"].decode()]).str.json_decode(
        polars.Struct({"backbone": polars.String})
    )[0] == {"backbone": MADE_BY["backbone"]}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_four_readers_take_the_folder_for_one_table(tmp_path: Path, dtype: str) -> None:
    schema = pooled_schema(dtype)
    write_store(tmp_path / "f.parquet", schema, 25)
    out = str(tmp_path / "f.parquet")
    wanted = block(schema, range(25))
    keys = [row.key for row in wanted.rows]
    failed = np.array([row.status == "failed" for row in wanted.rows])
    vectors = wanted.values[LEVELS[1]][~failed]

    arrow = pq.read_table(out)
    assert arrow["key"].to_pylist() == keys
    flat = arrow[LEVELS[1]].combine_chunks().flatten().to_numpy()
    np.testing.assert_array_equal(flat.reshape(-1, 6), vectors)

    frame = pandas.read_parquet(out)
    assert frame["key"].tolist() == keys
    found = np.stack(frame.loc[frame["status"] == "ok", LEVELS[1]])
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, vectors)

    other = polars.read_parquet(out)
    assert other["key"].to_list() == keys
    found = other.filter(polars.col("status") == "ok")[LEVELS[1]].to_numpy()
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, vectors)
    assert other[LEVELS[1]].is_null().to_list() == failed.tolist()

    with duckdb.connect() as connection:
        for place in (out, f"{out}/*.parquet"):
            found = connection.sql(f"select * from '{place}' order by key")  # noqa: S608
            columns = found.fetchnumpy()
            assert columns["key"].tolist() == keys
            # DuckDB has neither half precision nor fixed sizes here: lists of float32.
            assert str(found.types[-1]) == "FLOAT[]"
            lists = np.stack(columns[LEVELS[1]][~failed])
            np.testing.assert_array_equal(lists, vectors.astype(np.float32))


def test_nothing_is_seen_before_commit_and_nothing_is_left_after_discard(tmp_path: Path) -> None:
    schema = pooled_schema()
    store = opened(tmp_path / "f.parquet", schema)
    writer = store.writer(0)
    writer.append(block(schema, range(4)))
    assert list((tmp_path / "f.parquet").iterdir()) == []
    assert len(list(scratch_of(tmp_path / "f.parquet").glob("part-00000.parquet~*"))) == 1
    writer.discard()
    writer.discard()
    assert list(scratch_of(tmp_path / "f.parquet").iterdir()) == []
    store.writer(1).discard()


def test_discard_after_commit_leaves_the_file(tmp_path: Path) -> None:
    schema = pooled_schema()
    store = opened(tmp_path / "f.parquet", schema)
    writer = store.writer(0)
    writer.append(block(schema, range(4)))
    writer.commit()
    writer.discard()
    assert_shard(store, schema, 0, 4)


def test_a_full_disk_is_told_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = pooled_schema()
    store = opened(tmp_path / "f.parquet", schema)
    write_shard(store, schema, 0, 4)
    before = contents(tmp_path / "f.parquet")
    writer = store.writer(0)
    writer.append(block(schema, range(8)))
    fill_disk(monkeypatch)
    with pytest.raises(OutputError, match=r"part-00000\.parquet cannot be written: No space"):
        writer.commit()
    writer.discard()
    assert contents(tmp_path / "f.parquet") == before
    assert list(scratch_of(tmp_path / "f.parquet").iterdir()) == []


def test_a_write_that_fails_is_told(tmp_path: Path) -> None:
    schema = pooled_schema()
    store = opened(tmp_path / "f.parquet", schema)
    writer = store.writer(0)
    shutil.rmtree(scratch_of(tmp_path / "f.parquet"))
    with pytest.raises(OutputError, match=r"cannot be written: No such file.*run the same command"):
        writer.append(block(schema, range(4)))
    writer.discard()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's full device")
def test_a_disk_that_fills_while_a_part_grows_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = pooled_schema()
    store = opened(tmp_path / "f.parquet", schema)
    full = scratch_of(tmp_path / "f.parquet") / "part-00000.parquet~full"
    full.symlink_to("/dev/full")
    monkeypatch.setattr(durable, "aside", lambda *_: full)
    writer = store.writer(0)
    with pytest.raises(OutputError, match="No space left on device; make room"):
        writer.append(block(schema, range(10_000)))  # more than the file's buffer holds
    writer.discard()
    assert list(tmp_path.rglob("*part-*")) == []


def test_a_place_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "f.parquet").touch()
    with pytest.raises(OutputError, match=r"f\.parquet cannot be written"):
        opened(tmp_path / "f.parquet", pooled_schema())


def test_a_missing_or_damaged_shard_is_told(tmp_path: Path) -> None:
    schema = pooled_schema()
    store = opened(tmp_path / "f.parquet", schema)
    with pytest.raises(StoreError, match=r"part-00000\.parquet cannot be read.*computed anew"):
        list(store.blocks(0))
    write_shard(store, schema, 0, 10)
    part = tmp_path / "f.parquet" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-10])
    with pytest.raises(StoreError, match=r"part-00000\.parquet cannot be read"):
        list(store.blocks(0))
    store.remove(0)
    store.remove(0)
    assert not part.exists()


def test_a_shard_of_failures_or_of_nothing(tmp_path: Path) -> None:
    schema = pooled_schema()
    store = opened(tmp_path / "f.parquet", schema)
    writer = store.writer(0)
    writer.append(block(schema, range(1, 2)))
    writer.commit()
    (found,) = store.blocks(0)
    assert np.isnan(found.values[LEVELS[0]]).all()
    store.writer(1).commit()
    assert list(store.blocks(1)) == []
    assert len(pq.read_table(tmp_path / "f.parquet")) == 1


def test_a_name_that_is_not_utf8_is_kept_legible(tmp_path: Path) -> None:
    schema = pooled_schema()
    row = block(schema, range(1)).rows[0]
    odd = Row(**{**row.__dict__, "key": os.fsdecode(b"caf\xe9.jpg")})
    store = opened(tmp_path / "f.parquet", schema)
    writer = store.writer(0)
    writer.append(Block([odd], block(schema, range(1)).values))
    writer.commit()
    assert next(store.blocks(0)).rows[0].key == r"caf\udce9.jpg"


def test_maps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stage1_stride_8, stage3_stride_32 would be maps.*pool"):
        opened(tmp_path / "f.parquet", map_schema())


@pytest.mark.parametrize(
    ("out", "layout", "message"),
    [
        ("features", None, r"no format for features: .*NAME\.parquet"),
        ("features.npz", None, r"NAME\.zarr"),
        ("s3://bucket/f.parquet", None, "a folder of this machine"),
        ("features", "lance", "no layout 'lance'; the one that there is"),
        ("f.parquet", "clip-retrieval", r"f\.parquet is not a name for the layout"),
    ],
)
def test_a_name_without_a_format_is_refused(out: str, layout: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        format_of(out, layout)


@pytest.mark.parametrize(
    ("out", "module", "schema"),
    [("f.parquet", "pyarrow", pooled_schema()), ("m.zarr", "zarr", map_schema())],
)
def test_a_library_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, module: str, schema: Schema
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(NotInstalledError, match=rf'needs {module}, .*"trunkline\[extract\]"'):
        opened(tmp_path / out, schema)


def test_format_of_a_name() -> None:
    names = [format_of("a.parquet").name, format_of(Path("b.zarr/")).name]
    assert [*names, format_of("c", "clip-retrieval").name] == ["parquet", "zarr", "clip-retrieval"]


def test_a_schema_with_other_facts_gives_other_bytes(tmp_path: Path) -> None:
    schema = pooled_schema()
    write_store(tmp_path / "a.parquet", schema, 3)
    write_store(tmp_path / "b.parquet", replace(schema, made_by={"backbone": "dla34"}), 3)
    assert contents(tmp_path / "a.parquet") != contents(tmp_path / "b.parquet")
