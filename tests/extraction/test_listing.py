"""A listing that is slow, or that fails, keeps nobody waiting who does not want to."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import cast

import pytest

from trunkline.errors import SourceError
from trunkline.extraction import listing
from trunkline.extraction.listing import Listing, is_abandoned
from trunkline.extraction.plan import Plan, PlanCounts


class Slow:
    """A plan of two shards, after which its host is silent, raises something, or is at its end."""

    def __init__(self, then: Exception | None = None, *, complete: bool = False) -> None:
        self.then, self.complete = then, complete
        self.let_go = threading.Event()
        self.found = PlanCounts()

    def counts(self) -> PlanCounts:
        return self.found

    def extend(self) -> bool:
        if self.found.shards == 2:
            if self.then is not None:
                raise self.then
            if not self.complete:
                self.let_go.wait(60)
            self.found = PlanCounts(shards=2, images=2, complete=True)
            return False
        self.found = PlanCounts(shards=self.found.shards + 1, images=self.found.images + 1)
        return True


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(listing, "_LEAVE_SECONDS", 0.05)
    yield
    assert not is_abandoned()


def listed(plan: Slow, stopping: threading.Event | None = None) -> Listing:
    return Listing(cast(Plan, plan), stopping or threading.Event())


def test_all_shards_in_order() -> None:
    with listed(Slow(complete=True)) as found:
        assert list(found.shards()) == [0, 1]


def test_a_wish_to_stop_is_heard_while_a_host_is_silent() -> None:
    plan, stopping = Slow(), threading.Event()
    with listed(plan, stopping) as found:
        shards = found.shards()
        assert [next(shards), next(shards)] == [0, 1]
        threading.Timer(0.05, stopping.set).start()
        assert list(shards) == []
        began = time.monotonic()
    assert time.monotonic() - began < 5  # it is not waited for
    assert is_abandoned()
    plan.let_go.set()
    listing_threads = [one for one in threading.enumerate() if one.name == listing._THREAD]
    for one in listing_threads:
        one.join(10)


@pytest.mark.parametrize("error", [SourceError("the host is gone"), KeyError("a fault of ours")])
def test_what_ends_a_listing_is_told_where_its_shards_end(error: Exception) -> None:
    with listed(Slow(error)) as found:
        shards = found.shards()
        assert [next(shards), next(shards)] == [0, 1]
        with pytest.raises(type(error), match=str(error.args[0])):
            next(shards)
