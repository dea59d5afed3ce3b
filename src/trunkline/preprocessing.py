"""What one checkpoint expects of its pictures, as data: no file and no picture is touched here.

A row of a catalog, a header of a feature store and ``images.preprocess`` all speak of the same
``Preprocessing``. How each field is carried out is said in ``trunkline.images``.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trunkline.errors import ConfigError

if TYPE_CHECKING:
    import torch

INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")

MAX_INPUT_PIXELS = 1 << 26
"""Largest size that a preprocessing may ask for, in pixels: 8192×8192, 0.8 GB in float32."""

MAX_CHANNELS = 2**20
"""Most channels that a preprocessing may have numbers for: as many as a backbone may take."""

_FACTORS = (8, 4, 2)  # what libjpeg can divide sides by while it decodes
_SPARE = 2  # how many times the size after the resize a reduced picture must still have
_STD_RANGE = (1e-6, 1e6)  # quotients by it are numbers in float32
_FINITE = 1e9
_SHOWN_BITS = 256  # of an integer in an error; Python refuses to write very long ones


def is_positive_int(value: object) -> bool:
    """Say whether a value counts something: an integer from 1 on, and not a boolean."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_size(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(is_positive_int(side) for side in value)
    )


def _is_numbers(value: object) -> bool:
    return (
        isinstance(value, tuple) and 1 <= len(value) <= MAX_CHANNELS and all(map(_is_number, value))
    )


def _is_number(value: object) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and -_FINITE <= value <= _FINITE  # type: ignore[operator]  # nor NaN


def _shown(value: object) -> str:
    """Return what an error shows of a value, which may be of any kind and size."""
    if isinstance(value, int) and value.bit_length() > _SHOWN_BITS:
        return f"<an integer of {value.bit_length()} bits>"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_shown, value[:10]))})"
    return reprlib.repr(value)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How the pictures of one checkpoint become numbers. Sizes are pixels, always (H, W).

    Attributes:
        resize: N makes the shorter side N and keeps the aspect ratio; (H, W) warps to exactly
            that, whatever the aspect ratio; None leaves the size alone.
        crop: (H, W) of the centre crop after the resize; None keeps everything.
        interpolation: one of ``INTERPOLATIONS``, with Pillow's antialiasing.
        mean: one number per channel, in ``channel_order`` and on the scale of ``value_range``;
            three for photos, any number for pictures of other bands.
        std: as ``mean``; positive.
        value_range: "0..1" divides the 8-bit values by 255 first, "0..255" does not.
        channel_order: "RGB" or "BGR", the order of the tensor's channels; with other numbers
            of channels than three "RGB", which leaves the bands in their order.
        pad_to_multiple: N pads at the right and the bottom with black, after resize and crop, so
            that height and width are multiples of N; None does not pad. Without resize and crop
            this is what a detector takes.

    Raises:
        ConfigError: a field is outside what is said above.
    """

    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    interpolation: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: Literal["0..1", "0..255"]
    channel_order: Literal["RGB", "BGR"]
    pad_to_multiple: int | None = None

    def __post_init__(self) -> None:
        if not (self.resize is None or is_positive_int(self.resize) or _is_size(self.resize)):
            raise ConfigError(
                f"resize={_shown(self.resize)} is no size; use a positive integer (shorter side), "
                "a pair (H, W) of them (warp), or None (no resize)."
            )
        if not (self.crop is None or _is_size(self.crop)):
            raise ConfigError(
                f"crop={_shown(self.crop)} is no size; use a pair (H, W) of positive integers, "
                "or None."
            )
        if not (self.pad_to_multiple is None or is_positive_int(self.pad_to_multiple)):
            raise ConfigError(
                f"pad_to_multiple={_shown(self.pad_to_multiple)} is no multiple; use a positive "
                "integer such as 32, or None (no padding)."
            )
        for field, allowed in (
            ("interpolation", INTERPOLATIONS),
            ("value_range", ("0..1", "0..255")),
            ("channel_order", ("RGB", "BGR")),
        ):
            if (value := getattr(self, field)) not in allowed:
                raise ConfigError(
                    f"{field}={_shown(value)} is unknown; use one of {', '.join(allowed)}."
                )
        self._check_sizes()
        self._check_numbers()

    def _check_sizes(self) -> None:
        """Refuse what even a picture of one pixel would become too large by."""
        for made in (self.resized_size(1, 1), self.output_size(1, 1)):
            if math.prod(made) > MAX_INPUT_PIXELS:
                raise ConfigError(
                    f"resize={_shown(self.resize)}, crop={_shown(self.crop)}, "
                    f"pad_to_multiple={_shown(self.pad_to_multiple)} make pictures of "
                    f"{_shown(made[0])}x{_shown(made[1])}, above the limit of {MAX_INPUT_PIXELS} "
                    "pixels; use smaller ones, or None to keep a photo's own size."
                )

    def _check_numbers(self) -> None:
        for field in ("mean", "std"):
            if not _is_numbers(value := getattr(self, field)):
                raise ConfigError(
                    f"{field}={_shown(value)} must be a tuple of finite numbers, one per channel: "
                    f"three for photos, in the order {self.channel_order}."
                )
        if len(self.mean) != len(self.std):
            raise ConfigError(
                f"mean has {len(self.mean)} numbers and std {len(self.std)}; give one of each per "
                "channel."
            )
        if self.channel_order == "BGR" and self.num_channels != 3:
            raise ConfigError(
                f"channel_order='BGR' is for three channels, and mean has {self.num_channels}; "
                "channels of other pictures keep the order of their bands: leave it 'RGB'."
            )
        low, high = _STD_RANGE
        if min(self.std) < low or max(self.std) > high:
            raise ConfigError(
                f"std={self.std!r} must be positive, from {low:g} to {high:g}; "
                "1.0 leaves the values alone."
            )
        if min(self.mean) < 0 or max(self.mean) > self._white:
            raise ConfigError(
                f"mean={self.mean!r} lies outside value_range={self.value_range!r}; "
                "give the mean on that scale, or set the other value_range."
            )

    @property
    def num_channels(self) -> int:
        """Channels of the tensors that this makes."""
        return len(self.mean)

    def __call__(
        self, images: object, *, size: int | tuple[int, int] | Literal["own"] | None = "own"
    ) -> torch.Tensor:
        """Turn photos into what a network takes, as ``trunkline.images.preprocess`` does one.

        This is a transform for a ``Dataset`` and works in the workers of a ``DataLoader``.

        Args:
            images: A photo: a path, the bytes of a file, a Pillow image, or an 8-bit array or
                tensor ``(H, W, 3)``, RGB (``(H, W)`` is grey); or what
                ``trunkline.images.decode_bands`` made of other bands. Or several: a list, tuple or
                generator of these, or an array ``(N, H, W, 3)``.
            size: Another input size, as ``with_size`` takes it; ``"own"`` is that of this.

        Returns:
            float32 tensor, contiguous: ``(C, H, W)`` for one, ``(N, C, H, W)`` for several; C is 3
            but for rasters.

        Raises:
            ImageError: A photo cannot be decoded.
            InputError: Something that is no photo, or photos of different sizes after this.
            ConfigError: ``size`` is none, or this is for another number of channels.

        Example:
            >>> IMAGENET("examples/cat.jpg").shape
            torch.Size([3, 224, 224])
            >>> IMAGENET(["examples/cat.jpg", "examples/cat.jpg"], size=96).shape
            torch.Size([2, 3, 96, 96])
        """
        from trunkline.pictures import tensors_of  # what touches pictures stays out of here

        return tensors_of(images, self if size == "own" else self.with_size(size))

    @property
    def _white(self) -> float:
        return 1.0 if self.value_range == "0..1" else 255.0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values that JSON can hold; ``from_dict`` reads them back."""
        plain = dataclasses.asdict(self)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in plain.items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Preprocessing:
        """Build from what ``to_dict`` wrote.

        Args:
            fields: one entry per field of this class; lists count as tuples. Older versions wrote
                no ``pad_to_multiple``: without it there is no padding.

        Raises:
            ConfigError: a field is missing, unknown, or has a value that is not allowed.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, Mapping):
            raise ConfigError(
                f"preprocessing is {_shown(fields)}; give an object with the fields "
                f"{', '.join(sorted(known))}."
            )
        unknown, missing = set(fields) - known, known - set(fields) - {"pad_to_multiple"}
        if unknown or missing:
            raise ConfigError(
                f"preprocessing has unknown fields {sorted(unknown)[:10]} and lacks "
                f"{sorted(missing)}; give exactly {', '.join(sorted(known))}."
            )
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
        }
        return cls(**values)

    def in_rgb(self) -> Preprocessing:
        """Return the same preprocessing for a network whose stem was turned to take RGB."""
        return dataclasses.replace(
            self, channel_order="RGB", mean=self._rgb(self.mean), std=self._rgb(self.std)
        )

    def _rgb(self, values: tuple[float, ...]) -> tuple[float, ...]:
        return values if self.channel_order == "RGB" else values[::-1]

    def with_size(self, size: int | tuple[int, int] | None) -> Preprocessing:
        """Return the same preprocessing for another input size.

        Args:
            size: N gives N×N and keeps the kind: a warp stays a warp, a crop keeps its ratio to
                the resize (256 to 224 becomes 512 to 448). (H, W) warps the whole picture to
                exactly H×W. None keeps the picture's own size: no resize, no crop.
                ``pad_to_multiple`` stays with None, and is dropped with a size, which is exact.

        Raises:
            ConfigError: ``size`` is not a positive integer, a pair of them, or None.
        """
        if size is None:
            return dataclasses.replace(self, resize=None, crop=None)
        if isinstance(size, tuple):
            return dataclasses.replace(self, resize=size, crop=None, pad_to_multiple=None)
        if not is_positive_int(size):
            raise ConfigError(
                f"size={_shown(size)} is no size; use a positive integer, a pair (H, W), or None."
            )
        if isinstance(self.resize, tuple):
            return self.with_size((size, size))
        shorter = size
        if self.resize is not None and self.crop is not None:
            shorter = max(1, self.resize * size // min(self.crop))
        return dataclasses.replace(self, resize=shorter, crop=(size, size), pad_to_multiple=None)

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (H, W) of an H×W picture after the resize and before crop and padding."""
        if self.resize is None:
            return height, width
        if isinstance(self.resize, tuple):
            return self.resize
        if height <= width:
            return self.resize, self.resize * width // height
        return self.resize * height // width, self.resize

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (H, W) of the tensor that an H×W picture becomes, without making it."""
        height, width = self.resized_size(height, width) if self.crop is None else self.crop
        multiple = self.pad_to_multiple or 1
        return -(-height // multiple) * multiple, -(-width // multiple) * multiple

    def describe(self) -> str:
        """Return one line for people: what happens to a picture, in order."""
        if self.resize is None:
            steps = ["no resize"]
        elif isinstance(self.resize, tuple):
            steps = [f"warp to {self.resize[0]}x{self.resize[1]} ({self.interpolation})"]
        else:
            steps = [f"shorter side {self.resize} ({self.interpolation})"]
        if self.crop is not None:
            steps.append(f"centre crop {self.crop[0]}x{self.crop[1]}")
        if self.pad_to_multiple is not None:
            steps.append(f"padded to multiples of {self.pad_to_multiple}")
        return ", ".join([*steps, f"{self.channel_order} in {self.value_range}"])


IMAGENET = Preprocessing(
    resize=256,
    crop=(224, 224),
    interpolation="bilinear",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    value_range="0..1",
    channel_order="RGB",
)
"""What most published ImageNet checkpoints expect, torchvision's first ones among them."""


_ONE_CHANNEL = (0.449, 0.226)  # the means of IMAGENET's numbers, for grey


def assumed_for(channels: int) -> Preprocessing:
    """Return what is assumed of a network whose weights do not say how they want their images.

    Args:
        channels: Of its images.

    Returns:
        ``IMAGENET``; for other channels than three its sizes, and its ``mean`` and ``std``: their
        averages for one channel, else repeated in order (0.485, 0.456, 0.406, 0.485, ...).
    """
    if channels == 3:
        return IMAGENET
    mean, std = (
        (average,) if channels == 1 else tuple(values[index % 3] for index in range(channels))
        for values, average in zip((IMAGENET.mean, IMAGENET.std), _ONE_CHANNEL, strict=True)
    )
    return dataclasses.replace(IMAGENET, mean=mean, std=std)


def reduction(preprocessing: Preprocessing, height: int, width: int) -> int:
    """Return by how much ``decode="fast"`` divides the sides of an upright H×W JPEG.

    Returns:
        8, 4, 2 or 1: what leaves at least twice the size after the resize. 1 without a resize, and
        with ``"nearest"``, which has no antialiasing that a reduced picture could take over.
    """
    if preprocessing.resize is None or preprocessing.interpolation == "nearest":
        return 1
    to_height, to_width = preprocessing.resized_size(height, width)
    spare = min(height // (_SPARE * to_height), width // (_SPARE * to_width))
    return next((factor for factor in _FACTORS if factor <= spare), 1)
