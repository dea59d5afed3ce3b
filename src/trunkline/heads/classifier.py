"""The classifier that published checkpoints were trained with: mean over the last map, one layer.

Source: He et al. 2015, arXiv:1512.03385, section 3.3; DLA and RegNet end alike.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from functools import cache
from importlib import resources

import torch
from torch import Tensor, nn

from trunkline.backbones.backbone import Backbone
from trunkline.errors import ConfigError, WeightsMismatchError
from trunkline.extraction.evaluation import evaluating
from trunkline.extraction.features import preprocessing_of
from trunkline.images import ImageSource, decode_image, preprocess
from trunkline.weights.checkpoint import read_checkpoint
from trunkline.weights.hub import Progress
from trunkline.weights.layouts.layout import CLASSIFIER
from trunkline.weights.loading import LoadReport, Read, adopt, read_for
from trunkline.weights.numbers import check_kinds, unsound
from trunkline.weights.sources import locate
from trunkline.zoo import create_backbone, weights_of_name

IMAGENET_1K = "imagenet-1k"


class ClassifierHead(nn.Module):
    """Logits from one map: its mean over H and W, then a linear layer."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, num_classes)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to logits ``(N, num_classes)``."""
        logits: Tensor = self.linear(feature_map.mean((2, 3)))
        return logits


class Classifier(nn.Module):
    """A backbone and its classifier.

    Attributes:
        backbone: Returns its last map alone or last.
        head: The classifier.
        labels: One name per class, None where nobody gave any.
    """

    def __init__(
        self, backbone: Backbone, head: ClassifierHead, labels: tuple[str, ...] | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.labels = labels

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(N, 3, H, W)`` images to logits ``(N, num_classes)``."""
        return self.with_maps(images)[0]

    def with_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits ``(N, num_classes)`` and the backbone's maps, from one pass."""
        maps = self.backbone(images)
        return self.head(maps[-1]), maps


@dataclass(frozen=True)
class Guess:
    """One class of a photo.

    Attributes:
        index: Of the class.
        label: Its name, or its number where it has no name.
        probability: Between 0 and 1.
    """

    index: int
    label: str
    probability: float


def load_classifier(
    name: str,
    weights: str | os.PathLike[str] = "default",
    *,
    layout: str = "auto",
    allow_noncommercial: bool = False,
    progress: Progress | None = None,
) -> Classifier:
    """Build a whole network, classifier included, from a checkpoint.

    Args:
        name: A variant, as for ``create_backbone``.
        weights: As for ``load_weights``.
        layout: As for ``load_weights``.
        allow_noncommercial: Agree to licences that forbid commercial use.
        progress: Called while a file arrives; by default nothing is shown.

    Returns:
        The network, in eval mode; its backbone returns the last map only.

    Raises:
        WeightsMismatchError: The file holds no classifier, or does not fit.
        WeightsError: The weights cannot be had or read, see ``load_weights``.
    """
    with torch.device("meta"):
        backbone = create_backbone(name, return_idx=(3,))
    if isinstance(weights, str):
        weights = weights_of_name(name, weights)
    located = locate(
        backbone.variant, weights, allow_noncommercial=allow_noncommercial, progress=progress
    )
    read = read_for(backbone, located, read_checkpoint(located.path), layout)
    head = _head(backbone, read)
    backbone.load_report = _with_head(adopt(backbone, read), head, read)
    labels = imagenet_labels()
    named = located.entry is None or located.entry.classes_dataset == IMAGENET_1K
    named = named and head.linear.out_features == len(labels)
    return Classifier(backbone, head, labels if named else None).eval()


def _head(backbone: Backbone, read: Read) -> ClassifierHead:
    """Return the classifier of a file, with tensors of its own."""
    path, found = read.located.path, read.native.head
    check_kinds(found, path, read.checkpoint.tensors)
    weight, bias = (found.get(f"{CLASSIFIER}{leaf}") for leaf in ("weight", "bias"))
    if weight is None or bias is None:
        raise WeightsMismatchError(
            f"{path} holds no classifier; its maps can be had with create_backbone. "
            f"`trunkline weights list {backbone.variant}` shows checkpoints with classes."
        )
    channels = backbone.channels[-1]
    if not bias.numel() or bias.ndim != 1 or weight.shape != (len(bias), channels):
        sizes = ["×".join(map(str, one.shape)) or "a scalar" for one in (weight, bias)]
        raise WeightsMismatchError(
            f"{path}: the classifier's weight is {sizes[0]} and its bias {sizes[1]}; "
            f"{backbone.variant} needs N×{channels} and N. Its maps can be had with "
            "create_backbone."
        )
    with torch.device("meta"):
        head = ClassifierHead(channels, len(bias))
    # A copy of one's own, as for the backbone: tensors of a file are views of it.
    device = torch.get_default_device()
    state = {
        "weight": weight.contiguous().to(device, torch.float32, copy=True),
        "bias": bias.contiguous().to(device, torch.float32, copy=True),
    }
    head.linear.load_state_dict(state, assign=True)
    return head


def _with_head(report: LoadReport, head: ClassifierHead, read: Read) -> LoadReport:
    """Return the report of a load that did take the classifier."""
    taken = {name.upstream for name in read.match.head.values()}
    left = {why: tuple(n for n in names if n not in taken) for why, names in report.dropped.items()}
    return dataclasses.replace(
        report,
        matched=report.matched + len(taken),
        dropped={why: names for why, names in left.items() if names},
        notes=(*report.notes, *unsound(head.state_dict())),
    )


def classify(image: ImageSource, classifier: Classifier, top: int = 5) -> list[Guess]:
    """Return the likeliest classes of one photo, the likeliest first.

    Args:
        image: A path, the bytes of a file, or a Pillow image.
        classifier: See ``load_classifier``.
        top: How many.

    Raises:
        ImageError: The photo cannot be decoded.
        ConfigError: ``top`` is not from 1 to the number of classes.
    """
    classes = classifier.head.linear.out_features
    if not 1 <= top <= classes:
        raise ConfigError(f"top must be from 1 to {classes}, the number of classes, got {top}.")
    preprocessing = preprocessing_of(classifier.backbone)
    images = preprocess(decode_image(image), preprocessing)[None]  # (1, 3, H, W)
    like = classifier.head.linear.weight
    with evaluating(classifier), torch.inference_mode():
        logits = classifier(images.to(like.device, like.dtype))
        probabilities, indices = logits[0].float().softmax(0).topk(top)
    labels = classifier.labels
    return [
        Guess(index, labels[index] if labels else str(index), probability)
        for index, probability in zip(indices.tolist(), probabilities.tolist(), strict=True)
    ]


@cache
def imagenet_labels() -> tuple[str, ...]:
    """Return the names of the 1000 ImageNet classes, in the order that checkpoints use."""
    text = resources.files("trunkline.heads").joinpath("imagenet1k.txt").read_text("utf-8")
    return tuple(text.splitlines())
