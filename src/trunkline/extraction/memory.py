"""Shared memory that a killed run leaves behind is freed by the next one.

Python's resource tracker frees what a process that died has left, unless it was killed as well, as
schedulers do with whole process groups. So every piece is locked by its owner, with a lock of the
operating system that goes away with it; a piece that nobody has locked is nobody's.
"""

from __future__ import annotations

import os
import secrets
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

_FOLDER = Path("/dev/shm")  # noqa: S108 - where Linux keeps shared memory; elsewhere it is missing
_PREFIX = "trunkline-"
_NEW_SECONDS = 10.0  # in which its owner has locked a piece that it has made


class Piece:
    """Shared memory of this process.

    Args:
        size: Bytes, at least one.

    Attributes:
        memory: What other processes open by its name.

    Raises:
        OSError: There is not so much.
    """

    def __init__(self, size: int) -> None:
        self.memory = SharedMemory(f"{_PREFIX}{secrets.token_hex(8)}", create=True, size=size)
        self._lock = locked(_FOLDER / self.memory.name)

    def free(self) -> None:
        """Give it back. Nothing of this process may look at it any more."""
        self.memory.close()
        self.memory.unlink()
        if self._lock is not None:
            os.close(self._lock)


def free_abandoned() -> None:
    """Free the memory of runs of this user that were killed. Does nothing outside Linux."""
    for path in _FOLDER.glob(f"{_PREFIX}*"):
        try:
            if time.time() - path.stat().st_mtime < _NEW_SECONDS:
                continue
            lock = locked(path)
        except (FileNotFoundError, PermissionError):  # freed meanwhile, or another user's
            continue
        if lock is not None:
            path.unlink(missing_ok=True)
            os.close(lock)


def locked(path: Path) -> int | None:
    """Lock a piece; return what holds the lock, None where another process does."""
    if not _FOLDER.is_dir():
        return None
    import fcntl

    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
