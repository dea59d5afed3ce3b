"""A feature store as arrays and tables of the libraries that people work with.

store = open_features("features.parquet")
vectors, keys = store.numpy("stage3"), store.keys  # of the images that did not fail
frame = store.polars()  # all images, failed ones too
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from trunkline.errors import ConfigError, NotInstalledError, StoreError
from trunkline.extraction.batches import Batch, rebatched
from trunkline.extraction.feature_parts import ParquetPart, Part, ZarrPart, has_status, parts_of
from trunkline.extraction.zarr_arrays import ROW
from trunkline.runtimes.optional import is_installed, require

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor
    from torch import dtype as TensorDtype

    from trunkline.extraction.maps_dataset import MapsDataset
    from trunkline.extraction.queries import Embedder

_PURPOSE = "a store of features"


def open_features(out: str | os.PathLike[str]) -> FeatureStore:
    """Open what ``trunkline.extract`` wrote, or has written so far.

    Args:
        out: The store's folder, of any format, or one Parquet file of it. What lies beside the
            folder is not needed.

    Returns:
        The shards that were there; those that come later are seen by opening it again.

    Raises:
        StoreError: It is no store, has no finished shard, or has shards of different jobs.
        NotInstalledError: pyarrow is not there.
    """
    require("pyarrow", _PURPOSE)
    return FeatureStore(Path(out), parts_of(Path(out)))


class FeatureStore:
    """A table with a row per image, and an array of features per level; see ``open_features``.

    A level is named as its column (``"stage3_stride_32"``), as in the backbone (``"stage3"``), or
    by its place in ``levels``. Methods read when they are called; nothing is kept.

    Attributes:
        path: Where the store is.
        levels: Names of the levels' columns, in the order they were asked for.
        dtype: Of the features.
        made_by: All that decides the numbers: backbone, weights, preprocessing, versions, …
    """

    def __init__(self, path: Path, parts: list[Part]) -> None:
        self.path = path
        self._parts = parts
        self._facts = parts[0].facts
        for part in parts[1:]:
            if part.facts != self._facts:
                raise StoreError(
                    f"{part.path} belongs to another job than {parts[0].path}: levels, dtype or "
                    "what the numbers depend on differ. Open one of the two files by itself, or "
                    "move the one that does not belong there."
                )
        self.levels = tuple(self._facts.levels)
        self.dtype = self._facts.dtype
        self.made_by = self._facts.made_by
        self._embedder: Embedder | None = None

    def __len__(self) -> int:
        """Images, failed ones too."""
        return sum(part.num_rows for part in self._parts)

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.path)!r}, {len(self)} images, {', '.join(self.levels)})"

    @cached_property
    def num_failed(self) -> int:
        """Images without features."""
        return len(self) - self._num_ok

    @cached_property
    def _num_ok(self) -> int:
        return sum(part.num_ok for part in self._parts)

    @property
    def keys(self) -> list[str]:
        """Keys of the images that have features: those of the rows of ``numpy``, in their order."""
        table = self.table(["key", "status"])
        found: list[str] = table.filter(has_status(table, "ok"))["key"].to_pylist()
        return found

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the store as one table of Arrow.

        Args:
            columns: Names of those to read, levels by any of their names; all by default.

        Returns:
            A row per image in the order of the source; features of failed ones are null. Of a
            store of maps the table says in ``row`` where an image's maps are in the arrays.

        Raises:
            StoreError: No such column, or a file is damaged.
        """
        pa = require("pyarrow", _PURPOSE)
        names = None if columns is None else [self._column(name) for name in columns]
        return pa.concat_tables([part.table(names) for part in self._parts])

    def failures(self) -> pa.Table:
        """Return ``key``, ``path`` and ``error`` of the images that failed."""
        table = self.table(["key", "path", "error", "status"])
        return table.filter(has_status(table, "failed")).drop_columns(["status"])

    def numpy(self, level: str | int = -1, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read the pooled features of a level.

        Args:
            level: Its name or place; the last one by default.
            out: An array to fill, ``(n, C)``, of any dtype that holds the store's.

        Returns:
            ``(n, C)`` in the store's dtype, a row for each of ``keys``. It is ``out``, or new; of
            a store of one block of images it is what Arrow decoded or NumPy mapped, and read-only.

        Raises:
            StoreError: No such level, or it is one of maps; use ``maps`` or ``batches``.
            ConfigError: ``out`` has another shape.
        """
        name = self._pooled(level)
        pieces: Iterator[NDArray[Any]] = (
            values for part in self._parts for _, values in part.pieces(name)
        )
        shape = (self._num_ok, *self._facts.levels[name])
        if out is None:
            first = next(pieces, None)
            if first is not None and len(first) == shape[0]:
                return first
            out = np.empty(shape, self.dtype)
            pieces = chain(() if first is None else (first,), pieces)
        if out.shape != shape:
            raise ConfigError(f"out has shape {out.shape}, but {name} is {shape}; allocate that.")
        begin = 0
        for values in pieces:
            out[begin : begin + len(values)] = values
            begin += len(values)
        return out

    def torch(self, level: str | int = -1) -> Tensor:
        """Read the pooled features of a level as a tensor on the CPU; see ``numpy``."""
        library = import_module("torch")
        name = self._pooled(level)
        dtype = getattr(library, self.dtype.name)
        tensor: Tensor = library.empty((self._num_ok, *self._facts.levels[name]), dtype=dtype)
        self.numpy(name, out=tensor.numpy())
        return tensor

    def batches(self, level: str | int = -1, size: int = 1024) -> Iterator[Batch]:
        """Read the features of a level without holding them all.

        Args:
            level: Its name or place, pooled or of maps.
            size: Images per batch; the last one may have fewer.

        Yields:
            Keys and features of images that did not fail, in the order of the store.

        Raises:
            ConfigError: ``size`` is not positive.
            StoreError: No such level.
        """
        if size < 1:
            raise ConfigError(f"size is the number of images per batch, at least 1, not {size}.")
        name = self._level(level)
        return rebatched((piece for part in self._parts for piece in part.pieces(name)), size)

    def maps(self, *levels: str | int, dtype: TensorDtype | None = None) -> MapsDataset:
        """Return the maps as a dataset of PyTorch.

        Args:
            levels: Names or places; all by default.
            dtype: Of the tensors; float32 by default.

        Returns:
            A map-style dataset; an example is ``{"key": …, level: (C, h, w), …}``, the levels
            named by their columns.

        Raises:
            StoreError: The store holds pooled features, or no such level.
            NotInstalledError: zarr is not there.
        """
        first = self._parts[0]
        if not isinstance(first, ZarrPart):
            raise StoreError(
                f"{self.path} holds pooled features, no maps; use numpy, torch or batches, or "
                "extract into a store called NAME.zarr."
            )
        require("zarr", "reading maps")
        dataset = import_module("trunkline.extraction.maps_dataset").MapsDataset
        table = self.table(["key", "status", ROW])
        table = table.filter(has_status(table, "ok"))
        names = [self._level(level) for level in levels] or list(self.levels)
        options = {} if dtype is None else {"dtype": dtype}
        keys, rows = table["key"].combine_chunks(), table[ROW].to_numpy()
        made: MapsDataset = dataset(first.out, names, keys, rows, **options)
        return made

    def embed(
        self, image: Any, level: str | int | None = None, *, trust: bool = False
    ) -> NDArray[Any]:
        """Compute the features of an image exactly as those of the store were computed.

        The runner that the store keeps does it: an image of the store gives its own row, on the
        processor that computed it bit by bit.

        Args:
            image: A path, the bytes of a file, an open file, a Pillow image, or an ``(H, W, 3)``
                uint8 RGB array.
            level: Its name or place; None for the last one.
            trust: Whoever wrote the store may run code here, see ``load_runner``.

        Returns:
            ``(C,)``, or ``(C, h, w)`` of a store of maps, in the store's dtype.

        Raises:
            ImageError: The image cannot be decoded.
            StoreError: No such level, or a store without its bookkeeping beside it.
            UntrustedError: Its runner could run code, and this machine did not write it.
        """
        from trunkline.extraction.queries import Embedder  # it needs an engine

        name = self._level(-1 if level is None else level)
        if self._embedder is None:
            self._embedder = Embedder(self.path, trust=trust)
        computed: NDArray[Any] = self._embedder(image)[name]
        return computed

    def search(
        self,
        query: Any,
        k: int = 10,
        *,
        level: str | int | None = None,
        metric: Literal["cosine", "dot", "l2"] = "cosine",
        trust: bool = False,
    ) -> Any:
        """Find the images of the store that are nearest to an image or a vector.

        All vectors are compared, block by block: the answer is exact, and memory stays small.

        Args:
            query: An image, see ``embed``; a vector ``(C,)``, array or tensor; or several:
                a list of images, or ``(m, C)``.
            k: How many neighbours.
            level: Its name or place; None for the last one.
            metric: ``"cosine"``, ``"dot"`` (the largest are nearest) or ``"l2"`` (the smallest).
            trust: As for ``embed``.

        Returns:
            A list of up to k ``Neighbour`` with ``key``, ``path`` and ``score``, the nearest first;
            a list of such lists for several queries.

        Raises:
            ConfigError: A vector of another width, no such metric, k below 1.
            StoreError: No such level, or one of maps.
            ImageError: As ``embed``.
        """
        from trunkline.extraction.queries import check_search, nearest_rows, vectors_of

        chosen = check_search(k, metric)
        name = self._pooled(-1 if level is None else level)
        vectors, alone = vectors_of(
            query, self._facts.levels[name][0], lambda one: self.embed(one, name, trust=trust)
        )
        found = nearest_rows(vectors, self._parts, name, k, chosen)
        return found[0] if alone else found

    def pandas(self, columns: Sequence[str] | None = None) -> Any:
        """Return ``table(columns)`` as a DataFrame of pandas; a level is a column of arrays.

        Raises:
            NotInstalledError: pandas is not there.
        """
        _optional("pandas")
        return self.table(columns).to_pandas(split_blocks=True, self_destruct=True)

    def polars(self, columns: Sequence[str] | None = None) -> Any:
        """Return ``table(columns)`` as a DataFrame of Polars, which shares its memory.

        Raises:
            NotInstalledError: Polars is not there.
        """
        return _optional("polars").from_arrow(self.table(columns))

    def duckdb(self) -> Any:
        """Return the store as a relation of DuckDB, on a connection of its own.

        A Parquet store is not read before a query needs it, and then only what it needs. DuckDB
        has no half precision: float16 comes as FLOAT. Cast a level to FLOAT[C] before it is given
        to functions such as array_distance; those of lists take no nulls.

        Raises:
            NotInstalledError: DuckDB is not there.
        """
        duckdb = _optional("duckdb")
        connection = duckdb.connect()
        if all(isinstance(part, ParquetPart) for part in self._parts):
            return connection.read_parquet([_literal(part.path) for part in self._parts])
        return connection.from_arrow(_single(self.table()))

    def _level(self, level: str | int) -> str:
        """Return the column of a level, or say which there are."""
        if isinstance(level, int):
            if -len(self.levels) <= level < len(self.levels):
                return self.levels[level]
        else:
            for name in self.levels:
                if level in (name, name.partition("_stride_")[0]):
                    return name
        raise StoreError(
            f"{self.path} has no level {level!r}; it has {', '.join(self.levels)}, by these names, "
            "by the part before _stride_, or by place."
        )

    def _pooled(self, level: str | int) -> str:
        name = self._level(level)
        if len(self._facts.levels[name]) != 1:
            raise StoreError(
                f"{name} of {self.path} are maps of shape {self._facts.levels[name]}; use maps for "
                "a dataset or batches for arrays, or extract into a store called NAME.parquet for "
                "pooled features."
            )
        return name

    def _column(self, name: str) -> str:
        """Return the column of this name; a level's may be short."""
        columns = self._facts.columns
        for one in columns:
            if name == one or (one in self.levels and name == one.partition("_stride_")[0]):
                return one
        raise StoreError(f"{self.path} has no column {name!r}; it has {', '.join(columns)}.")


def _literal(path: Path) -> str:
    """Return a path that DuckDB takes for no pattern: its neighbours' rows are not ours."""
    return re.sub(r"[*?\[]", lambda found: f"[{found[0]}]", str(path))


def _single(table: pa.Table) -> pa.Table:
    """Return a table whose lists of half precision are of float32."""
    pa = require("pyarrow", _PURPOSE)
    for place, field in enumerate(table.schema):
        if pa.types.is_fixed_size_list(field.type) and field.type.value_type == pa.float16():
            wider = pa.list_(pa.float32(), field.type.list_size)
            table = table.set_column(place, field.name, table[field.name].cast(wider))
    return table


def _optional(name: str) -> Any:
    """Import a library that no extra of ours brings."""
    if not is_installed(name):
        raise NotInstalledError(
            f"reading features as those of {name} needs it; install it with: pip install {name}"
        )
    return import_module(name)
