"""Files of Hugging Face repositories, from an endpoint on 127.0.0.1."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from loopback import Answer, Handler, LoopbackHub, cuts, fails, whole_checkpoint

from trunkline.errors import (
    CheckpointError,
    ConfigError,
    IntegrityError,
    OfflineError,
    WeightsNotFoundError,
)
from trunkline.weights import hub
from trunkline.weights.catalog import Place
from trunkline.weights.files import cache, huggingface
from trunkline.weights.files.places import TypedPlace

pytestmark = pytest.mark.usefixtures("weights_home")

BODY = whole_checkpoint(1 << 20)
MAIN, PINNED = whole_checkpoint(128), whole_checkpoint(132)
SHA256 = hashlib.sha256(BODY).hexdigest()


def place(url: str, **known: str) -> Place:
    return Place(url=url, layout="trunkline", **known)


def test_a_file_of_the_hub(
    loopback_hub: LoopbackHub, weights_home: Path, half_files: Callable[[], list[str]]
) -> None:
    address = loopback_hub.add_file("timm/dla34.in1k", "model.safetensors", BODY)
    found = hub.obtain([TypedPlace(url=address)])
    goal = weights_home / "weights/hf/timm/dla34.in1k/main/model.safetensors"
    assert found.path == goal
    assert goal.read_bytes() == BODY
    assert found.known_by == cache.HUB_RECORD
    assert hub.fetch_hf(address) == goal
    assert loopback_hub.gets("model.safetensors") == 1
    assert half_files() == []


def test_a_place_of_the_catalog_on_the_hub(loopback_hub: LoopbackHub) -> None:
    address = loopback_hub.add_file("timm/dla34.in1k", "model.safetensors", BODY)
    assert hub.fetch([place(address)]).read_bytes() == BODY


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["pytorch_model.bin", "model.safetensors", "config.json"], "model.safetensors"),
        (["pytorch_model.bin", "tf_model.h5"], "pytorch_model.bin"),
    ],
)
def test_a_repository_means_its_usual_file(
    loopback_hub: LoopbackHub, files: list[str], chosen: str
) -> None:
    for file in files:
        loopback_hub.add_file("facebook/regnet-y-040", file, BODY + file.encode())
    path = hub.fetch_hf("hf://facebook/regnet-y-040")
    assert path.name == chosen
    asked = len(loopback_hub.requests)
    assert hub.fetch_hf("hf://facebook/regnet-y-040") == path
    assert len(loopback_hub.requests) == asked


def test_a_repository_without_a_usual_file_lists_what_it_has(loopback_hub: LoopbackHub) -> None:
    for number in range(12):
        loopback_hub.add_file("o/r", f"part-{number:02}.bin", b"x")
    with pytest.raises(WeightsNotFoundError, match=r"one of its 12 files: part-00.*and 2 more"):
        hub.fetch_hf("hf://o/r")


def test_revisions_are_kept_apart(loopback_hub: LoopbackHub) -> None:
    main = loopback_hub.add_file("o/r", "model.safetensors", MAIN)
    pinned = loopback_hub.add_file("o/r", "model.safetensors", PINNED, revision="v1")
    assert pinned == "hf://o/r/model.safetensors@v1"
    assert hub.fetch_hf(main).read_bytes() == MAIN
    assert hub.fetch_hf(pinned).read_bytes() == PINNED
    assert hub.fetch_hf("hf://o/r@v1").read_bytes() == PINNED


def test_the_hubs_own_hash_is_checked(
    loopback_hub: LoopbackHub,
    half_files: Callable[[], list[str]],
    cached_files: Callable[[], list[str]],
) -> None:
    address = loopback_hub.add_file(
        "o/r", "model.safetensors", BODY, lambda handler, body: handler.serve(b"!" + body[1:])
    )
    with pytest.raises(IntegrityError, match=rf"must be {SHA256} \(the Hub's record\)"):
        hub.fetch_hf(address)
    assert cached_files() == half_files() == []
    assert hub.fetch_hf(address).read_bytes() == BODY


def test_small_files_are_known_by_the_hash_that_git_has_of_them(loopback_hub: LoopbackHub) -> None:
    address = loopback_hub.add_file("o/r", "config.json", b"{}", large=False)
    found = hub.obtain([TypedPlace(url=address)])
    assert (found.known_by, found.sha256) == (cache.HUB_RECORD, hashlib.sha256(b"{}").hexdigest())


def test_the_hub_is_asked_again(loopback_hub: LoopbackHub) -> None:
    address = loopback_hub.add_file("o/r", "model.safetensors", BODY, fails(503), fails(500))
    assert hub.fetch_hf(address).read_bytes() == BODY
    assert loopback_hub.gets("model.safetensors") == 3


def test_the_hub_cuts_off(loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client's own pause is a whole second
    address = loopback_hub.add_file("o/r", "model.safetensors", BODY, cuts(1000))
    assert hub.fetch_hf(address).read_bytes() == BODY


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        ({"X-Error-Code": "RepoNotFound"}, 401, "no such repository, or a private one"),
        ({}, 401, "no such repository, or a private one"),
        ({"X-Error-Code": "EntryNotFound"}, 404, "no such file in the repository"),
        ({"X-Error-Code": "RevisionNotFound"}, 404, "no such revision"),
        ({"X-Error-Code": "GatedRepo"}, 403, "agree to its terms on its page"),
    ],
)
def test_why_the_hub_refuses_is_said(
    loopback_hub: LoopbackHub, headers: dict[str, str], status: int, reason: str
) -> None:
    path = "/o/r/resolve/main/model.safetensors"
    loopback_hub.add(path, BODY, fails(status, **headers))
    with pytest.raises(WeightsNotFoundError, match=f"hf://o/r/.*HTTP {status}: {reason}"):
        hub.fetch_hf("hf://o/r/model.safetensors")


def test_the_hub_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
    with pytest.raises(WeightsNotFoundError, match=r"no connection: it was refused \(2 attempts\)"):
        hub.fetch_hf("hf://o/r")


def test_the_token_goes_along(loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_for_a_test")
    hub.fetch_hf(loopback_hub.add_file("o/r", "model.safetensors", BODY))
    sent = {headers.get("Authorization") for _, _, headers in loopback_hub.requests}
    assert sent == {"Bearer hf_for_a_test"}


def test_progress_of_the_hub_is_told(
    loopback_hub: LoopbackHub, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[str, int, int | None]] = []
    address = loopback_hub.add_file("o/r", "model.safetensors", BODY)
    hub.fetch([place(address)], name="a.b", progress=lambda *values: told.append(values))
    assert told[-1] == ("a.b", len(BODY), len(BODY))
    assert capfd.readouterr() == ("", "")


def in_hub_cache(repo: str, file: str, body: bytes, *, name: str | None = None) -> Path:
    root = Path(os.environ["HF_HUB_CACHE"], f"models--{repo.replace('/', '--')}")
    blob = root / "blobs" / (name or hashlib.sha256(body).hexdigest())
    for parent in (root / "refs", blob.parent, root / "snapshots" / "abc"):
        parent.mkdir(parents=True)
    (root / "refs" / "main").write_text("abc")
    blob.write_bytes(body)
    (root / "snapshots" / "abc" / file).symlink_to(blob)
    return blob


def test_the_hubs_own_cache_serves_too(
    monkeypatch: pytest.MonkeyPatch,
    cached_files: Callable[[], list[str]],
    flip: Callable[[Path], None],
) -> None:
    monkeypatch.setenv("TRUNKLINE_OFFLINE", "1")
    blob = in_hub_cache("o/r", "model.safetensors", BODY)
    assert hub.fetch_hf("hf://o/r") == blob
    flip(blob)
    with pytest.raises(OfflineError, match="is not on this machine"):
        hub.fetch_hf("hf://o/r")
    assert cached_files() == []


def test_a_file_of_the_hubs_cache_without_a_sha256_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRUNKLINE_OFFLINE", "1")
    in_hub_cache("o/r", "model.safetensors", BODY, name="a" * 40)
    with pytest.raises(OfflineError, match="is not on this machine"):
        hub.fetch_hf("hf://o/r")


@pytest.mark.parametrize(
    "address",
    [
        "hf://repo",
        "hf://o/r/../x",
        "hf://o/r/x@",
        "hf://../r",
        "hf://o/r//x",
        "o/r",
        "hf://o/r/x@..",
    ],
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ConfigError, match="is no address on the Hub; write hf://OWNER/REPO"):
        hub.fetch_hf(address)


@pytest.mark.parametrize(
    "address", ["hf://o/r", "hf://o/r@v1", "hf://o/r/a/b.bin", "hf://o/r/x.bin@refs/pr/1"]
)
def test_addresses_are_read_and_written_alike(address: str) -> None:
    assert str(huggingface.parse(address)) == address


# What a Hub, or a mirror of one, tells of its files.

REPO = "/o/r/resolve/main/"
LISTING = "/api/models/o/r/revision/main"


def tells(body: bytes, **headers: str) -> Answer:
    """Answer as a Hub does, in chunks: nothing but the headers says how long it is."""

    def answer(handler: Handler, _: bytes) -> None:
        handler.head(200, X_Repo_Commit="c" * 40, Transfer_Encoding="chunked", **headers)
        handler.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))

    return answer


def test_the_tag_of_the_storage_is_not_the_hubs(loopback_hub: LoopbackHub) -> None:
    address = loopback_hub.add_file(
        "o/r",
        "model.safetensors",
        BODY,
        lambda handler, body: handler.serve(body, ETag=f'"{"0" * 64}"'),
    )
    assert hub.fetch_hf(address).read_bytes() == BODY


@pytest.mark.parametrize("tag", [hashlib.sha1(b"{}").hexdigest(), "d" * 32, "W/x", ""])  # noqa: S324
def test_a_tag_of_a_mirror_that_is_no_hash_of_the_hub_proves_nothing(
    loopback_hub: LoopbackHub, tag: str
) -> None:
    loopback_hub.add(f"{REPO}config.json", b"", tells(b"{}", ETag=f'"{tag}"', X_Linked_Size="2"))
    found = hub.obtain([TypedPlace(url="hf://o/r/config.json")])
    assert found.known_by == cache.FIRST_SEEN


@pytest.mark.parametrize("size", ["1", "3", "20"])
def test_a_file_of_another_length_than_the_hub_says_is_refused(
    loopback_hub: LoopbackHub, cached_files: Callable[[], list[str]], size: str
) -> None:
    answers = [tells(b"{}", ETag='"x"', X_Linked_Size=size)] * 2
    loopback_hub.add(f"{REPO}config.json", b"", *answers)
    with pytest.raises(WeightsNotFoundError, match=f"cut off at 2 of {size} bytes"):
        hub.fetch_hf("hf://o/r/config.json")
    assert cached_files() == []


def test_a_small_file_that_is_not_what_git_keeps_must_be_whole(
    loopback_hub: LoopbackHub, cached_files: Callable[[], list[str]]
) -> None:
    loopback_hub.add(f"{REPO}config.json", b"", *[tells(b'{"a": ')] * 2)
    with pytest.raises(CheckpointError, match="it is no whole JSON object"):
        hub.fetch_hf("hf://o/r/config.json")
    assert cached_files() == []


@pytest.mark.parametrize(
    ("listing", "said"),
    [
        (b"[" * 10**5, "lists no files"),
        (b'{"siblings": 1}', "lists no files"),
        (b'{"siblings": [{"rfilename": 1}]}', "lists no files"),
        (b'{"siblings": [{}]}', "lists no files"),
        (b"<html>", "lists no files"),
        (b"", "lists no files"),
        (b"{}", "has neither model.safetensors nor pytorch_model.bin"),
        (b" " * (16 << 20) + b"{}", "its list of files has over 16777216 bytes"),
    ],
    ids=range(8),
)
def test_a_listing_that_is_none_is_said(
    loopback_hub: LoopbackHub, listing: bytes, said: str
) -> None:
    loopback_hub.add(LISTING, b"", tells(listing))
    with pytest.raises(WeightsNotFoundError, match=f"hf://o/r: .*{said}"):
        hub.fetch_hf("hf://o/r")


def test_a_listing_that_is_cut_off_is_asked_for_again(loopback_hub: LoopbackHub) -> None:
    listing = json.dumps({"siblings": [{"rfilename": "model.safetensors"}]}).encode()
    loopback_hub.add(LISTING, listing, cuts(20))
    loopback_hub.add(f"{REPO}model.safetensors", BODY)
    assert hub.fetch_hf("hf://o/r").read_bytes() == BODY
    assert loopback_hub.count(LISTING) == 2


def test_what_the_hub_says_of_a_status_is_passed_on(loopback_hub: LoopbackHub) -> None:
    disabled = fails(403, X_Error_Message="Access to this resource is disabled.")
    loopback_hub.add(f"{REPO}model.safetensors", BODY, disabled)
    with pytest.raises(WeightsNotFoundError, match=r"HTTP 403: Access to this resource is disab"):
        hub.fetch_hf("hf://o/r/model.safetensors")


def test_a_token_may_be_kept_from_the_hub(
    loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_for_a_test")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    hub.fetch_hf(loopback_hub.add_file("o/r", "model.safetensors", BODY))
    assert {headers.get("Authorization") for _, _, headers in loopback_hub.requests} == {None}


@pytest.mark.parametrize("ref", [b"\xff\xfe", b"../../x", b""])
def test_a_damaged_ref_in_the_hubs_own_cache_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, ref: bytes
) -> None:
    monkeypatch.setenv("TRUNKLINE_OFFLINE", "1")
    blob = in_hub_cache("o/r", "model.safetensors", BODY)
    (blob.parents[1] / "refs" / "main").write_bytes(ref)
    with pytest.raises(OfflineError, match="is not on this machine"):
        hub.fetch_hf("hf://o/r")
