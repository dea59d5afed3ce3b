"""Classifiers by name: built to be trained, or as a checkpoint has them.

They are what published checkpoints were trained as, and what most people train on top of one.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, cast

import torch
from typing_extensions import Unpack

from trunkline.backbones.backbone import Architecture, Backbone
from trunkline.backbones.options import LOADING, Options, WeightsLike
from trunkline.errors import ConfigError, WeightsMismatchError
from trunkline.heads.guesses import Guess, classify
from trunkline.heads.held import (
    check_pool,
    classes_in,
    create_head,
    imagenet_labels,
    known_labels,
    likely_labels,
    passed_over,
    report_with_head,
)
from trunkline.heads.network import Classifier, ClassifierHead, Pool, as_network, check_labels
from trunkline.heads.pretrained import from_pretrained
from trunkline.weights.hub import Progress
from trunkline.weights.loading import LoadReport, Read, adopt, understood
from trunkline.weights.opening import check_no_weights, is_saved
from trunkline.zoo import create_backbone, weights_of_name

__all__ = [
    "Classifier",
    "ClassifierHead",
    "Guess",
    "as_network",
    "check_labels",
    "classify",
    "create_classifier",
    "imagenet_labels",
    "load_classifier",
]


def create_classifier(
    name: str | Architecture,
    num_classes: int | None = None,
    *,
    labels: Sequence[str] | None = None,
    weights: WeightsLike | None = None,
    pool: Pool | None = None,
    return_idx: Sequence[int] = (3,),
    **options: Unpack[Options],
) -> Classifier:
    """Build a backbone with a classifier, to be trained or as it was trained.

    Where ``weights`` holds a classifier, it is kept if it is of as many classes, and of the same
    ones as far as anybody knows: labels that differ from those that the file states, or from
    ImageNet's for a checkpoint of the catalog with ImageNet's classes, ask for a new one. Of a file
    whose classes nobody knows the classifier is kept, and the labels name its classes. What was
    done is in ``backbone.load_report``. ``load_classifier`` keeps it always.

    Args:
        name: A variant, or a config of one's own, as for ``create_backbone``.
        num_classes: Classes; by default as many as there are labels, or as the file has.
        labels: One name per class; they are saved with the classifier.
        weights: As for ``create_backbone``.
        pool: Over H and W of the last map, ``"avg"`` or ``"max"``; None takes what the file says
            of the classifier that is kept, else ``"avg"``.
        return_idx: Stages of the backbone that are kept; the last one returned is classified.
        **options: See ``trunkline.backbones.backbone.BackboneOptions``.

    Returns:
        The network, in training mode as PyTorch makes every module. Its ``state_dict`` names
        tensors ``backbone.…`` and ``head.linear.…``, and has ``head.max_pool`` where it pools so.

    Raises:
        ConfigError: No number of classes, labels that do not fit it, another pool than the file's
            classifier was trained with, or an option outside what is allowed.
        WeightsError: Weights that cannot be had or do not fit.

    Example:
        >>> from trunkline import create_classifier
        >>> classifier = create_classifier("resnet18", labels=["cat", "dog"])
        >>> classifier.num_classes, classifier.labels
        (2, ('cat', 'dog'))
    """
    if num_classes is None and labels is not None:
        num_classes = len(labels)
    loading = {word: options[word] for word in LOADING if word in options}  # type: ignore[literal-required]
    built: dict[str, Any] = {word: v for word, v in options.items() if word not in LOADING}
    if weights is None:
        if num_classes is None:
            raise ConfigError("say how many classes there are: num_classes=N, or labels=[…].")
        backbone = create_backbone(name, return_idx=return_idx, **built)
        head = ClassifierHead(backbone.channels[-1], num_classes, pool or "avg")
        return Classifier(backbone, head, labels)
    with torch.device("meta"):
        backbone = create_backbone(name, return_idx=return_idx, **built)
    check = bool(loading.pop("check", False))
    if isinstance(weights, str) and isinstance(name, str):
        weights = weights_of_name(name, weights)
    read = understood(backbone, weights, **cast(Any, loading))
    held = classes_in(read, backbone)
    if num_classes is None and held is None:
        raise ConfigError(
            f"{read.located.path} holds no classifier{passed_over(read, backbone)}; "
            "say how many classes there are: num_classes=N, or labels=[…]."
        )
    why_new = _why_new(read, held, num_classes, labels, passed_over(read, backbone))
    if why_new is None:
        return _kept(backbone, read, labels, pool, check=check)
    head = ClassifierHead(backbone.channels[-1], cast(int, num_classes), pool or "avg")
    classifier = Classifier(backbone, head, labels)  # checked before numbers are copied
    _note(backbone, adopt(backbone, read, check=check), why_new)
    return classifier


def _why_new(
    read: Read,
    held: int | None,
    num_classes: int | None,
    labels: Sequence[str] | None,
    passed: str,
) -> str | None:
    """Return why a new classifier is built, in a sentence; None where the file's is kept."""
    new = f"The classifier of {num_classes} classes is new: "
    if held is None:
        return f"{new}the file has none{passed}."
    if num_classes not in (None, held):
        return f"{new}the file has one of {held} classes."
    known = known_labels(read, held)
    if labels is None or known is None or len(labels) != held or tuple(labels) == tuple(known):
        return None
    own, its = next((own, its) for own, its in zip(labels, known, strict=True) if own != its)
    return (
        f"{new}the file's classes have other names ({its!r} where {own!r} is given). "
        "load_classifier with these labels keeps the file's classifier under your names."
    )


def _kept(
    backbone: Backbone,
    read: Read,
    labels: Sequence[str] | None,
    pool: Pool | None,
    *,
    check: bool,
) -> Classifier:
    """Return a backbone with the classifier of its file, in training mode."""
    head = create_head(backbone, read, pool)
    classes = head.linear.out_features
    named = likely_labels(read, classes)
    classifier = Classifier(backbone, head, named if labels is None else labels)
    report = report_with_head(adopt(backbone, read, check=check), head, read)
    notes: tuple[str, ...] = ()
    if labels is not None and named is not None and tuple(labels) != tuple(named):
        notes = (
            f"The classifier of the file's {classes} classes is kept: nobody says what they are, "
            f"and the labels name them ({labels[0]!r} is the first). For a new classifier build "
            "one without weights, and load_weights into its backbone.",
        )
    _note(backbone, report, *notes)
    return classifier.train()


def _note(backbone: Backbone, report: LoadReport, *notes: str) -> None:
    backbone.load_report = dataclasses.replace(report, notes=(*report.notes, *notes))


def load_classifier(
    name: str | os.PathLike[str] | Architecture,
    weights: WeightsLike = "default",
    *,
    labels: Sequence[str] | None = None,
    pool: Pool | None = None,
    layout: str = "auto",
    prefix: str | None = None,
    allow_noncommercial: bool = False,
    progress: Progress | None = None,
) -> Classifier:
    """Build a whole network, classifier included, from a checkpoint.

    Args:
        name: A variant or a config, as for ``create_backbone``; or what ``save_pretrained`` wrote,
            a folder or ``hf://owner/repo``, which has its own weights.
        weights: As for ``load_weights``: a published checkpoint, or what a training script saved
            of a ``Classifier``, of Lightning, DataParallel or an average around one.
        labels: One name per class; by default those that the file or the catalog knows.
        pool: Over H and W of the last map, ``"avg"`` or ``"max"``; by default what the file says,
            else ``"avg"``, as all published networks have it. Whatever holds a ``Classifier`` says
            it; a linear layer beside a backbone does not.
        layout: As for ``load_weights``.
        prefix: As for ``load_weights``.
        allow_noncommercial: Agree to licences that forbid commercial use.
        progress: Called while a file arrives; by default nothing is shown.

    Returns:
        The network, in eval mode; its backbone returns the last map only.

    Raises:
        WeightsMismatchError: The file holds no classifier, or does not fit.
        WeightsError: The weights cannot be had or read, see ``load_weights``.
        ConfigError: Another number of labels than of classes; another pool than the file's
            classifier was trained with; weights, a layout or a prefix for what was saved.
    """
    if isinstance(name, os.PathLike):
        name = os.fspath(name)
    if isinstance(name, str) and is_saved(name):
        if layout != "auto" or prefix is not None:
            raise ConfigError(
                f"{name} is a saved network, and layout and prefix are for files; leave them out."
            )
        return _saved(name, weights, labels, pool)
    with torch.device("meta"):
        backbone = create_backbone(name, return_idx=(3,))
    if isinstance(weights, str) and isinstance(name, str):
        weights = weights_of_name(name, weights)
    read = understood(
        backbone,
        weights,
        layout,
        prefix=prefix,
        allow_noncommercial=allow_noncommercial,
        progress=progress,
    )
    head = create_head(backbone, read, pool)
    if labels is None:
        labels = likely_labels(read, head.linear.out_features)
    classifier = Classifier(backbone, head, labels).eval()
    backbone.load_report = report_with_head(adopt(backbone, read), head, read)
    return classifier


def _saved(
    name: str, weights: WeightsLike, labels: Sequence[str] | None, pool: Pool | None
) -> Classifier:
    """Return the classifier that ``save_pretrained`` wrote."""
    given = weights if isinstance(weights, str | os.PathLike) else type(weights).__name__
    check_no_weights(name, "none" if given == "default" else str(given))
    saved = from_pretrained(name)
    if not isinstance(saved, Classifier):
        raise WeightsMismatchError(
            f"{name} holds a backbone and no classifier; from_pretrained builds it (`trunkline "
            "features` shows its maps), and create_classifier one with new classes."
        )
    check_pool(saved.head.pool, pool, name)
    return saved if labels is None else Classifier(saved.backbone, saved.head, labels).eval()
