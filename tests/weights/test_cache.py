"""What may lie in the cache, and beside a file in it: whatever it is, no traceback and no lie."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loopback import FileHost, whole_checkpoint

from trunkline.errors import CheckpointError, IntegrityError, OutputError
from trunkline.files import DOCUMENT_BYTES
from trunkline.weights import hub
from trunkline.weights.files import cache
from trunkline.weights.files.recognition import page_in, why_no_checkpoint

BODY = whole_checkpoint(1000)
SHA256 = hashlib.sha256(BODY).hexdigest()
URL = "https://h.org/x.pth"
RECORD = {"sha256": SHA256, "size": 1000, "source": URL, "known_by": cache.FIRST_SEEN}


@pytest.fixture
def place(weights_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the file of ``URL`` lies, on a machine without network."""
    monkeypatch.setenv("TRUNKLINE_OFFLINE", "1")
    path = weights_home / "weights" / "h.org" / "x.pth"
    path.parent.mkdir(parents=True)
    return path


# Records.

_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.sampled_from([SHA256, SHA256.upper(), SHA256[:-1], f"{SHA256}\n", "x" * 64])
)
_VALUES = st.recursive(
    _LEAVES, lambda one: st.lists(one, max_size=2) | st.dictionaries(st.text(max_size=3), one)
)
_DOCUMENTS = (
    _VALUES
    | st.dictionaries(st.sampled_from(sorted(RECORD)), _VALUES)
    | st.tuples(st.sampled_from(sorted(RECORD)), _VALUES).map(lambda pair: RECORD | dict([pair]))
    | st.sampled_from(sorted(RECORD)).map(lambda k: {n: v for n, v in RECORD.items() if n != k})
).map(lambda value: json.dumps(value).encode())
_BROKEN = st.sampled_from(
    [b"[" * 10**5, b'{"sha256":' * 10**5, b"\xff\xfe", b"\x00" * 9, b"", b"1" + b"0" * 10**5]
) | st.binary(max_size=9)


def _is_record(text: bytes) -> bool:
    """What a record is, said a second time and in another way."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if not isinstance(found, dict) or not all(
        isinstance(found.get(name), str) for name in ("sha256", "source", "known_by")
    ):
        return False
    digits, size = found["sha256"], found.get("size")
    good = len(digits) == 64 and not set(digits) - set("0123456789abcdef")
    return good and type(size) is int and 0 <= size < 1 << 64


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(_DOCUMENTS | _BROKEN)
def test_a_record_is_one_or_is_said_to_be_none(place: Path, text: bytes) -> None:
    place.write_bytes(BODY)
    cache.record_file(place).write_bytes(text)
    if not _is_record(text):
        with pytest.raises(IntegrityError, match=r"the record of x.pth's hash, cannot be read"):
            hub.fetch_url(URL)
        assert [check.known_by for check in hub.verify()] == ["an unreadable record"]
    elif json.loads(text)["sha256"] == SHA256:
        assert hub.fetch_url(URL) == place
    else:
        with pytest.raises(IntegrityError, match="is not the file that it must be"):
            hub.fetch_url(URL)


def test_a_record_of_gigabytes_is_not_read(place: Path) -> None:
    place.write_bytes(BODY)
    cache.record_file(place).touch()
    os.truncate(cache.record_file(place), DOCUMENT_BYTES + 1)
    with pytest.raises(IntegrityError, match=r"cannot be read \(it has 67108865 bytes"):
        hub.fetch_url(URL)


# What lies where a file should lie.


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.mkdir()


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _unreadable(path: Path) -> None:
    path.symlink_to("/proc/self/mem")  # a regular file, which gives an error to all who read it


posix = pytest.mark.skipif(os.name != "posix", reason="needs pipes and links")


@posix
@pytest.mark.parametrize(
    ("put", "said"),
    [
        (_pipe, "is no regular file, where a weights file should lie. Move it away"),
        (_folder, "is a folder, where a weights file should lie. Move it away"),
        (_device, "is no regular file, where a weights file should lie. Move it away"),
        (_link_to_itself, "cannot be looked at: Too many levels of symbolic links"),
    ],
)
@pytest.mark.usefixtures("no_sockets")
def test_what_is_no_file_is_said_before_anybody_is_asked(
    place: Path, monkeypatch: pytest.MonkeyPatch, put: Any, said: str
) -> None:
    monkeypatch.delenv("TRUNKLINE_OFFLINE")
    put(place)
    with pytest.raises(OutputError, match=said):
        hub.fetch_url(URL)


@posix
@pytest.mark.parametrize("put", [_pipe, _link_to_itself, _device, _unreadable])
def test_verify_ends_and_says_what_it_could_not_read(place: Path, put: Any) -> None:
    put(place)
    (check,) = hub.verify()
    assert (check.path, check.state, check.sha256) == (place, "changed", None)
    assert check.known_by is not None
    assert check.known_by.startswith(("no regular file", "cannot be read: "))


@posix
def test_a_file_that_cannot_be_read_is_said(place: Path) -> None:
    if not Path("/proc/self/mem").exists():
        pytest.skip("needs Linux")
    _unreadable(place)
    with pytest.raises(IntegrityError, match=r"x\.pth cannot be read \([A-Z][a-z/ ]+\), and"):
        hub.fetch_url(URL)


@posix
def test_links_serve_and_are_verified_once(place: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "disk"
    elsewhere.mkdir()
    (elsewhere / "x.pth").write_bytes(BODY)
    place.symlink_to(elsewhere / "x.pth")
    assert hub.fetch_url(URL) == place
    (place.parent / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(place.parents[1])
    names = [check.path.relative_to(place.parent).as_posix() for check in hub.verify()]
    assert names == ["linked/x.pth", "x.pth"]
    (elsewhere / "x.pth").write_bytes(BODY[:-1] + b"!")
    assert [check.state for check in hub.verify()] == ["unknown", "changed"]


@posix
@pytest.mark.parametrize("put", [_pipe, _link_to_itself])
@pytest.mark.parametrize("suffix", ["", ".json"], ids=["a beginning", "its notes"])
def test_a_beginning_that_is_no_file_is_replaced(
    file_host: FileHost, put: Any, suffix: str
) -> None:
    url = file_host.add("/x.pth", BODY)
    part = cache.part_of(cache.weights_home() / cache.relative_place(url))
    part.parent.mkdir(parents=True)
    put(part.with_name(part.name + suffix))
    assert hub.fetch_url(url).read_bytes() == BODY


@posix
def test_a_beginning_that_is_a_link_is_not_written_through(
    file_host: FileHost, tmp_path: Path
) -> None:
    url = file_host.add("/x.pth", BODY)
    part = cache.part_of(cache.weights_home() / cache.relative_place(url))
    part.parent.mkdir(parents=True)
    for name in (part.name, f"{part.name}.json"):
        (tmp_path / name).write_text("mine")
        part.with_name(name).symlink_to(tmp_path / name)
    assert hub.fetch_url(url).read_bytes() == BODY
    assert (tmp_path / part.name).read_text() == "mine"
    assert (tmp_path / f"{part.name}.json").read_text() == "mine"


@posix
def test_a_pipe_in_the_place_of_sha256sums_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    assert not place.exists()
    monkeypatch.setenv("TRUNKLINE_WEIGHTS", str(tmp_path))
    os.mkfifo(tmp_path / "SHA256SUMS")
    (tmp_path / "dla34.own.pth").write_bytes(BODY)
    with pytest.raises(IntegrityError, match="SHA256SUMS cannot be read: it is no regular file"):
        hub.fetch([hub.TypedPlace(url=URL)], name="dla34.own")


# What a file is of which nothing is known.

PAGES = {
    b"<!DOCTYPE html><title>Log in</title>": "an HTML page titled 'Log in'",
    b"\xef\xbb\xbf\n <HTML><Title\nlang=x> 404:\n  gone": "an HTML page titled '404: gone'",
    b"<html><body>" + b"x" * 99: "an HTML page that begins '<html><body>xxx",
    b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code>": "an XML document that says 'NoSuchKey'",
    b"<svg>": "a page of HTML or XML that begins '<svg>'",
    b"version https://git-lfs.github.com/spec/v1\n": "a Git LFS pointer",
    b"\x89PNG\r\n\x1a\n": "a PNG image",
    b"\xff\xd8\xff\xe0": "a JPEG image",
    b"GIF89a": "a GIF image",
    b"%PDF-1.7": "a PDF document",
}


@pytest.mark.parametrize(("head", "said"), PAGES.items(), ids=PAGES.values())
def test_what_is_no_checkpoint_is_called_by_its_name(head: bytes, said: str, place: Path) -> None:
    assert page_in(head).startswith(said)
    place.write_bytes(head)
    with pytest.raises(CheckpointError, match="was not used and its hash not recorded: it is"):
        hub.fetch_url(URL)
    assert not cache.record_file(place).exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is an empty file"),
        (b'{"message": "Not Found"}', 'it is JSON, \'{"message": "Not Found"}\''),
        (b"not found", "it is text, not a checkpoint"),
        (BODY[:-1], "it is not a safetensors file, or a damaged one"),
        (BODY + b"\0", "it is not a safetensors file, or a damaged one"),
        (BODY[:40], "it is not a safetensors file, or a damaged one"),
    ],
)
def test_why_a_file_is_no_checkpoint_is_said(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / ("long" * 60) / "x"
    path.parent.mkdir()
    path.write_bytes(content)
    assert why_no_checkpoint(path, "x.pth").startswith(said)
    assert str(path) not in why_no_checkpoint(path, "x.pth")


LOOK_LIKE_TEXT = [first | second << 8 for first in b"< \n" for second in b"<!?aH"]


@pytest.mark.parametrize("length", LOOK_LIKE_TEXT)
def test_a_safetensors_header_whose_length_looks_like_a_page_is_none(
    tmp_path: Path, length: int
) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    content = length.to_bytes(8, "little") + header.ljust(length) + bytes(4)
    (tmp_path / "x").write_bytes(content)
    assert page_in(content) == ""
    assert why_no_checkpoint(tmp_path / "x", "x.safetensors") == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{}", ""),
        (b'{"a": [1, {"b": null}]}', ""),
        (b'{"a": [1, {"b": nul', "it is no whole JSON object"),
        (b"[]", "it is no whole JSON object"),
        (b"<html>", "it is no whole JSON object"),
        (b"[" * 10**5, "it is no whole JSON object"),
    ],
)
def test_a_config_needs_only_be_whole_json(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x").write_bytes(content)
    assert why_no_checkpoint(tmp_path / "x", "config.json")[: len(said) or None] == said


@pytest.mark.parametrize("kept", [100, 700, 999])
def test_no_cut_of_any_format_is_recorded(
    written: Callable[[object], Any], state: Any, tmp_path: Path, kept: int
) -> None:
    written(state)
    path = tmp_path / "checkpoint.pth"
    assert why_no_checkpoint(path, path.name) == ""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * kept // 1000])
    assert why_no_checkpoint(path, path.name) != ""


def test_a_record_survives_its_own_reading(place: Path) -> None:
    place.write_bytes(BODY)
    cache.check(place, [], URL)
    record = cache.read_record(place)
    assert record is not None
    assert asdict(record) == RECORD
    if os.name == "posix":  # a cache may be shared; what only its writer can read would be an error
        assert cache.record_file(place).stat().st_mode & 0o777 == 0o644
