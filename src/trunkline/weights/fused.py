"""Norms that are no longer norms: Caffe's conversions fold the statistics into scale and shift.

What is left are means of 0 and variances of 1. So has a network that was never trained, whose
scales are still 1 (or 0), whose shifts are still 0, and whose norms have counted no batch, which
Caffe's do not do at all; the two are told apart by that.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trunkline.weights.layouts.layout import BATCH_COUNTER

_SLACK = 2e-5  # an epsilon may have been taken off the variance


def norms_are_fused(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether all norms have neutral statistics, and are not those of a fresh network.

    Args:
        tensors: Of a network, by our own names (``….norm.running_mean``).
    """
    counted = any(name.endswith(BATCH_COUNTER) for name in tensors)
    return _neutral(tensors) and not (counted and _untouched(tensors))


def never_trained(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether all norms are as PyTorch makes them: statistics, scales and shifts."""
    return _neutral(tensors) and _untouched(tensors)


def _neutral(tensors: Mapping[str, Tensor]) -> bool:
    means = [t for name, t in tensors.items() if name.endswith(".running_mean")]
    variances = [t for name, t in tensors.items() if name.endswith(".running_var")]
    return (
        bool(means)
        and bool(variances)
        # A trained network's first norm says no, so that the others are not looked at.
        and all(_all(mean == 0) for mean in means)
        and all(_all((variance - 1).abs() <= _SLACK) for variance in variances)
    )


def _untouched(tensors: Mapping[str, Tensor]) -> bool:
    for name in tensors:
        if name.endswith(".running_mean"):
            norm = name.removesuffix("running_mean")
            scale, shift = tensors.get(f"{norm}weight"), tensors.get(f"{norm}bias")
            if scale is not None and not _all((scale == 0) | (scale == 1)):
                return False
            if shift is not None and not _all(shift == 0):
                return False
    return True


def _all(holds: Tensor) -> bool:
    return not holds.is_meta and bool(torch.all(holds))
