"""A classifier as engines and files see it: a backbone whose one map is the logits."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from trunkline.backbones.backbone import Backbone
from trunkline.backbones.levels import LOGITS, Level

POOLS = ("avg", "max")


class LogitsHead(nn.Module):
    """The head as a convolution of 1×1, which every graph writer and quantizer knows."""

    def __init__(self, in_channels: int, num_classes: int, pool: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, num_classes, 1)
        self.is_max = pool == "max"

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to logits ``(N, num_classes)``."""
        pooled = x.amax((2, 3), keepdim=True) if self.is_max else x.mean((2, 3), keepdim=True)
        logits: Tensor = self.conv(pooled)
        return logits.flatten(1)


class LogitsNetwork(Backbone):
    """A backbone with its classifier's head, which returns the logits alone."""

    head: LogitsHead
    labels: tuple[str, ...] | None

    @property
    def returned_levels(self) -> tuple[Level, ...]:
        """The logits, as the one level."""
        return (self.levels[-1],)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map ``(N, in_channels, H, W)`` images to ``[logits]``, logits ``(N, num_classes)``."""
        return [self.head(super().forward(images)[-1])]


def with_logits(
    backbone: Backbone, head: LogitsHead, labels: tuple[str, ...] | None
) -> LogitsNetwork:
    """Return a backbone and a head as one network; the modules are shared, not copied."""
    network = copy.copy(backbone)
    network.__dict__["_modules"] = dict(backbone._modules)
    network.__class__ = LogitsNetwork
    assert isinstance(network, LogitsNetwork)  # noqa: S101 - for the type checker
    network.levels = (*backbone.levels, Level(LOGITS, 0, head.conv.out_channels))
    network.head = head
    network.labels = labels
    network.train(backbone.training)
    return network


def meta_head(in_channels: int, num_classes: int, pool: str) -> LogitsHead:
    """Return a head without numbers."""
    with torch.device("meta"):
        return LogitsHead(in_channels, num_classes, pool)
