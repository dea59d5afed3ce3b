"""Images become pixels in processes of their own, in memory that all of them share.

A file that makes a decoder hang, die or eat all memory costs its process and nothing else: the
image becomes a failed row, and another process takes the place. One image is one task, so it is
known which one it was.

Pebble runs the processes: of the well-kept pools it alone has a time limit for each task and
outlives the death of a worker.
"""

from __future__ import annotations

import hashlib
import queue
import signal
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from multiprocessing.shared_memory import SharedMemory
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trunkline.errors import ImageError
from trunkline.extraction.memory import Piece, free_abandoned
from trunkline.extraction.reading import read_bytes
from trunkline.extraction.records import Item, Row, as_utf8
from trunkline.extraction.sources import Source
from trunkline.extraction.workers import WorkerContext
from trunkline.images import MAX_PIXELS, Decode, decode_photo, pixels
from trunkline.preprocessing import Preprocessing
from trunkline.runtimes.optional import require

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How the images of a source become pixels.

    Attributes:
        source: Where their bytes are.
        preprocessing: Its sizes and its interpolation are used.
        decode: See ``trunkline.images.decode_photo``.
        max_pixels: Larger images fail.
    """

    source: Source
    preprocessing: Preprocessing
    decode: Decode = "exact"
    max_pixels: int = MAX_PIXELS

    def to_dict(self) -> dict[str, Any]:
        """Return what of this decides the numbers, as plain values."""
        return {
            "preprocessing": self.preprocessing.to_dict(),
            "decode": self.decode,
            "max_pixels": self.max_pixels,
        }

    @classmethod
    def from_dict(cls, source: Source, fields: dict[str, Any]) -> Decoding:
        """Undo ``to_dict``."""
        preprocessing = Preprocessing.from_dict(fields["preprocessing"])
        return cls(source=source, **{**fields, "preprocessing": preprocessing})

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of every image's pixels, None where they differ."""
        chosen = self.preprocessing
        if chosen.crop is None and not isinstance(chosen.resize, tuple):
            return None
        return chosen.output_size(1, 1)


class Decoded(NamedTuple):
    """What became of one image, and the seconds that a worker spent on it."""

    row: Row
    read_seconds: float
    decode_seconds: float


def decode_item(decoding: Decoding, item: Item) -> tuple[Decoded, Pixels | None]:
    """Read and decode one image in this process.

    Returns:
        Its row, and (H, W, 3) uint8 RGB; None where the row says that it failed.
    """
    started = read = time.perf_counter()
    row = failed_row(item, "")
    try:
        data = read_bytes(decoding.source, item)
        read = time.perf_counter()
        row = replace(row, sha256=hashlib.sha256(data).hexdigest())
        photo = decode_photo(
            data,
            decoding.preprocessing,
            decode=decoding.decode,
            max_pixels=decoding.max_pixels,
        )
        values = pixels(photo, decoding.preprocessing)
    except ImageError as error:
        return _timed(replace(row, error=as_utf8(str(error))), started, read), None
    except Exception as error:  # a fault of ours or of a library must not end a run of days
        return _timed(replace(row, error=as_utf8(repr(error))), started, read), None
    row = replace(row, width=photo.width, height=photo.height, status="ok", error=None)
    return _timed(row, started, read), values


def failed_row(item: Item, error: str) -> Row:
    """Return the row of an image that could not be read."""
    return Row(
        key=item.key,
        path=item.path,
        width=None,
        height=None,
        sha256=None,
        status="failed",
        error=error,
    )


def _timed(row: Row, started: float, read: float) -> Decoded:
    return Decoded(row, read - started, time.perf_counter() - read)


class _Worker:
    """What a process keeps from task to task."""

    decoding: Decoding
    buffers: dict[str, SharedMemory]


def _start(decoding: Decoding) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _Worker.decoding = decoding
    _Worker.buffers = {}


def _decode_into(item: Item, buffer: str, slot: int) -> Decoded:
    """Decode into a slot of shared memory: what a worker does where all images are of one size."""
    if buffer not in _Worker.buffers:
        _Worker.buffers[buffer] = SharedMemory(buffer)
    decoded, values = decode_item(_Worker.decoding, item)
    if values is not None:
        memory = _Worker.buffers[buffer].buf
        np.ndarray(values.shape, np.uint8, memory, slot * values.nbytes)[:] = values
    return decoded


def _decode(item: Item) -> tuple[Decoded, Pixels | None]:
    return decode_item(_Worker.decoding, item)


class _Place:
    """Shared memory for one batch, (N, H, W, 3) uint8."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._piece = Piece(int(np.prod(shape)))
        self.name = self._piece.memory.name
        self.pixels: Pixels | None = np.ndarray(shape, np.uint8, self._piece.memory.buf)
        self.pixels[:] = 0  # what no image fills is computed too, and thrown away

    def free(self) -> None:
        self.pixels = None  # memory that is looked at cannot be closed
        self._piece.free()


_Places = queue.SimpleQueue[_Place]


class Batch:
    """Images that are being decoded, and where their pixels will be."""

    def __init__(self, items: Sequence[Item], futures: Sequence[Future[Any]]) -> None:
        self.items = list(items)
        self._futures = futures
        self.pixels: Pixels | None = None

    def wait(self) -> list[Decoded]:
        """Return what became of the images, in their order; ``pixels`` is set then."""
        return [
            self._result(item, future)
            for item, future in zip(self.items, self._futures, strict=True)
        ]

    def _result(self, item: Item, future: Future[Any]) -> Decoded:
        from pebble import ProcessExpired

        try:
            return self._take(future.result())
        except TimeoutError as error:
            limit = error.args[1] if len(error.args) > 1 else "?"
            why = f"{item.path} was not read and decoded within {limit} s; its process was ended."
        except ProcessExpired as error:
            why = (
                f"the process that decoded {item.path} died (exit code {error.exitcode}); "
                "out of memory is the usual reason."
            )
        return Decoded(failed_row(item, as_utf8(why)), 0.0, 0.0)

    def _take(self, result: Any) -> Decoded:
        decoded: Decoded = result
        return decoded

    def release(self) -> None:
        """Give the memory back; ``pixels`` must not be used any more."""
        self.pixels = None


class _Shared(Batch):
    """A batch in shared memory."""

    def __init__(
        self, items: Sequence[Item], futures: Sequence[Future[Any]], place: _Place, free: _Places
    ) -> None:
        super().__init__(items, futures)
        self._place, self._free = place, free
        self.pixels = place.pixels

    def release(self) -> None:
        super().release()
        self._free.put(self._place)


class _Single(Batch):
    """One image of a size of its own, which comes through the pipe."""

    def _take(self, result: Any) -> Decoded:
        decoded, values = result
        self.pixels = None if values is None else values[None]
        return super()._take(decoded)


class Decoders:
    """Worker processes, and the buffers that they decode into. Use it with ``with``.

    Args:
        decoding: How images become pixels.
        workers: Processes.
        batch_size: Images of a batch.
        buffers: Batches that may be under way at once; this bounds the memory.
        timeout_seconds: After which an image has failed and its process is ended.
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
        pebble = require("pebble", "extracting features")
        self.batch_size = batch_size
        self.buffers = buffers
        self._timeout = timeout_seconds
        self._size = size = decoding.size
        shape = None if size is None else (batch_size, *size, 3)
        free_abandoned()
        self._places = [] if shape is None else [_Place(shape) for _ in range(buffers)]
        self._free: _Places = queue.SimpleQueue()
        for place in self._places:
            self._free.put(place)
        self._pool = pebble.ProcessPool(
            max_workers=workers,
            context=WorkerContext(),
            initializer=_start,
            initargs=[decoding],
        )
        self._pool.schedule(int)  # processes start with the first task: now, not after the listing

    def submit(self, items: Sequence[Item]) -> Batch:
        """Start decoding at most ``batch_size`` images; waits for a free buffer.

        Images of different sizes go one by one.
        """
        if self._size is None:
            (item,) = items
            return _Single(items, [self._schedule(_decode, item)])
        place = self._free.get()
        futures = [
            self._schedule(_decode_into, item, place.name, slot) for slot, item in enumerate(items)
        ]
        return _Shared(items, futures, place, self._free)

    def _schedule(self, function: Any, *arguments: Any) -> Future[Any]:
        future: Future[Any] = self._pool.schedule(function, args=arguments, timeout=self._timeout)
        return future

    def close(self) -> None:
        """End the processes, whatever they are doing, and free the memory.

        Batches that are under way must have been released.
        """
        self._pool.stop()
        self._pool.join()
        while self._places:
            self._places.pop().free()

    def __enter__(self) -> Decoders:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
