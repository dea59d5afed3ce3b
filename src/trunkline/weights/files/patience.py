"""How long a host is borne with, and what ends it."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to bear with a host before the next one is asked."""

    attempts: int = 5
    backoff_seconds: float = 1.0  # before the second attempt; doubled before each further one
    backoff_limit_seconds: float = 30.0
    retry_after_limit_seconds: float = 120.0  # a host that asks for more is given up
    connect_seconds: float = 4.0  # a machine without a network shall know it soon
    unreachable_attempts: int = 2  # to find a host's address, or to be let in by it
    read_seconds: float = 30.0  # without a single byte
    piece_seconds: float = 60.0  # for each 64 KiB, and for the head of an answer
    total_seconds: float = 6 * 3600.0  # for one place, all attempts and pauses together
    lock_seconds: float = 3600.0  # for another process that downloads the same file
    max_bytes: int = 64 << 30  # no published backbone comes near; an endless body must end


PATIENCE = Patience()


class PlaceError(Exception):
    """Why one place did not give a file. Collected by the caller, never shown as it is."""

    def __init__(
        self,
        reason: str,
        *,
        transient: bool = False,
        unreachable: bool = False,
        wait_seconds: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.transient = transient
        self.unreachable = unreachable  # nobody answered: there may be no network at all
        self.wait_seconds = wait_seconds


class Deadline:
    """When a place is given up, whatever it has sent by then."""

    def __init__(self) -> None:
        self._at = time.monotonic() + PATIENCE.total_seconds

    def left(self) -> float:
        """Return the seconds that remain, negative ones once it is over."""
        return self._at - time.monotonic()


class Watch:
    """Shuts down the connections of a question in which too little moves.

    Use it as a context manager. A thread of its own does it, because a socket that waits for the
    rest of a line or a piece cannot be talked to.
    """

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._sockets: list[socket.socket] = []
        self._last = time.monotonic()
        self._expired = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trunkline-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        for one in self._sockets:  # urllib3 forgets those whose answer has a head it does not like
            if (descriptor := one.detach()) >= 0:
                socket.close(descriptor)

    def add(self, opened: Any) -> None:
        """Watch over a connection too: a socket, or what TLS is spoken through."""
        while not isinstance(opened, socket.socket):
            opened = opened.socket
        self._sockets.append(opened)
        if self._expired:
            self._shut_down()

    def moved(self) -> None:
        """Note that enough has come."""
        self._last = time.monotonic()

    def check(self) -> None:
        """Raise PlaceError if the time is up."""
        if self._deadline.left() < 0:
            raise PlaceError(f"too slow ({in_all()})")
        if self._expired:
            raise PlaceError("timed out", transient=True)

    def _left(self) -> float:
        return min(self._last + PATIENCE.piece_seconds - time.monotonic(), self._deadline.left())

    def _run(self) -> None:
        while not self._over.wait(max(0.0, self._left())):
            if self._left() <= 0:
                self._expired = True
                self._shut_down()
                return

    def _shut_down(self) -> None:
        for one in self._sockets:
            with suppress(OSError):  # it has just been closed
                socket.socket.shutdown(one, socket.SHUT_RDWR)  # below TLS, which would wait


def in_all() -> str:
    """Say how long a place is borne with."""
    return f"given up after {PATIENCE.total_seconds:.0f} s in all"
