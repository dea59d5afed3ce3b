"""From a photo to what a network takes: the one documented resize.

``decode_image`` turns any photo into an upright 8-bit RGB picture (points 1 to 4, said in
``trunkline.photos``); ``preprocess`` turns that into a tensor, as one ``Preprocessing`` says, and
``pixels`` does all of that but the numbers, for networks that normalise by themselves. Nothing else
in trunkline resizes, crops, pads or normalises. PyTorch is imported only where a tensor is made: a
deployed runner decodes photos without it.

What is done after decoding, exactly (``docs/images.md`` has all of it in one table):

5. *Resize*: Pillow's, always antialiased but for "nearest". ``resize=256`` makes the shorter side
   256 and the longer floor(256 · longer / shorter), which is torchvision's rounding. The sides are
   those of the photo in its file, also where it was decoded at reduced scale.
6. *Crop*: centred, its offset rounded half to even (torchvision's rule). A picture smaller than
   the crop gets black borders, before normalisation, the odd pixel at the right and the bottom.
7. *Padding*: black, before normalisation, at the right and the bottom, up to the next multiples of
   ``pad_to_multiple``.
8. *Numbers*: channels in ``channel_order``, value range 0..1 or 0..255, minus ``mean``, over
   ``std``, in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trunkline.decoders import FORMATS, HEIF_SUFFIXES, MAX_PIXELS, check_pixels, decoding
from trunkline.errors import ConfigError, ImageError, InputError
from trunkline.photos import (
    MAX_BYTES,
    Decode,
    ImageSource,
    Photo,
    decode_image,
    decode_photo,
    upright_rgb,
    whole,
)
from trunkline.preprocessing import IMAGENET, Preprocessing, reduction
from trunkline.rasters import Bands, Raster, decode_bands, picture_of

if TYPE_CHECKING:
    import torch

__all__ = [
    "FORMATS",
    "IMAGENET",
    "MAX_BYTES",
    "MAX_PIXELS",
    "Bands",
    "Decode",
    "ImageSource",
    "Photo",
    "Preprocessing",
    "Raster",
    "decode_bands",
    "decode_image",
    "decode_photo",
    "image_suffixes",
    "load_images",
    "normalised",
    "pixels",
    "preprocess",
]


def preprocess(
    image: Image.Image | Photo | Raster, preprocessing: Preprocessing = IMAGENET
) -> torch.Tensor:
    """Turn a picture into the tensor that a network takes.

    Args:
        image: from ``decode_photo``, ``decode_image`` or ``decode_bands``; any other Pillow image
            is made upright RGB first.
        preprocessing: sizes, interpolation and numbers; see the module's docstring.

    Returns:
        Tensor (3, H, W), float32, contiguous, channels in ``preprocessing.channel_order``;
        (C, H, W) of a raster of C channels.

    Raises:
        ImageError: a Pillow image that cannot be decoded, or one so thin that its resized form
            would exceed ``MAX_PIXELS``, or that padding would add more than that.
        ConfigError: a photo that was decoded at reduced scale for a smaller size than this one; a
            preprocessing for another number of channels.
    """
    import torch

    picture = _pixels(image, preprocessing, "preprocess")
    return torch.from_numpy(normalised(picture[None], preprocessing)[0])


def pixels(
    image: Image.Image | Photo | Raster, preprocessing: Preprocessing = IMAGENET
) -> NDArray[Any]:
    """Resize, crop and pad a picture as ``preprocess`` does, and leave its numbers as they are.

    This is what a graph takes that normalises inside (``preprocess=True``). Needs no PyTorch.

    Args:
        image: as for ``preprocess``.
        preprocessing: of its fields the sizes and the interpolation are used.

    Returns:
        Array (H, W, 3), uint8, 0..255, always RGB, contiguous and writable; of a raster (H, W, C),
        float32, on the same scale.

    Raises:
        ImageError: as ``preprocess``.
        ConfigError: as ``preprocess``.

    Example:
        >>> pixels(decode_image("examples/cat.jpg")).shape
        (224, 224, 3)
    """
    return _pixels(image, preprocessing, "pixels")


def _pixels(
    image: Image.Image | Photo | Raster, preprocessing: Preprocessing, caller: str
) -> NDArray[Any]:
    if isinstance(image, Raster):
        return _resized_raster(image, preprocessing)
    return np.array(_resized(image, preprocessing, caller))  # (H, W, 3) uint8


def normalised(
    pixels: NDArray[Any], preprocessing: Preprocessing = IMAGENET
) -> NDArray[np.float32]:
    """Return the numbers of pictures that ``pixels`` made, as ``preprocess`` does for one.

    Needs no PyTorch.

    Args:
        pixels: (N, H, W, 3) uint8 RGB, or (N, H, W, C) float32 of rasters.
        preprocessing: Its numbers are used.

    Returns:
        (N, C, H, W) float32, contiguous, channels in ``preprocessing.channel_order``.

    Raises:
        ConfigError: a preprocessing for another number of channels.
    """
    if preprocessing.num_channels != pixels.shape[-1]:
        raise ConfigError(
            f"the preprocessing has numbers for {preprocessing.num_channels} channels and the "
            f"picture has {pixels.shape[-1]}; give one mean and std per channel."
        )
    values = np.moveaxis(pixels, -1, 1)  # (N, C, H, W)
    if preprocessing.channel_order == "BGR":
        values = values[:, ::-1]
    numbers = np.array(values, np.float32, order="C")
    if preprocessing.value_range == "0..1":
        numbers /= np.float32(255)
    shape = (-1, 1, 1)
    numbers -= np.array(preprocessing.mean, np.float32).reshape(shape)
    numbers /= np.array(preprocessing.std, np.float32).reshape(shape)
    return numbers


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
    if isinstance(sources, str | bytes):
        raise InputError("load_images takes several images; put a single one into a list.")
    return stacked([preprocess(decode_image(source), preprocessing) for source in sources])


def stacked(images: list[torch.Tensor]) -> torch.Tensor:
    """Return one batch of preprocessed photos.

    Raises:
        InputError: There are none, or their sizes differ.
    """
    import torch

    if not images:
        raise InputError("there is no image in the list; give at least one.")
    for number, image in enumerate(images):
        if image.shape != images[0].shape:
            first, other = (f"{x.shape[1]}x{x.shape[2]}" for x in (images[0], image))
            raise InputError(
                f"image 0 is {first} and image {number} is {other} (H×W) after preprocessing; "
                "size=N or size=(H, W) makes them equal, or take them one by one."
            )
    return torch.stack(images)


@cache
def image_suffixes() -> frozenset[str]:
    """Return the endings of file names that count as photos, in small letters, dot included.

    They are what this machine's Pillow knows for ``FORMATS``; and those of HEIC, which fail with
    the install line where no plugin reads them: a phone's photos do not vanish without a word.
    """
    known = Image.registered_extensions()
    read = (suffix.lower() for suffix, format_ in known.items() if format_ in FORMATS)
    return frozenset((*read, *HEIF_SUFFIXES))


def _resized(image: Image.Image | Photo, preprocessing: Preprocessing, caller: str) -> Image.Image:
    """Return the picture after resize, crop and padding; ``caller`` is for the error's text."""
    photo = _photo(image, preprocessing, caller)
    with decoding(f"an image of {photo.width}x{photo.height}"):
        return _padded(_cropped(_scaled(photo, preprocessing), preprocessing), preprocessing, photo)


def _resized_raster(raster: Raster, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Do with each channel what ``_resized`` does with a photo."""
    values = raster.values
    with decoding(f"a raster of {raster.width}x{raster.height}"):
        size = _size_after(raster, preprocessing)
        if size != values.shape[:2]:
            filter_ = Image.Resampling[preprocessing.interpolation.upper()]
            values = picture_of(values, size, filter_)
        height, width = preprocessing.output_size(raster.height, raster.width)
        top, left = 0, 0
        if preprocessing.crop is not None:
            top = _crop_start(size[0], preprocessing.crop[0])
            left = _crop_start(size[1], preprocessing.crop[1])
        _check_padding(size[1], size[0], width, height, preprocessing)
        made = np.zeros((height, width, values.shape[2]), np.float32)  # outside is black
        kept_h, kept_w = preprocessing.crop or (height, width)
        part = values[max(0, top) : top + kept_h, max(0, left) : left + kept_w]
        y, x = max(0, -top), max(0, -left)
        made[y : y + part.shape[0], x : x + part.shape[1]] = part
        return made


def _size_after(photo: Photo | Raster, preprocessing: Preprocessing) -> tuple[int, int]:
    """Return (H, W) after the resize, or refuse it."""
    height, width = preprocessing.resized_size(photo.height, photo.width)
    if (width, height) != (photo.width, photo.height) and height * width > MAX_PIXELS:
        raise ImageError(
            f"an image of {photo.width}x{photo.height} would be {width}x{height} after "
            f"resize={preprocessing.resize}, above the limit of {MAX_PIXELS} pixels; "
            "use a smaller resize, or a warp to (H, W)."
        )
    return height, width


def _scaled(photo: Photo, preprocessing: Preprocessing) -> Image.Image:
    height, width = _size_after(photo, preprocessing)
    if (width, height) == photo.image.size:
        return photo.image
    filter_ = Image.Resampling[preprocessing.interpolation.upper()]
    return photo.image.resize((width, height), filter_, box=photo.box)


def _cropped(picture: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    if preprocessing.crop is None:
        return picture
    crop_h, crop_w = preprocessing.crop
    top, left = _crop_start(picture.height, crop_h), _crop_start(picture.width, crop_w)
    return picture.crop((left, top, left + crop_w, top + crop_h))  # outside is black


def _photo(image: Image.Image | Photo, preprocessing: Preprocessing, caller: str) -> Photo:
    """Return what is resized; refuse a photo that was reduced for another resize."""
    if isinstance(image, Photo):
        if image.factor > reduction(preprocessing, image.height, image.width):
            raise ConfigError(
                f"this photo was decoded at 1/{image.factor} of its size for another resize; "
                "decode it with the preprocessing that it is used with, or with decode='exact'."
            )
        return image
    if not isinstance(image, Image.Image):
        raise ImageError(
            f"{caller} takes a Pillow image, got {type(image).__name__}; decode_image makes one."
        )
    check_pixels(image, "the given image", image.width * image.height)
    return whole(upright_rgb(image, "the given image"))


def _padded(picture: Image.Image, preprocessing: Preprocessing, photo: Photo) -> Image.Image:
    height, width = preprocessing.output_size(photo.height, photo.width)
    if (width, height) == picture.size:
        return picture
    _check_padding(picture.width, picture.height, width, height, preprocessing)
    return picture.crop((0, 0, width, height))  # outside is black


def _check_padding(
    from_width: int, from_height: int, width: int, height: int, preprocessing: Preprocessing
) -> None:
    if width * height - from_width * from_height > MAX_PIXELS:
        raise ImageError(
            f"an image of {from_width}x{from_height} would be {width}x{height} with "
            f"pad_to_multiple={preprocessing.pad_to_multiple}: padding may add at most "
            f"{MAX_PIXELS} pixels; use a smaller multiple, or a crop or warp to a fixed size."
        )


def _crop_start(size: int, crop: int) -> int:
    return -((crop - size) // 2) if crop > size else round((size - crop) / 2)
