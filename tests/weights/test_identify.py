"""Which network a file holds, from its names and shapes alone."""

from __future__ import annotations

import pytest
import torch
from record_keys import recorded_keys
from upstream_files import hollow_tensors

from trunkline import list_backbones
from trunkline.weights.identify import Candidate, candidates

# One network of every list; of the small ones, since every variant is held against each.
FILES = {
    "detectron2": "resnet50",
    "detectron2-c2": "resnet50-caffe",
    "dla": "dla46-c",
    "mmpretrain-regnet": "regnet-x-008",
    "mmpretrain-resnet": "resnet18",
    "mmpretrain-resnet-deep-stem": "resnet18d",
    "mmsegmentation-resnet-deep-stem": "resnet18d",
    "pycls": "regnet-y-002",
    "rtdetr-dla": "dla34",
    "rtdetr-resnet": "resnet18vd",
    "timm-dla": "dla60x-c",
    "timm-regnet": "regnet-x-002",
    "timm-resnet": "resnet50t",
    "torchvision-regnet": "regnet-x-004-tv",
    "torchvision-resnet": "resnext50-32x4d",
    "transformers-regnet": "regnet-y-004",
    "transformers-resnet": "resnet34",
    "transformers-rtdetr": "resnet34vd",
    "vissl": "regnet-y-080",
}
SPOKEN_OF_AS = {"detectron2-c2": "caffe2", "dla": "timm-dla"}


def best(found: list[Candidate]) -> Candidate:
    assert found
    return found[0]


@pytest.mark.parametrize("upstream", FILES)
def test_a_whole_file_is_identified(upstream: str) -> None:
    variant = FILES[upstream]
    assert variant in recorded_keys(upstream)
    found = candidates(hollow_tensors(upstream, variant))
    first = best(found)
    assert (first.variant, first.layout.name) == (variant, SPOKEN_OF_AS.get(upstream, upstream))
    assert first.whole
    assert first.percent == 100
    assert {c.variant for c in found if c.whole} <= {variant, f"{variant}-caffe"}
    assert [c.share for c in found] == sorted((c.share for c in found), reverse=True)


def test_names_for_two_networks_give_both() -> None:
    found = candidates(hollow_tensors("timm-resnet", "resnet50d"))
    assert [c.variant for c in found if c.whole and c.layout.name == "timm-resnet"] == [
        "resnet50d",
        "resnet50vd",
    ]
    found = candidates(hollow_tensors("detectron2", "resnet50"))
    assert [(c.variant, c.layout.name) for c in found if c.whole] == [
        ("resnet50", "detectron2"),
        ("resnet50-caffe", "detectron2-msra"),
    ]


def test_norms_without_statistics_are_another_layout() -> None:
    tensors = hollow_tensors("detectron2-c2", "resnet50-caffe")
    fused = {name: t for name, t in tensors.items() if "_running_" not in name}
    assert best(candidates(fused)).layout.name == "caffe2-affine"
    assert best(candidates(fused)).whole
    assert best(candidates(tensors)).layout.name == "caffe2"
    found = candidates(tensors, ("resnet50-caffe",))
    affine = next(one for one in found if one.layout.name == "caffe2-affine")
    assert affine.share == 1
    assert not affine.whole


def test_what_is_missing_is_never_rounded_away() -> None:
    tensors = hollow_tensors("timm-dla", "dla46-c")
    del tensors["level5.root.bn.bias"]
    first = best(candidates(tensors))
    assert first.variant == "dla46-c"
    assert 0.99 < first.share < 1
    assert first.percent == 99
    assert not first.whole


def test_what_is_too_much_is_counted() -> None:
    tensors = hollow_tensors("timm-dla", "dla46-c")
    tensors |= {"neck.weight": torch.zeros(1)}  # beside it: no matter
    assert best(candidates(tensors)).whole
    tensors |= {"level5.weight": torch.zeros(1), "level6.bias": torch.zeros(1)}
    first = best(candidates(tensors))
    assert (first.variant, first.share, first.unexplained) == ("dla46-c", 1, 2)
    assert not first.whole


def test_widths_are_told_apart_by_shapes() -> None:
    assert (
        recorded_keys("timm-dla")["dla46-c"].keys() == recorded_keys("timm-dla")["dla46x-c"].keys()
    )
    found = candidates(hollow_tensors("timm-dla", "dla46x-c"))
    assert best(found).variant == "dla46x-c"
    other = next(c for c in found if c.variant == "dla46-c")
    assert 0 < other.share < 1


@pytest.mark.parametrize("channels", [1, 4])
def test_a_stem_of_other_channels_is_still_that_network(channels: int) -> None:
    tensors = hollow_tensors("timm-regnet", "regnet-x-002")
    tensors["stem.conv.weight"] = torch.zeros(32, channels, 3, 3)
    assert best(candidates(tensors)).whole
    tensors["stem.conv.weight"] = torch.zeros(32, channels, 7, 7)
    assert not best(candidates(tensors)).whole


def test_foreign_and_empty_files_are_nothing() -> None:
    assert candidates({}) == []
    assert candidates({"visual.conv1.weight": torch.zeros(64, 3, 7, 7)}) == []


def test_half_a_network_is_named_with_its_share() -> None:
    tensors = {
        name: tensor
        for name, tensor in hollow_tensors("torchvision-resnet", "resnet18").items()
        if not name.startswith(("layer3", "layer4"))
    }
    first = best(candidates(tensors))
    assert first.variant == "resnet18"
    assert first.percent == 50


def test_every_variant_can_be_identified_in_our_own_names() -> None:
    for variant in ("resnet18", "dla34", "regnet-y-002"):
        assert variant in list_backbones()
        found = candidates(hollow_tensors("timm-dla", "dla34"), (variant,))
        assert "trunkline" not in {one.layout.name for one in found}
