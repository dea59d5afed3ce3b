"""Convolutions, norms and activations: what a block is made of.

Source: He et al. 2015, arXiv:1502.01852 (initialisation); Wu & He 2018, arXiv:1803.08494 (group
norm). All tensors are floating-point and channels come second, whatever the memory format.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trunkline.errors import ConfigError

NormFactory = Callable[[int], nn.Module]
ActFactory = Callable[[], nn.Module]
NormSpec = str | NormFactory
ActSpec = str | ActFactory


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The norm and the activation that every block of one network uses."""

    norm: NormFactory
    act: ActFactory


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` that is initialised once, as these networks were: normal, fan-out of a group.

    PyTorch's own default would draw every weight a first time only to be overwritten.
    """

    def reset_parameters(self) -> None:
        """Draw the weight from N(0, 2 / fan_out), bias zero: He et al. 2015, arXiv:1502.01852."""
        if self.weight.is_meta:
            return  # no values to draw, and PyTorch takes milliseconds to draw none
        fan_out = self.weight[0, 0].numel() * self.out_channels // self.groups
        nn.init.normal_(self.weight, std=math.sqrt(2.0 / fan_out))
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with fixed statistics and a fixed affine map: four buffers, no parameters.

    Reads the same state dict as ``nn.BatchNorm2d``, whose batch counter it leaves aside, and gives
    the same numbers as that layer in eval mode, in train mode too.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(N, C, H, W)`` with the stored statistics; same shape and dtype."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Return what ``print`` shows between the brackets."""
        return f"{self.num_features}, eps={self.eps}"


class NormStandIn(nn.Module):
    """Names and shapes of ``nn.BatchNorm2d`` without values or work.

    For networks on the meta device that are only asked what they hold: PyTorch takes milliseconds
    to set up and run a real norm there.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_features))
        self.bias = nn.Parameter(torch.empty(num_features))
        self.register_buffer("running_mean", torch.empty(num_features))
        self.register_buffer("running_var", torch.empty(num_features))
        self.register_buffer("num_batches_tracked", torch.empty((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Return what is given."""
        return x


def _group_norm(channels: int) -> nn.Module:
    # 32 groups (Wu & He 2018, arXiv:1803.08494) where they divide the width; RegNet's widths are
    # multiples of 8 only, so the largest common divisor stands in.
    return nn.GroupNorm(math.gcd(32, channels), channels)


# Rows of (name, factory). A user's own layer goes in as a callable instead.
NORMS: dict[str, NormFactory] = {
    "batch": nn.BatchNorm2d,
    "frozen": FrozenBatchNorm2d,
    "group": _group_norm,
    "sync": nn.SyncBatchNorm,
}


def _relu() -> nn.Module:
    return nn.ReLU(inplace=True)  # only ever applied to a tensor that the same block made


ACTS: dict[str, ActFactory] = {
    "relu": _relu,
    "leaky-relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
    "mish": nn.Mish,
    "silu": nn.SiLU,
}


def make_norm(spec: NormSpec) -> NormFactory:
    """Turn ``"batch"``, ``"frozen"``, ``"group"``, ``"sync"`` or a callable into a factory.

    Args:
        spec: A name, or a callable that takes a number of channels and returns a module.

    Raises:
        ConfigError: Another name, another type, or a callable that returns no module.
    """
    return _maker("norm", spec, NORMS, "a number of channels")


def make_act(spec: ActSpec) -> ActFactory:
    """Turn the name of an activation, or a callable without arguments, into a factory.

    Args:
        spec: A key of ``ACTS``, or a callable that takes nothing and returns a module.

    Raises:
        ConfigError: Another name, another type, or a callable that returns no module.
    """
    return _maker("act", spec, ACTS, "nothing")


def _maker(
    option: str,
    spec: object,
    known: Mapping[str, Callable[..., nn.Module]],
    takes: str,
) -> Callable[..., nn.Module]:
    """Return what a name stands for, or a callable whose results are looked at."""
    if isinstance(spec, str):
        if spec not in known:
            raise ConfigError(
                f"{option}={spec!r} is not known; allowed: {', '.join(sorted(known))}, "
                f"or a callable that takes {takes} and returns a module."
            )
        return known[spec]
    if isinstance(spec, nn.Module) or not callable(spec):  # a module is one layer, not a maker
        raise ConfigError(
            f"{option} must be one of {', '.join(sorted(known))} or a callable that takes {takes}, "
            f"got {type(spec).__name__}."
        )
    return lambda *channels: _as_module(option, spec(*channels))


def _as_module(option: str, made: object) -> nn.Module:
    if not isinstance(made, nn.Module):
        raise ConfigError(
            f"the callable given as {option} returned {type(made).__name__}; "
            "it must return a torch.nn.Module."
        )
    return made
