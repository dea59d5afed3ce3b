from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from fsspec.spec import AbstractBufferedFile
from pyarrow import parquet

from trunkline.errors import SourceError
from trunkline.extraction import archives, locations
from trunkline.extraction.reading import close_files, read_bytes
from trunkline.extraction.sources import Source, list_items, source_of

Check = Callable[[Source], None]

MEMBERS = {"0001.jpg": b"one", "0001.json": b"{}", "0002.PNG": b"two" * 200, "0003.jpg": b"three"}


@pytest.fixture(autouse=True)
def _closed() -> Any:
    yield
    close_files()


def packed(members: Mapping[str, bytes], **options: Any) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def contents(source: Source) -> dict[str, bytes]:
    return {item.key: read_bytes(source, item) for item in list_items(source)}


def test_members_that_are_images_are_found_by_their_place(
    tmp_path: Path, assert_continues_anywhere: Check
) -> None:
    path = tmp_path / "train.tar"
    path.write_bytes(packed(MEMBERS))
    source = source_of(path)
    assert source == Source(kind="tar", location=str(path))
    items = list(list_items(source))
    assert [(item.key, item.path, item.size) for item in items] == [
        ("train.tar/0001.jpg", str(path), 3),
        ("train.tar/0002.PNG", str(path), 600),
        ("train.tar/0003.jpg", str(path), 5),
    ]
    for item in items:
        assert item.start is not None
        content = MEMBERS[item.key.partition("/")[2]]
        assert path.read_bytes()[item.start :].startswith(content)
        assert read_bytes(source, item) == content
    assert_continues_anywhere(source)


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_odd_names_in_every_tar_format(
    tmp_path: Path, format_: int, assert_continues_anywhere: Check
) -> None:
    folders = "d" * 90 + "/" + "e" * 60  # more than the 100 bytes of a plain header
    members = {f"./{folders}.jpg": b"1", "é.jpg": b"2", "caf\udce9.jpg": b"3", "x/.y.jpg": b"4"}
    (tmp_path / "a.tar").write_bytes(packed(members, format=format_))
    found = contents(source_of(tmp_path / "a.tar"))
    assert found == {f"a.tar/{folders}.jpg": b"1", "a.tar/é.jpg": b"2", "./a.tar/caf%E9.jpg": b"3"}
    assert_continues_anywhere(source_of(tmp_path / "a.tar"))


def test_links_and_folders_in_a_tar_are_no_images(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"{kind.decode()}.jpg")
            info.type, info.linkname = kind, "x.jpg"
            tar.addfile(info)
        info = tarfile.TarInfo("x.jpg")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"ok"))
    assert contents(source_of(path)) == {"a.tar/x.jpg": b"ok"}


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("train-{08..10}.tar", ["train-08.tar/x.jpg", "train-09.tar/x.jpg", "train-10.tar/x.jpg"]),
        ("train-{10..09}.tar", ["train-10.tar/x.jpg", "train-09.tar/x.jpg"]),
        ("train-{08,10}.tar", ["train-08.tar/x.jpg", "train-10.tar/x.jpg"]),
        ("{train-08,val/0}.tar", ["train-08.tar/x.jpg", "val/0.tar/x.jpg"]),
        ("train-*.tar", ["train-08.tar/x.jpg", "train-09.tar/x.jpg", "train-10.tar/x.jpg"]),
        ("**/{0,train-1*}.tar", ["val/0.tar/x.jpg", "train-10.tar/x.jpg"]),
        ("val", ["0.tar/x.jpg"]),
    ],
)
def test_several_tars_are_listed_in_order(
    tmp_path: Path, location: str, expected: list[str]
) -> None:
    (tmp_path / "val").mkdir()
    for name in ("train-10", "train-08", "train-09", "val/0"):
        (tmp_path / f"{name}.tar").write_bytes(packed({"x.jpg": name.encode()}))
    source = source_of(tmp_path / location)
    assert source.kind == "tar"
    assert list(contents(source)) == expected
    whole = list(list_items(source))
    assert list(list_items(source, whole[0], 1)) == whole[1:]


def test_range_with_a_missing_tar_is_refused_before_anything_is_listed(tmp_path: Path) -> None:
    for number in (0, 2):
        (tmp_path / f"{number}.tar").write_bytes(packed({"x.jpg": b"x"}))
    with pytest.raises(SourceError, match=r"1\.tar does not exist, .* range of what is there"):
        next(list_items(source_of(tmp_path / "{0..2}.tar")))
    with pytest.raises(SourceError, match=r"no\*\.tar matches no \.tar file; check the path"):
        next(list_items(source_of(tmp_path / "no*.tar")))


def test_range_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_PARTS", 100)
    with pytest.raises(SourceError, match="is more than 100 files"):
        next(list_items(source_of(tmp_path / "{0..999999999999}.tar")))


@pytest.mark.parametrize(
    "pattern",
    [
        *("{0..1000000}", "{1..999999999}", "{999999999..1}", "{0..1" + "0" * 5000 + "}"),
        *(
            "{" + "0" * 5000 + "..3}",
            "{0..9}" * 7,
            "{a,b}" * 21,
            "{0..9}*{0..999999}",
            "{a,b}" * 30,
        ),
        *("{" + "," * 1_000_001 + "}", "{0..99999}" + "x" * 10_000),
    ],
)
@pytest.mark.parametrize("suffix", [".tar", ".parquet"])
@pytest.mark.parametrize("root", ["/nowhere/", "memory://nowhere/"])
def test_ranges_are_counted_before_anything_of_them_is_made(
    pattern: str, suffix: str, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: str) -> Any:
        raise AssertionError("a range was made")

    monkeypatch.setattr(archives, "_choices", failing)
    with pytest.raises(
        SourceError, match=r"is more than \d+ files; give fewer, larger ones at a ti"
    ):
        list(list_items(source_of(f"{root}{pattern}{suffix}")))


@pytest.mark.parametrize("pattern", ["{{0..3},5}", "x{a,{b,c}}", "{{{a}}}"])
def test_braces_in_braces_are_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(SourceError, match=r"has braces within braces; write \{a,b,c\} instead"):
        list(list_items(source_of(tmp_path / f"{pattern}.tar")))


def test_brace_that_is_none_is_a_part_of_a_name(tmp_path: Path) -> None:
    for name in ("a{b.tar", "a}b.tar"):
        (tmp_path / name).write_bytes(packed({"x.jpg": b"x"}))
        assert list(contents(source_of(tmp_path / name))) == [f"{name}/x.jpg"]


def test_tar_is_read_as_far_as_it_is_listed(tmp_path: Path) -> None:
    good = packed({f"{number}.jpg": b"x" * 900 for number in range(20)})
    (tmp_path / "0.tar").write_bytes(good)
    (tmp_path / "1.tar").write_bytes(b"\1" * 2048)  # would be an error
    assert len(list(islice(list_items(source_of(tmp_path / "{0,1}.tar")), 20))) == 20


def test_continuing_reads_nothing_before_the_last_image(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    content = bytearray(packed(MEMBERS))
    path.write_bytes(content)
    source = source_of(path)
    items = list(list_items(source))
    content[:512] = b"\1" * 512
    path.write_bytes(content)
    assert list(list_items(source, items[1], 2)) == items[2:]


def test_continuing_in_a_tar_that_is_gone_is_refused(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.tar").write_bytes(packed({"x.jpg": b"x"}))
    source = source_of(tmp_path)
    first = next(list_items(source))
    (tmp_path / "0.tar").unlink()
    with pytest.raises(SourceError, match=r"0\.tar is no longer among the tars of"):
        next(list_items(source, first, 1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda good: good[:700], "is cut short: 0.jpg has 400 bytes from byte 512 on, and the"),
        (lambda good: good[:200], "is damaged at byte 0: there is no header"),
        (lambda _: b"", "is an empty file; copy or download it again"),
        (lambda _: b"no tar at all" * 99, "is damaged at byte 0: there is no header"),
        (lambda good: good[:1024] + b"\1" * 512 + good[1536:], "is damaged at byte 1024"),
        (lambda good: good[:1300], "is damaged at byte 1024"),
        (gzip.compress, "is compressed, .* decompress it into a plain .tar"),
    ],
)
def test_damaged_tar_is_named(tmp_path: Path, damage: Any, message: str) -> None:
    path = tmp_path / "broken.tar"
    path.write_bytes(damage(packed({"0.jpg": b"x" * 400, "1.jpg": b"x" * 400})))
    with pytest.raises(SourceError, match=rf"broken\.tar.*{message}"):
        list(list_items(source_of(path)))


def test_sparse_member_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x.jpg")
    info.size, info.type = 512, tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"00000000000\0" + b"00000001000\0"  # one piece: from 0, 512 bytes
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    (tmp_path / "a.tar").write_bytes(header + b"x" * 512 + bytes(1024))
    with pytest.raises(SourceError, match=r"stores x\.jpg as a sparse file"):
        list(list_items(source_of(tmp_path / "a.tar")))


def write_table(path: Path, rows: Mapping[str, Any], row_group_size: int = 2) -> Path:
    parquet.write_table(pa.table(dict(rows)), path, row_group_size=row_group_size)
    return path


class Buffered(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    """A file as fsspec gives it of object stores and of the web."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        content: bytes = self.fs.store[self.path].getvalue()
        return content[start:end]


@pytest.fixture(params=["bytes", "buffered"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """fsspec's file system in memory, empty before and after."""
    found = fsspec.filesystem("memory")
    if request.param == "buffered":
        opened = type(found)._open

        def opening(self: Any, path: str, mode: str = "rb", **options: Any) -> Any:
            return Buffered(self, path) if mode == "rb" else opened(self, path, mode, **options)

        monkeypatch.setattr(type(found), "_open", opening)
    locations._archive.cache_clear()
    found.store.clear()
    found.pseudo_dirs[:] = [""]
    yield found
    found.store.clear()
    found.pseudo_dirs[:] = [""]


def test_every_kind_behind_a_url(
    memory: Any, tmp_path: Path, assert_continues_anywhere: Check
) -> None:
    for name in ("p/b.jpg", "p/a/z.jpg", "p/.h.jpg", "p/x.txt"):
        memory.pipe(f"/{name}", name.encode())
    memory.pipe("/list.txt", b"p/b.jpg\nmemory://p/a/z.jpg\n")
    for number in range(2):
        memory.pipe(f"/tars/{number}.tar", packed({"x.jpg": b"%d" % number, "y.png": b"y"}))
        local = write_table(tmp_path / f"{number}.parquet", {"path": ["b.jpg", f"a/{number}.jpg"]})
        memory.pipe(f"/p/{number}.parquet", local.read_bytes())
        local = write_table(tmp_path / f"{number}.parquet", {"image": [b"q", b"r"]})
        memory.pipe(f"/tables/{number}.parquet", local.read_bytes())
    expected: dict[str, dict[str, bytes | None]] = {
        "memory://p": {"a/z.jpg": b"p/a/z.jpg", "b.jpg": b"p/b.jpg"},
        "memory://p/**/*.jpg": {"a/z.jpg": b"p/a/z.jpg", "b.jpg": b"p/b.jpg"},
        "memory://*/b.jpg": {"p/b.jpg": b"p/b.jpg"},
        "memory://list.txt": {"p/b.jpg": b"p/b.jpg", "memory://p/a/z.jpg": b"p/a/z.jpg"},
        "memory://tars": {
            "0.tar/x.jpg": b"0",
            "0.tar/y.png": b"y",
            "1.tar/x.jpg": b"1",
            "1.tar/y.png": b"y",
        },
        "memory://tars/{1..1}.tar": {"1.tar/x.jpg": b"1", "1.tar/y.png": b"y"},
        "memory://tars/1.tar": {"1.tar/x.jpg": b"1", "1.tar/y.png": b"y"},
        "memory://tables": {
            "0.parquet/0": b"q",
            "0.parquet/1": b"r",
            "1.parquet/0": b"q",
            "1.parquet/1": b"r",
        },
    }
    for url, found in expected.items():
        assert contents(source_of(url)) == found, url
        if len(found) > 1:
            assert_continues_anywhere(source_of(url))
    paths = source_of("memory://p/0.parquet")
    assert [item.path for item in list_items(paths)] == ["memory://p/b.jpg", "memory://p/a/0.jpg"]
    missing = source_of("memory://gone-{0..1}.tar")
    with pytest.raises(SourceError, match=r"memory://gone-0\.tar cannot be read as a tar"):
        next(list_items(missing))


def test_folder_and_tar_inside_an_archive_behind_a_url(
    memory: Any, assert_continues_anywhere: Check
) -> None:
    import zipfile

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("in/a/1.jpg", b"one")
        archive.writestr("in/b.jpg", b"two")
        archive.writestr("t.tar", packed({"x.jpg": b"three"}))
    memory.pipe("/all.zip", file.getvalue())
    folder = source_of("zip://in::memory://all.zip")
    assert [item.path for item in list_items(folder)] == [
        "zip://in/a/1.jpg::memory://all.zip",
        "zip://in/b.jpg::memory://all.zip",
    ]
    assert contents(folder) == {"a/1.jpg": b"one", "b.jpg": b"two"}
    assert_continues_anywhere(folder)
    item = next(list_items(folder))
    opened = locations._archive.cache_info().misses
    assert read_bytes(folder, item) == read_bytes(folder, item)
    assert locations._archive.cache_info().misses == opened  # its directory is read once
    tar = Source(kind="tar", location="zip://t.tar::memory://all.zip")
    assert contents(tar) == {"t.tar/x.jpg": b"three"}
    assert source_of(tar.location) == tar


def test_file_urls_are_local_paths(tmp_path: Path) -> None:
    (tmp_path / "a b.jpg").write_bytes(b"x")
    (tmp_path / "list.txt").write_text(f"file://{tmp_path}/a%20b.jpg\n")
    assert source_of(f"file://{tmp_path}").location == str(tmp_path)
    assert list(contents(source_of(f"file://localhost{tmp_path}"))) == ["a b.jpg"]
    assert list(contents(source_of(tmp_path / "list.txt")).values()) == [b"x"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nothing", "is neither a folder nor of a known kind. Give a folder"),
        ("memory://a.tar.gz", "is compressed"),
        ("s3://bucket/x", "needs a library that is not installed: Install s3fs"),
        ("zip://x::memory://none.zip", "memory://none.zip cannot be read as a zip: "),
    ],
)
def test_url_that_cannot_be_used_is_refused(memory: Any, url: str, message: str) -> None:
    assert memory.store == {}
    with pytest.raises(SourceError, match=message):
        source_of(url)
