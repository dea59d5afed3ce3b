"""From pixels to the numbers of a store: the runner, then pooling.

What the network cannot take is a matter of the image where every image has a size of its own: too
small, or too large for the memory that is free. It then fails alone, if the network still takes a
small black image; if not, the engine is at fault and the run ends, rather than fail every image to
come. Where all images have one size no image is special, and the run ends at once. Nothing is
computed a second time in other company: numbers never depend on what failed beside them.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.errors import ExtractionError, ImageError, InputError, RunnerError
from trunkline.extraction.memory import free_memory, no_more_than_free
from trunkline.extraction.needs import Needs, black_photos
from trunkline.extraction.pipeline import Seconds
from trunkline.extraction.pooling import Pool, pooled
from trunkline.extraction.records import Schema
from trunkline.images import normalised
from trunkline.preprocessing import Preprocessing
from trunkline.runtimes.engine import in_one_line
from trunkline.runtimes.runner import Runner

_SMALL = 64  # pixels of the sides of an image that every network takes
_LONGEST = 400  # of what an engine says
_LOOK_SECONDS = 1.0


class Computing:
    """Calls a runner and pools its maps.

    Args:
        runner: Takes pixels, or normalised images.
        preprocessing: How a runner of the latter kind wants them.
        positions: Which of its maps are kept, one for each column of the schema.
        pool: See ``pooling``.
        normalize: Whether vectors get length 1.
        schema: Of the store.
        one_size: Whether all images have the same.
        empty: Makes black pixels of a shape (N, H, W), see ``Decoding.empty``.
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
        one_size: bool = True,
        empty: Callable[..., NDArray[Any]] = black_photos,
    ) -> None:
        self._runner = runner
        self._preprocessing = preprocessing
        self._positions = positions
        self._pool = pool
        self._normalize = normalize
        self._schema = schema
        self._one_size = one_size
        self._empty = empty
        self._needs = Needs(self._maps, runner.levels, empty)
        # The others break where they are refused memory, or reserve more than they will use.
        self._can_be_refused = runner.runtime == "torch"
        self._looked = -math.inf
        self._free: int | None = None

    def __call__(self, pixels: NDArray[Any], seconds: Seconds) -> dict[str, NDArray[Any]]:
        """Compute a batch.

        Args:
            pixels: (N, H, W, 3) uint8 RGB, or (N, H, W, C) float32 of rasters.
            seconds: Gets what was spent.

        Returns:
            Column's name → (N, *shape) in the store's dtype.

        Raises:
            ImageError: The network cannot take this image, and takes others.
            ExtractionError: The network fails on whatever it is given.
        """
        if self._one_size:
            try:
                return self._values(pixels, seconds)
            except (InputError, RunnerError):  # which say it better
                raise
            except Exception as error:  # engines raise nearly anything
                raise _failed_on_all(pixels, error) from error
        return self._alone(pixels, seconds)

    def _alone(self, pixels: NDArray[Any], seconds: Seconds) -> dict[str, NDArray[Any]]:
        """Compute an image that may be too large, or too small."""
        free = self._recently_free()
        _, height, width, _ = pixels.shape
        try:
            if free is None or height * width <= self._needs.harmless(free):
                return self._values(pixels, seconds)
            free = free_memory() or 0
            if (need := self._needs.of(height, width, free)) > free:
                raise MemoryError(f"they need {need / 1e9:.2f} GB")
            with no_more_than_free() if self._can_be_refused else nullcontext():
                return self._values(pixels, seconds)
        except Exception as error:  # engines raise nearly anything
            _let_go(error)
            self._check_alive(error)
            raise _failed_on_one(pixels, error, free) from error

    def _recently_free(self) -> int | None:
        """Return how much memory was free lately, which takes a millisecond to find out."""
        now = time.monotonic()
        if now - self._looked > _LOOK_SECONDS:
            self._looked, self._free = now, free_memory()
        return self._free

    def _values(self, pixels: NDArray[Any], seconds: Seconds) -> dict[str, NDArray[Any]]:
        began = time.perf_counter()
        maps = self._maps(pixels)
        computed = time.perf_counter()
        with np.errstate(over="ignore"):  # what does not fit is a failed row, see ``unfit``
            values = {
                column.name: pooled(maps[position], self._pool, normalize=self._normalize).astype(
                    self._schema.numpy_dtype, copy=False
                )
                for column, position in zip(self._schema.columns, self._positions, strict=True)
            }
        seconds.compute += computed - began
        seconds.pool += time.perf_counter() - computed
        return values

    def _maps(self, pixels: NDArray[Any]) -> list[NDArray[Any]]:
        if self._runner.preprocess:
            return self._runner(pixels)
        return self._runner(normalised(pixels, self._preprocessing))

    def _check_alive(self, error: Exception) -> None:
        """Make sure that it was the image, by one that any network takes."""
        try:
            self._maps(self._empty(1, _SMALL, _SMALL))
        except Exception as again:
            raise ExtractionError(
                f"the network fails on any image: {_shortened(again)}. The first to fail met: "
                f"{_shortened(error)}. Finished shards are kept; deploy the backbone anew, or on "
                "another runtime."
            ) from error


def _let_go(error: BaseException | None) -> None:
    """Free what was computed before an error, which keeps it in memory."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _failed_on_one(pixels: NDArray[Any], error: Exception, free: int | None) -> ImageError:
    _, height, width, _ = pixels.shape
    there = "" if free is None else f" with the {free / 1e9:.2f} GB of memory that are free"
    return ImageError(
        f"the network cannot take its {width}x{height} pixels{there}: {_shortened(error)}. Set a "
        "size, which all images get, or give the run more memory and --retry-failed."
    )


def _failed_on_all(pixels: NDArray[Any], error: Exception) -> ExtractionError:
    number, height, width, _ = pixels.shape
    return ExtractionError(
        f"the network fails on a batch of {number} images of {width}x{height}, which is the shape "
        f"of all batches: {_shortened(error)}. Finished shards are kept: give the run more memory "
        "and run the same command again, or choose a smaller batch_size in a new place."
    )


def _shortened(error: Exception) -> str:
    """Return what an engine says, which may be pages, without what is in the middle."""
    text = in_one_line(error).rstrip(".") or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
