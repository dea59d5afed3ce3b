"""The classifier that a checkpoint holds: its tensors, its pool, the names of its classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache
from importlib import resources

import torch

from trunkline.backbones.backbone import Backbone
from trunkline.errors import ConfigError, WeightsMismatchError, legible
from trunkline.heads.network import ClassifierHead, Pool
from trunkline.weights.catalog.entry import WeightEntry
from trunkline.weights.layouts.layout import CLASSIFIER, MAX_POOL
from trunkline.weights.loading import LoadReport, Read
from trunkline.weights.numbers import check_kinds, unsound
from trunkline.weights.sources import known_by_hash

IMAGENET_1K = "imagenet-1k"


def check_pool(said: Pool | None, asked: Pool | None, where: object) -> None:
    """Refuse a pool that contradicts what is known of a classifier.

    Raises:
        ConfigError: It does.
    """
    if None not in (said, asked) and said != asked:
        raise ConfigError(
            f"pool={asked!r} is asked for, and the classifier of {where} was trained with "
            f"{said!r}; leave pool out, or take its backbone and train a new classifier."
        )


def known_pool(read: Read) -> Pool | None:
    """Return what is before a file's classifier, as the file or the catalog knows it.

    The networks of the catalog's classifiers all take the mean.
    """
    classes = any(row.num_classes is not None for row in _rows(read))
    return read.pool or ("avg" if classes else None)


def known_labels(read: Read, num_classes: int) -> Sequence[str] | None:
    """Return the names of a file's classes, where the file or the catalog knows them.

    Args:
        read: The file.
        num_classes: Of its classifier.
    """
    said = read.statement.labels if read.statement else None
    if said is not None and len(said) == num_classes:
        return said
    imagenet = any(row.classes_dataset == IMAGENET_1K for row in _rows(read))
    return imagenet_labels() if imagenet and num_classes == len(imagenet_labels()) else None


def likely_labels(read: Read, num_classes: int) -> Sequence[str] | None:
    """Return the names of a file's classes, known or supposed.

    A thousand classes of nobody knows what are ImageNet's so often that they are called so.
    """
    known = known_labels(read, num_classes)
    if known is None and not _rows(read) and num_classes == len(imagenet_labels()):
        return imagenet_labels()
    return known


def _rows(read: Read) -> list[WeightEntry]:
    """Return the rows of the catalog whose file this is."""
    entry = read.located.entry
    return known_by_hash(read.located) if entry is None else [entry]


def classes_in(read: Read, backbone: Backbone) -> int | None:
    """Return how many classes the linear classifier in a file has, None for none that fits."""
    weight, bias = (read.native.head.get(f"{CLASSIFIER}{leaf}") for leaf in ("weight", "bias"))
    if weight is None or weight.ndim != 2 or weight.shape[1] != backbone.channels[-1]:
        return None
    fits = bias is None or bias.shape == weight.shape[:1]
    return len(weight) or None if fits else None


def passed_over(read: Read, backbone: Backbone) -> str:
    """Return which tensors of a file may be a classifier under names that no layout of ours has.

    They are never taken for it unasked: a weight of the right width may as well be the first of
    several layers. Empty where there are none.
    """
    inside = {name: tuple(one.shape) for name, one in read.checkpoint.tensors.items()}
    used = {name.upstream for name in read.match.found.values()}
    likely = [
        f"{legible(name)} ({'×'.join(map(str, shape))})"
        for name, shape in (inside | dict(read.checkpoint.beside)).items()
        if len(shape) == 2 and shape[1] == backbone.channels[-1] and name not in used
    ]
    if not likely:
        return ""
    shown = ", ".join(likely[:3])
    return (
        f" under a name of {read.match.layout.title} ({shown} may be one: copy it into "
        "classifier.head.linear after create_classifier(NAME, num_classes, weights=FILE))"
    )


def create_head(backbone: Backbone, read: Read, pool: Pool | None = None) -> ClassifierHead:
    """Return the classifier of a file, with tensors of its own.

    Raises:
        WeightsMismatchError: It holds none, or one for another width.
        ConfigError: It was trained with another pool than is asked for.
    """
    path, found = read.located.path, read.native.head
    check_kinds(found, path, read.checkpoint.tensors)
    weight, bias = (found.get(f"{CLASSIFIER}{leaf}") for leaf in ("weight", "bias"))
    if weight is None:
        raise WeightsMismatchError(
            f"{path} holds no classifier{passed_over(read, backbone)}; its maps can be had with "
            "create_backbone. "
            f"`trunkline weights list {backbone.variant}` shows checkpoints with classes."
        )
    channels = backbone.channels[-1]
    if bias is None:  # Linear(bias=False) adds nothing, and so do zeros
        bias = torch.zeros(len(weight) if weight.ndim else 0, dtype=weight.dtype)
    if not bias.numel() or bias.ndim != 1 or weight.shape != (len(bias), channels):
        sizes = ["×".join(map(str, one.shape)) or "a scalar" for one in (weight, bias)]
        raise WeightsMismatchError(
            f"{path}: the classifier's weight is {sizes[0]} and its bias {sizes[1]}; "
            f"{backbone.variant} needs N×{channels} and N. Its maps can be had with "
            "create_backbone."
        )
    said = known_pool(read)
    check_pool(said, pool, path)
    with torch.device("meta"):
        head = ClassifierHead(channels, len(bias), said or pool or "avg")
    # A copy of one's own, as for the backbone: tensors of a file are views of it.
    device = torch.get_default_device()
    state = {
        f"linear.{leaf}": tensor.contiguous().to(device, torch.float32, copy=True)
        for leaf, tensor in (("weight", weight), ("bias", bias))
    }
    marks = {name: mark for name, mark in head.state_dict().items() if name not in state}
    state |= {name: torch.ones_like(mark, device=device) for name, mark in marks.items()}
    head.load_state_dict(state, assign=True)
    return head


def report_with_head(report: LoadReport, head: ClassifierHead, read: Read) -> LoadReport:
    """Return the report of a load that did take the classifier."""
    taken = {name.upstream for name in read.match.head.values()}
    has_bias = f"{CLASSIFIER}bias" in read.native.head
    bare = () if has_bias else ("The file's classifier has no bias; zeros stand for it.",)
    used = {*taken, MAX_POOL}
    left = {why: tuple(n for n in names if n not in used) for why, names in report.dropped.items()}
    return dataclasses.replace(
        report,
        matched=report.matched + len(taken),
        dropped={why: names for why, names in left.items() if names},
        notes=(*report.notes, *bare, *unsound(head.state_dict())),
    )


@cache
def imagenet_labels() -> tuple[str, ...]:
    """Return the names of the 1000 ImageNet classes, in the order that checkpoints use."""
    text = resources.files("trunkline.heads").joinpath("imagenet1k.txt").read_text("utf-8")
    return tuple(text.splitlines())
