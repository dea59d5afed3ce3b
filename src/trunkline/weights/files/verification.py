"""Whether every weight file on this machine is still what it was."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trunkline.errors import IntegrityError
from trunkline.outputs import sha256_of
from trunkline.weights.files import cache, folder
from trunkline.weights.files.cache import Claim
from trunkline.weights.files.places import Place, candidates_of


@dataclass(frozen=True, kw_only=True)
class FileCheck:
    """What became of one file.

    Attributes:
        path: The file.
        state: ``ok``; ``changed``: it is not what it must be, or cannot be read; ``missing``:
            SHA256SUMS lists it, but it is gone; ``unknown``: nothing says what it must be.
        sha256: What it has now; None if it is missing or cannot be read.
        expected: What it must have, or the beginning of that; None if nobody knows.
        known_by: How that is known; why it cannot be read, where that is so.
    """

    path: Path
    state: Literal["ok", "changed", "missing", "unknown"]
    sha256: str | None
    expected: str | None
    known_by: str | None


def verify(places: Iterable[Place] = ()) -> list[FileCheck]:
    """Hash every file in the cache and in the folder TRUNKLINE_WEIGHTS; change nothing.

    Args:
        places: What the catalog knows, to compare with besides what was recorded.

    Returns:
        One row for each file, the cache's first, in the order of their paths.

    Raises:
        IntegrityError: The folder's SHA256SUMS is not one.
    """
    catalog = {one.path: one.claims for place in places for one in candidates_of(place)}
    rows = [_cached(path, catalog.get(path, ())) for path in _files(cache.weights_home())]
    by_hand = folder.hand_folder()
    return rows if by_hand is None else rows + list(_listed(by_hand))


def _files(root: Path) -> list[Path]:
    """Return all files below a folder, without what begins with a dot: notes, locks, halves.

    Links to folders are followed, to each folder once. A folder that cannot be listed is returned
    as if it were a file, so that it is said.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()

    def unlisted(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            found.append(Path(error.filename or root))

    for base, folders, files in os.walk(root, onerror=unlisted, followlinks=True):
        here = os.stat(base)
        if (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(base, name) for name in files if not name.startswith(".")]
    return sorted(found)


def _cached(path: Path, claims: Iterable[Claim]) -> FileCheck:
    known = list(claims)
    if not known and (digits := cache.hash_in_name(path.name)):
        known.append(Claim(digits, cache.FROM_NAME))
    try:
        noted = cache.read_record(path)
    except IntegrityError:
        return _unreadable(path, "an unreadable record")
    if noted is not None and not any(claim.is_full for claim in known):
        known.insert(0, Claim(noted.sha256, noted.known_by))
    return _compared(path, known)


def _listed(by_hand: Path) -> Iterator[FileCheck]:
    sums = folder.read_sums(by_hand)
    for path in _files(by_hand):
        relative = path.relative_to(by_hand).as_posix()
        if relative == folder.SUMS:
            continue
        digits = sums.pop(relative, None)
        yield _compared(path, [Claim(digits, folder.SUMS)] if digits else [])
    for relative, digits in sorted(sums.items()):
        yield FileCheck(
            path=by_hand / relative,
            state="missing",
            sha256=None,
            expected=digits,
            known_by=folder.SUMS,
        )


def _compared(path: Path, known: list[Claim]) -> FileCheck:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be read for ever
            return _unreadable(path, "no regular file")
        sha256 = sha256_of(path)
    except OSError as error:
        return _unreadable(path, f"cannot be read: {error.strerror or error}")
    broken = cache.broken_claim(sha256, known)
    claim = broken or next(iter(known), None)
    return FileCheck(
        path=path,
        state="changed" if broken else "ok" if known else "unknown",
        sha256=sha256,
        expected=claim.digits if claim else None,
        known_by=claim.known_by if claim else None,
    )


def _unreadable(path: Path, why: str) -> FileCheck:
    return FileCheck(path=path, state="changed", sha256=None, expected=None, known_by=why)
