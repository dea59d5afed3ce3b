"""Every pair of variants that names and shapes do not tell apart, found by holding all against all.

What is found is what ``lookalikes`` names; test_doubts.py sees that none of it goes unsaid.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from upstream_files import natives, on_meta, shapes_under

from trunkline import Backbone, create_backbone, list_backbones
from trunkline.backbones.dla import DLAConfig
from trunkline.backbones.regnet import RegNetConfig
from trunkline.backbones.resnet import ResNetConfig
from trunkline.weights.layouts import LAYOUTS, layouts_for
from trunkline.weights.lookalikes import UNTOLD, computes_alike, layers_of, lookalikes
from trunkline.zoo import build_backbone, variant_config

Shapes = frozenset[tuple[str, torch.Size]]
STAGES = (1, 2, 3, 4)


def files(stages: int) -> Iterator[tuple[str, str, Shapes]]:
    for variant in list_backbones():
        for layout in layouts_for(variant_config(variant)):
            yield variant, layout.name, shapes_under(variant, layout.name, stages)


def groups(stages: int) -> dict[Shapes, list[tuple[str, str]]]:
    """All variants and layouts by what their files hold: the brute force that nothing escapes."""
    found: dict[Shapes, list[tuple[str, str]]] = {}
    for variant, layout, shapes in files(stages):
        found.setdefault(shapes, []).append((variant, layout))
    return found


def differ(one: str, other: str, stages: int) -> bool:
    ours, theirs = (layers_of(variant_config(v))[: stages + 1] for v in (one, other))
    return ours != theirs


@pytest.mark.parametrize("stages", STAGES)
def test_no_pair_of_variants_is_forgotten(stages: int) -> None:
    for members in groups(stages).values():
        variants = {variant for variant, _ in members}
        for variant, layout in members:
            architecture, known = variant_config(variant), LAYOUTS[layout]
            found = lookalikes(
                architecture, known, natives(variant, known, stages), held=stages, kept=stages
            )
            expected = {other for other in variants if differ(variant, other, stages)}
            assert {one.variant for one in found} == expected, (variant, layout)


def test_the_families_of_lookalikes_are_those_that_the_page_lists() -> None:
    found = {
        tuple(sorted({variant for variant, _ in members}))
        for members in groups(4).values()
        if any(differ(a, b, 4) for (a, _), (b, _) in itertools.combinations(members, 2))
    }
    assert found == {
        ("resnet50", "resnet50-caffe"),
        ("resnet101", "resnet101-caffe"),
        ("resnet50c", "resnet50d", "resnet50vd"),
    }
    page = Path(__file__).parents[2].joinpath("docs/loading.md").read_text(encoding="utf-8")
    for variants in found:
        assert f"| {', '.join(f'`{variant}`' for variant in variants)} |" in page


def test_no_file_holds_another_network_beside_something_that_may_be_left_aside() -> None:
    for name, layout in LAYOUTS.items():
        known = [(v, shapes) for v, said, shapes in files(4) if said == name]
        for (one, larger), (other, smaller) in itertools.permutations(known, 2):
            if smaller < larger:
                rest = [short for short, _ in larger - smaller]
                assert not all(layout.drop_reason(short) for short in rest), (one, other, name)


# Equal layers compute the same, different ones do not.


def maps(backbone: Backbone, state: Mapping[str, Tensor]) -> list[Tensor]:
    backbone.load_state_dict(state, assign=True)
    torch.manual_seed(0)
    with torch.inference_mode():
        found: list[Tensor] = backbone.eval()(torch.randn(1, 3, 64, 32))
    return found


def apart(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether any map differs; rounding does not count."""
    return any(
        float((a - b).abs().max() / a.abs().max()) > 1e-3 for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_what_is_called_another_function_gives_other_maps(stages: int) -> None:
    sets = {frozenset(variant for variant, _ in members) for members in groups(stages).values()}
    largest = [one for one in sets if len(one) > 1 and not any(one < other for other in sets)]
    largest = [one for one in largest if not all("net101" in variant for variant in one)]  # as 50
    assert largest
    for variants in largest:
        torch.manual_seed(1)
        state = create_backbone(min(variants), return_idx=(stages - 1,)).state_dict()
        seen = {v: maps(on_meta(v, return_idx=(stages - 1,)), state) for v in variants}
        for one, other in itertools.combinations(sorted(variants), 2):
            assert apart(seen[one], seen[other]) == differ(one, other, stages), (one, other)


CONFIGS: list[Any] = [
    ResNetConfig(depths=(1, 2, 1, 1), bottleneck=True, width=8, width_per_group=64),
    ResNetConfig(depths=(1, 1, 1, 1), bottleneck=False, width=8, stem_widths=(4, 4, 8)),
    DLAConfig(depths=(1, 2, 1, 1), channels=(8, 16, 32, 32), bottleneck=True, stem_channels=8),
    RegNetConfig(
        depth=6,
        initial_width=8,
        width_slope=8.0,
        width_multiplier=1.5,
        group_width=8,
        stem_width=8,
    ),
]
CHANGES: dict[str, Any] = {
    **{"depths": (1, 2, 2, 1), "width": 16, "groups": 2, "width_per_group": 128},
    **{"stem_widths": (8, 8, 8), "channels": (8, 16, 32, 64), "cardinality": 2},
    **{"stem_channels": 16, "depth": 7, "initial_width": 16, "width_slope": 9.5},
    **{"width_multiplier": 1.6, "group_width": 16, "stem_width": 16},
}


def changed(config: Any) -> Iterator[tuple[str, Any]]:
    """A config with each of its fields changed, where there is such a network."""
    for field in fields(config):
        old = getattr(config, field.name)
        try:
            yield (
                field.name,
                replace(
                    config,
                    **{field.name: not old if isinstance(old, bool) else CHANGES[field.name]},
                ),
            )
        except ValueError:
            continue


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.family}-{c.stage_channels[-1]}")
def test_every_field_that_tensors_do_not_tell_is_known(config: Any) -> None:
    seen = []
    for name, other in changed(config):
        torch.manual_seed(1)
        state = build_backbone(config).state_dict()
        with torch.device("meta"):
            theirs = build_backbone(other)
        shapes = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
        if shapes != {name: tuple(tensor.shape) for name, tensor in state.items()}:
            continue
        seen.append(name)
        differs = apart(maps(build_backbone(config), state), maps(theirs, state))
        assert differs == (name in UNTOLD)
        assert computes_alike(config, other) == (not differs)
    assert set(seen) & UNTOLD.keys() == {name for name in UNTOLD if hasattr(config, name)} - (
        {"stride_in_1x1"} if not getattr(config, "bottleneck", True) else set()
    )
