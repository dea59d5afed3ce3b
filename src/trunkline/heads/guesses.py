"""What photos show, by a classifier or a runner of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast, overload

import torch
from torch import Tensor

from trunkline.errors import ConfigError
from trunkline.heads.network import Classifier
from trunkline.images import ImageSource, decode_image, preprocess
from trunkline.modes import evaluating
from trunkline.preprocessing import IMAGENET

_BATCH = 16  # photos that are classified at once, where their sizes agree


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


@overload
def classify(
    image: list[Any] | tuple[Any, ...], classifier: Any, top: int = 5, *, size: Any = ...
) -> list[list[Guess]]: ...


@overload
def classify(
    image: ImageSource, classifier: Any, top: int = 5, *, size: Any = ...
) -> list[Guess]: ...


def classify(
    image: ImageSource | Sequence[ImageSource],
    classifier: Any,
    top: int = 5,
    *,
    size: int | tuple[int, int] | None = None,
) -> list[Guess] | list[list[Guess]]:
    """Return the likeliest classes of a photo, or of each of several, the likeliest first.

    Args:
        image: A path, the bytes of a file, or a Pillow image; or a list of them.
        classifier: See ``load_classifier`` and ``create_classifier``; or a runner of one.
        top: How many.
        size: Of the network's input in pixels, one side or (H, W); by default what the weights
            were made for.

    Raises:
        ImageError: A photo cannot be decoded.
        ConfigError: ``top`` is not from 1 to the number of classes, or what is given is neither a
            classifier nor a runner of one.
    """
    run, classes, labels, preprocessing = _caller(classifier)
    if not 1 <= top <= classes:
        raise ConfigError(f"top must be from 1 to {classes}, the number of classes, got {top}.")
    chosen = preprocessing if size is None else preprocessing.with_size(size)
    several = isinstance(image, list | tuple)
    photos = cast(Sequence[ImageSource], image if several else [image])
    fixed = getattr(classifier, "input_shape", None)  # of a runner, which may take one number only
    prepared = (preprocess(decode_image(one), chosen) for one in photos)  # each (3, H, W)
    found = []
    for batch in _alike(prepared, 1 if fixed else _BATCH):
        for logits in run(batch):
            probabilities, indices = logits.float().softmax(0).topk(top)
            both = zip(indices.tolist(), probabilities.tolist(), strict=True)
            found.append(
                [Guess(i, labels[i] if labels else str(i), probability) for i, probability in both]
            )
    return found if several else found[0]


def _alike(images: Iterable[Tensor], most: int) -> Iterator[Tensor]:
    """Yield batches ``(n, 3, H, W)``, n up to ``most``, of neighbours of one size."""
    waiting: list[Tensor] = []
    for image in images:
        if waiting and (len(waiting) == most or waiting[0].shape != image.shape):
            yield torch.stack(waiting)
            waiting = []
        waiting.append(image)
    if waiting:
        yield torch.stack(waiting)


def _caller(classifier: Any) -> tuple[Any, int, tuple[str, ...] | None, Any]:
    """Return what computes logits, how many classes, their names, and how it wants its images."""
    preprocessing = (
        getattr(getattr(classifier, "backbone", classifier), "preprocessing", None) or IMAGENET
    )
    if isinstance(classifier, Classifier):
        like = classifier.head.linear.weight

        def logits(images: Tensor) -> Tensor:
            with evaluating(classifier), torch.inference_mode():
                return cast(Tensor, classifier(images.to(like.device, like.dtype)))

        return (
            logits,
            classifier.num_classes,
            classifier.labels,
            preprocessing,
        )
    if getattr(classifier, "strides", None) == (0,):  # a runner of one
        if classifier.preprocess:
            raise ConfigError(
                "this runner normalises pictures by itself (preprocess=True); classify with one "
                "that was deployed without, or call it with resized pictures."
            )
        return (
            lambda images: classifier(images)[0],
            classifier.channels[0],
            classifier.labels,
            preprocessing,
        )
    raise ConfigError(
        f"a classifier or a runner of one is expected, got {type(classifier).__name__}; "
        "create_classifier and load_classifier make one."
    )
