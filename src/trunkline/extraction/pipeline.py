"""Decoding, computing and pooling, each while the others are at work.

::

    items ──workers──▶ pixels in shared memory ──runner──▶ maps ──pooling──▶ blocks ──▶ a writer
              (processes)                       (this thread)                     (its own thread)

Every image has its slot in its batch from the start, whether it can be decoded or not. So what is
computed together does not depend on which worker was faster, nor on where a run was broken off, and
rows are in the order of the plan. The slot of a failed image is computed for nothing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trunkline.errors import ImageError
from trunkline.extraction.decoders import Batch, Decoders
from trunkline.extraction.decoding import Decoded
from trunkline.extraction.pooling import unfit
from trunkline.extraction.records import Block, Item, Row, Schema


@dataclass
class Seconds:
    """Where the time of a shard went.

    Attributes:
        read: Of workers, fetching bytes.
        decode: Of workers, making pixels of them.
        wait: In which nothing was computed, for want of pixels.
        compute: Of the network.
        pool: From maps to the store's numbers.
        write: Of the writer.
    """

    read: float = 0.0
    decode: float = 0.0
    wait: float = 0.0
    compute: float = 0.0
    pool: float = 0.0
    write: float = 0.0

    def add(self, other: Seconds) -> None:
        """Add what something else took."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class Work(NamedTuple):
    """One shard that shall be computed."""

    shard: int
    items: Sequence[Item]


@dataclass
class Finished:
    """A block whose numbers are there.

    Attributes:
        shard: It belongs to.
        block: Rows and numbers.
        last: No other block of the shard follows.
        seconds: What it took.
    """

    shard: int
    block: Block
    last: bool
    seconds: Seconds


@dataclass
class _Cut:
    """A batch, and whether it is the last one of its block and of its shard."""

    shard: int
    items: Sequence[Item]
    ends_block: bool
    ends_shard: bool


@dataclass
class _Open:
    """A block some of whose batches are done."""

    items: list[Item] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    values: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    seconds: Seconds = field(default_factory=Seconds)


class Pipeline:
    """From shards to blocks.

    Args:
        decoders: The workers, started.
        compute: Runner and pooling: pixels (N, H, W, C) → column's name → (N, *shape). An
            ``ImageError`` means that these pixels cannot be computed, and others can.
        schema: Of the store.
        block_size: Images of a block.
        stopping: Once set, nothing new is begun and ``run`` ends after what it has in hand.
        on_batch: Is told after every batch how many images of the block are done.
    """

    def __init__(
        self,
        decoders: Decoders,
        compute: Callable[[NDArray[Any], Seconds], dict[str, NDArray[Any]]],
        schema: Schema,
        *,
        block_size: int,
        stopping: threading.Event,
        on_batch: Callable[[int], None],
    ) -> None:
        self._decoders = decoders
        self._compute = compute
        self._schema = schema
        self._block_size = block_size
        self._stopping = stopping
        self._on_batch = on_batch

    def run(self, work: Iterable[Work]) -> Generator[Finished, None, None]:
        """Compute shards, one after the other.

        Failed images are tried once more after the other images of their block.
        """
        cuts = self._cuts(work)
        under_way: deque[tuple[_Cut, Batch]] = deque()
        block = _Open()
        try:
            while not self._stopping.is_set():
                # One buffer is left for what is tried again.
                while len(under_way) < self._decoders.buffers - 1:
                    cut = next(cuts, None)
                    if cut is None:
                        break
                    under_way.append((cut, self._decoders.submit(cut.items)))
                if not under_way:
                    return
                cut, batch = under_way.popleft()
                self._take(batch, block)
                self._on_batch(len(block.rows))
                if cut.ends_block:
                    whole = self._joined(block)
                    if not self._try_again(whole, block):
                        return
                    yield Finished(cut.shard, whole, cut.ends_shard, block.seconds)
                    block = _Open()
        finally:
            for _, batch in under_way:
                batch.release()

    def _cuts(self, work: Iterable[Work]) -> Iterator[_Cut]:
        for shard, items in work:
            for start in range(0, len(items), self._block_size):
                end = min(start + self._block_size, len(items))
                for first in range(start, end, self._decoders.batch_size):
                    past = min(first + self._decoders.batch_size, end)
                    yield _Cut(shard, items[first:past], past == end, past == len(items))

    def _take(self, batch: Batch, block: _Open) -> None:
        """Wait for a batch and compute it."""
        try:
            decoded, values = self._computed(batch, block.seconds)
        finally:
            batch.release()
        block.items.extend(batch.items)
        block.rows.extend(one.row for one in decoded)
        block.values.append(values)

    def _computed(
        self, batch: Batch, seconds: Seconds
    ) -> tuple[list[Decoded], dict[str, NDArray[Any]]]:
        started = time.perf_counter()
        decoded = batch.wait()
        seconds.wait += time.perf_counter() - started
        seconds.read += sum(one.read_seconds for one in decoded)
        seconds.decode += sum(one.decode_seconds for one in decoded)
        values = self._schema.empty_block([one.row for one in decoded]).values
        ok = [number for number, one in enumerate(decoded) if one.row.status == "ok"]
        if ok and batch.pixels is not None:
            try:
                found = self._compute(batch.pixels, seconds)
            except ImageError as error:  # such a batch is one image
                return [one.failed(str(error)) for one in decoded], values
            reasons = unfit({name: computed[ok] for name, computed in found.items()})
            bad = {ok[number]: why for number, why in reasons.items()}
            decoded = [
                one.failed(bad[number]) if number in bad else one
                for number, one in enumerate(decoded)
            ]
            ok = [number for number in ok if number not in bad]
            for name, computed in found.items():
                values[name][ok] = computed[ok]
        return decoded, values

    def _try_again(self, whole: Block, block: _Open) -> bool:
        """Decode and compute what failed once more; return False where that was broken off."""
        failed = whole.failed
        for start in range(0, len(failed), self._decoders.batch_size):
            if self._stopping.is_set():
                return False
            numbers = failed[start : start + self._decoders.batch_size]
            batch = self._decoders.submit([block.items[number] for number in numbers])
            try:
                decoded, values = self._computed(batch, block.seconds)
            finally:
                batch.release()
            for number, one in zip(numbers, decoded, strict=True):
                whole.rows[number] = one.row
            for name, array in values.items():
                whole.values[name][numbers] = array
        # What ends a run may have ended its workers as well: no fault of the images.
        return not (failed and self._stopping.is_set())

    def _joined(self, block: _Open) -> Block:
        values = {
            column.name: np.concatenate([part[column.name] for part in block.values])
            for column in self._schema.columns
        }
        return Block(block.rows, values)
