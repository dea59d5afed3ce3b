"""What breaks around a run: files, disks, workers, networks, other runs, and the run itself."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from image_sources import write_photos
from kill_and_resume import (
    Conditions,
    Trial,
    command,
    done_shards,
    finish,
    leftovers,
    living,
    start,
    wait_for,
)
from loopback import Answer, FileHost, stalls
from store_files import data_files

from trunkline import Backbone, deploy
from trunkline.errors import OutputError
from trunkline.extraction import durable
from trunkline.extraction.extracting import extract
from trunkline.extraction.parquet_files import ParquetFiles, TableWriter
from trunkline.extraction.reports import ExtractReport
from trunkline.extraction.store import Store
from trunkline.preprocessing import IMAGENET

COUNT = 12
posix = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """Twelve photos that can be read."""
    return write_photos(tmp_path / "photos", COUNT, bad_every=0)


@pytest.fixture(scope="module")
def backbone(families: dict[str, Any]) -> Backbone:
    """A tiny network of one level."""
    built: Backbone = families["resnet-basic"].build(return_idx=(3,))
    return built


@pytest.fixture(scope="module")
def runner(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network, saved for runs that start without PyTorch."""
    deployed = deploy(backbone, "onnxruntime", "fp32", (4, 32, 32), True, threads=1)
    return deployed.save(tmp_path_factory.mktemp("saved") / "runner")


@pytest.fixture
def host() -> Iterator[FileHost]:
    """A web server on this machine."""
    served = FileHost()
    yield served
    served.close()


def run(src: Path, out: Path, network: Any, **options: Any) -> ExtractReport:
    """Extract with what keeps tests fast, unless told otherwise."""
    fixed = {"runtime": "torch", "batch_size": 4, "workers": 1, "threads": 1, "shard_size": 4}
    return extract(src, out, network, preprocessing=IMAGENET.with_size(32), **{**fixed, **options})


def listed(tmp_path: Path, *places: str | Path) -> Path:
    """Write a list of images."""
    path = tmp_path / "images.txt"
    path.write_text("".join(f"{place}\n" for place in places))
    return path


def rows(out: Path) -> list[dict[str, Any]]:
    """Return the table of a store without its vectors."""
    table = pq.read_table(out)
    found: list[dict[str, Any]] = table.select(
        [name for name in table.column_names if "stride" not in name]
    ).to_pylist()
    return found


def test_source_files_that_change_after_listing(
    src: Path, backbone: Backbone, tmp_path: Path
) -> None:
    out = tmp_path / "f.parquet"
    run(src, out, backbone, shard=(0, 3))  # freezes the whole listing, computes 0 to 3
    (src / "00004.jpg").unlink()
    whole = (src / "00005.jpg").read_bytes()
    (src / "00005.jpg").write_bytes(whole[:200])
    (src / "00006.jpg").write_bytes((src / "00006.jpg").read_bytes() + b"more" * 100)
    shutil.copy(src / "00000.jpg", src / "00007.jpg")
    (src / "00001.jpg").write_bytes(b"")  # in a shard that is finished
    shutil.copy(src / "00000.jpg", src / "00004b.jpg")  # after the listing
    report = run(src, out, backbone)
    assert (report.images, report.failed, report.complete) == (8, 2, True)
    found = {row["key"]: row for row in rows(out)}
    assert list(found) == [f"{number:05d}.jpg" for number in range(COUNT)]
    assert found["00004.jpg"]["sha256"] is None
    assert "No such file" in found["00004.jpg"]["error"]
    assert found["00005.jpg"]["status"] == "failed"
    assert found["00005.jpg"]["sha256"] == hashlib.sha256(whole[:200]).hexdigest()
    for name in ("00006.jpg", "00007.jpg"):
        assert found[name]["status"] == "ok"
        assert found[name]["sha256"] == hashlib.sha256((src / name).read_bytes()).hexdigest()
    assert found["00001.jpg"]["status"] == "ok"


def test_a_place_that_cannot_be_written(src: Path, backbone: Backbone, tmp_path: Path) -> None:
    parent = tmp_path / "file"
    parent.write_text("no folder")
    with pytest.raises(OutputError, match=r"f\.parquet cannot be written: .*same command again"):
        run(src, parent / "f.parquet", backbone)
    assert parent.read_text() == "no folder"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(src: Path, backbone: Backbone, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(OutputError, match="Permission denied; make room or set its permissions"):
        run(src, folder / "f.parquet", backbone)


@pytest.mark.parametrize("name", ["part-00001.parquet", "00001.json"])
def test_a_full_disk(
    src: Path, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    whole, out = tmp_path / "whole.parquet", tmp_path / "f.parquet"
    run(src, whole, backbone)
    sync = durable.sync

    def full(path: Path) -> None:
        if path.name.startswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "sync", full)
        with pytest.raises(OutputError, match="cannot be written: No space left on device; make"):
            run(src, out, backbone)
    assert [one.shard for one in Store(out).records()] == [0]
    assert leftovers(out) == []
    assert active_children() == []
    again = run(src, out, backbone)
    assert (again.shards_before, again.shards, again.complete) == (1, 2, True)
    assert data_files(out) == data_files(whole)


def test_a_shard_never_lacks_a_block(
    src: Path, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that refuses one block and takes the next ones."""
    append, out, calls = TableWriter.append, tmp_path / "f.parquet", []

    def refuses_once(self: TableWriter, table: Any) -> None:
        calls.append(len(table))
        if len(calls) == 1:
            time.sleep(0.5)  # until the others are waiting
            with durable.writing(self.target):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, table)

    monkeypatch.setattr(ParquetFiles, "block_size", 4)
    with monkeypatch.context() as patch:
        patch.setattr(TableWriter, "append", refuses_once)
        with pytest.raises(OutputError, match="No space left on device"):
            run(src, out, backbone, shard_size=COUNT)
    assert calls == [4]
    assert list(Store(out).records()) == []
    assert list(out.iterdir()) == []
    assert run(src, out, backbone, shard_size=COUNT).complete
    assert len(rows(out)) == COUNT


def test_runs_into_one_store_share_the_work(src: Path, backbone: Backbone, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.parquet", tmp_path / "f.parquet"
    run(src, whole, backbone, shard_size=1)
    with ThreadPoolExecutor(2) as both:
        futures = [both.submit(run, src, out, backbone, shard_size=1) for _ in range(2)]
        reports = [one.result() for one in futures]
    assert sum(one.shards for one in reports) == COUNT
    assert sum(one.images for one in reports) == COUNT
    assert any(one.complete for one in reports)
    assert data_files(out) == data_files(whole)
    assert leftovers(out) == []


@posix
def test_processes_into_one_store_share_the_work(src: Path, tmp_path: Path, runner: Path) -> None:
    out = tmp_path / "f.parquet"
    arguments = command(src, out, runner, "--shard-size", "1")
    with ThreadPoolExecutor(2) as both:
        reports: list[dict[str, Any]] = list(both.map(finish, [arguments, arguments]))
    assert sum(one["shards"] for one in reports) == COUNT
    assert [row["status"] for row in rows(out)] == ["ok"] * COUNT
    assert leftovers(out) == []


def hangs_until(released: threading.Event, seen: threading.Event) -> Answer:
    """Serve a file only once told to."""

    def answer(handler: Any, body: bytes) -> None:
        seen.set()
        released.wait(90)
        handler.serve(body)

    return answer


@posix
@pytest.mark.parametrize("times", [1, 2])
def test_a_worker_that_dies(
    src: Path, backbone: Backbone, tmp_path: Path, host: FileHost, times: int
) -> None:
    content, over = (src / "00000.jpg").read_bytes(), threading.Event()
    seen = [threading.Event() for _ in range(times)]
    url = host.add("/0.jpg", content, *(hangs_until(over, one) for one in seen))
    source = listed(tmp_path, url, *sorted(src.iterdir())[1:])
    with ThreadPoolExecutor(1) as aside:
        running = aside.submit(run, source, tmp_path / "f.parquet", backbone)
        for one in seen:  # the only worker waits for that file
            assert one.wait(90)
            (worker,) = active_children()
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
        report = running.result(120)
    over.set()
    first, *others = rows(tmp_path / "f.parquet")
    assert (report.images, report.complete) == (COUNT, True)
    assert {row["status"] for row in others} == {"ok"}
    if times == 1:  # tried again, read
        assert first["sha256"] == hashlib.sha256(content).hexdigest()
        assert report.failed == 0
    else:
        assert f"the process that decoded {url} died (exit code -9)" in first["error"]
        assert "out of memory" in first["error"]
        assert report.failed == 1


def test_a_host_that_never_answers(
    src: Path, backbone: Backbone, tmp_path: Path, host: FileHost
) -> None:
    url = host.add("/0.jpg", b"", stalls(), stalls(), stalls())
    source = listed(tmp_path, url, *sorted(src.iterdir())[1:])
    report = run(source, tmp_path / "f.parquet", backbone, timeout_seconds=1)
    first, *others = rows(tmp_path / "f.parquet")
    assert (report.images, report.failed, report.complete) == (COUNT, 1, True)
    assert f"{url} was not read and decoded within 1 s; its process was ended" in first["error"]
    assert {row["status"] for row in others} == {"ok"}


@posix
@pytest.mark.parametrize("to_all", [False, True], ids=["main", "group"])
def test_sigterm_ends_a_run_that_can_be_resumed(
    src: Path, tmp_path: Path, runner: Path, host: FileHost, to_all: bool
) -> None:
    content, seen = (src / "00000.jpg").read_bytes(), threading.Event()
    photos = sorted(src.iterdir())
    url = host.add("/0.jpg", content, hangs_until(threading.Event(), seen))
    source = listed(tmp_path, *photos[:6], url, *photos[7:])
    out = tmp_path / "f.parquet"
    options = ["--shard-size", "4", "--timeout", "2"]
    process = start(command(source, out, runner, *options))
    try:
        assert seen.wait(90)  # a worker waits for the 7th image, of the second shard
        wait_for(lambda: done_shards(out) == 1, "the first shard is not written", 90)
        (os.killpg if to_all else os.kill)(process.pid, signal.SIGTERM)
        printed, errors = process.communicate(timeout=90)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Stopping after this batch; once more ends it at once." in errors
    assert '"stopped": true' in printed
    assert done_shards(out) == 1
    wait_for(lambda: not living(process.pid), "workers outlived their run")
    assert leftovers(out) == []
    report = finish(command(source, out, runner, *options))
    assert (report["shards_before"], report["failed"], report["complete"]) == (1, 0, True)
    assert {row["status"] for row in rows(out)} == {"ok"}


@posix
def test_killed_runs_go_on(tmp_path: Path) -> None:
    summary = Trial(tmp_path, Conditions(images=60, source="tar")).run(3)
    assert (summary.kills, summary.rows, summary.failed) == (3, 60, 1)
