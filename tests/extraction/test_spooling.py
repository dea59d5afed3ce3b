"""Images in memory are a source like any other, and give the numbers of the same files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trunkline import create_backbone, extract, open_features
from trunkline.errors import ConfigError, SourceError, StoreError
from trunkline.extraction.checking import verify

BACKBONE = create_backbone("resnet18", return_idx=(0,))
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 16, 20, 3), dtype=np.uint8)


class Labelled(torch.utils.data.Dataset[Any]):
    """As torchvision's datasets are: images with labels, and no end of an iteration."""

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(PIXELS[index]), index % 2


class Rows:
    """As a dataset of Hugging Face."""

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": Image.fromarray(PIXELS[index]), "label": 0}


def files(folder: Path) -> list[Path]:
    paths = []
    for number, image in enumerate(PIXELS):
        paths.append(folder / f"{number}.png")
        Image.fromarray(image).save(paths[-1])
    return paths


SOURCES: dict[str, Callable[[Path], Any]] = {
    "array": lambda _: PIXELS,
    "tensors": lambda _: [torch.from_numpy(one).permute(2, 0, 1) for one in PIXELS],
    "dataset": lambda _: Labelled(),
    "rows": lambda _: Rows(),
    "generator": lambda _: (Image.fromarray(one) for one in PIXELS),
    "paths": files,
    "bytes": lambda folder: (path.read_bytes() for path in files(folder)),
    "loader": lambda _: [(one, 3) for one in PIXELS],
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray[Any, Any]:
    folder = tmp_path_factory.mktemp("files")
    files(folder)
    out = folder.parent / "expected.parquet"
    extract(folder, out, BACKBONE, runtime="torch")
    return open_features(out).numpy()


@pytest.mark.parametrize("kind", SOURCES)
def test_images_in_memory_give_the_numbers_of_files(
    tmp_path: Path, expected: np.ndarray[Any, Any], kind: str
) -> None:
    (tmp_path / "files").mkdir()
    out = tmp_path / "f.parquet"
    report = extract(SOURCES[kind](tmp_path / "files"), out, BACKBONE, runtime="torch")
    assert (report.images, report.failed, report.complete) == (5, 0, True)
    store = open_features(out)
    assert np.array_equal(store.numpy(), expected)
    assert store.keys == [f"{number:09}" for number in range(5)]
    assert verify(out, 5).good


def test_keys_may_be_given(tmp_path: Path) -> None:
    pairs = [("cat", PIXELS[0]), ("dog", Image.fromarray(PIXELS[1]))]
    extract(pairs, tmp_path / "f.parquet", BACKBONE, runtime="torch")
    assert open_features(tmp_path / "f.parquet").keys == ["cat", "dog"]
    with pytest.raises(ConfigError, match=r"two images have the key 'cat'; a key tells one"):
        extract([pairs[0], pairs[0]], tmp_path / "g.parquet", BACKBONE, runtime="torch")
    assert not (tmp_path / "g.parquet.images.parquet").exists()


def test_the_same_images_go_on_and_others_do_not(tmp_path: Path) -> None:
    out = tmp_path / "f.parquet"
    assert extract(PIXELS, out, BACKBONE, runtime="torch", shard=(0, 2), shard_size=2).images == 3
    assert extract(PIXELS, out, BACKBONE, runtime="torch", shard_size=2).images == 2
    with pytest.raises(StoreError, match=r"holds other images than those that were given now"):
        extract(PIXELS[:3], out, BACKBONE, runtime="torch", shard_size=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "f.parquet",
        "f.parquet.images.parquet",
        "f.parquet.trunkline",
    ]


@pytest.mark.parametrize(
    ("src", "error", "said"),
    [
        (
            PIXELS.astype(np.float32),
            ConfigError,
            r"is \(N, H, W, 3\) uint8, RGB, got \(5, 16, 20, 3\)",
        ),
        (
            [PIXELS[0] / 255],
            ConfigError,
            r"image 0 of the source is \(16, 20, 3\) float64; allowed",
        ),
        ([3], ConfigError, r"image 0 of the source is int; allowed: a path, the bytes"),
        ([], SourceError, r"there are no images in what was given"),
        ({"a": 1}, ConfigError, r"image 0 of the source is "),
    ],
    ids=["floats", "unit", "number", "nothing", "mapping"],
)
def test_what_is_no_image_is_refused_before_the_store(
    tmp_path: Path, src: Any, error: type[Exception], said: str
) -> None:
    if isinstance(src, dict):
        src = [src]
    with pytest.raises(error, match=said):
        extract(src, tmp_path / "f.parquet", BACKBONE, runtime="torch")
    assert not list(tmp_path.iterdir())


def test_an_image_that_cannot_be_decoded_is_a_failed_row(tmp_path: Path) -> None:
    def images() -> Iterator[Any]:
        yield PIXELS[0]
        yield b"no image"

    report = extract(images(), tmp_path / "f.parquet", BACKBONE, runtime="torch")
    assert (report.images, report.failed) == (2, 1)
