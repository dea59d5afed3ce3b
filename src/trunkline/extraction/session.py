"""Computing shards of one store: the local engine all of them, an actor of Ray those it gets."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
from filelock import BaseFileLock
from numpy.typing import NDArray

from trunkline.errors import TooManyFailuresError
from trunkline.extraction.computing import Computing
from trunkline.extraction.decoders import Decoders, OwnDecoders
from trunkline.extraction.decoding import Decoding
from trunkline.extraction.formats import ShardWriter
from trunkline.extraction.manifests import Manifest, ShardRecord
from trunkline.extraction.pipeline import Finished, Pipeline, Seconds, Work
from trunkline.extraction.plan import Plan
from trunkline.extraction.records import Block, Row
from trunkline.extraction.store import Store

_log = logging.getLogger(__name__)

_UNWRITTEN_BLOCKS = 2  # that may wait for the disk before computing waits too


@dataclass
class Tally:
    """What a session did.

    Attributes:
        images: Rows computed.
        failed: Those of them that failed.
        shards: Finished.
        elsewhere: Left to others who work on them.
        under_way: Images computed of a block that is not complete.
        first_seconds: From the session's begin to the first numbers, None before them.
        seconds: Where the time went.
    """

    images: int = 0
    failed: int = 0
    shards: int = 0
    elsewhere: int = 0
    under_way: int = 0
    first_seconds: float | None = None
    seconds: Seconds = field(default_factory=Seconds)


@dataclass
class _Shard:
    """A shard on its way to the disk."""

    number: int
    writer: ShardWriter
    images: int = 0
    failed: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    seconds: Seconds = field(default_factory=Seconds)

    def add(self, block: Block, seconds: Seconds) -> None:
        """Count a block's rows."""
        failed = [block.rows[number] for number in block.failed]
        self.images += len(block.rows)
        self.failed += len(failed)
        self.failures += [(row.key, row.error or "") for row in failed]
        self.seconds.add(seconds)

    def record(self, files: dict[str, str]) -> ShardRecord:
        """Return what shall be kept of it."""
        seconds = asdict(self.seconds)
        # Workers and the writer do theirs meanwhile.
        seconds["total"] = sum(seconds[name] for name in ("wait", "compute", "pool"))
        return ShardRecord(
            shard=self.number,
            images=self.images,
            failed=self.failed,
            seconds={name: round(value, 3) for name, value in seconds.items()},
            files=files,
            failures=self.failures,
        )


class Session:
    """Workers, a runner and a writer at one store, until ``close``.

    Args:
        store: Whose shards.
        manifest: Of the store.
        computing: From pixels to the store's numbers; built when the first pixels are there.
        plan: Of the store; it must reach as far as the shards to come.
        workers: Processes that decode; 0 for a thread of this one.
        timeout_seconds: For one image.
        stopping: Once set, the session ends without finishing what it has begun.
        began: When the run did, on the clock of ``time.perf_counter``; None for now.
        max_errors: More failed images than this end the session; None for any number.
        progress: Is told after every batch.
    """

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        computing: Callable[[], Computing],
        plan: Plan,
        *,
        workers: int,
        timeout_seconds: float,
        stopping: threading.Event,
        began: float | None = None,
        max_errors: int | None = None,
        progress: Callable[[Tally], None] | None = None,
    ) -> None:
        self._store = store
        self._manifest = manifest
        self._build = computing
        self._computing: Computing | None = None
        self._stopping = stopping
        self._max_errors = max_errors
        self._progress = progress
        self._format = store.format(manifest)
        self._format.create()
        self._began = time.perf_counter() if began is None else began
        self.plan = plan
        self.tally = Tally()
        batch_size = manifest.job["batch_size"]
        ahead = max(2, -(-2 * workers // batch_size))  # batches, so that no worker is idle
        kind = Decoders if workers else OwnDecoders
        self._decoders = kind(
            Decoding.from_dict(manifest.source, manifest.job["images"]),
            workers=workers,
            batch_size=batch_size,
            buffers=ahead + 2,  # the one that is computed, and one for what is tried again
            timeout_seconds=timeout_seconds,
        )
        self._claims: dict[int, BaseFileLock] = {}
        self._open: dict[int, _Shard] = {}

    def close(self) -> None:
        """End the workers, and give up what was begun and is not finished."""
        self._decoders.close()
        self._forget()

    def compute(self, shards: Iterable[int]) -> None:
        """Compute those of the shards that are neither done nor claimed by others.

        Raises:
            OutputError: The disk refused something; finished shards stay.
            TooManyFailuresError: More images failed than allowed; finished shards stay.
        """
        pipeline = self._pipeline()
        with _Writing() as writing, closing(pipeline.run(self._work(shards))) as blocks:
            for finished in blocks:
                block = finished.block
                self._check_failures(block, self.tally.failed + len(block.failed))
                writing.put(self._write, finished)
                self._tell(finished)
        self._forget()

    def retry(self, shards: Iterable[int]) -> None:
        """Try the failed images of finished shards again, and write the shards anew.

        What fails again counts as failed in this session.

        Raises:
            OutputError: The disk refused something; the shard stays as it was.
            StoreError: A shard's files are not those that were written.
            TooManyFailuresError: More images failed than allowed; what was mended is kept.
        """
        pipeline = self._pipeline()
        for shard in shards:
            if self._stopping.is_set() or not self._claim(shard):
                continue
            if not self._store.is_done(shard):  # any more: another run died while it wrote it anew
                continue
            failed = [
                number for number, row in enumerate(self._rows(shard)) if row.status == "failed"
            ]
            if not failed:  # any more: another run was faster
                continue
            items = self.plan.items(shard)
            computed: list[Finished] = []
            work = [Work(shard, [items[number] for number in failed])]
            with closing(pipeline.run(work)) as blocks:
                for finished in blocks:
                    computed.append(finished)
                    self._tell(finished)
            if self._stopping.is_set():
                break
            self._rewrite(shard, failed, computed)
            for finished in computed:
                self._check_failures(finished.block, self.tally.failed)
        self._forget()

    def _pipeline(self) -> Pipeline:
        return Pipeline(
            self._decoders,
            self._computed,
            self._manifest.schema,
            block_size=self._format.block_size,
            stopping=self._stopping,
            on_batch=self._tell_batch,
        )

    def _tell_batch(self, images: int) -> None:
        self.tally.under_way = images
        if self._progress is not None:
            self._progress(self.tally)

    def _computed(self, pixels: NDArray[Any], seconds: Seconds) -> dict[str, NDArray[Any]]:
        if self._computing is None:
            self._computing = self._build()
        values = self._computing(pixels, seconds)
        if self.tally.first_seconds is None:
            self.tally.first_seconds = time.perf_counter() - self._began
        return values

    def _work(self, shards: Iterable[int]) -> Iterator[Work]:
        taken = []
        for shard in shards:
            if self._is_mine(shard):
                yield Work(shard, self.plan.items(shard))
            elif not self._store.is_done(shard):
                taken.append(shard)
        for shard in taken:  # whoever had them may have died meanwhile
            if self._is_mine(shard):
                yield Work(shard, self.plan.items(shard))
            elif not self._store.is_done(shard):
                self.tally.elsewhere += 1

    def _is_mine(self, shard: int) -> bool:
        """Take a shard that is neither done nor claimed."""
        if self._store.is_done(shard) or not self._claim(shard):
            return False
        if self._store.is_done(shard):  # by whoever had the claim when we first looked
            self._claims.pop(shard).release()
            return False
        return True

    def _claim(self, shard: int) -> bool:
        lock = self._store.claim(shard)
        if lock is None:
            return False
        self._claims[shard] = lock
        return True

    def _check_failures(self, block: Block, count: int) -> None:
        """Stop before the block is written, which would not be finished anyway."""
        if self._max_errors is not None and block.failed and count > self._max_errors:
            last = block.rows[block.failed[-1]]
            raise TooManyFailuresError(
                f"{count} images failed, and max_errors allows {self._max_errors}; the last one: "
                f"{last.key}: {last.error} Finished shards are kept: mend the source, or allow "
                "more, and run the same command again."
            )

    def _tell(self, finished: Finished) -> None:
        self.tally.images += len(finished.block.rows)
        self.tally.failed += len(finished.block.failed)
        self.tally.seconds.add(finished.seconds)
        self.tally.under_way = 0

    def _write(self, finished: Finished) -> None:
        """Write a block, and with the last one finish its shard; in the writer's thread."""
        began = time.perf_counter()
        shard = self._open.get(finished.shard)
        if shard is None:
            writer = self._format.writer(finished.shard)
            shard = self._open[finished.shard] = _Shard(finished.shard, writer)
        shard.add(finished.block, finished.seconds)
        shard.writer.append(finished.block)
        shard.seconds.write += time.perf_counter() - began
        if finished.last:
            self._finish(shard)

    def _finish(self, shard: _Shard, replacing: Callable[[], None] | None = None) -> None:
        began = time.perf_counter()
        files = shard.writer.commit(replacing)
        shard.seconds.write += time.perf_counter() - began
        self._store.write_record(shard.record(files))
        del self._open[shard.number]
        self._claims.pop(shard.number).release()
        self.tally.shards += 1
        self.tally.seconds.write += shard.seconds.write
        _log.info("shard %d: %d images, %d failed", shard.number, shard.images, shard.failed)

    def _rows(self, shard: int) -> Iterator[Row]:
        for block in self._store.blocks(self._format, shard):
            yield from block.rows

    def _rewrite(self, number: int, failed: list[int], results: list[Finished]) -> None:
        """Write a shard again with new rows in the place of failed ones."""
        rows = [row for one in results for row in one.block.rows]
        values = {
            column.name: np.concatenate([one.block.values[column.name] for one in results])
            for column in self._manifest.schema.columns
            if results
        }
        before = self._store.record(number).seconds
        seconds = Seconds(**{name: before.get(name, 0.0) for name in vars(Seconds())})
        for one in results:
            seconds.add(one.seconds)
        shard = _Shard(number, self._format.writer(number), seconds=seconds)
        self._open[number] = shard
        position = taken = 0
        for block in self._store.blocks(self._format, number):
            while taken < len(failed) and failed[taken] < position + len(block.rows):
                place = failed[taken] - position
                block.rows[place] = rows[taken]
                for name, array in values.items():
                    block.values[name][place] = array[taken]
                taken += 1
            position += len(block.rows)
            shard.add(block, Seconds())
            shard.writer.append(block)
        # Until the new record is there the shard counts as missing, however this process ends.
        self._finish(shard, lambda: self._store.forget(number))

    def _forget(self) -> None:
        """Give up what was begun and is not finished; others, or the next run, can take it."""
        for shard in self._open.values():
            shard.writer.discard()
        self._open.clear()
        for lock in self._claims.values():
            lock.release()
        self._claims.clear()


class _Writing:
    """A thread that writes, a few blocks behind. Its errors come out of ``put``, or at the end."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trunkline-writer")
        self._waiting: list[Future[None]] = []
        self._is_broken = False

    def put(self, write: Callable[[Finished], None], finished: Finished) -> None:
        """Write a block soon; waits while too many are waiting."""
        while len(self._waiting) >= _UNWRITTEN_BLOCKS:
            self._waiting.pop(0).result()
        self._waiting.append(self._thread.submit(self._write, write, finished))

    def _write(self, write: Callable[[Finished], None], finished: Finished) -> None:
        if self._is_broken:  # a shard must not be finished without a block that was lost
            return
        try:
            write(finished)
        except BaseException:
            self._is_broken = True
            raise

    def __enter__(self) -> _Writing:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=True)
        if error is None:
            for one in self._waiting:
                one.result()
