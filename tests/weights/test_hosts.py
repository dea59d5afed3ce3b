"""Hosts that lie about lengths, that drip, that never end, and that understand HTTP wrongly."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from hostile_hosts import try_random_answers
from loopback import Answer, FileHost, Handler, cuts, whole_checkpoint

from trunkline.errors import WeightsNotFoundError
from trunkline.weights import hub
from trunkline.weights.files.hosts import PIECE_BYTES
from trunkline.weights.files.patience import Patience

OK = b"HTTP/1.1 200 OK\r\n"
WHOLE = whole_checkpoint(20_000)


@pytest.fixture(scope="module")
def one_host() -> Iterator[FileHost]:
    """A host for all cases: to start one costs more than a case."""
    host = FileHost()
    yield host
    host.close()


@pytest.fixture(autouse=True)
def hasty(patience: Callable[..., None]) -> None:
    patience(attempts=2, backoff_seconds=0.0, connect_seconds=20.0, read_seconds=20.0)


# Lengths that make no sense.


@pytest.mark.parametrize("length", ["-1", "1e3", "9" * 5000, "0x10", "20000, 5", "abc", "²"])
def test_a_length_that_makes_no_sense_is_refused(
    one_host: FileHost, cached_files: Callable[[], list[str]], length: str
) -> None:
    def answer(handler: Handler, body: bytes) -> None:
        handler.head(200, Content_Length=length, Connection="close")
        handler.wfile.write(body)
        handler.close_connection = True

    with pytest.raises(WeightsNotFoundError, match=r"length makes no sense|request failed"):
        hub.fetch_url(one_host.add("/x.pth", WHOLE, answer))
    assert cached_files() == []


def test_a_length_that_is_told_twice_alike_is_one(one_host: FileHost) -> None:
    def answer(handler: Handler, body: bytes) -> None:
        length = f"Content-Length: {len(body)}\r\n".encode()
        handler.wfile.write(OK + length + length + b"\r\n" + body)

    assert hub.fetch_url(one_host.add("/x.pth", WHOLE, answer)).read_bytes() == WHOLE


@pytest.mark.parametrize("length", [b"-5", b"zz", b"", b"x" * 70_000])
def test_a_chunk_whose_length_makes_no_sense_is_asked_for_again(
    one_host: FileHost, length: bytes
) -> None:
    def answer(handler: Handler, body: bytes) -> None:
        handler.head(200, Transfer_Encoding="chunked")
        handler.wfile.write(length + b"\r\n" + body)
        handler.close_connection = True

    assert hub.fetch_url(one_host.add("/x.pth", WHOLE, answer)).read_bytes() == WHOLE


# Hosts that drip.


def _drip(handler: Handler, piece: bytes) -> None:
    while not handler.host.over.wait(0.02):
        handler.wfile.write(piece)
        handler.wfile.flush()


def _after(head: bytes, piece: bytes) -> Answer:
    def answer(handler: Handler, _: bytes) -> None:
        handler.close_connection = True
        handler.wfile.write(head)
        _drip(handler, piece)

    return answer


DRIPS = {
    "its status line": _after(b"HTTP/1.1 200 ", b"O"),
    "a line of its head": _after(OK + b"X: ", b"x"),
    "heads that only announce": _after(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a body byte by byte": _after(OK + b"Content-Length: 9999\r\n\r\n", b"\x80"),
    "a body without a length": _after(OK + b"\r\n", b"\x80"),
    "chunks of one byte": _after(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n\x80\r\n"),
    "the length of a chunk": _after(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "trailers": _after(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
}


@pytest.mark.parametrize("kind", DRIPS)
@pytest.mark.parametrize("bound", ["piece_seconds", "total_seconds"])
def test_a_host_that_drips_is_given_up(
    file_host: FileHost,
    patience: Callable[..., None],
    cached_files: Callable[[], list[str]],
    kind: str,
    bound: str,
) -> None:
    patience(attempts=1, **{bound: 0.15})
    said = "timed out" if bound == "piece_seconds" else r"too slow \(given up after 0 s in all\)"
    begun_at = time.monotonic()
    with pytest.raises(WeightsNotFoundError, match=said):
        hub.fetch_url(file_host.add("/x.pth", WHOLE, DRIPS[kind]))
    assert time.monotonic() - begun_at < 20.0  # they would drip for ever
    assert cached_files() == []


def test_the_limits_are_those_that_the_docs_promise() -> None:
    limits = Patience()
    assert (limits.attempts, limits.read_seconds, limits.piece_seconds) == (5, 30.0, 60.0)
    assert (limits.total_seconds, limits.retry_after_limit_seconds) == (6 * 3600.0, 120.0)
    assert (limits.max_bytes, PIECE_BYTES) == (64 * 2**30, 64 * 2**10)


def test_pauses_count_as_well(file_host: FileHost, patience: Callable[..., None]) -> None:
    patience(attempts=5, backoff_seconds=100.0, backoff_limit_seconds=100.0, total_seconds=3.0)
    url = file_host.add("/x.pth", WHOLE, *[cuts(100)] * 5)
    with pytest.raises(WeightsNotFoundError, match=r"cut off .*1 attempts, given up after 3 s"):
        hub.fetch_url(url)


def test_a_redirect_with_an_endless_body_is_not_read(one_host: FileHost) -> None:
    def endless(handler: Handler, _: bytes) -> None:
        handler.head(302, Location="/y.pth", Content_Length=str(1 << 40))
        handler.close_connection = True

    one_host.add("/y.pth", WHOLE)
    assert hub.fetch_url(one_host.add("/x.pth", WHOLE, endless)).read_bytes() == WHOLE


def test_a_proxy_that_drips_is_given_up(
    file_host: FileHost, patience: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    patience(attempts=1, piece_seconds=0.15)
    drips = _after(OK + b"X: ", b"x")
    monkeypatch.setattr(Handler, "do_CONNECT", lambda handler: drips(handler, b""), raising=False)
    monkeypatch.setenv("HTTPS_PROXY", file_host.origin)
    with pytest.raises(WeightsNotFoundError, match="timed out"):
        hub.fetch_url("https://h.org/x.pth")


# Hosts that understand HTTP wrongly.


@pytest.mark.parametrize("seeds", [range(first, first + 40) for first in (0, 40, 80)], ids=str)
def test_random_answers_end_whole_or_refused(
    one_host: FileHost, patience: Callable[..., None], seeds: range
) -> None:
    patience(read_seconds=0.2, piece_seconds=0.3, total_seconds=2.0, max_bytes=1 << 20)
    assert [fault for seed in seeds if (fault := try_random_answers(one_host, seed))] == []
