"""Stand-ins for other libraries' checkpoints: their names and shapes, numbers of our own."""

from __future__ import annotations

import math
import zlib

import torch
from record_keys import dtype_of, recorded_keys
from torch import Tensor

SMALL = 50_000  # values; what is larger stays untouched in ``hollow_tensors``
_VARIANCES = ("running_var", "_riv")
_SCALES = ("weight", "_s", "_gamma")


def upstream_tensors(layout: str, variant: str) -> dict[str, Tensor]:
    """Return numbers under the recorded names of a network, such as a trained one could have."""
    keys = recorded_keys(layout)[variant]
    return {name: numbers(name, shape) for name, shape in keys.items()}


def hollow_tensors(layout: str, variant: str) -> dict[str, Tensor]:
    """Return the same names, large tensors with memory that nobody has written to.

    The memory of a large network is only promised then, never had. Who moves such a tensor without
    a copy keeps its address.
    """
    keys = recorded_keys(layout)[variant]
    return {
        name: numbers(name, shape) if math.prod(shape) <= SMALL else torch.empty(shape)
        for name, shape in keys.items()
    }


def numbers(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return numbers that follow from a name: no two tensors of a file have the same."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if not dtype_of(name).is_floating_point:
        return torch.randint(1, 10_000, shape, generator=generator)
    if len(shape) > 1:
        fan_in = max(math.prod(shape[1:]), 1)
        return torch.randn(shape, generator=generator) * math.sqrt(2 / fan_in)
    drawn = torch.rand(shape, generator=generator)
    return drawn + 0.5 if name.endswith((*_VARIANCES, *_SCALES)) else drawn - 0.5
