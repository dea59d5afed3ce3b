"""A source is listed in a thread of its own, for which nobody waits longer than they want to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType

from trunkline.extraction.plan import Plan

_THREAD = "trunkline-listing"
_LOOK_SECONDS = 0.1  # between looks whether the run shall stop
_LEAVE_SECONDS = 1.0  # that a listing gets to come to an end when its run does


class Listing:
    """Extends a plan to its end while others compute, so that the total is known early.

    A host that answers slowly, or not at all, keeps only this thread: ``shards`` ends when the run
    shall stop, and leaving the block does not wait for what the thread is in.

    Args:
        plan: What is extended.
        stopping: Once set, no more is listed.
    """

    def __init__(self, plan: Plan, stopping: threading.Event) -> None:
        self._plan = plan
        self._stopping = stopping
        self._left = threading.Event()
        self._news = threading.Condition()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=_THREAD, daemon=True)

    def shards(self) -> Iterator[int]:
        """Yield the number of every shard, in order, as they are listed.

        Raises:
            TrunklineError: What ended the listing, once the shards before that are yielded.
        """
        number = 0
        while not self._stopping.is_set():
            counts = self._plan.counts()
            if number < counts.shards:
                yield number
                number += 1
            elif counts.complete:
                return
            elif self._error is not None:
                raise self._error
            else:
                with self._news:
                    self._news.wait(_LOOK_SECONDS)

    def _run(self) -> None:
        try:
            while not (self._stopping.is_set() or self._left.is_set()) and self._plan.extend():
                with self._news:
                    self._news.notify_all()
        except BaseException as error:  # it is raised where the shard is missed
            self._error = error
        finally:
            with self._news:
                self._news.notify_all()

    def __enter__(self) -> Listing:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.set()
        self._thread.join(_LEAVE_SECONDS)


def is_abandoned() -> bool:
    """Say whether the thread of a listing, whose block has been left, is still in it."""
    return any(one.name == _THREAD for one in threading.enumerate())
