"""Images that are in memory, or made one by one, as a source that any run can go on with.

They are written, losslessly and once, into a Parquet file beside the store, ``OUT.images.parquet``:
the plan, workers, Ray and ``verify`` read them there like any other source, in any order and after
any interruption. No more than one row group is held in memory.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trunkline.errors import ConfigError, SourceError, StoreError
from trunkline.extraction.locations import anchored
from trunkline.extraction.sources import Source
from trunkline.outputs import sha256_of, written_whole
from trunkline.runtimes.optional import require

KEY, IMAGE = "key", "image"
_GROUP_BYTES = 32 << 20


def is_in_memory(src: object) -> bool:
    """Return whether a source is no path or URL, but images themselves."""
    return not isinstance(src, str | bytes | os.PathLike) and (
        hasattr(src, "__iter__") or hasattr(src, "__getitem__")
    )


def source_in_memory(out: str | os.PathLike[str]) -> Source:
    """Return the source that ``spooled`` writes, which need not be there yet.

    Raises:
        ConfigError: The store is not on a local disk.
    """
    location = anchored(os.fspath(_target(out)))
    return Source(kind="parquet", location=location, column=IMAGE, key_column=KEY)


def _target(out: str | os.PathLike[str]) -> Path:
    if "://" in os.fspath(out):
        raise ConfigError(f"images in memory need a store on a local disk, got {out}.")
    return Path(f"{os.fspath(out).rstrip('/')}.images.parquet")


def spooled(src: Any, out: str | os.PathLike[str], *, rasters: bool = False) -> Path:
    """Write images into the file beside a store, or see that those there are the same.

    Args:
        src: A uint8 array ``(N, H, W, 3)``; a dataset with ``__len__`` and ``__getitem__``, of
            images, ``(image, label)`` pairs or dictionaries with ``"image"``; or any iterable of
            images or ``(key, image)`` pairs. An image is a path, the bytes of a file, a Pillow
            image, or a uint8 array or tensor, ``(H, W, 3)``, ``(H, W)`` or ``(3, H, W)``.
        out: The store, a local path.
        rasters: Whether arrays and tensors are ``(H, W, C)`` and ``(C, H, W)`` of any number of
            channels and any dtype; a source that is an array is ``(N, H, W, C)`` then.

    Returns:
        The file.

    Raises:
        SourceError: There are no images.
        ConfigError: Something among them is no image, or a key is there twice.
        StoreError: The file there is of other images.
    """
    target = _target(out)
    with written_whole(target if not target.exists() else _aside(target)) as path:
        _write(path, src, rasters=rasters)
        if not target.exists():
            return target
        same = sha256_of(path) == sha256_of(target)
    _aside(target).unlink()
    if not same:
        raise StoreError(
            f"{target} holds other images than those that were given now; give the same again to "
            "go on with the store, or extract into a new place."
        )
    return target


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.again-{os.getpid()}")


def _write(path: Path, src: Any, *, rasters: bool) -> None:
    pa = require("pyarrow", "images in memory")
    from pyarrow import parquet

    schema = pa.schema([(KEY, pa.string()), (IMAGE, pa.binary())])
    seen: set[bytes] = set()
    with parquet.ParquetWriter(path, schema, compression="zstd", compression_level=1) as writer:
        keys: list[str] = []
        contents: list[bytes] = []
        held = 0

        def flush() -> None:
            columns = [pa.array(keys, pa.string()), pa.array(contents, pa.binary())]
            writer.write_table(pa.table(columns, schema=schema))
            keys.clear()
            contents.clear()

        for number, (key, image) in enumerate(_pairs(src, rasters=rasters)):
            digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            if digest in seen:
                raise ConfigError(
                    f"two images have the key {key!r}; a key tells one from all others."
                )
            seen.add(digest)
            keys.append(key)
            contents.append(
                _raster(image) if rasters and _is_numbers(image) else encoded(image, number)
            )
            held += len(contents[-1])
            if held > _GROUP_BYTES:
                flush()
                held = 0
        if not seen:
            raise SourceError("there are no images in what was given as a source.")
        if keys:
            flush()


def _pairs(src: Any, *, rasters: bool) -> Iterator[tuple[str, Any]]:
    """Yield key and image; images without a key are numbered."""
    is_array = isinstance(src, np.ndarray) and not rasters
    if is_array and (src.ndim not in (3, 4) or src.dtype != np.uint8):
        raise ConfigError(
            f"an array as a source is (N, H, W, 3) uint8, RGB, got {src.shape} {src.dtype}."
        )
    items: Iterable[Any] = src
    if hasattr(src, "__len__") and hasattr(src, "__getitem__"):
        items = (src[number] for number in range(len(src)))  # not all datasets end an iteration
    for number, item in enumerate(items):
        key, image = f"{number:09}", item
        if isinstance(item, dict):
            image = item.get("image", item.get("img"))
            key = str(item.get("key", item.get("id", key)))
        elif isinstance(item, tuple | list) and len(item) == 2:
            first, second = item
            if isinstance(first, str | int) and _is_image(second):
                key, image = str(first), second
            else:
                image = first  # with its label
        yield key, image


def _is_image(value: object) -> bool:
    return isinstance(value, bytes | os.PathLike | Image.Image | np.ndarray) or hasattr(
        value, "detach"
    )


def _is_numbers(image: object) -> bool:
    return isinstance(image, np.ndarray) or hasattr(image, "detach")


def _raster(image: Any) -> bytes:
    """Return an array ``(H, W, C)``, or a tensor ``(C, H, W)``, as the bytes of a TIFF."""
    tifffile = require("tifffile", "rasters in memory")
    if hasattr(image, "detach"):
        image = image.detach().cpu().numpy()
        image = image.transpose(1, 2, 0) if image.ndim == 3 else image
    planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    made = io.BytesIO()
    tifffile.imwrite(
        made, np.ascontiguousarray(planes), photometric="minisblack", planarconfig="separate"
    )
    return made.getvalue()


def encoded(image: Any, number: int) -> bytes:
    """Return an image as the bytes of a file, without loss.

    Raises:
        ConfigError: It is none.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    made = io.BytesIO()
    if isinstance(image, Image.Image):
        # PNG has no CMYK, and Pillow's own float and integer modes neither.
        kind = "PNG" if image.mode in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA") else "TIFF"
        image.save(made, kind, **({"compress_level": 1} if kind == "PNG" else {}))
        return made.getvalue()
    if hasattr(image, "detach"):  # a tensor of PyTorch
        image = image.detach().cpu().numpy()
        if image.ndim == 3 and image.shape[0] in (1, 3):
            image = image.transpose(1, 2, 0)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        if image.ndim == 3 and image.shape[2] == 1:
            image = image[:, :, 0]
        if image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3):
            Image.fromarray(np.ascontiguousarray(image)).save(made, "PPM")
            return made.getvalue()
    what = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
    raise ConfigError(
        f"image {number} of the source is {what}; allowed: a path, the bytes of a file, a Pillow "
        "image, or 8-bit pixels (uint8) as an array or tensor, (H, W, 3), (H, W) or (3, H, W)."
    )
