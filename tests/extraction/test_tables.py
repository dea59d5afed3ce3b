"""Parquet files that lie or repeat themselves: told, and never more in memory than one image."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from trunkline.errors import ImageError, SourceError
from trunkline.extraction import tables
from trunkline.extraction.reading import close_files, read_bytes
from trunkline.extraction.records import Item
from trunkline.extraction.sources import Source, list_items, source_of

Check = Callable[[Source], None]

BYTES, TEXT = pa.array([b"x", b"y"]), pa.array(["x.jpg", "y.jpg"])


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_files()


def written(path: Path, names: list[str], arrays: list[Any], **options: Any) -> Path:
    parquet.write_table(pa.table(arrays, names=names), path, **options)
    return path


def write_table(path: Path, rows: Mapping[str, Any], row_group_size: int = 2) -> Path:
    parquet.write_table(pa.table(dict(rows)), path, row_group_size=row_group_size)
    return path


def test_parquet_of_bytes_gives_rows(tmp_path: Path, assert_continues_anywhere: Check) -> None:
    images = [b"a", b"b", None, b"d", b"e"]
    path = write_table(tmp_path / "data.parquet", {"image": images, "label": range(5)})
    source = source_of(path)
    assert source == Source(kind="parquet", location=str(path), column="image")
    assert list(list_items(source)) == [
        Item(f"data.parquet/{row}", str(path), row) for row in range(5)
    ]
    assert_continues_anywhere(source)


def test_parquet_of_bytes_is_not_read_to_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_table(tmp_path / "data.parquet", {"image": [b"a", b"b"], "id": [7, 8]})

    def refusing(_: Any, *args: Any, columns: list[str], **options: Any) -> Any:
        assert columns == ["id"]
        return original(_, *args, columns=columns, **options)

    original = parquet.ParquetFile.iter_batches
    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", refusing)
    assert [item.key for item in list_items(source_of(path, key_column="id"))] == ["7", "8"]
    assert len(list(list_items(source_of(path)))) == 2


def test_parquet_of_paths_gives_paths(tmp_path: Path, assert_continues_anywhere: Check) -> None:
    paths = ["x/1.jpg", "/abs/2.jpg", "s3://bucket/3.jpg", None, "", "x/6.jpg", "x/7.jpg"]
    path = write_table(tmp_path / "data.parquet", {"path": paths, "caption": ["c"] * 7})
    source = source_of(path)
    assert source.column == "path"
    assert list(list_items(source)) == [
        Item("x/1.jpg", f"{tmp_path}/x/1.jpg"),
        Item("/abs/2.jpg", "/abs/2.jpg"),
        Item("s3://bucket/3.jpg", "s3://bucket/3.jpg"),
        Item("data.parquet/3", str(path), 3),
        Item("data.parquet/4", str(path), 4),
        Item("x/6.jpg", f"{tmp_path}/x/6.jpg"),
        Item("x/7.jpg", f"{tmp_path}/x/7.jpg"),
    ]
    assert_continues_anywhere(source)


@pytest.mark.parametrize("of", ["bytes", "paths"])
@pytest.mark.parametrize("key_column", [None, "id"])
def test_parquet_parts_are_one_table(
    tmp_path: Path, of: str, key_column: str | None, assert_continues_anywhere: Check
) -> None:
    folder = tmp_path / "table.parquet"
    folder.mkdir()
    for part, rows in enumerate((5, 0, 3)):
        names = [f"{part}-{row}" for row in range(rows)]
        images = pa.array([one.encode() for one in names], pa.binary())
        column = images if of == "bytes" else pa.array(names, pa.string())
        ids = pa.array([f"k{one}" for one in names], pa.string())
        write_table(folder / f"part-{part}.parquet", {"image": column, "id": ids})
    source = source_of(folder, key_column=key_column)
    expected = ["k0-0", "k0-1", "k0-2", "k0-3", "k0-4", "k2-0", "k2-1", "k2-2"]
    if key_column is None and of == "bytes":
        expected = [f"part-0.parquet/{row}" for row in range(5)]
        expected += [f"part-2.parquet/{row}" for row in range(3)]
    elif key_column is None:
        expected = [one.removeprefix("k") for one in expected]
    assert [item.key for item in list_items(source)] == expected
    assert_continues_anywhere(source)


def test_parquet_that_changed_before_the_last_row_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "data.parquet", {"path": ["a", "b", "c"]})
    source = source_of(path)
    second = list(list_items(source))[1]
    write_table(path, {"path": ["b", "c"]})
    with pytest.raises(SourceError, match="where 'b' was, there is 'c'"):
        list(list_items(source, second, 2))


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        ({"IMAGE": [b"x"], "url": ["u"], "mask": [b"m"]}, "IMAGE"),
        ({"jpg": [b"x"], "caption": ["c"], "url": ["u"]}, "jpg"),
        ({"file_name": ["x"], "label": ["y"]}, "file_name"),
        ({"image": [{"bytes": b"x", "path": None}], "label": [1]}, "image"),
        ({"url": pa.array(["x"]).dictionary_encode()}, "url"),
        ({"bytes": pa.array([b"x"], pa.large_binary())}, "bytes"),
    ],
)
def test_column_is_found(tmp_path: Path, columns: dict[str, Any], chosen: str) -> None:
    assert source_of(write_table(tmp_path / "x.parquet", columns)).column == chosen


@pytest.mark.parametrize("columns", [{"image": [b"x"], "png": [b"x"]}, {"a": ["x"], "b": [b"x"]}])
def test_column_that_could_be_several_must_be_named(
    tmp_path: Path, columns: dict[str, Any]
) -> None:
    path = write_table(tmp_path / "x.parquet", columns)
    first, last = columns
    with pytest.raises(
        SourceError, match=rf"name it by column=\. It has {first} \(.*\), {last} \(binary\)"
    ):
        source_of(path)
    assert source_of(path, column=last).column == last


def test_column_that_is_not_there_or_holds_no_images_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "x.parquet", {"image": [b"x"], "label": [1]})
    for column in ("picture", "label"):
        with pytest.raises(
            SourceError, match=rf"no column '{column}' of bytes, .* image \(binary\), label \(int64"
        ):
            source_of(path, column=column)
    with pytest.raises(SourceError, match="has no column 'id' for keys; it has image"):
        source_of(path, key_column="id")


def test_later_part_without_the_column_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "0.parquet", {"image": [b"x"]})
    write_table(tmp_path / "1.parquet", {"img": [b"x"]})
    with pytest.raises(SourceError, match=r"1\.parquet has no column 'image', which the files"):
        list(list_items(source_of(tmp_path)))


def test_later_part_with_another_kind_of_column_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "0.parquet", {"image": ["x"]})
    write_table(tmp_path / "1.parquet", {"image": [5]})
    with pytest.raises(SourceError, match=r"1\.parquet has int64 in column 'image', where the fil"):
        list(list_items(source_of(tmp_path, column="image")))


def test_null_key_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "x.parquet", {"image": [b"x"] * 3, "id": ["a", "b", None]})
    with pytest.raises(SourceError, match="a null key in column 'id', row 2"):
        list(list_items(source_of(path, key_column="id")))


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(SourceError, match=r"x\.parquet cannot be read as a Parquet file"):
        source_of(path)


def test_repeated_column_is_refused_where_it_is_meant(tmp_path: Path) -> None:
    twice = written(
        tmp_path / "x.parquet", ["image", "image", "id", "id"], [BYTES, BYTES, TEXT, TEXT]
    )
    for options in ({"column": "image"}, {"column": "id"}, {"column": "image", "key_column": "id"}):
        with pytest.raises(SourceError, match=r"several columns called '(image|id)': .* differ"):
            source_of(twice, **options)
    with pytest.raises(
        SourceError, match=r"name it by column=\. It has image \(binary\), image \("
    ):
        source_of(twice)
    with pytest.raises(
        SourceError, match=r"x\.parquet has several columns 'image', which the file"
    ):
        list(list_items(Source(kind="parquet", location=str(twice), column="image")))
    with pytest.raises(ImageError, match=r"has no column 'image' any more, or several"):
        read_bytes(
            Source(kind="parquet", location=str(twice), column="image"), Item("k", str(twice), 0)
        )


def test_repeated_column_is_no_matter_where_it_is_not_meant(tmp_path: Path) -> None:
    path = written(tmp_path / "x.parquet", ["a", "a", "image"], [TEXT, BYTES, BYTES])
    source = source_of(path)
    assert [read_bytes(source, item) for item in list_items(source)] == [b"x", b"y"]


def test_column_is_not_mistaken_for_a_part_of_one(tmp_path: Path) -> None:
    pair = pa.array([{"bytes": b"1", "path": "p"}, {"bytes": None, "path": None}])
    for names, arrays in (
        (["image.bytes", "image"], [BYTES, pair]),
        (["image", "image.bytes"], [pair, BYTES]),
    ):
        path = written(tmp_path / "x.parquet", names, arrays)
        source = source_of(path, column="image")
        first, _ = list_items(source)
        assert read_bytes(source, first) == b"1"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (pa.array([[1], [2]]), "has no column 'id' for keys"),
        (pa.array([{"a": 1}, {"a": 2}]), "has no column 'id' for keys"),
    ],
)
def test_key_is_one_value(tmp_path: Path, kind: Any, message: str) -> None:
    path = written(tmp_path / "x.parquet", ["image", "id"], [BYTES, kind])
    with pytest.raises(SourceError, match=message):
        source_of(path, key_column="id")


@pytest.mark.parametrize(
    "keys",
    [
        *(pa.array([7, 8]), pa.array([7.5, 8.5]), pa.array([b"7", b"8"]), pa.array(["7", "8"])),
        *(pa.array([7, 8]).dictionary_encode(), pa.array([b"7", b"8"], pa.binary(1))),
        *(pa.array(["7", "8"]).dictionary_encode(), pa.array(["7", "8"], pa.string_view())),
    ],
    ids=lambda keys: str(keys.type),
)
@pytest.mark.parametrize(
    "images", [BYTES, TEXT, TEXT.dictionary_encode()], ids=lambda a: str(a.type)
)
def test_keys_of_every_kind(tmp_path: Path, images: Any, keys: Any) -> None:
    path = written(tmp_path / "x.parquet", ["image", "id"], [images, keys], row_group_size=1)
    source = source_of(path, key_column="id")
    expected = [str(key) for key in keys.to_pylist()]
    whole = list(list_items(source))
    assert [item.key for item in whole] == expected
    assert list(list_items(source, whole[0], 1)) == whole[1:]


@pytest.mark.parametrize("column", ["path", "id"])
def test_texts_that_are_no_paths_and_no_keys_are_refused(tmp_path: Path, column: str) -> None:
    long = pa.array(["x" * 65_537, "y"])
    columns = {"path": TEXT, "id": TEXT, column: long}
    path = written(tmp_path / "x.parquet", list(columns), list(columns.values()))
    source = source_of(path, column="path", key_column="id")
    with pytest.raises(SourceError, match=rf"texts of 65537 bytes in column '{column}'; a path or"):
        list(list_items(source))


def test_texts_are_measured_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_BATCH_BYTES", 100)
    path = written(tmp_path / "x.parquet", ["path"], [pa.array(["x" * 60] * 2)])
    with pytest.raises(SourceError, match="at most 65536, and 2 of them 100"):
        list(list_items(source_of(path)))


def metadata_of(path: Path, **changed: int) -> Any:
    """The metadata of a file as it would be if a writer had lied."""
    real = parquet.read_metadata(path)

    class Lying:
        def __getattr__(self, name: str) -> Any:
            return changed.get(name, getattr(real, name))

    return Lying()


@pytest.mark.parametrize("rows", [-1, 1, 3, 2**62])
def test_number_of_rows_is_that_of_the_groups_and_below_that_of_the_bytes(
    tmp_path: Path, rows: int
) -> None:
    path = written(tmp_path / "x.parquet", ["image"], [BYTES])
    with (
        open(path, "rb") as file,
        pytest.raises(SourceError, match=f"claims {rows} rows in \\d+ b"),
    ):
        tables._rows_of_groups(metadata_of(path, num_rows=rows), file, "x.parquet")


def test_more_rows_than_bytes_are_refused(tmp_path: Path) -> None:
    path = written(
        tmp_path / "x.parquet", ["image"], [pa.array([b""] * 100_000)], compression="zstd"
    )
    assert path.stat().st_size < 100_000
    with pytest.raises(SourceError, match=r"claims 100000 rows in \d+ bytes, which cannot be as m"):
        list(list_items(source_of(path)))
    source = Source(kind="parquet", location=str(path), column="image")
    with pytest.raises(ImageError, match="claims 100000 rows"):
        read_bytes(source, Item("k", str(path), 5))


BOMB = """
import resource, sys
from trunkline.errors import ImageError, SourceError
from trunkline.extraction.reading import read_bytes
from trunkline.extraction.sources import list_items, source_of
import pyarrow.compute, pyarrow.parquet

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for column in ("image", "path"):
    try:
        source = source_of(sys.argv[1], column=column)
        for item in list_items(source):
            try:
                read_bytes(source, item, max_bytes=1 << 20)
            except ImageError as error:
                print("image:", error)
    except SourceError as error:
        print("source:", error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="others count memory in another unit")
def test_few_bytes_that_stand_for_many_take_the_memory_of_one(tmp_path: Path) -> None:
    big, indices = 4 << 20, pa.array([0] * 80, pa.int32())  # 80 of them are 320 MB
    columns = [pa.DictionaryArray.from_arrays(indices, [one]) for one in (bytes(big), "x" * big)]
    path = written(
        tmp_path / "x.parquet",
        ["image", "path"],
        columns,
        compression="zstd",
        dictionary_pagesize_limit=1 << 30,
        store_schema=False,
    )
    assert path.stat().st_size < 10_000
    done = subprocess.run(
        [sys.executable, "-c", BOMB, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    *said, grown = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in said] == ["image"] * 80 + ["source"]
    assert "has more than the 1048576 bytes" in said[0]
    assert f"holds texts of {big} bytes in column 'path'" in said[-1]
    assert int(grown) < 100_000


@pytest.mark.parametrize("reading", [False, True])
def test_column_that_is_a_bomb_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reading: bool
) -> None:
    monkeypatch.setattr(tables, "_SMALL_BYTES", 1 << 20)
    name = "image" if reading else "path"
    value: Any = bytes(2 << 20) if reading else "x" * (2 << 20)
    path = written(tmp_path / "x.parquet", [name], [pa.array([value])], compression="zstd")
    source = source_of(path)
    kind = ImageError if reading else SourceError
    with pytest.raises(kind, match=rf"holds \d+ bytes of column '{name}' in \d+ packed ones"):
        [read_bytes(source, item) for item in list_items(source)]


def test_pair_may_have_more_beside_it_which_is_not_read(tmp_path: Path) -> None:
    pairs = pa.array([{"bytes": b"1", "path": "p", "more": [[1] * 9]}, {"bytes": b"2"}])
    source = source_of(written(tmp_path / "x.parquet", ["image"], [pairs]))
    assert [read_bytes(source, item) for item in list_items(source)] == [b"1", b"2"]
    alone = pa.array([{"bytes": b"3"}, {"bytes": None}])
    source = source_of(written(tmp_path / "y.parquet", ["image"], [alone]))
    first, second = list_items(source)
    assert read_bytes(source, first) == b"3"
    with pytest.raises(ImageError, match="it is null"):
        read_bytes(source, second)
