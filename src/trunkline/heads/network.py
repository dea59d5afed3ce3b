"""A backbone with a classifier, as PyTorch runs it: one pooled map, one linear layer.

Source: He et al. 2015, arXiv:1512.03385, section 3.3; DLA and RegNet end alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from trunkline.backbones.backbone import Backbone
from trunkline.errors import ConfigError
from trunkline.heads.logits import POOLS, LogitsHead, LogitsNetwork, with_logits
from trunkline.weights.layouts.layout import MAX_POOL

Pool = Literal["avg", "max"]


class ClassifierHead(nn.Module):
    """Logits from one map: its mean (or maximum) over H and W, then a linear layer.

    The state dict is that of the linear layer; a head of the maximum has one number more,
    ``max_pool``, so that no file of it can be taken for one of the mean.

    Args:
        in_channels: Of the map.
        num_classes: Of the logits.
        pool: ``"avg"`` or ``"max"``.

    Raises:
        ConfigError: Another pool, or no class.
    """

    def __init__(self, in_channels: int, num_classes: int, pool: Pool = "avg") -> None:
        super().__init__()
        if pool not in POOLS:
            raise ConfigError(f"pool={pool!r} is unknown; allowed: {', '.join(POOLS)}.")
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise ConfigError(f"num_classes must be an integer of 1 or more, got {num_classes!r}.")
        self.pool: Pool = pool
        if pool == "max":  # else a state dict would load as a classifier of the mean
            name = MAX_POOL.rpartition(".")[2]
            self.register_buffer(name, torch.ones((), dtype=torch.int64))
        self.linear = nn.Linear(in_channels, num_classes)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to logits ``(N, num_classes)``."""
        is_max = self.pool == "max"
        pooled = feature_map.amax((2, 3)) if is_max else feature_map.mean((2, 3))
        logits: Tensor = self.linear(pooled)
        return logits

    def as_convolution(self) -> LogitsHead:
        """Return the same head as engines and files have it."""
        weight, bias = self.linear.weight.detach(), self.linear.bias.detach()
        with torch.device("meta"):
            head = LogitsHead(weight.shape[1], len(bias), self.pool)
        state = {"conv.weight": weight.clone()[:, :, None, None], "conv.bias": bias.clone()}
        head.load_state_dict(state, assign=True)
        return head.requires_grad_(False)


class Classifier(nn.Module):
    """A backbone and its classifier.

    Args:
        backbone: Its last map is classified.
        head: What makes logits of that map.
        labels: One name per class, None for no names.

    Attributes:
        backbone: Returns its last map alone or last.
        head: The classifier.
        labels: One name per class, None where nobody gave any.

    Raises:
        ConfigError: A number of labels that is not that of the classes, or parts of another kind.
    """

    def __init__(
        self, backbone: Backbone, head: ClassifierHead, labels: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        if not isinstance(backbone, Backbone) or not isinstance(head, ClassifierHead):
            raise ConfigError(
                f"a Classifier is made of a Backbone and a ClassifierHead, got "
                f"{type(backbone).__name__} and {type(head).__name__}; create_classifier makes one."
            )
        self.backbone = backbone
        self.head = head
        self.labels = None if labels is None else check_labels(labels, self.num_classes)

    @property
    def num_classes(self) -> int:
        """Classes of the logits."""
        return self.head.linear.out_features

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` images to logits ``(N, num_classes)``."""
        return self.with_maps(images)[0]

    def with_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits ``(N, num_classes)`` and the backbone's maps, from one pass."""
        maps = self.backbone(images)
        return self.head(maps[-1]), maps

    def as_network(self) -> LogitsNetwork:
        """Return the classifier as engines and files have it: a backbone that returns logits."""
        return with_logits(self.backbone, self.head.as_convolution(), self.labels)


def check_labels(labels: Sequence[str], num_classes: int) -> tuple[str, ...]:
    """Return names of classes as a tuple.

    Raises:
        ConfigError: They are not texts, or not as many as the classes.
    """
    # A set has no order, and of a mapping only its keys would count, in whatever order they stand.
    ordered = isinstance(labels, Sequence) and not isinstance(labels, str)
    if not ordered or not all(isinstance(label, str) for label in labels):
        raise ConfigError(
            f"labels must be a list of names, one per class, in the order of the classes, got "
            f"{str(labels)[:80]!r}. Of a class_to_idx: sorted(class_to_idx, key=class_to_idx.get)."
        )
    if len(labels) != num_classes:
        raise ConfigError(
            f"{len(labels)} labels are given for {num_classes} classes; give one per class, in the "
            "order of the classes."
        )
    return tuple(labels)


def as_network(model: Backbone | Classifier) -> Backbone:
    """Return what engines and files run: a backbone as it is, a classifier as one."""
    return model.as_network() if isinstance(model, Classifier) else model
