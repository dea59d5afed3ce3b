"""What the parts of an extraction hand to each other: images to come, rows, blocks of rows.

Nothing here imports PyTorch or an optional library.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Dtype = Literal["float32", "float16"]

NAME = r"^[A-Za-z0-9_]{1,100}$"
"""Names of levels' columns, which are also names of folders."""

# The columns of every table of features before those of the levels, in this order.
ROW_COLUMNS = ("key", "path", "width", "height", "sha256", "status", "error")


class Item(NamedTuple):
    """One image that shall be read, and where.

    Attributes:
        key: What the source calls it, unique within the source.
        path: File or URL that holds it; for a member of an archive that of the archive.
        start: Of a member of a tar its first byte, of a row of a Parquet file its number.
        size: Of a member of a tar its bytes.
    """

    key: str
    path: str
    start: int | None = None
    size: int | None = None


_AGAIN = re.compile(r" \(again: \d+\)")


def told_apart(items: list[Item]) -> list[Item]:
    """Return images whose keys differ: of a second one with the same the key says so.

    Which of them a key means nobody could tell, so only the first is computed; ``is_again`` knows
    the others.
    """
    seen: Counter[str] = Counter()
    apart = []
    for item in items:
        seen[item.key] += 1
        times = seen[item.key]
        apart.append(item if times == 1 else item._replace(key=f"{item.key} (again: {times})"))
    return apart


def is_again(key: str) -> bool:
    """Return whether another image of the source has the same key."""
    return _AGAIN.search(key[-24:]) is not None and key.endswith(")")


def first_key(key: str) -> str:
    """Return the key that an image has in its source."""
    return key[: key.rindex(" (again: ")] if is_again(key) else key


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is known of one image besides its features.

    Attributes:
        key: See ``Item``.
        path: See ``Item``.
        width: Pixels of the upright picture, None where it could not be decoded.
        height: As ``width``.
        sha256: Of the bytes that were read, None where none could be.
        status: "ok" or "failed".
        error: Why it failed, None where it did not.
    """

    key: str
    path: str
    width: int | None
    height: int | None
    sha256: str | None
    status: Literal["ok", "failed"]
    error: str | None


def as_utf8(text: str) -> str:
    r"""Return a text that UTF-8 can hold; what of a file's name it cannot becomes ``\udcff``."""
    return text.encode(errors="backslashreplace").decode()


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive images of one shard.

    Attributes:
        rows: In the order of the plan.
        values: Level's column → ``(len(rows), *shape)``; NaN where the row failed.
    """

    rows: list[Row]
    values: dict[str, NDArray[Any]]

    @property
    def failed(self) -> list[int]:
        """Numbers of the rows that failed."""
        return [number for number, row in enumerate(self.rows) if row.status == "failed"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One level in a store.

    Attributes:
        name: Such as ``stage3_stride_32``.
        stride: Pixels of the preprocessed image per position of the map.
        shape: ``(C,)`` of pooled features, ``(C, h, w)`` of maps.
    """

    name: str
    stride: int
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What every shard of a store holds.

    Attributes:
        columns: The levels, in the order asked for.
        dtype: Of the features.
        shard_size: Images of a shard; the last one may have fewer.
        made_by: All that decides the numbers, as plain values; files carry it along.
        store_id: Of the one store that files are written for; they carry it along as well.
    """

    columns: tuple[Column, ...]
    dtype: Dtype
    shard_size: int
    made_by: dict[str, Any] = field(default_factory=dict)
    store_id: str = ""

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """``dtype`` as NumPy has it."""
        return np.dtype(self.dtype)

    def empty_block(self, rows: list[Row]) -> Block:
        """Return a block all of whose features are NaN."""
        return Block(
            rows,
            {
                one.name: np.full((len(rows), *one.shape), np.nan, self.numpy_dtype)
                for one in self.columns
            },
        )
