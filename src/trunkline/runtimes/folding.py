"""Batch norms into the convolutions before them.

A norm with fixed statistics is an affine map of each channel, and so is what a convolution does to
its output channels: y = γ · (W∗x − μ) / √(σ² + ε) + β becomes W′∗x + b′ with W′ = W · γ / √(σ² + ε)
and b′ = β − μ · γ / √(σ² + ε). Source: Ioffe & Szegedy 2015, arXiv:1502.03167, section 3.1.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from trunkline.backbones.backbone import Backbone
from trunkline.backbones.layers import FrozenBatchNorm2d
from trunkline.errors import ConfigError

_FOLDABLE = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)


def fold(backbone: Backbone) -> Backbone:
    """Return a copy for inference whose batch norms are part of its convolutions.

    The arithmetic is done in float64; the maps agree within 1e-5 of their largest value. Other
    norms (group norm, one's own) depend on the images and stay as they are. Hooks are not copied.

    Args:
        backbone: Any of the three families, with numbers (not on the meta device). It is left as
            it is.

    Returns:
        A backbone in eval mode that takes no gradients, with the same levels, preprocessing and
        load report. Its convolutions have biases, so it takes no checkpoints any more: load first,
        fold then.

    Raises:
        ConfigError: Not a backbone, or one without numbers.

    Example:
        >>> from trunkline import create_backbone, fold
        >>> folded = fold(create_backbone("resnet18"))
        >>> [name for name, _ in folded.stem.named_parameters()]
        ['conv.weight', 'conv.bias']
    """
    check_backbone(backbone)
    folded = copy.deepcopy(backbone).eval().requires_grad_(False)
    for module in folded.modules():
        conv, norm = getattr(module, "conv", None), getattr(module, "norm", None)
        if type(conv).__name__ == "Conv2d" and isinstance(norm, _FOLDABLE):
            _absorb(cast(nn.Conv2d, conv), norm)
            module.norm = nn.Identity()
    return folded


def fold_structure(backbone: Backbone) -> Backbone:
    """Give a network that was built without its foldable norms the biases that folding makes.

    Args:
        backbone: With ``nn.Identity`` for those norms, on the meta device. It is changed.

    Returns:
        The same. Its parameters have the names and shapes of those of ``fold``.
    """
    for module in backbone.modules():
        conv = getattr(module, "conv", None)
        if isinstance(conv, nn.Conv2d) and isinstance(getattr(module, "norm", None), nn.Identity):
            conv.bias = nn.Parameter(torch.empty(conv.out_channels, device="meta"))
    return backbone


def check_backbone(backbone: object) -> None:
    """Refuse what is no backbone, and one without numbers.

    Raises:
        ConfigError: As it says.
    """
    if not isinstance(backbone, Backbone):
        for word in ("backbone", "module", "_orig_mod"):  # of a model, and of wrappers
            inside = getattr(backbone, word, None)
            if isinstance(inside, Backbone) or isinstance(
                getattr(inside, "backbone", None), Backbone
            ):
                raise ConfigError(
                    f"a trunkline backbone is expected, got {type(backbone).__name__}, which has "
                    f"one: give its .{word}."
                )
        raise ConfigError(
            f"a trunkline backbone is expected, got {type(backbone).__name__}; "
            "create_backbone, ResNet, DLANet and RegNet make one."
        )
    if any(parameter.is_meta for parameter in backbone.parameters()):
        raise ConfigError(
            "the backbone is on the meta device and has no numbers; load weights into it first."
        )


def _absorb(conv: nn.Conv2d, norm: nn.Module) -> None:
    """Write the norm's affine map into the convolution."""
    mean, variance = (_double(norm, name) for name in ("running_mean", "running_var"))
    if mean is None or variance is None:
        raise ConfigError(
            "a batch norm without running statistics cannot be folded: it depends on the batch; "
            "build it with track_running_stats=True."
        )
    scale = (variance + cast(float, norm.eps)).rsqrt()
    weight, bias = _double(norm, "weight"), _double(norm, "bias")
    scale = scale if weight is None else scale * weight
    before = torch.zeros_like(mean) if conv.bias is None else conv.bias.double()
    shifted = (before - mean) * scale + (0.0 if bias is None else bias)
    dtype = conv.weight.dtype
    kernels = conv.weight.double() * scale[:, None, None, None]
    conv.weight = nn.Parameter(kernels.to(dtype), requires_grad=False)
    conv.bias = nn.Parameter(shifted.to(dtype), requires_grad=False)


def _double(norm: nn.Module, name: str) -> Tensor | None:
    value = getattr(norm, name)
    return None if value is None else cast(Tensor, value).detach().double()
