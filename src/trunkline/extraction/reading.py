"""The bytes of one image, from wherever its item says; in the processes that decode.

What fails here is one image's failure and never the run's, so everything is an ``ImageError``.
Tars and Parquet files stay open between images, a few at a time, per process. Nothing here
imports PyTorch.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from itertools import accumulate
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

from trunkline.errors import ImageError, TrunklineError
from trunkline.extraction.locations import (
    filesystem_of,
    local_path,
    open_location,
    open_regular,
    resolved,
    split_name,
)
from trunkline.extraction.records import Item
from trunkline.extraction.sources import Source
from trunkline.images import MAX_BYTES
from trunkline.runtimes.optional import require

OPEN_TARS = 16
OPEN_TABLES = 4
_BATCH_ROWS = 16  # of a Parquet file, decoded at once: their images are in memory together
_BUFFER_BYTES = 1 << 20


class _Closable(Protocol):
    def close(self) -> None: ...


Key = TypeVar("Key", bound=Hashable)
Opened = TypeVar("Opened", bound=_Closable)

_lock = threading.RLock()  # an open file has one position, whoever reads


def read_bytes(source: Source, item: Item) -> bytes:
    """Read the file of one image, as it is.

    Args:
        source: That the item was listed from.
        item: Which one.

    Returns:
        At least one byte and at most ``trunkline.images.MAX_BYTES``.

    Raises:
        ImageError: It has vanished, may not be read, is empty, too large, cut short, no regular
            file, or a null in its table; its host or driver failed. The text names it.
    """
    try:
        if item.start is None:
            content = _read_file(item.path)
        elif source.kind == "tar":
            content = _read_member(item)
        else:
            content = _read_row(source, item)
    except ImageError:
        raise
    except TrunklineError as error:
        raise ImageError(str(error)) from error
    except Exception as error:  # drivers and damaged tables raise nearly anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"{_name(item)} cannot be read: {reason}.") from error
    if not content:
        raise ImageError(f"{_name(item)} is empty; copy or download it again.")
    _check_size(len(content), _name(item))
    return content


def close_files() -> None:
    """Close the tars and Parquet files that this process keeps open."""
    with _lock:
        _tars.clear()
        _tables.clear()


def _name(item: Item) -> str:
    return item.path if item.start is None else f"{item.key} in {item.path}"


def _check_size(size: int, name: str) -> None:
    if size > MAX_BYTES:
        raise ImageError(
            f"{name} has more than the {MAX_BYTES} bytes that an image may have; "
            "leave it out, or make it smaller."
        )


def _read_file(location: str) -> bytes:
    path = local_path(location)
    if path is None:
        # A range, because a host may answer without end; nothing is asked beforehand.
        return _read_range(location, 0, MAX_BYTES + 1)
    with open_regular(path, buffering=0) as file:
        _check_size(file.seek(0, 2), location)
        file.seek(0)
        return file.read()


def _read_range(url: str, start: int, end: int) -> bytes:
    filesystem, inside = filesystem_of(url)
    content: bytes = filesystem.cat_file(inside, start=start, end=end)
    return content


def _read_member(item: Item) -> bytes:
    start, size = item.start or 0, item.size or 0
    _check_size(size, _name(item))
    path = local_path(item.path)
    if path is None:
        content = _read_range(item.path, start, start + size) if size else b""
    else:
        with _lock:
            file = _tars.get(path)
            file.seek(start)
            content = file.read(size)
    if len(content) != size:
        raise ImageError(
            f"{_name(item)} gave {len(content)} bytes instead of {size}; copy the tar "
            "again, or from a host that does not serve parts of files to one that does."
        )
    return content


def _read_row(source: Source, item: Item) -> bytes:
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
    return _read_file(resolved(split_name(item.path)[0], path))


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


class _Table:
    """One column of a Parquet file, read in rising order a few rows at a time.

    A row group may be larger than memory, so it is never held whole; going back in it reads it
    again from its start.
    """

    def __init__(self, location: str, column: str) -> None:
        parquet = require("pyarrow.parquet", "reading images from Parquet")
        self._location, self._column = location, column
        self._file = open_location(location)
        try:
            self._parquet = parquet.ParquetFile(
                self._file, pre_buffer=False, buffer_size=_BUFFER_BYTES
            )
        except BaseException:
            self._file.close()
            raise
        metadata = self._parquet.metadata
        groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        self._starts = [0, *accumulate(groups)]  # rows before each group, and all
        self._group = -1
        self._batches: Iterator[Any] = iter(())
        self._batch: Any = None
        self._first = 0  # row of the group that the batch begins with

    def value(self, row: int) -> Any:
        """Return what the column holds in a row, as a Python value."""
        if not 0 <= row < self._starts[-1]:
            raise ImageError(
                f"{self._location} has {self._starts[-1]} rows, not a row {row}; it has changed."
            )
        group = bisect_right(self._starts, row) - 1
        offset = row - self._starts[group]
        if group != self._group or offset < self._first:
            self._open_group(group)
        while self._batch is None or offset >= self._first + self._batch.num_rows:
            self._first += 0 if self._batch is None else self._batch.num_rows
            self._batch = next(self._batches)
        return self._batch.column(0)[offset - self._first].as_py()

    def _open_group(self, group: int) -> None:
        self._batches = self._parquet.iter_batches(
            _BATCH_ROWS, row_groups=[group], columns=[self._column], use_threads=False
        )
        self._group, self._batch, self._first = group, None, 0

    def close(self) -> None:
        """Close the file."""
        self._parquet.close()
        self._file.close()


_tars: _Recent[str, BinaryIO] = _Recent(OPEN_TARS, open_regular)
_tables: _Recent[tuple[str, str], _Table] = _Recent(OPEN_TABLES, lambda key: _Table(*key))
