"""What a file says of itself: its words are checked, heard, and never taken for a proof."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from upstream_files import saved, upstream_tensors

from trunkline import create_backbone, from_pretrained, load_weights, save_pretrained
from trunkline.errors import CheckpointError, TrunklineError, WeightsMismatchError
from trunkline.heads.classifier import load_classifier
from trunkline.weights.checkpoint import Checkpoint
from trunkline.weights.conversion import convert
from trunkline.weights.statements import FORMAT, KEY, named_variant, statement_of
from trunkline.zoo import build_backbone, variant_config

if TYPE_CHECKING:
    from tests.conftest import Family

pytestmark = pytest.mark.usefixtures("weights_home")

WORDS: dict[str, Any] = {
    "format": FORMAT,
    "layout": "timm-regnet",
    "family": "regnet",
    "architecture": {
        **{"depth": 13, "initial_width": 24, "width_slope": 36.44, "width_multiplier": 2.49},
        **{"group_width": 8, "squeeze": False, "stem_width": 32, "torchvision_rounding": False},
    },
    "variant": "regnet-x-002",
    "act": "relu",
    "preprocessing": {
        **{"resize": 256, "crop": [224, 224], "interpolation": "bilinear"},
        **{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        **{"value_range": "0..1", "channel_order": "RGB", "pad_to_multiple": None},
    },
    "tag": "pycls",
    "license": "MIT",
    "source_sha256": "0" * 64,
}


def about(words: object) -> Checkpoint:
    text = words if isinstance(words, str) else json.dumps(words)
    return Checkpoint(tensors={}, format="safetensors", metadata={"format": "pt", KEY: text})


# The words.


def test_words_are_read_as_they_were_written() -> None:
    statement = statement_of(about(WORDS))
    assert statement is not None
    assert statement.claims == {"tag": "pycls", "license": "MIT"}
    again = statement_of(Checkpoint({}, "safetensors", metadata=statement.metadata()))
    assert again is not None
    assert json.loads(again.metadata()[KEY]) == json.loads(json.dumps(WORDS))
    assert statement.config().stage_depths == (1, 1, 4, 7)


@pytest.mark.parametrize("format_", ["torch-zip", "torch-legacy", "numpy-pickle"])
def test_other_formats_have_no_place_for_words_of_ours(format_: str) -> None:
    metadata = {KEY: "{", "layout": "dla", "preprocessing": "imagenet"}  # somebody's own keys
    assert statement_of(Checkpoint({}, format_, metadata=metadata)) is None


BAD: dict[str, tuple[object, str]] = {
    "no JSON": ("{", r"not in our words \(Input data was truncated\); save the network"),
    "no object": ("[]", "Expected `object`, got `array`"),
    "deep": ("[" * 10**6, "Expected `object`, got `array`|nested too deeply"),
    "deep inside": ('{"format":2,"x":' + "[" * 10**6, "nested too deeply"),
    "an older format": ({**WORDS, "format": 1}, "words of trunkline of format 1, and this version"),
    "a newer format": ({**WORDS, "format": 3}, "of format 3, and this version reads 2; read it"),
    "no format": ({"layout": "timm-regnet"}, "missing required field `format`"),
    "another layout": ({**WORDS, "layout": "keras"}, "no layout 'keras'; allowed: trunkline, "),
    "another activation": ({**WORDS, "act": "sine"}, "no activation 'sine'; allowed: relu, "),
    "another family": ({**WORDS, "family": "vit"}, "no family 'vit'; allowed: resnet, dla, regnet"),
    "another name": ({**WORDS, "variant": "regnet-x-004"}, "not that of variant 'regnet-x-004'"),
    "a long name": ({**WORDS, "variant": "x" * 10**5}, "is not that of variant"),
    "a number that is a word": (
        {**WORDS, "architecture": {**WORDS["architecture"], "depth": "13"}},
        r"Expected `int`, got `str` - at `\$\.depth`",
    ),
    "a flag that is a number": (
        {**WORDS, "architecture": {**WORDS["architecture"], "squeeze": 1}},
        "Expected `bool`, got `int`",
    ),
    "a field of another version": (
        {**WORDS, "architecture": {**WORDS["architecture"], "window": 7}},
        "regnet has no window; its fields: depth, ",
    ),
    "preprocessing of another kind": ({**WORDS, "preprocessing": "imagenet"}, "Expected `object"),
    "preprocessing that cannot be": (
        {**WORDS, "preprocessing": {**WORDS["preprocessing"], "std": [0.0, 1.0, 1.0]}},
        r"std=\(0\.0, 1\.0, 1\.0\) must be positive",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_words_that_are_not_ours_are_refused(tmp_path: Path, case: str) -> None:
    words, message = BAD[case]
    text = words if isinstance(words, str) else json.dumps(words)
    path = tmp_path / "x.safetensors"
    save_file({"stem.conv.weight": torch.zeros(1)}, path, {KEY: text})
    for read in (
        lambda: create_backbone("regnet-x-002", weights=path),
        lambda: convert(path, tmp_path / "y.pth", "timm"),
        lambda: load_classifier("regnet-x-002", path),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            read()
        assert str(caught.value).startswith(f"{path} ")
        assert len(str(caught.value)) < 1500


def test_words_of_before_they_had_a_format_are_refused(tmp_path: Path) -> None:
    old = {"format": "pt", "layout": "timm-regnet", "variant": "regnet-x-002"}
    tensors = upstream_tensors("timm-regnet", "regnet-x-002")
    path = saved(tmp_path / "x.safetensors", tensors, old)
    with pytest.raises(CheckpointError, match=r"before version 0\.1\.0, .*save_file\("):
        create_backbone("regnet-x-002", weights=path)
    save_file(load_file(path), path)  # as it says
    assert create_backbone("regnet-x-002", weights=path).load_report is not None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=9,
)


def places(node: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inside = node if isinstance(node, dict | list) else ()
    for key, value in inside.items() if isinstance(inside, dict) else enumerate(inside):
        yield from places(value, (*path, key))


def put(document: Any, path: tuple[Any, ...], value: object) -> Any:
    """A copy of a document with another value at one place, ``put`` itself for none at all."""
    if not path:
        return value
    changed = copy.deepcopy(document)
    node = changed
    for key in path[:-1]:
        node = node[key]
    if value is put:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return changed


@settings(max_examples=150, deadline=None)
@given(
    place=st.sampled_from([place for place in places(WORDS) if place]), value=VALUES | st.just(put)
)
def test_whatever_stands_in_a_word_it_is_read_or_refused(
    place: tuple[Any, ...], value: object
) -> None:
    try:
        statement = statement_of(about(put(WORDS, place, value)))
    except CheckpointError:
        return
    assert statement is not None
    with torch.device("meta"):
        assert build_backbone(statement.config()).levels


def test_whatever_stands_in_a_config_it_is_read_or_refused(
    tmp_path: Path, families: dict[str, Family]
) -> None:
    chance = random.Random(5)  # noqa: S311 - mutations, not secrets
    save_pretrained(families["resnet-pooled"].build(), tmp_path)
    path = tmp_path / "config.json"
    document = json.loads(path.read_text())
    values: list[object] = [
        *(None, True, 0, -1, 2**40, 10**30, 0.5, "", "x", [], {}, [1], [[]], {"a": 1}, put),
        *([1] * 4, [0] * 4, [2**40] * 4, [500, 1, 1, 1], "nan", [None] * 4),
    ]
    outcomes = {"read": 0, "refused": 0}
    for place in list(places(document))[1:]:
        for value in chance.sample(values, 6):
            path.write_text(json.dumps(put(document, place, value)))
            try:
                backbone = from_pretrained(tmp_path)
            except TrunklineError:
                outcomes["refused"] += 1
                continue
            outcomes["read"] += 1
            assert backbone.stages[0] is not None
    assert min(outcomes.values()) > 20, outcomes


# What is heard.


def test_what_computes_the_same_loads_under_either_name(tmp_path: Path) -> None:
    own = create_backbone("resnet50vd", return_idx=(0,))
    path = save_pretrained(own, tmp_path) / "model.safetensors"
    other = create_backbone("resnet50d", return_idx=(0,), weights=path)
    assert all(torch.equal(t, own.state_dict()[n]) for n, t in other.state_dict().items())
    with pytest.raises(WeightsMismatchError, match="holds resnet50vd, and resnet50c computes"):
        create_backbone("resnet50c", return_idx=(0,), weights=path)
    # Its first stage is that of a larger network, which it is not for all that.
    with pytest.raises(WeightsMismatchError, match="holds resnet50vd, and resnet101d computes"):
        create_backbone("resnet101d", return_idx=(0,), weights=path)


@pytest.mark.parametrize(
    "options",
    [
        *({"return_idx": (1, 0)}, {"return_stem": True}, {"output_stride": 8}, {"norm": "frozen"}),
        *({"norm": "sync"}, {"in_channels": 1}, {"in_channels": 5}, {"drop_path_rate": 0.5}),
        *({"frozen_stages": 1}, {"checkpointing": True}, {"act": nn.SiLU}, {}),
        {"norm": lambda channels: nn.BatchNorm2d(channels, eps=1e-3)},
    ],
    ids=lambda options: " ".join(options) or "none",
)
def test_options_do_not_change_what_a_file_means(
    tmp_path: Path, families: dict[str, Family], options: dict[str, Any]
) -> None:
    own = families["resnet-pooled"].build(seed=1)
    path = save_pretrained(own, tmp_path) / "model.safetensors"
    report = load_weights(families["resnet-pooled"].build(seed=2, **options), path)
    assert report.layout == "trunkline"
    assert not any("computes something else" in note for note in report.notes)


def test_a_network_is_not_given_the_weights_of_another_activation(
    tmp_path: Path, families: dict[str, Family]
) -> None:
    own = families["regnet-x"].build(seed=1, act="silu")
    path = save_pretrained(own, tmp_path) / "model.safetensors"
    with pytest.raises(
        WeightsMismatchError, match=r"act='silu', and this backbone has 'relu'\. No"
    ):
        load_weights(families["regnet-x"].build(), path)
    assert load_weights(families["regnet-x"].build(act="silu"), path)
    assert from_pretrained(tmp_path).options.act == "silu"


def test_an_activation_goes_through_a_conversion(tmp_path: Path) -> None:
    save_pretrained(create_backbone("regnet-x-002", act="silu"), tmp_path)
    path = convert(tmp_path / "model.safetensors", tmp_path / "x.safetensors", "timm").path
    with pytest.raises(WeightsMismatchError, match="act='silu'"):
        create_backbone("regnet-x-002", weights=path)
    assert create_backbone("regnet-x-002", act="silu", weights=path).load_report is not None


def test_a_folder_whose_two_files_disagree_is_refused(tmp_path: Path) -> None:
    save_pretrained(create_backbone("resnet50d", return_idx=(0,)), tmp_path / "d")
    save_pretrained(create_backbone("resnet50c", return_idx=(0,)), tmp_path / "c")
    weights = tmp_path / "d" / "model.safetensors"
    (tmp_path / "c" / "model.safetensors").write_bytes(weights.read_bytes())
    with pytest.raises(WeightsMismatchError, match="holds resnet50d, and resnet50c computes"):
        from_pretrained(tmp_path / "c")


def test_a_network_of_one_s_own_is_not_a_published_one(
    tmp_path: Path, families: dict[str, Family]
) -> None:
    path = save_pretrained(families["dla-basic"].build(), tmp_path) / "model.safetensors"
    with pytest.raises(WeightsMismatchError, match="holds a dla of one's own, which no upstream"):
        convert(path, tmp_path / "x.pth", "timm")
    with pytest.raises(WeightsMismatchError, match="holds a dla of one's own, and dla34 computes"):
        create_backbone("dla34", weights=path)


def test_the_classifier_s_file_is_heard_too(tmp_path: Path) -> None:
    tensors = upstream_tensors("timm-regnet", "regnet-x-002")
    path = saved(tmp_path / "x.safetensors", tensors)
    said = convert(path, tmp_path / "y.safetensors", "trunkline").path
    assert load_classifier("regnet-x-002", said).head.linear.out_features == 1000
    config = asdict(variant_config("regnet-x-004-tv"))  # type: ignore[call-overload]
    words = {**WORDS, "layout": "trunkline", "variant": "regnet-x-004-tv", "architecture": config}
    save_file(load_file(said), said, {KEY: json.dumps(words)})
    with pytest.raises(WeightsMismatchError, match="holds regnet-x-004-tv, and regnet-x-002 comp"):
        load_classifier("regnet-x-002", said)


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        *(("resnet50", "resnet50"), ("timm/resnet50d", "resnet50d")),
        ("RegNetX-200MF", "regnet-x-002"),
        *(("regnet_x_400mf", "regnet-x-004-tv"), ("facebook/regnet-y-040", "regnet-y-040")),
        *(("resnet-50", "resnet50"), ("presnet50", "resnet50vd"), ("dla46_c", "dla46-c")),
        *(("", None), ("vit_base", None), ("x" * 10**7, None), ("resnet50" * 9, None)),
    ],
)
def test_names_of_other_libraries_are_understood(name: str, variant: str | None) -> None:
    assert named_variant(name) == variant


# What is not believed.


def test_a_file_cannot_give_itself_a_tag_or_a_licence(tmp_path: Path) -> None:
    tensors = upstream_tensors("timm-regnet", "regnet-x-002")
    claimed = {**WORDS, "tag": "timm-in1k", "license": "Apache-2.0"}
    path = saved(tmp_path / "x.safetensors", tensors, {KEY: json.dumps(claimed)})
    backbone = create_backbone("regnet-x-002", weights=path)
    report = backbone.load_report
    assert report is not None
    assert (report.tag, report.license) == (None, None)
    assert report.claims == {"tag": "timm-in1k", "license": "Apache-2.0"}
    assert "The file says of itself: tag timm-in1k, license Apache-2.0. Nothing proves it." in str(
        report
    )


def test_what_a_file_says_cannot_be_obeyed_by_a_terminal(tmp_path: Path) -> None:
    tensors = upstream_tensors("timm-regnet", "regnet-x-002")
    claimed = {**WORDS, "tag": "\x1b[2Jx\nlicence: MIT", "license": "M" * 10**5}
    path = saved(tmp_path / "x.safetensors", tensors, {KEY: json.dumps(claimed)})
    report = create_backbone("regnet-x-002", weights=path).load_report
    assert report is not None
    assert report.claims["tag"] == r"\x1b[2Jx licence: MIT"
    for said in (str(report), str(convert(path, tmp_path / "y.pth", "timm"))):
        assert said.replace("\n", "").isprintable()
        assert len(said) < 2000
