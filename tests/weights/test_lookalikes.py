"""Every pair of variants that names and shapes do not tell apart, found by holding all against all.

What is found is what ``lookalikes`` names, and none of it goes unsaid in a load.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback import LoopbackHub
from torch import Tensor
from upstream_files import on_meta

from trunkline import Backbone, create_backbone, list_backbones
from trunkline.backbones.dla import DLAConfig
from trunkline.backbones.regnet import RegNetConfig
from trunkline.backbones.resnet import ResNetConfig
from trunkline.errors import UnknownLayoutError, WeightsMismatchError
from trunkline.weights import conversion, statements
from trunkline.weights.checkpoint import Checkpoint
from trunkline.weights.layouts import LAYOUTS, layouts_for
from trunkline.weights.layouts.layout import BATCH_COUNTER, Layout
from trunkline.weights.loading import Read, read_for
from trunkline.weights.lookalikes import UNTOLD, computes_alike, layers_of, lookalikes
from trunkline.weights.matching import native_shapes, stage_of
from trunkline.weights.sources import Located
from trunkline.zoo import build_backbone, variant_config

pytestmark = pytest.mark.usefixtures("weights_home")

Shapes = frozenset[tuple[str, tuple[int, ...]]]
STAGES = (1, 2, 3, 4)


def natives(variant: str, layout: Layout, stages: int) -> list[str]:
    return [
        name
        for name in native_shapes(variant_config(variant))
        if stage_of(name) < stages and (not layout.norm or name.endswith((".weight", ".bias")))
    ]


@cache
def file_of(variant: str, layout: str, stages: int) -> Shapes:
    """The names and shapes of a file of the first stages, as an upstream writes it."""
    architecture, known = variant_config(variant), LAYOUTS[layout]
    shapes = native_shapes(architecture)
    names = known.names(architecture, natives(variant, known, stages))
    return frozenset((name.upstream, tuple(shapes[ours].shape)) for ours, name in names.items())


def files(stages: int) -> Iterator[tuple[str, str, Shapes]]:
    for variant in list_backbones():
        for layout in layouts_for(variant_config(variant)):
            yield variant, layout.name, file_of(variant, layout.name, stages)


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


# None of them loads without a word.

PAIRS = [
    (variant, one.variant, layout.name)
    for variant in list_backbones()
    for layout in layouts_for(variant_config(variant))
    for one in lookalikes(variant_config(variant), layout, natives(variant, layout, 4))
]


def read(
    backbone: Backbone, tensors: Mapping[str, Tensor], layout: str = "auto", **checkpoint: Any
) -> Read:
    located = Located(source="given", path=Path("given.pth"), sha256=checkpoint.pop("sha256", ""))
    held = {"format": "torch-zip", **checkpoint}
    return read_for(backbone, located, Checkpoint(tensors=dict(tensors), **held), layout)


def tensors_of(variant: str, layout: str) -> dict[str, Tensor]:
    return {
        name: torch.empty(
            shape,
            dtype=torch.int64 if name.endswith(BATCH_COUNTER) else torch.float32,
            device="meta",
        )
        for name, shape in file_of(variant, layout, 4)
    }


def words_of(variant: str, layout: str, **more: Any) -> dict[str, Any]:
    config = variant_config(variant)
    statement = statements.Statement(
        layout=layout,
        family=config.family,
        architecture=asdict(config),  # type: ignore[call-overload]
        variant=variant,
        **more,
    )
    return {"format": "safetensors", "metadata": statement.metadata()}


def test_there_are_pairs_to_be_told() -> None:
    assert {layout for *_, layout in PAIRS} >= {"trunkline", "torchvision-resnet", "detectron2"}


@pytest.mark.parametrize(("variant", "other", "layout"), PAIRS)
def test_a_pair_that_nothing_tells_apart_is_said(variant: str, other: str, layout: str) -> None:
    tensors, chosen = tensors_of(variant, layout), layout if LAYOUTS[layout].told else "auto"
    options = {"norm": LAYOUTS[layout].norm} if LAYOUTS[layout].norm else {}
    ours = read(on_meta(variant, **options), tensors, chosen)
    if chosen == "auto":
        (said,) = ours.notes
        assert re.search(rf"which computes something else: .*\b{other} \(\w+ \w+, here ", said)
        assert said.endswith(f"Nothing says which it is; it was taken for {variant}.")
    else:
        assert ours.notes == ()  # who names the layout has said which of them it is
    # The file's own words tell, in either form.
    for words in (words_of(variant, layout), {"metadata": {"arch": variant}}):
        if "format" in words or chosen == "auto":
            assert read(on_meta(variant, **options), tensors, chosen, **words).notes == ()
    with pytest.raises(WeightsMismatchError, match=f"holds {variant}, and {other} computes some"):
        read(on_meta(other, **options), tensors, "auto", **words_of(variant, layout))


def test_a_training_script_s_word_is_heard() -> None:
    tensors = tensors_of("resnet50d", "trunkline")
    for key, name in (("arch", "resnet50d"), ("model_name", "timm/ResNet50D")):
        words = {"metadata": {key: name}}
        with pytest.raises(WeightsMismatchError, match=r"calls itself resnet50d, and resnet50c .*"):
            read(on_meta("resnet50c"), tensors, **words)
        assert read(on_meta("resnet50d"), tensors, **words).notes == ()
        assert read(on_meta("resnet50vd"), tensors, **words).notes == ()  # computes the same
    (called, both) = read(on_meta("resnet50c"), tensors, metadata={"arch": "resnet18"}).notes
    assert called == "The file calls its network resnet18; it was taken for resnet50c."
    assert "resnet50d (" in both
    unheard = {"arch": "resnet50d" * 9, "model_name": "my-net", "epoch": "3"}
    assert len(read(on_meta("resnet50c"), tensors, metadata=unheard).notes) == 1


def test_the_hash_of_a_published_file_tells() -> None:
    tensors = tensors_of("resnet50", "trunkline")
    published = {"sha256": "0676ba61" + "0" * 56}
    rows = statements.known_by_hash(published["sha256"])
    assert {(one.variant, one.tag) for one in rows} == {
        ("resnet50", "torchvision-in1k-v1"),
        ("resnet50", "timm-tv-in1k"),
    }
    assert read(on_meta("resnet50"), tensors, **published).notes == ()
    with pytest.raises(WeightsMismatchError, match="by its address or hash resnet50, and r"):
        read(on_meta("resnet50-caffe"), tensors, **published)
    # Eight digits are no proof of a tag or a licence.
    report = read(on_meta("resnet50"), tensors, **published).report()
    assert (report.tag, report.license, report.claims) == (None, None, {})


def test_the_address_of_a_row_tells() -> None:
    tensors = tensors_of("resnet50d", "trunkline")
    rows = tuple(statements.known_by_hash("0676ba61" + "0" * 56))
    address = "https://download.pytorch.org/models/resnet50-0676ba61.pth"
    located = Located(source=address, path=Path("x"), sha256="", rows=rows)
    checkpoint = Checkpoint(tensors=tensors, format="torch-zip")
    with pytest.raises(WeightsMismatchError, match="is resnet50 in the catalog, and resnet50d com"):
        read_for(on_meta("resnet50d"), located, checkpoint)


CONFIGS_BESIDE: dict[str, tuple[str, str | None]] = {
    "timm": ('{"architecture": "resnet50d", "num_classes": 1000}', "resnet50d"),
    "timm of the other": ('{"architecture": "resnet50c"}', "resnet50c"),
    "timm of another": ('{"architecture": "resnet18"}', None),
    "transformers, which has neither": ('{"model_type": "bert"}', None),
    "no JSON": ("{", None),
    "of another kind": ('{"architecture": {"name": "resnet50d"}}', None),
    "deep": ("[" * 100_000, None),
    "too large": ('{"architecture": "resnet50d"}' + " " * (1 << 20), None),
    "none": ("", None),
}


@pytest.mark.parametrize("case", CONFIGS_BESIDE)
def test_a_config_beside_the_file_tells(tmp_path: Path, case: str) -> None:
    text, said = CONFIGS_BESIDE[case]
    if text:
        (tmp_path / "config.json").write_text(text)
    path = tmp_path / "x.bin"
    located = Located(source=str(path), path=path, sha256="")
    tensors = tensors_of("resnet50d", "trunkline")
    checkpoint = Checkpoint(tensors=tensors, format="torch-zip")
    if said == "resnet50d":
        with pytest.raises(WeightsMismatchError, match=r"is by its config\.json resnet50d, and"):
            read_for(on_meta("resnet50c"), located, checkpoint)
        assert conversion._identified(located, checkpoint, None, "auto", "timm") == said
    else:
        notes = read_for(on_meta("resnet50c"), located, checkpoint).notes
        assert len(notes) == (0 if said else 1)


@pytest.mark.parametrize("early", [True, False])
def test_transformers_config_tells_where_the_stride_is(
    loopback_hub: LoopbackHub, tmp_path: Path, early: bool
) -> None:
    config = {"model_type": "resnet", "downsample_in_bottleneck": early}
    loopback_hub.add_file("me/net", "config.json", json.dumps(config).encode(), large=False)
    tensors = tensors_of("resnet50", "transformers-resnet")
    for file in ("", "/pytorch_model.bin", "/sub/pytorch_model.bin"):
        located = Located(source=f"hf://me/net{file}", path=tmp_path / "x", sha256="")
        checkpoint = Checkpoint(tensors=tensors, format="torch-zip")
        if "sub" in file:  # where no config is
            assert len(read_for(on_meta("resnet50"), located, checkpoint).notes) == 1
        elif early:
            with pytest.raises(WeightsMismatchError, match=r"by its config\.json resnet50-caffe"):
                read_for(on_meta("resnet50"), located, checkpoint)
        else:
            assert read_for(on_meta("resnet50"), located, checkpoint).notes == ()


# A conversion has nobody who named one.


def identified(
    variant: str, layout: str, to: str = "trunkline", metadata: dict[str, str] | None = None
) -> str:
    located = Located(source="given", path=Path("given.pth"), sha256="")
    tensors = tensors_of(variant, layout)
    checkpoint = Checkpoint(tensors=tensors, format="torch-zip", metadata=metadata or {})
    return conversion._identified(located, checkpoint, None, "auto", to)


@pytest.mark.parametrize(
    ("variant", "layout", "both"),
    [
        ("resnet50c", "trunkline", "resnet50c and resnet50d and resnet50vd"),
        ("resnet50d", "trunkline", "resnet50c and resnet50d and resnet50vd"),
        ("resnet50", "trunkline", "resnet50 and resnet50-caffe"),
        ("resnet101-caffe", "detectron2-msra", "resnet101 and resnet101-caffe"),
    ],
)
def test_a_file_that_could_be_either_is_not_converted_by_guess(
    variant: str, layout: str, both: str
) -> None:
    with pytest.raises(UnknownLayoutError, match=f"fits {both}, which compute different things .*"):
        identified(variant, layout)
    assert identified(variant, layout, metadata={"arch": variant}) == variant
    for word in ("resnet18", "nonsense"):
        with pytest.raises(UnknownLayoutError, match="say variant=NAME, or --variant NAME"):
            identified(variant, layout, metadata={"arch": word})


@pytest.mark.parametrize(
    ("variant", "layout", "to", "expected"),
    [
        ("resnet50c", "timm-resnet", "timm", "resnet50c"),  # the names of the shortcut tell
        ("resnet50d", "timm-resnet", "timm", "resnet50d"),
        ("resnet50d", "timm-resnet", "rtdetr", "resnet50vd"),
        ("resnet50", "torchvision-resnet", "timm", "resnet50"),
        ("resnet50-caffe", "caffe2", "trunkline", "resnet50-caffe"),
        ("dla102", "timm-dla", "timm", "dla102"),
    ],
)
def test_a_layout_that_tells_is_enough(variant: str, layout: str, to: str, expected: str) -> None:
    assert identified(variant, layout, to) == expected
