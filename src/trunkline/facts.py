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
from trunkline.backbones.variants import VariantNames

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


@cache
def names() -> VariantNames:
    """Return the names of all variants, as ``trunkline.zoo`` has them, without PyTorch."""
    known = facts().values()
    return VariantNames(
        {one.name: one.family for one in known},
        {alias: one.name for one in known for alias in one.aliases},
    )


def fact(name: str) -> BackboneInfo:
    """Return what is known of a variant by any of its names.

    Raises:
        UnknownVariantError: No such name; the closest ones are in the text.
    """
    return facts()[names().canonical(name)]
