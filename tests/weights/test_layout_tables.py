"""The tables: what upstreams call a few tensors, and what would be wrong with a table."""

from __future__ import annotations

import math

import pytest
import torch
from upstream_files import hollow_tensors, on_meta, recognise

from trunkline import list_backbones
from trunkline.errors import ConfigError, UnknownLayoutError
from trunkline.weights.layouts import LAYOUTS, TARGETS, get_layout
from trunkline.weights.layouts.layout import Layout, Rule
from trunkline.weights.matching import native_shapes
from trunkline.zoo import variant_config

# What each upstream calls a few tensors, written by hand from their sources.
SPOKEN = {
    ("torchvision-resnet", "resnet50"): {
        "stem.conv.weight": "conv1.weight",
        "stem.norm.running_mean": "bn1.running_mean",
        "stages.1.blocks.0.conv2.conv.weight": "layer2.0.conv2.weight",
        "stages.1.blocks.3.conv3.norm.bias": "layer2.3.bn3.bias",
        "stages.0.blocks.0.shortcut.conv.weight": "layer1.0.downsample.0.weight",
        "stages.3.blocks.0.shortcut.norm.weight": "layer4.0.downsample.1.weight",
        "classifier.bias": "fc.bias",
    },
    ("timm-resnet", "resnet50d"): {
        "stem.0.conv.weight": "conv1.0.weight",
        "stem.1.norm.weight": "conv1.4.weight",
        "stem.2.conv.weight": "conv1.6.weight",
        "stem.2.norm.weight": "bn1.weight",
        "stages.0.blocks.0.shortcut.conv.weight": "layer1.0.downsample.1.weight",
        "stages.2.blocks.0.shortcut.norm.bias": "layer3.0.downsample.2.bias",
    },
    ("mmpretrain-resnet-deep-stem", "resnet50d"): {
        "stem.1.conv.weight": "stem.1.conv.weight",
        "stem.2.norm.weight": "stem.2.bn.weight",
        "stages.0.blocks.0.shortcut.conv.weight": "layer1.0.downsample.0.weight",
        "stages.2.blocks.0.shortcut.norm.bias": "layer3.0.downsample.2.bias",
        "classifier.weight": "head.fc.weight",
    },
    ("mmsegmentation-resnet-deep-stem", "resnet50c"): {
        "stem.0.conv.weight": "stem.0.weight",
        "stem.0.norm.bias": "stem.1.bias",
        "stem.1.conv.weight": "stem.3.weight",
        "stem.2.norm.running_var": "stem.7.running_var",
        "stages.2.blocks.0.shortcut.norm.bias": "layer3.0.downsample.1.bias",
    },
    ("mmsegmentation-resnet-deep-stem", "resnet50d"): {
        "stem.2.conv.weight": "stem.6.weight",
        "stages.0.blocks.0.shortcut.conv.weight": "layer1.0.downsample.0.weight",
        "stages.2.blocks.0.shortcut.norm.bias": "layer3.0.downsample.2.bias",
    },
    ("timm-resnet-group-norm", "resnet50"): {
        "stem.norm.weight": "bn1.weight",
        "stages.1.blocks.3.conv3.norm.bias": "layer2.3.bn3.bias",
        "stages.3.blocks.0.shortcut.norm.weight": "layer4.0.downsample.1.weight",
    },
    ("mmpretrain-regnet", "regnet-x-008"): {
        "stem.norm.bias": "bn1.bias",
        "stages.2.blocks.4.conv2.conv.weight": "layer3.4.conv2.weight",
        "stages.1.blocks.0.shortcut.norm.bias": "layer2.0.downsample.1.bias",
    },
    ("torchvision-regnet", "regnet-y-004"): {
        "stem.conv.weight": "stem.0.weight",
        "stages.1.blocks.1.se.reduce.weight": "trunk_output.block2.block2-1.f.se.fc1.weight",
        "stages.1.blocks.1.se.expand.bias": "trunk_output.block2.block2-1.f.se.fc2.bias",
        "stages.0.blocks.0.conv3.norm.weight": "trunk_output.block1.block1-0.f.c.1.weight",
        "stages.0.blocks.0.shortcut.conv.weight": "trunk_output.block1.block1-0.proj.0.weight",
    },
    ("timm-regnet", "regnet-y-004"): {
        "stem.norm.bias": "stem.bn.bias",
        "stages.1.blocks.1.conv3.conv.weight": "s2.b2.conv3.conv.weight",
        "stages.1.blocks.1.se.expand.bias": "s2.b2.se.fc2.bias",
        "stages.3.blocks.0.shortcut.norm.bias": "s4.b1.downsample.bn.bias",
        "classifier.weight": "head.fc.weight",
    },
    ("pycls", "regnet-y-004"): {
        "stages.1.blocks.1.conv1.conv.weight": "s2.b2.f.a.weight",
        "stages.1.blocks.1.conv3.norm.bias": "s2.b2.f.c_bn.bias",
        "stages.1.blocks.1.se.reduce.weight": "s2.b2.f.se.f_ex.0.weight",
        "stages.3.blocks.0.shortcut.conv.weight": "s4.b1.proj.weight",
        "stages.3.blocks.0.shortcut.norm.bias": "s4.b1.bn.bias",
    },
    ("vissl", "regnet-y-080"): {
        "stem.conv.weight": "conv1.stem.0.weight",
        "stages.1.blocks.2.conv1.norm.weight": "res3.block2-2.f.a.1.weight",
        "stages.1.blocks.2.conv3.conv.weight": "res3.block2-2.f.c.weight",
        "stages.1.blocks.2.conv3.norm.weight": "res3.block2-2.f.final_bn.weight",
        "stages.1.blocks.2.se.expand.weight": "res3.block2-2.f.se.excitation.2.weight",
        "stages.0.blocks.0.shortcut.norm.weight": "res2.block1-0.bn.weight",
        "classifier.weight": "heads.0.clf.0.weight",
    },
    ("transformers-resnet", "resnet18"): {
        "stem.conv.weight": "embedder.embedder.convolution.weight",
        "stages.1.blocks.1.conv2.norm.bias": "encoder.stages.1.layers.1.layer.1.normalization.bias",
        "stages.1.blocks.0.shortcut.conv.weight": (
            "encoder.stages.1.layers.0.shortcut.convolution.weight"
        ),
        "classifier.weight": "classifier.1.weight",
    },
    ("transformers-regnet", "regnet-x-002"): {
        "stages.3.blocks.1.conv3.conv.weight": (
            "encoder.stages.3.layers.1.layer.2.convolution.weight"
        ),
    },
    ("transformers-regnet", "regnet-y-002"): {
        "stages.3.blocks.1.conv3.conv.weight": (
            "encoder.stages.3.layers.1.layer.3.convolution.weight"
        ),
        "stages.3.blocks.1.se.reduce.bias": "encoder.stages.3.layers.1.layer.2.attention.0.bias",
        "stages.3.blocks.1.se.expand.bias": "encoder.stages.3.layers.1.layer.2.attention.2.bias",
    },
    ("transformers-rtdetr", "resnet18vd"): {
        "stem.2.norm.weight": "embedder.embedder.2.normalization.weight",
        "stages.0.blocks.0.shortcut.conv.weight": (
            "encoder.stages.0.layers.0.shortcut.convolution.weight"
        ),
        "stages.1.blocks.0.shortcut.conv.weight": (
            "encoder.stages.1.layers.0.shortcut.1.convolution.weight"
        ),
    },
    ("rtdetr-resnet", "resnet50vd"): {
        "stem.2.norm.weight": "conv1.conv1_3.norm.weight",
        "stages.1.blocks.2.conv3.conv.weight": "res_layers.1.blocks.2.branch2c.conv.weight",
        "stages.0.blocks.0.shortcut.norm.bias": "res_layers.0.blocks.0.short.norm.bias",
        "stages.2.blocks.0.shortcut.norm.bias": "res_layers.2.blocks.0.short.conv.norm.bias",
    },
    ("dla", "dla60"): {
        "stem.0.conv.weight": "base_layer.0.weight",
        "stem.2.norm.weight": "level1.1.weight",
        # Level 4 has three levels of trees: four leaves, left to right.
        "stages.2.nodes.0.block1.conv1.conv.weight": "level4.tree1.tree1.tree1.conv1.weight",
        "stages.2.nodes.1.block2.conv3.norm.bias": "level4.tree1.tree2.tree2.bn3.bias",
        "stages.2.nodes.2.root.proj.conv.weight": "level4.tree2.tree1.root.conv.weight",
        "stages.2.nodes.3.root.proj.norm.bias": "level4.tree2.tree2.root.bn.bias",
        "stages.3.nodes.0.project.norm.bias": "level5.project.1.bias",
        "classifier.weight": "fc.weight",
    },
    ("detectron2", "resnet50"): {
        "stem.conv.weight": "stem.conv1.weight",
        "stem.norm.bias": "stem.conv1.norm.bias",
        "stages.1.blocks.3.conv3.norm.bias": "res3.3.conv3.norm.bias",
        "stages.3.blocks.0.shortcut.conv.weight": "res5.0.shortcut.weight",
        "classifier.bias": "linear.bias",
    },
    ("caffe2", "resnet50-caffe"): {
        "stem.conv.weight": "conv1_w",
        "stem.norm.weight": "res_conv1_bn_s",
        "stages.1.blocks.0.shortcut.norm.running_var": "res3_0_branch1_bn_riv",
        "stages.1.blocks.3.conv2.conv.weight": "res3_3_branch2b_w",
        "stages.1.blocks.3.conv3.norm.running_mean": "res3_3_branch2c_bn_rm",
    },
    ("caffe2-group-norm", "resnet50"): {
        "stem.norm.weight": "conv1_gn_s",
        "stages.1.blocks.3.conv3.norm.bias": "res3_3_branch2c_gn_b",
    },
}


@pytest.mark.parametrize(("layout", "variant"), SPOKEN)
def test_names_are_those_of_the_upstreams_sources(layout: str, variant: str) -> None:
    expected = SPOKEN[layout, variant]
    names = LAYOUTS[layout].names(variant_config(variant), expected)
    assert {native: name.upstream for native, name in names.items()} == expected


# The table itself.


def test_targets_are_layouts_and_every_network_has_our_own() -> None:
    known = set(LAYOUTS.values())
    assert all(layout in known for row in TARGETS.values() for layout in row)
    for target, row in TARGETS.items():
        for variant in list_backbones():
            fitting = [one for one in row if one.applies(variant_config(variant))]
            assert len(fitting) <= 1, (target, variant)


def test_a_layout_speaks_of_every_name_of_every_network_it_has() -> None:
    for layout in LAYOUTS.values():
        fitting = [v for v in list_backbones() if layout.applies(variant_config(v))]
        assert fitting, layout.name
        smallest = min(fitting, key=lambda v: len(native_shapes(variant_config(v))))
        shapes = native_shapes(variant_config(smallest))
        if layout.norm == "group":
            shapes = {name: t for name, t in shapes.items() if "running" not in name}
        names = layout.names(variant_config(smallest), shapes)
        assert len({name.upstream for name in names.values()}) == len(names)


def test_an_unknown_layout_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no layout 'keras'; allowed: auto, trunkline, "):
        get_layout("keras")
    with pytest.raises(ConfigError, match="no layout 'keras'"):
        recognise(on_meta("resnet18"), {}, "keras")


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_names_that_mean_different_things_in_two_layouts_have_to_be_told_apart(
    monkeypatch: pytest.MonkeyPatch, bgr: bool, turned: bool
) -> None:
    swapped = {"weight": "bias", "bias": "weight"} if turned else {}
    leaves = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

    def rules(_: object) -> list[Rule]:
        return [
            Rule("stem.conv.*", "stem.conv.*"),
            *(Rule(f"stem.norm.{one}", f"stem.norm.{swapped.get(one, one)}") for one in leaves),
            Rule("stages.*", "stages.*"),
            Rule("classifier.*", "classifier.*"),
        ]

    mine = Layout(name="mine", title="mine", applies=lambda _: True, rules=rules, bgr=bgr)
    monkeypatch.setattr(
        "trunkline.weights.matching.layouts_for", lambda _: [LAYOUTS["trunkline"], mine]
    )
    backbone = on_meta("resnet18", return_idx=(0,))
    tensors = backbone.state_dict()
    if bgr or turned:
        with pytest.raises(UnknownLayoutError, match=r"fit several layouts: trunkline, mine\. Say"):
            recognise(backbone, tensors)
    else:  # two names of one thing
        assert recognise(backbone, tensors).layout.name == "trunkline"


def test_a_table_with_a_gap_or_an_overlap_is_our_own_mistake() -> None:
    def table(*rules: Rule) -> Layout:
        return Layout(name="mine", title="mine", applies=lambda _: True, rules=lambda _: rules)

    architecture = variant_config("resnet18")
    one = Rule("stem.*", "a.*")
    with pytest.raises(LookupError, match=r"0 rules of mine speak of stages\.0"):
        table(one).names(architecture, ["stages.0"])
    with pytest.raises(LookupError, match=r"2 rules of mine speak of stem\.conv"):
        table(one, Rule("stem.conv", "b")).names(architecture, ["stem.conv"])
    with pytest.raises(LookupError, match="mine gives one name to two tensors"):
        table(one, Rule("stages.0", "a.x")).names(architecture, ["stem.x", "stages.0"])
    with pytest.raises(LookupError, match=r"mine has no value for stem\.x"):
        table(one).fill_for("stem.x", torch.zeros(1))


def test_stand_ins_are_as_large_as_they_say() -> None:
    tensors = hollow_tensors("timm-regnet", "regnet-y-1280")
    assert sum(math.prod(t.shape) for t in tensors.values()) > 600_000_000
