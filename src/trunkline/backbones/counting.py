"""What a network costs, counted without computing any of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from trunkline.backbones.backbone import Backbone


def count_macs(backbone: Backbone, height: int, width: int) -> int:
    """Count multiply-accumulates of a backbone's convolutions for one image of that size."""
    counted = 0

    def count(conv: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal counted
        counted += cast(Tensor, conv.weight).numel() * output.shape[2] * output.shape[3]

    meta = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in (*backbone.named_parameters(), *backbone.named_buffers())
    }
    floats = (p.dtype for p in backbone.stem.parameters() if p.is_floating_point())
    dtype = next(floats, torch.get_default_dtype())
    # Two images: batch norm in training refuses one value per channel.
    images = torch.empty((2, backbone.in_channels, height, width), dtype=dtype, device="meta")
    convolutions = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    hooks = [conv.register_forward_hook(count) for conv in convolutions]
    try:
        with torch.no_grad():
            torch.func.functional_call(backbone, meta, (images,))
    finally:
        for hook in hooks:
            hook.remove()
    return counted
