"""From pixels to the numbers of a store: the runner, then pooling."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.extraction.pipeline import Seconds
from trunkline.extraction.pooling import Pool, pooled
from trunkline.extraction.records import Schema
from trunkline.images import normalised
from trunkline.preprocessing import Preprocessing
from trunkline.runtimes.runner import Runner


class Computing:
    """Calls a runner and pools its maps.

    Args:
        runner: Takes pixels, or normalised images.
        preprocessing: How a runner of the latter kind wants them.
        positions: Which of its maps are kept, one for each column of the schema.
        pool: See ``pooling``.
        normalize: Whether vectors get length 1.
        schema: Of the store.
    """

    def __init__(
        self,
        runner: Runner,
        preprocessing: Preprocessing,
        positions: Sequence[int],
        *,
        pool: Pool,
        normalize: bool,
        schema: Schema,
    ) -> None:
        self._runner = runner
        self._preprocessing = preprocessing
        self._positions = positions
        self._pool = pool
        self._normalize = normalize
        self._schema = schema

    def __call__(self, pixels: NDArray[np.uint8], seconds: Seconds) -> dict[str, NDArray[Any]]:
        """Compute a batch.

        Args:
            pixels: (N, H, W, 3) uint8 RGB.
            seconds: Gets what was spent.

        Returns:
            Column's name → (N, *shape) in the store's dtype.
        """
        began = time.perf_counter()
        images: NDArray[Any] = pixels
        if not self._runner.preprocess:
            images = normalised(pixels, self._preprocessing)
        maps = self._runner(images)
        computed = time.perf_counter()
        values = {
            column.name: pooled(maps[position], self._pool, normalize=self._normalize).astype(
                self._schema.numpy_dtype, copy=False
            )
            for column, position in zip(self._schema.columns, self._positions, strict=True)
        }
        seconds.compute += computed - began
        seconds.pool += time.perf_counter() - computed
        return values
