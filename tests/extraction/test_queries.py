"""A query is embedded as the store's images were, and finds its nearest neighbours exactly."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trunkline import create_backbone, extract, open_features
from trunkline.errors import ConfigError, ImageError, StoreError
from trunkline.extraction.reader import FeatureStore


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for number in range(12):
        noise = random.integers(0, 256, (24, 20 + number, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number:02}.png")
    (folder / "broken.png").write_bytes(b"no")
    return folder


@pytest.fixture(scope="module")
def store(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Pooled features of two levels, in shards of five."""
    backbone = create_backbone("resnet18", return_idx=(0, 1))
    out = tmp_path_factory.mktemp("stores") / "f.parquet"
    extract(pictures, out, backbone, runtime="onnxruntime", shard_size=5, batch_size=4)
    return open_features(out)


@pytest.mark.parametrize("level", [None, "stage0", -1])
def test_an_image_of_the_store_gives_its_own_row(
    store: FeatureStore, pictures: Path, level: str | int | None
) -> None:
    stored = dict(zip(store.keys, store.numpy(-1 if level is None else level), strict=True))
    for key in ("00.png", "11.png"):
        path = pictures / key
        pixels = np.asarray(Image.open(path).convert("RGB"))
        with path.open("rb") as file:
            for image in (path, str(path), path.read_bytes(), Image.open(path), pixels, file):
                assert np.array_equal(store.embed(image, level), stored[key])


def test_maps_are_embedded_as_well(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    backbone = create_backbone("resnet18", return_idx=(3,))
    extract(pictures, tmp_path / "m.zarr", backbone, runtime="torch")
    maps = open_features(tmp_path / "m.zarr")
    first = next(iter(maps.maps()))
    found = maps.embed(pictures / str(first["key"]))
    assert found.dtype == np.float16
    assert np.array_equal(found, first["stage3_stride_32"].numpy().astype(np.float16))
    with pytest.raises(StoreError, match="are maps of shape"):
        maps.search(pictures / "00.png")


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_neighbours_are_those_of_a_search_by_hand(store: FeatureStore, metric: str) -> None:
    random = np.random.default_rng(1)
    vectors = store.numpy("stage1").astype(np.float64)
    queries = random.standard_normal((3, vectors.shape[1])).astype(np.float32)
    dots = queries.astype(np.float64) @ vectors.T
    if metric == "cosine":
        dots /= np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(vectors, axis=1)
    if metric == "l2":
        dots = np.linalg.norm(queries[:, None] - vectors, axis=2)
    found = store.search(queries, 4, metric=metric)  # type: ignore[arg-type]
    for one, row in zip(found, dots, strict=True):
        best = np.argsort(row if metric == "l2" else -row)[:4]
        assert [near.key for near in one] == [store.keys[place] for place in best]
        assert np.allclose([near.score for near in one], row[best], rtol=1e-4, atol=1e-4)
    alone = store.search(torch.from_numpy(queries[0]), 4, metric=metric)  # type: ignore[arg-type]
    assert [near.key for near in alone] == [near.key for near in found[0]]


def test_an_image_finds_itself(store: FeatureStore, pictures: Path) -> None:
    first, second = store.search([pictures / "03.png", pictures / "07.png"], 1, level="stage0")
    assert (first[0].key, second[0].key) == ("03.png", "07.png")
    assert first[0].path == str(pictures / "03.png")
    assert first[0].score == pytest.approx(1, abs=1e-5)
    assert len(store.search(pictures / "03.png", 100)) == 12


def test_what_is_wrong_is_said(store: FeatureStore, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"have 128 numbers here, \(C,\) or \(m, C\), got \(3,\)"):
        store.search(np.zeros(3, np.float32))
    with pytest.raises(ConfigError, match=r"metric='L2' is unknown; use one of cosine, dot, l2"):
        store.search(pictures / "00.png", metric="L2")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"k=0 must be a number of neighbours from 1 on"):
        store.search(pictures / "00.png", 0)
    with pytest.raises(ImageError, match=r"an array as an image is \(H, W, 3\) uint8, RGB"):
        store.embed(np.zeros((3, 8, 8), np.float32))
    with pytest.raises(ImageError, match="broken"):
        store.embed(pictures / "broken.png")
    alone = tmp_path / "f.parquet"
    shutil.copytree(store.path, alone)  # without what is kept beside it
    with pytest.raises(StoreError, match=r"f\.parquet"):
        open_features(alone).embed(pictures / "00.png")


@pytest.mark.parametrize("name", ["a[1]", "a*"])
def test_a_store_is_read_by_its_own_name_and_no_pattern(tmp_path: Path, name: str) -> None:
    pytest.importorskip("duckdb")
    backbone = create_backbone("resnet18", return_idx=(0,))
    for folder, color in ((name, "red"), ("a1", "green"), ("ab", "blue")):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), color).save(tmp_path / f"{color}.png")
        (tmp_path / f"{color}.txt").write_text(f"{color}.png\n")
        extract(
            tmp_path / f"{color}.txt", tmp_path / folder / "f.parquet", backbone, runtime="torch"
        )
    store = open_features(tmp_path / name / "f.parquet")
    assert store.duckdb().fetchall()[0][0] == "red.png"
    assert store.keys == ["red.png"]
    assert store.polars()["key"].to_list() == ["red.png"]
