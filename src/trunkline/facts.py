"""What is known of every variant, as data: ``trunkline list`` and ``info`` wait for no PyTorch.

``variants.json`` is written by ``python tools/model_table.py --update`` from the networks on the
meta device; ``make check`` compares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

import msgspec

from trunkline.backbones.levels import Level

FILE = "variants.json"


@dataclass(frozen=True)
class BackboneInfo:
    """What is known of a variant before it is built.

    Attributes:
        name: The variant.
        family: ``"resnet"``, ``"dla"`` or ``"regnet"``.
        aliases: Other names for it, normalised (lower case, hyphens).
        num_parameters: Learned values, without a classifier.
        macs: Multiply-accumulates of the convolutions for one 3×224×224 image.
        levels: All maps it has, the stem's first.
    """

    name: str
    family: str
    aliases: tuple[str, ...]
    num_parameters: int
    macs: int
    levels: tuple[Level, ...]


@cache
def facts() -> dict[str, BackboneInfo]:
    """Return every variant by name, in the families' own order."""
    content = resources.files("trunkline").joinpath(FILE).read_bytes()
    return {one.name: one for one in msgspec.json.decode(content, type=list[BackboneInfo])}


def fact(name: str) -> BackboneInfo | None:
    """Return what is known of a variant by any of its names, None for a name that is not here."""
    plain = name.strip().lower().replace("_", "-").rpartition("/")[2]
    known = facts()
    if plain in known:
        return known[plain]
    return next((one for one in known.values() if plain in one.aliases), None)
