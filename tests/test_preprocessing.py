"""The one documented resize, against results made by hand and from the definition."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from trunkline import images
from trunkline.errors import ConfigError, ImageError, InputError
from trunkline.images import IMAGENET, Preprocessing, load_images, pixels, preprocess
from trunkline.preprocessing import INTERPOLATIONS

PLAIN = dataclasses.replace(
    IMAGENET, resize=None, crop=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
)

PADDED = dataclasses.replace(PLAIN, pad_to_multiple=32)


def saved(image: Image.Image, path: Path) -> Path:
    image.save(path)
    return path


def triangle(source: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """Antialiased bilinear resize of the first axis, from its definition."""
    scale = source.shape[0] / size
    support = max(scale, 1.0)
    out = np.zeros((size, *source.shape[1:]))
    for i in range(size):
        centre = (i + 0.5) * scale
        near = np.arange(source.shape[0])
        weight = np.clip(1 - np.abs(near + 0.5 - centre) / support, 0, None)
        out[i] = np.tensordot(weight / weight.sum(), source, axes=(0, 0))
    return out


@pytest.mark.parametrize("size", [(31, 47), (47, 31), (9, 21)])
def test_preprocess_equals_numpy_from_the_definition(size: tuple[int, int]) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    rule = dataclasses.replace(IMAGENET, resize=16, crop=(14, 14))
    height, width = size
    short = min(size)
    new_h, new_w = int(16 * height / short), int(16 * width / short)
    wide = triangle(photo.astype(np.float64).swapaxes(0, 1), new_w).swapaxes(0, 1)
    resized = triangle(wide, new_h)
    top, left = round((new_h - 14) / 2), round((new_w - 14) / 2)
    cropped = resized[top : top + 14, left : left + 14] / 255
    expected = ((cropped - IMAGENET.mean) / IMAGENET.std).transpose(2, 0, 1)
    actual = preprocess(Image.fromarray(photo), rule)
    assert actual.shape == (3, 14, 14)
    assert actual.dtype == torch.float32
    assert actual.is_contiguous()
    # Pillow rounds to 8 bits after each of its two passes: at most 1 level, over the least std.
    assert np.abs(actual.numpy() - expected).max() <= 1.01 / 255 / min(IMAGENET.std)


def test_normalisation_by_hand() -> None:
    image = Image.new("RGB", (1, 1), (255, 0, 51))
    rule = dataclasses.replace(PLAIN, mean=(0.5, 0.25, 0.1), std=(0.5, 0.5, 0.1))
    assert preprocess(image, rule).flatten().tolist() == pytest.approx([1.0, -0.5, 1.0])


def test_bgr_0_to_255_as_caffe_has_it() -> None:
    image = Image.new("RGB", (1, 1), (10, 20, 30))
    rule = dataclasses.replace(
        PLAIN, value_range="0..255", channel_order="BGR", mean=(3.0, 2.0, 1.0), std=(1.0, 2.0, 3.0)
    )
    assert preprocess(image, rule).flatten().tolist() == pytest.approx([27.0, 9.0, 3.0])


def test_interpolation_reaches_pillow() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    for name in map(str.upper, INTERPOLATIONS):
        interpolation: Any = name.lower()
        rule = dataclasses.replace(
            PLAIN, resize=8, interpolation=interpolation, value_range="0..255"
        )
        expected = Image.fromarray(photo).resize((8, 8), Image.Resampling[name])
        actual = preprocess(Image.fromarray(photo), rule).permute(1, 2, 0)
        assert (actual.numpy() == np.asarray(expected)).all()


def test_crop_offset_rounds_half_to_even_as_torchvision_does() -> None:
    row = Image.fromarray(np.arange(9, dtype=np.uint8)[None].repeat(3, 0))
    rule = dataclasses.replace(PLAIN, value_range="0..255")
    for width, first in ((9, 0), (8, 0), (7, 1), (6, 2), (4, 2), (2, 4)):
        cropped = preprocess(row, dataclasses.replace(rule, crop=(3, width)))
        assert cropped[0, 0].tolist() == list(range(first, first + width))


# One white pixel column (or row) after the other: how much black a crop puts before and behind.
BORDERS = {  # (size of the picture, of the crop): black before, black behind
    (1, 2): (0, 1),
    (1, 3): (1, 1),
    (1, 4): (1, 2),
    (2, 3): (0, 1),
    (2, 4): (1, 1),
    (2, 7): (2, 3),
    (3, 4): (0, 1),
    (3, 5): (1, 1),
    (3, 8): (2, 3),
    (4, 4): (0, 0),
}


@pytest.mark.parametrize(("height", "crop_h"), BORDERS)
@pytest.mark.parametrize(("width", "crop_w"), BORDERS)
def test_crop_larger_than_the_picture_has_it_in_its_middle(
    height: int, crop_h: int, width: int, crop_w: int
) -> None:
    photo = np.arange(1, 1 + height * width, dtype=np.uint8).reshape(height, width)
    rule = dataclasses.replace(PLAIN, crop=(crop_h, crop_w), value_range="0..255")
    expected = np.pad(photo, (BORDERS[height, crop_h], BORDERS[width, crop_w]))
    assert pixels(Image.fromarray(photo), rule)[..., 0].tolist() == expected.tolist()
    assert preprocess(Image.fromarray(photo), rule)[2].tolist() == expected.tolist()


def test_crop_larger_on_one_side_and_smaller_on_the_other_by_hand() -> None:
    photo = np.array([[1, 2, 3, 4, 5]], dtype=np.uint8)
    rule = dataclasses.replace(PLAIN, crop=(4, 2))  # offset 1.5 is rounded to 2
    assert pixels(Image.fromarray(photo), rule)[..., 0].tolist() == [[0, 0], [3, 4], [0, 0], [0, 0]]


def test_crop_beyond_the_image_is_black_before_normalisation() -> None:
    white = Image.new("RGB", (1, 4), "white")
    rule = dataclasses.replace(PLAIN, crop=(2, 4), mean=(0.5, 0.5, 0.5))
    assert preprocess(white, rule)[0].tolist() == [[-0.5, 0.5, -0.5, -0.5]] * 2


@pytest.mark.parametrize(
    ("rule", "inner", "outer"),
    [
        (IMAGENET.with_size(None), (21, 30), (32, 32)),
        (IMAGENET.with_size((33, 64)), (33, 64), (64, 64)),
        (dataclasses.replace(IMAGENET, resize=42, crop=None), (42, 60), (64, 64)),
        (IMAGENET.with_size(20), (20, 20), (32, 32)),
    ],
    ids=["keep", "warp", "shorter side", "crop"],
)
def test_padding_is_black_before_normalisation_at_the_right_and_the_bottom(
    rule: Preprocessing, inner: tuple[int, int], outer: tuple[int, int]
) -> None:
    photo = np.random.default_rng(0).integers(1, 256, (21, 30, 3), dtype=np.uint8)
    image, (height, width) = Image.fromarray(photo), inner
    padded = dataclasses.replace(rule, pad_to_multiple=32)
    values = pixels(image, padded)
    assert values.shape == (*outer, 3)
    assert (values[:height, :width] == pixels(image, rule)).all()
    assert not values[height:].any()
    assert not values[:, width:].any()
    tensor = preprocess(image, padded)
    assert torch.equal(tensor[:, :height, :width], preprocess(image, rule))
    black = torch.tensor([-m / s for m, s in zip(rule.mean, rule.std, strict=True)])
    outside = torch.cat([tensor[:, height:].flatten(1), tensor[:, :, width:].flatten(1)], 1)
    assert torch.allclose(outside, black[:, None].expand_as(outside))


def test_what_is_a_multiple_already_is_not_padded() -> None:
    rule = dataclasses.replace(PLAIN, pad_to_multiple=8)
    assert pixels(Image.new("RGB", (16, 8)), rule).shape == (8, 16, 3)
    assert pixels(Image.new("RGB", (17, 9)), rule).shape == (16, 24, 3)


def test_padding_of_thin_photos_has_a_limit() -> None:
    rule = dataclasses.replace(PLAIN, pad_to_multiple=4096)
    with pytest.raises(
        ImageError, match=r"90000x1 would be 90112x4096 with pad_to_multiple=4096: .*at most"
    ):
        pixels(Image.new("RGB", (90_000, 1)), rule)


def test_limit_of_padding_is_of_what_it_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = dataclasses.replace(PLAIN, pad_to_multiple=8)  # 10×9 becomes 16×16: 166 more
    monkeypatch.setattr(images, "MAX_PIXELS", 166)
    assert pixels(Image.new("RGB", (9, 10)), rule).shape == (16, 16, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 165)
    with pytest.raises(ImageError, match="padding may add at most 165 pixels"):
        pixels(Image.new("RGB", (9, 10)), rule)


def test_limit_of_a_resize_is_the_largest_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = dataclasses.replace(PLAIN, resize=4)  # 2×3 becomes 4×6
    monkeypatch.setattr(images, "MAX_PIXELS", 24)
    assert pixels(Image.new("RGB", (3, 2)), rule).shape == (4, 6, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 23)
    with pytest.raises(ImageError, match="above the limit of 23 pixels"):
        pixels(Image.new("RGB", (3, 2)), rule)


def test_warp_ignores_the_aspect_ratio() -> None:
    rule = dataclasses.replace(IMAGENET, resize=(5, 7), crop=None)
    assert preprocess(Image.new("RGB", (30, 10)), rule).shape == (3, 5, 7)


@pytest.mark.parametrize(
    ("height", "width"), [(300, 451), (451, 300), (1, 3), (97, 97), (500, 333)]
)
@pytest.mark.parametrize("resize", [None, 17, (12, 9)])
@pytest.mark.parametrize("crop", [None, (14, 10)])
@pytest.mark.parametrize("multiple", [None, 1, 8])
def test_output_size_is_known_beforehand(
    height: int, width: int, resize: Any, crop: Any, multiple: int | None
) -> None:
    rule = dataclasses.replace(IMAGENET, resize=resize, crop=crop, pad_to_multiple=multiple)
    actual = preprocess(Image.new("RGB", (width, height)), rule)
    assert rule.output_size(height, width) == tuple(actual.shape[1:])


@pytest.mark.parametrize(
    ("size", "resize", "crop"),
    [(224, 256, (224, 224)), (448, 512, (448, 448)), (1, 1, (1, 1))],
)
def test_with_size_keeps_the_ratio_of_resize_and_crop(
    size: int, resize: int, crop: tuple[int, int]
) -> None:
    sized = IMAGENET.with_size(size)
    assert (sized.resize, sized.crop) == (resize, crop)


def test_with_size_of_other_kinds() -> None:
    wide = dataclasses.replace(IMAGENET, crop=(224, 128))  # of which the shorter side counts
    assert (wide.with_size(64).resize, wide.with_size(64).crop) == (128, (64, 64))
    warp = IMAGENET.with_size((3, 5))
    assert (warp.resize, warp.crop) == ((3, 5), None)
    assert warp.with_size(7).resize == (7, 7)
    original = IMAGENET.with_size(None)
    assert original.output_size(11, 13) == (11, 13)
    assert original.with_size(8).crop == (8, 8)
    padded = dataclasses.replace(IMAGENET, pad_to_multiple=32)
    assert padded.with_size(None).pad_to_multiple == 32
    for exact in (padded.with_size(40), padded.with_size((40, 50)), warp.with_size(40)):
        assert exact.pad_to_multiple is None  # that size, and no other
    for wrong in (0, -3, True, (0, 4), (4,), 1.5):
        size: Any = wrong
        with pytest.raises(ConfigError, match=r"is no size; use a positive integer"):
            IMAGENET.with_size(size)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("resize", 0, r"resize=0 is no size; use a positive integer \(shorter side\)"),
        ("resize", (3, 0), r"resize=\(3, 0\) is no size"),
        ("crop", 224, r"crop=224 is no size; use a pair \(H, W\)"),
        ("pad_to_multiple", 0, r"pad_to_multiple=0 is no multiple; use a positive integer such as"),
        ("pad_to_multiple", True, r"pad_to_multiple=True is no multiple"),
        ("pad_to_multiple", 32.0, r"pad_to_multiple=32.0 is no multiple"),
        ("interpolation", "cubic", r"interpolation='cubic' is unknown; use one of .*bicubic"),
        ("value_range", "-1..1", r"value_range='-1..1' is unknown; use one of 0..1, 0..255"),
        ("channel_order", "GBR", r"channel_order='GBR' is unknown; use one of RGB, BGR"),
        ("mean", (0.5, 0.5), r"mean has 2 numbers and std 3; give one of each per channel"),
        ("mean", (0.5, 0.5, float("nan")), r"must be a tuple of finite numbers"),
        ("std", (1.0, 0.0, 1.0), r"std=\(1.0, 0.0, 1.0\) must be positive"),
        ("std", (1.0, 1e-50, 1.0), r"must be positive, from 1e-06 to 1e\+06; 1.0 leaves"),
        ("std", (1.0, True, 1.0), r"std=\(1.0, True, 1.0\) must be a tuple of finite"),
        ("mean", (10**400, 0, 0), r"mean=\(<an integer of 1329 bits>, 0, 0\) must be a tuple"),
        ("mean", (), r"mean=\(\) must be a tuple of finite numbers, one per channel"),
        ("mean", [0.5, 0.5, 0.5], r"must be a tuple of finite numbers"),
        ("interpolation", {"a": "b" * 9999}, r"interpolation=\{.*\.\.\..*\} is unknown"),
        ("mean", (123.7, 116.3, 103.5), r"lies outside value_range='0..1'; give the mean on"),
        ("mean", (0.0, 1.1, 0.0), r"lies outside value_range='0..1'; give the mean on"),
        ("mean", (0.5, 0.5, -0.1), r"lies outside value_range='0..1'; give the mean on"),
        ("std", (1.0, 1.0, 1.1e6), r"must be positive, from 1e-06 to 1e\+06; 1.0 leaves"),
    ],
)
def test_preprocessing_is_checked_when_it_is_made(field: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(IMAGENET, **{field: value})


@pytest.mark.parametrize("rule", [IMAGENET, IMAGENET.with_size((3, 4)), PLAIN, PADDED])
def test_preprocessing_survives_json(rule: Preprocessing) -> None:
    assert Preprocessing.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule


def test_numbers_at_the_ends_of_their_ranges_are_allowed() -> None:
    for mean, value_range in (((0.0, 0.5, 1.0), "0..1"), ((0.0, 100, 255.0), "0..255")):
        change: Any = {"mean": mean, "value_range": value_range, "std": (1e-6, 1.0, 1e6)}
        assert dataclasses.replace(IMAGENET, **change).mean == mean


def test_preprocessing_from_dict_is_strict() -> None:
    fields = IMAGENET.to_dict()
    with pytest.raises(ConfigError, match=r"unknown fields \['size'\] and lacks \[\]; give"):
        Preprocessing.from_dict({**fields, "size": 3})
    del fields["pad_to_multiple"]  # as versions without padding wrote it
    assert Preprocessing.from_dict(fields) == IMAGENET
    del fields["mean"]
    with pytest.raises(ConfigError, match=r"unknown fields \[\] and lacks \['mean'\]"):
        Preprocessing.from_dict(fields)


def test_describe_names_every_step() -> None:
    assert IMAGENET.describe() == ("shorter side 256 (bilinear), centre crop 224x224, RGB in 0..1")
    assert IMAGENET.with_size((3, 4)).describe() == "warp to 3x4 (bilinear), RGB in 0..1"
    assert PLAIN.describe() == "no resize, RGB in 0..1"
    assert PADDED.describe() == "no resize, padded to multiples of 32, RGB in 0..1"


def test_load_images_keeps_the_order(tmp_path: Path) -> None:
    paths = [
        saved(Image.new("RGB", (9, 6 + i), (60 * i, 0, 0)), tmp_path / f"{i}.png")
        for i in (2, 0, 1)
    ]
    rule = dataclasses.replace(PLAIN, resize=(4, 4), value_range="0..255")
    batch = load_images(paths, rule)
    assert batch.shape == (3, 3, 4, 4)
    assert batch[:, 0, 0, 0].tolist() == [120, 0, 60]


def test_load_images_refuses_what_makes_no_batch(tmp_path: Path) -> None:
    paths = [saved(Image.new("L", (9, 6 + i)), tmp_path / f"{i}.png") for i in (0, 1)]
    with pytest.raises(InputError, match=r"image 0 is 6x9 and image 1 is 7x9.*makes them equal"):
        load_images(paths, PLAIN)
    with pytest.raises(InputError, match=r"there is no image in the list; give at least one"):
        load_images([])
    with pytest.raises(InputError, match=r"put a single one into a list"):
        load_images(str(paths[0]))


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("value_range", ["0..1", "0..255"])
def test_normalising_the_pixels_gives_what_preprocess_gives(order: Any, value_range: Any) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (31, 47, 3), dtype=np.uint8)
    rule = dataclasses.replace(
        IMAGENET, resize=16, crop=(14, 18), channel_order=order, value_range=value_range
    )
    resized = pixels(Image.fromarray(photo), rule)
    assert resized.shape == (14, 18, 3)
    assert resized.dtype == np.uint8
    assert resized.flags.c_contiguous
    assert resized.flags.writeable
    ordered = resized[..., ::-1] if order == "BGR" else resized
    values = ordered.astype(np.float32) / np.float32(255 if value_range == "0..1" else 1)
    mean, std = (np.array(v, dtype=np.float32) for v in (rule.mean, rule.std))
    expected = (values - mean) / std
    actual = preprocess(Image.fromarray(photo), rule).numpy()
    assert np.array_equal(actual, expected.transpose(2, 0, 1))


def test_pixels_are_those_of_the_picture_where_nothing_is_resized() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    reversed_ = dataclasses.replace(PLAIN, channel_order="BGR")
    assert np.array_equal(pixels(Image.fromarray(photo), PLAIN), photo)
    assert np.array_equal(pixels(Image.fromarray(photo), reversed_), photo)  # always RGB


def test_pixels_refuses_what_preprocess_refuses() -> None:
    photo: Any = np.zeros((5, 7, 3), dtype=np.uint8)
    with pytest.raises(ImageError, match=r"pixels takes a Pillow image, got ndarray; decode_image"):
        pixels(photo)
    with pytest.raises(ImageError, match=r"the given image has no pixels: 0x5"):
        pixels(Image.new("RGB", (0, 5)))


def test_photos_are_decoded_and_resized_without_pytorch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from PIL import Image; "
        "from trunkline.images import decode_image, pixels; "
        "print(pixels(decode_image(Image.new('L', (300, 280)))).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("(224, 224, 3)\n", "")


def test_bgr_is_for_three_channels() -> None:
    with pytest.raises(
        ConfigError, match=r"channel_order='BGR' is for three channels, and mean ha"
    ):
        dataclasses.replace(PLAIN, channel_order="BGR", mean=(0.5,), std=(0.5,))
