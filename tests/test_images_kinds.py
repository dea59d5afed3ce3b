"""Pictures of phones, cameras and satellites: read, or named for what they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trunkline import create_backbone, extract, open_features, photos
from trunkline.errors import ConfigError, ImageError, StoreError
from trunkline.images import decode_image, image_suffixes


@pytest.fixture(scope="module")
def heic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo as a phone writes it, turned by its orientation."""
    pillow_heif = pytest.importorskip("pillow_heif")
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:, :24] = (200, 30, 30)
    image = Image.fromarray(pixels)
    path = tmp_path_factory.mktemp("phone") / "IMG_0001.HEIC"
    exif = Image.Exif()
    exif[0x0112] = 6
    pillow_heif.from_pillow(image).save(path, quality=95, exif=exif.tobytes())
    return path


def test_a_photo_of_a_phone_is_upright(heic: Path) -> None:
    upright = np.asarray(decode_image(heic)).astype(int)
    assert upright.shape == (48, 32, 3)
    assert abs(upright[:20] - (200, 30, 30)).mean() < 12
    assert upright[28:].mean() < 12
    assert decode_image(heic.read_bytes()).size == (32, 48)


def test_workers_read_photos_of_phones(heic: Path, tmp_path: Path) -> None:
    assert {".heic", ".heif", ".hif"} <= image_suffixes()
    report = extract(
        heic.parent,
        tmp_path / "f.parquet",
        create_backbone("resnet18", return_idx=(0,)),
        runtime="torch",
        workers=1,
    )
    assert (report.images, report.failed) == (1, 0)


def test_without_the_plugin_the_install_line_is_given(heic: Path) -> None:
    script = (
        "import sys\n"
        "sys.modules['pillow_heif'] = sys.modules['pi_heif'] = None\n"
        "import importlib.util as u\n"
        "real = u.find_spec\n"
        "import trunkline.decoders as d\n"
        "d.find_spec = lambda name: None if name in ('pillow_heif', 'pi_heif') else real(name)\n"
        "from trunkline.images import decode_image\n"
        f"decode_image({str(heic)!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "is a HEIC photo, which needs pillow-heif" in done.stderr
    assert 'pip install "trunkline[images]"' in done.stderr


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"%PDF-1.7", "is a PDF document; give a photo"),
        (b"8BPS\0\1", "is a Photoshop file"),
        (b"\xff\x0a\xfa", "is a JPEG XL picture"),
        (b"<svg xmlns=", "is a drawing in SVG"),
        (b"<!doctype html>", "is a web page"),
        (b"\0\0\0\x18ftypcrx ", "is a raw file of a camera"),
        (b"\0\0\0\x18ftypmp42", "is a video"),
        (b"\x93NUMPY\1\0", "is a NumPy array"),
        (b"version https://git-lfs.github.com", "is a Git LFS pointer"),
        (b"II*\0", "is a TIFF of a kind that Pillow does not read, and no photo: choose its bands"),
        (b"nothing", "is no photo, or only the beginning of one"),
    ],
)
def test_what_is_no_photo_is_named(tmp_path: Path, head: bytes, said: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(head + bytes(300))
    with pytest.raises(ImageError, match=said):
        decode_image(path)


def test_bands_of_a_satellite_are_not_called_damaged(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "scene.tif"
    bands = np.random.default_rng(0).random((13, 16, 16)).astype(np.float32)
    tifffile.imwrite(path, bands, photometric="minisblack", planarconfig="separate")
    with pytest.raises(
        ImageError,
        match=r"scene\.tif is a TIFF of 13 bands, float32, 16x16, and no photo: choose its bands",
    ):
        decode_image(path)


def test_files_that_are_passed_over_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "a").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "a" / "1.png")
    for name in ("2.MOV", "3.mov", "notes.txt", "README", ".hidden.mov", "a/4.mov"):
        (folder / name).write_bytes(b"x")
    backbone = create_backbone("resnet18", return_idx=(0,))
    report = extract(folder, tmp_path / "f.parquet", backbone, runtime="torch")
    assert report.passed_over == {".mov": 3, ".txt": 1, "no known ending": 1}


def test_transparency_is_laid_over_what_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgb = np.random.default_rng(0).integers(40, 200, (16, 16, 3), dtype=np.uint8)
    bands = np.concatenate([rgb, np.full((16, 16, 1), 60, np.uint8)], 2)
    for name in ("bands.tif", "bands.png"):
        path = tmp_path / name
        Image.fromarray(bands).save(path)
        assert np.array_equal(np.asarray(decode_image(path, alpha="ignore")), rgb)
        white, black = (
            np.asarray(decode_image(path, alpha=alpha)).astype(float).mean()
            for alpha in ("white", "black")
        )
        assert white == pytest.approx(rgb.mean() * 60 / 255 + 195, abs=1)
        assert black == pytest.approx(rgb.mean() * 60 / 255, abs=1)
    with pytest.raises(
        ConfigError, match=r"alpha='grey' is unknown; use one of white, black, ignore"
    ):
        decode_image(tmp_path / "bands.png", alpha="grey")  # type: ignore[arg-type]
    # A tag may call a band of a satellite transparency, which is said once.
    monkeypatch.setattr(photos, "_warned", False)
    caplog.clear()
    for _ in range(2):
        decode_image(tmp_path / "bands.tif")
    (said,) = caplog.messages
    assert "bands.tif has a band that its tags call transparency" in said
    assert "use alpha='ignore'" in said


def test_an_extraction_keeps_to_its_alpha(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    backbone = create_backbone("resnet18", return_idx=(0,))
    stores = {}
    for alpha in ("white", "ignore"):
        out = tmp_path / f"{alpha}.parquet"
        extract(folder, out, backbone, runtime="torch", alpha=alpha)
        stores[alpha] = open_features(out)
        assert np.array_equal(stores[alpha].embed(folder / "a.png"), stores[alpha].numpy()[0])
    assert not np.array_equal(stores["white"].numpy(), stores["ignore"].numpy())
    with pytest.raises(StoreError, match="alpha"):
        extract(folder, tmp_path / "ignore.parquet", backbone, runtime="torch")
    with pytest.raises(ConfigError, match=r"alpha='x' is unknown"):
        extract(folder, tmp_path / "x.parquet", backbone, alpha="x")  # type: ignore[arg-type]
