"""What photos show, by a classifier or a runner of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast, overload

import torch
from torch import Tensor

from trunkline.errors import ConfigError
from trunkline.heads.network import Classifier
from trunkline.images import ImageSource, Raster, preprocess
from trunkline.modes import evaluating
from trunkline.pictures import picture_of
from trunkline.preprocessing import IMAGENET, Preprocessing

_TOP = 5
BATCH_SIZE = 16  # photos that are classified at once, where their sizes agree


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
    image: list[Any] | tuple[Any, ...],
    classifier: Any,
    top: int | None = None,
    *,
    size: Any = ...,
    batch_size: int = ...,
) -> list[list[Guess]]: ...


@overload
def classify(
    image: ImageSource | Raster,
    classifier: Any,
    top: int | None = None,
    *,
    size: Any = ...,
    batch_size: int = ...,
) -> list[Guess]: ...


def classify(
    image: ImageSource | Raster | Sequence[ImageSource | Raster],
    classifier: Any,
    top: int | None = None,
    *,
    size: int | tuple[int, int] | None = None,
    batch_size: int = BATCH_SIZE,
) -> list[Guess] | list[list[Guess]]:
    """Return the likeliest classes of a photo, or of each of several, the likeliest first.

    Args:
        image: A path, the bytes of a file, a Pillow image, a raster of ``decode_bands``,
            or an 8-bit array ``(H, W, 3)``; or a list of them.
        classifier: See ``load_classifier`` and ``create_classifier``; or a runner of one.
        top: How many; None for five, or for all classes where there are fewer.
        size: Of the network's input in pixels, one side or (H, W); by default what the weights
            were made for.
        batch_size: Photos of a list that are computed at once: neighbours whose prepared sizes
            agree.

    Raises:
        ImageError: A photo cannot be decoded.
        InputError: Something that is no photo.
        ConfigError: ``top`` is not from 1 to the number of classes, ``batch_size`` is not from 1
            on, or what is given is neither a classifier nor a runner of one.
    """
    preprocessing = _caller(classifier).preprocessing
    chosen = preprocessing if size is None else preprocessing.with_size(size)
    several = isinstance(image, list | tuple)
    photos = cast(Sequence[ImageSource | Raster], image if several else [image])
    prepared = (
        preprocess(picture_of(one, f"image {n}" if several else "the image"), chosen)
        for n, one in enumerate(photos)
    )
    found = list(guesses_of(prepared, classifier, top, batch_size=batch_size))
    return found if several else found[0]


def guesses_of(
    images: Iterable[Tensor],
    classifier: Any,
    top: int | None = None,
    *,
    batch_size: int = BATCH_SIZE,
) -> Iterator[list[Guess]]:
    """Yield the likeliest classes of images as ``classify`` returns them, one image by one.

    Args:
        images: Prepared, each ``(3, H, W)``; no more of them than a batch are held.
        classifier: As for ``classify``.
        top: As for ``classify``.
        batch_size: As for ``classify``.

    Yields:
        The guesses of each image, in the order of the images.

    Raises:
        ConfigError: As ``classify``.
    """
    caller = _caller(classifier)
    if top is None:
        top = min(_TOP, caller.num_classes)
    if not 1 <= top <= caller.num_classes:
        raise ConfigError(
            f"top must be from 1 to {caller.num_classes}, the number of classes, got {top}."
        )
    if batch_size < 1:
        raise ConfigError(f"batch_size must be 1 or more, got {batch_size}.")
    fixed = getattr(classifier, "input_shape", None)  # of a runner, which may take one number only
    for batch in _alike(images, 1 if fixed else batch_size):
        for logits in caller.run(batch):
            probabilities, indices = logits.float().softmax(0).topk(top)
            both = zip(indices.tolist(), probabilities.tolist(), strict=True)
            yield [Guess(i, caller.name(i), probability) for i, probability in both]


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


class _Caller(NamedTuple):
    run: Callable[[Tensor], Any]  # images (N, 3, H, W) to N logits (classes)
    num_classes: int
    labels: tuple[str, ...] | None
    preprocessing: Preprocessing

    def name(self, index: int) -> str:
        return self.labels[index] if self.labels else str(index)


def _caller(classifier: Any) -> _Caller:
    """Return what computes logits, how many classes, their names, and how it wants its images."""
    preprocessing = (
        getattr(getattr(classifier, "backbone", classifier), "preprocessing", None) or IMAGENET
    )
    if isinstance(classifier, Classifier):
        like = classifier.head.linear.weight

        def logits(images: Tensor) -> Tensor:
            with evaluating(classifier), torch.inference_mode():
                return cast(Tensor, classifier(images.to(like.device, like.dtype)))

        return _Caller(logits, classifier.num_classes, classifier.labels, preprocessing)
    if getattr(classifier, "strides", None) == (0,):  # a runner of one
        if classifier.preprocess:
            raise ConfigError(
                "this runner normalises pictures by itself (preprocess=True); classify with one "
                "that was deployed without, or call it with resized pictures."
            )
        return _Caller(
            lambda images: classifier(images)[0],
            classifier.channels[0],
            classifier.labels,
            preprocessing,
        )
    raise ConfigError(
        f"a classifier or a runner of one is expected, got {type(classifier).__name__}; "
        "create_classifier and load_classifier make one. Of a wrapper (an average, DataParallel, a "
        "compiled module) give the network in it: its .module or ._orig_mod."
    )
