"""Networks that no name and no shape of a tensor tells apart.

A state dict does not say where a bottleneck halves, how its shortcut does, or what a root adds up.
So some files fit two variants, and give wrong maps in one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any

import torch

from trunkline.backbones.backbone import Architecture, Backbone
from trunkline.backbones.layers import NormStandIn
from trunkline.weights.layouts import layouts_for
from trunkline.weights.layouts.layout import Layout, feature
from trunkline.weights.matching import stem_weight
from trunkline.zoo import list_backbones, variant_config

NUM_STAGES = 4

# What no tensor tells of a config, and the first stage that computes something else by it.
UNTOLD = {"pooled_shortcut": 1, "stride_in_1x1": 1, "residual_root": 0}


@dataclass(frozen=True)
class Lookalike:
    """A variant that makes another function of the names and shapes in a file.

    Attributes:
        variant: Its name.
        layout: Whose names of it the file has.
    """

    variant: str
    layout: Layout


def lookalikes(
    architecture: Architecture,
    layout: Layout,
    native: Sequence[str],
    *,
    held: int = NUM_STAGES,
    kept: int = NUM_STAGES,
) -> Iterator[Lookalike]:
    """Find the variants that a file fits as well, and that compute something else.

    Args:
        architecture: What the file was taken for.
        layout: How its names were read.
        native: What it holds of the kept stages, by our names.
        held: Stages that the file holds.
        kept: Stages that are computed.
    """
    ours = None
    if not is_dataclass(architecture):  # somebody's own family has no variants
        return
    for variant in list_backbones():
        other = variant_config(variant)
        if _told(other, held) != _told(architecture, held) or not any(
            feature(other, field) != feature(architecture, field)
            for field, first in UNTOLD.items()
            if first < kept
        ):
            continue
        ours = ours or _names(architecture, layout, native)
        known = _read_alike(other, layout, ours)
        if known is not None:
            yield Lookalike(variant, known)


def _read_alike(other: Architecture, layout: Layout, ours: dict[str, str]) -> Layout | None:
    """Return the layout that gives another network the same names, None where there is none."""
    stem = stem_weight(other)
    for known in layouts_for(other):
        if (
            known.norm == layout.norm
            and _names(other, known, [stem])[stem] == ours[stem]  # before all the others
            and _names(other, known, list(ours)) == ours
        ):
            return known
    return None


def _names(architecture: Architecture, layout: Layout, native: Sequence[str]) -> dict[str, str]:
    return {ours: name.upstream for ours, name in layout.names(architecture, native).items()}


def computes_alike(one: Architecture, other: Architecture) -> bool:
    """Return whether two networks compute the same from the same tensors and images.

    Configs that differ may: vd projects the first shortcut even where the width stays, which it
    does in no bottleneck.
    """
    return one == other or layers_of(one) == layers_of(other)


@cache
def layers_of(architecture: Architecture) -> tuple[str, ...]:
    """Return the stem's layers and those of each stage, with all that they were given."""
    with torch.device("meta"):
        backbone = Backbone(architecture, norm=NormStandIn)
    return (repr(backbone.stem), *map(repr, backbone.stages))


def difference(other: Architecture, ours: Architecture) -> str:
    """Say in which fields of their configs two networks differ, in a clause."""
    if other.family != ours.family:
        return f"a {other.family}, here a {ours.family}"
    return ", ".join(
        f"{field.name} {getattr(other, field.name)}, here {getattr(ours, field.name)}"
        for field in fields(ours)  # type: ignore[arg-type]
        if getattr(other, field.name) != getattr(ours, field.name)
    )


def _told(architecture: Any, stages: int) -> tuple[object, ...]:
    """Return what the tensors of the first stages do tell of a config."""
    fixed = {field: False for field in UNTOLD if hasattr(architecture, field)}
    if hasattr(architecture, "project_first"):
        widens = architecture.stem_channels != architecture.stage_channels[0]
        fixed["project_first"] = architecture.project_first and not widens
    values = {field.name: getattr(architecture, field.name) for field in fields(architecture)}
    return (
        architecture.family,
        *(
            value[:stages] if isinstance(value, tuple) and len(value) == NUM_STAGES else value
            for value in (values | fixed).values()
        ),
    )
