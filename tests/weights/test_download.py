"""One plain URL: patience with hosts, strictness with bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import pytest
from loopback import FileHost, Handler, cuts, fails, moved, ranged, stalls, whole_checkpoint

from trunkline.errors import (
    WeightsNotFoundError,
)
from trunkline.weights import hub
from trunkline.weights.files import cache

pytestmark = pytest.mark.usefixtures("weights_home")

BODY = whole_checkpoint(1 << 20)
SHA256 = hashlib.sha256(BODY).hexdigest()
CHUNK = 1 << 16  # what arrives together or not at all
NOTES = json.dumps({"etag": f'"{SHA256}"', "total": len(BODY), "sha256": None})
NAMED = f"/models/tiny-{SHA256[:8]}.pth"


def test_a_file_comes_once_and_lies_below_its_host(
    file_host: FileHost, weights_home: Path, half_files: Callable[[], list[str]]
) -> None:
    url = file_host.add(NAMED, BODY)
    path = hub.fetch_url(url)
    assert path.read_bytes() == BODY
    port = file_host.origin.rpartition(":")[2]
    assert path == weights_home / "weights" / f"127.0.0.1+{port}" / NAMED[1:]
    assert hub.fetch_url(url) == path
    assert file_host.count(NAMED) == 1
    assert half_files() == []


def test_progress_is_told_and_nothing_is_printed(
    file_host: FileHost, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[str, int, int | None]] = []
    hub.fetch_url(file_host.add(NAMED, BODY), progress=lambda *values: told.append(values))
    assert told[-1] == (NAMED.rpartition("/")[2], len(BODY), len(BODY))
    assert capfd.readouterr() == ("", "")


def test_cut_off_is_resumed_where_it_ended(file_host: FileHost) -> None:
    url = file_host.add(NAMED, BODY, cuts(6 * CHUNK + 10))
    assert hub.fetch_url(url).read_bytes() == BODY
    again = file_host.requests[1][2]
    assert again["Range"] == f"bytes={6 * CHUNK}-"
    assert again["If-Range"] == f'"{SHA256}"'


def test_cut_off_for_good_is_resumed_by_the_next_run(
    file_host: FileHost, half_files: Callable[[], list[str]], cached_files: Callable[[], list[str]]
) -> None:
    url = file_host.add(NAMED, BODY, cuts(3 * CHUNK), fails(503), fails(503))
    with pytest.raises(WeightsNotFoundError, match=r"HTTP 503 .*\(3 attempts\)"):
        hub.fetch_url(url)
    assert cached_files() == []
    assert hub.fetch_url(url).read_bytes() == BODY
    assert file_host.requests[-1][2]["Range"] == f"bytes={3 * CHUNK}-"
    assert half_files() == []


UNRELIABLE = [{"ETag": 'W/"weak"'}, {"ETag": "bare"}, {"ETag": '""'}, {"ETag": '"a" "b"'}]
UNRELIABLE.append({"ETag": "", "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"})


@pytest.mark.parametrize("headers", UNRELIABLE, ids=str)
def test_without_a_reliable_tag_nothing_is_resumed(
    file_host: FileHost, half_files: Callable[[], list[str]], headers: dict[str, str]
) -> None:
    url = file_host.add("/x.pth", BODY, *[cuts(300_000, **headers)] * 3)
    with pytest.raises(WeightsNotFoundError, match="cut off"):
        hub.fetch_url(url)
    assert half_files() == []
    assert hub.fetch_url(url).read_bytes() == BODY
    assert not any("Range" in headers for _, _, headers in file_host.requests)


@pytest.mark.parametrize("headers", UNRELIABLE, ids=str)
def test_a_known_hash_is_a_reason_to_resume_without_a_tag(
    file_host: FileHost, headers: dict[str, str]
) -> None:
    url = file_host.add(NAMED, BODY, cuts(300_000, **headers), ranged(**headers))
    assert hub.fetch_url(url).read_bytes() == BODY
    again = file_host.requests[1][2]
    assert (again["Range"], "If-Range" in again) == ("bytes=262144-", False)


def test_a_file_that_changed_meanwhile_is_not_glued_together(file_host: FileHost) -> None:
    new = whole_checkpoint(300_000)

    url = file_host.add("/plain.pth", BODY, cuts(100_000))
    old = file_host.script["/plain.pth"].pop()

    def cut_then_change(handler: Handler, body: bytes) -> None:
        old(handler, body)
        file_host.files["/plain.pth"] = new

    file_host.script["/plain.pth"] = [cut_then_change, ranged()]
    assert hub.fetch_url(url).read_bytes() == new


def test_a_spoiled_beginning_is_thrown_away_once(file_host: FileHost, weights_home: Path) -> None:
    url = file_host.add(NAMED, BODY)
    path = weights_home / "weights" / cache.relative_place(url)
    part = cache.part_of(path)
    part.parent.mkdir(parents=True)
    part.write_bytes(b"\0" * 5000)  # what a power cut leaves
    part.with_name(part.name + ".json").write_text(NOTES)
    assert hub.fetch_url(url).read_bytes() == BODY
    assert file_host.count(NAMED) == 2


def test_a_beginning_longer_than_the_file_is_thrown_away(
    file_host: FileHost, weights_home: Path
) -> None:
    url = file_host.add(NAMED, BODY)
    part = cache.part_of(weights_home / "weights" / cache.relative_place(url))
    part.parent.mkdir(parents=True)
    part.write_bytes(BODY + b"more")
    part.with_name(part.name + ".json").write_text(NOTES)
    assert hub.fetch_url(url).read_bytes() == BODY


def test_a_slow_host_that_gets_there_is_waited_for(file_host: FileHost) -> None:
    def drips(handler: Handler, body: bytes) -> None:
        handler.head(200, Content_Length=str(len(body)))
        for start in range(0, len(body), 1 << 18):
            time.sleep(0.05)
            handler.wfile.write(body[start : start + (1 << 18)])

    assert hub.fetch_url(file_host.add(NAMED, BODY, drips)).read_bytes() == BODY


@pytest.mark.parametrize("at", [0, 1000], ids=["before the answer", "within the file"])
def test_a_host_that_goes_quiet_is_given_up(
    file_host: FileHost, patience: Callable[..., None], at: int
) -> None:
    patience(read_seconds=0.1, attempts=2)
    url = file_host.add(NAMED, BODY, stalls(at), stalls(at))
    with pytest.raises(WeightsNotFoundError, match=r"timed out \(2 attempts\)"):
        hub.fetch_url(url)


def test_429_waits_as_long_as_it_is_told(
    file_host: FileHost,
) -> None:
    url = file_host.add(NAMED, BODY, fails(429, Retry_After="1"))
    begun = time.monotonic()
    hub.fetch_url(url)
    assert 1.0 <= time.monotonic() - begun < 4
    assert file_host.count(NAMED) == 2


def test_retry_after_may_be_a_date(file_host: FileHost) -> None:
    past = formatdate(time.time() - 60, usegmt=True)
    url = file_host.add(NAMED, BODY, fails(503, Retry_After=past), fails(503, Retry_After="soon"))
    assert hub.fetch_url(url).read_bytes() == BODY


def test_a_host_that_asks_for_too_long_a_wait_is_given_up(file_host: FileHost) -> None:
    url = file_host.add(NAMED, BODY, fails(429, Retry_After="100000"))
    with pytest.raises(WeightsNotFoundError, match=r"HTTP 429 .*asks to wait 100000 s"):
        hub.fetch_url(url)
    assert file_host.count(NAMED) == 1


def test_500_is_asked_again(file_host: FileHost) -> None:
    url = file_host.add(NAMED, BODY, fails(500), fails(502))
    assert hub.fetch_url(url).read_bytes() == BODY
    assert file_host.count(NAMED) == 3


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_404_is_not_asked_again(
    file_host: FileHost,
    status: int,
    half_files: Callable[[], list[str]],
    cached_files: Callable[[], list[str]],
) -> None:
    url = file_host.add(NAMED, BODY, fails(status))
    with pytest.raises(WeightsNotFoundError, match=f"HTTP {status}"):
        hub.fetch_url(url)
    assert file_host.count(NAMED) == 1
    assert cached_files() == half_files() == []


def test_what_cannot_be_had_says_where_to_put_it_by_hand(
    file_host: FileHost, weights_home: Path
) -> None:
    url = f"{file_host.origin}/gone.pth"
    goal = weights_home / "weights" / cache.relative_place(url)
    with pytest.raises(WeightsNotFoundError, match="one place was tried") as caught:
        hub.fetch_url(url)
    assert f"{url}: HTTP 404" in str(caught.value)
    assert f"save it as {goal}" in str(caught.value)
    goal.write_bytes(BODY)  # its folder is there already
    assert hub.fetch_url(url) == goal


def test_a_redirect_is_followed(file_host: FileHost) -> None:
    file_host.add("/cdn/blob", BODY)
    url = file_host.add(NAMED, b"", moved("/cdn/blob"))
    path = hub.fetch_url(url)
    assert path.read_bytes() == BODY
    assert path.name == NAMED.rpartition("/")[2]


def test_nobody_at_the_door() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(
        WeightsNotFoundError, match=r"refused \(2 attempts\)[^!]*TRUNKLINE_OFFLINE=1"
    ):
        hub.fetch_url(f"http://127.0.0.1:{port}/x.pth")


def test_a_login_page_is_not_a_file(
    file_host: FileHost, cached_files: Callable[[], list[str]]
) -> None:
    def page(handler: Handler, _: bytes) -> None:
        handler.reply(200, b"<!DOCTYPE html>\n<title lang=en>Log\n in</title>")

    said = r"answered with an HTML page titled 'Log in', not with a file; is there a login"
    with pytest.raises(WeightsNotFoundError, match=said):
        hub.fetch_url(file_host.add("/x.pth", BODY, page))
    assert cached_files() == []


@pytest.mark.parametrize("tag", ["", '"a"'])
def test_an_endless_file_ends(
    file_host: FileHost,
    patience: Callable[..., None],
    half_files: Callable[[], list[str]],
    tag: str,
) -> None:
    patience(max_bytes=1 << 19)

    def endless(handler: Handler, body: bytes) -> None:
        handler.head(200, Connection="close", ETag=tag)
        handler.close_connection = True
        with contextlib.suppress(OSError):
            handler.wfile.write(body)

    with pytest.raises(WeightsNotFoundError, match="refused: more than the 524288 bytes"):
        hub.fetch_url(file_host.add("/a.pth", BODY, endless))
    with pytest.raises(WeightsNotFoundError, match="refused: 1048576 bytes, more than 524288"):
        hub.fetch_url(file_host.add("/b.pth", BODY))
    assert half_files() == []


def test_a_url_is_shown_without_its_secrets(file_host: FileHost) -> None:
    url = file_host.origin.replace("//", "//ann:secret@") + "/gone.pth?signature=secret"
    with pytest.raises(WeightsNotFoundError, match=r"gone.pth") as caught:
        hub.fetch_url(url)
    assert "secret" not in str(caught.value)
