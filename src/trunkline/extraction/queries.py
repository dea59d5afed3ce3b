"""A query image against a store: embedded exactly as its images were, and its nearest neighbours.

The search is exact: every vector of the level is compared, block by block, so memory does not grow
with the store. A million vectors of 2048 numbers take about a second; larger stores are for an
index such as FAISS, which ``FeatureStore.numpy`` feeds.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trunkline.errors import ConfigError, ImageError
from trunkline.extraction.decoding import Decoding
from trunkline.extraction.feature_parts import Part, has_status
from trunkline.extraction.jobs import computing_of
from trunkline.extraction.pipeline import Seconds
from trunkline.extraction.places import store_at
from trunkline.extraction.pooling import unfit
from trunkline.images import pixels
from trunkline.photos import ImageSource

Metric = Literal["cosine", "dot", "l2"]


@dataclass(frozen=True)
class Neighbour:
    """One image of a store, and how near it is to a query.

    Attributes:
        key: Of the image, as in the store's rows.
        path: Where it is.
        score: The cosine or the dot product, largest first; of "l2" the distance, smallest first.
    """

    key: str
    path: str
    score: float


class Embedder:
    """Computes single images as a store's were computed.

    Args:
        path: The store, with its bookkeeping beside it: its kept runner computes.
        trust: Whoever wrote the store may run code here, see ``load_runner``.

    Raises:
        StoreError: No bookkeeping, or a runner that is not the store's.
        UntrustedError: The runner could run code, and this machine did not write it.
    """

    def __init__(self, path: Path, *, trust: bool = False) -> None:
        store = store_at(path)
        manifest = store.manifest()
        self._batch_size = int(manifest.job["batch_size"])
        self._decoding = Decoding.from_dict(manifest.source, manifest.job["images"])
        self._computing = computing_of(store, manifest, trust=trust)

    def __call__(self, image: ImageSource) -> dict[str, NDArray[Any]]:
        """Return level's column → its vector ``(C,)``, or map ``(C, h, w)``, in the store's dtype.

        Raises:
            ImageError: The image cannot be decoded, or its numbers are none.
        """
        decoding = self._decoding
        photo = decoding.decoded(self._content(image))
        values = pixels(photo, decoding.preprocessing)
        # In a batch of the size that the store's were in: engines add up in another order else.
        batch = np.zeros((self._batch_size, *values.shape), values.dtype)
        batch[0] = values
        computed = self._computing(batch, Seconds())
        first = {name: array[:1] for name, array in computed.items()}
        if why := unfit(first):
            raise ImageError(f"the image cannot be embedded: {why[0]}")
        return {name: array[0] for name, array in first.items()}

    def _content(self, image: Any) -> Any:
        if isinstance(image, np.ndarray) and self._decoding.bands is not None:
            return image
        return _content(image)


def _content(image: Any) -> ImageSource:
    """Return an image in a form that is decoded like a file; arrays are 8-bit RGB pictures."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ImageError(
                f"an array as an image is (H, W, 3) uint8, RGB, got {image.shape} {image.dtype}; "
                "a vector to search for is (C,)."
            )
        return Image.fromarray(image)
    if isinstance(image, io.IOBase):
        return bytes(image.read())
    return image  # type: ignore[no-any-return]


def vectors_of(
    query: Any, width: int, embed: Callable[[Any], NDArray[Any]]
) -> tuple[NDArray[np.float32], bool]:
    """Return queries as vectors ``(m, width)``, and whether there was one alone.

    Raises:
        ConfigError: Vectors of another width.
    """
    if hasattr(query, "detach"):  # a tensor of PyTorch
        query = query.detach().cpu().float().numpy()
    if isinstance(query, np.ndarray) and (query.ndim < 3 and query.dtype.kind == "f"):
        vectors = np.atleast_2d(query).astype(np.float32)
        if vectors.shape[1] != width or not len(vectors):
            raise ConfigError(
                f"vectors to search for have {width} numbers here, (C,) or (m, C), got "
                f"{query.shape}; embed makes one of an image."
            )
        return vectors, query.ndim == 1
    if isinstance(query, list | tuple):
        return np.stack([embed(one) for one in query]).astype(np.float32), False
    return embed(query)[None].astype(np.float32), True


def check_search(k: int, metric: str) -> Metric:
    """Return the metric of that name.

    Raises:
        ConfigError: There is none, or k is no number of neighbours.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ConfigError(f"k={k!r} must be a number of neighbours from 1 on.")
    if metric not in get_args(Metric):
        raise ConfigError(
            f"metric={metric!r} is unknown; use one of {', '.join(get_args(Metric))}."
        )
    return metric  # type: ignore[return-value]


def nearest_rows(
    queries: NDArray[np.float32], parts: Sequence[Part], column: str, k: int, metric: Metric
) -> list[list[Neighbour]]:
    """Compare queries with all vectors of a level, and return the nearest images of each.

    Args:
        queries: ``(m, C)``.
        parts: Of the store.
        column: Of the level.
        k: How many.
        metric: How near two vectors are.

    Returns:
        For each query up to k neighbours, the nearest first; of equals the earlier.
    """
    if metric == "cosine":
        queries = queries / _lengths(queries)[:, None]
    best: list[list[tuple[float, int, int]]] = [[] for _ in queries]  # nearness, part, row
    for number, part in enumerate(parts):
        begin = 0  # among the part's rows that did not fail
        for _, values in part.pieces(column):
            near = _nearness(queries, np.asarray(values, np.float32), metric)
            for found, row in zip(best, near, strict=True):
                top = np.argsort(-row, kind="stable")[:k]
                found += [(float(row[place]), number, begin + int(place)) for place in top]
                found.sort(key=lambda one: -one[0])  # stable: of equals the earlier stays first
                del found[k:]
            begin += len(values)
    names = _names(parts, {(number, place) for found in best for _, number, place in found})
    return [
        [
            Neighbour(
                *names[number, place], float(np.sqrt(max(-near, 0.0))) if metric == "l2" else near
            )
            for near, number, place in found
        ]
        for found in best
    ]


def _nearness(
    queries: NDArray[np.float32], block: NDArray[np.float32], metric: Metric
) -> NDArray[np.float32]:
    """Return ``(m, n)`` numbers that are the larger, the nearer two vectors are."""
    dots: NDArray[np.float32] = queries @ block.T
    if metric == "cosine":
        dots /= _lengths(block)
        return dots
    if metric == "dot":
        return dots
    own, others = (np.einsum("nc,nc->n", one, one) for one in (queries, block))
    near: NDArray[np.float32] = 2 * dots - others - own[:, None]
    return near


def _names(
    parts: Sequence[Part], places: set[tuple[int, int]]
) -> dict[tuple[int, int], tuple[str, str]]:
    """Return key and path of single images, by their part and their place in its good rows."""
    found = {}
    for number in sorted({number for number, _ in places}):
        table = parts[number].table(["key", "path", "status"])
        table = table.filter(has_status(table, "ok"))
        for where in (one for one in places if one[0] == number):
            found[where] = (table["key"][where[1]].as_py(), table["path"][where[1]].as_py())
    return found


def _lengths(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths: NDArray[np.float32] = np.linalg.norm(vectors, axis=1).astype(np.float32)
    lengths[lengths == 0] = 1  # a vector of zeros is as near to all: 0
    return lengths
