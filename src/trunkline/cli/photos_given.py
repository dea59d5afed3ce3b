"""The photos that the arguments of a verb mean: paths, and whatever ``trunkline extract`` takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from trunkline.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from trunkline.extraction.records import Item
    from trunkline.extraction.sources import Source
    from trunkline.images import Bands, Raster


class GivenPhoto(NamedTuple):
    """One photo: what it is called, and what decodes it.

    ``decode`` raises an ``ImageError`` for one that cannot be read.
    """

    name: str
    decode: Callable[[], Image | Raster]


def is_collection(given: str) -> bool:
    """Say whether an argument means several photos: a folder, a glob, a list, an archive, a URL."""
    from trunkline.extraction.list_files import ENDINGS
    from trunkline.extraction.locations import is_pattern, is_url

    if is_url(given) or Path(given).is_dir():
        return True
    if given.lower().endswith((*ENDINGS, ".tar", ".parquet")):
        return True
    return is_pattern(given) and not os.path.lexists(given)


def photos_given(arguments: Sequence[str], bands: Bands | None = None) -> Iterator[GivenPhoto]:
    """Return the photos that arguments mean, in their order; none of them is opened yet.

    Args:
        arguments: What was written behind the verb.
        bands: Which bands of rasters are wanted; None for photos.

    Raises:
        ImageError: A path where nothing is, or a collection without photos.
        SourceError: A collection that cannot be listed.
    """
    return chain.from_iterable([_of(given, bands) for given in arguments])  # all are looked for now


def _of(given: str, bands: Bands | None) -> Iterator[GivenPhoto]:
    if not is_collection(given):
        return iter([_one(given, bands)])
    from trunkline.extraction.sources import list_items, source_of

    source = source_of(given)
    items = list_items(source)
    first = next(items, None)
    if first is None:
        raise ImageError(
            f"{given} is a {source.kind} without photos; give one that has some, or the paths of "
            "photos."
        )
    return _all_listed(given, source, chain([first], items), bands)


def _one(given: str, bands: Bands | None) -> GivenPhoto:
    if not Path(given).exists():
        raise ImageError(f"{given} does not exist; check the path.")
    return GivenPhoto(given, partial(decoded, given, bands))


def _all_listed(
    given: str, source: Source, items: Iterator[Item], bands: Bands | None
) -> Iterator[GivenPhoto]:
    from trunkline.extraction.reading import close_files

    try:
        for item in items:
            yield _listed(given, source, item, bands)
    finally:
        close_files()  # archives stay open from one photo to the next


def _listed(given: str, source: Source, item: Item, bands: Bands | None) -> GivenPhoto:
    from trunkline.extraction.locations import local_path

    path = local_path(item.path)
    if source.kind in ("folder", "glob") and path is not None:
        name = path if os.path.isabs(given) else os.path.relpath(path)
        return GivenPhoto(name, partial(decoded, name, bands))
    return GivenPhoto(item.key, partial(_decode_item, source, item, bands))


def _decode_item(source: Source, item: Item, bands: Bands | None) -> Image | Raster:
    from trunkline.extraction.reading import read_bytes

    return decoded(read_bytes(source, item), bands)


def decoded(given: str | bytes, bands: Bands | None) -> Image | Raster:
    """Decode a path or the bytes of a file: these bands of a raster, or a photo for None.

    Raises:
        ImageError: It cannot be decoded.
    """
    from trunkline.images import decode_bands, decode_image

    return decode_image(given) if bands is None else decode_bands(given, bands)
