"""Answers of hosts that understand HTTP wrongly, made from a seed.

``tests/weights/test_answers.py`` tries some hundred of them, ``tools/attack.py`` as many as it has
time for. What is right is the same for all: the file that ends in the cache is the one that was
meant, or the error is one of trunkline's and nothing is there.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable

from loopback import Answer, FileHost, Handler, whole_checkpoint

from trunkline.errors import TrunklineError
from trunkline.weights import hub
from trunkline.weights.files import cache

BODY = whole_checkpoint(3000)
SHA256 = hashlib.sha256(BODY).hexdigest()
_BEGUN = 1000

_STATUS = (
    *("200 OK", "206 Partial Content", "302 Found", "307 X", "416 X", "503 X", "100 Continue"),
    *("204 No Content", "304 Not Modified", "101 X", "999999 X", "-1 X", "2e2 X", "", "203 X"),
)
_VERSIONS = ("HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2", "ICY", "http/1.1", "")
_NAMES = (
    *("Content-Length", "Transfer-Encoding", "Content-Encoding", "Content-Range", "Location"),
    *(
        "ETag",
        "Set-Cookie",
        "Retry-After",
        "Content-Type",
        "Connection",
        "X-Linked-Size",
        "Upgrade",
    ),
)
_VALUES = (
    *("0", "3000", "2999", "3001", "-1", "1e9", "9" * 400, "", " ", "\t", "0x10", "3000, 3000"),
    *(
        "chunked",
        "identity",
        "gzip",
        "gzip, chunked",
        "text/html",
        "close",
        "keep-alive",
        "\xff\xfe",
    ),
    *("bytes 0-2999/3000", "bytes 1000-2999/3000", "bytes 1000-1999/3000", "bytes */3000"),
    *("/x.pth", "http://[", "http://h:0", "//", "?", "file:///etc/passwd", "x" * 70_000),
    *(f'"{SHA256}"', 'W/"x"', "a=b; Max-Age=99999999999999999999; Domain=.; Path=\0", "1"),
    *("Fri, 99 Foo 99999 99:99:99 GMT", "Thu, 01 Jan 0001 00:00:00 +2359"),
)
_BODIES = (
    *(BODY, BODY[:_BEGUN], BODY[_BEGUN:], b"", BODY + b"tail", b"<html>", b"{}"),
    *(b"bb8\r\n" + BODY + b"\r\n0\r\n\r\n", b"bb8\r\n" + BODY + b"\r\n", b"zz\r\n"),
    *(b"-5\r\n" + BODY, b"ffffffffffff\r\n" + BODY, b"bb8;" + b"x" * 70_000),
)


def random_answer(rng: random.Random) -> bytes:
    """Return all bytes of one answer; those of the file in it are never changed."""
    status = "HTTP/1.1 200 OK"
    if rng.random() < 0.4:
        status = f"{rng.choice(_VERSIONS)} {rng.choice(_STATUS)}"
    lines = [f"{rng.choice(_NAMES)}: {rng.choice(_VALUES)}" for _ in range(rng.randrange(5))]
    if rng.random() < 0.05:
        lines += ["X: y"] * 200
    head = bytearray("\r\n".join([status, *lines]).encode("latin-1"))
    while rng.random() < 0.3:
        at = rng.randrange(len(head) + 1)
        if rng.random() < 0.5:
            del head[at : at + rng.randrange(9)]
        else:
            head[at:at] = rng.randbytes(rng.randrange(1, 9))
    return bytes(head) + b"\r\n\r\n" + rng.choice(_BODIES)


def leave_beginning(url: str, content: bytes, *, etag: str, total: int | None) -> None:
    """Leave the beginning of a file, as a download that was cut off does."""
    part = cache.part_of(cache.weights_home() / cache.relative_place(url))
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(content)
    noted = {"etag": f'"{etag}"', "total": total, "sha256": hashlib.sha256(content).hexdigest()}
    part.with_name(f"{part.name}.json").write_text(json.dumps(noted))


def try_random_answers(host: FileHost, seed: int) -> str | None:
    """Download a file from a host that gives three random answers, from a beginning or none.

    Returns:
        What fell short; None if nothing did.
    """
    rng = random.Random(seed)  # noqa: S311 - repeatable, not secret
    path = f"/{seed}.pth"
    url = host.add(path, BODY, *[_sends(random_answer(rng)) for _ in range(3)])
    if rng.random() < 0.5:
        leave_beginning(url, BODY[:_BEGUN], etag=SHA256, total=rng.choice([len(BODY), None]))
    try:
        found = hub.fetch_url(url, sha256=SHA256 if rng.random() < 0.3 else None)
    except TrunklineError:
        place = cache.weights_home() / cache.relative_place(url)
        return f"{url}: an error, and a file" if place.exists() else None
    except Exception as error:
        return f"{url}: {type(error).__name__}: {error}"
    return None if found.read_bytes() == BODY else f"{url}: another file was kept"


def _sends(content: bytes) -> Answer:
    def answer(handler: Handler, _: bytes) -> None:
        handler.wfile.write(content)
        handler.close_connection = True

    return answer


def ranged_anyhow(rng: random.Random, size: int, begun: int) -> Answer:
    """Answer a range with numbers that may be any, and with what they say or something else."""
    numbers = (
        begun,
        begun - 1,
        begun + 1,
        0,
        size,
        size - 1,
        size + 1,
        10**30,
        rng.randrange(size),
    )
    first = begun if rng.random() < 0.7 else rng.choice(numbers)
    last = size - 1 if rng.random() < 0.5 else rng.choice(numbers)
    total = rng.choice((str(size), str(size), "*", str(rng.choice(numbers))))
    exact, tagged = rng.random() < 0.7, rng.random() < 0.8

    def answer(handler: Handler, body: bytes) -> None:
        if "Range" not in handler.headers:
            handler.serve(body)
            return
        sent = body[first : min(last + 1, size)] if exact else body[begun:]
        etag = hashlib.sha256(body if tagged else b"").hexdigest()
        reach = f"bytes {first}-{last}/{total}"
        handler.reply(206, sent, **{"ETag": f'"{etag}"', "Content-Range": reach})

    return answer


# Framings: how a body is sent, and whether all of it comes so.


def always(body: bytes, framing: Framing, etag: str, encoding: str = "") -> Answer:
    """Answer the same in every attempt; a range is served where one is asked for."""

    def answer(handler: Handler, _: bytes) -> None:
        asked = handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-")
        start = int(asked) if int(asked) < len(body) else 0
        headers = {"ETag": f'"{etag}"', "Content-Encoding": encoding}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        framing(handler, body, start, headers)

    return answer


def by_length(handler: Handler, body: bytes, start: int, headers: dict[str, str]) -> None:
    """Send it all, with its length."""
    handler.head(_status(start), **headers, Content_Length=str(len(body) - start))
    handler.wfile.write(body[start:])


def in_chunks(handler: Handler, body: bytes, start: int, headers: dict[str, str]) -> None:
    """Send it all, chunk after chunk."""
    handler.head(_status(start), **headers, Transfer_Encoding="chunked")
    for at in range(start, len(body), 7000):
        piece = body[at : at + 7000]
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
    handler.wfile.write(b"0\r\n\r\n")


def until_it_hangs_up(handler: Handler, body: bytes, start: int, headers: dict[str, str]) -> None:
    """Send it all, and nothing of its length."""
    handler.head(_status(start), **headers, Connection="close")
    handler.wfile.write(body[start:])
    handler.close_connection = True


def in_chunks_without_end(
    handler: Handler, body: bytes, start: int, headers: dict[str, str]
) -> None:
    """Send it all in one chunk, and hang up where another one should say that it was the last."""
    handler.head(_status(start), **headers, Transfer_Encoding="chunked")
    handler.wfile.write(b"%x\r\n%s\r\n" % (len(body) - start, body[start:]))
    handler.close_connection = True


def shorter_than_told(handler: Handler, body: bytes, start: int, headers: dict[str, str]) -> None:
    """Send half of what is missing, whatever is missing: it never ends."""
    handler.head(_status(start), **headers, Content_Length=str(len(body) - start))
    handler.wfile.write(body[start : (start + len(body)) // 2])
    handler.close_connection = True


def longer_than_told(handler: Handler, body: bytes, start: int, headers: dict[str, str]) -> None:
    """Send it all, and say half of its length."""
    handler.head(_status(start), **headers, Content_Length=str((len(body) - start) // 2))
    handler.wfile.write(body[start:])
    handler.close_connection = True


def _status(start: int) -> int:
    return 206 if start else 200


Framing = Callable[[Handler, bytes, int, dict[str, str]], None]
FRAMINGS: dict[str, tuple[Framing, bool]] = {  # and whether all of the body comes so
    "by its length": (by_length, True),
    "in chunks": (in_chunks, True),
    "until it hangs up": (until_it_hangs_up, True),
    "in chunks without an end": (in_chunks_without_end, False),
    "shorter than told": (shorter_than_told, False),
    "longer than told": (longer_than_told, False),
}
