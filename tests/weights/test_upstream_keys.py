"""The recorded key lists are what they claim to be: of our variants, whole and readable."""

import gzip
import json
import re
from collections import Counter
from functools import cache
from math import prod

import pytest
import torch
from record_keys import RECORDED, Keys, document, dtype_of, layouts, recorded_keys

from trunkline import Backbone, create_backbone

EXPECTED = {  # networks of each list
    "detectron2": 5,
    "detectron2-c2": 3,
    "dla": 10,
    "mmpretrain-regnet": 8,
    "mmpretrain-resnet": 13,
    "mmpretrain-resnet-deep-stem": 9,
    "mmsegmentation-resnet-deep-stem": 9,
    "pycls": 29,
    "rtdetr-dla": 1,
    "rtdetr-resnet": 4,
    "timm-dla": 10,
    "timm-regnet": 29,
    "timm-resnet": 21,
    "torchvision-regnet": 15,
    "torchvision-resnet": 10,
    "transformers-regnet": 26,
    "transformers-resnet": 7,
    "transformers-rtdetr": 4,
    "vissl": 5,
}
CLASSIFIER = re.compile(
    r"(head\.)?fc\.(weight|bias)|classifier\.1\.(weight|bias)|linear\.(weight|bias)"
    r"|(fc1000|pred)_[wb]"
)
WITHOUT_CLASSIFIER = {
    *("mmsegmentation-resnet-deep-stem", "rtdetr-dla", "rtdetr-resnet", "transformers-rtdetr"),
    "vissl",
}
STATISTIC = re.compile(r".*(running_mean|running_var|_rm|_riv)")


@cache
def _backbone(variant: str) -> Backbone:
    with torch.device("meta"):
        return create_backbone(variant)


@cache
def _shapes(variant: str) -> Counter[tuple[int, ...]]:
    state = _backbone(variant).state_dict()
    return Counter(tuple(t.shape) for name, t in state.items() if dtype_of(name).is_floating_point)


def _backbone_keys(layout: str, variant: str, keys: Keys) -> Keys:
    dead = document(layout)["variants"][variant].get("dead", [])
    return {
        name: shape
        for name, shape in keys.items()
        if not CLASSIFIER.fullmatch(name)
        and not any(name == module or name.startswith(f"{module}.") for module in dead)
    }


def test_every_list_is_there_with_all_its_networks() -> None:
    assert {layout: len(recorded_keys(layout)) for layout in layouts()} == EXPECTED


@pytest.mark.parametrize("layout", EXPECTED)
def test_a_file_is_reproducible_and_says_where_it_is_from(layout: str) -> None:
    packed = (RECORDED / f"{layout}.json.gz").read_bytes()
    content = document(layout)
    assert packed[4:8] == b"\0\0\0\0"  # gzip's time stamp
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False) + "\n"
    assert gzip.decompress(packed).decode() == text
    assert content["source"]
    assert content["how"] in (
        "instantiated",
        "derived from layouts.md",
        "derived from the upstream's source",
    )
    for entry in content["variants"].values():
        assert entry["upstream_name"]
        assert ("keys" in entry) != ("like" in entry)
        names = [name for name, _ in entry.get("keys", [])]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("layout", EXPECTED)
def test_a_list_has_the_tensors_of_our_network(layout: str) -> None:
    for variant, keys in recorded_keys(layout).items():
        of_backbone = _backbone_keys(layout, variant, keys)
        real = {n: s for n, s in of_backbone.items() if dtype_of(n).is_floating_point}
        learned = sum(prod(shape) for n, shape in real.items() if not STATISTIC.fullmatch(n))
        assert learned == _backbone(variant).num_parameters, variant
        assert Counter(real.values()) == _shapes(variant), variant
        counters = [shape for n, shape in keys.items() if not dtype_of(n).is_floating_point]
        assert set(counters) <= {()}


@pytest.mark.parametrize("layout", EXPECTED)
def test_a_classifier_has_1000_classes_of_the_last_channels(layout: str) -> None:
    for variant, keys in recorded_keys(layout).items():
        shapes = [shape for name, shape in keys.items() if CLASSIFIER.fullmatch(name)]
        if layout == "vissl":
            shapes = [tuple(s) for _, s in document(layout)["variants"][variant]["heads"]]
        elif layout in WITHOUT_CLASSIFIER:
            assert not shapes
            continue
        channels = _backbone(variant).levels[-1].channels
        spatial = (1, 1) if layout in ("dla", "timm-dla") else ()
        assert shapes == [(1000, channels, *spatial), (1000,)], variant


def test_batch_norms_count_their_batches_but_in_caffe2() -> None:
    for layout in EXPECTED:
        for variant, keys in recorded_keys(layout).items():
            counters = sum(name.endswith("num_batches_tracked") for name in keys)
            means = sum(name.endswith("running_mean") for name in keys)
            assert counters == (0 if layout == "detectron2-c2" else means), (layout, variant)


def test_dead_modules_are_those_of_the_original_dla() -> None:
    variants = document("dla")["variants"]
    for variant, keys in recorded_keys("dla").items():
        live = _backbone_keys("dla", variant, keys)
        of_timm = _backbone_keys("timm-dla", variant, recorded_keys("timm-dla")[variant])
        assert live == of_timm
        assert variants[variant]["dead"]
    assert variants["dla34"]["dead"] == ["level3.project", "level4.project"]
    assert len(recorded_keys("dla")["dla34"]) == 236
