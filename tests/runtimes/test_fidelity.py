"""Comparing maps, and refusing those that differ."""

from __future__ import annotations

import numpy as np
import pytest

from trunkline.backbones.levels import Level
from trunkline.errors import FidelityError
from trunkline.runtimes.fidelity import LevelFidelity, check_fidelity, compare_maps

LEVELS = (Level("stage0", 4, 2),)
REFERENCE = np.array([[[[4.0, 0.0], [0.0, 3.0]]]], np.float32)


def test_differences_are_relative_to_the_largest_value() -> None:
    other = REFERENCE + np.float32(0.5)
    (report,) = compare_maps(LEVELS, [REFERENCE], [other])
    assert report.max_relative == pytest.approx(0.125)
    assert report.cosine == pytest.approx(28.5 / 5 / np.linalg.norm(other))


def test_equal_maps_and_empty_ones() -> None:
    zeros = np.zeros((1, 2, 3, 3), np.float32)
    for one in (REFERENCE, zeros, zeros[:0]):
        (report,) = compare_maps(LEVELS, [one], [one.copy()])
        assert report.max_relative == 0.0
        assert report.cosine == pytest.approx(1.0)


def test_a_map_that_vanished_does_not_agree() -> None:
    (report,) = compare_maps(LEVELS, [REFERENCE], [np.zeros_like(REFERENCE)])
    assert (report.max_relative, report.cosine) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ([], r"0 maps came back where the backbone returns 1"),
        ([REFERENCE[..., :1]], r"stage0 has shape \(1, 1, 2, 1\) where the backbone's is"),
        ([np.full_like(REFERENCE, np.nan)], r"stage0 holds values that are not finite"),
        ([np.full_like(REFERENCE, np.inf)], r"not finite; check the weights"),
    ],
)
def test_maps_that_cannot_be_compared(maps: list[np.ndarray], message: str) -> None:
    with pytest.raises(FidelityError, match=message):
        compare_maps(LEVELS, [REFERENCE], maps)


@pytest.mark.parametrize(
    ("precision", "max_relative", "cosine", "is_kept"),
    [
        ("fp32", 1e-4, 1.0, True),
        ("fp32", 1.1e-4, 1.0, False),
        ("fp32", 1e-6, 0.9999, False),
        ("bf16", 0.5, 0.999, True),
        ("bf16", 1e-6, 0.9989, False),
        ("int8", 0.5, 0.99, True),
        ("int8", 0.5, 0.9899, False),
    ],
)
def test_what_each_precision_promises(
    precision: str, max_relative: float, cosine: float, is_kept: bool
) -> None:
    report = [LevelFidelity("stage0", 4, max_relative, cosine)]
    if is_kept:
        check_fidelity(report, precision, "the engine")
        return
    with pytest.raises(
        FidelityError, match=rf"the engine differs .* at stage0 \(stride 4\).*{precision} promises"
    ):
        check_fidelity(report, precision, "the engine")
