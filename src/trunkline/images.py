"""From a file to what a network takes: decoding, and the one documented resize.

``decode_image`` turns any photo into an upright 8-bit RGB picture; ``preprocess`` turns that into
a tensor, as one ``Preprocessing`` says, and ``pixels`` does all of that but the numbers, for
networks that normalise by themselves. Nothing else in trunkline resizes, crops or normalises.
PyTorch is imported only where a tensor is made: a deployed runner decodes photos without it.

What is done, exactly:

1. *Orientation*: the EXIF tag is applied, so that up is up.
2. *Grey* becomes three equal channels. More than 8 bits keep their high 8 bits, as Pillow does
   with 16-bit colour; float grey is taken as 0..1. Nothing is clipped: values outside are an error.
3. *Transparency* is laid over white, which is what a page shows. A colour key in a 16-bit file is
   not applied. *CMYK* is converted by Pillow's formula; colour profiles are not applied: the
   published networks were trained and measured without.
4. *Animations and multi-page files* give their first frame.
5. *Resize*: Pillow's, always antialiased. ``resize=256`` makes the shorter side 256 and the longer
   floor(256 · longer / shorter), which is torchvision's rounding.
6. *Crop*: centred, its offset rounded half to even (torchvision's rule). A picture smaller than
   the crop gets black borders, before normalisation, the odd pixel at the right and the bottom.
7. *Numbers*: channels in ``channel_order``, value range 0..1 or 0..255, minus ``mean``, over
   ``std``, in float32.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from trunkline.errors import ConfigError, ImageError, InputError
from trunkline.preprocessing import IMAGENET, Preprocessing, is_positive_int

if TYPE_CHECKING:
    import torch

__all__ = [
    "FORMATS",
    "IMAGENET",
    "MAX_PIXELS",
    "ImageSource",
    "Preprocessing",
    "decode_image",
    "load_images",
    "pixels",
    "preprocess",
]

ImageSource = str | os.PathLike[str] | bytes | Image.Image

MAX_PIXELS = 89_478_485
"""Largest picture that is decoded, in pixels: Pillow's own warning level, 256 MB as RGB."""

# Photos only. Pillow also opens formats that start other programs (EPS) or that draw text; a folder
# of strangers' files must not reach those. HEIF counts once a plugin such as pillow-heif is there.
FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_MIN_IS_WHITE = 258, 262, 0
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
_open_lock = threading.Lock()


def decode_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a photo into an upright 8-bit RGB picture.

    Args:
        source: a path, the bytes of a file, or a Pillow image, which is not changed.
        max_pixels: refuse anything larger, by the header, before decoding. Above twice
            ``PIL.Image.MAX_IMAGE_PIXELS`` Pillow refuses by itself, whatever is given here.

    Returns:
        A new Pillow image of mode RGB, as the module's docstring says.

    Raises:
        ImageError: no such file, not a photo, damaged, without pixels, too large, or with values
            that have no fixed meaning as brightness. The text names the file.
        ConfigError: ``max_pixels`` is not a positive integer.

    Example:
        >>> decode_image("examples/cat.jpg").size
        (451, 300)
    """
    if not is_positive_int(max_pixels):
        raise ConfigError(f"max_pixels={max_pixels!r} must be a positive integer.")
    if isinstance(source, Image.Image):
        _check_pixels(source, "the given image", max_pixels)
        return _upright_rgb(source, "the given image")
    if isinstance(source, bytes):
        name = f"an image of {len(source)} bytes"
        if not source:
            raise ImageError(f"{name} is empty; give the whole content of an image file.")
        file: BinaryIO = io.BytesIO(source)
    elif isinstance(source, str | os.PathLike):
        name = str(source)
        file = _open_file(Path(source))
    else:
        raise ImageError(
            f"an image is a path, bytes or a Pillow image, got {type(source).__name__}."
        )
    with file, _open_image(file, name) as opened:
        _check_pixels(opened, name, max_pixels)
        return _upright_rgb(opened, name)


def preprocess(image: Image.Image, preprocessing: Preprocessing = IMAGENET) -> torch.Tensor:
    """Turn a picture into the tensor that a network takes.

    Args:
        image: from ``decode_image``; any other Pillow image is made upright RGB first.
        preprocessing: sizes, interpolation and numbers; see the module's docstring.

    Returns:
        Tensor (3, H, W), float32, contiguous, channels in ``preprocessing.channel_order``.

    Raises:
        ImageError: a Pillow image that cannot be decoded, or one so thin that its resized form
            would exceed ``MAX_PIXELS``.
    """
    return _normalised(_resized(image, preprocessing, "preprocess"), preprocessing)


def pixels(image: Image.Image, preprocessing: Preprocessing = IMAGENET) -> NDArray[np.uint8]:
    """Resize and crop a picture as ``preprocess`` does, and leave its numbers as they are.

    This is what a graph takes that normalises inside (``preprocess=True``). Needs no PyTorch.

    Args:
        image: from ``decode_image``; any other Pillow image is made upright RGB first.
        preprocessing: of its fields the sizes and the interpolation are used.

    Returns:
        Array (H, W, 3), uint8, 0..255, always RGB, contiguous and writable.

    Raises:
        ImageError: as ``preprocess``.

    Example:
        >>> pixels(decode_image("examples/cat.jpg")).shape
        (224, 224, 3)
    """
    return np.array(_resized(image, preprocessing, "pixels"))


def load_images(
    sources: Iterable[ImageSource], preprocessing: Preprocessing = IMAGENET
) -> torch.Tensor:
    """Decode and preprocess several photos into one batch.

    Args:
        sources: at least one of what ``decode_image`` takes.
        preprocessing: the same for all.

    Returns:
        Tensor (N, 3, H, W), float32, in the order given.

    Raises:
        ImageError: one of them cannot be decoded.
        InputError: there are none, or their preprocessed sizes differ.
    """
    import torch

    if isinstance(sources, str | bytes):
        raise InputError("load_images takes several images; put a single one into a list.")
    images = [preprocess(decode_image(source), preprocessing) for source in sources]
    if not images:
        raise InputError("load_images got no image; give at least one.")
    for number, image in enumerate(images):
        if image.shape != images[0].shape:
            first, other = (f"{x.shape[1]}x{x.shape[2]}" for x in (images[0], image))
            raise InputError(
                f"image 0 is {first} and image {number} is {other} (H×W) after preprocessing; "
                "set a crop or a warp that makes them equal, or load them one by one."
            )
    return torch.stack(images)


def _resized(image: Image.Image, preprocessing: Preprocessing, caller: str) -> Image.Image:
    """Return the upright RGB picture after resize and crop; ``caller`` is for the error's text."""
    if not isinstance(image, Image.Image):
        raise ImageError(
            f"{caller} takes a Pillow image, got {type(image).__name__}; decode_image makes one."
        )
    if min(image.size) < 1:
        raise ImageError(f"the given image has no pixels: {image.width}x{image.height}.")
    picture = _upright_rgb(image, "the given image")
    height, width = preprocessing.resized_size(picture.height, picture.width)
    if preprocessing.resize is not None and height * width > MAX_PIXELS:
        raise ImageError(
            f"an image of {picture.width}x{picture.height} would be {width}x{height} after "
            f"resize={preprocessing.resize}, above the limit of {MAX_PIXELS} pixels; "
            "use a smaller resize, or a warp to (H, W)."
        )
    if (width, height) != picture.size:
        filter_ = Image.Resampling[preprocessing.interpolation.upper()]
        picture = picture.resize((width, height), filter_)
    if preprocessing.crop is not None:
        crop_h, crop_w = preprocessing.crop
        top, left = _crop_start(height, crop_h), _crop_start(width, crop_w)
        picture = picture.crop((left, top, left + crop_w, top + crop_h))  # outside is black
    return picture


def _normalised(picture: Image.Image, preprocessing: Preprocessing) -> torch.Tensor:
    import torch

    values = torch.from_numpy(np.array(picture))  # (H, W, 3) uint8
    if preprocessing.channel_order == "BGR":
        values = values.flip(-1)
    values = values.permute(2, 0, 1).contiguous().float()  # (3, H, W)
    if preprocessing.value_range == "0..1":
        values /= 255
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    return values.sub_(mean[:, None, None]).div_(std[:, None, None])


def _crop_start(size: int, crop: int) -> int:
    return -((crop - size) // 2) if crop > size else round((size - crop) / 2)


def _open_file(path: Path) -> BinaryIO:
    try:
        if path.is_dir():
            raise ImageError(f"{path} is a folder; give the path of one image file.")
        if not path.exists():
            raise ImageError(f"{path} does not exist; check the path.")
        if not path.is_file():
            raise ImageError(f"{path} is not a regular file; give the path of an image file.")
        if path.stat().st_size == 0:
            raise ImageError(f"{path} is empty; copy or download it again.")
        # Given a name, Pillow 13 maps the file and mixes up the pixels of a turned TIFF.
        return path.open("rb")
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}; check the path.") from error


def _open_image(file: BinaryIO, name: str) -> Image.Image:
    """Read the header. Pillow's bomb warning is ours to raise, by ``max_pixels``."""
    Image.init()
    formats = [known for known in FORMATS if known in Image.OPEN]
    # Filters belong to the process, so that two threads must not set and restore them at once.
    with _open_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            return Image.open(file, formats=formats)
        except UnidentifiedImageError as error:
            raise ImageError(
                f"{name} is no photo, or only the beginning of one; give a file of "
                f"{', '.join(formats)}."
            ) from error
        except Image.DecompressionBombError as error:
            raise ImageError(
                f"{name} is too large: {error} If you trust it, raise max_pixels and "
                "PIL.Image.MAX_IMAGE_PIXELS."
            ) from error
        except Exception as error:  # broken bytes make decoders raise nearly anything
            raise _damaged(name, error) from error


def _check_pixels(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels: {width}x{height}; give an image that has some.")
    if width * height > max_pixels:
        raise ImageError(
            f"{name} is {width}x{height}, above the limit of {max_pixels} pixels; "
            "if you trust it, give decode_image a larger max_pixels, or make it smaller first."
        )


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)  # always a copy
    except Exception as error:  # broken bytes make decoders raise nearly anything
        raise _damaged(name, error) from error
    if upright.mode.startswith(("I", "F")):
        upright = _eight_bits(upright, image, name)
    try:
        if upright.mode in _ALPHA_MODES or "transparency" in upright.info:
            rgba = upright.convert("RGBA")
            page = Image.new("RGBA", rgba.size, "white")
            upright = Image.alpha_composite(page, rgba)
        rgb = upright.convert("RGB")
    except ValueError as error:
        raise ImageError(
            f"{name} has colour mode {upright.mode}, which has no RGB form here; "
            "save it as RGB first."
        ) from error
    rgb.info = {}  # tags and colour keys are used up; nothing may apply them again
    return rgb


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


def _damaged(name: str, error: Exception) -> ImageError:
    return ImageError(f"{name} is damaged or cut short ({error}); copy or download it again.")
