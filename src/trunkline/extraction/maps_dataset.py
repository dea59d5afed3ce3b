"""The maps of a Zarr store as a dataset of PyTorch, for loaders with any kind of worker."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from trunkline.extraction.zarr_group import Maps

if TYPE_CHECKING:
    import pyarrow as pa


class MapsDataset(Dataset[dict[str, Any]]):
    """Maps of the images that did not fail, in the order of the store.

    An example is a dict of ``"key"`` and of a tensor ``(C, h, w)`` per level; loaders collate such
    dicts by themselves. Arrays are opened in the process that reads them, so the dataset can be
    pickled, and workers may be forked or spawned.

    Args:
        out: The Zarr group.
        levels: Names of its arrays.
        keys: Of the images, a string array of Arrow.
        rows: Where their maps are, int64.
        dtype: Of the tensors, whatever that of the store is.
    """

    def __init__(
        self,
        out: Path,
        levels: Sequence[str],
        keys: pa.Array,
        rows: NDArray[np.int64],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.levels = tuple(levels)
        self._out = out
        self._keys = keys
        self._rows = rows
        self._dtype = dtype
        self._arrays: dict[str, Maps] = {}
        self._process: int | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read the maps of one image.

        Args:
            index: From 0, negative ones from the end.

        Raises:
            IndexError: There are not that many images.
            StoreError: A file of maps is missing or damaged.
        """
        row = int(self._rows[index])
        example: dict[str, Any] = {"key": self._keys[index].as_py()}
        for name, maps in self._opened().items():
            example[name] = _tensor(maps.one(row), self._dtype)
        return example

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}, "_process": None}

    def _opened(self) -> dict[str, Maps]:
        if self._process != os.getpid():  # a fork inherits arrays whose threads it has not
            self._arrays = {name: Maps(self._out / name) for name in self.levels}
            self._process = os.getpid()
        return self._arrays


def _tensor(values: NDArray[Any], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
