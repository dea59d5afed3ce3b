"""The feature maps of one photo, and a file to keep them in.

In the file every map is one tensor, named by level and stride (``stage0_stride_4``), because two
levels share a stride where ``output_stride`` replaces one by dilation. The file says in its
metadata which network and which preprocessing the maps came from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

import trunkline
from trunkline.backbones.backbone import Backbone
from trunkline.errors import ConfigError, InputError, OutputError
from trunkline.extraction.asked import preprocessing_for
from trunkline.images import ImageSource, pixels, preprocess
from trunkline.modes import evaluating
from trunkline.outputs import written_whole
from trunkline.pictures import Picture, is_several, pictures_of
from trunkline.preprocessing import IMAGENET, Preprocessing
from trunkline.rasters import Raster
from trunkline.runtimes.runner import Runner

SUFFIX = ".safetensors"
_MOST_WRAPPERS = 5  # around a network: an average of a compiled classifier has three


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """One map of one photo, and where it comes from.

    Attributes:
        level: name of the level in the backbone, such as ``"stage2"``.
        stride: pixels of the preprocessed image per position of the map.
        tensor: (C, H/stride, W/stride), rounded up, on the backbone's device and in its dtype.
        model: name of the backbone's variant, or of its class where it has none.
        preprocessing: what was done to the photo.
    """

    level: str
    stride: int
    tensor: Tensor
    model: str
    preprocessing: Preprocessing

    @property
    def name(self) -> str:
        """The tensor's name in a file."""
        return f"{self.level}_stride_{self.stride}"

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, h, w)."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> str:
        """Number format without torch's prefix, such as ``"float32"``."""
        return str(self.tensor.dtype).removeprefix("torch.")

    @property
    def mean(self) -> float:
        """Mean over all values, computed in float64."""
        return float(self.tensor.double().mean())

    @property
    def std(self) -> float:
        """Population standard deviation over all values, computed in float64."""
        return float(self.tensor.double().std(correction=0))


Network = Backbone | Runner | nn.Module
"""A backbone, a deployed runner, or a module with a ``backbone``, such as a classifier."""


def preprocessing_of(backbone: Network) -> Preprocessing:
    """Return what the backbone's weights expect; ``IMAGENET`` where they do not say.

    Raises:
        ConfigError: its attribute ``preprocessing`` holds something else.
    """
    stated = getattr(backbone, "preprocessing", None)
    if stated is None:
        return IMAGENET
    if not isinstance(stated, Preprocessing):
        raise ConfigError(
            f"backbone.preprocessing is a {type(stated).__name__}; set a Preprocessing, or None."
        )
    return stated


@overload
def features(
    image: ImageSource | Image.Image | Raster | NDArray[np.uint8] | Tensor,
    backbone: Network,
    *,
    preprocessing: Preprocessing | None = None,
) -> list[FeatureMap]: ...


@overload
def features(
    image: list[Any] | tuple[Any, ...] | Iterator[Any],
    backbone: Network,
    *,
    preprocessing: Preprocessing | None = None,
) -> list[list[FeatureMap]]: ...


def features(
    image: Any, backbone: Network, *, preprocessing: Preprocessing | None = None
) -> list[FeatureMap] | list[list[FeatureMap]]:
    """Compute the feature maps of one photo, or of several.

    A network of PyTorch runs in eval mode and without gradients; afterwards every module is in the
    mode it was in before. Several photos are computed one after the other, so they may have
    different sizes; ``extract`` is the way for thousands.

    Args:
        image: a path, the bytes of a file, a Pillow image, or an 8-bit array or tensor
            ``(H, W, 3)`` in RGB; or what ``trunkline.images.decode_bands`` made of a picture of
            other bands. Or several: a list, tuple or generator of these, or an array
            ``(N, H, W, 3)``.
        backbone: where the photo goes, on the device and in the dtype that it has: a backbone, a
            runner, or a module whose ``backbone`` (or ``module``) is one, such as a classifier.
        preprocessing: None takes the backbone's own, see ``preprocessing_of``.

    Returns:
        One map per level that the backbone returns, in that order; for several photos a list of
        such lists, in their order.

    Raises:
        ImageError: a photo cannot be decoded.
        InputError: something that is no photo, or a backbone that does not take three channels.
        ConfigError: something that is no backbone.

    Example:
        >>> from trunkline import create_backbone
        >>> maps = features("examples/cat.jpg", create_backbone("resnet18", return_idx=(0, 3)))
        >>> [(m.level, m.stride, m.shape) for m in maps]
        [('stage0', 4, (64, 56, 56)), ('stage3', 32, (512, 7, 7))]
    """
    network = _network_of(backbone)
    pictures = pictures_of(image)
    if network.in_channels != 3 and not all(isinstance(one, Raster) for one in pictures):
        raise InputError(
            f"the backbone takes {network.in_channels} channels, and a photo has three; read the "
            "picture with trunkline.images.decode_bands, or build the backbone with in_channels=3."
        )
    chosen = preprocessing_of(network) if preprocessing is None else preprocessing
    found = [_maps_of(one, network, chosen) for one in pictures]
    return found if is_several(image) else found[0]


def _network_of(given: object) -> Backbone | Runner:
    """Return the network itself: what compiles, averages or classifies has it inside."""
    inner = given
    for _ in range(_MOST_WRAPPERS):
        if isinstance(inner, Runner) or hasattr(inner, "returned_levels"):
            return inner  # type: ignore[return-value]  # torch.compile's wrapper answers as well
        inner = getattr(inner, "backbone", None) or getattr(inner, "module", None)
    raise ConfigError(
        "features takes a backbone, a runner, or a module whose backbone is one, got "
        f"{type(given).__name__}; create_backbone, from_pretrained and deploy make one."
    )


def _photo_pixels(picture: Picture, chosen: Preprocessing) -> NDArray[np.uint8]:
    if isinstance(picture, Raster):
        raise InputError(
            "the runner takes 8-bit pictures (preprocess=True), and a raster is none; deploy it "
            "with preprocess=False."
        )
    return pixels(picture, chosen)


def _maps_of(
    picture: Picture, network: Backbone | Runner, chosen: Preprocessing
) -> list[FeatureMap]:
    outputs: Sequence[Tensor]
    if isinstance(network, Runner):
        images = (
            torch.from_numpy(_photo_pixels(picture, preprocessing_for(network, chosen)))
            if network.preprocess
            else preprocess(picture, chosen)
        )
        outputs = [torch.as_tensor(one) for one in network(images[None])]
    else:
        images = preprocess(picture, chosen)[None]  # (1, 3, H, W)
        like = next((p for p in network.parameters() if p.is_floating_point()), images)
        with evaluating(network), torch.inference_mode():
            outputs = network(images.to(like.device, like.dtype))
    model = network.variant or type(network).__name__
    return [
        # A copy made outside inference mode is an ordinary tensor: a head may train on it.
        FeatureMap(level.name, level.stride, output[0].clone(), model, chosen)
        for level, output in zip(network.returned_levels, outputs, strict=True)
    ]


def save_features(
    maps: Sequence[FeatureMap],
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write the maps of one photo into a safetensors file, whole or not at all.

    Args:
        maps: from one call of ``features``; tensors are named by ``FeatureMap.name``.
        path: ends in ``.safetensors``; missing folders are made, an old file is replaced.
        metadata: more entries beside ``model``, ``levels``, ``strides``, ``preprocessing`` (the
            last three as JSON, in the maps' order) and ``trunkline`` (the version).

    Returns:
        The path.

    Raises:
        ConfigError: no maps, two of one name, maps of different calls, or metadata that is not
            text or takes one of the names above.
        OutputError: the file cannot be written there.
    """
    target = Path(path)
    header = _metadata(maps, metadata or {})
    tensors = {one.name: one.tensor.contiguous() for one in maps}
    if target.suffix != SUFFIX:
        raise OutputError(f"{target} does not end in {SUFFIX}, the one format for maps; rename it.")
    with written_whole(target) as written:
        written.write_bytes(save(tensors, header))
    return target


def _metadata(maps: Sequence[FeatureMap], extra: Mapping[str, str]) -> dict[str, str]:
    if not maps:
        raise ConfigError("there are no maps to save; give what features() returned.")
    names = [one.name for one in maps]
    if len(set(names)) < len(names) or len({(m.model, m.preprocessing) for m in maps}) > 1:
        raise ConfigError(
            f"maps {', '.join(names)} do not come from one call of features(); "
            "save those of each photo and backbone in a file of their own."
        )
    own = {
        "model": maps[0].model,
        "levels": json.dumps([one.level for one in maps]),
        "strides": json.dumps([one.stride for one in maps]),
        "preprocessing": json.dumps(maps[0].preprocessing.to_dict()),
        "trunkline": trunkline.__version__,
    }
    if taken := sorted(own.keys() & extra.keys()):
        raise ConfigError(f"metadata {', '.join(taken)} is written by save_features; rename yours.")
    for key, value in extra.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ConfigError(f"metadata {key!r}: {value!r} must be text; convert it with str().")
    return {**own, **extra}
