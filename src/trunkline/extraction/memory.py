"""Memory that processes share, and how much of it there is.

Shared memory is a file without a name, which processes get from the one that made it when they are
started. It is gone with the last of them, however they end. Linux keeps such files in memory
without a folder, so that the size of /dev/shm, 64 MB in a container, and its permissions do not
matter; elsewhere, and where there is not so much memory, they lie in the folder of temporary files.
"""

from __future__ import annotations

import logging
import mmap
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import reduction
from pathlib import Path
from typing import Any

from trunkline.runtimes.processor import control_groups

_ZEROS = bytes(1 << 20)
_SHARE_OF_FREE = 0.9  # the rest is for what other processes of a run take meanwhile
_log = logging.getLogger(__name__)


class SharedFile:
    """A file that this process and those that it starts have open, and nobody else.

    It can be an argument of a process that is being started, and of nothing else.

    Args:
        in_memory: Not in the folder of temporary files. Only Linux can.

    Raises:
        OSError: There can be none.
    """

    def __init__(self, *, in_memory: bool) -> None:
        self.in_memory = in_memory
        self._path: str | None = None
        if in_memory:
            self.descriptor = _memory_file()
        elif os.name == "nt":  # no file there loses its name while it is open
            self.descriptor, self._path = tempfile.mkstemp(prefix="trunkline-")
        else:
            with tempfile.TemporaryFile(prefix="trunkline-") as file:
                self.descriptor = os.dup(file.fileno())

    def __getstate__(self) -> dict[str, Any]:
        handed = self._path or reduction.DupFd(self.descriptor)
        return {"in_memory": self.in_memory, "handed": handed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.in_memory, handed = state["in_memory"], state["handed"]
        self._path = None
        is_path = isinstance(handed, str)
        self.descriptor = os.open(handed, os.O_RDWR) if is_path else handed.detach()

    def reserve(self, size: int) -> None:
        """Let the file have so many bytes, which are there: using them cannot fail any more.

        Raises:
            OSError: There are not so many; the file is empty.
        """
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self.descriptor, 0, size)
                return
            os.lseek(self.descriptor, 0, os.SEEK_SET)
            for start in range(0, size, len(_ZEROS)):
                os.write(self.descriptor, _ZEROS[: size - start])
        except OSError:
            self.empty()
            raise

    def empty(self) -> None:
        """Give the bytes back. Nobody may look at them any more."""
        os.ftruncate(self.descriptor, 0)

    def map(self, size: int) -> mmap.mmap:
        """Return the first bytes of the file as memory; it stays valid after ``close``."""
        return mmap.mmap(self.descriptor, size)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self.descriptor)
        if self._path is not None:
            try:
                os.unlink(self._path)
            except PermissionError:  # something still looks at it; Windows clears that folder
                _log.warning("%s is left behind", self._path)


def shared_file() -> SharedFile:
    """Make an empty file, in memory where that can be.

    Raises:
        OSError: There can be none.
    """
    try:
        return SharedFile(in_memory=True)
    except OSError:
        return SharedFile(in_memory=False)


def _memory_file() -> int:
    if sys.platform != "linux":
        raise OSError("only Linux has files in memory without a folder")
    return os.memfd_create("trunkline", os.MFD_CLOEXEC)


def free_memory(groups: str | None = None, root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes of memory that this process may still take; None where it is not known.

    Args:
        groups: Text of ``/proc/self/cgroup``; None reads it.
        root: Where control groups are mounted.

    Returns:
        What the machine has, or less where a control group (a container) sets a limit. What only
        keeps copies of files counts as free.
    """
    try:
        if groups is None:
            groups = Path("/proc/self/cgroup").read_text(encoding="utf-8")
        machine = _fields(Path("/proc/meminfo"))["MemAvailable:"] << 10
    except (OSError, KeyError):
        return None
    folders = control_groups(groups, root, "memory")
    return max(0, min([machine, *(left for one in folders if (left := _left(one)) is not None)]))


def _left(folder: Path) -> int | None:
    """Return what a control group leaves, None where it sets no limit."""
    for most, used, reclaimable in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit = (folder / most).read_text(encoding="ascii").strip()
            if limit == "max":
                return None
            taken = int((folder / used).read_text(encoding="ascii"))
            return int(limit) - taken + _fields(folder / "memory.stat").get(reclaimable, 0)
        except (OSError, ValueError):  # another version, or one that is going away
            continue
    return None


def _fields(path: Path) -> dict[str, int]:
    """Read lines of a name and a number."""
    words = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    return {line[0]: int(line[1]) for line in words}


class _Limit:
    """Keeps what this process may allocate within what there is, while any thread asks for it.

    The limit belongs to the process: the first thread that comes in remembers the caller's, and
    the last one that goes restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = (0, 0)

    @contextmanager
    def no_more_than_free(self) -> Iterator[None]:
        """Refuse this process memory that the machine does not have, while the block runs.

        Linux grants any amount, and ends a process that uses what is not there. In the block an
        allocation fails instead, which engines turn into an error. Elsewhere this does nothing.
        """
        free = free_memory() if sys.platform == "linux" else None
        if free is None:
            yield
            return
        import resource

        with self._lock:
            if not self._inside:
                self._before = resource.getrlimit(resource.RLIMIT_DATA)
            self._inside += 1
            soft, hard = self._before
            limit = _allocated() + int(_SHARE_OF_FREE * free)
            unlimited = soft == resource.RLIM_INFINITY
            resource.setrlimit(
                resource.RLIMIT_DATA, (limit if unlimited else min(limit, soft), hard)
            )
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    resource.setrlimit(resource.RLIMIT_DATA, self._before)


no_more_than_free = _Limit().no_more_than_free


def _allocated() -> int:
    """Return the bytes that Linux counts against the limit of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
    return pages * mmap.PAGESIZE
