"""Tars, zips, Parquet files, addresses and preprocessings that lie: see ``hostile_sources``."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import hostile_sources
import numpy as np

from attacks import Chance, Kind, check
from trunkline.images import IMAGENET, normalised
from trunkline.preprocessing import MAX_INPUT_PIXELS, Preprocessing

_VALUES: tuple[Any, ...] = (
    *(None, True, 0, 1, 224, 20_000, 10**30, -1, 0.5, 1e-300, 1e300, "", "RGB", "bilinear", "0..1"),
    *([], [1, 2], [8192, 8192], [8193, 8193], [0.5] * 3, [1e-50] * 3, ["a"] * 3, {}, {"a": [1]}),
)


def _source(kind: str, chance: Chance, folder: Path) -> str:
    random = np.random.default_rng(chance.randrange(1 << 62))
    location = hostile_sources.KINDS[kind](random, folder)
    problem = hostile_sources.problem_of(location)
    check(problem is None, f"{location!a}: {problem}")
    return "right"


def _preprocessing(chance: Chance, folder: Path) -> str:
    del folder
    fields: Any = IMAGENET.to_dict()
    for _ in range(chance.randint(1, 3)):
        fields[chance.choice([*fields, "more"])] = chance.choice(_VALUES)
    rule = Preprocessing.from_dict(json.loads(json.dumps(fields)))
    height, width = rule.output_size(1, 1)
    check(height * width <= MAX_INPUT_PIXELS, f"{rule} makes {height}x{width}")
    values = normalised(np.full((1, 1, 1, 3), 255, np.uint8), rule)
    check(bool(np.isfinite(values).all()), f"{rule} makes {values.ravel()}")
    return "right"


KINDS: dict[str, Kind] = {
    **{kind: partial(_source, kind) for kind in hostile_sources.KINDS},
    "preprocessing": _preprocessing,
}
