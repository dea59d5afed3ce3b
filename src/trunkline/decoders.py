"""What Pillow is asked for, and what may come of it: a picture, or an ``ImageError``."""

from __future__ import annotations

import io
import math
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from trunkline.errors import ImageError, TrunklineError

MAX_PIXELS = 89_478_485
"""Largest picture that is decoded, in pixels: Pillow's own warning level, 256 MB as RGB."""

MAX_SIDE = 1 << 20
"""Longest side of a picture: rows and what a resize needs for each take memory of their own."""

# Photos only. Pillow also opens formats that start other programs (EPS) or that draw text; a folder
# of strangers' files must not reach those. HEIF is what phones write; a plugin of Pillow reads it.
FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

HEIF_SUFFIXES = (".heic", ".heif", ".hif")  # counted as photos, whether or not they can be read
_HEIF_PLUGINS = (("pillow_heif", "register_heif_opener"), ("pi_heif", "register_heif_opener"))
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_KINDS = (  # (where, bytes, what a file is that Pillow, as it is asked here, does not open)
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript document"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"\xff\x0a", "a JPEG XL picture"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (0, b"<svg", "a drawing in SVG"),
    (0, b"<?xml", "an XML document, perhaps a drawing in SVG"),
    (0, b"<!DOCTYPE", "a web page"),
    (0, b"<html", "a web page"),
    (0, b"FUJIFILMCCD-RAW", "a raw file of a camera"),
    (0, b"IIRO", "a raw file of a camera"),
    (0, b"IIU\0", "a raw file of a camera"),
    (4, b"ftypcrx", "a raw file of a camera"),
    (4, b"ftypqt", "a video"),
    (4, b"ftypisom", "a video"),
    (4, b"ftypmp4", "a video"),
    (0, b"\x1aE\xdf\xa3", "a video"),
    (8, b"AVI ", "a video"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"SIMPLE  =", "a FITS file"),
    (128, b"DICM", "a DICOM file"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the picture: run `git lfs pull`"),
)
_TIFF_TILE = 322, 323
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Make an ``ImageError`` of whatever goes wrong with a picture: decoders raise nearly anything.

    Raises:
        ImageError: Something that is no error of ours was raised.
    """
    try:
        yield
    except TrunklineError:
        raise
    except MemoryError as error:
        raise ImageError(
            f"{name} needs more memory than there is; give a smaller max_pixels, or make it "
            "smaller first."
        ) from error
    except Exception as error:
        raise ImageError(
            f"{name} is damaged or cut short ({error}); copy or download it again."
        ) from error


def open_image(file: BinaryIO, name: str) -> Image.Image:
    """Read the header of a picture. Pillow's bomb warning is ours to raise, by ``max_pixels``.

    Args:
        file: Which it may go on reading from.
        name: For the error's text.

    Raises:
        ImageError: It is no picture of ``FORMATS``, damaged, or above Pillow's own limit.
    """
    Image.init()
    read_heif()
    formats = [known for known in FORMATS if known in Image.OPEN]
    with decoding(name), remarks.ignored():
        try:
            return Image.open(file, formats=formats)
        except UnidentifiedImageError as error:
            raise ImageError(_not_opened(file, name, formats)) from error
        except Image.DecompressionBombError as error:
            raise ImageError(
                f"{name} is too large: {error} If you trust it, raise max_pixels and "
                "PIL.Image.MAX_IMAGE_PIXELS."
            ) from error


@cache
def read_heif() -> bool:
    """Let Pillow read HEIC and HEIF, which phones write, if a plugin for it is installed."""
    for module, register in _HEIF_PLUGINS:
        if find_spec(module) is not None:
            getattr(import_module(module), register)()
            return True
    return "HEIF" in Image.OPEN


def _not_opened(file: BinaryIO, name: str, formats: Sequence[str]) -> str:
    """Say what a file is that Pillow does not open, if its beginning shows it."""
    file.seek(0)
    head = file.read(256)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and "HEIF" not in formats:
        return (
            f"{name} is a HEIC photo, which needs pillow-heif; install it with: "
            'pip install "trunkline[images]"'
        )
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        held = _described_tiff(file)
        what = f"a TIFF of {held}" if held else "a TIFF of a kind that Pillow does not read"
        return (
            f"{name} is {what}, and no photo: choose its bands and say which number is white, "
            "--bands 4,3,2 --white 10000, in Python bands=(4, 3, 2), white=10000 of extract, or "
            "decode_bands(source, Bands(bands=(4, 3, 2), white=10000))."
        )
    for start, mark, what in _KINDS:
        if head[start : start + len(mark)].lower() == mark.lower():
            return f"{name} is {what}; give a photo: {', '.join(formats)}."
    return f"{name} is no photo, or only the beginning of one; give a file of {', '.join(formats)}."


def _described_tiff(file: BinaryIO) -> str | None:
    """Return what a TIFF holds, as "13 bands, uint16, 64x48"; None where it cannot be told."""
    try:
        import tifffile

        file.seek(0)
        with tifffile.TiffFile(file) as tiff:
            series = tiff.series[0]
            sizes = dict(zip(series.axes, series.shape, strict=True))
            bands = math.prod(series.shape) // (sizes["X"] * sizes["Y"])
            return f"{bands} bands, {series.dtype}, {sizes['X']}x{sizes['Y']}"
    except Exception:  # of no reader, or of a damaged file: the error that is on its way says it
        return None


def has_large_texts(error: BaseException) -> bool:
    """Return whether a PNG was refused for its texts or its profile, which are no pixels."""
    cause = error.__cause__
    return isinstance(cause, ValueError) and "MAX_TEXT" in str(cause)


def without_texts(file: BinaryIO) -> BinaryIO:
    """Return a PNG without texts and colour profile, whatever their size; nothing is inflated.

    Workflows, prompts and histories of editors are kept there, some of them in many megabytes.
    """
    file.seek(0)
    kept = [file.read(len(_PNG))]
    while len(head := file.read(8)) == 8:
        size = int.from_bytes(head[:4], "big") + 4  # and the checksum
        if head[4:] in _TEXT_CHUNKS:
            file.seek(size, 1)
        else:
            kept += [head, file.read(size)]
    return io.BytesIO(b"".join(kept))


def is_cut_jpeg(error: BaseException, file: BinaryIO) -> bool:
    """Return whether a JPEG was refused for an end that is missing."""
    file.seek(0)
    is_jpeg = file.read(len(_JPEG)) == _JPEG
    return is_jpeg and "file is truncated" in str(error.__cause__)


def with_end(file: BinaryIO) -> BinaryIO | None:
    """Return a JPEG with the mark of its end behind it: libjpeg then fills what is missing.

    Returns:
        None where it is no JPEG.
    """
    file.seek(0)
    content = file.read()
    return io.BytesIO(content + _JPEG_END) if content.startswith(_JPEG) else None


def check_pixels(image: Image.Image, name: str, max_pixels: int) -> None:
    """Refuse a picture by its header, before memory is taken for it.

    Args:
        image: Its pixels need not be loaded.
        name: For the error's text.
        max_pixels: That it may have.

    Raises:
        ImageError: It has no pixels, too many, a side above ``MAX_SIDE``, or tiles above
            ``MAX_PIXELS``, which a decoder takes whole even where the picture is smaller.
    """
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels: {width}x{height}; give an image that has some.")
    if width * height > max_pixels:
        raise ImageError(
            f"{name} is {width}x{height}, above the limit of {max_pixels} pixels; "
            "if you trust it, give decode_image a larger max_pixels, or make it smaller first."
        )
    if max(width, height) > MAX_SIDE:
        raise ImageError(
            f"{name} is {width}x{height}, and a side has at most {MAX_SIDE} pixels; "
            "cut it into pieces first."
        )
    tile = _tile(image)
    if math.prod(tile) > MAX_PIXELS:
        raise ImageError(
            f"{name} is made of tiles of {tile[0]}x{tile[1]}, above the limit of {MAX_PIXELS} "
            "pixels; save it with smaller ones."
        )


def _tile(image: Image.Image) -> tuple[int, int]:
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    width, height = (tags.get(tag, 0) for tag in _TIFF_TILE)
    return (width, height) if isinstance(width, int) and isinstance(height, int) else (0, 0)


class _Remarks:
    """Keeps Pillow's warnings quiet, and its limit out of the way, while any thread decodes.

    How large a picture may be is said by ``max_pixels``, and ``check_pixels`` sees to it. Filters
    and limit belong to the process: threads that set and restored them in turn would leave them
    set. So the first thread that comes in sets them, and the last one that goes restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()
        self._limit = Image.MAX_IMAGE_PIXELS

    @contextmanager
    def ignored(self) -> Iterator[None]:
        """Ignore what Pillow, and only Pillow, warns of within the block."""
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                for category in (UserWarning, Image.DecompressionBombWarning):
                    warnings.filterwarnings("ignore", category=category, module=r"PIL\.")
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._filters.__exit__(None, None, None)
                    Image.MAX_IMAGE_PIXELS = self._limit


remarks = _Remarks()
"""Of this process."""
