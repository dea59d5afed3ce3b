"""Small files that ask for much: a few of those that tools/checkpoint_bombs.py makes at any size.

That tool measures time and memory, which tests do not. Here is seen that all of them end in a text.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from checkpoint_bombs import BOMBS, STEMS, outcome, safetensors

from trunkline.backbones.backbone import Architecture
from trunkline.errors import CheckpointError
from trunkline.weights.checkpoint import read_checkpoint
from trunkline.weights.layouts import LAYOUTS
from trunkline.weights.matching import stem_weight
from trunkline.weights.reading.unwrapping import MAX_NAME, MAX_TENSORS
from trunkline.zoo import list_backbones, variant_config

BYTES = 40_000


@pytest.mark.parametrize("kind", BOMBS)
def test_no_bomb_ends_in_anything_but_an_error_of_ours(tmp_path: Path, kind: str) -> None:
    suffix, make = BOMBS[kind]
    path = tmp_path / f"bomb{suffix}"
    path.write_bytes(make(random.Random(f"{kind} 0"), BYTES))  # noqa: S311 - no secrets
    assert "read" not in outcome(path)


def test_the_bombs_look_like_every_layout() -> None:
    def first(name: str, architecture: Architecture) -> str:
        weight = stem_weight(architecture)
        return LAYOUTS[name].names(architecture, [weight])[weight].upstream

    wanted = {
        first(name, architecture)
        for name in LAYOUTS
        for architecture in map(variant_config, list_backbones())
        if LAYOUTS[name].applies(architecture)
    }
    assert wanted == set(STEMS)


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["module." * 100_000], "names a tensor in 700000 letters; 500 are the most"),
        (["x" * (MAX_NAME + 1)], "names a tensor in 501 letters"),
        ([f"t{n}" for n in range(MAX_TENSORS + 1)], "holds 10001 tensors; 10000 are the most"),
    ],
    ids=["very long", "long", "many"],
)
def test_what_no_network_has_is_refused(tmp_path: Path, names: list[str], match: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors(names, size=0))
    with pytest.raises(CheckpointError, match=match):
        read_checkpoint(path)


def test_what_a_network_may_have_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors([f"{n:0500}" for n in range(300)]))
    assert len(read_checkpoint(path).tensors) == 300
    path.write_bytes(safetensors([f"t{n}" for n in range(MAX_TENSORS)], size=0))
    assert len(read_checkpoint(path).tensors) == MAX_TENSORS
