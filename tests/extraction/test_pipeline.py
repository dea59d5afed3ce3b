"""Blocks come in the order of the plan, what fails is tried twice, and stopping loses no truth."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trunkline.extraction.decoders import Batch
from trunkline.extraction.decoding import Decoded, failed_row
from trunkline.extraction.pipeline import Finished, Pipeline, Seconds, Work
from trunkline.extraction.records import Column, Item, Row, Schema

SCHEMA = Schema(columns=(Column(name="sum", stride=1, shape=(1,)),), dtype="float32", shard_size=10)


class Workers:
    """Decoders in this process: image k is k everywhere, or fails as often as it is told to."""

    def __init__(self, batch_size: int, buffers: int, failures: dict[str, int]) -> None:
        self.batch_size, self.buffers = batch_size, buffers
        self.failures = Counter(failures)
        self.tried: Counter[str] = Counter()
        self.told: list[int] = []
        self.under_way = self.most = 0

    def submit(self, items: Sequence[Item]) -> Batch:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        assert self.most <= self.buffers, "no free buffer: the real ones would wait for ever"
        return Filled(items, self)

    def decode(self, item: Item) -> Decoded:
        self.tried[item.key] += 1
        if self.tried[item.key] <= self.failures[item.key]:
            return Decoded(failed_row(item, f"time {self.tried[item.key]}"), 1.0, 2.0)
        row = Row(key=item.key, path="", width=1, height=1, sha256="", status="ok", error=None)
        return Decoded(row, 1.0, 2.0)


class Filled(Batch):
    """A batch that is ready at once."""

    def __init__(self, items: Sequence[Item], workers: Workers) -> None:
        super().__init__(items, [])
        self._workers = workers
        self.pixels = np.zeros((workers.batch_size, 1, 1, 3), np.uint8)
        for slot, item in enumerate(items):
            self.pixels[slot] = int(item.key)

    def wait(self) -> list[Decoded]:
        return [self._workers.decode(item) for item in self.items]

    def release(self) -> None:
        self._workers.under_way -= 1
        super().release()


def pipeline(
    workers: Workers, stopping: threading.Event, on_compute: Callable[[int], None] | None = None
) -> Pipeline:
    def compute(pixels: NDArray[np.uint8], seconds: Seconds) -> dict[str, NDArray[Any]]:
        assert len(pixels) == workers.batch_size  # engines are built for it
        seconds.compute += 1
        if on_compute is not None:
            on_compute(int(pixels.max()))
        return {"sum": pixels.reshape(len(pixels), -1).sum(1, dtype=np.float32)[:, None]}

    decoders: Any = workers
    return Pipeline(
        decoders, compute, SCHEMA, block_size=4, stopping=stopping, on_batch=workers.told.append
    )


def items(*numbers: int) -> list[Item]:
    return [Item(str(number), "") for number in numbers]


def keys(finished: Sequence[Finished]) -> list[list[str]]:
    return [[row.key for row in one.block.rows] for one in finished]


@pytest.mark.parametrize("buffers", [2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 5])
def test_rows_and_numbers_in_order(batch_size: int, buffers: int) -> None:
    workers = Workers(batch_size, buffers, {"2": 1, "5": 2, "9": 1})
    work = [Work(7, items(*range(6))), Work(8, items(*range(6, 10)))]
    found = list(pipeline(workers, threading.Event()).run(work))
    assert [(one.shard, one.last) for one in found] == [(7, False), (7, True), (8, True)]
    assert keys(found) == [["0", "1", "2", "3"], ["4", "5"], ["6", "7", "8", "9"]]
    rows = {row.key: row for one in found for row in one.block.rows}
    assert [key for key, row in rows.items() if row.status == "failed"] == ["5"]
    assert rows["5"].error == "time 2"
    values = np.concatenate([one.block.values["sum"] for one in found])[:, 0]
    expected = np.array([0, 3, 6, 9, 12, np.nan, 18, 21, 24, 27], np.float32)
    np.testing.assert_array_equal(values, expected)
    assert workers.tried == Counter({str(k): 1 for k in range(10)}) + Counter("259")
    assert workers.under_way == 0
    assert sum(one.seconds.read for one in found) == 13
    assert sum(one.seconds.decode for one in found) == 26


def test_nothing_is_computed_of_a_batch_that_failed() -> None:
    workers, computed = Workers(2, 3, {"1": 2, "2": 2}), list[int]()
    (found,) = pipeline(workers, threading.Event(), computed.append).run([Work(0, items(1, 2))])
    assert computed == []
    assert np.isnan(found.block.values["sum"]).all()


def test_stopping_gives_up_a_block_with_failures() -> None:
    """What ends a run may have ended its workers, so that their images seem to be broken."""
    stopping = threading.Event()
    workers = Workers(2, 3, {"3": 1})
    run = pipeline(workers, stopping, lambda largest: stopping.set() if largest >= 2 else None)
    assert list(run.run([Work(0, items(*range(4)))])) == []
    assert workers.under_way == 0


def test_stopping_in_the_second_try_gives_it_up() -> None:
    stopping = threading.Event()
    workers = Workers(2, 3, {"3": 5})

    def decode(item: Item, real: Callable[[Item], Decoded] = workers.decode) -> Decoded:
        if workers.tried["3"] == 1:
            stopping.set()
        return real(item)

    workers.decode = decode  # type: ignore[method-assign]
    assert list(pipeline(workers, stopping).run([Work(0, items(*range(4)))])) == []
    assert workers.tried["3"] == 2
    assert workers.under_way == 0


def test_stopping_keeps_a_block_that_is_whole() -> None:
    stopping = threading.Event()
    workers = Workers(2, 3, {})
    run = pipeline(workers, stopping, lambda largest: stopping.set() if largest == 3 else None)
    found = list(run.run([Work(0, items(*range(4))), Work(1, items(5, 6))]))
    assert [(one.shard, one.last) for one in found] == [(0, True)]
    assert workers.under_way == 0


def test_closing_early_gives_the_buffers_back() -> None:
    workers = Workers(1, 4, {})
    blocks = pipeline(workers, threading.Event()).run([Work(0, items(*range(10)))])
    assert keys([next(blocks)]) == [["0", "1", "2", "3"]]
    assert workers.under_way == 3 - 1
    blocks.close()
    assert workers.under_way == 0
    assert workers.told == [1, 2, 3, 4]
