"""Whether two ways to compute the same maps agree, level by level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.backbones.levels import Level
from trunkline.errors import FidelityError

PRECISIONS = ("fp32", "bf16", "int8")

# What each precision promises: a largest difference, as a share of the largest value of the map,
# or a cosine where rounding is coarser than any such bound.
MAX_RELATIVE: Mapping[str, float] = {"fp32": 1e-4}
MIN_COSINE: Mapping[str, float] = {"fp32": 0.999999, "bf16": 0.999, "int8": 0.99}


@dataclass(frozen=True)
class LevelFidelity:
    """How far one map is from the backbone's own.

    Attributes:
        level: Name of the level.
        stride: Of the level, in pixels.
        max_relative: Largest absolute difference over the largest absolute value of the reference.
        cosine: Of the angle between both maps as vectors; 1 for equal direction.
    """

    level: str
    stride: int
    max_relative: float
    cosine: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return asdict(self)


def compare_maps(
    levels: Sequence[Level],
    reference: Sequence[NDArray[np.float32]],
    candidate: Sequence[NDArray[np.float32]],
) -> tuple[LevelFidelity, ...]:
    """Compare maps level by level, in float64.

    Raises:
        FidelityError: Another number of maps, another shape, or values that are not finite, on
            either side: engines differ in what they make of those.
    """
    if not len(levels) == len(reference) == len(candidate):
        raise FidelityError(
            f"{len(candidate)} maps came back where the backbone returns {len(reference)}; "
            "this is a fault of the conversion, please report it with the command."
        )
    return tuple(_compare(*three) for three in zip(levels, reference, candidate, strict=True))


def _compare(
    level: Level, reference: NDArray[np.float32], candidate: NDArray[np.float32]
) -> LevelFidelity:
    if reference.shape != candidate.shape:
        raise FidelityError(
            f"{level.name} has shape {candidate.shape} where the backbone's is {reference.shape}; "
            "this is a fault of the conversion, please report it with the command."
        )
    if not (np.isfinite(reference).all() and np.isfinite(candidate).all()):
        raise FidelityError(
            f"{level.name} holds values that are not finite; check the weights, "
            "and whether the backbone's own map is finite for the same images."
        )
    wanted, got = reference.astype(np.float64).ravel(), candidate.astype(np.float64).ravel()
    largest = float(np.abs(wanted).max(initial=0.0)) or 1.0
    norms = float(np.linalg.norm(wanted) * np.linalg.norm(got))
    return LevelFidelity(
        level=level.name,
        stride=level.stride,
        max_relative=float(np.abs(wanted - got).max(initial=0.0)) / largest,
        # Two maps of zeros point the same way; one of zeros and another do not.
        cosine=float(wanted @ got) / norms if norms else float(not (wanted.any() or got.any())),
    )


def check_fidelity(report: Sequence[LevelFidelity], precision: str, what: str) -> None:
    """Refuse maps that are further from the backbone's than a precision promises.

    Args:
        report: Of ``compare_maps``.
        precision: One of ``PRECISIONS``.
        what: What computed the maps, the subject of the error's sentence.

    Raises:
        FidelityError: A level outside the bound.
    """
    for one in report:
        if one.max_relative > MAX_RELATIVE.get(precision, float("inf")) or (
            one.cosine < MIN_COSINE[precision]
        ):
            raise FidelityError(
                f"{what} differs from the backbone at {one.level} (stride {one.stride}): "
                f"relative difference {one.max_relative:.2g}, cosine {one.cosine:.6f}, where "
                f"{precision} promises {_promise(precision)}; use another runtime or precision."
            )


def _promise(precision: str) -> str:
    bounds = [f"cosine ≥ {MIN_COSINE[precision]}"]
    if precision in MAX_RELATIVE:
        bounds.insert(0, f"a relative difference ≤ {MAX_RELATIVE[precision]:g}")
    return " and ".join(bounds)
