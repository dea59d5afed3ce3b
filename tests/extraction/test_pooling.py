"""Poolings are what PyTorch computes by its own words, and lengths are 1."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from trunkline.errors import ConfigError
from trunkline.extraction.pooling import check_pool, pooled, unit_length


@pytest.fixture
def maps() -> np.ndarray:
    """(3, 5, 4, 6) float32 of both signs."""
    return np.random.default_rng(0).normal(size=(3, 5, 4, 6)).astype(np.float32)


def test_poolings(maps: np.ndarray) -> None:
    tensor = torch.from_numpy(maps)
    expected = {
        "avg": functional.adaptive_avg_pool2d(tensor, 1).flatten(1),
        "max": functional.adaptive_max_pool2d(tensor, 1).flatten(1),
        "gem": tensor.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3),
        "none": tensor,
    }
    for name, values in expected.items():
        found = pooled(maps, check_pool(name))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, values.numpy(), rtol=1e-5, atol=1e-6)


def test_gem_of_what_is_negative_everywhere() -> None:
    found = pooled(np.full((1, 2, 3, 3), -5, np.float32), "gem")
    np.testing.assert_allclose(found, 1e-6, rtol=1e-5)


def test_lengths(maps: np.ndarray) -> None:
    for pool in ("avg", "max", "gem", "none"):
        found = pooled(maps, check_pool(pool), normalize=True)
        assert found.shape == pooled(maps, check_pool(pool)).shape
        lengths = np.linalg.norm(found.reshape(3, -1).astype(np.float64), axis=1)
        np.testing.assert_allclose(lengths, 1, rtol=1e-6)
    assert not unit_length(np.zeros((2, 4), np.float32)).any()
    huge = unit_length(np.full((1, 4), 1e30, np.float32))
    np.testing.assert_allclose(huge, 0.5, rtol=1e-6)


def test_the_input_stays(maps: np.ndarray) -> None:
    before = maps.copy()
    for pool in ("avg", "max", "gem", "none"):
        pooled(maps, check_pool(pool), normalize=True)
    np.testing.assert_array_equal(maps, before)


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match=r"pool='rmac' is unknown; use one of avg, max, gem, no"):
        check_pool("rmac")
