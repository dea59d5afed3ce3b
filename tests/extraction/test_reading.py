from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from pyarrow import parquet

from trunkline.errors import ImageError
from trunkline.extraction import reading
from trunkline.extraction.reading import close_files, read_bytes
from trunkline.extraction.records import Item
from trunkline.extraction.sources import Source, list_items, source_of

FOLDER = Source(kind="folder", location="/photos")


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_files()


def table_of(path: Path, column: Any, row_group_size: int = 5) -> Source:
    parquet.write_table(pa.table({"image": column}), path, row_group_size=row_group_size)
    return source_of(path, column="image")


def test_file_is_read_as_it_is(photos: Path) -> None:
    source = source_of(photos)
    for item in list_items(source):
        assert read_bytes(source, item) == Path(item.path).read_bytes()


def test_file_that_vanished_is_named(photos: Path) -> None:
    source = source_of(photos)
    item = next(list_items(source))
    Path(item.path).unlink()
    with pytest.raises(ImageError, match=r"a/1\.jpg cannot be read: No such file"):
        read_bytes(source, item)


def test_file_that_grew_is_read_whole(photos: Path) -> None:
    source = source_of(photos)
    item = next(list_items(source))
    with open(item.path, "ab") as file:
        file.write(b"more")
    assert read_bytes(source, item).endswith(b"more")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    source = source_of(tmp_path)
    (item,) = list_items(source)
    started = time.perf_counter()
    with pytest.raises(ImageError, match=r"x\.jpg cannot be read: it is a pipe or a device"):
        read_bytes(source, item)
    assert time.perf_counter() - started < 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_pipe_that_takes_the_place_of_a_file_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.jpg").write_bytes(b"x")
    stat = os.stat

    def replaced_meanwhile(path: Any, **options: Any) -> os.stat_result:
        found = stat(path, **options)
        if str(path).endswith("x.jpg"):
            os.unlink(path)
            os.mkfifo(path)
        return found

    monkeypatch.setattr(os, "stat", replaced_meanwhile)
    with pytest.raises(ImageError, match="it is a pipe or a device"):
        read_bytes(FOLDER, Item("x.jpg", str(tmp_path / "x.jpg")))


def test_what_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "large.jpg").write_bytes(b"x" * 101)
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    for name, message in {
        "empty.jpg": "is empty; copy or download it again",
        "large.jpg": "more than the 100 bytes that an image may have",
        "folder.jpg": "it is a folder",
        "circle.jpg": "Too many levels of symbolic links",
        "a\0b.jpg": "embedded null",
    }.items():
        with pytest.raises(ImageError, match=message):
            read_bytes(FOLDER, Item(name, f"{tmp_path}/{name}"), max_bytes=100)


def test_tar_that_is_shorter_than_planned_is_an_image_error(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("x.jpg")
        info.size = 900
        tar.addfile(info, io.BytesIO(b"x" * 900))
    source = source_of(path)
    (item,) = list_items(source)
    os.truncate(path, 1000)
    with pytest.raises(ImageError, match=r"a\.tar/x\.jpg in .* gave 488 bytes instead of 900"):
        read_bytes(source, item)
    close_files()
    path.unlink()
    with pytest.raises(ImageError, match=r"a\.tar cannot be read: No such file"):
        read_bytes(source, item)


def test_empty_and_large_members_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(2048))
    source = Source(kind="tar", location=f"{tmp_path}/a.tar")
    with pytest.raises(ImageError, match=r"0\.jpg in .* is empty"):
        read_bytes(source, Item("0.jpg", source.location, 512, 0))
    with pytest.raises(ImageError, match=r"1\.jpg in .* has more than the 100 bytes"):
        read_bytes(source, Item("1.jpg", source.location, 512, 101), max_bytes=100)


def test_few_tars_are_open_at_once(tmp_path: Path) -> None:
    source = Source(kind="tar", location=f"{tmp_path}/*.tar")
    for number in range(reading.OPEN_TARS + 5):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(b"%03d" % number)
        assert read_bytes(source, Item("x", str(path), 0, 3)) == b"%03d" % number
    opened = list(reading._tars._opened.values())
    assert len(opened) == reading.OPEN_TARS
    assert not any(file.closed for file in opened)
    close_files()
    assert all(file.closed for file in opened)


@pytest.mark.parametrize("order", ["forward", "backward", "mixed"])
def test_rows_are_read_in_any_order(tmp_path: Path, order: str) -> None:
    source = table_of(tmp_path / "x.parquet", [b"%02d" % row for row in range(23)])
    items = list(list_items(source))
    rows = {
        "forward": range(23),
        "backward": range(22, -1, -1),
        "mixed": [(row * 7) % 23 for row in range(23)],
    }[order]
    assert [read_bytes(source, items[row]) for row in rows] == [b"%02d" % row for row in rows]


def test_rows_in_order_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    original = parquet.ParquetFile.iter_batches

    def noting(self: Any, *arguments: Any, **options: Any) -> Any:
        read.append((options["row_groups"], options["columns"]))
        return original(self, *arguments, **options)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", noting)
    source = table_of(tmp_path / "x.parquet", [b"x"] * 12)
    for item in list_items(source):
        read_bytes(source, item)
    assert read == [([0], ["image"]), ([1], ["image"]), ([2], ["image"])]


def test_null_row_is_an_image_error(tmp_path: Path) -> None:
    source = table_of(tmp_path / "x.parquet", pa.array([b"x", None], pa.binary()))
    _, item = list_items(source)
    with pytest.raises(ImageError, match=r"row 1 of .* has no image in column 'image': it"):
        read_bytes(source, item)


def test_null_path_is_an_image_error(tmp_path: Path) -> None:
    source = table_of(tmp_path / "x.parquet", pa.array(["x.jpg", None]))
    _, item = list_items(source)
    with pytest.raises(ImageError, match=r"row 1 of .* has no image in column 'image'"):
        read_bytes(source, item)


def test_column_of_hugging_face_datasets(tmp_path: Path) -> None:
    (tmp_path / "beside.jpg").write_bytes(b"beside")
    (tmp_path / "data").mkdir()
    images = [
        {"bytes": b"inside", "path": "beside.jpg"},
        {"bytes": None, "path": "../beside.jpg"},
        {"bytes": None, "path": str(tmp_path / "beside.jpg")},
        {"bytes": None, "path": None},
        None,
    ]
    source = table_of(tmp_path / "data/x.parquet", images)
    items = list(list_items(source))
    assert [read_bytes(source, item) for item in items[:3]] == [b"inside", b"beside", b"beside"]
    for item in items[3:]:
        with pytest.raises(ImageError, match="it is null"):
            read_bytes(source, item)


def test_table_that_changed_is_an_image_error(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    source = table_of(path, [b"a", b"b", b"c"])
    items = list(list_items(source))
    table_of(path, [b"a"])
    with pytest.raises(ImageError, match="has 1 rows, not a row 2; it has changed"):
        read_bytes(source, items[2])
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(ImageError, match=r"x\.parquet cannot be read"):
        read_bytes(source, items[2])
    table_of(path, [b"a", b"b", b"c"])
    assert read_bytes(source, items[2]) == b"c"


def test_urls_are_read_through_fsspec(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/reading/x.jpg", b"content")
    item = Item("x", "memory://reading/x.jpg")
    assert read_bytes(FOLDER, item) == b"content"
    memory.pipe("/reading/a.tar", b"0123456789")
    tar = Source(kind="tar", location="memory://reading/a.tar")
    assert read_bytes(tar, Item("x", tar.location, 3, 4)) == b"3456"
    with pytest.raises(ImageError, match="gave 2 bytes instead of 4"):
        read_bytes(tar, Item("x", tar.location, 8, 4))
    memory.rm("/reading", recursive=True)
    with pytest.raises(ImageError, match=r"memory://reading/x\.jpg cannot be read"):
        read_bytes(FOLDER, item)
    with pytest.raises(
        ImageError, match="nosuch://x cannot be opened: the protocol 'nosuch' is not"
    ):
        read_bytes(FOLDER, Item("x", "nosuch://x"))
    assert not list(tmp_path.iterdir())


def test_host_that_answers_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/reading/large.jpg", b"x" * 1000)
    asked: list[Any] = []
    original = type(memory).cat_file

    def noting(self: Any, path: str, start: Any = None, end: Any = None, **rest: Any) -> Any:
        asked.append((start, end))
        return original(self, path, start, end, **rest)

    monkeypatch.setattr(type(memory), "cat_file", noting)
    with pytest.raises(ImageError, match="more than the 100 bytes"):
        read_bytes(FOLDER, Item("x", "memory://reading/large.jpg"), max_bytes=100)
    assert asked == [(0, 101)]
    memory.rm("/reading", recursive=True)


def test_whatever_a_driver_raises_is_an_image_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("token has expired")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", failing)
    with pytest.raises(ImageError, match=r"memory://x\.jpg cannot be read: token has expired"):
        read_bytes(FOLDER, Item("x", "memory://x.jpg"))


def test_reading_imports_no_torch() -> None:
    code = (
        "import sys, trunkline.extraction.reading, trunkline.extraction.plan\n"
        "print([name for name in ('torch', 'pyarrow', 'fsspec', 'zarr') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
