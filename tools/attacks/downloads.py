"""Downloads: hosts that misunderstand HTTP, cut off, drip and redirect; what the cache holds."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import os
import time
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from hostile_hosts import FRAMINGS, always, leave_beginning, ranged_anyhow, try_random_answers
from loopback import FileHost, Handler, LoopbackHub, whole_checkpoint

from attacks import Chance, Kind, check
from attacks.runners import anything, places, put
from trunkline.errors import ConfigError, TrunklineError
from trunkline.weights import hub
from trunkline.weights.files import addresses, patience
from trunkline.weights.files import cache as files

_HASTY = dataclasses.replace(
    patience.Patience(),
    attempts=2,
    backoff_seconds=0.0,
    connect_seconds=5.0,
    read_seconds=0.5,
    piece_seconds=0.5,
    total_seconds=5.0,
    max_bytes=1 << 20,
)
_SECONDS = 8.0  # both attempts of a host that drips, on a machine that is busy
_OURS = ("TRUNKLINE_WEIGHTS", "TRUNKLINE_OFFLINE", "HF_HUB_OFFLINE", "HF_TOKEN", "HF_ENDPOINT")


@cache
def host() -> FileHost:
    """Start a host, once in a process."""
    return FileHost()


def _ready(folder: Path) -> FileHost:
    patience.PATIENCE = _HASTY
    for name in _OURS:
        os.environ.pop(name, None)
    os.environ["TRUNKLINE_HOME"] = str(folder / "home")
    os.environ["HF_HUB_CACHE"] = str(folder / "hub")
    host().requests.clear()
    return host()


def _fetched(url: str, body: bytes, *, known: bool, must_come: bool = False) -> str:
    """Get a file: whole, or an error and nothing in the cache."""
    began = time.monotonic()
    try:
        found = hub.fetch_url(url, sha256=hashlib.sha256(body).hexdigest() if known else None)
    except TrunklineError as error:
        check(not must_come, f"refused, though all of it came: {error}")
        place = files.weights_home() / files.relative_place(url)
        check(not place.exists(), f"an error and a file: {error}")
        check(time.monotonic() - began < _SECONDS, f"took {time.monotonic() - began:.0f} s")
        return "refused"
    check(found.read_bytes() == body, "another file was kept")
    return "right"


def _random(chance: Chance, folder: Path) -> str:
    """Three answers of random heads and bodies."""
    fault = try_random_answers(_ready(folder), chance.randrange(1 << 40))
    check(fault is None, fault or "")
    return "right"


def _framed(chance: Chance, folder: Path) -> str:
    """A body, whole or spoiled, in a framing; from a beginning or from the start."""
    served, whole = _ready(folder), whole_checkpoint(4 * chance.randrange(32, 40_000))
    at, etag = chance.randrange(len(whole)), hashlib.sha256(whole).hexdigest()
    spoiled = (whole[:at], whole + bytes(1), whole[:at] + whole[at + 1 :], gzip.compress(whole))
    body = whole if chance.random() < 0.5 else chance.choice(spoiled)
    framing, complete = FRAMINGS[chance.choice(sorted(FRAMINGS))]
    encoding = chance.choice(("", "", "", "gzip", "br"))
    url = served.add("/x.pth", body, *[always(body, framing, etag, encoding)] * 9)
    if chance.random() < 0.5:
        leave_beginning(url, whole[: max(1, at)], etag=etag, total=len(whole))
    comes = body == whole and complete and not encoding
    return _fetched(url, whole, known=chance.random() < 0.5, must_come=comes)


def _ranged(chance: Chance, folder: Path) -> str:
    """The rest of a file, with numbers in its range that may be any, once or always."""
    served, whole = _ready(folder), whole_checkpoint(4 * chance.randrange(64, 4000))
    etag, begun = hashlib.sha256(whole).hexdigest(), chance.randrange(1, len(whole))
    answer = ranged_anyhow(chance, len(whole), begun)
    url = served.add("/x.pth", whole, *[answer] * chance.choice((1, 9)))
    leave_beginning(url, whole[:begun], etag=etag, total=chance.choice((len(whole), None)))
    return _fetched(url, whole, known=chance.random() < 0.5)


def _dripping(chance: Chance, folder: Path) -> str:
    """A good answer that comes byte by byte from somewhere on."""
    served, whole = _ready(folder), whole_checkpoint(4 * chance.randrange(64, 4000))
    chunked = chance.random() < 0.5
    head = f"Content-Length: {len(whole)}"
    content = b"HTTP/1.1 200 OK\r\n%s\r\n\r\n%s" % (head.encode(), whole)
    if chunked:
        ends = b"%x\r\n%s\r\n0\r\n\r\n" % (len(whole), whole)
        content = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + ends
    at = chance.choice((chance.randrange(60), chance.randrange(len(content) - 100)))

    def answer(handler: Handler, _: bytes) -> None:
        handler.close_connection = True
        handler.wfile.write(content[:at])
        for one in content[at:]:
            time.sleep(0.02)
            handler.wfile.write(bytes([one]))

    return _fetched(served.add("/x.pth", whole, *[answer] * 2), whole, known=chance.random() < 0.5)


def _addressed(chance: Chance, folder: Path) -> str:
    """Addresses that are nearly right: two never share a place, and none leads out of the cache."""
    _ready(folder)
    found: dict[Path, tuple[object, ...]] = {}
    outcome = "refused"
    for _ in range(20):
        url = list(chance.choice(("https://h.org:8443/a/b.pth?id=1", "http://u:p@[::1]:80/a%2Fb")))
        for _ in range(chance.randrange(4)):
            at = chance.randrange(len(url) + 1)
            url[at : at + chance.randrange(3)] = chance.choice(_ODD)
        text = "".join(url)
        try:
            place = files.relative_place(text)
        except ConfigError:
            continue
        outcome = "right"
        if text.startswith("hf://"):
            continue
        parts = urlsplit(text)
        asked = (addresses.origin(text), parts.path or "/", parts.query)
        check(found.setdefault(place, asked) == asked, f"{text!r} shares {place}")
        inside = (files.weights_home() / place).resolve()
        check(files.weights_home().resolve() in inside.parents, f"{text!r} leads to {inside}")
    return outcome


_ODD = (
    *("", "/", "//", "..", ".", "%2e%2e", "%00", "%ff", "\\", "@", ":", ":0", ":99999", "[", "]"),
    *("?", "#", "é", "\u202e", "\x1b[2J", " ", "\n", "\udcff", "x" * 300, "hf://", "q=", "%"),
)


def _redirected(chance: Chance, folder: Path) -> str:
    """Redirects to addresses that are nearly right; the mirror has the file."""
    served, whole = _ready(folder), whole_checkpoint(400)
    to = "".join(chance.choice((*_ODD, "http://", "https://", "127.0.0.1:1")) for _ in range(4))

    def answer(handler: Handler, _: bytes) -> None:
        target = to.encode("utf-8", "replace").replace(b"\n", b"").replace(b"\r", b"")
        handler.wfile.write(b"HTTP/1.1 302 X\r\nContent-Length: 0\r\nLocation: %s\r\n\r\n" % target)

    bad = served.add("/x.pth", b"", *[answer] * 40)
    good = served.add("/good.pth", whole)
    found = hub.fetch([hub.TypedPlace(url=url) for url in (bad, good)])
    check(found.read_bytes() == whole, "another file was kept")
    return "right"


def _noted(chance: Chance, folder: Path) -> str:
    """The record of a file, or the notes of a beginning, say anything."""
    served, whole = _ready(folder), whole_checkpoint(400)
    url = served.add("/x.pth", whole)
    etag = hashlib.sha256(whole).hexdigest()
    if chance.random() < 0.5:
        leave_beginning(url, whole[:200], etag=etag, total=400)
        path = files.weights_home() / files.relative_place(url)
        note = files.part_of(path).with_name(f"{files.part_of(path).name}.json")
    else:
        note = files.record_file(hub.fetch_url(url))
    fields = json.loads(note.read_bytes())
    place = chance.choice(list(places(fields)))
    text = json.dumps(put(fields, place, anything(chance)))
    note.write_text(text if chance.random() < 0.8 else text[: chance.randrange(len(text))])
    hub.verify()
    return _fetched_again(url, whole)


def _fetched_again(url: str, whole: bytes) -> str:
    try:
        found = hub.fetch_url(url)
    except TrunklineError:
        return "refused"
    check(found.read_bytes() == whole, "another file was used")
    return "right"


def _listed(chance: Chance, folder: Path) -> str:
    """The Hub's list of files says anything."""
    _ready(folder)
    whole = whole_checkpoint(400)
    served = LoopbackHub()
    os.environ["HF_ENDPOINT"] = served.origin
    try:
        address = served.add_file("o/r", "model.safetensors", whole)
        fields = {"siblings": [{"rfilename": "model.safetensors"}, {"rfilename": "x"}], "id": "o/r"}
        fields = put(fields, chance.choice(list(places(fields))), anything(chance))
        content = json.dumps(fields).encode()
        served.script["/api/models/o/r/revision/main"] = [
            lambda handler, _: handler.reply(200, content)
        ]
        found = hub.fetch_hf(address if chance.random() < 0.1 else "hf://o/r")
    finally:
        served.close()
    check(found.read_bytes() == whole, "another file was kept")
    return "right"


KINDS: dict[str, Kind] = {
    "random answers": _random,
    "framings": _framed,
    "ranges": _ranged,
    "dripping hosts": _dripping,
    "addresses": _addressed,
    "redirects": _redirected,
    "notes of anything": _noted,
    "listings of anything": _listed,
}
