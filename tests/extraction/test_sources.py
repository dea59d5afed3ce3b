from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from trunkline.errors import ConfigError, SourceError
from trunkline.extraction import list_files, sources, walking
from trunkline.extraction.locations import local_path
from trunkline.extraction.reading import read_bytes
from trunkline.extraction.records import Item
from trunkline.extraction.sources import Source, list_items, source_of
from trunkline.images import image_suffixes

Check = Callable[[Source], None]

SORTED = ["a/1.jpg", "a/2.JPEG", "b.jpg", "c/d/3.jpg", "e.jpg"]


def keys(source: Source, after: Item | None = None, count: int = 0) -> list[str]:
    return [item.key for item in list_items(source, after, count)]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def test_folder_is_listed_in_order_without_hidden_and_other_files(
    photos: Path, assert_continues_anywhere: Check
) -> None:
    source = source_of(photos)
    assert source == Source(kind="folder", location=str(photos))
    listed = list(list_items(source))
    assert [item.key for item in listed] == SORTED
    assert [item.path for item in listed] == [str(photos / key) for key in SORTED]
    assert_continues_anywhere(source)


def test_hidden_folders_are_left_out_unless_they_are_what_was_asked_for(tmp_path: Path) -> None:
    touch(tmp_path, ".cache/x.jpg", "y.jpg")
    assert keys(source_of(tmp_path)) == ["y.jpg"]
    assert keys(source_of(tmp_path / ".cache")) == ["x.jpg"]
    assert keys(source_of(f"{tmp_path}/.c*/*")) == [".cache/x.jpg"]


def test_names_are_ordered_folder_by_folder_rather_than_as_texts(
    tmp_path: Path, assert_continues_anywhere: Check
) -> None:
    touch(tmp_path, "a/z.jpg", "a-b.jpg", "a.jpg", "A.jpg")  # "-" and "." come before "/"
    assert keys(source_of(tmp_path)) == ["A.jpg", "a/z.jpg", "a-b.jpg", "a.jpg"]
    assert_continues_anywhere(source_of(tmp_path))


def test_relative_path_is_that_of_now(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    assert source_of("photos").location == str(photos)


def test_source_survives_json(photos: Path) -> None:
    source = source_of(photos)
    assert Source.from_dict(json.loads(json.dumps(source.to_dict()))) == source


@pytest.mark.parametrize(
    "values",
    [
        *({"kind": "folder"}, {"kind": "x", "location": "/"}, {"kind": [], "location": "/"}, 5),
        *({"kind": "list", "location": 5}, {"kind": "list", "location": "/", "column": [1]}),
    ],
)
def test_values_that_are_no_source_are_refused(values: Any) -> None:
    with pytest.raises(
        SourceError, match=r"does not describe a source|no source is of kind ('x'|\[\])"
    ):
        Source.from_dict(values)


def test_files_that_come_or_go_before_the_last_one_shift_nothing(photos: Path) -> None:
    source = source_of(photos)
    third = list(list_items(source))[2]
    (photos / "a/1.jpg").unlink()
    touch(photos, "a/0.jpg", "aa.jpg", "d.jpg")
    assert keys(source, third, 3) == ["c/d/3.jpg", "d.jpg", "e.jpg"]
    Path(third.path).unlink()
    assert keys(source, third, 3) == ["c/d/3.jpg", "d.jpg", "e.jpg"]


def test_folder_that_took_the_place_of_the_last_file_comes_next(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    source = source_of(tmp_path)
    first = next(list_items(source))
    (tmp_path / "a.jpg").unlink()
    touch(tmp_path, "a.jpg/x.jpg")
    assert keys(source, first, 1) == ["a.jpg/x.jpg", "b.jpg"]


def test_folder_that_vanishes_during_the_walk_holds_nothing(photos: Path) -> None:
    listing = list_items(source_of(photos))
    assert next(listing).key == "a/1.jpg"
    for path in (photos / "c/d/3.jpg", photos / "c/d", photos / "c"):
        path.unlink() if path.is_file() else path.rmdir()
    assert [item.key for item in listing] == ["a/2.JPEG", "b.jpg", "e.jpg"]


def test_large_folder_is_sorted_in_runs_to_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{(number * 7919) % 1009:04d}é.jpg" for number in range(300)]
    touch(tmp_path, *names, "0500/in.jpg")
    expected = keys(source_of(tmp_path))
    assert expected.index("0500/in.jpg") > 0
    monkeypatch.setattr(walking, "RUN_NAMES", 7)
    monkeypatch.setattr(walking, "_READ_BYTES", 16)
    assert keys(source_of(tmp_path)) == expected
    assert [key for key in expected if "/" not in key] == sorted(names)
    third = list(list_items(source_of(tmp_path)))[2]
    assert keys(source_of(tmp_path), third) == expected[3:]


def test_large_folder_never_sorts_more_than_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, *(f"{number:03d}.jpg" for number in range(50)))
    longest = 0

    def counting(entries: Iterator[Any]) -> list[Any]:
        nonlocal longest
        run = list(entries)
        longest = max(longest, len(run))
        run.sort()
        return run

    monkeypatch.setattr(walking, "RUN_NAMES", 8)
    monkeypatch.setattr(walking, "sorted", counting, raising=False)
    assert len(keys(source_of(tmp_path))) == 50
    assert longest == 8


def test_folder_is_opened_only_when_the_listing_comes_to_it(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    scandir = os.scandir

    def noting(path: str) -> Any:
        opened.append(os.path.relpath(path, photos))
        return scandir(path)

    source = source_of(photos)
    monkeypatch.setattr(os, "scandir", noting)
    assert [item.key for item in islice(list_items(source), 3)] == SORTED[:3]
    assert opened == [".", "a"]


def test_links_to_folders_are_followed_but_not_in_circles(photos: Path, tmp_path: Path) -> None:
    touch(tmp_path, "other/x.jpg")
    (photos / "f").symlink_to(tmp_path / "other")
    (photos / "c/up").symlink_to(photos)
    (photos / "g.jpg").symlink_to("g.jpg")  # leads to itself: listed, and fails when it is read
    (photos / "h.jpg").symlink_to("nowhere")
    assert keys(source_of(photos)) == [*SORTED, "f/x.jpg", "g.jpg", "h.jpg"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_utf8_are_kept_and_can_be_read(
    tmp_path: Path, assert_continues_anywhere: Check
) -> None:
    folder = tmp_path / "photos"
    touch(folder, "caf%E9.jpg")
    raw = os.fsencode(folder) + b"/caf\xe9.jpg"
    with open(raw, "wb") as file:
        file.write(b"content")
    source = source_of(folder)
    plain, odd = list_items(source)
    assert (plain.key, odd.key) == ("caf%E9.jpg", "./caf%E9.jpg")
    assert odd.path == f"file://{folder}/caf%E9.jpg"
    assert os.fsencode(str(local_path(odd.path))) == raw
    assert read_bytes(source, odd) == b"content"
    assert_continues_anywhere(source)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_everything_works_below_a_folder_whose_name_is_not_utf8(
    tmp_path: Path, assert_continues_anywhere: Check
) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    touch(folder, "a.jpg", "b.jpg", "list.txt")
    (folder / "list.txt").write_text("b.jpg\na.jpg\n")
    assert_continues_anywhere(source_of(folder))
    for source in (source_of(folder), source_of(folder / "list.txt")):
        stored = Source.from_dict(json.loads(json.dumps(source.to_dict())))
        assert {read_bytes(stored, item) for item in list_items(stored)} == {b"a.jpg", b"b.jpg"}
        assert all(item.path.encode() for item in list_items(stored))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["b.jpg", "e.jpg"]),
        ("*", ["b.jpg", "e.jpg"]),
        ("**/*.jpg", ["a/1.jpg", "b.jpg", "c/d/3.jpg", "e.jpg"]),
        ("**", SORTED),
        ("a/*", ["1.jpg", "2.JPEG"]),
        ("?/[!2]*", ["a/1.jpg"]),
        ("c/**/d/*.jpg", ["d/3.jpg"]),
        ("**/d/**/3.jpg", ["c/d/3.jpg"]),
        ("*.JPG", []),
    ],
)
def test_glob(photos: Path, pattern: str, expected: list[str]) -> None:
    source = source_of(photos / pattern)
    assert source.kind == "glob"
    assert keys(source) == expected
    items = list(list_items(source))
    for count, item in enumerate(items, 1):
        assert list(list_items(source, item, count)) == items[count:]


def test_name_that_exists_is_no_glob(tmp_path: Path) -> None:
    touch(tmp_path, "photos[1]/x.jpg", "photos1/y.jpg")
    assert keys(source_of(tmp_path / "photos[1]")) == ["x.jpg"]
    assert keys(source_of(tmp_path / "photos[1]/*")) == ["photos1/y.jpg"]


def test_list_gives_its_lines_in_order(tmp_path: Path, assert_continues_anywhere: Check) -> None:
    touch(tmp_path, "x/one.bin")
    lines = ["x/one.bin", "", "  ", f"{tmp_path}/two.jpg", "s3://bucket/three.jpg", "a b .jpg "]
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    source = source_of(path)
    assert source.kind == "list"
    assert [(item.key, item.path) for item in list_items(source)] == [
        ("x/one.bin", f"{tmp_path}/x/one.bin"),
        (f"{tmp_path}/two.jpg", f"{tmp_path}/two.jpg"),
        ("s3://bucket/three.jpg", "s3://bucket/three.jpg"),
        ("a b .jpg ", f"{tmp_path}/a b .jpg "),
    ]
    assert read_bytes(source, next(list_items(source))) == b"x/one.bin"
    assert_continues_anywhere(source)


def test_list_is_read_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "list.lst"
    path.write_text("a.jpg\nb.jpg\nc.jpg\n")
    read = 0
    lines = list_files._lines

    def counting(*arguments: Any) -> Iterator[str]:
        nonlocal read
        for line in lines(*arguments):
            read += 1
            yield line

    monkeypatch.setattr(list_files, "_lines", counting)
    assert [item.key for item in islice(list_items(source_of(path)), 2)] == ["a.jpg", "b.jpg"]
    assert read == 2


def test_list_may_be_longer_than_what_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(list_files, "_LINE_BYTES", 40)
    monkeypatch.setattr(list_files, "_READ_BYTES", 40)
    lines = [f"{'x' * (number % 30)}é.jpg" for number in range(30)]
    path = tmp_path / "list.txt"
    path.write_text("\n".join(lines))
    assert keys(source_of(path)) == lines


def test_list_that_changed_before_the_last_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("a.jpg\nb.jpg\nc.jpg\n")
    source = source_of(path)
    second = list(list_items(source))[1]
    path.write_text("a.jpg\nc.jpg\n")
    with pytest.raises(SourceError, match=r"where 'b.jpg' was, there is 'c.jpg'"):
        keys(source, second, 2)
    path.write_text("a.jpg\n")
    with pytest.raises(SourceError, match="there is nothing"):
        keys(source, second, 2)


def test_file_that_is_no_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(bytes([1, 2, 3]) * 50_000)
    with pytest.raises(SourceError, match="a line of more than 65536 bytes"):
        keys(source_of(path))


def test_list_that_vanished_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("a.jpg\n")
    source = source_of(path)
    path.unlink()
    with pytest.raises(SourceError, match=r"list.txt cannot be read: No such file"):
        keys(source)


def test_folder_that_vanished_is_refused(photos: Path) -> None:
    source = source_of(photos)
    photos.rename(photos.with_name("elsewhere"))
    with pytest.raises(SourceError, match="photos does not exist; check the path"):
        keys(source)


def test_folder_that_may_not_be_read_is_refused(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if path.endswith("/c"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    source = source_of(photos)
    monkeypatch.setattr(os, "scandir", refusing)  # tests may run as root, who may read all
    with pytest.raises(SourceError, match="photos/c cannot be listed: Permission denied"):
        keys(source)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "does not exist; check the path. Give a folder of images"),
        ("nowhere.txt", "does not exist; check the path"),
        ("nowhere.tar", "does not exist; check the path"),
        ("nowhere.parquet", "does not exist; check the path"),
        ("photos/b.jpg", "is one image; give its folder"),
        ("file.xlsx", "is of no known kind. Give a folder of images"),
        ("data.tar.gz", "is compressed, .* unpack it into a .tar"),
        ("data.TGZ", "is compressed"),
        ("photos/*.tar.zst", "is compressed"),
        ("pipe.txt", "is not a regular file; check the path"),
    ],
)
def test_what_is_no_source_is_refused(photos: Path, name: str, message: str) -> None:
    touch(photos.parent, "file.xlsx", "data.tar.gz")
    os.mkfifo(photos.parent / "pipe.txt")
    with pytest.raises(SourceError, match=message):
        source_of(photos.parent / name)


@pytest.mark.parametrize("src", [["a.jpg"], 3, b"photos"])
def test_several_paths_are_refused(src: Any) -> None:
    with pytest.raises(SourceError, match="a source is one path or URL, got"):
        source_of(src)
    with pytest.raises(SourceError, match="got an empty text"):
        source_of("")


def test_columns_are_for_parquet_alone(photos: Path) -> None:
    (photos / "list.txt").write_text("b.jpg\n")
    with pytest.raises(ConfigError, match="is a list, and only Parquet files have columns"):
        source_of(photos / "list.txt", key_column="id")


def test_plan_of_another_folder_is_refused(photos: Path) -> None:
    with pytest.raises(SourceError, match=r"is not below .*; the plan is of another source"):
        keys(source_of(photos), Item("x.jpg", "/elsewhere/x.jpg"), 1)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["x.jpg", "00.tar"], "folder"),
        (["n01/x.jpg", "n01.tar"], "folder"),
        (["00000.tar", "00000.parquet", "00000_stats.json"], "tar"),
        (["part-0.parquet", "_SUCCESS"], "parquet"),
        ([".x/y.jpg", "0.TAR"], "tar"),
        ([], "folder"),
    ],
)
def test_folder_is_of_what_is_in_it(tmp_path: Path, names: list[str], kind: str) -> None:
    touch(tmp_path, *names)
    assert sources._kind_of_folder(str(tmp_path)) == kind


def test_suffixes_are_those_of_the_formats_that_are_decoded() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".bmp", ".gif"} <= image_suffixes()
    assert not {".eps", ".pdf", ".svg", ".txt", ".json", ".cls"} & image_suffixes()
