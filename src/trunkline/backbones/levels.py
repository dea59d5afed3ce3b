"""What one feature map is called. In a file of its own because a deployed runner has no PyTorch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    """One feature map of a network: where it comes from, its stride in pixels, its channels."""

    name: str
    stride: int
    channels: int


def output_names(levels: Sequence[Level]) -> tuple[str, ...]:
    """Return what the maps of these levels are called outside Python: ``stride_4``, ``stride_8``.

    Where ``output_stride`` gives several levels one stride, those say which they are:
    ``stage2_stride_16`` and ``stage3_stride_16``.
    """
    shared = Counter(level.stride for level in levels)
    return tuple(
        f"stride_{level.stride}"
        if shared[level.stride] == 1
        else f"{level.name}_stride_{level.stride}"
        for level in levels
    )
