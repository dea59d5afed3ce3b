"""Folders for machines without network, and looking whether all is still what it was."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from loopback import FileHost, LoopbackHub, whole_checkpoint

from trunkline.errors import (
    CheckpointError,
    IntegrityError,
    OutputError,
)
from trunkline.weights import hub
from trunkline.weights.catalog import Place
from trunkline.weights.files import cache, folder

pytestmark = pytest.mark.usefixtures("weights_home")

BODY = whole_checkpoint(1 << 20)
SHA256 = hashlib.sha256(BODY).hexdigest()
NAMED = f"/models/tiny-{SHA256[:8]}.pth"


def place(url: str, **known: str) -> Place:
    return Place(url=url, layout="trunkline", **known)


# Folders for machines without network.


@dataclasses.dataclass(frozen=True)
class Row:
    variant: str
    tag: str
    places: tuple[Place, ...]


@pytest.fixture
def row(file_host: FileHost) -> Row:
    known = place(file_host.add("/dla34.pth", BODY), sha256=SHA256)
    return Row("dla34", "timm-in1k", (known,))


@pytest.fixture
def by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    where = tmp_path / "by-hand"
    where.mkdir()
    monkeypatch.setenv("TRUNKLINE_WEIGHTS", str(where))
    return where


def test_pull_to_a_folder_serves_elsewhere(
    row: Row,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    flip: Callable[[Path], None],
) -> None:
    target = tmp_path / "stick"
    (file,) = hub.pull([row], to=target)
    assert file.path == target / "dla34.timm-in1k.pth"
    assert (target / "SHA256SUMS").read_text() == f"{SHA256}  dla34.timm-in1k.pth\n"
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=target, check=True)  # noqa: S607
    assert sorted(path.name for path in target.iterdir()) == ["SHA256SUMS", "dla34.timm-in1k.pth"]
    monkeypatch.setenv("TRUNKLINE_HOME", str(tmp_path / "another machine"))
    monkeypatch.setenv("TRUNKLINE_WEIGHTS", str(target))
    monkeypatch.setenv("TRUNKLINE_OFFLINE", "1")
    request.getfixturevalue("no_sockets")
    assert hub.fetch(row.places, name="dla34.timm-in1k") == file.path
    flip(file.path)
    with pytest.raises(IntegrityError, match=r"dla34.timm-in1k.pth .*\(SHA256SUMS\).*its line"):
        hub.fetch(row.places, name="dla34.timm-in1k")


def test_pull_again_copies_nothing_and_mends_what_changed(
    row: Row, tmp_path: Path, flip: Callable[[Path], None]
) -> None:
    (file,) = hub.pull([row], to=tmp_path / "stick")
    before = file.path.stat().st_mtime_ns
    hub.pull([row], to=tmp_path / "stick")
    assert file.path.stat().st_mtime_ns == before
    flip(file.path)
    hub.pull([row], to=tmp_path / "stick")
    assert file.path.read_bytes() == BODY


def test_pull_without_a_folder_fills_the_cache(row: Row, weights_home: Path) -> None:
    (file,) = hub.pull([row])
    assert weights_home in file.path.parents


def test_pull_keeps_the_lines_of_other_files(row: Row, tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").write_text(f"# mine\n\n{'A' * 64} *./other file.pth\n")
    hub.pull([row], to=tmp_path)
    assert folder.read_sums(tmp_path) == {
        "other file.pth": "a" * 64,
        "dla34.timm-in1k.pth": SHA256,
    }


def test_pull_to_a_folder_that_cannot_be_written(row: Row, walled: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*Choose another folder"):
        hub.pull([row], to=walled)


def test_a_file_put_there_by_hand_is_recorded(by_hand: Path, file_host: FileHost) -> None:
    here = place(f"{file_host.origin}/gone.pth")
    (by_hand / "dla34.own.pth").write_bytes(BODY)
    found = hub.obtain([here], name="dla34.own")
    assert (found.known_by, found.place) == (cache.FIRST_SEEN, here)
    assert folder.read_sums(by_hand) == {"dla34.own.pth": SHA256}
    assert hub.obtain([here], name="dla34.own").known_by == "SHA256SUMS"
    assert file_host.requests == []


def test_a_folder_that_is_read_only_still_serves(
    by_hand: Path,
    monkeypatch: pytest.MonkeyPatch,
    walled: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("TRUNKLINE_HOME", str(walled))
    (by_hand / "a.b.pth").write_bytes(BODY)
    assert hub.fetch([place("https://127.0.0.1/x.pth")], name="a.b").read_bytes() == BODY
    assert "cannot record the hash" in caplog.text


def test_a_file_put_there_by_hand_must_be_one_of_the_mirrors(
    by_hand: Path, flip: Callable[[Path], None]
) -> None:
    places = [
        place("https://127.0.0.1/a.pth", sha256="0" * 64),
        place("https://127.0.0.1/b.pth", sha256_prefix=SHA256[:8]),
    ]
    target = by_hand / "dla34.x.pth"
    target.write_bytes(BODY)
    assert hub.obtain(places, name="dla34.x").place == places[1]
    (by_hand / "SHA256SUMS").unlink()
    flip(target)
    with pytest.raises(IntegrityError, match=r"must be 0{64} \(the catalog\)"):
        hub.fetch(places, name="dla34.x")


@pytest.mark.parametrize(
    "relative",
    [NAMED.rpartition("/")[2], f"h.org{NAMED}"],
    ids=["a name with its hash", "the cache's own path"],
)
def test_other_names_in_the_folder(by_hand: Path, relative: str) -> None:
    target = by_hand / relative
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(BODY)
    assert hub.fetch_url(f"https://h.org{NAMED}") == target


def test_a_bare_name_that_many_files_have_is_not_taken(
    by_hand: Path, loopback_hub: LoopbackHub
) -> None:
    (by_hand / "model.safetensors").write_bytes(b"of which repository?")
    address = loopback_hub.add_file("o/r", "model.safetensors", BODY)
    assert hub.fetch_hf(address).read_bytes() == BODY


def test_files_of_the_users_own(by_hand: Path, flip: Callable[[Path], None]) -> None:
    assert hub.find_named(["dla34.safetensors"]) is None
    (by_hand / "dla34.safetensors").write_bytes(BODY)
    found = hub.find_named(["dla34.pth", "dla34.safetensors"])
    assert found is not None
    assert (found.path, found.sha256, found.place) == (by_hand / "dla34.safetensors", SHA256, None)
    flip(found.path)
    with pytest.raises(IntegrityError, match="remove its line from"):
        hub.find_named(["dla34.safetensors"])


@pytest.mark.parametrize("page", [b"", b"<html><title>Log in</title>", BODY[:-1]])
def test_what_is_no_checkpoint_is_not_listed_at_first_sight(by_hand: Path, page: bytes) -> None:
    for name in ("dla34.own.pth", "dla34.safetensors"):
        (by_hand / name).write_bytes(page)
    with pytest.raises(CheckpointError, match=r"own\.pth was not used and its hash not recorded"):
        hub.fetch([place("https://127.0.0.1/x.pth")], name="dla34.own")
    with pytest.raises(CheckpointError, match=r"34\.safetensors was not used and its hash not rec"):
        hub.find_named(["dla34.safetensors"])
    assert folder.read_sums(by_hand) == {}


def test_without_a_folder_nothing_is_found() -> None:
    assert hub.find_named(["dla34.safetensors"]) is None


@pytest.mark.parametrize("line", ["hello", f"{SHA256[:-1]}  x", f"{SHA256} x"])
def test_a_list_of_hashes_that_is_none_is_said(by_hand: Path, line: str) -> None:
    (by_hand / "SHA256SUMS").write_text(f"{SHA256}  y\n{line}\n")
    with pytest.raises(IntegrityError, match="SHA256SUMS, line 2, is not `HASH  FILE`"):
        folder.read_sums(by_hand)


def test_a_list_of_hashes_in_bytes_is_said(by_hand: Path) -> None:
    (by_hand / "SHA256SUMS").write_bytes(b"\xff\xfe")
    with pytest.raises(IntegrityError, match="SHA256SUMS cannot be read"):
        folder.read_sums(by_hand)


# Verifying everything.


def test_verify_tells_what_changed(
    file_host: FileHost, by_hand: Path, flip: Callable[[Path], None]
) -> None:
    good = hub.fetch_url(file_host.add(NAMED, BODY))
    bad = hub.fetch_url(file_host.add("/zz.pth", BODY))
    flip(bad)
    (by_hand / "unlisted.pth").write_bytes(BODY)
    (by_hand / "SHA256SUMS").write_text(f"{SHA256}  gone.pth\n")
    states = {check.path: check.state for check in hub.verify()}
    assert states == {
        good: "ok",
        bad: "changed",
        by_hand / "unlisted.pth": "unknown",
        by_hand / "gone.pth": "missing",
    }
    assert not (by_hand / "unlisted.pth.sha256").exists()
    assert list(folder.read_sums(by_hand)) == ["gone.pth"]


def test_verify_asks_names_and_the_catalog(weights_home: Path) -> None:
    root = weights_home / "weights" / "h.org"
    root.mkdir(parents=True)
    for name in (f"a-{SHA256[:8]}.pth", "b-deadbeef.pth", "c.pth", "d.pth", "e.pth"):
        (root / name).write_bytes(BODY)
    cache.record_file(root / "e.pth").write_text("{")
    checks = hub.verify([place("https://h.org/c.pth", sha256="0" * 64)])
    found = {check.path.name[0]: (check.state, check.known_by) for check in checks}
    assert found == {
        "a": ("ok", cache.FROM_NAME),
        "b": ("changed", cache.FROM_NAME),
        "c": ("changed", "the catalog"),
        "d": ("unknown", None),
        "e": ("changed", "an unreadable record"),
    }


def test_verify_of_nothing(monkeypatch: pytest.MonkeyPatch, walled: Path) -> None:
    assert hub.verify() == []
    monkeypatch.setenv("TRUNKLINE_HOME", str(walled))
    assert hub.verify() == []


def test_importing_the_library_imports_no_client() -> None:
    code = (
        "import sys, trunkline, trunkline.weights.hub\n"
        "clients = {'huggingface_hub', 'requests', 'urllib3', 'filelock', 'httpx'}\n"
        "sys.exit(', '.join(clients & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
