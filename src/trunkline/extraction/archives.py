"""Images inside tars and Parquet files: which files those are, and where in them each image is.

Of a tar only the headers are read; of a Parquet file only the columns of keys and paths. What is
read later is found by its place: the first byte and the length, or the number of the row.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import BinaryIO

from trunkline.errors import SourceError
from trunkline.extraction.locations import (
    ending_of,
    is_hidden,
    is_image_name,
    is_pattern,
    joined,
    local_path,
    name_of,
    open_location,
    relative_name,
    resolved,
    split_glob,
    split_name,
    written_key,
    written_path,
)
from trunkline.extraction.records import Item
from trunkline.extraction.tables import list_rows, pick_column
from trunkline.extraction.tars import Member, is_possible, length_of, members, next_header
from trunkline.extraction.walking import Pattern, walk

MAX_PARTS = 1_000_000
"""Files that one source may have; their names are held in memory."""

_NAMES_BYTES = 256 << 20  # of all names together
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_DIGITS, _COUNTLESS = 18, 10**18  # of a number in a range; what longer ones come to


def parts_of(location: str, suffix: str) -> list[tuple[str, str]]:
    """List the files of a tar or Parquet source, in order.

    Args:
        location: One file, a folder of them, a glob, or a brace range.
        suffix: What their names end in, in a folder.

    Returns:
        For each its name, relative to what all have in common by the location, and its location;
        both are valid UTF-8.

    Raises:
        SourceError: There are none, there are too many, or a local file of a range is missing.
    """
    path = local_path(location)
    if path is not None and os.path.isdir(path):
        found = _matching(location, [f"*{suffix}"])
    elif (path is not None and os.path.lexists(path)) or not is_pattern(location):
        if path is None and not name_of(location).lower().endswith(suffix):
            found = _matching(location, [f"*{suffix}"])
        else:
            found = [(split_name(location)[1], location)]
    else:
        found = _expanded(location)
    if not found:
        raise SourceError(f"{location} matches no {suffix} file; check the path.")
    return [(written_key(name), _checked(where)) for name, where in found]


def _expanded(location: str) -> list[tuple[str, str]]:
    pieces = _BRACES.split(location)  # texts and, between them, what braces hold
    if _BRACES.search("".join(pieces[::2])):
        raise SourceError(f"{location} has braces within braces; write {{a,b,c}} instead.")
    _check_count(location, math.prod(map(_count, pieces[1::2])))
    root = min(split_name(pieces[0] + "x")[0], split_glob(location)[0], key=len)
    found: list[tuple[str, str]] = []
    for chosen in product(*map(_choices, pieces[1::2])):
        pieces[1::2] = chosen
        one = "".join(pieces)
        folder, names = split_glob(one)
        if names:
            found += [
                (relative_name(root, where) or name, where)
                for name, where in _matching(folder, names)
            ]
        else:
            found.append((relative_name(root, one) or split_name(one)[1], one))
        _check_count(location, len(found))
    return found


def _check_count(location: str, files: int) -> None:
    most = min(MAX_PARTS, _NAMES_BYTES // len(location))
    if files > most:
        raise SourceError(
            f"{location} is more than {most} files; give fewer, larger ones at a time."
        )


def _count(inside: str) -> int:
    """Return how many choices a brace has, whose content this is, without making them."""
    reach = _RANGE.fullmatch(inside)
    if reach is None:
        return inside.count(",") + 1
    if max(map(len, reach.groups())) > _DIGITS:
        return _COUNTLESS
    return abs(int(reach[2]) - int(reach[1])) + 1


def _choices(inside: str) -> Iterable[str]:
    """Return what a brace stands for: ``a,b``, or ``08..11`` with as many digits as written."""
    reach = _RANGE.fullmatch(inside)
    if reach is None:
        return inside.split(",")
    first, last = int(reach[1]), int(reach[2])
    padded = any(end.startswith("0") and end != "0" for end in reach.groups())
    digits = max(map(len, reach.groups())) if padded else 0
    step = 1 if last >= first else -1
    return (str(number).zfill(digits) for number in range(first, last + step, step))


def _matching(folder: str, names: list[str]) -> list[tuple[str, str]]:
    found = ["/".join(path) for path in walk(folder, Pattern(names))]
    return [(name, joined(folder, name)) for name in found]


def _checked(location: str) -> str:
    path = local_path(location)
    if path is None:
        return location
    if not os.path.isfile(path):
        raise SourceError(
            f"{path} does not exist, or is not a regular file; "
            "check the path, or give a range of what is there."
        )
    return written_path(path)


@contextmanager
def _reading(location: str, kind: str) -> Iterator[BinaryIO]:
    """Open a file, and turn whatever is wrong with it into a ``SourceError``."""
    try:
        with open_location(location) as file:
            yield file
    except (SourceError, GeneratorExit):
        raise
    except Exception as error:  # drivers and damaged files raise nearly anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SourceError(
            f"{location} cannot be read as a {kind}: {reason}. Copy or download it again."
        ) from error


def list_tar(
    location: str, after: Item | None, passed: Counter[str] | None = None
) -> Iterator[Item]:
    """Yield the images in tars, in the members' order.

    Members count by the ending of their names; hidden ones, links and folders do not. One whose
    size cannot be counts whatever it is called: it cannot be read, and ends the listing of its tar.

    Args:
        location: See ``parts_of``.
        after: Continue behind this one, at once: no header before it is read again.
        passed: Counts the members that are no images, by their endings.

    Raises:
        SourceError: A tar is missing, compressed, damaged or cut short.
    """
    parts = parts_of(location, ".tar")
    if after is not None:
        paths = [path for _, path in parts]
        if after.path not in paths:
            raise SourceError(
                f"{after.path} is no longer among the tars of {location}, and the listing has to "
                "continue in it; put it back, or extract into a new place."
            )
        parts = parts[paths.index(after.path) :]
    for name, path in parts:
        with _reading(path, "tar") as file:
            offset = 0 if after is None else _behind(after, file)
            after = None
            for member in [] if offset is None else members(file, path, offset):
                inside = member.name.removeprefix("./")
                counts = is_image_name(inside) and not any(map(is_hidden, inside.split("/")))
                if counts or not is_possible(member.size, length_of(file)):
                    yield Item(written_key(f"{name}/{inside}"), path, member.start, member.size)
                elif passed is not None and not is_hidden(inside.rpartition("/")[2]):
                    passed[ending_of(inside)] += 1


def _behind(item: Item, file: BinaryIO) -> int | None:
    """Return where the header behind an image is, None if it ended the listing of its tar."""
    member, length = Member(item.key, item.start or 0, item.size or 0), length_of(file)
    if not is_possible(member.size, length):
        return None
    if member.start + member.size > length:
        raise SourceError(
            f"{item.path} is shorter than it was: {item.key} ended at byte "
            f"{member.start + member.size}, and the tar ends at byte {length}. Put back what was "
            "there, or extract into a new place."
        )
    return next_header(member)


def find_column(location: str, column: str | None, key_column: str | None) -> str:
    """Find where Parquet files have their images, by the schema of the first.

    Raises:
        SourceError: There is no such column, or several could be meant; the text lists all.
    """
    _, path = parts_of(location, ".parquet")[0]
    with _reading(path, "Parquet file") as file:
        return pick_column(file, path, column, key_column)


def list_table(location: str, column: str, key_column: str | None, first: int) -> Iterator[Item]:
    """Yield the rows of Parquet files as images, in order.

    Args:
        location: See ``parts_of``.
        column: Of bytes, or of paths and URLs; relative paths are relative to the Parquet file.
        key_column: Of the keys; None takes the path, or ``<file>/<row>`` for bytes.
        first: Leave out so many rows.

    Yields:
        Rows with bytes or without an image say which row they are, the others only the path.

    Raises:
        SourceError: A file is damaged or lacks a column, or a key is null.
    """
    for name, path in parts_of(location, ".parquet"):
        with _reading(path, "Parquet file") as file:
            count, rows = list_rows(file, path, column, key_column, first)
            folder = split_name(path)[0]
            for row, (text, key) in enumerate(rows, first):
                if key_column is not None and key is None:
                    raise SourceError(f"{path} has a null key in column {key_column!r}, row {row}.")
                if text:
                    yield Item(str(key) if key_column else text, resolved(folder, text))
                else:
                    yield Item(str(key) if key_column else f"{name}/{row}", path, row)
            first = max(first - count, 0)
