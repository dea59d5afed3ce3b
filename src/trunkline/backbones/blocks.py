"""What two families share: pools, shortcuts and residual blocks.

Legend: N images, C channels, H and W the height and width that a module is given. All tensors are
floating-point and channels come second, whatever the memory format.

Sources: He et al. 2015, arXiv:1512.03385 (basic block, bottleneck); Xie et al. 2016,
arXiv:1611.05431 (grouped bottleneck); Hu et al. 2017, arXiv:1709.01507 (squeeze-and-excitation);
Huang et al. 2016, arXiv:1603.09382 (stochastic depth); He et al. 2018, arXiv:1812.01187 (pooled
shortcut of the -D networks); Chen et al. 2017, arXiv:1706.05587 (dilation in place of stride).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from trunkline.backbones.layers import Conv2d, Layers


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one stage samples its input.

    A stage either halves the resolution (``stride=2``, both dilations 1) or, where an
    ``output_stride`` replaces that stride, keeps it and spreads its kernels instead. The layer that
    gave up its stride keeps the dilation of the stage before (``first_dilation``); only what
    follows it is spread further (``dilation``). That makes every second output of the stage equal
    to the output of the strided stage.
    """

    stride: int
    first_dilation: int = 1
    dilation: int = 1

    @property
    def rest(self) -> Sampling:
        """How what follows the first block of the stage samples."""
        return Sampling(stride=1, first_dilation=self.dilation, dilation=self.dilation)


class ConvNormAct(nn.Module):
    """act(norm(conv(x))); the padding keeps H and W up to the stride: ceil(H / stride)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        layers: Layers,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.conv = Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=groups,
            bias=False,
        )
        self.norm = layers.norm(out_channels)
        self.act = layers.act() if act else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C_in, H, W)`` to ``(N, C_out, ceil(H/stride), ceil(W/stride))``."""
        x = self.norm(self.conv(x))
        return x if self.act is None else cast(Tensor, self.act(x))


class SqueezeExcitation(nn.Module):
    """x · sigmoid(expand(act(reduce(mean over H, W of x)))), one gate per channel and image."""

    def __init__(self, channels: int, squeezed: int, layers: Layers) -> None:
        super().__init__()
        self.reduce = Conv2d(channels, squeezed, 1)
        self.act = layers.act()
        self.expand = Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Gate ``(N, C, H, W)``; same shape and dtype."""
        gate = x.mean((2, 3), keepdim=True)  # (N, C, 1, 1)
        gate = self.expand(self.act(self.reduce(gate)))
        return cast(Tensor, x * gate.sigmoid())


class DilatedMaxPool2d(nn.Module):
    """2×2 maximum over neighbours ``dilation`` apart, at every position.

    At every ``2·dilation``-th position it equals the ceil-mode pool of stride 2 whose place it
    takes: what lies outside the map never wins.
    """

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to the same shape."""
        padded = F.pad(x, (0, self.dilation, 0, self.dilation), value=float("-inf"))
        return F.max_pool2d(padded, kernel_size=2, stride=1, dilation=self.dilation)

    def extra_repr(self) -> str:
        """Return what ``print`` shows between the brackets."""
        return f"dilation={self.dilation}"


class DilatedAvgPool2d(nn.Module):
    """2×2 mean over neighbours ``dilation`` apart, at every position, over those that exist.

    It takes the place of a ceil-mode average pool of stride 2, which divides by the number of
    positions inside the map as well.
    """

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to the same shape."""
        inside = x.new_ones((1, 1, x.shape[2], x.shape[3]))
        return self._sum(x) / self._sum(inside)

    def _sum(self, x: Tensor) -> Tensor:
        d = self.dilation
        padded = F.pad(x, (0, d, 0, d))
        rows = padded[..., :-d, :] + padded[..., d:, :]
        return rows[..., :-d] + rows[..., d:]

    def extra_repr(self) -> str:
        """Return what ``print`` shows between the brackets."""
        return f"dilation={self.dilation}"


# What a stage may sample with, beside convolutions.
POOLS = (nn.MaxPool2d, nn.AvgPool2d, DilatedMaxPool2d, DilatedAvgPool2d)


def max_pool_half(sampling: Sampling) -> nn.Module:
    """Return the 2×2 max-pool of a stage that halves, or its dilated stand-in."""
    if sampling.stride == 1:
        return DilatedMaxPool2d(sampling.first_dilation)
    return nn.MaxPool2d(2, stride=2, ceil_mode=True)


def avg_pool_half(sampling: Sampling) -> nn.Module:
    """Return the 2×2 average pool of a stage that halves, or its dilated stand-in."""
    if sampling.stride == 1:
        return DilatedAvgPool2d(sampling.first_dilation)
    return nn.AvgPool2d(2, stride=2, ceil_mode=True, count_include_pad=False)


def projection(
    in_channels: int,
    out_channels: int,
    layers: Layers,
    *,
    stride: int = 1,
    pool: nn.Module | None = None,
) -> nn.Sequential:
    """Return a shortcut that changes width or resolution: [pool,] 1×1 convolution, norm."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if pool is not None:
        parts["pool"] = pool
    parts["conv"] = Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
    parts["norm"] = layers.norm(out_channels)
    return nn.Sequential(parts)


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Zero whole images of ``(N, C, H, W)`` with probability ``rate`` and scale up the others.

    Does nothing unless ``training``. Source: arXiv:1603.09382, section 3.
    """
    if rate == 0.0 or not training:
        return x
    keep = x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(1.0 - rate)
    return x * keep.div_(1.0 - rate)


class Checkpointed(nn.Module, ABC):
    """A module that can forget its insides in training and compute them again in backward.

    Subclasses write ``compute``. With ``checkpointing`` set and gradients on, its activations are
    not kept (Chen et al. 2016, arXiv:1604.06174).
    """

    checkpointing: bool = False

    @abstractmethod
    def compute(self, *inputs: Any) -> Tensor:
        """Do what ``forward`` promises."""

    def forward(self, *inputs: Any) -> Tensor:
        """Return ``compute(*inputs)``, checkpointed where that was asked for."""
        if self.checkpointing and torch.is_grad_enabled():
            if torch.compiler.is_compiling():  # the compiler replays no side effects
                return cast(Tensor, checkpoint(self.compute, *inputs, use_reentrant=False))
            return cast(
                Tensor,
                checkpoint(
                    self.compute, *inputs, use_reentrant=False, context_fn=self._replay_contexts
                ),
            )
        return self.compute(*inputs)

    def _replay_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_held(self)


@contextmanager
def _statistics_held(module: nn.Module) -> Iterator[None]:
    """Keep batch norms below ``module`` from counting a second pass over the same batch.

    A momentum of 0 leaves the statistics where they are. Not tracking them would save fewer tensors
    for backward than the first pass did, which ``checkpoint`` refuses.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    held = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, (_, counter) in zip(norms, held, strict=True):
        norm.momentum = 0.0
        norm.num_batches_tracked = None if counter is None else counter.clone()
    try:
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, held, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked = counter


class ResidualBlock(Checkpointed):
    """act(shortcut(x) + drop_path(branch(x))). Subclasses write the branch."""

    drop_path_rate: float = 0.0

    def __init__(self, shortcut: nn.Module | None, layers: Layers) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.act = layers.act()

    @abstractmethod
    def branch(self, x: Tensor) -> Tensor:
        """Return what is added to the shortcut: a new tensor, before the activation."""

    def compute(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Map ``(N, C_in, H, W)`` to ``(N, C_out, ceil(H/stride), ceil(W/stride))``.

        Args:
            x: The input.
            shortcut: What to add in place of this block's own shortcut; of the output's shape.
        """
        out = drop_path(self.branch(x), self.drop_path_rate, self.training)
        if shortcut is None:
            shortcut = x if self.shortcut is None else self.shortcut(x)
        out += shortcut
        return cast(Tensor, self.act(out))

    def extra_repr(self) -> str:
        """Return what ``print`` shows between the brackets."""
        return f"drop_path_rate={self.drop_path_rate:.3g}" if self.drop_path_rate else ""


class BasicBlock(ResidualBlock):
    """x + f(x); f = 3×3, 3×3. The stride, where there is one, is in the first."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        sampling: Sampling,
        layers: Layers,
        *,
        shortcut: nn.Module | None = None,
    ) -> None:
        super().__init__(shortcut, layers)
        self.conv1 = ConvNormAct(
            in_channels,
            out_channels,
            3,
            layers,
            stride=sampling.stride,
            dilation=sampling.first_dilation,
        )
        self.conv2 = ConvNormAct(
            out_channels, out_channels, 3, layers, dilation=sampling.dilation, act=False
        )

    def branch(self, x: Tensor) -> Tensor:
        """Return f(x)."""
        return cast(Tensor, self.conv2(self.conv1(x)))


class Bottleneck(ResidualBlock):
    """x + f(x); f = 1×1, 3×3 [in groups] [+ SE], 1×1.

    The stride is in the 3×3 ("v1.5") unless ``stride_in_1x1`` puts it into the first 1×1, where
    the paper and Caffe had it.
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        sampling: Sampling,
        layers: Layers,
        *,
        groups: int = 1,
        squeezed: int = 0,
        stride_in_1x1: bool = False,
        shortcut: nn.Module | None = None,
    ) -> None:
        super().__init__(shortcut, layers)
        early = sampling.stride if stride_in_1x1 else 1
        self.conv1 = ConvNormAct(in_channels, mid_channels, 1, layers, stride=early)
        self.conv2 = ConvNormAct(
            mid_channels,
            mid_channels,
            3,
            layers,
            stride=1 if stride_in_1x1 else sampling.stride,
            dilation=sampling.dilation if stride_in_1x1 else sampling.first_dilation,
            groups=groups,
        )
        self.se = SqueezeExcitation(mid_channels, squeezed, layers) if squeezed else None
        self.conv3 = ConvNormAct(mid_channels, out_channels, 1, layers, act=False)

    def branch(self, x: Tensor) -> Tensor:
        """Return f(x)."""
        x = self.conv2(self.conv1(x))
        if self.se is not None:
            x = self.se(x)
        return cast(Tensor, self.conv3(x))
