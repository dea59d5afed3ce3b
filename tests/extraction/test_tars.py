"""Headers of tars: what the standard library reads of honest ones, and an end to all others."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import hostile_sources
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trunkline.errors import ImageError, SourceError
from trunkline.extraction import tars
from trunkline.extraction.reading import close_files, read_bytes
from trunkline.extraction.sources import list_items, source_of
from trunkline.extraction.tars import members

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_files()


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = max(-(2**87), min(size, 2**87)), kind
    return info.tobuf(tarfile.GNU_FORMAT)  # base 256 for what is negative or large


def member(name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    return header(name, len(content), kind) + content.ljust(-(-len(content) // 512) * 512, b"\0")


def pax(records: dict[str, str], kind: bytes = tarfile.XHDTYPE) -> bytes:
    said = b""
    for key, value in records.items():
        record = f" {key}={value}\n".encode()
        length = len(record) + 1
        while len(str(length)) + len(record) != length:
            length = len(str(length)) + len(record)
        said += str(length).encode() + record
    return member("pax", said, kind)


END = bytes(1024)


def listed(content: bytes) -> list[tuple[str, int, int]]:
    found = members(io.BytesIO(content), "x.tar")
    return [(one.name, one.start, one.size) for one in found]


# --- honest tars -------------------------------------------------------------------------------

NAMES = st.text(
    st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=150
).map(lambda name: name.strip("/") or "x")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(NAMES, st.integers(0, 1100)), max_size=6), st.sampled_from(sorted(FORMATS))
)
def test_members_are_those_that_the_standard_library_finds(
    files: list[tuple[str, int]], format_: str
) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=FORMATS[format_]) as packed:
        for name, size in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = size, 1.5 if format_ == "pax" else 1
            try:
                packed.addfile(info, io.BytesIO(bytes(size)))
            except ValueError:  # a name that is too long for this format
                continue
    file.seek(0)
    with tarfile.open(fileobj=file) as packed:
        expected = [(one.name, one.offset_data, one.size) for one in packed if one.isreg()]
    assert listed(file.getvalue()) == expected


def test_sizes_in_base_256_and_of_pax_are_read() -> None:
    large = bytearray(header("a.jpg", 3))
    large[124:136] = b"\x80" + (3).to_bytes(11, "big")
    large[148:156] = b" " * 8
    large[148:156] = f"{sum(large):06o}\0 ".encode()
    content = bytes(large) + b"abc".ljust(512, b"\0")
    content += pax({"size": "4", "path": "b.jpg", "mtime": "1.5"}) + header("x") + bytes(512)
    assert listed(content + END) == [("a.jpg", 512, 3), ("b.jpg", 2560, 4)]


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_what_has_no_data_is_passed_over_whatever_its_size(kind: bytes) -> None:
    for size in (0, 5000, -1536, 2**62):
        content = header("x.jpg", size, kind) + member("y.jpg", b"yes") + END
        assert listed(content) == [("y.jpg", 1024, 3)]


@pytest.mark.parametrize("kind", [b"D", b"M", b"V", b"N", b"\xff"])
def test_what_is_unknown_is_passed_over_with_its_data(kind: bytes) -> None:
    assert listed(member("x.jpg", b"n" * 600, kind) + member("y.jpg", b"y") + END) == [
        ("y.jpg", 2048, 1)
    ]


def test_what_is_said_of_all_members_says_nothing_of_one() -> None:
    everywhere = pax({"comment": "0" * 40, "path": "no.jpg", "size": "7"}, tarfile.XGLTYPE)
    assert listed(everywhere + member("y.jpg", b"y") + END) == [("y.jpg", 1536, 1)]
    assert listed(everywhere + END) == []


def test_last_member_may_end_with_the_file() -> None:
    for content in (b"x" * 512, b"x" * 700, b""):
        whole = header("x.jpg", len(content)) + content  # neither filled up nor with an end
        assert listed(whole) == [("x.jpg", 512, len(content))]
        if content:
            with pytest.raises(SourceError, match=r"is cut short: x\.jpg has|is damaged at byte"):
                listed(whole[:-1])


# --- sizes that cannot be ----------------------------------------------------------------------

IMPOSSIBLE = [-1, -512, -1536, -(2**40), -(2**80), 2**33, 2**62, 2**63, 2**80, 10**30]


@pytest.mark.parametrize("name", ["x.jpg", ".notes.json"])
@pytest.mark.parametrize("size", IMPOSSIBLE)
@pytest.mark.parametrize("by", ["field", "pax", "unknown", "extended"])
def test_impossible_size_is_a_failed_image_and_the_end_of_its_tar(
    tmp_path: Path, by: str, size: int, name: str
) -> None:
    bad = {
        "field": lambda: header(name, size),
        "pax": lambda: pax({"size": str(size)}) + header(name),
        "unknown": lambda: header(name, size, b"D"),
        "extended": lambda: header(name, size, tarfile.XHDTYPE),
    }[by]()
    good = member("good.jpg", b"good")
    (tmp_path / "0.tar").write_bytes(good + bad + member("lost.jpg", b"lost") + END)
    (tmp_path / "1.tar").write_bytes(good + END)
    source = source_of(tmp_path)
    items = list(list_items(source))
    called = "byte 1024" if by == "extended" else name
    assert [item.key for item in items] == ["0.tar/good.jpg", f"0.tar/{called}", "1.tar/good.jpg"]
    assert all(-(2**63) <= (item.size or 0) < 2**63 for item in items)  # as a table holds them
    with pytest.raises(ImageError, match=rf"{re.escape(called)} in .* has -?\d+ bytes by its hea"):
        read_bytes(source, items[1])
    assert read_bytes(source, items[2]) == b"good"
    for count, item in enumerate(items, 1):
        assert list(list_items(source, item, count)) == items[count:]


def test_impossible_size_behind_a_url_is_a_failed_image() -> None:
    memory = fsspec.filesystem("memory")
    for size in (-1536, 2**60):
        memory.pipe("/tars/x.tar", header("x.jpg", size) + END)
        source = source_of("memory://tars/x.tar")
        (item,) = list_items(source)
        with pytest.raises(ImageError, match=r"which cannot be|has more than the \d+ bytes"):
            read_bytes(source, item)
    memory.rm("/tars", recursive=True)


def test_impossible_size_in_a_chain_is_an_archive_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(member("a.jpg", b"a") + header("b.jpg", -1536) + END)
    with pytest.raises(SourceError, match=r"x\.tar has b\.jpg of -1536 bytes by its header, which"):
        source_of(f"tar://::{tmp_path}/x.tar")


def test_size_that_leads_back_does_not_list_for_ever(tmp_path: Path) -> None:
    content = member("a.jpg", b"a" * 600) + pax({"size": "-1536"}) + header("b.jpg") + END
    (tmp_path / "x.tar").write_bytes(content)
    keys = [item.key for item in list_items(source_of(tmp_path / "x.tar"))]
    assert keys == ["x.tar/a.jpg", "x.tar/b.jpg"]


# --- damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (member("x", b"n" * 9, tarfile.XHDTYPE), "what is said of a member cannot be read"),
        (member("x", b"9 a=b\n", tarfile.XHDTYPE), "what is said of a member cannot be read"),
        (member("x", b"0 a=b\n", tarfile.XHDTYPE), "what is said of a member cannot be read"),
        (member("x", b"-6 a=b\n", tarfile.XHDTYPE), "what is said of a member cannot be read"),
        (pax({"size": "1e3"}) + header("x.jpg"), "a member has the size '1e3'"),
        (pax({"size": ""}) + header("x.jpg"), "a member has the size ''"),
        (pax({"path": "x.jpg"}), "there is no header of a member"),
        (member("x", b"name\0", tarfile.GNUTYPE_LONGNAME), "there is no header of a member"),
        (header("x", 900, tarfile.GNUTYPE_LONGNAME) + b"n" * 500, "the file ends within a name"),
        (pax({"GNU.sparse.map": "0,1"}) + header("x.jpg"), "stores x.jpg as a sparse file"),
        (pax({"GNU.sparse.major": "1"}) + header("x.jpg"), "stores x.jpg as a sparse file"),
        (b"\0" * 511 + b"\1", "there is no header of a member"),
    ],
)
def test_header_that_cannot_be_is_told_with_its_place(content: bytes, message: str) -> None:
    padding = b"" if "ends within" in message else END
    with pytest.raises(SourceError, match=rf"x\.tar (is damaged at byte \d+: )?{message}"):
        listed(content + padding)


@pytest.mark.parametrize("kind", [b"x", b"L", b"K", b"g"])
def test_names_and_attributes_have_a_bound(kind: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "HEADER_BYTES", 8192)
    said = b"8192 a=" + b"v" * 8184 + b"\n"
    for content in (member("x", said, kind), member("x", b"", kind) * 20):
        with pytest.raises(SourceError, match="has more than 8192 bytes of names and attributes"):
            listed(content + member("x.jpg", b"x") + END)
    file = Noting(header("x", 1 << 20, kind) + bytes(1 << 20))
    with pytest.raises(SourceError, match="more than 8192 bytes"):
        list(members(file, "x.tar"))
    assert file.most <= 512


class Noting(io.BytesIO):
    """A file that knows how much was read of it at once."""

    most = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.most = max(self.most, size if size is not None and size >= 0 else 1 << 62)
        return super().read(size)


def test_digits_without_end_cost_no_time() -> None:
    # The standard library's pattern for these takes the square of their number: minutes.
    digits = "9" * 400_000
    content = pax({"comment": digits}) + member("y.jpg", b"y") + END
    assert [name for name, _, _ in listed(content)] == ["y.jpg"]
    with pytest.raises(SourceError, match="what is said of a member cannot be read"):
        listed(member("x", digits.encode(), tarfile.XHDTYPE) + member("y.jpg", b"y") + END)


def test_tar_that_became_shorter_is_refused_where_its_listing_continues(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(member("a.jpg", b"a" * 600) + member("b.jpg", b"b") + END)
    source = source_of(path)
    first = next(list_items(source))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SourceError, match=r"x\.tar is shorter than it was: x\.tar/a\.jpg ended"):
        list(list_items(source, first, 1))


def test_any_tar_ends_and_every_step_goes_forward() -> None:
    for number in range(400):
        content = hostile_sources.tar(np.random.default_rng([5, number]))
        found: list[Any] = []
        with suppress(SourceError):
            found += members(io.BytesIO(content), "x.tar")
        assert len(found) <= len(content) // 512
        assert all(before.start < after.start for before, after in pairwise(found))
        possible = [one for one in found if tars.is_possible(one.size, len(content))]
        assert all(one.start + one.size <= len(content) for one in possible)
        assert possible == found[: len(possible)]
        assert len(possible) >= len(found) - 1
