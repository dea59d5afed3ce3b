"""Files that outlive a crash: written aside under a name that tells whose, synced, renamed.

A rename within one file system is the only step that others see, and it comes after the bytes are
on the disk. What a dead process left aside is known by its name and removed by the next one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter
from pathlib import Path

from trunkline.errors import OutputError
from trunkline.extraction.owners import done_with, owned_name, remove_abandoned
from trunkline.outputs import sha256_of


def aside(scratch: Path, name: str) -> Path:
    """Return where this process writes a file that shall be called ``name``, each time another.

    Args:
        scratch: A folder on the file system of the target; made if it is missing.
        name: Of the finished file, without folders.

    Returns:
        A path in ``scratch`` by which others can tell whether this process lives, see ``owners``;
        until it is given to ``put_in_place`` or ``remove``.

    Raises:
        OutputError: ``scratch`` cannot be written to.
    """
    with writing(scratch):
        return scratch / owned_name(scratch, name)


def remove_leftovers(scratch: Path) -> None:
    """Remove what processes that have ended left in ``scratch``.

    Args:
        scratch: The folder given to ``aside``; it may be missing. What may belong to a process
            that lives stays, and so does what cannot be removed.

    Raises:
        OutputError: The folder cannot be listed.
    """
    with writing(scratch):
        if scratch.is_dir():
            remove_abandoned(scratch, remove)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk.

    Args:
        path: An existing file or folder. Windows has no such call for folders: skipped there.

    Raises:
        OSError: The disk refused them.
    """
    if os.name == "nt" and path.is_dir():
        return
    # Windows syncs only what is open for writing.
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(written: Path, target: Path) -> None:
    """Sync a file, rename it to what it shall be called, and sync the folder.

    Args:
        written: A complete file on the file system of ``target``.
        target: A file of that name is replaced.

    Raises:
        OSError: The disk refused it; ``target`` is as it was, or is the whole new file.
    """
    sync(written)
    written.replace(target)
    done_with(written)
    sync(target.parent)


def put_text(written: Path, target: Path, text: str) -> None:
    """Write a file of text aside and put it in place; nothing is left aside after an error.

    Args:
        written: From ``aside``.
        target: A file of that name is replaced.
        text: All of it.

    Raises:
        OSError: The disk refused it; ``target`` is as it was, or is the whole new file.
    """
    try:
        written.write_text(text, encoding="utf-8")
        put_in_place(written, target)
    finally:
        remove(written)


class GrowingFile:
    """A file that grows aside and exists whole or not at all.

    Args:
        target: What it shall be called.
        scratch: Where it grows.
    """

    def __init__(self, target: Path, scratch: Path) -> None:
        self.target = target
        self._written = aside(scratch, target.name)
        self._file: BufferedWriter | None = None
        self._sha256: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether it has been begun."""
        return self._file is not None

    def open(self) -> BufferedWriter:
        """Begin it, or return what was begun."""
        if self._file is None:
            self._file = self._written.open("wb")
        return self._file

    def finish(self) -> str:
        """Close it, wait until it is on the disk, and return its SHA-256.

        Raises:
            OSError: The disk refused it.
        """
        if self._sha256 is None:
            self.open().close()
            sync(self._written)
            self._sha256 = sha256_of(self._written)
        return self._sha256

    def commit(self) -> str:
        """Put the file in place, and return its SHA-256.

        Raises:
            OSError: The disk refused it.
        """
        digest = self.finish()
        put_in_place(self._written, self.target)
        return digest

    def discard(self) -> None:
        """Remove what was not put in place."""
        with suppress(OSError):  # it writes what it still holds, onto a disk that may be full
            if self._file is not None:
                self._file.close()
        remove(self._written)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn what a disk refuses into this library's error.

    Args:
        target: What the text says cannot be written.

    Raises:
        OutputError: The block raised an OSError: a full disk, a read-only folder, …
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"{target} cannot be written: {error.strerror or error}; make room or set its "
            "permissions and run the same command again, which keeps all that is finished, "
            "or choose another place."
        ) from error


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there."""
    with suppress(FileNotFoundError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    done_with(path)
