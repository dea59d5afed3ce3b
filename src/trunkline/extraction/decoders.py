"""Images become pixels in processes of their own, in memory that all of them share.

A file that makes a decoder hang, die or eat all memory costs its process and nothing else: the
image becomes a failed row, and another process takes the place. One image is one task, so it is
known which one it was, and its pixels never go through the pipe that the processes share: a message
that a dying process leaves half-written would be the end of all of them.

Pebble runs the processes: of the well-kept pools it alone has a time limit for each task and
outlives the death of a worker.
"""

from __future__ import annotations

import logging
import math
import mmap
import queue
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeoutError  # Python 3.10 has two
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any

import numpy as np

from trunkline.errors import ExtractionError
from trunkline.extraction.decoding import Decoded, Decoding, Pixels, decode_item, failed_row
from trunkline.extraction.memory import SharedFile, free_memory, shared_file
from trunkline.extraction.records import Item, as_utf8
from trunkline.extraction.workers import WorkerContext, end_with_parent
from trunkline.runtimes.optional import require

_FEWEST_BUFFERS = 2  # one that is computed, and one for what is tried again
_MOST_BROKEN = 3  # pools that break one after the other without decoding anything
_LOOK_SECONDS = 1.0  # between looks whether those who shall decode are alive

_log = logging.getLogger(__name__)


class _Worker:
    """What a process keeps from task to task."""

    decoding: Decoding
    files: list[SharedFile]
    views: dict[int, mmap.mmap]


def _start(decoding: Decoding, files: list[SharedFile]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    end_with_parent()
    _Worker.decoding, _Worker.files, _Worker.views = decoding, files, {}


def _decode_into(item: Item, number: int, slot: int, size: int) -> Decoded:
    """Decode into a slot of a buffer: what a worker does where all images are of one size."""
    decoded, values = decode_item(_Worker.decoding, item)
    if values is not None:
        if number not in _Worker.views:
            _Worker.views[number] = _Worker.files[number].map(size)
        view = _Worker.views[number]
        np.ndarray(values.shape, values.dtype, view, slot * values.nbytes)[:] = values
    return decoded


def _decode_alone(item: Item, number: int) -> tuple[Decoded, tuple[int, ...] | None]:
    """Decode into a buffer of the image's own size."""
    decoded, values = decode_item(_Worker.decoding, item)
    if values is None:
        return decoded, None
    file = _Worker.files[number]
    try:
        file.reserve(values.nbytes)
        view = file.map(values.nbytes)
    except OSError as error:
        why = f"{item.path} has no room for its {values.nbytes} bytes of pixels: {error.strerror}."
        return decoded.failed(why), None
    np.ndarray(values.shape, values.dtype, view)[:] = values
    return decoded, values.shape


class _Place:
    """A buffer for one batch, (N, H, W, C), or for one image of any size."""

    def __init__(
        self,
        number: int,
        file: SharedFile,
        shape: tuple[int, ...] | None,
        dtype: np.dtype[Any],
    ) -> None:
        self.number = number
        self.file = file
        self._dtype = dtype
        # What no image fills is computed too, and thrown away; it is 0.
        self.pixels = None if shape is None else self._seen(shape)

    def taken(self, shape: tuple[int, ...]) -> Pixels:
        """Return the pixels that are in the buffer, in memory of their own, and empty it."""
        values = self._seen(shape).copy()  # engines may look at their images after the call
        self.file.empty()
        return values

    def put(self, values: Pixels) -> None:
        """Write the pixels of one image into the buffer."""
        self._seen(values.shape)[:] = values

    def _seen(self, shape: tuple[int, ...]) -> Pixels:
        size = math.prod(shape) * self._dtype.itemsize
        return np.ndarray(shape, self._dtype, self.file.map(size))


_Places = queue.SimpleQueue[_Place]


def _places(count: int, shape: tuple[int, ...] | None, dtype: np.dtype[Any]) -> list[_Place]:
    """Make buffers, fewer where there is no room for all.

    Raises:
        ExtractionError: There is not even room for two.
    """
    made: list[_Place] = []
    size = math.prod(shape or ()) * dtype.itemsize
    for number in range(count):
        try:
            file = shared_file() if shape is None else _reserved(size)
        except OSError as error:
            if number < _FEWEST_BUFFERS:
                raise ExtractionError(
                    f"there is no room for {_FEWEST_BUFFERS} buffers of "
                    f"{size} bytes, one batch of pixels each: "
                    f"{error.strerror or error}. Give the process more memory (of a container: "
                    "--memory) or set TMPDIR to a folder with more room; a smaller batch_size or "
                    "size needs less, in a new place."
                ) from error
            _log.warning("there is room for %d of %d buffers: %s", number, count, error)
            break
        made.append(_Place(number, file, shape, dtype))
    if any(not one.file.in_memory for one in made):
        _log.warning("pixels are kept in temporary files, because memory has no room for them")
    return made


def _reserved(size: int) -> SharedFile:
    """Make a file of a size, in memory if there is so much, otherwise on the disk."""
    free = free_memory()
    if free is None or size <= free:
        file = shared_file()
        try:
            file.reserve(size)
            return file
        except OSError:
            file.close()
    file = SharedFile(in_memory=False)
    try:
        file.reserve(size)
    except OSError:
        file.close()
        raise
    return file


class Batch:
    """Images that are being decoded, and where their pixels will be.

    Args:
        items: The images.
        futures: What becomes of each of them.
        lives: Whether there are processes that could still decode them.
    """

    def __init__(
        self,
        items: Sequence[Item],
        futures: Sequence[Future[Any]],
        lives: Callable[[], bool] = lambda: True,
    ) -> None:
        self.items = list(items)
        self._futures = futures
        self._lives = lives
        self.pixels: Pixels | None = None

    def wait(self) -> list[Decoded]:
        """Return what became of the images, in their order; ``pixels`` is set then."""
        return [
            self._result(item, future)
            for item, future in zip(self.items, self._futures, strict=True)
        ]

    def _result(self, item: Item, future: Future[Any]) -> Decoded:
        from pebble import ProcessExpired

        while not future.done() and self._lives():
            wait([future], _LOOK_SECONDS)
        why = f"all processes died before {item.path} was decoded."
        try:
            if future.done():
                return self._take(future.result())
        except (TimeoutError, FutureTimeoutError) as error:
            limit = error.args[1] if len(error.args) > 1 else "?"
            why = f"{item.path} was not read and decoded within {limit} s; its process was ended."
        except ProcessExpired as error:
            why = (
                f"the process that decoded {item.path} died (exit code {error.exitcode}); "
                "out of memory is the usual reason."
            )
        except BrokenProcessPool:
            pass  # as if it were not done
        return Decoded(failed_row(item, as_utf8(why)), 0.0, 0.0)

    def _take(self, result: Any) -> Decoded:
        decoded: Decoded = result
        return decoded

    def release(self) -> None:
        """Give the memory back; ``pixels`` must not be used any more."""
        self.pixels = None


class _Shared(Batch):
    """A batch in a buffer."""

    def __init__(self, place: _Place, free: _Places, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._place, self._free = place, free
        self.pixels = place.pixels

    def release(self) -> None:
        super().release()
        self._free.put(self._place)


class _Single(_Shared):
    """One image of a size of its own."""

    def _take(self, result: Any) -> Decoded:
        decoded, shape = result
        self.pixels = None if shape is None else self._place.taken(shape)[None]
        return super()._take(decoded)


class Decoders:
    """Worker processes, and the buffers that they decode into. Use it with ``with``.

    Args:
        decoding: How images become pixels.
        workers: Processes.
        batch_size: Images of a batch.
        buffers: Batches that may be under way at once; this bounds the memory.
        timeout_seconds: After which an image has failed and its process is ended.

    Attributes:
        buffers: Batches that may be under way at once: fewer where there is no room.

    Raises:
        ExtractionError: There is no room for two buffers.
    """

    def __init__(
        self,
        decoding: Decoding,
        *,
        workers: int,
        batch_size: int,
        buffers: int,
        timeout_seconds: float,
    ) -> None:
        self._pebble = require("pebble", "extracting features")
        self.batch_size = batch_size
        self._decoding, self._workers, self._timeout = decoding, workers, timeout_seconds
        shape = None if decoding.size is None else (batch_size, *decoding.size, decoding.channels)
        self._places = _places(buffers, shape, decoding.dtype)
        self.buffers = len(self._places)
        self._free: _Places = queue.SimpleQueue()
        for place in self._places:
            self._free.put(place)
        self._broken = 0
        self._start_pool()

    def _start_pool(self) -> None:
        self._context = WorkerContext()
        self._pool = self._pebble.ProcessPool(
            max_workers=self._workers,
            context=self._context,
            initializer=_start,
            initargs=[self._decoding, [place.file for place in self._places]],
        )
        try:
            self._pool.schedule(int)  # processes start with the first task: now, not when needed
        except RuntimeError as error:
            self._context.kill()
            raise ExtractionError(
                f"{self._workers} processes that decode images cannot be started "
                f"({error.__cause__ or error}); ask for fewer workers, or raise the limit (ulimit)."
            ) from error

    def submit(self, items: Sequence[Item]) -> Batch:
        """Start decoding at most ``batch_size`` images; waits for a free buffer.

        Images of different sizes go one by one.

        Raises:
            ExtractionError: Processes cannot be started, or die again and again.
        """
        place = self._free.get()
        if place.pixels is None:
            (item,) = items
            futures = [self._schedule(_decode_alone, item, place.number)]
            return _Single(place, self._free, items, futures, self._lives)
        size = place.pixels.nbytes
        futures = [
            self._schedule(_decode_into, item, place.number, slot, size)
            for slot, item in enumerate(items)
        ]
        return _Shared(place, self._free, items, futures, self._lives)

    def _lives(self) -> bool:
        return bool(self._pool.active)

    def _schedule(self, function: Any, *arguments: Any) -> Future[Any]:
        while True:
            try:
                future: Future[Any] = self._pool.schedule(
                    function, args=arguments, timeout=self._timeout
                )
            except RuntimeError as error:  # all processes died at a moment without a task
                self._restart(error)
                continue
            future.add_done_callback(self._note)
            return future

    def _note(self, future: Future[Any]) -> None:
        if not future.cancelled() and future.exception() is None:
            self._broken = 0

    def _restart(self, error: Exception) -> None:
        self._broken += 1
        if self._broken > _MOST_BROKEN:
            raise ExtractionError(
                f"the processes that decode images die before they have decoded any ({error}); "
                "out of memory is the usual reason. Finished shards are kept: give the run more "
                "memory or fewer workers, and run the same command again."
            ) from error
        _log.warning("all processes that decode images have died; new ones are started")
        self._end_pool()
        self._start_pool()

    def _end_pool(self) -> None:
        self._pool.stop()
        self._context.kill()  # by itself it would ask, and wait for each of them
        self._pool.join()

    def close(self) -> None:
        """End the processes, whatever they are doing, and free the memory.

        Batches that are under way must have been released.
        """
        self._end_pool()
        while self._places:
            place = self._places.pop()
            place.pixels = None
            place.file.close()

    def __enter__(self) -> Decoders:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class OwnDecoders(Decoders):
    """Decodes in a thread of this process, for places where none may be started.

    The numbers are the same. A picture that a decoder hangs on hangs the run, and one that a
    decoder dies of ends it: ``timeout_seconds`` needs a process that can be ended.
    """

    def _start_pool(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trunkline-decoder")

    def submit(self, items: Sequence[Item]) -> Batch:
        """Start decoding at most ``batch_size`` images; waits for a free buffer."""
        place = self._free.get()
        if place.pixels is None:
            (item,) = items
            return _Single(
                place, self._free, items, [self._thread.submit(self._alone, item, place)]
            )
        futures = [
            self._thread.submit(self._into, item, place.pixels, slot)
            for slot, item in enumerate(items)
        ]
        return _Shared(place, self._free, items, futures)

    def _into(self, item: Item, pixels: Pixels, slot: int) -> Decoded:
        decoded, values = decode_item(self._decoding, item)
        if values is not None:
            pixels[slot] = values
        return decoded

    def _alone(self, item: Item, place: _Place) -> tuple[Decoded, tuple[int, ...] | None]:
        decoded, values = decode_item(self._decoding, item)
        if values is None:
            return decoded, None
        try:
            place.file.reserve(values.nbytes)
            place.put(values)
        except OSError as error:
            why = f"{item.path} has no room for its {values.nbytes} bytes of pixels: {error}."
            return decoded.failed(why), None
        return decoded, values.shape

    def _end_pool(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
