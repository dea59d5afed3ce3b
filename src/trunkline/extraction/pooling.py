"""A map becomes a vector: what a feature store keeps of a level unless it keeps the map.

========  =================================================  ================================
``avg``   mean over all positions                            global average pooling
``max``   largest value of each channel                      MAC, Tolias et al., ICLR 2016
``gem``   (mean of max(x, 1e-6)³)^(1/3), per channel          GeM with p = 3, Radenović et al.,
                                                             TPAMI 2019, section 3.2
``none``  the map itself
========  =================================================  ================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from trunkline.errors import ConfigError

Pool = Literal["avg", "max", "gem", "none"]
POOLS: tuple[Pool, ...] = ("avg", "max", "gem", "none")

_GEM_POWER, _GEM_SMALLEST = 3, np.float32(1e-6)


def check_pool(pool: str) -> Pool:
    """Return the name of a pooling.

    Raises:
        ConfigError: There is none of that name.
    """
    if pool not in POOLS:
        raise ConfigError(f"pool={pool!r} is unknown; use one of {', '.join(POOLS)}.")
    return pool


def pooled(maps: NDArray[np.float32], pool: Pool, *, normalize: bool = False) -> NDArray[Any]:
    """Pool one level of a batch.

    Args:
        maps: (N, C, h, w) float32.
        pool: See the module.
        normalize: Scale what belongs to one image to length 1 (L2); zeros stay zeros.

    Returns:
        (N, C) float32; (N, C, h, w) for ``none``.
    """
    flat = maps.reshape(*maps.shape[:2], -1)  # (N, C, h·w)
    if pool == "avg":
        values = flat.mean(-1, dtype=np.float32)
    elif pool == "max":
        values = flat.max(-1)
    elif pool == "gem":
        raised = np.maximum(flat, _GEM_SMALLEST) ** _GEM_POWER
        values = np.cbrt(raised.mean(-1, dtype=np.float32))
    else:
        values = maps
    return unit_length(values) if normalize else values


def unit_length(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale every entry of the first axis to Euclidean length 1; zeros stay zeros."""
    flat = values.reshape(len(values), -1)
    lengths = np.sqrt(np.einsum("nd,nd->n", flat, flat, dtype=np.float64))
    lengths[lengths == 0] = 1
    scaled = flat / lengths[:, None].astype(np.float32)
    return cast(NDArray[np.float32], scaled.reshape(values.shape))


def unfit(values: Mapping[str, NDArray[Any]]) -> dict[int, str]:
    """Return which images of a batch have numbers that no store should hold, and why.

    Args:
        values: Column's name → (N, *shape) in the store's dtype.
    """
    found: dict[int, str] = {}
    for name, computed in values.items():
        flat = computed.reshape(len(computed), -1)
        for number in np.flatnonzero(~np.isfinite(flat).all(1)):
            if computed.dtype == np.float16 and not np.isnan(flat[number]).any():
                why = "has values beyond 65504, the largest of float16; use dtype float32"
            else:
                why = "has values that are NaN or infinite: look at the weights and the image"
            found.setdefault(int(number), f"level {name} {why}.")
    return found
