"""The files below a folder in one fixed order, in little memory, on disk or behind a URL.

The order is that of the relative paths, compared name by name: what is in ``a/`` comes before
``b.jpg``. Nothing but the names of one folder is ever sorted at once, and of a large folder only
a run at a time: sorted runs go into a temporary file and are merged from there.

Because the order does not depend on what else exists, a walk can continue behind any path, even
one that is gone.
"""

from __future__ import annotations

import heapq
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import translate
from itertools import islice, pairwise
from typing import BinaryIO, NamedTuple

from trunkline.errors import SourceError
from trunkline.extraction.locations import filesystem_of, is_hidden, joined, local_path

RUN_NAMES = 200_000
"""Names of one folder that are sorted in memory, about 30 MB; of more, runs go to a file."""

_READ_BYTES = 1 << 16
_DEEPEST = 100  # folders in one another behind a URL, where a host may have any number of them
_ANY_DEPTH = "**"

Names = tuple[str, ...]
"""A relative path, name by name."""


class _Entry(NamedTuple):
    name: str
    is_folder: bool


@dataclass(frozen=True)
class _Folder:
    """A folder being walked.

    Attributes:
        location: Where it is.
        names: Its path below the root.
        states: Positions in the pattern that its entries may match.
        behind: What is left of the path that the walk continues behind.
        lineage: Device and number of it and of those above it; empty behind a URL.
    """

    location: str
    names: Names
    states: frozenset[int]
    behind: Names
    lineage: tuple[tuple[int, int], ...]


class Pattern:
    """A glob, name by name: ``*``, ``?``, ``[…]`` within a name, ``**`` for any depth.

    Hidden names match only where the pattern itself begins with a dot.
    """

    def __init__(self, names: Iterable[str]) -> None:
        parts = list(names)
        if parts and parts[-1] == _ANY_DEPTH:
            parts.append("*")
        self._any_depth = [part == _ANY_DEPTH for part in parts]
        self._hidden = [part.startswith(".") for part in parts]
        self._matches = [re.compile(translate(part)).match for part in parts]
        self.start = self._closed({0})

    def below(self, states: frozenset[int], name: str) -> frozenset[int]:
        """Return the positions inside a folder of that name; none if nothing there can match."""
        last = len(self._matches) - 1
        return self._closed(
            {
                state if self._any_depth[state] else state + 1
                for state in states
                if self._fits(state, name) and (self._any_depth[state] or state < last)
            }
        )

    def accepts(self, states: frozenset[int], name: str) -> bool:
        """Say whether a file of that name matches."""
        last = len(self._matches) - 1
        return last in states and self._fits(last, name)

    def _fits(self, state: int, name: str) -> bool:
        if is_hidden(name) and not self._hidden[state]:
            return False
        return self._any_depth[state] or self._matches[state](name) is not None

    def _closed(self, states: set[int]) -> frozenset[int]:
        """Add where ``**`` stands for nothing."""
        for state in sorted(states):
            follower = state
            while self._any_depth[follower]:
                follower += 1
                states.add(follower)
        return frozenset(states)


EVERYTHING = Pattern([_ANY_DEPTH, "*"])
"""Every file that is not hidden, in a folder that is not hidden, at any depth."""


def walk(root: str, pattern: Pattern = EVERYTHING, behind: Names = ()) -> Iterator[Names]:
    """Yield the files below a folder that match, in order.

    Links to folders are followed, except to a folder that holds the link. A folder that vanishes
    during the walk holds nothing.

    Args:
        root: Path or URL of the folder.
        pattern: Which files.
        behind: Start with what comes after this path; it need not exist.

    Raises:
        SourceError: The root is not there, or a folder cannot be read.
    """
    path = local_path(root)
    start = root if path is None else path
    identity = None if path is None else _identity(path)
    if path is not None and identity is None:
        raise SourceError(f"{path} does not exist; check the path.")
    lineage = () if identity is None else (identity,)
    first = _Folder(start, (), pattern.start, behind, lineage)
    stack = [(first, _in_order(_entries(first)))]
    while stack:
        folder, entries = stack[-1]
        entry = next(entries, None)
        if entry is None:
            stack.pop()
        elif not entry.is_folder:
            if pattern.accepts(folder.states, entry.name):
                yield (*folder.names, entry.name)
        elif (inner := _entered(folder, entry.name, pattern)) is not None:
            stack.append((inner, _in_order(_entries(inner))))


def _entered(folder: _Folder, name: str, pattern: Pattern) -> _Folder | None:
    """Return a folder in a folder, None where nothing can match or it holds the link to itself."""
    states = pattern.below(folder.states, name)
    if not states:
        return None
    location = joined(folder.location, name)
    lineage = folder.lineage
    if lineage:
        identity = _identity(location)
        if identity is None or identity in lineage:
            return None
        lineage = (*lineage, identity)
    elif len(folder.names) >= _DEEPEST:
        raise SourceError(
            f"{location} is the {_DEEPEST}th folder in another, as if there were no end of them; "
            "give a folder further down."
        )
    continued = folder.behind[1:] if folder.behind[:1] == (name,) else ()
    return _Folder(location, (*folder.names, name), states, continued, lineage)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # the second for a NUL in a name
        raise _unreadable(path, error) from error
    return found.st_dev, found.st_ino


def _entries(folder: _Folder) -> Iterator[_Entry]:
    """Yield what is in a folder, in any order, without what the walk has behind it."""
    scanned = _on_disk(folder) if folder.lineage else _behind_url(folder)
    if not folder.behind:
        yield from scanned
        return
    reached = folder.behind[0]
    for entry in scanned:
        # Where a file ended the last walk and a folder has its name now, its content comes after.
        if entry.name > reached or (entry.name == reached and entry.is_folder):
            yield entry


def _on_disk(folder: _Folder) -> Iterator[_Entry]:
    try:
        with os.scandir(folder.location) as entries:
            for entry in entries:
                yield _Entry(entry.name, _is_folder(entry))
    except (FileNotFoundError, NotADirectoryError) as error:
        if not folder.names:
            raise _unreadable(folder.location, error) from error
    except OSError as error:
        raise _unreadable(folder.location, error) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle, or where nobody may look: reading it will say
        return False


def _behind_url(folder: _Folder) -> Iterator[_Entry]:
    filesystem, path = filesystem_of(folder.location)
    try:
        listed = filesystem.ls(path, detail=True)
        filesystem.invalidate_cache(path)  # or every folder of the walk would stay in memory
    except (FileNotFoundError, NotADirectoryError) as error:
        if not folder.names:
            raise _unreadable(folder.location, error) from error
        return
    except Exception as error:  # drivers raise their own
        raise _unreadable(folder.location, error) from error
    for entry in listed:
        where = entry["name"].rstrip("/")
        name = where.rpartition("/")[2]
        if name and where.strip("/") != path.strip("/"):  # some list the folder itself
            yield _Entry(name, entry["type"] == "directory")


def _unreadable(location: str, error: Exception) -> SourceError:
    reason = getattr(error, "strerror", None) or error
    return SourceError(
        f"{location} cannot be listed: {reason}. Check that it is a folder that you may read."
    )


def _in_order(entries: Iterator[_Entry]) -> Iterator[_Entry]:
    """Sort by name, with at most ``RUN_NAMES`` entries in memory."""
    limit = RUN_NAMES
    run = sorted(islice(entries, limit))
    if len(run) < limit:
        yield from run
        return
    with tempfile.TemporaryFile(prefix="trunkline-") as file:
        ends = [0]
        while run:
            file.write(b"".join(map(_written, run)))
            ends.append(file.tell())
            run = sorted(islice(entries, limit))
        file.flush()
        runs = (_spilled(file, *reach) for reach in pairwise(ends))
        yield from heapq.merge(*runs)


def _written(entry: _Entry) -> bytes:
    mark = b"d" if entry.is_folder else b"f"
    return mark + entry.name.encode("utf-8", "surrogatepass") + b"\0"  # no name has a NUL


def _spilled(file: BinaryIO, start: int, end: int) -> Iterator[_Entry]:
    rest = b""
    while start < end:
        file.seek(start)
        read = file.read(min(_READ_BYTES, end - start))
        start += len(read)
        *records, rest = (rest + read).split(b"\0")
        for record in records:
            yield _Entry(record[1:].decode("utf-8", "surrogatepass"), record[:1] == b"d")
