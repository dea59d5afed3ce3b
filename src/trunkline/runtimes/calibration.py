"""Calibration images: what int8 quantization looks at to pick the range of every layer.

They must look like what the backbone will see. About 300 are enough; a handful works, but a layer
is then clipped where a later photo is brighter than all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from trunkline.backbones.backbone import Backbone
from trunkline.errors import ConfigError, ImageError, InputError
from trunkline.images import ImageSource, decode_image, image_suffixes, pixels
from trunkline.images import preprocess as preprocess_image
from trunkline.preprocessing import Preprocessing, is_positive_int

Array = NDArray[Any]
CalibrationSource = (
    str | os.PathLike[str] | Array | torch.Tensor | Iterable[ImageSource | Array | torch.Tensor]
)
_Item = TypeVar("_Item")

_ALLOWED = (
    "a folder of photos, a list of paths, bytes or Pillow images, an array as the graph takes it, "
    "or an iterable of such arrays"
)


@dataclass(frozen=True)
class _Form:
    """What one image of the graph looks like."""

    channels: int
    preprocess: bool
    size: tuple[int, int] | None  # (H, W), None for any
    preprocessing: Preprocessing

    @property
    def dtype(self) -> str:
        return "uint8" if self.preprocess else "float32"

    def describe(self) -> str:
        """Return the form of a batch, for people."""
        height, width = self.size or ("H", "W")
        sides = f"{height}, {width}"
        shape = f"(N, {sides}, 3)" if self.preprocess else f"(N, {self.channels}, {sides})"
        return f"{self.dtype} {shape}"


def calibration_batches(
    calibration: CalibrationSource | None,
    backbone: Backbone,
    *,
    preprocess: bool = False,
    input_shape: tuple[int, int, int] | None = None,
    limit: int = 300,
) -> list[Array]:
    """Return the images for a quantization, in the form that the graph takes.

    All of them are held in memory: 300 of 224×224 in float32 take 180 MB.

    Args:
        calibration: A folder (searched with its subfolders for what Pillow reads as a photo); a
            list of paths, bytes or Pillow images; an array or tensor that has the graph's form
            already; or an iterable of such arrays.
        backbone: Says how photos become numbers (``IMAGENET`` where it does not) and how many
            channels it takes.
        preprocess: As for ``deploy``: the graph takes ``(N, H, W, 3)`` uint8 RGB. Otherwise it
            takes ``(N, C, H, W)`` float32, normalised.
        input_shape: (N, H, W) of a graph for one shape only: photos are warped to H×W. None keeps
            the size that the backbone's preprocessing gives.
        limit: Most images used, evenly spread over what is given; the first ones of an iterator.

    Returns:
        At least one batch of N images each, N = 1 without ``input_shape``. The last batch is
        filled up with the first images.

    Raises:
        ConfigError: No calibration, of another type, or ``limit`` is not a positive integer.
        ImageError: An empty folder, or a photo that cannot be read. None is skipped.
        InputError: Arrays of another form, or fewer images than one batch needs.
    """
    if not is_positive_int(limit):
        raise ConfigError(f"limit={limit!r} must be a positive integer, such as 300.")
    if calibration is None:
        raise ConfigError(
            f"precision='int8' needs calibration images, got none; give calibration= {_ALLOWED}: "
            "about 300 images like those that the backbone will see."
        )
    known = backbone.preprocessing
    size = None if input_shape is None else input_shape[1:]
    form = _Form(
        channels=backbone.in_channels,
        preprocess=preprocess,
        size=size,
        preprocessing=known if size is None else known.with_size(size),
    )
    images = list(islice(_images(calibration, form, limit), limit))
    return _grouped(images, 1 if input_shape is None else input_shape[0])


def _images(calibration: CalibrationSource, form: _Form, limit: int) -> Iterator[Array]:
    """Return single images, each (C, H, W) float32 or (H, W, 3) uint8."""
    if isinstance(calibration, np.ndarray | torch.Tensor):
        return iter(_spread(_checked(calibration, form), limit))
    if isinstance(calibration, str | os.PathLike):
        return _decoded(_spread(_photos_in(Path(calibration)), limit), form)
    if isinstance(calibration, bytes | Image.Image) or not isinstance(calibration, Iterable):
        raise ConfigError(f"calibration is one {type(calibration).__name__}; give {_ALLOWED}.")
    items: Any = calibration
    if isinstance(items, Sequence) and not any(map(_is_array, items)):
        items = _spread(items, limit)
    remaining = iter(items)
    first = list(islice(remaining, 1))  # says which kind it is; an iterator gives it only once
    items = chain(first, remaining)
    if any(map(_is_array, first)):
        return chain.from_iterable(_checked(item, form) for item in items)
    return _decoded(items, form)


def _is_array(item: object) -> bool:
    return isinstance(item, np.ndarray | torch.Tensor)


def _spread(items: Sequence[_Item] | Any, limit: int) -> list[_Item]:
    """Pick at most ``limit`` items at even distances: a folder may be sorted by class."""
    count = min(limit, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def _photos_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ImageError(
            f"calibration={str(folder)!r} {what}; give a folder of photos, or a list of paths."
        )
    suffixes = image_suffixes()
    photos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    if not photos:
        raise ImageError(
            f"calibration={str(folder)!r} holds no photo, nor do its subfolders; photos are found "
            f"by their suffix, such as {', '.join(sorted(suffixes)[:10])}."
        )
    return photos


def _decoded(photos: Iterable[Any], form: _Form) -> Iterator[Array]:
    if form.channels != 3:
        raise InputError(
            f"the backbone takes {form.channels} channels, and a photo has 3; "
            f"give calibration= an array {form.describe()}."
        )
    for number, photo in enumerate(photos):
        try:
            picture = decode_image(photo)
            if form.preprocess:
                yield pixels(picture, form.preprocessing)
            else:
                yield preprocess_image(picture, form.preprocessing).numpy()
        except ImageError as error:
            raise ImageError(f"calibration image {number}: {error}") from error


def _checked(batch: Any, form: _Form) -> Array:
    """Return a batch as an array, or say how it differs from what the graph takes."""
    if not _is_array(batch):
        raise InputError(
            f"calibration has a {type(batch).__name__} among its arrays; each must be a batch "
            f"{form.describe()}."
        )
    dtype = str(batch.dtype).removeprefix("torch.")
    shape = tuple(batch.shape)
    channels = shape[-1:] if form.preprocess else shape[1:2]
    size = shape[1:3] if form.preprocess else shape[2:]
    fits = len(shape) == 4 and channels == (form.channels,) and form.size in (None, size)
    fits = fits and 0 not in size
    if dtype != form.dtype or not fits:
        raise InputError(
            f"calibration has a batch {dtype} {shape}, and the graph takes {form.describe()}; "
            "convert it, or give photos, which are brought into that form."
        )
    array: Array = batch.detach().cpu().numpy() if isinstance(batch, torch.Tensor) else batch
    if not np.isfinite(array).all():
        raise InputError(
            "calibration has values that are not finite; no range can be picked from them: "
            "remove those images."
        )
    return array


def _grouped(images: list[Array], batch: int) -> list[Array]:
    if not images:
        raise InputError("calibration has no image; give at least one, better 300.")
    if len(images) < batch:
        raise InputError(
            f"calibration has {len(images)} images, and input_shape asks for batches of {batch}; "
            "give at least that many."
        )
    missing = -len(images) % batch
    whole = images + images[:missing]
    return [np.stack(whole[start : start + batch]) for start in range(0, len(whole), batch)]
