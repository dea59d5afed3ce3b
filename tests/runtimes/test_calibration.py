"""What users may give as calibration images, and what the graph gets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from trunkline import Backbone, ResNet
from trunkline.backbones.resnet import ResNetConfig
from trunkline.errors import ConfigError, ImageError, InputError
from trunkline.images import IMAGENET, decode_image, pixels, preprocess
from trunkline.runtimes.calibration import calibration_batches

TINY = ResNetConfig(depths=(1, 1, 1, 1), bottleneck=False, width=8)
SMALL = dataclasses.replace(IMAGENET, resize=20, crop=(16, 16), mean=(0.1, 0.2, 0.3))


@pytest.fixture
def backbone() -> Backbone:
    tiny = ResNet(TINY)
    tiny.preprocessing = SMALL
    return tiny


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Five photos of as many colours, sizes and kinds, some in a subfolder."""
    random = np.random.default_rng(0)
    names = ("a.png", "b.JPG", "c.bmp", "deeper/d.webp", "deeper/still/e.tiff")
    paths = [tmp_path / "photos" / name for name in names]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        values = random.integers(0, 256, (24 + number, 30, 3), dtype=np.uint8)
        Image.fromarray(values).save(path, format="JPEG" if path.suffix == ".JPG" else None)
    (tmp_path / "photos" / "readme.txt").write_text("no photo")
    return paths


def test_folder_gives_all_its_photos_in_order(backbone: Backbone, photos: list[Path]) -> None:
    for folder in (photos[0].parent, str(photos[0].parent)):
        batches = calibration_batches(folder, backbone)
        assert len(batches) == 5
        for batch, path in zip(batches, photos, strict=True):
            assert batch.dtype == np.float32
            assert np.array_equal(batch, preprocess(decode_image(path), SMALL)[None].numpy())


@pytest.mark.parametrize(
    "given",
    [
        lambda path: path,
        str,
        Path.read_bytes,
        decode_image,
    ],
    ids=["path", "text", "bytes", "Pillow"],
)
def test_list_of_photos(
    backbone: Backbone, photos: list[Path], given: Callable[[Path], Any]
) -> None:
    wanted = calibration_batches(photos[0].parent, backbone)
    sources = [given(path) for path in photos]
    for listed in (sources, tuple(sources), iter(sources)):
        batches = calibration_batches(listed, backbone)
        assert all(map(np.array_equal, batches, wanted))
        assert len(batches) == len(wanted)


def test_graph_that_normalises_gets_pixels(backbone: Backbone, photos: list[Path]) -> None:
    batches = calibration_batches(photos, backbone, preprocess=True)
    for batch, path in zip(batches, photos, strict=True):
        assert batch.dtype == np.uint8
        assert np.array_equal(batch[0], pixels(decode_image(path), SMALL))


def test_weights_that_do_not_say_get_imagenet(photos: list[Path]) -> None:
    (batch,) = calibration_batches(photos[:1], ResNet(TINY))
    assert np.array_equal(batch, preprocess(decode_image(photos[0]), IMAGENET)[None].numpy())


@pytest.mark.parametrize("preprocess", [False, True])
def test_fixed_shape_warps_and_fills_the_last_batch(
    backbone: Backbone, photos: list[Path], preprocess: bool
) -> None:
    batches = calibration_batches(photos, backbone, preprocess=preprocess, input_shape=(2, 12, 18))
    single = calibration_batches(photos, backbone, preprocess=preprocess, input_shape=(1, 12, 18))
    assert [batch.shape for batch in batches] == [
        (2, 12, 18, 3) if preprocess else (2, 3, 12, 18)
    ] * 3
    flat = np.concatenate(batches)
    assert np.array_equal(flat, np.concatenate([*single, single[0]]))  # none is left out


def test_fixed_shape_keeps_the_interpolation_and_the_numbers(
    backbone: Backbone, photos: list[Path]
) -> None:
    (batch,) = calibration_batches(photos[:1], backbone, input_shape=(1, 12, 18))
    rule = dataclasses.replace(SMALL, resize=(12, 18), crop=None)
    assert np.array_equal(batch[0], preprocess(decode_image(photos[0]), rule).numpy())


def numbered(count: int, dtype: type = np.float32) -> NDArray[Any]:
    """Images (3, 4, 5), each of one value: its number."""
    shape = (count, 3, 4, 5) if dtype != np.uint8 else (count, 4, 5, 3)
    return np.broadcast_to(np.arange(count).reshape(-1, 1, 1, 1), shape).astype(dtype)


def numbers(batches: list[NDArray[Any]]) -> list[float]:
    return [float(image.max()) for batch in batches for image in batch]


@pytest.mark.parametrize("make", [lambda a: a, torch.from_numpy], ids=["numpy", "torch"])
def test_arrays_are_taken_as_they_are(backbone: Backbone, make: Callable[..., Any]) -> None:
    whole = numbered(7)
    ways: list[Any] = [
        make(whole),
        [make(whole[:3]), make(whole[3:])],
        (make(whole[i : i + 2]) for i in range(0, 7, 2)),
    ]
    for way in ways:
        batches = calibration_batches(way, backbone)
        assert [batch.shape for batch in batches] == [(1, 3, 4, 5)] * 7
        assert np.array_equal(np.concatenate(batches), whole)
    batches = calibration_batches(make(whole), backbone, input_shape=(3, 4, 5))
    assert numbers(batches) == [0, 1, 2, 3, 4, 5, 6, 0, 1]
    pictures = make(numbered(2, np.uint8))
    assert numbers(calibration_batches(pictures, backbone, preprocess=True)) == [0, 1]


def test_tensor_that_takes_gradients_is_taken(backbone: Backbone) -> None:
    images = torch.zeros(1, 3, 4, 5, requires_grad=True)
    assert calibration_batches(images, backbone)[0].shape == (1, 3, 4, 5)


def test_batches_of_several_sizes_are_taken_where_any_size_is(backbone: Backbone) -> None:
    given = [np.zeros((2, 3, 4, 5), np.float32), np.zeros((1, 3, 9, 7), np.float32)]
    shapes = [batch.shape for batch in calibration_batches(given, backbone)]
    assert shapes == [(1, 3, 4, 5), (1, 3, 4, 5), (1, 3, 9, 7)]


def test_other_channel_counts_come_as_arrays(photos: list[Path]) -> None:
    five = ResNet(TINY, in_channels=5)
    assert len(calibration_batches(np.zeros((2, 5, 8, 8), np.float32), five)) == 2
    with pytest.raises(
        InputError,
        match=r"takes 5 channels, and a photo has 3; give calibration= an array float32 "
        r"\(N, 5, H, W\)",
    ):
        calibration_batches(photos, five)


def test_limit_spreads_over_what_has_a_length_and_stops_an_iterator(
    backbone: Backbone, photos: list[Path]
) -> None:
    every = calibration_batches(photos, backbone)
    spread = calibration_batches(photos[0].parent, backbone, limit=2)
    assert np.array_equal(spread, [every[0], every[2]])
    assert numbers(calibration_batches(numbered(9), backbone, limit=3)) == [0, 3, 6]

    def endless() -> Iterator[NDArray[Any]]:
        while True:
            yield numbered(2)

    assert numbers(calibration_batches(endless(), backbone, limit=3)) == [0, 1, 0]
    batches = calibration_batches(photos, backbone, limit=9)
    assert len(batches) == 5


def test_no_calibration_asks_for_images(backbone: Backbone) -> None:
    with pytest.raises(
        ConfigError,
        match=r"precision='int8' needs calibration images, got none; give calibration= a folder",
    ):
        calibration_batches(None, backbone)


def test_limit_counts(backbone: Backbone) -> None:
    with pytest.raises(ConfigError, match=r"limit=0 must be a positive integer, such as 300"):
        calibration_batches(numbered(1), backbone, limit=0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (5, r"calibration is one int; give a folder of photos, a list of paths"),
        (b"bytes", r"calibration is one bytes; give a folder"),
        (Image.new("RGB", (4, 4)), r"calibration is one Image; give a folder"),
    ],
)
def test_what_is_no_collection_is_refused(backbone: Backbone, given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        calibration_batches(given, backbone)


def test_folder_without_photos(backbone: Backbone, tmp_path: Path, photos: list[Path]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "note.txt").write_text("no photo")
    with pytest.raises(ImageError, match=r"empty' holds no photo, nor do its subfolders; .*\.bmp"):
        calibration_batches(tmp_path / "empty", backbone)
    with pytest.raises(ImageError, match=r"absent' does not exist; give a folder of photos, or a"):
        calibration_batches(tmp_path / "absent", backbone)
    with pytest.raises(ImageError, match=r"a\.png' is a file; give a folder of photos, or a list"):
        calibration_batches(photos[0], backbone)


def test_photo_that_cannot_be_read_is_named_and_not_skipped(
    backbone: Backbone, photos: list[Path]
) -> None:
    photos[3].write_bytes(photos[3].read_bytes()[:40])
    with pytest.raises(ImageError, match=r"calibration image 3: .*deeper.d\.webp is "):
        calibration_batches(photos[0].parent, backbone)
    with pytest.raises(ImageError, match=r"calibration image 1: .*none\.png does not exist; check"):
        calibration_batches([photos[0], "none.png"], backbone)
    mixed: Any = [photos[0], numbered(1)]
    with pytest.raises(ImageError, match=r"calibration image 1: .*got ndarray"):
        calibration_batches(mixed, backbone)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (
            numbered(1, np.float64),
            {},
            r"batch float64 \(1, 3, 4, 5\), and the graph takes float32 \(N, 3, H, W\); convert",
        ),
        (torch.zeros(1, 3, 4, 5, dtype=torch.bfloat16), {}, r"a batch bfloat16 \(1, 3, 4, 5\)"),
        (numbered(1)[0], {}, r"a batch float32 \(3, 4, 5\), and"),
        (np.zeros((1, 4, 4, 5), np.float32), {}, r"a batch float32 \(1, 4, 4, 5\), and"),
        (np.zeros((1, 3, 0, 5), np.float32), {}, r"a batch float32 \(1, 3, 0, 5\), and"),
        (
            numbered(1),
            {"input_shape": (1, 5, 4)},
            r"batch float32 \(1, 3, 4, 5\), and the graph takes float32 \(N, 3, 5, 4\)",
        ),
        (
            numbered(1),
            {"preprocess": True},
            r"batch float32 \(1, 3, 4, 5\), and the graph takes uint8 \(N, H, W, 3\)",
        ),
        (
            numbered(1, np.uint8),
            {"preprocess": True, "input_shape": (1, 9, 5)},
            r"batch uint8 \(1, 4, 5, 3\), and the graph takes uint8 \(N, 9, 5, 3\)",
        ),
        (numbered(1) * np.float32("nan"), {}, r"not finite; no range can be picked from them"),
        (numbered(0), {}, r"calibration has no image; give at least one, better 300"),
        ([], {}, r"calibration has no image; give at least one"),
        ([numbered(1), "a.png"], {}, r"has a str among its arrays; each must be a batch float32"),
        (
            numbered(3),
            {"input_shape": (4, 4, 5)},
            r"has 3 images, and input_shape asks for batches of 4; give at least that many",
        ),
    ],
)
def test_arrays_of_another_form_are_refused(
    backbone: Backbone, given: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        calibration_batches(given, backbone, **options)


def test_loader_of_batches(backbone: Backbone) -> None:
    images = torch.from_numpy(numbered(5))
    loader: Any = DataLoader(images, batch_size=2)  # type: ignore[arg-type]
    assert numbers(calibration_batches(loader, backbone)) == [0, 1, 2, 3, 4]
    labelled: Any = DataLoader(TensorDataset(images, torch.arange(5)), batch_size=2)
    with pytest.raises(ImageError, match=r"calibration image 0: an image is a path, .*got list"):
        calibration_batches(labelled, backbone)
