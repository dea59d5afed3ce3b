"""The bytes of one image, from wherever its item says; in the processes that decode.

What fails here is one image's failure and never the run's, so everything is an ``ImageError``.
Tars and Parquet files stay open between images, a few at a time, per process. Nothing here
imports PyTorch.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

from trunkline.errors import ImageError, TrunklineError
from trunkline.extraction.locations import (
    filesystem_of,
    is_here,
    local_path,
    open_location,
    open_regular,
    resolved,
    split_name,
)
from trunkline.extraction.records import Item, first_key, is_again
from trunkline.extraction.sources import Source
from trunkline.extraction.tables import ImageColumn
from trunkline.extraction.tars import is_possible
from trunkline.images import MAX_BYTES

OPEN_TARS = 16
OPEN_TABLES = 4


class _Closable(Protocol):
    def close(self) -> None: ...


Key = TypeVar("Key", bound=Hashable)
Opened = TypeVar("Opened", bound=_Closable)

_lock = threading.RLock()  # an open file has one position, whoever reads


def read_bytes(source: Source, item: Item, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Read the file of one image, as it is.

    Args:
        source: That the item was listed from.
        item: Which one.
        max_bytes: Of a larger one no more than this is read, whatever compresses it on its way.

    Returns:
        At least one byte and at most ``max_bytes``.

    Raises:
        ImageError: It has vanished, may not be read, is empty, too large, cut short, no regular
            file, or a null in its table; its host or driver failed; it is a file of this machine
            in a list of elsewhere. The text names it.
    """
    if is_again(item.key):
        raise ImageError(
            f"{first_key(item.key)} stands in {source.location} more than once, and a key must "
            "tell one image from all others; only the first was read. Rename or leave out the "
            "others."
        )
    try:
        if item.start is None:
            content = _read_file(item.path, source.location, max_bytes)
        elif source.kind == "tar":
            content = _read_member(item, max_bytes)
        else:
            content = _read_row(source, item, max_bytes)
    except ImageError:
        raise
    except TrunklineError as error:
        raise ImageError(str(error)) from error
    except Exception as error:  # drivers and damaged tables raise nearly anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"{_name(item)} cannot be read: {reason}.") from error
    if not content:
        raise ImageError(f"{_name(item)} is empty; copy or download it again.")
    _check_size(len(content), _name(item), max_bytes)
    return content


def close_files() -> None:
    """Close the tars and Parquet files that this process keeps open."""
    with _lock:
        _tars.clear()
        _tables.clear()


def _name(item: Item) -> str:
    return item.path if item.start is None else f"{item.key} in {item.path}"


def _check_size(size: int, name: str, max_bytes: int) -> None:
    if size > max_bytes:
        raise ImageError(
            f"{name} has more than the {max_bytes} bytes that an image may have; "
            "leave it out, make it smaller, or give a larger max_bytes if you trust it."
        )


def _read_file(location: str, named_by: str, max_bytes: int) -> bytes:
    path = local_path(location)
    if is_here(location) and not is_here(named_by):
        raise ImageError(
            f"{location} is a file of this machine, and {named_by}, which names it, is not; a list "
            "that may name local files has to be a local file itself."
        )
    if path is None:
        # A range, because a host may answer without end; nothing is asked beforehand.
        return _read_range(location, 0, max_bytes + 1)
    with open_regular(path, buffering=0) as file:
        _check_size(file.seek(0, 2), location, max_bytes)
        file.seek(0)
        return file.read()


def _read_range(url: str, start: int, end: int) -> bytes:
    filesystem, inside = filesystem_of(url)
    content: bytes = filesystem.cat_file(inside, start=start, end=end)
    return content


def _read_member(item: Item, max_bytes: int) -> bytes:
    start, size = item.start or 0, item.size or 0
    path = local_path(item.path)
    if path is None:
        _check_member(item, size if size >= 0 else 0, max_bytes)
        content = _read_range(item.path, start, start + size) if size else b""
    else:
        with _lock:
            file = _tars.get(path)
            _check_member(item, file.seek(0, 2), max_bytes)
            file.seek(start)
            content = file.read(size)
    if len(content) != size:
        raise ImageError(
            f"{_name(item)} gave {len(content)} bytes instead of {size}; copy the tar "
            "again, or from a host that does not serve parts of files to one that does."
        )
    return content


def _check_member(item: Item, tar_bytes: int, max_bytes: int) -> None:
    size = item.size or 0
    if not is_possible(size, tar_bytes):
        raise ImageError(
            f"{_name(item)} has {size} bytes by its header, which cannot be; nothing behind it in "
            "that tar could be found. Copy or download the tar again."
        )
    _check_size(size, _name(item), max_bytes)


def _read_row(source: Source, item: Item, max_bytes: int) -> bytes:
    with _lock:
        value: Any
        key = (item.path, str(source.column))
        try:
            value = _tables.get(key).value(item.start or 0)
        except BaseException:
            _tables.drop(key)  # its position is unknown now; another row may still be read
            raise
    path = value
    if isinstance(value, dict):  # as Hugging Face's datasets keep images
        path, value = value.get("path"), value.get("bytes")
    if isinstance(value, bytes):
        return value
    if not isinstance(path, str) or not path:
        raise ImageError(
            f"row {item.start} of {item.path} has no image in column {source.column!r}: it is null."
        )
    return _read_file(resolved(split_name(item.path)[0], path), item.path, max_bytes)


class _Recent(Generic[Key, Opened]):
    """What was opened last, up to a number; the rest is closed."""

    def __init__(self, limit: int, opener: Callable[[Key], Opened]) -> None:
        self._limit, self._opener = limit, opener
        self._opened: OrderedDict[Key, Opened] = OrderedDict()

    def get(self, key: Key) -> Opened:
        """Return what belongs to a key, opened now if need be."""
        if key not in self._opened:
            self._opened[key] = self._opener(key)
        self._opened.move_to_end(key)
        while len(self._opened) > self._limit:
            self._opened.popitem(last=False)[1].close()
        return self._opened[key]

    def drop(self, key: Key) -> None:
        """Close what belongs to a key."""
        if key in self._opened:
            self._opened.pop(key).close()

    def clear(self) -> None:
        """Close everything."""
        while self._opened:
            self._opened.popitem()[1].close()


def _open_column(key: tuple[str, str]) -> ImageColumn:
    location, column = key
    return ImageColumn(open_location(location), location, column)


_tars: _Recent[str, BinaryIO] = _Recent(OPEN_TARS, open_regular)
_tables: _Recent[tuple[str, str], ImageColumn] = _Recent(OPEN_TABLES, _open_column)
