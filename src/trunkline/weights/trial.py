"""One image through a network whose weights were just loaded, and what is wrong with its maps.

A load sees names, shapes and numbers that are not finite. It does not see weights that were never
trained, statistics of norms that another preprocessing left, or a network whose maps are all zero.
An image shows these. It does not show a network that is merely another one: its maps look healthy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from trunkline.backbones.backbone import Backbone
from trunkline.preprocessing import Preprocessing
from trunkline.weights.fused import never_trained, norms_are_fused

SIZE = 128  # pixels of either side: a stride of 32 leaves 4×4
_SEED = 20240607
_DEAD = 0.95  # share of a map's channels that are the same everywhere
_LARGEST = 1e4  # a trained network's maps reach some hundred at most
_SPREAD = 10.0  # how far what meets a norm may be from what its statistics say, either way
_FEWEST = 8  # channels of a norm, of which a median says something


@dataclass(frozen=True)
class Trial:
    """What one image showed.

    Attributes:
        warnings: What is wrong, in sentences; empty for a healthy network.
        summary: One sentence of figures for a report.
    """

    warnings: tuple[str, ...]
    summary: str


@dataclass(frozen=True)
class _Met:
    """What meets one norm, in standard deviations as its statistics have them: 1 is expected."""

    name: str
    spread: float


def trial(backbone: Backbone, preprocessing: Preprocessing | None = None) -> Trial:
    """Run one image through a network, and look at its maps.

    Nothing of the network changes: neither its mode nor the statistics of its norms, nor the state
    of any source of random numbers. It runs where it is, in its own dtype.

    Args:
        backbone: With weights; not on the meta device.
        preprocessing: How it wants its images; None takes values of mean 0 and spread 1.
    """
    state = backbone.state_dict()
    judged = not (norms_are_fused(state) or never_trained(state))  # else statistics say nothing
    like = next(backbone.parameters())
    image = trial_image(backbone.in_channels, preprocessing).to(like.device, like.dtype)
    maps: dict[str, Tensor] = {}
    met: list[_Met] = []
    with torch.no_grad(), _evaluating(backbone), _watching(backbone, maps, met):
        backbone(image)
    warnings = [*_untrained(state), *_unhealthy(maps)]
    if judged:
        warnings += _misjudged(met, preprocessing)
    return Trial(tuple(warnings), _summary(maps))


def trial_image(channels: int, preprocessing: Preprocessing | None = None) -> Tensor:
    """Return an image ``(1, channels, 128, 128)``, float32, always the same one.

    Its spectrum falls as that of photos does, large shapes and little detail, the channels are
    mostly alike, and mean and spread are those of ImageNet's photos, before the preprocessing.
    """
    random = np.random.default_rng(_SEED)
    frequency = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.fftfreq(SIZE)[None, :])
    falling = 1 / np.maximum(frequency, 1 / SIZE)
    noise = np.fft.fft2(random.standard_normal((channels + 1, SIZE, SIZE)))
    shapes = np.fft.ifft2(noise * falling).real
    shapes /= shapes.std(axis=(1, 2), keepdims=True)
    mixed = 0.95 * shapes[:1] + 0.3 * shapes[1:]  # one picture in all channels, a little of its own
    mixed = (mixed - mixed.mean()) / mixed.std()
    if preprocessing is None or len(preprocessing.mean) != channels:
        return torch.from_numpy(mixed[None]).float()
    white = 255.0 if preprocessing.value_range == "0..255" else 1.0
    photo = np.clip(0.45 + 0.225 * mixed, 0, 1) * white
    mean, std = (np.array(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    return torch.from_numpy(((photo - mean) / std)[None]).float()


@contextmanager
def _evaluating(backbone: nn.Module) -> Iterator[None]:
    """Put every module into eval mode, and back into what each was in."""
    modes = {module: module.training for module in backbone.modules()}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _watching(backbone: Backbone, maps: dict[str, Tensor], met: list[_Met]) -> Iterator[None]:
    """Note every stage's map, and what meets each norm that has statistics."""

    def keep(name: str) -> object:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            maps[name] = output.detach().float()

        return hook

    def hold(name: str) -> object:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            met.append(_Met(name, _spread(module, inputs[0].detach().float())))

        return hook

    stages = {"the stem": backbone.stem, **{f"stage {i}": s for i, s in enumerate(backbone.stages)}}
    handles = [
        stage.register_forward_hook(keep(name))  # type: ignore[arg-type]
        for name, stage in stages.items()
    ]
    handles += [
        module.register_forward_pre_hook(hold(name))
        for name, module in backbone.named_modules()
        if isinstance(getattr(module, "running_var", None), Tensor)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _spread(norm: nn.Module, values: Tensor) -> float:
    """Return the typical distance from a norm's means, in its own standard deviations."""
    mean, variance = (
        getattr(norm, name).float()[:, None, None] for name in ("running_mean", "running_var")
    )
    if len(mean) < _FEWEST:
        return 1.0
    squared = (values - mean).square().mean((0, 2, 3)) / (variance[:, 0, 0] + 1e-12)
    return float(squared.median().sqrt())


def _untrained(state: dict[str, Tensor]) -> Iterator[str]:
    if never_trained(state):
        yield (
            "NEVER TRAINED: every norm is as PyTorch makes it (means 0, variances 1, scales 1, "
            "shifts 0), so these are the random weights that a network starts from."
        )


def _unhealthy(maps: dict[str, Tensor]) -> Iterator[str]:
    """Say the first thing that is wrong with the maps: what follows in later stages follows."""
    for name, values in maps.items():
        if not values.isfinite().all():
            yield f"NOT FINITE: the map of {name} holds NaN or infinity for an ordinary image."
            return
        if (largest := float(values.abs().max())) > _LARGEST:
            yield (
                f"EXPLODING: the map of {name} reaches {largest:.3g} for an ordinary image; "
                f"those of trained networks stay far below {_LARGEST:g}."
            )
            return
        if (dead := _constant(values)) >= _DEAD:
            yield (
                f"DEAD: {dead:.0%} of the channels of {name} are the same everywhere, whatever "
                "the image shows."
            )
            return


def _constant(values: Tensor) -> float:
    flat = values.flatten(2)
    return float((flat.amax(2) == flat.amin(2)).float().mean())


def _misjudged(met: list[_Met], preprocessing: Preprocessing | None) -> Iterator[str]:
    """Say where the image first meets a norm that expects something else by far."""
    for one in met:
        if not math.isfinite(one.spread):
            return  # the maps say so too
        if not 1 / _SPREAD <= one.spread <= _SPREAD:
            many = max(one.spread, 1 / max(one.spread, 1e-6))
            more = "larger" if one.spread > 1 else "smaller"
            wants = "" if preprocessing is None else f" ({preprocessing.describe()})"
            yield (
                f"OTHER VALUES: what meets the norm {one.name} is {many:.0f} times {more} than its "
                "statistics say. Either the images that it was trained on had another range than "
                f"its preprocessing{wants}, or the weights are another network's."
            )
            return


def _summary(maps: dict[str, Tensor]) -> str:
    figures = ", ".join(
        f"{name} up to {float(values.abs().max()):.3g} with {1 - _constant(values):.0%} of its "
        "channels alive"
        for name, values in maps.items()
    )
    return f"Checked with one image of {SIZE}×{SIZE}: {figures}."
