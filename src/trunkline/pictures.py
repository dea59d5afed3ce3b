"""What a caller hands over as a photo or as several, and the tensors that they become."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image

from trunkline.errors import ConfigError, InputError
from trunkline.images import decode_image, preprocess, stacked
from trunkline.photos import Photo
from trunkline.preprocessing import Preprocessing
from trunkline.rasters import Raster

if TYPE_CHECKING:
    import torch

Picture = Image.Image | Photo | Raster
_ALLOWED = (
    "a path, the bytes of a file, a Pillow image, what decode_bands makes, or an 8-bit array or "
    "tensor (H, W, 3) in RGB; or a list of these, or an array (N, H, W, 3)"
)


def is_several(images: object) -> bool:
    """Say whether these are several photos, be it none or one, rather than a photo."""
    if _is_array(images):
        return int(images.ndim) == 4  # type: ignore[attr-defined]
    return not _is_one(images) and isinstance(images, Iterable)


def pictures_of(images: object) -> list[Picture]:
    """Return the decoded pictures of a photo, or of several, in their order.

    Raises:
        ImageError: One cannot be decoded.
        InputError: One is nothing that a photo can be; the text says which and what is.
    """
    if not is_several(images):
        return [picture_of(images, "the image")]
    several: Iterable[Any] = images  # type: ignore[assignment]
    return [picture_of(one, f"image {number}") for number, one in enumerate(several)]


def tensors_of(images: object, preprocessing: Preprocessing) -> torch.Tensor:
    """Return what a network takes: ``(C, H, W)`` of a picture, ``(N, C, H, W)`` of several.

    Raises:
        ImageError: A photo cannot be decoded.
        InputError: Something that is no photo, or photos of different sizes after preprocessing.
        ConfigError: A preprocessing for another number of channels than a picture has.
    """
    pictures = pictures_of(images)
    if preprocessing.num_channels != 3 and not all(isinstance(one, Raster) for one in pictures):
        raise ConfigError(
            f"this preprocessing has numbers for {preprocessing.num_channels} channels, and a "
            "photo has three; decode_bands(source, Bands(...)) reads pictures of other bands."
        )
    made = [preprocess(picture, preprocessing) for picture in pictures]
    return stacked(made) if is_several(images) else made[0]


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray) or (hasattr(value, "ndim") and hasattr(value, "cpu"))


def _is_one(value: object) -> bool:
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, Photo, Raster)
    return isinstance(value, kinds) or hasattr(value, "read")


def picture_of(value: Any, what: str) -> Picture:
    """Return the decoded picture of a photo; ``what`` names it in errors.

    Raises:
        ImageError: It cannot be decoded.
        InputError: It is nothing that a photo can be; the text says what is.
    """
    if isinstance(value, Image.Image | Photo | Raster):
        return value
    if _is_array(value):
        return _of_array(value, what)
    if isinstance(value, bytearray | memoryview):
        value = bytes(value)
    if hasattr(value, "read"):
        value = _content(value, what)
    if _is_one(value):
        return decode_image(value)
    raise InputError(f"{what} is a {type(value).__name__}; give {_ALLOWED}.")


def _content(file: BinaryIO, what: str) -> bytes:
    content: object = file.read()
    if not isinstance(content, bytes):
        raise InputError(f"{what} is a file that was opened as text; open it with mode 'rb'.")
    return content


def _of_array(value: Any, what: str) -> Picture:
    array = value if isinstance(value, np.ndarray) else np.asarray(value.detach().cpu())
    shape = tuple(array.shape)
    if array.dtype != np.uint8:
        raise InputError(
            f"{what} is an array of {array.dtype}, {shape}; give 8-bit values from 0 to 255 "
            "(uint8), which are resized and normalised here."
        )
    if array.ndim == 2 and array.size:
        return Image.fromarray(np.ascontiguousarray(array))
    if array.ndim != 3 or array.shape[2] != 3 or not array.size:
        hint = ""
        if array.ndim == 3 and array.shape[0] == 3:
            hint = "; channels come last: " + (
                "array.transpose(1, 2, 0)"
                if isinstance(value, np.ndarray)
                else "tensor.permute(1, 2, 0)"
            )
        elif array.ndim == 4:
            hint = "; hand over the batch itself, not a list of batches"
        raise InputError(f"{what} is an array {shape}; give (H, W, 3) in RGB, or (H, W){hint}.")
    return Image.fromarray(np.ascontiguousarray(array))
