"""A backbone with a classifier: one pooled map, one linear layer.

It is what published checkpoints were trained with, and what most people train on top of one.
Source: He et al. 2015, arXiv:1512.03385, section 3.3; DLA and RegNet end alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from trunkline.backbones.backbone import Backbone
from trunkline.backbones.options import LOADING, Options, WeightsLike
from trunkline.errors import ConfigError, WeightsMismatchError
from trunkline.heads.logits import POOLS, LogitsHead, LogitsNetwork, with_logits
from trunkline.images import ImageSource, decode_image, preprocess
from trunkline.modes import evaluating
from trunkline.preprocessing import IMAGENET
from trunkline.weights.hub import Progress
from trunkline.weights.layouts.layout import CLASSIFIER
from trunkline.weights.loading import LoadReport, Read, adopt, understood
from trunkline.weights.numbers import check_kinds, unsound
from trunkline.weights.opening import check_no_weights, is_saved
from trunkline.zoo import create_backbone, weights_of_name

Pool = Literal["avg", "max"]
IMAGENET_1K = "imagenet-1k"


class ClassifierHead(nn.Module):
    """Logits from one map: its mean (or maximum) over H and W, then a linear layer.

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
        ConfigError: A number of labels that is not that of the classes.
    """

    def __init__(
        self, backbone: Backbone, head: ClassifierHead, labels: Sequence[str] | None = None
    ) -> None:
        super().__init__()
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
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise ConfigError(
            f"labels must be a list of names, one per class, got {str(labels)[:80]!r}."
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


def create_classifier(
    name: str,
    num_classes: int | None = None,
    *,
    labels: Sequence[str] | None = None,
    weights: WeightsLike | None = None,
    pool: Pool | None = None,
    return_idx: Sequence[int] = (3,),
    **options: Unpack[Options],
) -> Classifier:
    """Build a backbone with a classifier, to be trained or as it was trained.

    Args:
        name: A variant, as for ``create_backbone``.
        num_classes: Classes; by default as many as there are labels, or as the file has.
        labels: One name per class; they are saved with the classifier.
        weights: As for ``create_backbone``. Where the file holds a classifier of as many classes
            and no other labels, that is loaded too; else the classifier is new, and
            ``backbone.load_report`` says so.
        pool: Over H and W of the last map, ``"avg"`` or ``"max"``; None takes what the file says of
            itself, else ``"avg"``.
        return_idx: Stages of the backbone that are kept; the last one returned is classified.
        **options: See ``trunkline.backbones.backbone.BackboneOptions``.

    Returns:
        The network, in training mode as PyTorch makes every module. Its ``state_dict`` names
        tensors ``backbone.…`` and ``head.linear.…``.

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
        return Classifier(
            backbone, ClassifierHead(backbone.channels[-1], num_classes, pool or "avg"), labels
        )
    with torch.device("meta"):
        backbone = create_backbone(name, return_idx=return_idx, **built)
    check = bool(loading.pop("check", False))
    if isinstance(weights, str):
        weights = weights_of_name(name, weights)
    read = understood(backbone, weights, **cast(Any, loading))
    held = _classes_in(read, backbone)
    known = read.statement.labels if read.statement else None
    if num_classes is None and held is None:
        raise ConfigError(
            f"{read.located.path} holds no classifier; say how many classes there are: "
            "num_classes=N, or labels=[…]."
        )
    fits = held is not None and num_classes in (None, held)
    if fits and labels is not None and known is not None and tuple(labels) != known:
        fits = False  # as many, and others
    report = adopt(backbone, read, check=check)
    if fits:
        head = create_head(backbone, read, pool)
        named = _known_labels(read, head)
        report = report_with_head(report, head, read)
        if labels is not None and named is not None and tuple(labels) != tuple(named):
            said = (
                f"The classifier of the file's {held} classes is kept, and called by other names: "
                f"{labels[0]!r} was {named[0]!r}."
            )
            report = dataclasses.replace(report, notes=(*report.notes, said))
        backbone.load_report = report
        return Classifier(backbone, head, labels or named).train()
    head = ClassifierHead(backbone.channels[-1], cast(int, num_classes), pool or "avg")
    said = f"The classifier of {num_classes} classes is new: the file has " + (
        "none." if held is None else f"one of {held} classes." if held != num_classes else "others."
    )
    backbone.load_report = dataclasses.replace(report, notes=(*report.notes, said))
    return Classifier(backbone, head, labels)


def load_classifier(
    name: str,
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
        name: A variant, as for ``create_backbone``; or what ``save_pretrained`` wrote, a folder or
            ``hf://owner/repo``, which has its own weights.
        weights: As for ``load_weights``: a published checkpoint, or what a training script saved
            of a ``Classifier``, of Lightning, DataParallel or an average around one.
        labels: One name per class; by default those that the file or the catalog knows.
        pool: Over H and W of the last map, ``"avg"`` or ``"max"``; by default what the file says,
            else ``"avg"``, as all published networks have it. A plain state dict does not say it.
        layout: As for ``load_weights``.
        prefix: As for ``load_weights``.
        allow_noncommercial: Agree to licences that forbid commercial use.
        progress: Called while a file arrives; by default nothing is shown.

    Returns:
        The network, in eval mode; its backbone returns the last map only.

    Raises:
        WeightsMismatchError: The file holds no classifier, or does not fit.
        WeightsError: The weights cannot be had or read, see ``load_weights``.
        ConfigError: Another number of labels than of classes; another pool than the file says.
    """
    if is_saved(name):
        return _saved(name, weights, labels, pool)
    with torch.device("meta"):
        backbone = create_backbone(name, return_idx=(3,))
    if isinstance(weights, str):
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
    backbone.load_report = report_with_head(adopt(backbone, read), head, read)
    return Classifier(backbone, head, labels or _known_labels(read, head)).eval()


def _saved(
    name: str, weights: WeightsLike, labels: Sequence[str] | None, pool: Pool | None
) -> Classifier:
    """Return the classifier that ``save_pretrained`` wrote."""
    from trunkline.heads.pretrained import from_pretrained  # which imports this module

    check_no_weights(name, "none" if weights == "default" else str(weights))
    saved = from_pretrained(name)
    if not isinstance(saved, Classifier):
        raise WeightsMismatchError(
            f"{name} holds a backbone and no classifier; from_pretrained builds it, and "
            "create_classifier one with new classes."
        )
    _check_pool(saved.head.pool, pool, name)
    return saved if labels is None else Classifier(saved.backbone, saved.head, labels).eval()


def _check_pool(said: Pool | None, asked: Pool | None, where: object) -> None:
    if None not in (said, asked) and said != asked:
        raise ConfigError(
            f"pool={asked!r} is asked for, and the classifier of {where} was trained with "
            f"{said!r}; leave pool out, or take its backbone and train a new classifier."
        )


def _known_labels(read: Read, head: ClassifierHead) -> Sequence[str] | None:
    """Return the names of the classes, where the file or the catalog knows them."""
    classes = head.linear.out_features
    if read.statement is not None and len(read.statement.labels or ()) == classes:
        return read.statement.labels
    entry = read.located.entry
    named = entry is None or entry.classes_dataset == IMAGENET_1K
    # A thousand classes of nobody knows what are ImageNet's so often that they are called so.
    return imagenet_labels() if named and classes == len(imagenet_labels()) else None


def _classes_in(read: Read, backbone: Backbone) -> int | None:
    """Return how many classes the linear classifier in a file has, None for none that fits."""
    weight, bias = (read.native.head.get(f"{CLASSIFIER}{leaf}") for leaf in ("weight", "bias"))
    if weight is None or weight.ndim != 2 or weight.shape[1] != backbone.channels[-1]:
        return None
    fits = bias is None or bias.shape == weight.shape[:1]
    return len(weight) or None if fits else None


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
            f"{path} holds no classifier; its maps can be had with create_backbone. "
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
    said = read.statement.pool if read.statement else None
    _check_pool(said, pool, path)
    with torch.device("meta"):
        head = ClassifierHead(channels, len(bias), said or pool or "avg")
    # A copy of one's own, as for the backbone: tensors of a file are views of it.
    device = torch.get_default_device()
    state = {
        "weight": weight.contiguous().to(device, torch.float32, copy=True),
        "bias": bias.contiguous().to(device, torch.float32, copy=True),
    }
    head.linear.load_state_dict(state, assign=True)
    return head


def report_with_head(report: LoadReport, head: ClassifierHead, read: Read) -> LoadReport:
    """Return the report of a load that did take the classifier."""
    taken = {name.upstream for name in read.match.head.values()}
    has_bias = f"{CLASSIFIER}bias" in read.native.head
    bare = () if has_bias else ("The file's classifier has no bias; zeros stand for it.",)
    left = {why: tuple(n for n in names if n not in taken) for why, names in report.dropped.items()}
    return dataclasses.replace(
        report,
        matched=report.matched + len(taken),
        dropped={why: names for why, names in left.items() if names},
        notes=(*report.notes, *bare, *unsound(head.state_dict())),
    )


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


@cache
def imagenet_labels() -> tuple[str, ...]:
    """Return the names of the 1000 ImageNet classes, in the order that checkpoints use."""
    text = resources.files("trunkline.heads").joinpath("imagenet1k.txt").read_text("utf-8")
    return tuple(text.splitlines())
