"""Which addresses are read at all: protocols that fetch, link by link of a chain."""

from __future__ import annotations

import io
import os
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from fsspec.registry import known_implementations
from pyarrow import parquet

from trunkline.errors import ConfigError, ImageError, SourceError
from trunkline.extraction import archive_files, locations
from trunkline.extraction.archive_files import ARCHIVES
from trunkline.extraction.locations import PROTOCOLS, filesystem_of, is_here, resolved
from trunkline.extraction.reading import close_files, read_bytes
from trunkline.extraction.records import Item
from trunkline.extraction.sources import Source, list_items, source_of

FOLDER = Source(kind="folder", location="/photos")
REFUSED = sorted(
    set(known_implementations) - set(PROTOCOLS) - set(ARCHIVES) | {"chained", "nosuch"}
)


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_files()
    locations._archive.cache_clear()
    fsspec.filesystem("memory").store.clear()


def zip_of(members: dict[str, bytes], **options: Any) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def tar_of(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def test_the_protocols_are_those_that_were_decided_on() -> None:
    assert {"reference", "simplecache", "dir", "github", "git", "smb", "dask", "data"} <= {*REFUSED}
    assert {"generic", "libarchive", "jupyter", "ftp", "asynclocal"} <= {*REFUSED}
    assert {*PROTOCOLS} == {
        *("file", "http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "hdfs", "sftp", "ssh"),
        *("hf", "memory"),
    }


@pytest.mark.parametrize("protocol", REFUSED)
def test_other_protocols_are_refused_by_name_in_every_place(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise AssertionError("a driver was asked for")

    monkeypatch.setattr(fsspec, "get_filesystem_class", failing)
    monkeypatch.setattr(fsspec, "filesystem", failing)
    (tmp_path / "a.zip").write_bytes(zip_of({"a.jpg": b"x"}))
    for url in (
        f"{protocol}://a/x.jpg",
        f"{protocol.upper()}://a/x.jpg",
        f"{protocol}::file://{tmp_path}/a.zip",
        f"{protocol}::memory://a.zip",
        f"{protocol}://x::https://127.0.0.1:1/a",
        f"zip://a.jpg::{protocol}://a.zip",
        f"zip://a.jpg::{protocol}::file://{tmp_path}/a.zip",
        f"tar://a.jpg::zip://b.tar::{protocol}::memory://a.zip",
    ):
        told = re.escape(f"the protocol '{protocol}' is not allowed (")
        with pytest.raises(ImageError, match=told):
            read_bytes(FOLDER, Item("x", url))
        for source in (url, f"{url}/x.tar", f"{url}/x.parquet", f"{url}/x.txt", f"{url}/*.jpg"):
            with pytest.raises(SourceError, match=told):
                list(list_items(source_of(source)))


def test_refusal_says_why_and_what_is_allowed() -> None:
    with pytest.raises(
        SourceError,
        match=r"\(it reads other files that a file of instructions names\). Give a local path, a "
        r"URL of one of file, http, .*, memory, or zip://… or tar://… in front",
    ):
        filesystem_of("reference://x")
    with pytest.raises(SourceError, match=r"'nosuch' is not allowed \(only what fetches files, an"):
        filesystem_of("nosuch://x")


def test_protocol_that_another_package_registers_is_refused() -> None:
    class Mine(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
        protocol = "mine"

    fsspec.register_implementation("mine", Mine, clobber=True)
    with pytest.raises(SourceError, match="the protocol 'mine' is not allowed"):
        filesystem_of("mine://x")


def test_rows_of_lists_and_tables_are_held_to_it(tmp_path: Path) -> None:
    lines = ["reference://x.jpg", "simplecache::memory://x.jpg", "zip://x.jpg::github://o:r@/a.zip"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    parquet.write_table(pa.table({"path": lines}), tmp_path / "paths.parquet")
    pairs = [{"bytes": None, "path": line} for line in lines]
    parquet.write_table(pa.table({"image": pairs}), tmp_path / "pairs.parquet")
    for name in ("list.txt", "paths.parquet", "pairs.parquet"):
        source = source_of(tmp_path / name)
        for item in list_items(source):
            with pytest.raises(ImageError, match="is not allowed"):
                read_bytes(source, item)


def test_archive_that_is_in_nothing_is_refused() -> None:
    for url in ("zip://a.jpg", "TAR://a.tar"):
        with pytest.raises(SourceError, match="does not say which archive it is in; write "):
            filesystem_of(url)


@pytest.mark.parametrize("kind", ARCHIVES)
@pytest.mark.parametrize("of", ["path", "relative", "file", "memory", "zip"])
def test_chains_of_what_is_allowed(
    kind: str, of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {"in/a.jpg": b"one", "in/b/c.jpg": b"two", "./d.jpg": b"three", "e.txt": b"d.jpg\n"}
    content = (zip_of if kind == "zip" else tar_of)(members)
    (tmp_path / f"x.{kind}").write_bytes(content)
    (tmp_path / "outer.zip").write_bytes(zip_of({f"x.{kind}": content}))
    fsspec.filesystem("memory").pipe(f"/x.{kind}", content)
    monkeypatch.chdir(tmp_path)
    behind = {
        "path": f"{tmp_path}/x.{kind}",
        "relative": f"x.{kind}",
        "file": f"file://{tmp_path}/x.{kind}",
        "memory": f"memory://x.{kind}",
        "zip": f"zip://x.{kind}::{tmp_path}/outer.zip",
    }[of]
    source = source_of(f"{kind}://::{behind}")
    monkeypatch.chdir("/")  # where a worker may be
    found = {item.key: read_bytes(source, item) for item in list_items(source)}
    assert found == {"in/a.jpg": b"one", "in/b/c.jpg": b"two", "d.jpg": b"three"}
    items = list(list_items(source))
    assert list(list_items(source, items[0], 1)) == items[1:]
    bare = source_of(source.location.replace("://::", "::", 1))
    assert [item.key for item in list_items(bare)] == [*found]
    lines = Source(kind="list", location=f"{kind}://e.txt::{source.location.partition('::')[2]}")
    (item,) = list_items(lines)
    assert read_bytes(lines, item) == b"three"


def test_chain_in_a_list_is_relative_to_the_list(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(zip_of({"a.jpg": b"one"}))
    (tmp_path / "list.txt").write_text("zip://a.jpg::x.zip\n")
    source = source_of(tmp_path / "list.txt")
    (item,) = list_items(source)
    assert item[:2] == ("zip://a.jpg::x.zip", f"zip://a.jpg::{tmp_path}/x.zip")
    assert read_bytes(source, item) == b"one"


def test_archives_in_archives_have_an_end(tmp_path: Path) -> None:
    content = zip_of({"a.jpg": b"one"})
    for _ in range(5):
        content = zip_of({"a.zip": content})
    (tmp_path / "a.zip").write_bytes(content)
    four = f"zip://a.zip::zip://a.zip::zip://a.zip::zip://a.zip::{tmp_path}/a.zip"
    assert len(read_bytes(FOLDER, Item("x", four))) > 100
    for depth in (1, 10_000):
        with pytest.raises(ImageError, match="is more than 4 archives in one another; unpack some"):
            read_bytes(FOLDER, Item("x", "zip://a.zip::" * depth + four))
    with pytest.raises(SourceError, match="more than 4 archives"):
        source_of("zip://::" * 10_000 + "a.zip")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"x::memory:": b"1"}, "called x::memory:, which cannot be a path"),
        ({"x::http:/evil/?q=": b"1"}, "which cannot be a path"),
        ({"a/" * 101 + "x.jpg": b"1"}, "which cannot be a path: one has at most 4096 characters"),
        ({"n" * 4097: b"1"}, "which cannot be a path"),
    ],
)
@pytest.mark.parametrize("make", [zip_of, tar_of])
def test_members_that_would_lead_elsewhere_are_refused(
    make: Any, members: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(make({"ok.jpg": b"ok", **members}))
    kind = "zip" if make is zip_of else "tar"
    with pytest.raises(SourceError, match=message):
        source_of(f"{kind}://::{tmp_path}/x")


def test_member_of_a_zip_is_read_no_further_than_it_may(tmp_path: Path) -> None:
    bomb = zip_of({"x.jpg": bytes(40 << 20)}, compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 60_000
    (tmp_path / "x.zip").write_bytes(bomb)
    item = Item("x", f"zip://x.jpg::{tmp_path}/x.zip")
    with pytest.raises(ImageError, match="more than the 100000 bytes"):
        read_bytes(FOLDER, item, max_bytes=100_000)
    (tmp_path / "y.zip").write_bytes(zip_of({"x.jpg": b"x"}, compression=zipfile.ZIP_BZIP2))
    with pytest.raises(ImageError, match="must be packed with deflate, or without compression"):
        read_bytes(FOLDER, Item("x", f"zip://x.jpg::{tmp_path}/y.zip"))


def test_archive_of_nothing_but_folders_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_files, "MOST_FOLDERS", 50)
    names = {f"{number}/{number}/x.jpg": b"" for number in range(30)}
    for make in (zip_of, tar_of):
        (tmp_path / "x").write_bytes(make(names))
        kind = "zip" if make is zip_of else "tar"
        with pytest.raises(SourceError, match="has more than 50 folders; pack it again with fewer"):
            source_of(f"{kind}://::{tmp_path}/x")


def test_large_archive_is_listed_in_time_that_grows_with_it(tmp_path: Path) -> None:
    members = {f"{number:05d}/x.jpg": b"" for number in range(3000)}  # a folder each
    (tmp_path / "x.zip").write_bytes(zip_of(members))
    assert len(list(list_items(source_of(f"zip://::{tmp_path}/x.zip")))) == 3000


def test_list_from_elsewhere_names_no_file_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"local")
    (tmp_path / "x.zip").write_bytes(zip_of({"x.jpg": b"local"}))
    lines = [f"{tmp_path}/x.jpg", f"file://{tmp_path}/x.jpg", f"zip://x.jpg::{tmp_path}/x.zip"]
    memory = fsspec.filesystem("memory")
    memory.pipe("/p/y.jpg", b"content")
    memory.pipe("/p/list.txt", "\n".join([*lines, "y.jpg", "memory://p/y.jpg"]).encode())
    file = io.BytesIO()
    parquet.write_table(pa.table({"path": [*lines, "y.jpg"]}), file)
    memory.pipe("/p/paths.parquet", file.getvalue())
    file = io.BytesIO()
    pairs = [{"bytes": None, "path": line} for line in (*lines, "y.jpg")]
    parquet.write_table(pa.table({"image": pairs}), file)
    memory.pipe("/p/pairs.parquet", file.getvalue())
    for name in ("list.txt", "paths.parquet", "pairs.parquet"):
        source = source_of(f"memory://p/{name}")
        here, there = [*list_items(source)][:3], [*list_items(source)][3:]
        for item in here:
            with pytest.raises(
                ImageError, match=r"is a file of this machine, and memory://p/.* not"
            ):
                read_bytes(source, item)
        assert {read_bytes(source, item) for item in there} == {b"content"}
    (tmp_path / "list.txt").write_text("\n".join(lines))
    local = source_of(tmp_path / "list.txt")
    assert {read_bytes(local, item) for item in list_items(local)} == {b"local"}


def test_places_are_told_apart() -> None:
    here = ("x.jpg", "/x.jpg", "file:///x.jpg", "zip://a::/x.zip", "zip://a::tar://b::x.tar")
    elsewhere = ("memory://x", "https://h/x", "zip://a::s3://b/x.zip", "tar::zip::memory://x")
    assert [is_here(one) for one in (*here, *elsewhere)] == [True] * 5 + [False] * 4
    assert resolved("/p", "zip://a::tar://b::x.tar") == "zip://a::tar://b::/p/x.tar"
    assert resolved("s3://b/p", "zip://a::x.zip") == "zip://a::s3://b/p/x.zip"
    assert resolved("zip://p::/x.zip", "a.jpg") == "zip://p/a.jpg::/x.zip"
    assert resolved("/p", "zip::s3://b/x.zip") == "zip://::s3://b/x.zip"


@pytest.mark.parametrize(
    "address",
    [
        *("http://127.0.0.1:99999/x.jpg", "http://127.0.0.1:port/x.jpg", "http://127.0.0.1:-1/"),
        *(
            "http://[::1",
            "http://[::1]x/",
            "http://[v9.x]/",
            "http://",
            "https://",
            "http:///x.jpg",
        ),
        *(
            "http://" + "x" * 300 + "/",
            "http://x..y/",
            "http://*/",
            "http://\0/",
            "HTTP://\x1b[1m/",
        ),
        *("http://127.0.0.1:1/x.jpg", "http://user:secret@127.0.0.1:1/", "http://[::1]:1/a::b"),
    ],
)
def test_address_that_is_none_is_one_failed_image(address: str) -> None:
    with pytest.raises(ImageError, match="cannot be read: "):
        read_bytes(FOLDER, Item("x", address))
    for location in (address, f"{address}/x.tar", f"zip://x::{address}"):
        with pytest.raises(SourceError):
            list(list_items(source_of(location)))


def test_working_directory_that_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    before = os.getcwd()
    os.chdir(folder)
    try:
        folder.rmdir()
        for relative in ("photos", "list.txt", "zip://a::x.zip", "*.jpg"):
            with pytest.raises(ConfigError, match=r"the working directory was removed, so that"):
                source_of(relative)
        assert source_of(tmp_path).kind == "folder"
    finally:
        os.chdir(before)


@pytest.mark.parametrize(
    "location",
    [
        *(
            "~nobody/x",
            "~nobody/x.tar",
            "file://~nobody/x",
            "a\0b",
            "a\0b/*.jpg",
            "a\0b.tar",
            ":: zip::\ud800.parquet",
        ),
        *("file://\ud800", "x" * 100_000, "x" * 300 + ".txt", "zip://::a\0b.zip"),
    ],
)
def test_what_no_file_can_be_called_is_refused(location: str) -> None:
    with pytest.raises(SourceError) as refused:
        list(list_items(source_of(location)))
    assert len(str(refused.value)) < 7000
