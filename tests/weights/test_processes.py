"""Several processes at once, processes that are killed, and disks that refuse."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loopback import FileHost, Handler, LoopbackHub, stalls, whole_checkpoint

from trunkline.errors import (
    OutputError,
    WeightsError,
)
from trunkline.weights import hub
from trunkline.weights.files import cache, download

pytestmark = pytest.mark.usefixtures("weights_home")

BODY = whole_checkpoint(1 << 20)
SHA256 = hashlib.sha256(BODY).hexdigest()
NAMED = f"/models/tiny-{SHA256[:8]}.pth"


# Several processes, and processes that die.

CHILD = """
import dataclasses, sys
from trunkline.weights import hub
from trunkline.weights.files import patience
patience.PATIENCE = dataclasses.replace(patience.PATIENCE, backoff_seconds=0.01, read_seconds=20)
print(hub.fetch_url(sys.argv[1]) if sys.argv[1].startswith("http") else hub.fetch_hf(sys.argv[1]))
"""


def child(url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lingers(handler: Handler, body: bytes) -> None:
    time.sleep(1.0)  # so that the others come meanwhile
    handler.serve(body)


def test_8_processes_at_once_download_once(file_host: FileHost) -> None:
    url = file_host.add(NAMED, BODY, lingers)
    children = [child(url) for _ in range(8)]
    outputs = [one.communicate(timeout=60) for one in children]
    assert [one.returncode for one in children] == [0] * 8, outputs
    assert len({out for out, _ in outputs}) == 1
    assert Path(outputs[0][0].strip()).read_bytes() == BODY
    assert file_host.count(NAMED) == 1


def test_8_threads_at_once_download_once(loopback_hub: LoopbackHub) -> None:
    from concurrent.futures import ThreadPoolExecutor

    address = loopback_hub.add_file("o/r", "model.safetensors", BODY)
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(hub.fetch_hf, [address] * 8))
    assert len(paths) == 1
    assert loopback_hub.gets("model.safetensors") == 1


def killed_half_way(url: str, arrived: Callable[[], bool]) -> None:
    process = child(url)
    for _ in range(600):
        if arrived() or process.poll() is not None:
            break
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()
    process.kill()
    process.communicate()


def test_a_process_killed_half_way_leaves_no_harm(
    file_host: FileHost,
    weights_home: Path,
    half_files: Callable[[], list[str]],
    cached_files: Callable[[], list[str]],
) -> None:
    big = whole_checkpoint(3 << 20)
    url = file_host.add("/x.pth", big, stalls(2 << 20))
    part = cache.part_of(weights_home / "weights" / cache.relative_place(url))
    killed_half_way(url, lambda: part.is_file() and part.stat().st_size > 0)
    assert cached_files() == []
    assert hub.fetch_url(url).read_bytes() == big
    assert half_files() == []


def test_a_process_killed_half_way_on_the_hub(
    loopback_hub: LoopbackHub,
    half_files: Callable[[], list[str]],
    cached_files: Callable[[], list[str]],
) -> None:
    big = whole_checkpoint(3 << 20)
    address = loopback_hub.add_file("o/r", "model.safetensors", big, stalls(2 << 20))
    killed_half_way(address, lambda: loopback_hub.gets("model.safetensors") > 0)
    assert cached_files() == []
    assert hub.fetch_hf(address).read_bytes() == big
    assert half_files() == []


def test_waiting_for_another_process_ends(
    file_host: FileHost, patience: Callable[..., None]
) -> None:
    from filelock import FileLock

    patience(lock_seconds=0.1)
    url = file_host.add("/x.pth", BODY)
    digest = hashlib.sha256(url.encode()).hexdigest()[:32]
    locks = cache.weights_home() / ".locks"
    locks.mkdir(parents=True)
    with (
        FileLock(locks / f"{digest}.lock"),
        pytest.raises(WeightsError, match=r"another process has been getting .*x\.pth for 0 s"),
    ):
        hub.fetch_url(url)


# Disks that refuse.


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_seen_before_the_download(
    file_host: FileHost, half_files: Callable[[], list[str]]
) -> None:
    url = file_host.add(NAMED, BODY)
    with pytest.raises(
        OutputError, match=r"1048576 bytes are needed, 1000 are free.*TRUNKLINE_HOME"
    ):
        hub.fetch_url(url)
    assert half_files() == []


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_on_the_hub(
    loopback_hub: LoopbackHub, half_files: Callable[[], list[str]]
) -> None:
    address = loopback_hub.add_file("o/r", "model.safetensors", BODY)
    with pytest.raises(OutputError, match="1048576 bytes are needed, 1000 are free"):
        hub.fetch_hf(address)
    assert half_files() == []


def test_a_disk_that_fills_up_keeps_no_half_file(
    file_host: FileHost, monkeypatch: pytest.MonkeyPatch, half_files: Callable[[], list[str]]
) -> None:
    class Full(io.BytesIO):
        def write(self, _: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(download, "open", lambda *_: Full(), raising=False)
    with pytest.raises(OutputError, match="No space left on device"):
        hub.fetch_url(file_host.add(NAMED, BODY))
    assert half_files() == []


def test_a_home_that_cannot_be_written_is_said(
    file_host: FileHost, monkeypatch: pytest.MonkeyPatch, walled: Path
) -> None:
    monkeypatch.setenv("TRUNKLINE_HOME", str(walled))
    with pytest.raises(OutputError, match=r"cannot write weights into .*set TRUNKLINE_HOME"):
        hub.fetch_url(file_host.add(NAMED, BODY))


def test_a_read_only_cache_still_serves(
    file_host: FileHost, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = file_host.add("/x.pth", BODY)
    path = hub.fetch_url(url)
    cache.record_file(path).unlink()

    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "read-only")

    monkeypatch.setattr(cache, "write_atomically", refuse)
    assert hub.fetch_url(url) == path
    assert "cannot record the hash" in caplog.text


def test_an_interrupted_record_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="broken disk"):
        cache.write_atomically(tmp_path / "x.json", "{}")
    assert list(tmp_path.iterdir()) == []
