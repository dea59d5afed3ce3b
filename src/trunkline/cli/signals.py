"""SIGINT and SIGTERM: the first is a wish to stop, the second ends the program at once.

Python runs a handler of signals in its main thread, which may be inside a library for minutes, or
wait for a host that never answers. So the operating system writes every signal into a socket as
well, and a thread that does nothing else reads it there.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from trunkline.cli.output import say

_STOPPING = "Stopping after this batch; once more ends it at once."
_SHOW_CURSOR = b"\x1b[?25h\n"
_TERMINAL_SECONDS = 0.2
_HANDLED = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """Whether a signal came, and which.

    Attributes:
        event: Set by the first one.
        number: Of the first one, 0 before.
    """

    def __init__(self) -> None:
        self.event = threading.Event()
        self.number = 0
        self._lock = threading.RLock()  # a handler may come in the middle of another

    def note(self, number: int, _frame: FrameType | None = None) -> None:
        """Note the first signal, and say what it does; called by whoever hears of it first."""
        with self._lock:
            if self.event.is_set():
                return
            self.number = number
            self.event.set()
        say(_STOPPING)


@contextmanager
def stopping_on_signals() -> Iterator[Stopping]:
    """Turn SIGINT and SIGTERM into a wish to stop, and the second of them into the end.

    Signals that the program was started to ignore, as shells do for what runs in the background,
    stay ignored.
    """
    stopping = Stopping()
    if threading.current_thread() is not threading.main_thread():
        yield stopping  # Python delivers signals to the main thread alone
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    handled = [one for one in _HANDLED if signal.getsignal(one) != signal.SIG_IGN]
    before = {number: signal.signal(number, stopping.note) for number in handled}
    descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reader, stopping, set(handled)), daemon=True)
    watcher.start()
    try:
        yield stopping
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()  # ends the thread
        watcher.join()
        reader.close()


def _watch(reader: socket.socket, stopping: Stopping, handled: set[int]) -> None:
    count = 0
    while numbers := reader.recv(64):
        for number in filter(handled.__contains__, numbers):
            count += 1
            if count > 1:
                _end(number)
            stopping.note(number)


def _end(number: int) -> None:
    """End this process, whatever it is doing; those that it started end with it, or here."""
    on_ray = sys.modules.get("trunkline.extraction.on_ray")
    if on_ray is not None:
        on_ray.kill_local()
    if os.isatty(2):
        # A bar hides the cursor. A terminal that is halted must not keep us.
        show = threading.Thread(target=os.write, args=(2, _SHOW_CURSOR), daemon=True)
        show.start()
        show.join(_TERMINAL_SECONDS)
    os._exit(128 + number)
