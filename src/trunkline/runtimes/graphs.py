"""What a graph of a backbone computes: the folded network, and normalisation in front of it."""

from __future__ import annotations

import copy
import threading
from typing import cast

import torch
from torch import Tensor, nn

from trunkline.backbones.backbone import Backbone
from trunkline.errors import ConfigError
from trunkline.preprocessing import Preprocessing
from trunkline.runtimes.folding import check_backbone, fold

# PyTorch's tracers and its exporter replace methods of nn.Module and variables of their own modules
# meanwhile: of two threads that trace, each would meet the work of the other. They take turns.
TRACING = threading.RLock()

INPUT_NAME = "image"
AXES = ("batch", "height", "width")


class FromPixels(nn.Module):
    """Normalise 8-bit pictures as ``trunkline.images`` does, then run the backbone.

    Takes ``(N, H, W, 3)`` uint8, RGB; the resize happened before.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.backbone = backbone
        self.preprocessing = preprocessing
        self.to_unit = preprocessing.value_range == "0..1"
        self.is_bgr = preprocessing.channel_order == "BGR"
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocessing, name))[:, None, None]
            self.register_buffer(name, values)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Map pixels to the backbone's maps."""
        # In one layout: questions about another would bind the sizes of an exported program.
        values = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        if self.is_bgr:
            values = values.flip(1)
        if self.to_unit:
            values = values / 255
        return cast(list[Tensor], self.backbone((values - self.mean) / self.std))


def network_of(backbone: Backbone, *, preprocess: bool) -> nn.Module:
    """Return what a graph computes: the folded backbone in float32, pictures in front if asked for.

    Weights that do not say how they want their images are taken to want ``IMAGENET``, as in
    ``trunkline.features``.

    Raises:
        ConfigError: ``preprocess`` for a backbone that takes other than three channels.
    """
    check_backbone(backbone)
    if any(parameter.dtype != torch.float32 for parameter in backbone.parameters()):
        # Widened first: folding rounds to the dtype that it finds, half precision too.
        return _with_pixels(fold(_widened(backbone)), backbone, preprocess=preprocess)
    return _with_pixels(fold(backbone).cpu(), backbone, preprocess=preprocess)


def unfolded_network_of(backbone: Backbone, *, preprocess: bool) -> nn.Module:
    """Return what the maps of a graph are compared with: a copy in float32, as it was trained.

    Raises:
        ConfigError: As ``network_of``.
    """
    check_backbone(backbone)
    network = _widened(backbone).eval().requires_grad_(False)
    return _with_pixels(network, backbone, preprocess=preprocess)


def _widened(backbone: Backbone) -> Backbone:
    """Return a copy in float32 on the processor."""
    return copy.deepcopy(backbone).cpu().float()


def _with_pixels(network: Backbone, backbone: Backbone, *, preprocess: bool) -> nn.Module:
    if not preprocess:
        return network
    if backbone.in_channels != 3:
        raise ConfigError(
            f"preprocess=True makes three channels, and the backbone takes {backbone.in_channels}; "
            "use preprocess=False and feed it what it takes."
        )
    if backbone.preprocessing.num_channels != 3:
        raise ConfigError(
            f"preprocess=True makes three channels, and backbone.preprocessing has numbers for "
            f"{backbone.preprocessing.num_channels}; set one for three, or use preprocess=False."
        )
    return FromPixels(network, backbone.preprocessing)


def example_images(
    backbone: Backbone, batch: int, height: int, width: int, *, preprocess: bool, seed: int = 0
) -> Tensor:
    """Return random images as the graph takes them: float32 NCHW, or uint8 NHWC."""
    generator = torch.Generator().manual_seed(seed)
    if preprocess:
        shape = (batch, height, width, 3)
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return torch.randn((batch, backbone.in_channels, height, width), generator=generator)
