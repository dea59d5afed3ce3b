"""Photos of noise, and the same photos as every kind of source that extraction takes."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

KINDS = ("folder", "glob", "list", "parquet", "tar")


def write_photos(folder: Path, count: int, *, seed: int = 0, bad_every: int = 37) -> Path:
    """Write JPEGs of noise, of 40 to 60 pixels.

    Args:
        folder: Made for them.
        count: How many; names are numbers.
        seed: Of the noise.
        bad_every: Every so manyth is cut after 100 bytes; 0 for none.

    Returns:
        The folder.
    """
    numbers = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        height, width = numbers.integers(40, 61, 2)
        coarse = numbers.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        path = folder / f"{number:05d}.jpg"
        Image.fromarray(coarse).resize((int(width), int(height))).save(path, quality=80)
        if bad_every and number % bad_every == bad_every - 1:
            path.write_bytes(path.read_bytes()[:100])
    return folder


def pack(photos: Path, kind: str, folder: Path) -> Path:
    """Return a source of a kind that has all photos of a folder, in their order.

    Args:
        photos: JPEGs.
        kind: One of ``KINDS``.
        folder: Where to write what has to be written.
    """
    paths = sorted(photos.iterdir())
    if kind == "glob":
        return photos / "*.jpg"
    if kind == "list":
        listed = folder / "images.txt"
        listed.write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")
        return listed
    if kind == "parquet":
        import pyarrow as pa
        from pyarrow import parquet

        table = pa.table(
            {"name": [path.name for path in paths], "image": [path.read_bytes() for path in paths]}
        )
        parquet.write_table(table, folder / "images.parquet", row_group_size=50)
        return folder / "images.parquet"
    if kind == "tar":
        with tarfile.open(folder / "images.tar", "w") as archive:
            for path in paths:
                archive.add(path, path.name)
        return folder / "images.tar"
    return photos
