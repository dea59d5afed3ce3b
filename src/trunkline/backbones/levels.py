"""What one feature map is called. In a file of its own because a deployed runner has no PyTorch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

LOGITS = "logits"  # the level of a classifier: one value a class, no H and no W, so no stride


@dataclass(frozen=True)
class Level:
    """One feature map of a network: where it comes from, its stride in pixels, its channels."""

    name: str
    stride: int
    channels: int


def output_names(levels: Sequence[Level]) -> tuple[str, ...]:
    """Return what the maps of these levels are called outside Python: ``stride_4``, ``stride_8``.

    Where ``output_stride`` gives several levels one stride, those say which they are:
    ``stage2_stride_16`` and ``stage3_stride_16``. Those of a classifier are ``logits``.
    """
    shared = Counter(level.stride for level in levels)
    return tuple(
        LOGITS
        if level.stride == 0
        else f"stride_{level.stride}"
        if shared[level.stride] == 1
        else f"{level.name}_stride_{level.stride}"
        for level in levels
    )
