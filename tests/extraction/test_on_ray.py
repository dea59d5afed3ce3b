"""Shards on a Ray cluster: the same files as without it, and nothing left behind."""

from __future__ import annotations

import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from alone import passes_alone
from PIL import Image
from store_files import nameless, store_id

from trunkline import create_backbone, extract
from trunkline.errors import (
    ExtractionError,
    NotInstalledError,
    TooManyFailuresError,
    TrunklineError,
)
from trunkline.extraction.reports import ExtractReport
from trunkline.preprocessing import IMAGENET

SHARDS = 4
BAD = "05.jpg"

pytestmark = [
    # Ray's own: deprecations of its libraries, files and sockets that its shutdown leaves open.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_ray_writes_what_the_local_engine_writes() -> None:
    # In a process of its own: Ray replaces a process's signal handlers and their stack, and
    # nothing puts pytest's own back.
    name = "test_starts_and_ends_ray_and_writes_what_the_local_engine_writes"
    passes_alone(__file__, name, "cluster")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven images of noise, and a file that is none."""
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("ray") / "photos"
    folder.mkdir()
    for number in range(12):
        noise = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number:02d}.jpg")
    (folder / BAD).write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def backbone() -> Any:
    return create_backbone("regnet-x-002", return_idx=(3,))


def run(photos: Path, out: Path, backbone: Any, **options: Any) -> ExtractReport:
    return extract(
        photos,
        out,
        backbone,
        **{
            "runtime": "onnxruntime",  # actors start in a second without PyTorch
            "preprocessing": IMAGENET.with_size((32, 32)),
            "batch_size": 2,
            "shard_size": 3,
            "threads": 1,
            "workers": 1,
            **options,
        },
    )


def parts(out: Path) -> dict[str, bytes]:
    """Every data file, without the id of the store."""
    return {path.name: nameless(path, store_id(out)) for path in sorted(out.iterdir())}


def descendants() -> list[psutil.Process]:
    found = []
    for one in psutil.Process().children(recursive=True):
        try:
            words = " ".join(one.cmdline())
        except psutil.NoSuchProcess:  # a zombie is one too
            continue
        if "resource_tracker" not in words:  # Python's own, which ends with this process
            found.append(one)
    return found


def shared_memory() -> set[Path]:
    """What exists on this machine (Linux shows it as files)."""
    return set(Path("/dev/shm").glob("trunkline-*"))  # noqa: S108


def listening(process: psutil.Process) -> Iterator[str]:
    for one in process.net_connections("inet"):
        if one.status == psutil.CONN_LISTEN:
            yield one.laddr.ip


@pytest.mark.cluster
def test_starts_and_ends_ray_and_writes_what_the_local_engine_writes(
    photos: Path, backbone: Any, tmp_path: Path
) -> None:
    import ray

    before, memory = set(descendants()), shared_memory()
    handler = signal.getsignal(signal.SIGTERM)
    addresses: set[str] = set()

    def look(_: object) -> None:
        for process in [psutil.Process(), *descendants()]:
            try:
                addresses.update(listening(process))
            except psutil.NoSuchProcess:
                continue

    report = run(photos, tmp_path / "r.parquet", backbone, engine="ray", progress=look)
    assert (report.images, report.failed, report.shards) == (12, 1, SHARDS)
    assert report.complete
    assert not ray.is_initialized()
    assert {one.removeprefix("::ffff:") for one in addresses} == {"127.0.0.1"}
    assert signal.getsignal(signal.SIGTERM) == handler
    _, alive = psutil.wait_procs(set(descendants()) - before, timeout=10)
    assert alive == []
    size = 2 * 32 * 32 * 3  # of a batch; other tests run meanwhile
    assert [one for one in shared_memory() - memory if one.stat().st_size == size] == []
    assert list((tmp_path / "r.parquet.trunkline" / "tmp").iterdir()) == []

    run(photos, tmp_path / "l.parquet", backbone)
    assert parts(tmp_path / "r.parquet") == parts(tmp_path / "l.parquet")
    again = run(photos, tmp_path / "r.parquet", backbone)  # with the local engine
    assert (again.images, again.shards_before, again.complete) == (0, SHARDS, True)


def test_an_unreachable_cluster(
    photos: Path, backbone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def refuse(address: str, **_: object) -> None:
        raise ConnectionError(f"nobody at {address}")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(
        ExtractionError, match=r"Ray at 127\.0\.0\.1:1 cannot be used: nobody at .*`ray status`"
    ):
        run(photos, tmp_path / "f.parquet", backbone, engine="ray", ray_address="127.0.0.1:1")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Ray as a caller has it."""
    import ray

    ray.init(
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
    )
    yield ray
    ray.shutdown()


@pytest.mark.cluster
def test_in_a_cluster_of_the_caller(
    photos: Path, backbone: Any, tmp_path: Path, cluster: Any
) -> None:
    whole = tmp_path / "l.parquet"
    run(photos, whole, backbone)
    out = tmp_path / "r.parquet"
    run(photos, out, backbone, shard=(0, 2))
    report = run(photos, out, backbone, engine="ray")
    assert (report.shards_before, report.shards, report.complete) == (2, 2, True)
    assert parts(out) == parts(whole)
    assert cluster.is_initialized()

    with pytest.raises(TooManyFailuresError, match="1 images failed, and max_errors allows 0"):
        run(photos, tmp_path / "few.parquet", backbone, engine="ray", max_errors=0)

    stopping = threading.Event()
    stopped = run(
        photos,
        tmp_path / "stopped.parquet",
        backbone,
        engine="ray",
        stopping=stopping,
        progress=lambda _: stopping.set(),
    )
    assert stopped.stopped
    assert stopped.shards_missing + stopped.shards == SHARDS
    assert parts(tmp_path / "stopped.parquet").items() <= parts(whole).items()

    broken = tmp_path / "broken.parquet"
    run(photos, broken, backbone, shard=(0, 2))
    shutil.rmtree(tmp_path / "broken.parquet.trunkline" / "runner")
    with pytest.raises(TrunklineError, match="runner"):  # an actor's, as the local engine has it
        run(photos, broken, backbone, engine="ray")

    mended = photos / BAD
    Image.new("RGB", (40, 40), "red").save(mended)
    retried = run(photos, out, backbone, engine="ray", retry_failed=True)
    assert (retried.images, retried.failed, retried.shards) == (1, 0, 1)
    mended.write_bytes(b"no image")
    assert cluster.is_initialized()


def test_without_ray(
    photos: Path, backbone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ray", "ray.data"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(NotInstalledError, match=r'pip install "trunkline\[ray\]"'):
        run(photos, tmp_path / "f.parquet", backbone, engine="ray")
