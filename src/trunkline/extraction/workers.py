"""Processes that are started without the caller's script, and that end with whoever started them.

``spawn`` imports the main script again in every process it starts, so that a script without
``if __name__ == "__main__"`` starts itself over and over. A worker of ours needs nothing of it.

Their locks are those of the operating system, which a process that is killed lets go of. A
semaphore it would keep, and semaphores need a /dev/shm that can be written.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection, context, parent_process, process, spawn
from pathlib import Path
from typing import Any
from weakref import WeakSet

from trunkline.extraction.memory import shared_file

_FIRST_TO_DIE = "500"  # of 1000; a process has 0 unless told otherwise
_one_at_a_time = threading.RLock()


@contextmanager
def _main_left_out() -> Iterator[None]:
    original = spawn.get_preparation_data

    def prepared(name: str) -> dict[str, Any]:
        fields = original(name)
        return {key: value for key, value in fields.items() if not key.startswith("init_main")}

    with _one_at_a_time:
        spawn.get_preparation_data = prepared
        try:
            yield
        finally:
            spawn.get_preparation_data = original


class _Process(context.SpawnProcess):
    def start(self) -> None:
        """Start, also within a daemonic process, as workers of Celery and of a Pool are.

        Those may have no children, because theirs would be left behind. Ours end with their parent.
        """
        config: dict[str, Any] = process.current_process()._config  # type: ignore[attr-defined]
        with _one_at_a_time:
            is_daemon = config.pop("daemon", None)
            try:
                super().start()
            finally:
                if is_daemon is not None:
                    config["daemon"] = is_daemon

    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> Any:  # noqa: N802 (multiprocessing's name)
        with _main_left_out():
            return context.SpawnProcess._Popen(process_obj)


class WorkerContext(context.SpawnContext):
    """``spawn``, without importing the main script in the new process."""

    def __init__(self) -> None:
        super().__init__()
        self._started: WeakSet[process.BaseProcess] = WeakSet()

    def Process(self, *arguments: Any, **options: Any) -> _Process:  # type: ignore[override]  # noqa: N802 (multiprocessing's name)
        """Return a process that is not started yet."""
        made = _Process(*arguments, **options)
        self._started.add(made)
        return made

    def RLock(self) -> Any:  # noqa: N802 (multiprocessing's name)
        """Return a lock between processes that can be acquired again by its holder."""
        return super().RLock() if os.name == "nt" else ProcessLock()

    def kill(self) -> None:
        """End every process that was started, whatever it is doing."""
        for one in list(self._started):
            if one.pid is not None and one.is_alive():
                one.kill()


class ProcessLock:
    """A lock between processes of POSIX; threads of one process do not exclude each other.

    A process that ends lets go of it. Waiting has no limit, because it ends with the holder.
    """

    def __init__(self) -> None:
        self._file = shared_file()
        self._depth = 0

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take the lock, once more if it is held already."""
        del timeout
        import fcntl

        if not self._depth:
            try:
                fcntl.lockf(self._file.descriptor, fcntl.LOCK_EX | (0 if block else fcntl.LOCK_NB))
            except OSError as error:
                if not block and isinstance(error, BlockingIOError | PermissionError):
                    return False
                raise
        self._depth += 1
        return True

    def release(self) -> None:
        """Undo one ``acquire``."""
        import fcntl

        self._depth -= 1
        if not self._depth:
            fcntl.lockf(self._file.descriptor, fcntl.LOCK_UN)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


def end_with_parent() -> None:
    """Let this process end at once when the one that started it does, whatever it is doing.

    Where memory runs out, Linux is told to end this process rather than the other.
    """
    if sys.platform == "linux":
        with suppress(OSError):  # not every container shows it
            Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_DIE, encoding="ascii")
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
