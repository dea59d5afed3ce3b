"""What a preprocessing may ask for: sizes and numbers of strangers, within memory and float32."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trunkline.errors import ConfigError, ImageError
from trunkline.images import IMAGENET, Preprocessing, normalised, pixels, preprocess


@pytest.mark.parametrize(
    "fields",
    [
        *({"crop": (20_000, 20_000)}, {"crop": (1, 2**26 + 1)}, {"resize": 8193, "crop": None}),
        *({"resize": (20_000, 20_000)}, {"resize": 20_000}, {"pad_to_multiple": 8193}),
        *({"crop": (8192, 8192), "pad_to_multiple": 5000}, {"resize": 10**5000}),
        *({"crop": (10**5000, 1)}, {"pad_to_multiple": 10**5000}, {"resize": (1, 10**400)}),
    ],
)
def test_sizes_that_would_take_gigabytes_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"make pictures of .*, above the limit of 67108864 pixe"):
        dataclasses.replace(IMAGENET, **fields)
    with pytest.raises(ConfigError, match="above the limit of 67108864 pixels"):
        IMAGENET.with_size((20_000, 20_000))
    with pytest.raises(ConfigError, match="above the limit of 67108864 pixels"):
        IMAGENET.with_size(20_000)


def test_largest_sizes_are_allowed() -> None:
    largest: Any = ({"crop": (8192, 8192)}, {"resize": 8192}, {"pad_to_multiple": 8192})
    for fields in largest:
        rule = dataclasses.replace(IMAGENET, **{"resize": None, "crop": None, **fields})
        assert rule.output_size(1, 1) == (8192, 8192)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=9,
)
VALUES = st.one_of(
    JSON,
    st.sampled_from([224, [224, 224], "0..1", "RGB", "bilinear", [0.5] * 3, [1e-300] * 3, 10**400]),
    st.lists(st.integers(-(10**20), 10**20) | st.floats(), min_size=2, max_size=3),
)
FIELDS = st.dictionaries(st.sampled_from([*IMAGENET.to_dict()]), VALUES, max_size=3)


@settings(max_examples=100, deadline=None)
@given(JSON | FIELDS.map(lambda changed: {**IMAGENET.to_dict(), **changed}))
def test_any_json_is_a_preprocessing_or_a_config_error(fields: Any) -> None:
    try:
        rule = Preprocessing.from_dict(fields)
    except ConfigError as refused:
        error = str(refused)
    else:
        error = ""
        assert_is_sound(rule)
    assert len(error) < 2000


def assert_is_sound(rule: Preprocessing) -> None:
    assert Preprocessing.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule
    assert np.prod(rule.output_size(1, 1), dtype=np.int64) <= 2**26
    values = normalised(np.full((1, 1, 1, 3), 255, np.uint8), rule)
    assert np.isfinite(values).all()


def test_bomb_that_only_the_resize_makes() -> None:
    with pytest.raises(ImageError, match=r"1x90000 would be 256x23040000 after resize=256"):
        preprocess(Image.new("RGB", (1, 90_000)))
    with pytest.raises(ImageError, match=r"60000x1 would be 15360000x256 after resize=256"):
        pixels(Image.new("RGB", (60_000, 1)))


def test_side_of_millions_of_pixels_is_refused() -> None:
    limit = 1 << 20
    rule = IMAGENET.with_size((2, 2))
    assert pixels(Image.new("RGB", (limit, 1)), rule).shape == (2, 2, 3)
    for size in ((limit + 1, 1), (1, limit + 1)):
        with pytest.raises(ImageError, match="and a side has at most 1048576 pixels; cut it into"):
            pixels(Image.new("RGB", size), rule)


@pytest.mark.parametrize("method", ["resize", "crop"])
def test_memory_that_does_not_suffice_is_an_image_error(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(Image.Image, method, failing)
    with pytest.raises(ImageError, match="an image of 9x5 needs more memory than there is; give a"):
        pixels(Image.new("RGB", (9, 5)))
