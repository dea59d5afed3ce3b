"""What decode="fast" gains and what it changes, on large JPEGs: the figures of docs/images.md.

    python benchmarks/fast_decode.py

The photos of examples/ are small (300 to 427 pixels on the shorter side), so that large ones are
made of them: enlarged by Lanczos to the shorter side asked for, then seeded Gaussian noise on every
pixel and channel, so that there is something at the finest scale that reducing could alias; saved
as JPEG of quality 90 with 4:2:0 chroma, as cameras do. Each is decoded from memory and resized as
``IMAGENET`` says (shorter side 256, bilinear, centre crop 224×224).

Time is processor time of one thread, the least of several turns in which both ways alternate, so
that other programs count little. What differs is measured against exact decoding: PSNR of the
224×224 pixels, and per level of a resnet50 the cosine and the relative difference |a - b| / |b| of
the averages over each map; of three photos the median time and the worst difference. The weights
are random, from a seed: trained ones may react more or less. The last two rows are for comparison,
both decoded exactly: what another choice of the same kind changes (bicubic instead of bilinear),
and how far the two most alike of the photos are from each other.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import io
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image, features

from trunkline import Backbone, create_backbone
from trunkline.images import IMAGENET, Preprocessing, decode_photo, pixels
from trunkline.runtimes.graphs import FromPixels

EXAMPLES = Path(__file__).parent.parent / "examples"
NOISE = 6.0  # standard deviation in levels of 255: that of a phone in a lit room, about
HEAD = (
    "| JPEG | decoded at | exact | fast | faster | PSNR | stride 4 | stride 8 | stride 16 "
    "| stride 32 |\n|---|---|---|---|---|---|---|---|---|---|"
)


def large_jpeg(path: Path, shorter: int) -> bytes:
    """Return an example photo at another size, with noise, as a JPEG."""
    image = Image.open(path).convert("RGB")
    scale = shorter / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    values = np.asarray(image.resize(size, Image.Resampling.LANCZOS), dtype=np.float32)
    noise = np.random.default_rng(shorter).standard_normal(values.shape, dtype=np.float32)
    noisy = np.clip(np.rint(values + NOISE * noise), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=90, subsampling="4:2:0")
    return file.getvalue()


def alternate(ways: list[Callable[[], Any]], turns: int) -> list[float]:
    """Return the least processor seconds of each way, which take turns."""
    best = [math.inf] * len(ways)
    for _ in range(turns):
        for number, way in enumerate(ways):
            started = time.thread_time()
            way()
            best[number] = min(best[number], time.thread_time() - started)
    return best


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio of two pictures, in dB."""
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def differences(
    network: FromPixels, one: NDArray[np.uint8], other: NDArray[np.uint8]
) -> list[tuple[float, float]]:
    """Return per level the cosine and the relative difference of the pooled maps."""
    with torch.inference_mode():
        maps = network(torch.from_numpy(np.stack([one, other])))
    found = []
    for values in maps:
        a, b = values.double().mean((2, 3))
        cosine = float(torch.nn.functional.cosine_similarity(a, b, dim=0))
        found.append((cosine, float((a - b).norm() / b.norm())))
    return found


def row(
    name: str, how: str, seconds: list[tuple[float, float]], dbs: list[float], levels: list[Any]
) -> str:
    """Return a line of the table: medians of times, the worst of what differs."""
    cells = [name, how]
    if seconds:
        exact, fast = (statistics.median(way) * 1000 for way in zip(*seconds, strict=True))
        cells += [f"{exact:.1f} ms", f"{fast:.1f} ms", f"{exact / fast:.1f}×"]
    else:
        cells += ["–", "–", "–"]
    cells.append(f"{min(dbs):.1f} dB")
    for level in zip(*levels, strict=True):
        cosine, relative = min(c for c, _ in level), max(r for _, r in level)
        cells.append(f"{cosine:.6f} / {relative:.1e}")
    return "| " + " | ".join(cells) + " |"


def rows(sizes: list[int], turns: int) -> Iterator[str]:
    """Measure every size, then what it is compared with."""
    torch.manual_seed(0)
    backbone: Backbone = create_backbone("resnet50").eval()
    network = FromPixels(backbone, IMAGENET)
    photos = sorted(EXAMPLES.glob("*.jpg"))
    for shorter in sizes:
        seconds, dbs, levels, factors = [], [], [], set()
        for path in photos:
            content = large_jpeg(path, shorter)
            fast = decode_photo(content, IMAGENET, decode="fast")
            factors.add(fast.factor)
            near, exact = pixels(fast, IMAGENET), pixels(decode_photo(content), IMAGENET)
            dbs.append(psnr(near, exact))
            levels.append(differences(network, near, exact))
            exactly, quickly = alternate([_way(content, "exact"), _way(content, "fast")], turns)
            seconds.append((exactly, quickly))
        factor = "/".join(f"1/{one}" for one in sorted(factors))
        yield row(f"shorter side {shorter}", factor, seconds, dbs, levels)
    yield from _for_comparison(network, photos, sizes[len(sizes) // 2])


def _way(content: bytes, decode: Any) -> Callable[[], NDArray[np.uint8]]:
    return lambda: pixels(decode_photo(content, IMAGENET, decode=decode), IMAGENET)


def _for_comparison(network: FromPixels, photos: list[Path], shorter: int) -> Iterator[str]:
    bicubic: Preprocessing = dataclasses.replace(IMAGENET, interpolation="bicubic")
    decoded = [decode_photo(large_jpeg(path, shorter)) for path in photos]
    usual = [pixels(photo, IMAGENET) for photo in decoded]
    other = [pixels(photo, bicubic) for photo in decoded]
    changes = [differences(network, one, two) for one, two in zip(other, usual, strict=True)]
    dbs = [psnr(one, two) for one, two in zip(other, usual, strict=True)]
    yield row(f"shorter side {shorter}", "1/1, bicubic", [], dbs, changes)
    pairs = list(combinations(usual, 2))
    apart = [differences(network, one, two) for one, two in pairs]
    nearest = min(range(len(pairs)), key=lambda n: apart[n][-1][1])
    yield row("two photos", "1/1", [], [psnr(*pairs[nearest])], [apart[nearest]])


def main() -> None:
    """Measure, and print the table as docs/images.md has it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[600, 1100, 2200, 4200])
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    print(
        f"{datetime.date.today()}, {_processor()}, Python {platform.python_version()}, "
        f"Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}, "
        f"torch {torch.__version__}, one core, noise {NOISE:g}\n\n{HEAD}"
    )
    for line in rows(given.sizes, given.turns):
        print(line, flush=True)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:  # not Linux
        return platform.processor() or platform.machine()
    return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))


if __name__ == "__main__":
    main()
