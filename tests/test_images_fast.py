"""Decoding at reduced scale: what it leaves the same, how near it comes, and its limits."""

from __future__ import annotations

import dataclasses
import io
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from trunkline.errors import ConfigError, ImageError
from trunkline.images import IMAGENET, decode_image, decode_photo, pixels, preprocess
from trunkline.preprocessing import reduction

ORIENTATION = 274
SMALL = IMAGENET.with_size(16)  # shorter side 18, crop 16×16


def smooth(width: int, height: int) -> Image.Image:
    """Ramps of full range: a shift by a pixel shows, and no scale loses anything of them."""
    x = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    y = np.linspace(255, 0, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.rint(np.stack([x, y, (x + y) / 2], -1)).astype(np.uint8))


def jpeg(image: Image.Image, orientation: int = 1, **options: Any) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(file, "JPEG", quality=95, subsampling=0, exif=exif, **options)
    return file.getvalue()


def difference(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("decode", ["exact", "fast"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_knows_the_upright_size_of_its_file(orientation: int, decode: Any) -> None:
    photo = decode_photo(jpeg(smooth(150, 101), orientation), SMALL, decode=decode)
    assert (photo.width, photo.height) == ((150, 101) if orientation < 5 else (101, 150))
    reduced = photo.image.size == ((75, 51) if orientation < 5 else (51, 75))
    assert reduced == (decode == "fast")
    assert photo.factor == (2 if decode == "fast" else 1)
    assert photo.image.mode == "RGB"
    assert photo.image.info == {}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(331, 300), (300, 333), (511, 402), (299, 1000)])
def test_fast_keeps_the_geometry_whatever_the_size_and_the_turn(
    size: tuple[int, int], orientation: int
) -> None:
    # Sides that 2, 4 and 8 do not divide: without the box the ramps would be shifted by up to
    # factor - 1 pixels, which is 7 of 300 here, or 6 of 255 levels.
    content = jpeg(smooth(*size), orientation)
    warp = dataclasses.replace(IMAGENET.with_size((18, 17)), interpolation="bicubic")
    for how in (SMALL, warp, dataclasses.replace(SMALL, crop=None, pad_to_multiple=8)):
        fast = decode_photo(content, how, decode="fast")
        assert fast.factor == 8
        exact = pixels(decode_photo(content), how)
        assert pixels(fast, how).shape == exact.shape
        assert difference(pixels(fast, how), exact) <= 2


def test_what_leaving_out_the_box_would_cost() -> None:
    content = jpeg(smooth(329, 329), 3)
    fast = decode_photo(content, SMALL, decode="fast")
    assert fast.box == (0.875, 0.875, 42.0, 42.0)
    unboxed = fast.image.resize((18, 18), Image.Resampling.BILINEAR).crop((1, 1, 17, 17))
    assert difference(np.asarray(unboxed), pixels(decode_photo(content), SMALL)) >= 4


@pytest.mark.parametrize(
    ("resize", "factor"),
    [(400, 1), (201, 1), (200, 2), (101, 2), (100, 4), (51, 4), (50, 8), (1, 8), (None, 1)],
)
def test_twice_the_size_after_the_resize_is_left_on_both_sides(resize: Any, factor: int) -> None:
    how = dataclasses.replace(IMAGENET, resize=resize, crop=None)
    photo = decode_photo(jpeg(smooth(1000, 800)), how, decode="fast")
    assert photo.factor == factor
    assert photo.image.size == (1000 // factor, 800 // factor)
    height, width = how.resized_size(800, 1000)
    assert factor == 1 or (photo.image.width >= 2 * width and photo.image.height >= 2 * height)


def test_a_warp_goes_by_its_tighter_side() -> None:
    assert reduction(IMAGENET.with_size((10, 200)), height=800, width=800) == 2
    assert reduction(IMAGENET.with_size((200, 10)), height=800, width=800) == 2
    assert reduction(IMAGENET.with_size((10, 10)), height=800, width=159) == 4
    assert reduction(IMAGENET.with_size((10, 10)), height=159, width=800) == 4


def test_a_turned_photo_goes_by_its_upright_sides() -> None:
    how = IMAGENET.with_size((200, 50))  # of the upright photo: 4 times as high as wide
    content = jpeg(smooth(1600, 400), 6)
    assert decode_photo(content, how, decode="fast").factor == 4
    assert decode_photo(jpeg(smooth(1600, 400)), how, decode="fast").factor == 1


def test_nearest_is_decoded_exactly_as_it_has_no_antialiasing() -> None:
    how = dataclasses.replace(SMALL, interpolation="nearest")
    assert decode_photo(jpeg(smooth(400, 300)), how, decode="fast").factor == 1


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_are_reduced_too(mode: str) -> None:
    file = io.BytesIO()
    smooth(331, 300).convert(mode).save(file, "JPEG", quality=95)
    fast = decode_photo(file.getvalue(), SMALL, decode="fast")
    assert fast.factor == 8
    exact = pixels(decode_photo(file.getvalue()), SMALL)
    assert difference(pixels(fast, SMALL), exact) <= 3


def test_progressive_and_multi_picture_jpegs_are_reduced_too() -> None:
    exact = pixels(decode_photo(jpeg(smooth(331, 300))), SMALL)
    file = io.BytesIO()
    smooth(331, 300).save(
        file, "MPO", save_all=True, append_images=[Image.new("RGB", (331, 300))], quality=95
    )
    for content in (jpeg(smooth(331, 300), progressive=True), file.getvalue()):
        fast = decode_photo(content, SMALL, decode="fast")
        assert fast.factor == 8
        assert difference(pixels(fast, SMALL), exact) <= 4


@pytest.mark.parametrize("suffix", ["PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_other_formats_are_decoded_exactly(suffix: str) -> None:
    file = io.BytesIO()
    smooth(331, 300).save(file, suffix)
    photo = decode_photo(file.getvalue(), SMALL, decode="fast")
    assert photo.factor == 1
    assert photo.box == (0, 0, 331, 300)
    assert photo.image.tobytes() == decode_image(file.getvalue()).tobytes()


def test_exact_is_the_default_and_is_what_decode_image_gives(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg(smooth(331, 300), 8))
    for photo in (decode_photo(path), decode_photo(path, SMALL), decode_photo(Image.open(path))):
        assert photo.factor == 1
        assert photo.image.tobytes() == decode_image(path).tobytes()
    assert (pixels(decode_photo(path), SMALL) == pixels(decode_image(path), SMALL)).all()
    assert (preprocess(decode_photo(path)) == preprocess(decode_image(path))).all()


def test_a_pillow_image_is_not_drafted(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg(smooth(331, 300)))
    with Image.open(path) as opened:
        photo = decode_photo(opened, SMALL, decode="fast")
        assert opened.size == (331, 300)
    assert photo.factor == 1
    given = Image.new("RGB", (3, 2))
    assert decode_image(given) is not given


def test_a_reduced_photo_is_refused_for_another_resize() -> None:
    photo = decode_photo(jpeg(smooth(400, 400)), SMALL, decode="fast")
    assert photo.factor == 8
    for how in (IMAGENET, IMAGENET.with_size(None), IMAGENET.with_size((26, 25))):
        with pytest.raises(ConfigError, match=r"decoded at 1/8 of its size.*or with decode='exact"):
            pixels(photo, how)
    assert pixels(photo, IMAGENET.with_size((25, 25))).shape == (25, 25, 3)


def test_options_are_checked() -> None:
    content = jpeg(smooth(20, 10))
    wrong: Any = "quick"
    with pytest.raises(ConfigError, match=r"decode='quick' is unknown; use one of exact, fast"):
        decode_photo(content, SMALL, decode=wrong)
    with pytest.raises(ConfigError, match=r"decode='fast' depends on the resize.*preprocessing="):
        decode_photo(content, decode="fast")
    with pytest.raises(ConfigError, match=r"max_bytes=0 must be a positive integer"):
        decode_photo(content, max_bytes=0)


def test_max_pixels_is_of_the_file_in_fast_too() -> None:
    content = jpeg(smooth(400, 300))
    assert decode_photo(content, SMALL, decode="fast", max_pixels=120_000).factor == 8
    with pytest.raises(ImageError, match=r"is 400x300, above the limit of 119999 pixels"):
        decode_photo(content, SMALL, decode="fast", max_pixels=119_999)


def test_max_bytes_is_the_largest_allowed(tmp_path: Path) -> None:
    content = jpeg(smooth(20, 10))
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    size = len(content)
    for source in (content, path):
        assert decode_image(source, max_bytes=size).size == (20, 10)
        with pytest.raises(ImageError, match=rf"has {size} bytes, above the limit of {size - 1}; "):
            decode_image(source, max_bytes=size - 1)


def test_a_sparse_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.write(jpeg(smooth(20, 10)))
        file.truncate(2**30 + 1)  # takes no room on the disk
    with pytest.raises(ImageError, match=r"huge\.jpg has 1073741825 bytes, above the limit of 10"):
        decode_image(path)


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_a_jpeg_that_is_cut_short_is_refused_either_way(decode: Any) -> None:
    content = jpeg(smooth(400, 300))
    with pytest.raises(ImageError, match=r"is damaged or cut short .*; copy or download it again"):
        decode_photo(content[: len(content) // 2], SMALL, decode=decode)


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_exif_that_cannot_be_read_counts_as_none(decode: Any) -> None:
    broken = jpeg(smooth(40, 30), 6).replace(b"Exif\0\0MM\0*", b"Exif\0\0MM\0*"[:-4] + b"\xff" * 4)
    broken = broken.replace(b"Exif\0\0II*\0", b"Exif\0\0" + b"\xff" * 4)
    assert b"\xff\xff\xff\xff" in broken
    photo = decode_photo(broken, SMALL, decode=decode)
    assert (photo.width, photo.height) == (40, 30)


def test_threads_leave_the_filters_of_warnings_alone() -> None:
    content = jpeg(smooth(200, 150), 6)
    before = list(warnings.filters)
    threads = [
        threading.Thread(target=lambda: [decode_image(content) for _ in range(20)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before
