"""Decoding every kind of photo, and refusing what is none."""

from __future__ import annotations

import dataclasses
import doctest
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from trunkline import images as images_module
from trunkline.errors import ConfigError, ImageError
from trunkline.images import IMAGENET, decode_image, preprocess

ROOT = Path(__file__).parents[1]
ORIENTATION = 274
GREY = np.array([[0, 50, 100], [150, 200, 255]], dtype=np.uint8)
PLAIN = dataclasses.replace(
    IMAGENET, resize=None, crop=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
)


def pixels(source: Any, **options: Any) -> npt.NDArray[np.uint8]:
    image = decode_image(source, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """An 8-bit RGB PNG, written by hand so that its header may say anything."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


# --- orientation -----------------------------------------------------------------------------

STORED = np.array([[10, 20, 30], [40, 50, 60]], dtype=np.uint8)
UPRIGHT = {  # what a viewer shows of STORED, by the definition of the tag
    1: [[10, 20, 30], [40, 50, 60]],
    2: [[30, 20, 10], [60, 50, 40]],
    3: [[60, 50, 40], [30, 20, 10]],
    4: [[40, 50, 60], [10, 20, 30]],
    5: [[10, 40], [20, 50], [30, 60]],
    6: [[40, 10], [50, 20], [60, 30]],
    7: [[60, 30], [50, 20], [40, 10]],
    8: [[30, 60], [20, 50], [10, 40]],
}


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied_once(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = saved(Image.fromarray(STORED), tmp_path / f"photo.{suffix}", exif=exif)
    decoded = decode_image(path)
    assert np.asarray(decoded)[..., 0].tolist() == UPRIGHT[orientation]
    assert decoded.info == {}  # neither the tag nor a colour key can be applied again
    assert np.asarray(decode_image(decoded)).tolist() == np.asarray(decoded).tolist()


def test_exif_orientation_of_jpeg_swaps_the_sides(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = saved(Image.new("RGB", (48, 32)), tmp_path / "photo.jpg", exif=exif)
    assert decode_image(path).size == (32, 48)
    with Image.open(path) as opened:  # preprocess takes what the caller opened, upright as well
        assert preprocess(opened, PLAIN).shape == (3, 48, 32)


# --- colour modes ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "pgm", "gif"])
def test_grey_becomes_three_equal_channels(tmp_path: Path, suffix: str) -> None:
    path = saved(Image.fromarray(GREY), tmp_path / f"grey.{suffix}")
    assert (pixels(path) == GREY[..., None]).all()


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    path = saved(Image.fromarray(GREY > 120), tmp_path / "bits.png")
    assert pixels(path)[..., 1].tolist() == [[0, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_laid_over_white(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (3, 1))
    colour = (40,) if mode == "LA" else (40, 40, 40)
    for x, alpha in enumerate((0, 128, 255)):
        image.putpixel((x, 0), (*colour, alpha))
    clear, half, opaque = pixels(saved(image, tmp_path / "alpha.png"))[0].tolist()
    assert clear == [255, 255, 255]
    assert half == pytest.approx([40 * 128 / 255 + 127] * 3, abs=1)
    assert opaque == [40, 40, 40]


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_transparent_palette_colour_is_white(tmp_path: Path, suffix: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 20, 30, 40, 50])
    image.putpixel((1, 0), 1)
    opaque = pixels(saved(image, tmp_path / f"opaque.{suffix}"))[0].tolist()
    keyed = pixels(saved(image, tmp_path / f"keyed.{suffix}", transparency=0))[0].tolist()
    assert opaque == [[200, 10, 20], [30, 40, 50]]
    assert keyed == [[255, 255, 255], [30, 40, 50]]


def test_palette_with_partial_alpha(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 90, 90, 90])
    image.putpixel((1, 0), 1)
    path = saved(image, tmp_path / "p.png", transparency=bytes([51, 255]))
    assert pixels(path)[0].tolist() == [[204, 204, 204], [90, 90, 90]]  # 255 · (1 − 51/255)


def test_transparent_colour_key_of_rgb_png(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1), (7, 8, 9))
    image.putpixel((1, 0), (1, 2, 3))
    path = saved(image, tmp_path / "key.png", transparency=(7, 8, 9))
    assert pixels(path)[0].tolist() == [[255, 255, 255], [1, 2, 3]]


def test_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    # Written with Adobe's marker, that is with inverted inks, as Photoshop does.
    cyan = saved(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), tmp_path / "c.jpg", quality=95)
    dark = saved(Image.new("CMYK", (16, 16), (0, 0, 0, 200)), tmp_path / "k.jpg", quality=95)
    assert b"Adobe" in cyan.read_bytes()
    assert pixels(cyan).mean((0, 1)) == pytest.approx([0, 255, 255], abs=3)
    assert pixels(dark).mean((0, 1)) == pytest.approx([55, 55, 55], abs=3)


def test_cmyk_tiff(tmp_path: Path) -> None:
    path = saved(Image.new("CMYK", (1, 1), (0, 255, 0, 0)), tmp_path / "m.tiff")
    assert pixels(path).tolist() == [[[255, 0, 255]]]


@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str, byte_order: str) -> None:
    values = np.array([[0, 255, 256], [32768, 65279, 65535]])
    image = Image.fromarray(values.astype(byte_order))
    if suffix == "png" and byte_order == ">u2":
        image = Image.fromarray(values.astype("<u2"))
    path = saved(image, tmp_path / f"deep.{suffix}")
    assert pixels(path)[..., 2].tolist() == [[0, 0, 1], [128, 254, 255]]


def test_16_bit_grey_is_scaled_before_it_is_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    deep = Image.fromarray(STORED.astype(np.uint16) * 257)
    path = saved(deep, tmp_path / "deep.png", exif=exif)
    assert pixels(path)[..., 0].tolist() == UPRIGHT[6]


def test_16_bit_white_is_zero_tiff_is_inverted(tmp_path: Path) -> None:
    deep = Image.fromarray(GREY.astype(np.uint16) * 257)
    path = saved(deep, tmp_path / "negative.tiff", tiffinfo={262: 0})
    assert pixels(path)[..., 0].tolist() == (255 - GREY).tolist()


def test_12_bit_tiff_uses_its_whole_range(tmp_path: Path) -> None:
    # 0x000, 0x800, 0xfff, 0x100 in one row of four samples, packed three bytes a pair.
    data = bytes([0x00, 0x08, 0x00, 0xFF, 0xF1, 0x00])
    tags = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 110), (277, 1), (278, 1)]
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*tags, (279, len(data))]]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    head = (b"II*\0" + struct.pack("<I", 8) + directory).ljust(122, b"\0")
    path = tmp_path / "twelve.tiff"
    path.write_bytes(head.replace(struct.pack("<I", 110), struct.pack("<I", 122), 1) + data)
    assert pixels(path)[0, :, 0].tolist() == [0, 128, 255, 16]


def test_32_bit_integer_grey_within_16_bits(tmp_path: Path) -> None:
    path = saved(Image.fromarray(np.array([[0, 65535]], dtype=np.int32)), tmp_path / "i.tiff")
    assert pixels(path)[0, :, 0].tolist() == [0, 255]


def test_float_grey_is_0_to_1(tmp_path: Path) -> None:
    path = saved(Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32)), tmp_path / "f.tiff")
    assert pixels(path)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("value", [-1.0, 1.5, float("nan")])
def test_float_grey_outside_0_to_1_is_refused(value: float) -> None:
    image = Image.fromarray(np.array([[0.5, value]], dtype=np.float32))
    with pytest.raises(ImageError, match=r"mode F, where 0 to 1 is black to white; rescale it"):
        decode_image(image)


def test_32_bit_integer_grey_beyond_16_bits_is_refused() -> None:
    image = Image.fromarray(np.array([[0, 70000]], dtype=np.int32))
    with pytest.raises(ImageError, match=r"0 to 70000 in mode I, where 0 to 65535 is black to w"):
        decode_image(image)


def test_colour_mode_without_rgb_form_is_refused() -> None:
    with pytest.raises(ImageError, match=r"colour mode La.*save it as RGB"):
        decode_image(Image.new("La", (2, 2)))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_animation_gives_its_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    options: Any = {"lossless": True} if suffix == "webp" else {}
    path = tmp_path / f"frames.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as opened:
        assert getattr(opened, "n_frames", 1) == 2
    assert pixels(path).reshape(-1, 3).tolist() == [[255, 0, 0]] * 16


def test_path_bytes_and_pillow_image_give_the_same(tmp_path: Path) -> None:
    path = saved(Image.fromarray(GREY), tmp_path / "grey.png")
    image = Image.fromarray(GREY)
    expected = pixels(path).tolist()
    assert pixels(str(path)).tolist() == pixels(path.read_bytes()).tolist() == expected
    assert pixels(image).tolist() == expected
    assert image.mode == "L"  # the caller's image is not changed


# --- bad files -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tiff", "webp", "bmp"])
def test_truncated_file(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / f"cut.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=rf"cut\.{suffix} is (damaged or cut short|no photo, or)"):
        decode_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tiff", "webp"])
def test_damaged_bytes_give_a_picture_or_an_image_error(tmp_path: Path, suffix: str) -> None:
    random = np.random.default_rng(1)
    photo = random.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    content = saved(Image.fromarray(photo), tmp_path / f"x.{suffix}").read_bytes()
    refused = 0
    for _ in range(60):
        damaged = bytearray(content)
        for place in random.integers(0, len(content), 4):
            damaged[place] = random.integers(256)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow may remark on broken metadata
                decode_image(bytes(damaged[: random.integers(8, len(content))]))
        except ImageError:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"photo is empty; copy or download it again"),
        (
            b"not a photo, just text\n" * 20,
            r"photo is (no photo|a PostScript document), .*; give a file of .*JPEG.*PNG",
        ),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            r"photo is (no photo|a PostScript document)",
        ),
        (png(0, 5), r"photo is (no photo|a PostScript document)|photo has no pixels"),
        (png(5, 0), r"photo is (no photo|a PostScript document)|photo has no pixels"),
    ],
    ids=["empty", "text", "postscript", "0x5", "5x0"],
)
def test_file_that_is_no_photo(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "photo"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message):
        decode_image(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.jpg does not exist; check the path"):
        decode_image(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match=r"is a folder; give the path of one image file"):
        decode_image(tmp_path)
    with pytest.raises(ImageError, match=r"cannot be read: File name too long; check the path"):
        decode_image("x" * 5000)


def test_device_is_refused() -> None:
    with pytest.raises(ImageError, match=r"/dev/null is not a regular file"):
        decode_image("/dev/null")


def test_source_of_another_type() -> None:
    source: Any = 3
    with pytest.raises(ImageError, match=r"a path, bytes or a Pillow image, got int"):
        decode_image(source)
    with pytest.raises(ImageError, match=r"0 bytes is empty; give the whole content"):
        decode_image(b"")
    with pytest.raises(ImageError, match=r"the given image has no pixels: 0x5"):
        decode_image(Image.new("RGB", (0, 5)))
    with pytest.raises(ImageError, match=r"the given image has no pixels: 5x0"):
        preprocess(Image.new("RGB", (5, 0)))
    with pytest.raises(ImageError, match=r"takes a Pillow image, got int; decode_image makes one"):
        preprocess(source)


@pytest.mark.parametrize("side", [12_000, 40_000], ids=["Pillow warns", "Pillow refuses"])
def test_decompression_bomb_is_refused_by_its_header(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side))
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match=r"bomb\.png is (12000x12000|40000x40000), above the"):
        decode_image(path)  # warnings are errors here: none leaks
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("size", [(2**20 + 1, 1), (1, 2**20 + 1), (80_000_000, 1)])
def test_side_of_millions_of_pixels_is_refused_by_the_header(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=r"and a side has at most 1048576 pixels; cut it into pi"):
        decode_image(png(*size))


def test_tiles_that_are_larger_than_any_picture_are_refused_by_the_header() -> None:
    # Grey, 2 by 3 pixels, LZW; a decoder would take a gigabyte for its one tile.
    tags = [(256, 2), (257, 3), (258, 8), (259, 5), (262, 1), (277, 1), (322, 2**16), (323, 2**14)]
    entries = [
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*tags, (324, 140), (325, 9)]
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    content = (b"II*\0" + struct.pack("<I", 8) + directory).ljust(140, b"\0") + bytes(9)
    with pytest.raises(ImageError, match=r"is made of tiles of 65536x16384, above the limit of 89"):
        decode_image(content)


@pytest.mark.parametrize(
    "error", [MemoryError(), SystemError("tile cannot extend"), RecursionError(), KeyError(3)]
)
@pytest.mark.parametrize(
    ("kind", "method"),
    [(ImageFile.ImageFile, "load"), (Image.Image, "transpose"), (Image.Image, "convert")],
)
def test_whatever_a_decoder_raises_is_an_image_error(
    kind: Any, method: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise error

    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = saved(Image.fromarray(GREY), tmp_path / "x.png", exif=exif)
    message = "needs more memory than there is" if isinstance(error, MemoryError) else "is damaged"
    monkeypatch.setattr(kind, method, failing)
    with pytest.raises(ImageError, match=rf"x\.png {message}"):
        decode_image(path)


def test_max_pixels_is_the_largest_allowed(tmp_path: Path) -> None:
    path = saved(Image.fromarray(GREY), tmp_path / "six.png")
    assert pixels(path, max_pixels=6).shape == (2, 3, 3)
    with pytest.raises(ImageError, match=r"six\.png is 3x2, above the limit of 5 pixels; if you"):
        decode_image(path, max_pixels=5)
    with pytest.raises(ImageError, match=r"the given image is 3x2, above the limit of 5 pixels"):
        decode_image(Image.fromarray(GREY), max_pixels=5)
    with pytest.raises(ConfigError, match=r"max_pixels=0 must be a positive integer"):
        decode_image(path, max_pixels=0)


def test_examples_in_docstrings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = doctest.testmod(images_module)
    assert result.attempted > 0
    assert result.failed == 0


def test_a_larger_limit_is_ours_alone_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pillow refuses above twice its own limit, whatever the caller allows.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (40, 30), 7).save(tmp_path / "panorama.png")
    assert decode_image(tmp_path / "panorama.png").size == (40, 30)
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(ImageError, match=r"is 40x30, above the limit of 1199 pixels"):
        decode_image(tmp_path / "panorama.png", max_pixels=1199)


@pytest.mark.parametrize("kind", ["zTXt", "tEXt", "iTXt", "iCCP", "behind"])
def test_large_texts_of_a_sound_png_are_skipped(tmp_path: Path, kind: str) -> None:
    image = Image.effect_noise((40, 30), 60).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    info = PngImagePlugin.PngInfo()
    large = "x" * (2 << 20)
    if kind == "iTXt":
        info.add_itxt("workflow", large, zip=True)
    elif kind != "iCCP":
        info.add_text("workflow", large, zip=kind != "tEXt")
    profile: dict[str, Any] = {"icc_profile": bytes(2 << 20)} if kind == "iCCP" else {}
    image.save(tmp_path / "text.png", pnginfo=info, exif=exif, **profile)
    plain = tmp_path / "plain.png"
    image.save(plain, exif=exif)
    if kind == "behind":  # after the pixels, where it is found only once they are decoded
        content = (tmp_path / "text.png").read_bytes()
        start = content.index(b"zTXt") - 4
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        last = content.index(b"IEND") - 4
        moved = content[:start] + content[end:last] + content[start:end] + content[last:]
        (tmp_path / "text.png").write_bytes(moved)
    assert decode_image(tmp_path / "text.png").tobytes() == decode_image(plain).tobytes()
    assert decode_image((tmp_path / "text.png").read_bytes()).size == (30, 40)
