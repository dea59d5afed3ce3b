"""None of the networks that look alike loads without a word, whoever could have told them apart."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback import LoopbackHub
from torch import Tensor
from upstream_files import described_tensors, natives, on_meta, saved

from trunkline import Backbone, list_backbones
from trunkline.errors import UnknownLayoutError, WeightsMismatchError
from trunkline.weights import conversion
from trunkline.weights.checkpoint import Checkpoint
from trunkline.weights.layouts import LAYOUTS, layouts_for
from trunkline.weights.loading import Read, read_for
from trunkline.weights.lookalikes import lookalikes
from trunkline.weights.sources import Located, known_by_hash
from trunkline.weights.statements import Statement
from trunkline.zoo import variant_config

pytestmark = pytest.mark.usefixtures("weights_home")

PAIRS = [
    (variant, one.variant, layout.name)
    for variant in list_backbones()
    for layout in layouts_for(variant_config(variant))
    for one in lookalikes(variant_config(variant), layout, natives(variant, layout))
]


def read(
    backbone: Backbone, tensors: Mapping[str, Tensor], layout: str = "auto", **checkpoint: Any
) -> Read:
    located = Located(source="given", path=Path("given.pth"), hashing=checkpoint.pop("sha256", ""))
    held = {"format": "torch-zip", **checkpoint}
    return read_for(backbone, located, Checkpoint(tensors=dict(tensors), **held), layout)


def hashed(sha256: str) -> Located:
    return Located(source="given", path=Path("given.pth"), hashing=sha256)


def words_of(variant: str, layout: str, **more: Any) -> dict[str, Any]:
    config = variant_config(variant)
    statement = Statement(
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
    tensors, chosen = described_tensors(variant, layout), layout if LAYOUTS[layout].told else "auto"
    options = {"norm": LAYOUTS[layout].norm} if LAYOUTS[layout].norm else {}
    ours = read(on_meta(variant, **options), tensors, chosen)
    if chosen == "auto":
        (said,) = ours.notes
        assert re.search(rf"which computes something else: .*\b{other} \(\w+ \w+, here ", said)
        assert said.endswith(f"Nothing says which it is; it was taken for {variant}.")
    else:
        # Who names the layout has said which of them it is.
        assert not any("computes something else" in note for note in ours.notes)
    # The file's own words tell, in either form.
    for words in (words_of(variant, layout), {"metadata": {"arch": variant}}):
        if "format" in words or chosen == "auto":
            assert read(on_meta(variant, **options), tensors, chosen, **words).notes == ()
    with pytest.raises(WeightsMismatchError, match=f"holds {variant}, and {other} computes some"):
        read(on_meta(other, **options), tensors, "auto", **words_of(variant, layout))


def test_a_training_script_s_word_is_heard() -> None:
    tensors = described_tensors("resnet50d", "trunkline")
    for key, name in (("arch", "resnet50d"), ("model_name", "timm/ResNet50D")):
        words: dict[str, Any] = {"metadata": {key: name}}
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
    tensors = described_tensors("resnet50", "trunkline")
    published = {"sha256": "0676ba61" + "0" * 56}
    rows = known_by_hash(hashed(published["sha256"]))
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
    tensors = described_tensors("resnet50d", "trunkline")
    rows = tuple(known_by_hash(hashed("0676ba61" + "0" * 56)))
    address = "https://download.pytorch.org/models/resnet50-0676ba61.pth"
    located = Located(source=address, path=Path("x"), rows=rows)
    checkpoint = Checkpoint(tensors=tensors, format="torch-zip")
    with pytest.raises(WeightsMismatchError, match="is resnet50 in the catalog, and resnet50d com"):
        read_for(on_meta("resnet50d"), located, checkpoint)


CONFIGS_BESIDE: dict[str, tuple[str, str | None]] = {
    "timm": ('{"architecture": "resnet50d", "num_classes": 1000}', "resnet50d"),
    "timm of the other": ('{"architecture": "resnet50c"}', "resnet50c"),
    "timm of another": ('{"architecture": "resnet18"}', None),
    "transformers, of what neither has": ('{"model_type": "resnet"}', None),
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
    located = Located(source=str(path), path=path)
    tensors = described_tensors("resnet50d", "trunkline")
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
    tensors = described_tensors("resnet50", "transformers-resnet")
    for file in ("", "/pytorch_model.bin", "/sub/pytorch_model.bin"):
        located = Located(source=f"hf://me/net{file}", path=tmp_path / "x")
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
    located = Located(source="given", path=Path("given.pth"))
    tensors = described_tensors(variant, layout)
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


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_conversion_into_a_file_without_words_says_what_it_looks_like(
    tmp_path: Path, suffix: str
) -> None:
    tensors = {
        name: torch.zeros(tensor.shape, dtype=tensor.dtype)
        for name, tensor in described_tensors("resnet50c", "timm-resnet").items()
    }
    source = saved(tmp_path / "x.safetensors", tensors)
    notes = conversion.convert(source, tmp_path / f"y{suffix}", "trunkline").notes
    said = "Nothing in it tells it from resnet50d or resnet50vd, which computes something else"
    assert [note.partition(";")[0] for note in notes] == ([said] if suffix == ".pth" else [])
    assert conversion.convert(source, tmp_path / f"z{suffix}", "timm").notes == ()


# A part of a network is not another one whose first stages happen to be the same.


@pytest.mark.parametrize(
    ("theirs", "ours", "layout", "match"),
    [
        (
            "resnet50",
            "resnet101",
            "torchvision-resnet",
            r"Missing: 255 \(layer3\.10.*holds resnet50",
        ),
        (
            "resnet101",
            "resnet50",
            "torchvision-resnet",
            r"Left over: 306 \(layer3\.10.*resnet101",
        ),
        ("regnet-x-004-tv", "regnet-x-004", "timm-regnet", r"is 400, needs 384.*regnet-x-004-tv"),
        ("dla60", "dla102", "timm-dla", r"Left over: 252 \(level3\.tree1.*holds dla60"),
    ],
)
def test_the_first_stages_of_another_network_are_refused(
    theirs: str, ours: str, layout: str, match: str
) -> None:
    tensors = described_tensors(theirs, layout)
    with pytest.raises(WeightsMismatchError, match=match):
        read(on_meta(ours, return_idx=(0,)), tensors)
    assert read(on_meta(theirs, return_idx=(0,)), tensors).match.beyond


def test_what_a_pruned_file_looks_like_is_said() -> None:
    tensors = {
        name: tensor
        for name, tensor in described_tensors("dla102", "timm-dla").items()
        if not name.startswith(("level3", "level4", "level5"))
    }
    (said,) = read(on_meta("dla102", return_idx=(0,)), tensors).notes
    assert "which computes something else: dla60 (depths (1, 2, 3, 1), here (1, 3, 4, 1)" in said
    assert "residual_root False, here True" in said
    whole = described_tensors("dla102", "timm-dla")  # its other stages tell
    assert read(on_meta("dla102", return_idx=(0,)), whole).notes == ()
