"""Answers of hosts that understand HTTP wrongly, made from a seed.

``tests/weights/test_answers.py`` tries some hundred of them, ``tools/attack.py`` as many as it has
time for. What is right is the same for all: the file that ends in the cache is the one that was
meant, or the error is one of trunkline's and nothing is there.
"""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

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


def try_random_answers(host: FileHost, seed: int) -> str | None:
    """Download a file from a host that gives three random answers, from a beginning or none.

    Returns:
        What fell short; None if nothing did.
    """
    rng = random.Random(seed)  # noqa: S311 - repeatable, not secret
    path = f"/{seed}.pth"
    url = host.add(path, BODY, *[_sends(random_answer(rng)) for _ in range(3)])
    place = cache.weights_home() / cache.relative_place(url)
    if rng.random() < 0.5:
        part = cache.part_of(place)
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(BODY[:_BEGUN])
        total = rng.choice([len(BODY), None])
        begun = hashlib.sha256(BODY[:_BEGUN]).hexdigest()
        notes = {"etag": f'"{SHA256}"', "total": total, "sha256": begun}
        part.with_name(f"{part.name}.json").write_text(json.dumps(notes))
    try:
        found = hub.fetch_url(url, sha256=SHA256 if rng.random() < 0.3 else None)
    except TrunklineError:
        return f"{url}: an error, and a file" if place.exists() else None
    except Exception as error:
        return f"{url}: {type(error).__name__}: {error}"
    return None if Path(found).read_bytes() == BODY else f"{url}: another file was kept"


def _sends(content: bytes) -> Answer:
    def answer(handler: Handler, _: bytes) -> None:
        handler.wfile.write(content)
        handler.close_connection = True

    return answer
