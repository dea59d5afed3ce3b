"""One image becomes pixels, and a row that tells of it."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trunkline.errors import ImageError
from trunkline.extraction.reading import read_bytes
from trunkline.extraction.records import Item, Row, as_utf8
from trunkline.extraction.sources import Source
from trunkline.images import MAX_BYTES, MAX_PIXELS, Decode, decode_photo, pixels
from trunkline.photos import Alpha, ImageSource, Photo, Truncated
from trunkline.preprocessing import Preprocessing
from trunkline.rasters import Bands, Raster, decode_bands

Pixels = NDArray[Any]
"""(H, W, 3) uint8 RGB of photos, (H, W, C) float32 of rasters; or a batch of them."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How the images of a source become pixels.

    Attributes:
        source: Where their bytes are.
        preprocessing: Its sizes and its interpolation are used.
        decode: See ``trunkline.images.decode_photo``.
        max_pixels: Larger images fail.
        max_bytes: Larger files fail; of what comes through a network no more is read.
        alpha: What transparency is laid over, see ``decode_image``.
        truncated: What becomes of a JPEG whose end is missing, see ``decode_image``.
        bands: Which bands are taken, see ``trunkline.images.decode_bands``; None for photos.
    """

    source: Source
    preprocessing: Preprocessing
    decode: Decode = "exact"
    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_BYTES
    alpha: Alpha = "white"
    truncated: Truncated = "refuse"
    bands: Bands | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what of this decides the numbers, as plain values."""
        fields: dict[str, Any] = {
            "preprocessing": self.preprocessing.to_dict(),
            "decode": self.decode,
            "max_pixels": self.max_pixels,
            "max_bytes": self.max_bytes,
            "alpha": self.alpha,
        }
        # Stores say nothing of what they do without, as those of older versions do not.
        if self.truncated != "refuse":
            fields["truncated"] = self.truncated
        if self.bands is not None:
            fields["bands"] = self.bands.to_dict()
        return fields

    @classmethod
    def from_dict(cls, source: Source, fields: dict[str, Any]) -> Decoding:
        """Undo ``to_dict``."""
        preprocessing = Preprocessing.from_dict(fields["preprocessing"])
        bands = fields.get("bands")
        made = {
            "preprocessing": preprocessing,
            "bands": None if bands is None else Bands.from_dict(bands),
        }
        return cls(source=source, **{**fields, **made})

    def decoded(self, image: ImageSource) -> Photo | Raster:
        """Decode the bytes of a file, or what else an image is.

        Raises:
            ImageError: It cannot be decoded.
        """
        limits = {"max_pixels": self.max_pixels, "max_bytes": self.max_bytes}
        if self.bands is not None:
            return decode_bands(image, self.bands, **limits)
        return decode_photo(
            image,
            self.preprocessing,
            decode=self.decode,
            alpha=self.alpha,
            truncated=self.truncated,
            **limits,
        )

    def empty(self, *shape: int) -> Pixels:
        """Return black pixels of a shape that ends with (H, W); channels come behind."""
        return np.zeros((*shape, self.channels), self.dtype)

    @property
    def channels(self) -> int:
        """Of the pixels."""
        return 3 if self.bands is None else self.preprocessing.num_channels

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the pixels."""
        return np.dtype(np.uint8 if self.bands is None else np.float32)

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of every image's pixels, None where they differ."""
        chosen = self.preprocessing
        if chosen.crop is None and not isinstance(chosen.resize, tuple):
            return None
        return chosen.output_size(1, 1)


class Decoded(NamedTuple):
    """What became of one image, and the seconds that a worker spent on it."""

    row: Row
    read_seconds: float
    decode_seconds: float

    def failed(self, why: str) -> Decoded:
        """Return the same for an image that fails after all."""
        return self._replace(row=replace(self.row, status="failed", error=as_utf8(why)))


def decode_item(decoding: Decoding, item: Item) -> tuple[Decoded, Pixels | None]:
    """Read and decode one image in this process.

    Returns:
        Its row, and the pixels; None where the row says that it failed.
    """
    started = read = time.perf_counter()
    row = failed_row(item, "")
    try:
        data = read_bytes(decoding.source, item, max_bytes=decoding.max_bytes)
        read = time.perf_counter()
        row = replace(row, sha256=hashlib.sha256(data).hexdigest())
        photo = decoding.decoded(data)
        values = pixels(photo, decoding.preprocessing)
        if values.shape[-1] != decoding.channels:
            raise ImageError(
                f"{item.path} has {values.shape[-1]} bands, and the network takes "
                f"{decoding.channels} channels; choose with bands=."
            )
    except ImageError as error:
        return _timed(replace(row, error=as_utf8(str(error))), started, read), None
    except Exception as error:  # a fault of ours or of a library must not end a run of days
        return _timed(replace(row, error=as_utf8(repr(error))), started, read), None
    row = replace(row, width=photo.width, height=photo.height, status="ok", error=None)
    return _timed(row, started, read), values


def failed_row(item: Item, error: str) -> Row:
    """Return the row of an image that could not be read."""
    return Row(
        key=item.key,
        path=item.path,
        width=None,
        height=None,
        sha256=None,
        status="failed",
        error=error,
    )


def _timed(row: Row, started: float, read: float) -> Decoded:
    return Decoded(row, read - started, time.perf_counter() - read)
