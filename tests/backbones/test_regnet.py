"""RegNet: the widths of the paper's formula, against a second reading of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trunkline.backbones.regnet import VARIANTS, RegNetConfig
from trunkline.errors import ConfigError


def second_reading(
    depth: int, w_0: int, w_a: float, w_m: float, group: int
) -> tuple[list[int], list[int]]:
    """Return widths and depths by equations 2 to 4, on arrays, with groups as pycls fits them."""
    line = w_0 + w_a * np.arange(depth)
    powers = np.round(np.log(line / w_0) / np.log(w_m))
    quantized = (np.round(w_0 * w_m**powers / 8) * 8).astype(int)
    widths, depths = np.unique(quantized, return_counts=True)
    fitted = []
    for width in widths.tolist():
        fit = min(group, width)
        fitted.append(max(fit, round(width / fit) * fit))
    return fitted, depths.tolist()


@pytest.mark.parametrize("name", [name for name in VARIANTS if not name.endswith("-tv")])
def test_variants_follow_the_second_reading(name: str) -> None:
    c = VARIANTS[name]
    widths, depths = second_reading(
        c.depth, c.initial_width, c.width_slope, c.width_multiplier, c.group_width
    )
    assert list(c.stage_channels) == widths
    assert list(c.stage_depths) == depths
    assert sum(depths) == c.depth


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    depth=st.integers(4, 30),
    w_0=st.integers(1, 40).map(lambda n: 8 * n),
    w_a=st.floats(8.0, 120.0),
    w_m=st.floats(1.8, 3.0),
    group=st.integers(1, 400),
)
def test_any_four_numbers_follow_the_second_reading_or_are_refused(
    depth: int, w_0: int, w_a: float, w_m: float, group: int
) -> None:
    widths, depths = second_reading(depth, w_0, w_a, w_m, group)
    numbers = {
        "depth": depth,
        "initial_width": w_0,
        "width_slope": w_a,
        "width_multiplier": w_m,
        "group_width": group,
    }
    if len(widths) != 4:
        with pytest.raises(ConfigError, match=rf"these numbers give {len(widths)} stages"):
            RegNetConfig(**numbers)  # type: ignore[arg-type]
        return
    config = RegNetConfig(**numbers)  # type: ignore[arg-type]
    assert list(config.stage_channels) == widths
    assert list(config.stage_depths) == depths


@pytest.mark.parametrize(
    ("name", "paper", "torchvision"),
    [
        ("regnet-x-004", (32, 64, 160, 384), (32, 64, 160, 400)),
        ("regnet-y-008", (64, 128, 320, 768), (64, 144, 320, 784)),
        ("regnet-y-080", (168, 448, 896, 2016), (224, 448, 896, 2016)),
    ],
)
def test_torchvision_rounds_three_networks_otherwise(
    name: str, paper: tuple[int, ...], torchvision: tuple[int, ...]
) -> None:
    assert VARIANTS[name].stage_channels == paper
    assert VARIANTS[f"{name}-tv"].stage_channels == torchvision
    assert VARIANTS[name].stage_depths == VARIANTS[f"{name}-tv"].stage_depths


def test_a_stage_narrower_than_a_group_is_one_group() -> None:
    # regnet-x-080: groups of 120 channels, a first stage of 80 that stays as it is
    assert VARIANTS["regnet-x-080"].group_width == 120
    assert VARIANTS["regnet-x-080"].stage_channels == (80, 240, 720, 1920)


def test_too_few_stages_say_how_many_and_what_to_change() -> None:
    with pytest.raises(
        ConfigError, match=r"give 1 stages, of widths \[8\]; a backbone has four\. More depth"
    ):
        RegNetConfig(depth=8, initial_width=8, width_slope=0.0, width_multiplier=2.0, group_width=8)
