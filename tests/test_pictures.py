"""A ``Preprocessing`` is called with whatever a photo comes as."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from trunkline import create_backbone
from trunkline.errors import ConfigError, ImageError, InputError
from trunkline.images import decode_image, decode_photo, preprocess
from trunkline.preprocessing import IMAGENET, Preprocessing, assumed_for

SMALL = IMAGENET.with_size(33)


def noise(height: int = 40, width: int = 50, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(noise()).save(path)
    return path


class Photos(Dataset[torch.Tensor]):
    """A dataset as torchvision's are: its transform is called with a Pillow image."""

    def __init__(self, transform: Preprocessing) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.fromarray(noise(seed=index)))


def test_one_photo_of_every_kind_becomes_the_same_numbers(photo: Path) -> None:
    expected = preprocess(decode_image(photo), SMALL)
    array = noise()
    kinds = [
        *(photo, str(photo), photo.read_bytes(), bytearray(photo.read_bytes())),
        *(io.BytesIO(photo.read_bytes()), Image.open(photo), decode_photo(photo)),
        *(array, torch.from_numpy(array), np.asfortranarray(array), array[:, ::-1][:, ::-1]),
    ]
    for one in kinds:
        got = SMALL(one)
        assert got.dtype == torch.float32
        assert got.shape == (3, 33, 33)
        assert got.is_contiguous()
        assert torch.equal(got, expected)


def test_several_photos_become_a_batch(photo: Path) -> None:
    expected = torch.stack([preprocess(decode_image(photo), SMALL)] * 2)
    array = noise()
    for several in (
        [photo, array],
        (photo.read_bytes(), str(photo)),
        (one for one in (array, photo)),
        np.stack([array, array]),
        torch.from_numpy(np.stack([array, array])),
    ):
        assert torch.equal(SMALL(several), expected)
    assert SMALL([photo]).shape == (1, 3, 33, 33)


def test_grey_arrays_have_three_equal_channels() -> None:
    grey = SMALL.with_size(None)(noise()[..., 0])
    assert grey.shape == (3, 40, 50)
    values = grey * torch.tensor(SMALL.std).view(3, 1, 1) + torch.tensor(SMALL.mean).view(3, 1, 1)
    torch.testing.assert_close(values[0], values[2])


def test_size_is_that_of_with_size(photo: Path) -> None:
    for size in (20, (24, 48), None):
        assert torch.equal(IMAGENET(photo, size=size), IMAGENET.with_size(size)(photo))
    with pytest.raises(ConfigError, match="size=0 is no size"):
        IMAGENET(photo, size=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_it_is_the_transform_of_a_data_loader(workers: int) -> None:
    transform = pickle.loads(pickle.dumps(SMALL))  # noqa: S301 - as workers are handed it
    loader = DataLoader(
        Photos(transform),
        batch_size=2,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
    )
    batches = list(loader)
    assert [tuple(b.shape) for b in batches] == [(2, 3, 33, 33)] * 2 + [(1, 3, 33, 33)]
    assert torch.equal(batches[1][1], SMALL(noise(seed=3)))


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (3, InputError, r"the image is a int; give a path, the bytes"),
        (None, InputError, r"the image is a NoneType; give a path"),
        ([noise(), 3.5], InputError, r"image 1 is a float; give a path"),
        ([], InputError, r"there is no image in the list; give at least one"),
        (noise().astype(np.float32), InputError, r"array of float32, \(40, 50, 3\); give 8-bit"),
        (
            noise().transpose(2, 0, 1),
            InputError,
            r"array \(3, 40, 50\).*array.transpose\(1, 2, 0\)",
        ),
        (
            torch.zeros(3, 4, 5, dtype=torch.uint8),
            InputError,
            r"array \(3, 4, 5\).*tensor.permute\(1, 2, 0\)",
        ),
        (np.zeros((4, 5, 2), np.uint8), InputError, r"array \(4, 5, 2\); give \(H, W, 3\)"),
        (np.zeros((0, 5, 3), np.uint8), InputError, r"array \(0, 5, 3\); give \(H, W, 3\)"),
        ([np.zeros((2, 4, 5, 3), np.uint8)], InputError, r"image 0 is .*the batch itself"),
        (io.StringIO("a"), InputError, r"opened as text; open it with mode 'rb'"),
        (b"no photo", ImageError, r"an image of 8 bytes is no photo"),
        ("none.jpg", ImageError, r"none\.jpg does not exist"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_photo(images: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SMALL(images)


def test_photos_of_different_sizes_need_one_size() -> None:
    several = [noise(40, 50), noise(40, 60)]
    with pytest.raises(InputError, match=r"image 0 is 40x50 and image 1 is 40x60 .*size=N"):
        IMAGENET.with_size(None)(several)
    assert IMAGENET(several, size=(8, 9)).shape == (2, 3, 8, 9)


# What is assumed


def test_a_random_network_has_imagenets_preprocessing_and_nobody_stated_it() -> None:
    backbone = create_backbone("resnet18", return_idx=(0,))
    assert backbone.preprocessing == IMAGENET
    assert backbone.stated_preprocessing is None
    backbone.preprocessing = SMALL
    assert backbone.stated_preprocessing is backbone.preprocessing is SMALL
    backbone.preprocessing = None
    assert backbone.preprocessing == IMAGENET


@pytest.mark.parametrize(
    ("channels", "mean"),
    [
        (1, (0.449,)),
        (2, (0.485, 0.456)),
        (3, (0.485, 0.456, 0.406)),
        (4, (0.485, 0.456, 0.406, 0.485)),
        (7, (0.485, 0.456, 0.406, 0.485, 0.456, 0.406, 0.485)),
    ],
)
def test_of_other_channels_the_numbers_are_repeated(channels: int, mean: Any) -> None:
    backbone = create_backbone("resnet18", return_idx=(0,), in_channels=channels)
    chosen = backbone.preprocessing
    assert chosen == assumed_for(channels)
    assert chosen.mean == mean
    assert chosen.num_channels == len(chosen.std) == channels
    assert Preprocessing.from_dict(chosen.to_dict()) == chosen
    if channels != 3:
        with pytest.raises(ConfigError, match=rf"numbers for {channels} channels, and a photo has"):
            chosen(noise())
        with pytest.raises(ConfigError, match=rf"numbers for {channels} channels and the picture"):
            preprocess(Image.fromarray(noise()), chosen)
