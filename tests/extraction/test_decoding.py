"""Workers give the same pixels as this process, in their slots, and leave nothing behind."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from image_sources import write_photos

from trunkline.errors import ExtractionError
from trunkline.extraction.decoders import Decoders
from trunkline.extraction.decoding import Decoding, decode_item
from trunkline.extraction.records import Item
from trunkline.extraction.sources import list_items, source_of
from trunkline.extraction.workers import ProcessLock, WorkerContext
from trunkline.images import decode_photo, pixels
from trunkline.preprocessing import IMAGENET

SMALL = IMAGENET.with_size(32)


@pytest.fixture
def decoding(tmp_path: Path) -> Decoding:
    """Of five photos; the fourth is cut short."""
    source = source_of(write_photos(tmp_path / "photos", 5, bad_every=4))
    return Decoding(source=source, preprocessing=SMALL)


@contextmanager
def started(decoding: Decoding, batch_size: int) -> Iterator[Decoders]:
    options = {"workers": 2, "batch_size": batch_size, "buffers": 2}
    with Decoders(decoding, timeout_seconds=30, **options) as decoders:
        yield decoders
    assert active_children() == []


def test_one_image(decoding: Decoding) -> None:
    item = next(iter(list_items(decoding.source)))
    decoded, found = decode_item(decoding, item)
    content = Path(item.path).read_bytes()
    photo = decode_photo(content, SMALL)
    assert found is not None
    np.testing.assert_array_equal(found, pixels(photo, SMALL))
    row = decoded.row
    assert (row.key, row.path, row.status, row.error) == (item.key, item.path, "ok", None)
    assert (row.width, row.height) == (photo.width, photo.height)
    assert row.sha256 == hashlib.sha256(content).hexdigest()
    assert decoded.read_seconds > 0
    assert decoded.decode_seconds > 0


def test_images_that_fail(decoding: Decoding, tmp_path: Path) -> None:
    strange = Item("k", str(tmp_path / "gone\udcff.jpg"))
    decoded, found = decode_item(decoding, strange)
    assert found is None
    assert decoded.row.sha256 is None
    assert (decoded.row.error or "").encode()  # which a lone surrogate has not
    small = dataclasses.replace(decoding, max_pixels=100)
    item = next(iter(list_items(decoding.source)))
    decoded, found = decode_item(small, item)
    assert (decoded.row.status, decoded.row.width, found) == ("failed", None, None)
    assert "100" in (decoded.row.error or "")
    short = dataclasses.replace(decoding, max_bytes=99)
    decoded, found = decode_item(short, item)
    assert (decoded.row.status, decoded.row.sha256, found) == ("failed", None, None)
    assert "more than the 99 bytes" in (decoded.row.error or "")


def test_workers_fill_the_slots_in_order(decoding: Decoding) -> None:
    items = list(list_items(decoding.source))
    expected = [decode_item(decoding, item) for item in items]
    with started(decoding, batch_size=3) as decoders:
        for _ in range(2):  # buffers are used again
            batches = [decoders.submit(items[:3]), decoders.submit(items[3:])]
            decoded = [one for batch in batches for one in batch.wait()]
            assert [one.row for one in decoded] == [one.row for one, _ in expected]
            for number, (_, values) in enumerate(expected):
                pixels_ = batches[number // 3].pixels
                assert pixels_ is not None
                assert pixels_.shape == (3, 32, 32, 3)
                if values is not None:
                    np.testing.assert_array_equal(pixels_[number % 3], values)
            del pixels_
            for batch in batches:
                batch.release()
                assert batch.pixels is None
    assert [one.row.status for one in decoded] == ["ok", "ok", "ok", "failed", "ok"]


def test_images_of_sizes_of_their_own(decoding: Decoding) -> None:
    whole = dataclasses.replace(decoding, preprocessing=IMAGENET.with_size(None))
    assert whole.size is None
    assert decoding.size == (32, 32)
    items = list(list_items(decoding.source))
    with started(whole, batch_size=1) as decoders:
        for item in items[2:4]:
            batch = decoders.submit([item])
            (decoded,) = batch.wait()
            expected = decode_item(whole, item)[1]
            if expected is None:
                assert batch.pixels is None
                assert decoded.row.status == "failed"
            else:
                assert batch.pixels is not None
                np.testing.assert_array_equal(batch.pixels, expected[None])
            batch.release()


def test_plain_values_and_back(decoding: Decoding) -> None:
    fields = decoding.to_dict()
    assert Decoding.from_dict(decoding.source, fields) == decoding
    assert set(fields) == {"preprocessing", "decode", "max_pixels", "max_bytes", "alpha"}


def test_processes_that_all_died_at_a_moment_without_work_are_replaced(decoding: Decoding) -> None:
    items = list(list_items(decoding.source))
    options = {"workers": 1, "batch_size": 1, "buffers": 2}
    with Decoders(decoding, timeout_seconds=30, **options) as decoders:
        for _ in range(2):
            for attempt in range(2):  # what is under way when they die is lost, and tried again
                batch = decoders.submit(items[:1])
                (decoded,) = batch.wait()
                batch.release()
                if decoded.row.status == "ok":
                    break
                assert attempt == 0
                assert "all processes died before" in (decoded.row.error or "")
            (worker,) = active_children()
            worker.kill()
            worker.join()
    assert active_children() == []


class Broken:
    """A pool whose processes have died."""

    active = False

    def schedule(self, *_: object, **__: object) -> None:
        raise RuntimeError("Unexpected error within the Pool")

    def stop(self) -> None:
        """Do nothing."""

    join = stop


def test_processes_that_die_again_and_again_end_the_run(
    decoding: Decoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: Decoders) -> None:
        self._pool, self._context = Broken(), WorkerContext()
        starts.append(1)

    starts = list[int]()
    monkeypatch.setattr(Decoders, "_start_pool", start)
    item = next(iter(list_items(decoding.source)))
    with (
        Decoders(decoding, workers=2, batch_size=1, buffers=2, timeout_seconds=1) as decoders,
        pytest.raises(ExtractionError, match=r"die before they have decoded any.*fewer workers"),
    ):
        decoders.submit([item])
    assert len(starts) == 4


def test_processes_that_cannot_be_started_are_told(
    decoding: Decoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(WorkerContext, "Process", refused)
    with pytest.raises(
        ExtractionError, match=r"2 processes that decode .* cannot be started .*temporarily unavail"
    ):
        Decoders(decoding, workers=2, batch_size=1, buffers=2, timeout_seconds=1)


def hold(lock: ProcessLock, held: Connection) -> None:
    lock.acquire()
    lock.acquire()
    held.send(True)
    held.recv()


@pytest.mark.skipif(os.name == "nt", reason="has locks of its own there")
def test_a_process_that_is_killed_lets_go_of_its_lock() -> None:
    context = WorkerContext()
    lock = context.RLock()
    mine, theirs = context.Pipe()
    process = context.Process(target=hold, args=(lock, theirs))
    process.start()
    assert mine.recv()
    assert not lock.acquire(block=False)
    process.kill()
    assert lock.acquire()
    assert lock.acquire(block=False)
    lock.release()
    lock.release()
    process.join()
