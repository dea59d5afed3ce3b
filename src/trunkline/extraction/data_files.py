"""Data files of a store, opened so that a damaged or strange one is an error that names it.

Every data file has a SHA-256 in the record of its shard. Whoever reads a file to write its rows
anew gives that hash: otherwise damage would get a hash of its own, and nobody could see it again.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, NoReturn, cast

from trunkline.errors import StoreError, TrunklineError
from trunkline.extraction.locations import open_regular
from trunkline.outputs import sha256_of_open

Hashes = Mapping[str, str]
"""Name of a file relative to its store → SHA-256 that it was written with."""

_REMEDY = (
    "Put back a copy; or remove it and the record of its shard in NAME.trunkline/shards, and run "
    "the command that made the store again to have it computed anew."
)


def unreadable(path: Path, error: object) -> StoreError:
    """Return the error for a file of a store that is missing or damaged."""
    reason = getattr(error, "strerror", None) or error
    if str(reason) == "":
        reason = type(error).__name__
    return StoreError(f"{path} cannot be read: {reason}. {_REMEDY}")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file makes its reader raise into ``StoreError``: nearly anything."""
    try:
        yield
    except TrunklineError:
        raise
    except Exception as error:
        raise unreadable(path, error) from error


@contextmanager
def opened(path: Path, sha256: str | None = None) -> Iterator[BinaryIO]:
    """Open a data file.

    Args:
        path: Of a regular file; anything else (a pipe would wait for ever) is refused.
        sha256: That it must have. The file is read to its end and compared before it is given, and
            what is given is the same open file. None compares nothing.

    Raises:
        StoreError: It is not there, no regular file, or not the one that was written.
    """
    with readable(path):
        file = open_regular(os.fspath(path))
    with file:
        if sha256 is not None:
            with readable(path):
                found = sha256_of_open(cast(BufferedReader, file))
                file.seek(0)
            if found != sha256:
                _refuse_damaged(path)
        yield file


def content_of(path: Path, sha256: str | None = None) -> bytes:
    """Return all bytes of a data file, which are those that were compared.

    Raises:
        StoreError: As ``opened``.
    """
    with opened(path) as file, readable(path):
        content = file.read()
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        _refuse_damaged(path)
    return content


def is_as_written(path: Path, sha256: str) -> bool:
    """Say whether a data file is there and has the bytes that were written."""
    try:
        with opened(path, sha256):
            return True
    except StoreError:
        return False


def check_owners(owners: Mapping[Path, str | None], store_id: str) -> None:
    """Refuse to replace files that are not of this store.

    Args:
        owners: Files that stand where a shard shall be, and the store that each says it is of.
        store_id: Of this store.

    Raises:
        StoreError: One is of another store, or does not say of which.
    """
    for path, owner in owners.items():
        if owner != store_id:
            what = "says of no store that it is of it" if owner is None else "is of another store"
            raise StoreError(
                f"{path} stands where a shard shall be written, and {what}: it is a file of "
                "somebody else's, or a damaged one. Nothing was changed; move it away and run the "
                "same command again, or extract into a new place."
            )


def numbers_in(folder: Path, pattern: re.Pattern[str], *, regular: bool = False) -> Counter[int]:
    """Count the shards that names in a folder tell of; other names do not count.

    Args:
        folder: That may be missing.
        pattern: Of whole names, whose one group is the number.
        regular: Whether folders and pipes of such names do not count either.

    Raises:
        StoreError: The folder cannot be listed.
    """
    found: Counter[int] = Counter()
    with readable(folder):
        try:
            entries = os.scandir(folder)
        except FileNotFoundError:
            return found
        with entries:
            for entry in entries:
                match = pattern.fullmatch(entry.name)
                if match and match[1] == f"{int(match[1]):05d}":
                    found[int(match[1])] += entry.is_file() or not regular
    return +found


def _refuse_damaged(path: Path) -> NoReturn:
    raise StoreError(
        f"{path} is not the file that was written: its SHA-256 is not the recorded one. {_REMEDY}"
    )
