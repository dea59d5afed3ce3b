"""Pictures of any number of bands and bits become channels by numbers that are said."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trunkline import create_backbone, deploy, extract, features, open_features
from trunkline.errors import ConfigError, ImageError, InputError, NotInstalledError
from trunkline.images import IMAGENET, Bands, Raster, decode_bands, decode_image, pixels, preprocess
from trunkline.preprocessing import assumed_for

tifffile = pytest.importorskip("tifffile")
RANDOM = np.random.default_rng(0)
SCENE = RANDOM.integers(0, 10000, (13, 24, 20), dtype=np.uint16)  # (C, H, W)
WHITE = Bands(white=10000)


def _pages(path: Path) -> None:
    tifffile.imwrite(path, SCENE, photometric="minisblack")


def _planes(path: Path) -> None:
    tifffile.imwrite(path, SCENE, photometric="minisblack", planarconfig="separate")


def _interleaved(path: Path) -> None:
    samples = np.ascontiguousarray(SCENE.transpose(1, 2, 0))
    tifffile.imwrite(path, samples, photometric="minisblack", planarconfig="contig")


def _tiled(path: Path) -> None:
    samples = np.ascontiguousarray(SCENE.transpose(1, 2, 0))
    planes = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(path, samples, tile=(16, 16), compression="zlib", predictor=True, **planes)


def _big(path: Path) -> None:
    tifffile.imwrite(path, SCENE, photometric="minisblack", bigtiff=True, byteorder=">")


@pytest.mark.parametrize("write", [_pages, _planes, _interleaved, _tiled, _big])
def test_every_way_in_which_a_tiff_has_bands(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "scene.tif")
    read = decode_bands(tmp_path / "scene.tif", WHITE).values
    expected = SCENE.transpose(1, 2, 0).astype(np.float64) * (255 / 10000)
    assert (read.dtype, read.shape) == (np.dtype(np.float32), (24, 20, 13))
    np.testing.assert_allclose(read, expected, rtol=1e-6)


def test_bands_are_counted_from_one_in_the_order_of_the_channels(tmp_path: Path) -> None:
    _planes(tmp_path / "scene.tif")
    read = decode_bands(tmp_path / "scene.tif", Bands(bands=(4, 3, 2), white=(1e4, 5e3, 1e4)))
    np.testing.assert_allclose(read.values[..., 1], SCENE[2] * (255 / 5e3), rtol=1e-6)
    assert read.values.max() > 255  # brighter than white is kept


def test_a_photo_read_by_bands_is_the_photo() -> None:
    photo = decode_image("examples/cat.jpg")
    raster = decode_bands("examples/cat.jpg")
    np.testing.assert_array_equal(raster.values, np.asarray(photo, np.float32))
    for chosen in (
        IMAGENET,
        IMAGENET.with_size(600),
        IMAGENET.with_size((50, 90)),
        IMAGENET.with_size(None),
        IMAGENET.__class__(
            **{**vars(IMAGENET), "resize": 40, "crop": (64, 32), "pad_to_multiple": 48}
        ),
    ):
        exact, rounded = preprocess(raster, chosen), preprocess(photo, chosen)
        assert exact.shape == rounded.shape
        # Pillow rounds the resized bytes, once for each direction.
        assert (exact - rounded).abs().max() < 1.6 / 255 / min(chosen.std)
        assert pixels(raster, chosen).dtype == np.float32


def test_preprocessing_does_not_change_what_it_was_given() -> None:
    raster = decode_bands(SCENE.transpose(1, 2, 0), WHITE)
    before = raster.values.copy()
    preprocess(raster, assumed_for(13).with_size(None))
    np.testing.assert_array_equal(raster.values, before)


def test_gaps_are_black(tmp_path: Path) -> None:
    values = RANDOM.random((2, 8, 8)).astype(np.float32)
    values[0, 0, 0], values[1, 2, 3] = np.nan, -9999
    path = tmp_path / "gaps.tif"
    tifffile.imwrite(
        path,
        values,
        photometric="minisblack",
        planarconfig="separate",
        extratags=[(42113, "s", 0, "-9999", True)],
    )
    read = decode_bands(path).values
    assert read[0, 0, 0] == read[2, 3, 1] == 0
    np.testing.assert_allclose(read[5, 5], values[:, 5, 5] * 255, rtol=1e-6)


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_tiff_is_turned_as_pillow_turns_it(tmp_path: Path, turn: int) -> None:
    path = tmp_path / "turned.tif"
    values = RANDOM.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    tifffile.imwrite(path, values, photometric="rgb", extratags=[(274, "H", 1, turn, True)])
    expected = np.asarray(decode_image(path))
    np.testing.assert_array_equal(decode_bands(path).values, expected)


def test_grey_of_16_bits_in_a_png_and_a_picture_in_memory() -> None:
    values = RANDOM.integers(0, 65536, (5, 7), dtype=np.uint16)
    made = io.BytesIO()
    Image.fromarray(values).save(made, "PNG")
    read = decode_bands(made.getvalue(), Bands(white=65535)).values
    np.testing.assert_allclose(read[:, :, 0], values / 65535 * 255, rtol=1e-6)
    rgba = Image.fromarray(RANDOM.integers(0, 256, (5, 7, 4), dtype=np.uint8))
    np.testing.assert_array_equal(decode_bands(rgba).values, np.asarray(rgba))


@pytest.mark.parametrize(
    ("values", "bands", "said"),
    [
        (SCENE.transpose(1, 2, 0), None, r"holds 0 to 9999 \(uint16\), and which .* give white="),
        (np.full((2, 2), 3.0), None, r"holds 3 to 3 \(float64\)"),
        (np.full((2, 2), np.nan), None, "has no data in the bands"),
        (np.full((2, 2), np.inf), Bands(white=1), "holds infinities"),
        (np.zeros((2, 2, 2), np.uint8), Bands(bands=(3,)), "has 2 bands, and bands=.* number 3"),
        (np.zeros((2, 2), complex), None, "holds complex128"),
        (np.zeros((2, 2, 3), np.uint8), Bands(white=(1.0, 2.0)), "has 3 bands, and white 2"),
        (np.zeros((1, 2, 2, 2), np.uint8), None, r"is \(H, W, C\) or \(H, W\), got \(1, 2, 2, 2\)"),
    ],
)
def test_numbers_that_cannot_be_channels(
    values: np.ndarray, bands: Bands | None, said: str
) -> None:
    with pytest.raises(ImageError, match=said):
        decode_bands(values, bands)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"bands": (0, 1)}, "the first one is 1"),
        ({"bands": ()}, "must be numbers of bands"),
        ({"bands": [1]}, "must be numbers of bands"),
        ({"white": float("nan")}, "white=nan must be a number"),
        ({"white": 0}, "must be more than black"),
        ({"white": 1, "black": 2}, "must be more than black"),
        ({"bands": (1, 2), "white": (1.0, 2.0, 3.0)}, "white has 3 numbers for 2 bands"),
        ({"white": (1.0, 2.0), "black": (0.0,) * 3}, "white has 2 numbers and black 3"),
    ],
)
def test_bands_that_are_none(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Bands(**given)  # type: ignore[arg-type]


def test_files_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scene.tif"
    _planes(path)
    with pytest.raises(ImageError, match=r"scene\.tif is 20x24 with 13 bands, above the limit"):
        decode_bands(path, WHITE, max_pixels=1000)
    tifffile.imwrite(
        tmp_path / "4d.tif", np.zeros((2, 5, 8, 8), np.uint8), photometric="minisblack"
    )
    with pytest.raises(ImageError, match=r"has the axes .* bands are one axis"):
        decode_bands(tmp_path / "4d.tif")
    palette = Image.new("P", (4, 4))
    palette.save(tmp_path / "p.tif")
    palette.save(tmp_path / "p.png")
    for name, said in (("p.tif", "has a palette"), ("p.png", "has colour mode P")):
        with pytest.raises(ImageError, match=said):
            decode_bands(tmp_path / name)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ImageError, match=r"scene\.tif is damaged or cut short"):
        decode_bands(path, WHITE)
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(NotInstalledError, match=r'pip install "trunkline\[images\]"'):
        decode_bands(path)


def test_features_of_a_raster() -> None:
    backbone = create_backbone("resnet18", in_channels=13, return_idx=(3,))
    raster = decode_bands(SCENE.transpose(1, 2, 0), WHITE)
    (found,) = features(raster, backbone)
    images = backbone.preprocessing(raster)[None]
    assert images.shape == (1, 13, 224, 224)
    with torch.inference_mode():
        assert torch.equal(backbone.eval()(images)[0][0], found.tensor)
    with pytest.raises(InputError, match="takes 13 channels, and a photo has three; read the"):
        features("examples/cat.jpg", backbone)
    with pytest.raises(ConfigError, match="13 channels, and a photo has three; decode_bands"):
        backbone.preprocessing("examples/cat.jpg")
    runner = deploy(
        create_backbone("resnet18"), "torch", input_shape=(1, 224, 224), preprocess=True
    )
    with pytest.raises(InputError, match="a raster is none; deploy it with preprocess=False"):
        features(Raster(np.zeros((300, 300, 3), np.float32)), runner)


@pytest.mark.parametrize("size", [32, None])
def test_extraction_of_rasters(tmp_path: Path, size: int | None) -> None:
    folder = tmp_path / "scenes"
    folder.mkdir()
    _planes(folder / "a.tif")
    _tiled(folder / "b.tif")
    tifffile.imwrite(folder / "c.tif", SCENE[:2], photometric="minisblack")
    torch.manual_seed(0)
    backbone = create_backbone("resnet18", in_channels=4, return_idx=(3,))
    chosen = backbone.preprocessing.with_size(size)
    bands = Bands(bands=(8, 4, 3, 2), white=10000)
    out = tmp_path / "f.parquet"
    report = extract(
        folder, out, backbone, bands=bands, preprocessing=chosen, runtime="torch", workers=1
    )
    assert (report.images, report.failed) == (3, 1)
    store = open_features(out)
    (why,) = store.failures()["error"].to_pylist()
    assert "has 2 bands, and bands=(8, 4, 3, 2) asks for number 8" in why
    made = features(decode_bands(folder / "a.tif", bands), backbone, preprocessing=chosen)
    expected = made[0].tensor.mean((1, 2))
    found = torch.as_tensor(store.embed(folder / "a.tif"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        torch.as_tensor(store.embed(SCENE.transpose(1, 2, 0))), found, rtol=0, atol=0
    )
    assert store.search(folder / "b.tif", k=1)[0].score == pytest.approx(1, abs=1e-5)


def test_rasters_in_memory_are_extracted(tmp_path: Path) -> None:
    backbone = create_backbone("resnet18", in_channels=13, return_idx=(0,))
    scenes = np.stack([SCENE.transpose(1, 2, 0)] * 2)
    tensors = [torch.from_numpy(SCENE.astype(np.int32))] * 2
    vectors = []
    for number, source in enumerate((scenes, tensors)):
        out = tmp_path / f"{number}.parquet"
        size = backbone.preprocessing.with_size(32)
        report = extract(
            source, out, backbone, white=10000, preprocessing=size, runtime="torch", workers=0
        )
        assert (report.images, report.failed) == (2, 0)
        vectors.append(open_features(out).numpy())
    np.testing.assert_array_equal(vectors[0], vectors[1])


@pytest.mark.parametrize(
    ("channels", "given", "said"),
    [
        (4, {}, "takes 4 channels, and photos have 3; for pictures of other bands give bands="),
        (4, {"bands": (1, 2)}, r"bands=\(1, 2\) are 2, and the network takes 4 channels"),
        (4, {"white": 1, "preprocessing": IMAGENET}, "numbers for 3 channels, and the network"),
        (3, {"bands": (1, 2, 3), "alpha": "ignore"}, "decode= and alpha= are for photos"),
        (3, {"bands": Bands(), "white": 3}, "stands beside Bands"),
        (3, {"truncated": "perhaps"}, "truncated='perhaps' is unknown; use one of refuse, keep"),
    ],
)
def test_options_that_do_not_fit(
    tmp_path: Path, channels: int, given: dict[str, object], said: str
) -> None:
    backbone = create_backbone("resnet18", in_channels=channels, return_idx=(0,))
    with pytest.raises(ConfigError, match=said):
        extract("examples", tmp_path / "f.parquet", backbone, **given)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_cut_jpeg_can_be_kept(tmp_path: Path) -> None:
    whole = np.asarray(decode_image("examples/cat.jpg")).astype(int)
    content = Path("examples/cat.jpg").read_bytes()
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=r"is damaged or cut short.* Or truncated=\"keep\""):
        decode_image(cut)
    kept = np.asarray(decode_image(cut, truncated="keep")).astype(int)
    assert kept.shape == whole.shape
    np.testing.assert_array_equal(kept[:80], whole[:80])
    assert np.abs(kept - whole).max() > 50
    cut.write_bytes(b"\xff\xd8\xff" + bytes(100))
    with pytest.raises(ImageError, match="is no photo"):
        decode_image(cut, truncated="keep")
    with pytest.raises(ConfigError, match="truncated='yes' is unknown; use one of refuse, keep"):
        decode_image("examples/cat.jpg", truncated="yes")  # type: ignore[arg-type]


def test_a_cut_jpeg_is_kept_by_extract(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    content = Path("examples/cat.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(content[: len(content) // 2])
    backbone = create_backbone("resnet18", return_idx=(0,))
    out = tmp_path / "f.parquet"
    options = {"preprocessing": backbone.preprocessing.with_size(32), "runtime": "torch"}
    assert extract(folder, out, backbone, truncated="keep", workers=1, **options).failed == 0  # type: ignore[arg-type]
    out = tmp_path / "g.parquet"
    assert extract(folder, out, backbone, workers=1, **options).failed == 1  # type: ignore[arg-type]
