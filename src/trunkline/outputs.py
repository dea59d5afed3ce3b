"""Files and folders that exist whole or not at all, and how to know them again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedIOBase, RawIOBase
from pathlib import Path
from typing import Any

from trunkline.errors import OutputError

_READ_BYTES = 1 << 24


def sha256_of(path: Path) -> str:
    """Hash a file; about 0.1 s for 100 MB."""
    with path.open("rb", 0) as file:  # unbuffered: the pieces are large already
        return sha256_of_open(file)


def sha256_of_open(file: BufferedIOBase | RawIOBase) -> str:
    """Hash what is left of an open file.

    In large pieces: between two of them a thread waits until the others leave the interpreter.
    """
    digest = hashlib.sha256()
    piece = memoryview(bytearray(_READ_BYTES))
    while length := file.readinto(piece):
        digest.update(piece[:length])
    return digest.hexdigest()


def digest_of(fields: Mapping[str, Any]) -> str:
    """Hash what JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path to write to, and put what was written in place once the block ends well.

    Args:
        path: Where the file shall be; missing folders are made, an old file is replaced.

    Yields:
        A path in a folder of its own beside the target, so that the last step is a rename within
        one disk. It is gone after an error, and an old file is as it was.

    Raises:
        OutputError: The target is a folder, or cannot be written.
    """
    target = Path(path)
    if target.is_dir():
        raise OutputError(f"{target} is a folder; give the path of a file.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".trunkline-", dir=target.parent) as aside:
            written = Path(aside, target.name)
            yield written
            written.replace(target)
    except OSError as error:
        raise OutputError(
            f"{target} cannot be written: {error.strerror or error}; choose another place."
        ) from error


@contextmanager
def folder_written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give an empty folder to write into, and put it in place once the block ends well.

    Args:
        path: Where the folder shall be; it must not exist. Missing folders above it are made.

    Yields:
        A folder beside the target. It is gone after an error.

    Raises:
        OutputError: The target exists, or cannot be written.
    """
    target = Path(path)
    if target.exists() or target.is_symlink():
        raise OutputError(f"{target} exists already; give a new folder, or remove that one first.")
    aside: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".trunkline-", dir=target.parent))
        yield aside
        aside.chmod(0o755)  # mkdtemp's are the owner's alone
        aside.rename(target)
    except OSError as error:
        raise OutputError(
            f"{target} cannot be written: {error.strerror or error}; choose another place."
        ) from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
