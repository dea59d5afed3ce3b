"""Decode seeded mutations of small photos: each gives a picture or an ImageError, and nothing else.

    python tools/mutate_images.py --count 10000 --seed 0

Case ``number`` of a seed is always the same bytes, for one version of Pillow: it wrote the photos
that are mutated. A case is wrong if it raises anything but ``ImageError``, warns, gives something
other than an RGB picture within ``max_pixels``, or takes longer than ``SLOW_SECONDS``. JPEGs are
decoded at reduced scale as well, and what was decoded is resized. The counts per format are
printed, with the slowest case and by how much the process grew; the exit code is 1 if one was
wrong. ``tests/test_images_mutated.py`` runs a sample.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import resource
import struct
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import PIL
from PIL import Image

from trunkline.errors import ImageError
from trunkline.images import IMAGENET, MAX_PIXELS, decode_photo, pixels

SLOW_SECONDS = 5.0
HANG_SECONDS = 60  # after which the whole process is ended, with a trace of where it stood
SMALL = IMAGENET.with_size(8)  # a JPEG of 48×40 is decoded at 1/2 for it

Random = np.random.Generator


@dataclass
class Tally:
    """What became of the mutations of one format.

    Attributes:
        decoded: How many gave a picture.
        refused: How many were an ImageError.
        slowest: Seconds of the slowest one, and its number.
        wrong: What was neither: number of the case, name of the photo, what happened.
    """

    decoded: int = 0
    refused: int = 0
    slowest: tuple[float, int] = (0.0, 0)
    wrong: list[str] = field(default_factory=list)


@cache
def photos() -> dict[str, bytes]:
    """Return the photos that are mutated: name, which begins with its format, → file."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (7, 8, 3), dtype=np.uint8)
    photo = Image.fromarray(coarse).resize((48, 40), Image.Resampling.BICUBIC)
    clear = photo.copy()
    clear.putalpha(Image.fromarray(random.integers(0, 256, (40, 48), dtype=np.uint8)))
    deep = Image.fromarray(random.integers(0, 2**16, (40, 48)).astype(np.uint16))
    palette = photo.quantize(16)
    exif = Image.Exif()
    exif[274], exif[271] = 6, "maker"  # orientation, and one more entry to break
    frames: dict[str, Any] = {"save_all": True}  # with a second one, see below
    made: dict[str, tuple[str, Image.Image, dict[str, Any]]] = {
        "JPEG": ("JPEG", photo, {"exif": exif}),
        "JPEG progressive": ("JPEG", photo, {"progressive": True, "exif": exif}),
        "JPEG grey": ("JPEG", photo.convert("L"), {}),
        "JPEG CMYK": ("JPEG", photo.convert("CMYK"), {}),
        "JPEG several": ("MPO", photo, frames),
        "PNG": ("PNG", photo, {"exif": exif}),
        "PNG alpha": ("PNG", clear, {}),
        "PNG 16-bit": ("PNG", deep, {}),
        "PNG palette": ("PNG", palette, {"transparency": bytes(range(0, 256, 16))}),
        "PNG animated": ("PNG", photo, frames),
        "WebP": ("WEBP", photo, {"exif": exif}),
        "WebP lossless alpha": ("WEBP", clear, {"lossless": True}),
        "WebP animated": ("WEBP", photo, frames),
        "GIF": ("GIF", palette, {"transparency": 3}),
        "GIF animated": ("GIF", photo, frames),
        "TIFF": ("TIFF", photo, {"exif": exif}),
        "TIFF pages, LZW": ("TIFF", photo, {**frames, "compression": "tiff_lzw"}),
        "TIFF deflate": ("TIFF", clear, {"compression": "tiff_adobe_deflate"}),
        "TIFF JPEG": ("TIFF", photo, {"compression": "jpeg"}),
        "TIFF 16-bit": ("TIFF", deep, {}),
        "BMP": ("BMP", photo, {}),
        "BMP palette": ("BMP", palette, {}),
        "PPM": ("PPM", photo, {}),
        "PPM grey": ("PPM", photo.convert("L"), {}),
        "JPEG2000": ("JPEG2000", photo, {"irreversible": True}),
        "JPEG2000 alpha": ("JPEG2000", clear, {}),
        "AVIF": ("AVIF", photo, {"exif": exif}),
        "AVIF alpha": ("AVIF", clear, {}),
    }
    files = {}
    Image.init()  # or the table of what can be saved is not complete
    for name, (kind, image, options) in made.items():
        if kind not in Image.SAVE:  # not every Pillow has every library
            continue
        file = io.BytesIO()
        second = {"append_images": [photo.rotate(90)]} if "save_all" in options else {}
        image.copy().save(file, kind, **options, **second)  # copies: saving leaves options behind
        files[name] = file.getvalue()
    return files


def mutation(seed: int, number: int) -> tuple[str, bytes]:
    """Return the name of the photo and the bytes of one case; every photo has its turn."""
    random = np.random.default_rng([seed, number])
    files = photos()
    names = list(files)
    name = names[number % len(names)]
    content = bytearray(files[name])
    for _ in range(random.integers(1, 4)):
        kind = _MUTATIONS[random.integers(len(_MUTATIONS))]
        content = kind(content, random) or content
    if name.startswith("PNG") and random.random() < 0.8:
        content = _with_checksums(content)  # otherwise nothing behind a checksum is ever reached
    return name, bytes(content)


def _flip_bits(content: bytearray, random: Random) -> bytearray:
    for place in random.integers(0, len(content), random.integers(1, 9)):
        content[place] ^= 1 << int(random.integers(8))
    return content


def _truncate(content: bytearray, random: Random) -> bytearray:
    return content[: int(random.integers(1, len(content) + 1))]


def _splice(content: bytearray, random: Random) -> bytearray:
    """Put the end of another photo behind the beginning of this one."""
    files = list(photos().values())
    other = files[random.integers(len(files))]
    return content[: _place(content, random)] + other[_place(other, random) :]


def _edit_header(content: bytearray, random: Random) -> bytearray:
    """Write an extreme number where sizes, counts and offsets stand."""
    return _write_number(content, random, min(len(content), 160))


def _edit_anywhere(content: bytearray, random: Random) -> bytearray:
    return _write_number(content, random, len(content))


def _write_number(content: bytearray, random: Random, before: int) -> bytearray:
    width = int(2 ** random.integers(0, 3))
    values = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)
    value = values[random.integers(len(values))] % 256**width
    start = int(random.integers(before))
    order = "big" if random.random() < 0.5 else "little"
    content[start : start + width] = value.to_bytes(width, order)
    return content


def _repeat(content: bytearray, random: Random) -> bytearray:
    start, end = sorted((_place(content, random), _place(content, random)))
    return content[:end] + content[start:end] * int(random.integers(1, 9)) + content[end:]


def _remove(content: bytearray, random: Random) -> bytearray:
    start = _place(content, random)
    return content[:start] + content[start + int(random.integers(1, 65)) :]


def _blank(content: bytearray, random: Random) -> bytearray:
    start, length = _place(content, random), int(random.integers(1, 65))
    content[start : start + length] = bytes(len(content[start : start + length]))
    return content


def _place(content: bytes | bytearray, random: Random) -> int:
    return int(random.integers(len(content) + 1))


_MUTATIONS: tuple[Callable[[bytearray, Random], bytearray], ...] = (
    _flip_bits,
    _truncate,
    _splice,
    _edit_header,
    _edit_anywhere,
    _repeat,
    _remove,
    _blank,
)


def _with_checksums(content: bytearray) -> bytearray:
    """Return a PNG whose chunks have the right checksums, as far as chunks can be told."""
    start = 8
    while start + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, start)
        end = start + 8 + length
        if end + 4 > len(content):
            break
        struct.pack_into(">I", content, end, zlib.crc32(content[start + 4 : end]))
        start = end + 4
    return content


def run(numbers: range, seed: int, max_pixels: int = MAX_PIXELS) -> dict[str, Tally]:
    """Decode the cases with these numbers.

    Returns:
        Format → what became of its mutations. Formats are those of the photos before mutation.
    """
    tallies: dict[str, Tally] = {}
    for number in numbers:
        name, content = mutation(seed, number)
        tally = tallies.setdefault(name.split()[0], Tally())
        started = time.perf_counter()
        with warnings.catch_warnings(record=True) as remarks:
            warnings.simplefilter("always")  # not "error": decoding would catch what is raised
            try:
                _decode(content, max_pixels)
                tally.decoded += 1
            except ImageError:
                tally.refused += 1
            except Exception as error:  # the very thing that is looked for
                tally.wrong.append(f"case {number} ({name}): {error!r}")
        tally.wrong += [f"case {number} ({name}): warned {one.message!r}" for one in remarks]
        took = time.perf_counter() - started
        tally.slowest = max(tally.slowest, (took, number))
        if took > SLOW_SECONDS:
            tally.wrong.append(f"case {number} ({name}): took {took:.1f} s")
    return tallies


def _decode(content: bytes, max_pixels: int) -> None:
    """Decode both ways and resize; raise what the decoder raises, ValueError for a bad result."""
    photo = decode_photo(content, max_pixels=max_pixels)
    fast = decode_photo(content, SMALL, decode="fast", max_pixels=max_pixels)
    for one in (photo, fast):
        if one.image.mode != "RGB" or not 1 <= one.width * one.height <= max_pixels:
            raise ValueError(f"{one.image.mode} of {one.width}x{one.height}")
        if pixels(one, SMALL).shape != (8, 8, 3):
            raise ValueError("not of the size asked for")
    if (photo.width, photo.height) != (fast.width, fast.height):
        raise ValueError("another size at reduced scale")
    if fast.factor == 1 and fast.image.tobytes() != photo.image.tobytes():
        raise ValueError("other pixels from the same bytes")


def _lines(tallies: dict[str, Tally]) -> Iterator[str]:
    yield f"{'format':8}{'decoded':>9}{'refused':>9}{'wrong':>7}  slowest"
    for name, tally in tallies.items():
        seconds, number = tally.slowest
        counts = f"{tally.decoded:9}{tally.refused:9}{len(tally.wrong):7}"
        yield f"{name:8}{counts}  {seconds * 1000:.1f} ms (case {number})"
    for tally in tallies.values():
        yield from tally.wrong


def main() -> int:
    """Decode as many mutations as asked for, and say what became of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--max-pixels", type=int, default=MAX_PIXELS)
    given = parser.parse_args()
    faulthandler.dump_traceback_later(HANG_SECONDS * max(1, given.count // 1000), exit=True)
    photos()
    before, started = _peak_mb(), time.perf_counter()
    numbers = range(given.first, given.first + given.count)
    tallies = run(numbers, given.seed, given.max_pixels)
    print("\n".join(_lines(tallies)))
    totals = Counter[str]()
    for tally in tallies.values():
        totals.update(decoded=tally.decoded, refused=tally.refused, wrong=len(tally.wrong))
    print(
        f"{given.count} mutations, seed {given.seed}, Pillow {PIL.__version__}: "
        f"{totals['decoded']} decoded, {totals['refused']} refused, {totals['wrong']} wrong; "
        f"{time.perf_counter() - started:.0f} s, peak memory {before:.0f} → {_peak_mb():.0f} MB"
    )
    return 1 if totals["wrong"] else 0


def _peak_mb() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


if __name__ == "__main__":
    sys.exit(main())
