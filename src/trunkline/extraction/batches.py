"""Features of a store in batches of one size, whatever the sizes of its blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa


class Batch(NamedTuple):
    """Features of some images.

    Attributes:
        keys: Of the images.
        values: ``(n, C)``, or ``(n, C, h, w)`` of a store of maps, in the store's dtype.
    """

    keys: list[str]
    values: NDArray[Any]


def rebatched(pieces: Iterator[tuple[pa.Array, NDArray[Any]]], size: int) -> Iterator[Batch]:
    """Cut pieces of any size into batches of one size; a batch within a piece is not copied."""
    keys: list[str] = []
    waiting: list[NDArray[Any]] = []
    for names, values in pieces:
        start = 0
        while start < len(values):
            end = min(start + size - len(keys), len(values))
            keys += names.slice(start, end - start).to_pylist()
            waiting.append(values[start:end])
            start = end
            if len(keys) == size:
                yield Batch(keys, _joined(waiting))
                keys, waiting = [], []
    if keys:
        yield Batch(keys, _joined(waiting))


def _joined(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
