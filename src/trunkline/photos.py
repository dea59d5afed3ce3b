"""From a file to an upright 8-bit RGB picture. PyTorch is not imported here.

What is done, exactly:

1. *Orientation*: the EXIF tag is applied, so that up is up. EXIF data that cannot be read counts
   as none, as it does in a browser.
2. *Grey* becomes three equal channels. More than 8 bits keep their high 8 bits, as Pillow does
   with 16-bit colour; float grey is taken as 0..1. Nothing is clipped: values outside are an error.
3. *Transparency* is laid over white, which is what a page shows; ``alpha="black"`` lays it over
   black, and ``"ignore"`` leaves it out: a fourth band of a satellite is none, whatever its tag
   says. A colour key in a 16-bit file is not applied. *CMYK* is converted by Pillow's formula;
   colour profiles are not applied: the published networks were trained and measured without.
4. *Animations and multi-page files* give their first frame.

``decode="fast"`` lets libjpeg compute a JPEG at 1/2, 1/4 or 1/8 of its size, which it does several
times as fast, where a resize to less than half of that follows anyway. What Pillow remarks on
broken metadata as warnings is not passed on: a picture is decoded, or it is an error.
"""

from __future__ import annotations

import io
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin
from PIL.JpegImagePlugin import JpegImageFile

from trunkline.decoders import (
    MAX_PIXELS,
    check_pixels,
    decoding,
    has_large_texts,
    is_cut_jpeg,
    open_image,
    remarks,
    with_end,
    without_texts,
)
from trunkline.errors import ConfigError, ImageError
from trunkline.preprocessing import Preprocessing, is_positive_int, reduction

_log = logging.getLogger(__name__)

ImageSource = str | os.PathLike[str] | bytes | Image.Image
Decode = Literal["exact", "fast"]
Alpha = Literal["white", "black", "ignore"]
DECODES: tuple[Decode, ...] = ("exact", "fast")
ALPHAS: tuple[Alpha, ...] = ("white", "black", "ignore")
Truncated = Literal["refuse", "keep"]
TRUNCATED: tuple[Truncated, ...] = ("refuse", "keep")

MAX_BYTES = 2**30
"""Largest file that is opened, in bytes: more than four times the pixels of ``MAX_PIXELS``."""

_TURNS = {  # the EXIF tag → what brings the stored picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FIRST_SWAPPING = 5  # from this tag on, width and height change places
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_MIN_IS_WHITE = 258, 262, 0
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")


@dataclass(frozen=True, eq=False)
class Photo:
    """A decoded photo, and how large it is in its file.

    Attributes:
        image: Upright, mode RGB; smaller than the photo where it was decoded at reduced scale.
        width: Of the upright photo as its file has it, in pixels.
        height: As ``width``.
        box: The part of ``image`` that the photo covers: left, top, right, bottom in pixels of
            ``image``. All of it, unless ``factor`` does not divide a side.
        factor: 1, or by how much the sides of ``image`` are smaller: 2, 4 or 8.
    """

    image: Image.Image
    width: int
    height: int
    box: tuple[float, float, float, float]
    factor: int = 1


_KEEP = 'Or truncated="keep" (--truncated keep) takes it as far as it goes.'


def decode_image(
    source: ImageSource,
    *,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    alpha: Alpha = "white",
    truncated: Truncated = "refuse",
) -> Image.Image:
    """Decode a photo into an upright 8-bit RGB picture.

    Args:
        source: a path, the bytes of a file, or a Pillow image, which is not changed.
        max_pixels: refuse anything larger, by the header, before decoding. Pillow's own limit,
            ``PIL.Image.MAX_IMAGE_PIXELS``, does not count here.
        max_bytes: refuse a larger file before reading it.
        alpha: what transparent pixels are laid over, ``"white"`` or ``"black"``; ``"ignore"``
            leaves a channel of transparency out.
        truncated: "keep" takes a JPEG whose end is missing as far as it goes; what is missing is
            grey, or as the block before it. "refuse" makes it an error.

    Returns:
        A new Pillow image of mode RGB, as the docstring of ``trunkline.photos`` says.

    Raises:
        ImageError: no such file, not a photo, damaged, without pixels, too large, or with values
            that have no fixed meaning as brightness. The text names the file.
        ConfigError: ``max_pixels`` or ``max_bytes`` is not a positive integer, or no such alpha.

    Example:
        >>> decode_image("examples/cat.jpg").size
        (451, 300)
    """
    return decode_photo(
        source, max_pixels=max_pixels, max_bytes=max_bytes, alpha=alpha, truncated=truncated
    ).image


def decode_photo(
    source: ImageSource,
    preprocessing: Preprocessing | None = None,
    *,
    decode: Decode = "exact",
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    alpha: Alpha = "white",
    truncated: Truncated = "refuse",
) -> Photo:
    """Decode a photo as ``decode_image`` does, and keep the size that it has in its file.

    Args:
        source: a path, the bytes of a file, or a Pillow image, which is not changed.
        preprocessing: what the photo is decoded for; ``"fast"`` needs it, ``"exact"`` does not.
        decode: ``"exact"`` computes all pixels. ``"fast"`` computes a JPEG at the smallest of 1/2,
            1/4 and 1/8 of its size that is still twice the size after the resize, on both sides;
            everything else, and a JPEG that is not so large, is decoded as by ``"exact"``. What
            it changes is measured in ``docs/images.md``.
        max_pixels: as for ``decode_image``; of the photo in its file, also for ``"fast"``.
        max_bytes: as for ``decode_image``.
        alpha: as for ``decode_image``.
        truncated: as for ``decode_image``.

    Returns:
        What ``pixels`` and ``preprocess`` take; they resize it to exactly the same size whichever
        way it was decoded.

    Raises:
        ImageError: as ``decode_image``.
        ConfigError: an option outside what is allowed, or ``"fast"`` without ``preprocessing``.

    Example:
        >>> from trunkline.preprocessing import IMAGENET
        >>> photo = decode_photo("examples/cat.jpg", IMAGENET.with_size(64), decode="fast")
        >>> (photo.width, photo.height), photo.image.size
        ((451, 300), (226, 150))
    """
    _check_options(preprocessing, decode, max_pixels, max_bytes)
    if alpha not in ALPHAS:
        raise ConfigError(f"alpha={alpha!r} is unknown; use one of {', '.join(ALPHAS)}.")
    if truncated not in TRUNCATED:
        raise ConfigError(f"truncated={truncated!r} is unknown; use one of {', '.join(TRUNCATED)}.")
    if isinstance(source, Image.Image):
        check_pixels(source, "the given image", max_pixels)
        upright = upright_rgb(source, "the given image", alpha=alpha)
        return whole(upright.copy() if upright is source else upright)
    name, file = opened_source(source, max_bytes)
    with file:
        try:
            return _decoded(file, name, preprocessing, decode, max_pixels, alpha)
        except ImageError as error:
            if has_large_texts(error):
                again = without_texts(file)
            elif truncated == "keep" and (ended := with_end(file)) is not None:
                again = ended
            elif is_cut_jpeg(error, file):
                raise ImageError(f"{error} {_KEEP}") from error
            else:
                raise
            return _decoded(again, name, preprocessing, decode, max_pixels, alpha)


def _decoded(
    file: BinaryIO,
    name: str,
    preprocessing: Preprocessing | None,
    decode: Decode,
    max_pixels: int,
    alpha: Alpha,
) -> Photo:
    with decoding(name), remarks.ignored(), open_image(file, name) as opened:
        check_pixels(opened, name, max_pixels)
        if decode == "exact" or preprocessing is None or not isinstance(opened, JpegImageFile):
            return whole(upright_rgb(opened, name, alpha=alpha))
        return _reduced(opened, name, preprocessing)


def whole(image: Image.Image) -> Photo:
    """Return an upright RGB picture as a photo that was decoded exactly."""
    width, height = image.size
    return Photo(image, width, height, (0, 0, width, height))


def upright_rgb(
    image: Image.Image, name: str, turn: int | None = None, *, alpha: Alpha = "white"
) -> Image.Image:
    """Return the upright 8-bit RGB form of a picture.

    Args:
        image: any Pillow image; its pixels are loaded, otherwise it is not changed.
        name: for the error's text.
        turn: its EXIF orientation where that was read before; None reads it.
        alpha: as for ``decode_image``.

    Returns:
        A plain Pillow image: the given one where it has that form already, otherwise a new one.

    Raises:
        ImageError: damaged, or with values that have no fixed meaning as brightness.
    """
    with decoding(name):
        with remarks.ignored():
            image.load()
        # Asked for after loading: Pillow turns a TIFF by itself, and then drops the tag.
        picture = upright(image, turn)
        if picture.mode.startswith(("I", "F")):
            picture = _eight_bits(picture, image, name)
        if isinstance(image, TiffImagePlugin.TiffImageFile) and alpha == "white":
            _warn_of_bands(picture, name)
        picture = _plain_rgb(picture, name, alpha)
    if not picture.info:
        return picture
    rgb = picture.copy() if picture is image else picture
    rgb.info = {}  # tags and colour keys are used up; nothing may apply them again
    return rgb


def upright(image: Image.Image, turn: int | None = None) -> Image.Image:
    """Return a loaded picture as its EXIF orientation wants it: itself, or a turned one."""
    method = _TURNS.get(orientation_of(image) if turn is None else turn)
    return image if method is None else image.transpose(method)


def _warn_of_bands(picture: Image.Image, name: str) -> None:
    """Say of a TIFF once per process that its fourth band was taken for transparency."""
    global _warned
    if picture.mode in _ALPHA_MODES and not _warned:
        _warned = True
        _log.warning(
            "%s has a band that its tags call transparency, and the colours are laid over white by "
            "it; if it is a band of its own, as near infrared, use alpha='ignore'. Further files "
            "are not told.",
            name,
        )


_warned = False


def _plain_rgb(picture: Image.Image, name: str, alpha: Alpha) -> Image.Image:
    try:
        if picture.mode in _ALPHA_MODES or "transparency" in picture.info:
            rgba = picture.convert("RGBA")
            if alpha == "ignore":
                picture = rgba.convert("RGB")  # drops it
            else:
                picture = Image.alpha_composite(Image.new("RGBA", rgba.size, alpha), rgba)
        # A picture of a file knows its tags, so that it is copied; a plain one is used as it is.
        if picture.mode != "RGB" or type(picture) is not Image.Image:
            picture = picture.convert("RGB")
    except ValueError as error:
        raise ImageError(
            f"{name} has colour mode {picture.mode}, which has no RGB form here; "
            "save it as RGB first."
        ) from error
    return picture


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened picture, 1 where it has none that can be read."""
    with remarks.ignored():
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception:  # broken metadata of a sound picture: nearly anything may be raised
            return 1
    return orientation if orientation in _TURNS else 1


def _reduced(opened: JpegImageFile, name: str, preprocessing: Preprocessing) -> Photo:
    """Decode a JPEG at the scale that its resize leaves room for."""
    turn = orientation_of(opened)
    width, height = opened.size if turn < _FIRST_SWAPPING else opened.size[::-1]
    factor = reduction(preprocessing, height, width)
    if factor > 1:
        opened.draft(None, (opened.width // factor, opened.height // factor))
    image = upright_rgb(opened, name, turn)
    # A side that the factor does not divide ends within the last pixel, which a turn may have
    # brought to the left or to the top.
    covered_w, covered_h = width / factor, height / factor
    left = image.width - covered_w if turn in (2, 3, 6, 7) else 0.0
    top = image.height - covered_h if turn in (3, 4, 7, 8) else 0.0
    box = (left, top, left + covered_w, top + covered_h)
    return Photo(image, width, height, box, factor)


def _check_options(
    preprocessing: Preprocessing | None, decode: str, max_pixels: int, max_bytes: int
) -> None:
    for name, limit in (("max_pixels", max_pixels), ("max_bytes", max_bytes)):
        if not is_positive_int(limit):
            raise ConfigError(f"{name}={limit!r} must be a positive integer.")
    if decode not in DECODES:
        raise ConfigError(f"decode={decode!r} is unknown; use one of {', '.join(DECODES)}.")
    if decode == "fast" and preprocessing is None:
        raise ConfigError(
            "decode='fast' depends on the resize that follows; give preprocessing=, "
            "or use decode='exact'."
        )


def opened_source(source: object, max_bytes: int) -> tuple[str, BinaryIO]:
    """Return what an error calls the source, and its content as a file."""
    if isinstance(source, bytes):
        name = f"an image of {len(source)} bytes"
        if not source:
            raise ImageError(f"{name} is empty; give the whole content of an image file.")
        _check_bytes(len(source), name, max_bytes)
        return name, io.BytesIO(source)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        return str(path), _open_file(path, max_bytes)
    raise ImageError(f"an image is a path, bytes or a Pillow image, got {type(source).__name__}.")


def _open_file(path: Path, max_bytes: int) -> BinaryIO:
    try:
        if path.is_dir():
            raise ImageError(f"{path} is a folder; give the path of one image file.")
        if not path.exists():
            raise ImageError(f"{path} does not exist; check the path.")
        if not path.is_file():
            raise ImageError(f"{path} is not a regular file; give the path of an image file.")
        size = path.stat().st_size
        if size == 0:
            raise ImageError(f"{path} is empty; copy or download it again.")
        _check_bytes(size, str(path), max_bytes)
        # Given a name, Pillow 13 maps the file and mixes up the pixels of a turned TIFF.
        return path.open("rb")
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}; check the path.") from error


def _check_bytes(size: int, name: str, max_bytes: int) -> None:
    if size > max_bytes:
        raise ImageError(
            f"{name} has {size} bytes, above the limit of {max_bytes}; "
            "if you trust it, give a larger max_bytes, or make it smaller first."
        )


def _eight_bits(upright: Image.Image, original: Image.Image, name: str) -> Image.Image:
    """Scale grey of 12, 16 or 32 bits to mode L. ``original`` still has the TIFF tags."""
    values = np.asarray(upright)  # (H, W) uint16, int32 or float32
    tags = original.tag_v2 if isinstance(original, TiffImagePlugin.TiffImageFile) else {}
    bits = 12 if tags.get(_TIFF_BITS) == (12,) else 16  # Pillow widens 12 bits without scaling
    white = 1 if upright.mode == "F" else 2**bits - 1
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= white):  # so that NaN is refused too
        raise ImageError(
            f"{name} holds grey values {low:g} to {high:g} in mode {upright.mode}, where 0 to "
            f"{white} is black to white; rescale it, or save it with 8 bits."
        )
    if upright.mode == "F":
        grey = np.rint(values * 255).astype(np.uint8)
    else:
        grey = (values.astype(np.uint16) >> (bits - 8)).astype(np.uint8)
    if tags.get(_TIFF_PHOTOMETRIC) == _TIFF_MIN_IS_WHITE:  # Pillow inverts only up to 8 bits
        grey = 255 - grey
    return Image.fromarray(grey)
