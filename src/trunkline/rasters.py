"""Pictures of any number of bands and bits: satellites, microscopes, depth. No PyTorch here.

A photo has three channels of 8 bits, and what its numbers mean is known. Of a raster it is not: the
file of a satellite may hold thirteen bands of 16 bits in which 10000 is white. So it is said, by
``Bands``: which bands make the channels, and which numbers are black and white. What comes of it is
not rounded to 8 bits, and not clipped: a cloud may be brighter than white.

TIFF files are read by tifffile, which knows more of them than any other reader without GDAL; what
Pillow opens (PNG of 16 bits, JPEG 2000) is read by Pillow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trunkline.decoders import MAX_PIXELS, check_pixels, decoding, open_image, remarks
from trunkline.errors import ConfigError, ImageError, NotInstalledError
from trunkline.photos import MAX_BYTES, ImageSource, opened_source, upright
from trunkline.preprocessing import MAX_CHANNELS, is_positive_int

_TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SAMPLES_OF_A_PIXEL = 4  # that ``max_pixels`` allows for: as many as of an RGBA picture
_NODATA, _ORIENTATION = 42113, 274  # tags of GDAL and of TIFF
_WHITE = 255.0
_AXES_OF_BANDS = "SCQIZT"  # what tifffile calls the axis that is neither height nor width


@dataclass(frozen=True, kw_only=True)
class Bands:
    """Which bands of a picture become the channels, and what their numbers mean.

    Attributes:
        bands: Their numbers, counted from 1 as GDAL counts them, in the order of the channels (red,
            green, blue for a network of photos); None takes all, in the order of the file.
        white: The number that is as bright as 255 in a photo: one for all bands, or one for each
            of ``bands``. None: 255 for 8 bits and 1.0 for floats; other kinds have no white that
            could be assumed.
        black: The number that is as dark as 0 in a photo, as ``white``.

    Raises:
        ConfigError: Something else than what is said above.
    """

    bands: tuple[int, ...] | None = None
    white: float | tuple[float, ...] | None = None
    black: float | tuple[float, ...] = 0.0

    def __post_init__(self) -> None:
        if self.bands is not None and not (
            isinstance(self.bands, tuple)
            and 1 <= len(self.bands) <= MAX_CHANNELS
            and all(map(is_positive_int, self.bands))
        ):
            raise ConfigError(
                f"bands={self.bands!r} must be numbers of bands, the first one is 1: (4, 3, 2), or "
                "None for all."
            )
        for name in ("white", "black"):
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else (value,)
            if value is not None and not (numbers and all(map(_is_finite, numbers))):
                raise ConfigError(
                    f"{name}={value!r} must be a number, or a tuple of one for each band."
                )
            if self.bands is not None and len(numbers) not in (1, len(self.bands)):
                raise ConfigError(
                    f"{name} has {len(numbers)} numbers for {len(self.bands)} bands; give one for "
                    "all, or one for each."
                )
        white, black = (
            np.asarray(np.inf if self.white is None else self.white),
            np.asarray(self.black),
        )
        if white.ndim == black.ndim == 1 and white.size != black.size:
            raise ConfigError(f"white has {white.size} numbers and black {black.size}.")
        if not np.all(white > black):
            raise ConfigError(f"white={self.white!r} must be more than black={self.black!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold; ``from_dict`` reads them back."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Bands:
        """Undo ``to_dict``."""
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()})


@dataclass(frozen=True, eq=False)
class Raster:
    """A picture of any number of channels.

    Attributes:
        values: ``(H, W, C)`` float32, upright; 0 is black and 255 white, neither rounded nor
            clipped, so that ``preprocess`` takes them as it takes the pixels of a photo.
    """

    values: NDArray[np.float32]

    @property
    def width(self) -> int:
        """In pixels."""
        return int(self.values.shape[1])

    @property
    def height(self) -> int:
        """In pixels."""
        return int(self.values.shape[0])


def decode_bands(
    source: ImageSource | NDArray[Any],
    bands: Bands | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> Raster:
    """Decode a picture of any number of bands and bits.

    Pixels without data, which are NaN or what GDAL's tag in the file names, become black, as what
    is outside of a picture does. Nothing else is changed: no profile, no transparency, no clipping.

    Args:
        source: A path, the bytes of a file, a Pillow image, or an array ``(H, W, C)`` or ``(H, W)``
            of integers or floats. Of a file with several pictures the first is taken; pages of the
            same size are bands.
        bands: None takes all bands, of 8 bits or of floats from 0 to 1.
        max_pixels: As for ``decode_image``; the file's bands together may be four times as many.
        max_bytes: As for ``decode_image``.

    Returns:
        The raster, its channels in the order of ``bands.bands``.

    Raises:
        ImageError: No such file, no picture, damaged, too large, without one of the bands, or
            with numbers whose white is not known; the text names the file.
        NotInstalledError: A TIFF, and ``pip install "trunkline[images]"`` was not run.

    Example:
        >>> import numpy as np
        >>> scene = np.full((8, 8, 13), 5000, np.uint16)
        >>> decode_bands(scene, Bands(bands=(4, 3, 2), white=10000)).values[0, 0].tolist()
        [127.5, 127.5, 127.5]
    """
    chosen = bands or Bands()
    if isinstance(source, np.ndarray):
        return _raster(_of_array(source), chosen, "the given array", None)
    if isinstance(source, Image.Image):
        check_pixels(source, "the given image", max_pixels)
        return _raster(_of_image(source, "the given image"), chosen, "the given image", None)
    name, file = opened_source(source, max_bytes)
    with file, decoding(name):
        head = file.read(4)
        file.seek(0)
        if head in _TIFF_MARKS:
            values, nodata = _of_tiff(file, name, max_pixels)
            return _raster(values, chosen, name, nodata)
        with remarks.ignored(), open_image(file, name) as opened:
            check_pixels(opened, name, max_pixels)
            return _raster(_of_image(opened, name), chosen, name, None)


def _is_finite(value: object) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and math.isfinite(value)  # type: ignore[arg-type]


def _of_array(values: NDArray[Any]) -> NDArray[Any]:
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise ImageError(
            f"an array as a raster is (H, W, C) or (H, W), got {values.shape}; of bands in front "
            "take array.transpose(1, 2, 0)."
        )
    return values if values.ndim == 3 else values[:, :, None]


def _of_image(image: Image.Image, name: str) -> NDArray[Any]:
    if image.mode in ("P", "PA", "1"):
        raise ImageError(
            f"{name} has colour mode {image.mode}, whose numbers are no brightness; convert it to "
            "L, RGB or RGBA first, or decode it as a photo."
        )
    with remarks.ignored():
        image.load()
    return _of_array(np.asarray(upright(image)))


def _of_tiff(file: BinaryIO, name: str, max_pixels: int) -> tuple[NDArray[Any], float | None]:
    """Return ``(H, W, C)`` of a TIFF as it has them, and what it marks missing pixels by."""
    try:
        import tifffile
    except ImportError as error:
        raise NotInstalledError(
            f"{name} is a TIFF, and its bands are read by tifffile; install it with: "
            'pip install "trunkline[images]"'
        ) from error
    with tifffile.TiffFile(file) as tiff:
        if not tiff.series:
            raise ImageError(f"{name} has no pictures in it; copy or download it again.")
        series, page = tiff.series[0], tiff.pages.first
        kept = [
            (axis, size)
            for axis, size in zip(series.axes, series.shape, strict=True)
            if axis in "YX" or size > 1
        ]
        names = "".join(axis for axis, _ in kept)
        bands = names.replace("Y", "").replace("X", "")
        if len(names) - len(bands) != 2 or len(bands) > 1 or bands not in _AXES_OF_BANDS:
            raise ImageError(
                f"{name} has the axes {series.axes} of {series.shape}, and bands are one axis "
                "beside height and width; save the planes you want as bands."
            )
        if getattr(page, "photometric", None) == tifffile.PHOTOMETRIC.PALETTE:
            raise ImageError(
                f"{name} has a palette, and its numbers are no brightness; save it as RGB, or "
                "decode it as a photo."
            )
        sizes = dict(kept)
        _check_size(name, sizes["X"], sizes["Y"], math.prod(series.shape), page, max_pixels)
        values = series.asarray().reshape([size for _, size in kept])
        order = [names.index(axis) for axis in f"YX{bands}"]
        tag = page.tags.get(_ORIENTATION)
        turned = _turned(values.transpose(order), 1 if tag is None else int(tag.value))
        return _of_array(turned), _nodata(page)


def _check_size(
    name: str, width: int, height: int, samples: int, page: Any, max_pixels: int
) -> None:
    if width * height > max_pixels or samples > _SAMPLES_OF_A_PIXEL * max_pixels:
        raise ImageError(
            f"{name} is {width}x{height} with {samples // max(1, width * height)} bands, above the "
            f"limit of {max_pixels} pixels, or of {_SAMPLES_OF_A_PIXEL} times as many in all bands "
            "together; if you trust it, give a larger max_pixels, or cut it into pieces first."
        )
    tile = getattr(page, "tilewidth", 0) * getattr(page, "tilelength", 0)
    if tile > MAX_PIXELS:
        raise ImageError(
            f"{name} is made of tiles of {tile} pixels, above the limit of {MAX_PIXELS}; save it "
            "with smaller ones."
        )


def _turned(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return ``(H, W, ...)`` upright; the orientation is as in EXIF."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values


def _nodata(page: Any) -> float | None:
    tag = page.tags.get(_NODATA)
    try:
        return None if tag is None else float(str(tag.value).strip("\0 "))
    except ValueError:  # GDAL writes a number there, others may write a word: no number, no pixels
        return None


def _raster(values: NDArray[Any], chosen: Bands, name: str, nodata: float | None) -> Raster:
    """Choose bands of ``(H, W, C)`` and scale them."""
    number = values.shape[2]
    if chosen.bands is not None:
        if max(chosen.bands) > number:
            raise ImageError(
                f"{name} has {number} bands, and bands={chosen.bands} asks for number "
                f"{max(chosen.bands)}; they are counted from 1."
            )
        values = values[:, :, [band - 1 for band in chosen.bands]]
    if values.dtype.kind not in "uif":
        raise ImageError(f"{name} holds {values.dtype}; bands are integers or floats.")
    missing = np.isnan(values) if values.dtype.kind == "f" else np.zeros((), bool)
    if nodata is not None and not math.isnan(nodata):
        missing = missing | (values == nodata)
    if missing.all():
        raise ImageError(f"{name} has no data in the bands {chosen.bands or 'of it'}, only gaps.")
    known = values[~missing] if missing.any() else values
    low, high = known.min(), known.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError(f"{name} holds infinities; mend it, or mark those pixels as NaN.")
    white = _white(values.dtype, chosen, name, low, high)
    black = np.asarray(chosen.black, np.float64)
    for what, numbers in (("white", white), ("black", black)):
        if numbers.ndim == 1 and len(numbers) not in (1, values.shape[2]):
            raise ImageError(
                f"{name} has {values.shape[2]} bands, and {what} {len(numbers)} numbers; give one "
                "for all, or one for each."
            )
    blacks = np.broadcast_to(black, values.shape[2:])
    factors = np.broadcast_to(_WHITE / (white - black), values.shape[2:])
    scaled = np.empty(values.shape, np.float32)
    for channel in range(values.shape[2]):  # one at a time: in float64, all would take too much
        numbers = values[:, :, channel].astype(np.float64)
        scaled[:, :, channel] = (numbers - blacks[channel]) * factors[channel]
    if missing.any():
        scaled[missing] = 0
    return Raster(scaled)


def _white(
    dtype: np.dtype[Any], chosen: Bands, name: str, low: Any, high: Any
) -> NDArray[np.float64]:
    if chosen.white is not None:
        return np.asarray(chosen.white, np.float64)
    if dtype == np.uint8:
        return np.asarray(_WHITE)
    if dtype.kind == "f" and low >= 0 and high <= 1:
        return np.asarray(1.0)
    raise ImageError(
        f"{name} holds {low:g} to {high:g} ({dtype}), and which of these numbers is white is not "
        "known; give white=, such as 10000 for reflectance of Sentinel-2, 4095 for 12 bits or "
        "65535 for 16."
    )


def picture_of(values: NDArray[np.float32], size: tuple[int, int], filter_: int) -> Any:
    """Resize each channel of ``(H, W, C)`` to ``(H, W)`` as Pillow resizes a photo's."""
    height, width = size
    resized = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(values[:, :, channel])).resize(
                (width, height), Image.Resampling(filter_)
            )
        )
        for channel in range(values.shape[2])
    ]
    return np.stack(resized, axis=-1)
