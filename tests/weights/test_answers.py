"""Every kind of answer × every framing × known or not × fresh or continued: whole, or refused.

The oracle is one sentence: what ends in the cache is the file, to the bit; and a host that sends
all of it in a form that HTTP allows is not refused.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hostile_hosts import FRAMINGS, always, by_length, leave_beginning
from loopback import FileHost, Handler, LoopbackHub, cuts, moved, ranged, whole_checkpoint

from trunkline.errors import WeightsError, WeightsNotFoundError
from trunkline.weights import hub
from trunkline.weights.files import cache

WHOLE = whole_checkpoint(20_000)
SHA256 = hashlib.sha256(WHOLE).hexdigest()
HERE = 5_000  # bytes of a beginning
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{SHA256}\nsize 20000\n".encode()

BODIES = {
    "the file": WHOLE,
    "half of it": WHOLE[:10_000],
    "all but a byte": WHOLE[:-1],
    "a byte more": WHOLE + b"\0",
    "nothing": b"",
    "a page": b"\n<!doctype HTML><html><title>Sign in</title>" + b" " * 9000,
    "an error in XML": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "an error in JSON": b'{"error": "rate limit"}',
    "a pointer": POINTER,
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(5000),
    "noise": hashlib.shake_128(b"seed").digest(8000),
    "the file in gzip": gzip.compress(WHOLE, mtime=0),
}


@pytest.fixture(scope="module")
def one_host() -> Iterator[FileHost]:
    """A host for all cases: to start one costs more than a case."""
    host = FileHost()
    yield host
    host.close()


@pytest.fixture(autouse=True)
def hasty(patience: Callable[..., None]) -> None:
    patience(attempts=2, backoff_seconds=0.0, connect_seconds=20.0, read_seconds=20.0)


def begun(url: str, total: int | None = len(WHOLE)) -> None:
    """Leave the beginning of a file, as a download that was cut off does."""
    leave_beginning(url, WHOLE[:HERE], etag=SHA256, total=total)


def assert_whole_or_refused(
    fetch: Callable[[], Path], cached: Callable[[], list[str]], *, comes: bool
) -> None:
    if comes:
        assert fetch().read_bytes() == WHOLE
        return
    with pytest.raises(WeightsError, match=r"cannot be had; one place was tried\.\n"):
        fetch()
    assert cached() == []


@pytest.mark.parametrize("continued", [False, True], ids=["fresh", "continued"])
@pytest.mark.parametrize("known", ["", "prefix", "sha256"])
@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("body", BODIES)
def test_an_answer_ends_whole_or_refused(
    one_host: FileHost,
    cached_files: Callable[[], list[str]],
    body: str,
    framing: str,
    known: str,
    continued: bool,
) -> None:
    write, complete = FRAMINGS[framing]
    name = f"/x-{SHA256[:8]}.pth" if known == "prefix" else "/x.pth"
    url = one_host.add(name, BODIES[body], *[always(BODIES[body], write, SHA256)] * 9)
    if continued:
        begun(url)
    assert_whole_or_refused(
        partial(hub.fetch_url, url, sha256=SHA256 if known == "sha256" else None),
        cached_files,
        # A page or a picture behind a good beginning: the host says that it is the same file.
        comes=body == "the file" and complete,
    )


@pytest.mark.parametrize(
    "encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "x", "IDENTITY"]
)
@pytest.mark.parametrize("framing", ["by its length", "in chunks", "until it hangs up"])
@pytest.mark.parametrize("known", [None, SHA256])
def test_what_is_sent_compressed_is_refused_unread(
    one_host: FileHost,
    cached_files: Callable[[], list[str]],
    encoding: str,
    framing: str,
    known: str | None,
) -> None:
    plain = encoding == "IDENTITY"
    body = WHOLE if plain else gzip.compress(WHOLE, mtime=0)
    url = one_host.add("/x.pth", body, *[always(body, FRAMINGS[framing][0], SHA256, encoding)] * 9)
    asked = one_host.count("/x.pth")
    assert_whole_or_refused(partial(hub.fetch_url, url, sha256=known), cached_files, comes=plain)
    assert one_host.requests[-1][2]["Accept-Encoding"] == "identity"
    assert one_host.count("/x.pth") == asked + 1


def test_two_gigabytes_in_two_megabytes_are_not_unpacked(one_host: FileHost) -> None:
    bomb = gzip.compress(bytes(1 << 20), 9, mtime=0) * 20
    url = one_host.add("/x.pth", b"", always(bomb, by_length, SHA256, "gzip"))
    with pytest.raises(WeightsNotFoundError, match="refused: sent as 'gzip', although the plain"):
        hub.fetch_url(url)


END = len(WHOLE) - 1
RANGES: dict[str, dict[str, str]] = {
    "ends early": {"Content-Range": f"bytes {HERE}-{HERE + 99}/{END + 1}", "Content-Length": "100"},
    "ends early in an unknown whole": {
        "Content-Range": f"bytes {HERE}-{HERE + 99}/*",
        "Content-Length": "100",
    },
    "of another total": {"Content-Range": f"bytes {HERE}-{END}/{END + 2}"},
    "of a total that is less": {"Content-Range": f"bytes {HERE}-{END}/{END}"},
    "of an unknown whole": {"Content-Range": f"bytes {HERE}-{END}/*"},
    "at another place": {"Content-Range": f"bytes {HERE - 1}-{END}/{END + 1}"},
    "backwards": {"Content-Range": f"bytes {HERE}-{HERE - 1}/{END + 1}"},
    "of another length": {"Content-Length": "99"},
    "with a range that is none": {"Content-Range": "bytes */20000"},
    "with a number of 5000 digits": {"Content-Range": f"bytes {HERE}-{'9' * 5000}/*"},
    "without a range": {"Content-Range": ""},
    "in another unit": {"Content-Range": f"rows {HERE}-{END}/{END + 1}"},
    "of another file": {"ETag": '"another"'},
    "of a file without a tag": {"ETag": ""},
    "with a weak tag": {"ETag": f'W/"{SHA256}"'},
    "in parts": {"Content-Range": "", "Content-Type": "multipart/byteranges; boundary=x"},
}


@pytest.mark.parametrize("known", [None, SHA256])
@pytest.mark.parametrize("kind", RANGES)
def test_a_range_that_is_not_the_rest_of_the_file_is_never_kept(
    one_host: FileHost, kind: str, known: str | None
) -> None:
    url = one_host.add("/x.pth", WHOLE, ranged(**RANGES[kind]))
    begun(url)
    assert hub.fetch_url(url, sha256=known).read_bytes() == WHOLE


def test_a_range_of_more_than_a_file_may_have_is_refused(
    one_host: FileHost, patience: Callable[..., None]
) -> None:
    patience(max_bytes=30_000)
    reach = f"bytes {HERE}-39999/*"
    url = one_host.add(
        "/x.pth", WHOLE, ranged(**{"Content-Range": reach, "Content-Length": "35000"})
    )
    begun(url, total=None)
    with pytest.raises(WeightsNotFoundError, match="refused: 40000 bytes, more than 30000"):
        hub.fetch_url(url)


def test_a_206_that_is_shorter_than_asked_is_continued(one_host: FileHost) -> None:
    url = one_host.add("/x.pth", WHOLE, ranged(**RANGES["ends early"]))
    begun(url)
    before = len(one_host.requests)
    assert hub.fetch_url(url).read_bytes() == WHOLE
    asked = [headers["Range"] for _, _, headers in one_host.requests[before:]]
    assert asked == ["bytes=5000-", "bytes=5100-"]


def test_a_206_that_is_always_shorter_is_an_error(
    one_host: FileHost, cached_files: Callable[[], list[str]]
) -> None:
    def a_hundred_more(handler: Handler, body: bytes) -> None:
        start = int(handler.headers["Range"][6:-1])
        reach = f"bytes {start}-{start + 99}/{len(body)}"
        handler.reply(206, body[start : start + 100], ETag=f'"{SHA256}"', Content_Range=reach)

    url = one_host.add("/x.pth", WHOLE, *[a_hundred_more] * 9)
    begun(url)
    with pytest.raises(WeightsNotFoundError, match=r"cut off at 5200 of 20000 bytes \(2 attempts"):
        hub.fetch_url(url)
    assert cached_files() == []


def test_a_beginning_of_a_file_that_was_replaced_within_a_second_is_not_continued(
    one_host: FileHost,
) -> None:
    new = whole_checkpoint(24_000)
    at = {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT", "ETag": ""}
    url = one_host.add("/x.pth", new, *[cuts(9000, **at)] * 2, ranged(**at), ranged(**at))
    with pytest.raises(WeightsNotFoundError, match="cut off"):
        hub.fetch_url(url)
    one_host.script["/x.pth"] = []
    assert hub.fetch_url(url).read_bytes() == new
    assert "Range" not in one_host.requests[-1][2]


@pytest.mark.parametrize(
    "notes", [b"", b"{", b"[]", b"\xff", b'{"etag": 1}', b'{"validator": "x"}']
)
@pytest.mark.parametrize("known", [None, SHA256])
def test_damaged_notes_of_a_beginning_begin_anew(
    one_host: FileHost, notes: bytes, known: str | None
) -> None:
    url = one_host.add("/x.pth", WHOLE)
    begun(url)
    part = cache.part_of(cache.weights_home() / cache.relative_place(url))
    part.with_name(part.name + ".json").write_bytes(notes)
    assert hub.fetch_url(url, sha256=known).read_bytes() == WHOLE
    assert "Range" not in one_host.requests[-1][2]


def test_a_beginning_that_a_power_cut_spoiled_is_not_continued(one_host: FileHost) -> None:
    url = one_host.add("/x.pth", WHOLE)
    begun(url)
    part = cache.part_of(cache.weights_home() / cache.relative_place(url))
    part.write_bytes(WHOLE[:4000] + bytes(1000))  # no reader could tell these zeros from numbers
    assert hub.fetch_url(url).read_bytes() == WHOLE


def test_a_beginning_that_is_a_link_is_neither_continued_nor_written_through(
    one_host: FileHost, tmp_path: Path
) -> None:
    url = one_host.add("/x.pth", WHOLE)
    begun(url)
    part = cache.part_of(cache.weights_home() / cache.relative_place(url))
    part.rename(tmp_path / "mine")
    part.symlink_to(tmp_path / "mine")
    assert hub.fetch_url(url, sha256=SHA256).read_bytes() == WHOLE
    assert (tmp_path / "mine").read_bytes() == WHOLE[:HERE]
    assert "Range" not in one_host.requests[-1][2]


def test_a_web_page_does_not_cost_the_beginning(one_host: FileHost) -> None:
    page = always(BODIES["a page"], by_length, SHA256)
    url = one_host.add("/x.pth", WHOLE, page)
    begun(url)

    def a_login(handler: Handler, _: bytes) -> None:
        handler.reply(200, BODIES["a page"], Content_Type="text/html")

    one_host.script["/x.pth"] = [a_login]
    with pytest.raises(WeightsNotFoundError, match="an HTML page titled 'Sign in', not with a fil"):
        hub.fetch_url(url)
    assert hub.fetch_url(url).read_bytes() == WHOLE
    assert one_host.requests[-1][2]["Range"] == f"bytes={HERE}-"


# The Hub's storage answers like any host.


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("large", [True, False], ids=["large", "small"])
@pytest.mark.parametrize("body", BODIES)
def test_the_hub_ends_whole_or_refused(
    one_hub: LoopbackHub,
    cached_files: Callable[[], list[str]],
    body: str,
    framing: str,
    large: bool,
) -> None:
    write, complete = FRAMINGS[framing]
    answers = [always(BODIES[body], write, SHA256)] * 9
    name = "model.safetensors"
    address = one_hub.add_file("o/r", name, WHOLE, *answers, large=large)
    comes = body == "the file" and complete
    assert_whole_or_refused(partial(hub.fetch_hf, address), cached_files, comes=comes)


@pytest.fixture(scope="module")
def shared_hub() -> Iterator[LoopbackHub]:
    host = LoopbackHub()
    yield host
    host.close()


@pytest.fixture
def one_hub(shared_hub: LoopbackHub, hasty: None, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:  # noqa: ARG001
    monkeypatch.setenv("HF_ENDPOINT", shared_hub.origin)
    shared_hub.listed.clear()
    return shared_hub


def test_the_redirect_of_a_repository_that_moved_is_followed(one_hub: LoopbackHub) -> None:
    one_hub.add_file("new/r", "model.safetensors", WHOLE)
    place = "/resolve/main/model.safetensors"
    one_hub.add(f"/old/r{place}", b"", moved(f"/new/r{place}"))
    found = hub.fetch_hf("hf://old/r/model.safetensors")
    assert found.read_bytes() == WHOLE
