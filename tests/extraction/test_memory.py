"""Memory that processes share, how much there is, and what is done where there is too little."""

from __future__ import annotations

import errno
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from alone import passes_alone
from image_sources import write_photos
from numpy.typing import NDArray

from trunkline.backbones.levels import Level
from trunkline.errors import ExtractionError
from trunkline.extraction import decoders, memory, needs
from trunkline.extraction.decoders import Decoders
from trunkline.extraction.decoding import Decoding
from trunkline.extraction.memory import SharedFile, free_memory, no_more_than_free
from trunkline.extraction.needs import Needs
from trunkline.extraction.sources import list_items, source_of
from trunkline.preprocessing import IMAGENET

linux = pytest.mark.skipif(sys.platform != "linux", reason="has no /proc")
UNLIMITED = 0x7FFFFFFFFFFFF000  # what version 1 of control groups says


@pytest.fixture
def decoding(tmp_path: Path) -> Decoding:
    """Of four photos."""
    source = source_of(write_photos(tmp_path / "photos", 4, bad_every=0))
    return Decoding(source=source, preprocessing=IMAGENET.with_size(32))


def started(decoding: Decoding) -> Decoders:
    return Decoders(decoding, workers=1, batch_size=2, buffers=4, timeout_seconds=30)


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def refuse(monkeypatch: pytest.MonkeyPatch, *, in_memory: int, on_disk: int) -> None:
    """Let so many files be reserved, in memory and on the disk."""
    left = {True: in_memory, False: on_disk}
    reserve = SharedFile.reserve

    def reserved(self: SharedFile, size: int) -> None:
        left[self.in_memory] -= 1
        if left[self.in_memory] < 0:
            full()
        reserve(self, size)

    monkeypatch.setattr(SharedFile, "reserve", reserved)


@linux
def test_pixels_need_no_folder_of_shared_memory(decoding: Decoding) -> None:
    items = list(list_items(decoding.source))
    with started(decoding) as running:
        batch = running.submit(items[:2])
        batch.wait()
        found = [psutil.Process(), *psutil.Process().children()]
        paths = {one.path for process in found for one in process.memory_maps()}
        batch.release()
    assert any("memfd:trunkline" in path for path in paths)
    assert not any("/dev/shm" in path for path in paths)  # noqa: S108


@linux
@pytest.mark.parametrize(
    ("in_memory", "on_disk", "buffers", "told"),
    [
        (3, 9, 4, "kept in temporary files"),
        (0, 9, 4, "kept in temporary files"),
        (2, 0, 2, "2 of 4"),
    ],
)
def test_where_memory_is_short_pixels_are_on_the_disk_or_buffers_fewer(
    decoding: Decoding,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    in_memory: int,
    on_disk: int,
    buffers: int,
    told: str,
) -> None:
    refuse(monkeypatch, in_memory=in_memory, on_disk=on_disk)
    monkeypatch.setattr(Decoders, "_start_pool", lambda _: None)
    monkeypatch.setattr(Decoders, "_end_pool", lambda _: None)
    with started(decoding) as running:
        assert running.buffers == buffers
    assert [told in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize("in_memory", [0, 1])
def test_without_room_for_two_buffers_the_error_tells_what_gives_more(
    decoding: Decoding, monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    refuse(monkeypatch, in_memory=in_memory, on_disk=0)
    with pytest.raises(
        ExtractionError,
        match=r"no room for 2 buffers of 6144 bytes.*No space left.*--memory.*TMPDIR",
    ):
        started(decoding)


@linux
def test_a_buffer_beyond_what_is_free_is_not_even_asked_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Linux would end the process, rather than refuse."""
    monkeypatch.setattr(decoders, "free_memory", lambda: 6143)
    file = decoders._reserved(6144)
    assert not file.in_memory
    assert os.fstat(file.descriptor).st_size == 6144
    file.close()


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_file_grows_and_is_emptied(in_memory: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if in_memory and sys.platform != "linux":
        pytest.skip("only Linux has such files")
    file = SharedFile(in_memory=in_memory)
    for size in (5000, 100, 3_000_000):
        file.reserve(size)
        view = np.ndarray((size,), np.uint8, file.map(size))
        view[:] = 7
        assert view.sum(dtype=int) == 7 * size
        file.empty()
        assert os.fstat(file.descriptor).st_size == 0
    if hasattr(os, "posix_fallocate"):
        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match="No space left"):
            file.reserve(100)
        monkeypatch.delattr(os, "posix_fallocate")  # as on a Mac
    file.reserve(2_500_000)
    assert os.fstat(file.descriptor).st_size == 2_500_000
    file.close()


@linux
@pytest.mark.parametrize(
    ("groups", "files", "left"),
    [
        ("0::/", {}, None),
        ("0::/a/b", {"a/b/memory.max": "max", "memory.max": "max"}, None),
        (
            "0::/a/b",
            {
                "a/memory.max": "1000000",
                "a/memory.current": "900000",
                "a/memory.stat": "anon 5\ninactive_file 300000\n",
                "memory.max": "max",
            },
            400_000,
        ),
        ("0::/a", {"a/memory.max": "1000", "a/memory.current": "2000", "a/memory.stat": ""}, 0),
        (
            "1:cpu:/\n4:memory:/docker/abc",
            {
                "memory/memory.limit_in_bytes": "500000",
                "memory/memory.usage_in_bytes": "400000",
                "memory/memory.stat": "total_inactive_file 1000\n",
            },
            101_000,
        ),
        (
            "4:memory:/",
            {"memory/memory.limit_in_bytes": f"{UNLIMITED}", "memory/memory.usage_in_bytes": "1"},
            None,
        ),
    ],
)
def test_free_memory_is_what_the_control_groups_leave(
    tmp_path: Path, groups: str, files: dict[str, str], left: int | None
) -> None:
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    found = free_memory(groups, tmp_path)
    assert found is not None
    if left is None:
        assert found > 1 << 26  # of this machine
    else:
        assert found == left


@linux
def test_what_is_not_there_is_refused_in_a_process_that_has_freed_nothing() -> None:
    # One that has freed much is not refused what it gave back.
    passes_alone(__file__, "test_in_the_block_what_is_not_there_is_refused", "alone")


@pytest.mark.alone
@linux
def test_in_the_block_what_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    monkeypatch.setattr(memory, "free_memory", lambda: 50_000_000)
    with no_more_than_free():
        with pytest.raises(MemoryError):
            np.ones(100_000_000, np.uint8)
        assert np.ones(30_000_000, np.uint8)[-1] == 1
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    with no_more_than_free():
        assert resource.getrlimit(resource.RLIMIT_DATA) == before


@linux
def test_threads_leave_the_limit_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    monkeypatch.setattr(memory, "free_memory", lambda: 1 << 40)
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with no_more_than_free():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with no_more_than_free():
        thread.start()
        inside.wait(10)
    assert resource.getrlimit(resource.RLIMIT_DATA) != before
    leave.set()
    thread.join()
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


LEVELS = (Level(name="stage0", stride=4, channels=64),)  # 16 bytes a pixel, and 15 of the image


class Eats:
    """A network that needs so many bytes for every pixel."""

    def __init__(self, per_pixel: int) -> None:
        self._per_pixel = per_pixel
        self.sides = list[int]()

    def __call__(self, pixels: NDArray[np.uint8]) -> None:
        _, height, width, _ = pixels.shape
        self.sides.append(height)
        np.ones((height, width, self._per_pixel), np.uint8)


@linux
@pytest.mark.parametrize("per_pixel", [60, 160])
def test_the_need_of_a_large_image_is_found_with_a_small_one(per_pixel: int) -> None:
    network = Eats(per_pixel)
    of = Needs(network, LEVELS).of
    free = 1_000_000_000
    assert of(1500, 1500, free) == 0  # which surely is there
    assert network.sides == []
    need = of(5000, 4000, free)
    assert 0.9 < need / (20_000_000 * per_pixel * 1.5) < 1.2
    assert of(10_000, 8000, free) == pytest.approx(4 * need, rel=0.1)
    assert len(network.sides) == 1
    assert network.sides[0] <= 1448
    scarce = Eats(per_pixel)
    Needs(scarce, LEVELS).of(5000, 4000, 20_000_000)
    assert scarce.sides[0] < 300  # it must not take much itself


@linux
def test_where_nothing_can_be_measured_four_times_the_maps_are_assumed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(needs, "_CLEAR", tmp_path)
    network: Any = Eats(1)
    need = Needs(network, LEVELS).of(5000, 4000, 100_000_000)
    assert need == pytest.approx(20_000_000 * 4 * 31, rel=0.1)
    assert network.sides == []
