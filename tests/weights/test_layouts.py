"""Every upstream's names, there and back, for every network that the upstream has."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from record_keys import document, recorded_keys
from torch import Tensor
from upstream_files import hollow_tensors, numbers, upstream_tensors

from trunkline import Backbone, create_backbone, list_backbones
from trunkline.errors import ConfigError, UnknownLayoutError, WeightsMismatchError
from trunkline.weights.layouts import LAYOUTS, TARGETS, get_layout, layouts_for
from trunkline.weights.layouts.layout import BATCH_COUNTER, Layout, Rule
from trunkline.weights.matching import match_layout, native_shapes, recognise, stem_weight
from trunkline.weights.translation import to_native, to_upstream
from trunkline.zoo import variant_config

# Lists whose networks have the stride in the first 1×1, which these upstreams' names do not tell:
# the same file would load into both, so it is read as the other network only.
UNTOLD = {
    (upstream, variant)
    for upstream in ("mmpretrain-resnet", "transformers-resnet")
    for variant in ("resnet50-caffe", "resnet101-caffe")
}
RECORDED = (
    *("detectron2", "detectron2-c2", "dla", "mmpretrain-regnet", "mmpretrain-resnet"),
    *("mmpretrain-resnet-deep-stem", "pycls", "rtdetr-dla", "rtdetr-resnet", "timm-dla"),
    *("timm-regnet", "timm-resnet", "torchvision-regnet", "torchvision-resnet"),
    *("transformers-regnet", "transformers-resnet", "transformers-rtdetr", "vissl"),
)
FILES = [
    (upstream, variant)
    for upstream in RECORDED
    for variant in recorded_keys(upstream)
    if (upstream, variant) not in UNTOLD
]
ALIKE = {  # lists whose networks another upstream names in the same way, which is spoken of then
    "timm-resnet": {"torchvision-resnet", "timm-resnet"},
    "dla": {"timm-dla"},
    "rtdetr-dla": {"rtdetr-dla"},
    "detectron2-c2": {"caffe2"},
}


@cache
def network(variant: str) -> Backbone:
    with torch.device("meta"):
        return create_backbone(variant)


def layout_of(upstream: str, variant: str) -> Layout:
    if upstream == "detectron2" and variant.endswith("-caffe"):
        return LAYOUTS["detectron2-msra"]
    return LAYOUTS[{"detectron2-c2": "caffe2"}.get(upstream, upstream)]


def heads(upstream: str, variant: str) -> dict[str, Tensor]:
    """VISSL keeps them beside the trunk; the reader of files puts them under ``heads.``."""
    recorded = document(upstream)["variants"][variant].get("heads", [])
    return {f"heads.{name}": numbers(name, tuple(shape)) for name, shape in recorded}


def dead(upstream: str, variant: str) -> list[str]:
    modules = document(upstream)["variants"][variant].get("dead", [])
    names = recorded_keys(upstream)[variant]
    return [name for name in names if any(name == m or name.startswith(f"{m}.") for m in modules)]


def same(one: Tensor, other: Tensor) -> bool:
    """Bit for bit; tensors that were only promised are the same if they are the same memory."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    moved = one.data_ptr() == other.data_ptr() and one.stride() == other.stride()
    return moved or torch.equal(one, other)


def spelling_of_fair(name: str) -> str:
    renames = document("detectron2-c2")["forms"]["other-spelling"]["rename"]
    for old, new in renames.items():
        name = name.replace(old, new)
    return name


def test_every_recorded_list_is_read() -> None:
    assert {upstream for upstream, _ in FILES} == set(RECORDED)
    assert len(FILES) == 209 - len(UNTOLD)  # 209: see test_upstream_keys


@pytest.mark.parametrize(("upstream", "variant"), FILES)
def test_there_and_back_bit_for_bit(upstream: str, variant: str) -> None:
    backbone, layout = network(variant), layout_of(upstream, variant)
    tensors = hollow_tensors(upstream, variant) | heads(upstream, variant)
    match = match_layout(backbone, tensors, layout)
    assert (match.missing, match.unexpected) == ((), ())
    native = to_native(backbone, match, tensors, bgr=layout.bgr)
    wanted = backbone.state_dict()
    assert {name: t.shape for name, t in native.state.items()} == {
        name: t.shape for name, t in wanted.items()
    }
    written = to_upstream(layout, backbone.architecture, native.state | native.head)
    if upstream == "detectron2-c2":
        tensors = {spelling_of_fair(name): tensor for name, tensor in tensors.items()}
    gone = dead(upstream, variant)
    reasons = [name for names in match.dropped.values() for name in names]
    assert sorted({*reasons} - {name.upstream for name in match.head.values()}) == sorted(gone)
    again = set(written) - ({*gone} if upstream == "dla" else set())
    assert again == set(tensors) - {*gone}
    assert not [name for name in again if not same(written[name], tensors[name])]


@pytest.mark.parametrize(("upstream", "variant"), FILES)
def test_a_file_is_recognised(upstream: str, variant: str) -> None:
    backbone, layout = network(variant), layout_of(upstream, variant)
    tensors = hollow_tensors(upstream, variant) | heads(upstream, variant)
    if layout.told:
        with pytest.raises(UnknownLayoutError, match=r"'detectron2' .* or 'detectron2-msra'"):
            recognise(backbone, tensors)
        return
    found = recognise(backbone, tensors)
    assert found.layout.name in ALIKE.get(upstream, {upstream})
    told = match_layout(backbone, tensors, layout)
    assert (found.found, found.head) == (told.found, told.head)
    assert found.layout.bgr == layout.bgr


@pytest.mark.parametrize(("upstream", "variant"), sorted(UNTOLD))
def test_names_that_do_not_tell_the_stride_are_read_as_the_usual_network(
    upstream: str, variant: str
) -> None:
    tensors = hollow_tensors(upstream, variant)
    usual = network(variant.removesuffix("-caffe"))
    assert recognise(usual, tensors).layout.name == upstream
    with pytest.raises(UnknownLayoutError, match=f"no layout of {variant} has names such as"):
        recognise(network(variant), tensors)
    with pytest.raises(WeightsMismatchError, match=f"has no {variant}; layouts that have it: "):
        recognise(network(variant), tensors, upstream)


@pytest.mark.parametrize("upstream", RECORDED)
def test_a_bare_file_is_read_as_well(upstream: str) -> None:
    """No classifier, no prefix, no batch counters: what detectors and older versions save."""
    variant = min(recorded_keys(upstream), key=lambda v: len(recorded_keys(upstream)[v]))
    layout = layout_of(upstream, variant)
    native_head = match_layout(network(variant), hollow_tensors(upstream, variant), layout).head
    head = {name.upstream for name in native_head.values()}
    tensors = {
        name.removeprefix(layout.prefix): tensor
        for name, tensor in hollow_tensors(upstream, variant).items()
        if name not in head and not name.endswith(BATCH_COUNTER)
    }
    match = recognise(network(variant), tensors, layout.name)
    assert match.complete
    assert not match.head
    native = to_native(network(variant), match, tensors, bgr=layout.bgr)
    counters = [t for name, t in native.state.items() if name.endswith(BATCH_COUNTER)]
    assert counters
    assert not any(int(counter) for counter in counters)
    assert len(match.filled) == len(counters)


@pytest.mark.parametrize("variant", list_backbones())
def test_our_own_names_are_the_identity(variant: str) -> None:
    architecture = variant_config(variant)
    names = LAYOUTS["trunkline"].names(architecture, native_shapes(architecture))
    assert all(native == name.upstream and not name.change for native, name in names.items())
    assert LAYOUTS["trunkline"] in layouts_for(architecture)


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


# What values mean.


@pytest.mark.parametrize(
    ("upstream", "variant"),
    [("pycls", "regnet-x-002"), ("mmpretrain-regnet", "regnet-x-004"), ("pycls", "resnet50")],
)
def test_a_bgr_stem_is_turned_once_in_and_once_out(upstream: str, variant: str) -> None:
    backbone, layout = network(variant), LAYOUTS[upstream]
    tensors = upstream_tensors(upstream, variant)
    match = match_layout(backbone, tensors, layout)
    native = to_native(backbone, match, tensors, bgr=layout.bgr)
    first = stem_weight(backbone.architecture)
    theirs = tensors[match.found[first].upstream]
    assert torch.equal(native.state[first], theirs.flip(1))
    assert not torch.equal(native.state[first], theirs)
    assert native.adapted == ("The stem's input channels were turned from BGR to RGB.",)
    for name, there in match.found.items():
        if name != first:
            assert torch.equal(native.state[name], tensors[there.upstream])
    again = to_upstream(layout, backbone.architecture, native.state)
    assert torch.equal(again[match.found[first].upstream], theirs)


def test_which_upstreams_take_bgr() -> None:
    assert {name for name, layout in LAYOUTS.items() if layout.bgr} == {
        *("pycls", "mmpretrain-regnet", "detectron2-msra"),
        *("caffe2", "caffe2-affine", "caffe2-group-norm"),
    }


@pytest.mark.parametrize("channels", [1, 4])
def test_a_stem_without_colours_is_written_as_it_is(channels: int) -> None:
    architecture = variant_config("regnet-x-002")
    weight = torch.randn(32, channels, 3, 3)
    written = to_upstream(LAYOUTS["pycls"], architecture, {"stem.conv.weight": weight})
    assert torch.equal(written["stem.conv.weight"], weight)


def test_a_convolution_as_classifier_becomes_linear_and_back() -> None:
    tensors = upstream_tensors("timm-dla", "dla46-c")
    match = match_layout(network("dla46-c"), tensors, LAYOUTS["timm-dla"])
    head = to_native(network("dla46-c"), match, tensors, bgr=False).head
    assert head["classifier.weight"].shape == (1000, 256)
    assert torch.equal(head["classifier.weight"], tensors["fc.weight"][:, :, 0, 0])


@pytest.mark.parametrize("variant", list_backbones("dla"))
def test_the_original_dla_can_load_what_is_written_strictly(variant: str) -> None:
    backbone = network(variant)
    tensors = hollow_tensors("timm-dla", variant)
    match = recognise(backbone, tensors)
    native = to_native(backbone, match, tensors, bgr=False)
    state = native.state | native.head
    written = to_upstream(LAYOUTS["dla"], backbone.architecture, state)
    assert {name: tuple(t.shape) for name, t in written.items()} == recorded_keys("dla")[variant]
    unused = {name: written[name] for name in dead("dla", variant)}
    assert unused
    assert {t.dtype for name, t in unused.items() if name.endswith(BATCH_COUNTER)} == {torch.int64}
    variances = [t for name, t in unused.items() if name.endswith("running_var")]
    assert all(torch.equal(t, torch.ones_like(t)) for t in variances)


def test_dead_projections_are_dropped_with_the_reason() -> None:
    match = recognise(network("dla34"), hollow_tensors("dla", "dla34"))
    reason = "the original computes this projection and throws the result away"
    assert set(match.dropped[reason]) == set(dead("dla", "dla34"))
    assert len(match.dropped[reason]) == 12
    assert match.dropped["classifier, not part of a backbone"] == ("fc.bias", "fc.weight")


def test_a_projection_that_is_used_is_not_taken_for_a_dead_one() -> None:
    tensors = hollow_tensors("dla", "dla34")
    needed = [name for name in tensors if name.startswith("level5.project.")]
    assert len(needed) == 6
    del tensors["level5.project.0.weight"]
    with pytest.raises(WeightsMismatchError, match=r"Missing: 1 \(level5\.project\.0\.weight\)"):
        recognise(network("dla34"), tensors)


def test_self_supervised_heads_are_dropped_with_the_reason() -> None:
    tensors = hollow_tensors("vissl", "regnet-y-080")
    tensors["heads.0.prototypes0.weight"] = torch.zeros(8, 4)
    match = recognise(network("regnet-y-080"), tensors)
    reason = "a head of self-supervised training"
    assert match.dropped == {reason: ("heads.0.prototypes0.weight",)}
    assert match.head == {}


def test_a_stage_that_fsdp_cut_into_parts_is_put_together() -> None:
    tensors = {
        name.replace(".block3-", ".block3-part1.block3-"): tensor
        for name, tensor in hollow_tensors("vissl", "regnet-y-080").items()
    }
    assert any("part1" in name for name in tensors)
    match = recognise(network("regnet-y-080"), tensors)
    assert match.layout.name == "vissl"
    assert len(match.found) == len(network("regnet-y-080").state_dict())


def test_what_caffe2_keeps_of_its_training_is_dropped_with_the_reason() -> None:
    tensors = hollow_tensors("detectron2-c2", "resnet50-caffe")
    tensors |= {"conv1_w_momentum": torch.zeros(1), "lr": torch.zeros(1)}
    match = recognise(network("resnet50-caffe"), tensors)
    assert match.dropped["the optimizer's momentum"] == ("conv1_w_momentum",)
    assert match.dropped["the learning rate"] == ("lr",)
    assert match.dropped["a bias of the stem that detectron2 leaves aside too"] == ("conv1_b",)


def test_either_spelling_of_caffe2_is_read() -> None:
    tensors = hollow_tensors("detectron2-c2", "resnet50-caffe")
    other = {spelling_of_fair(name): tensor for name, tensor in tensors.items()}
    assert other.keys() != tensors.keys()
    one = recognise(network("resnet50-caffe"), tensors)
    two = recognise(network("resnet50-caffe"), other)
    spelled = {native: spelling_of_fair(name.upstream) for native, name in one.found.items()}
    assert spelled == {native: name.upstream for native, name in two.found.items()}
    assert set(one.head) == set(two.head) == {"classifier.weight", "classifier.bias"}


def test_the_classifier_that_detectron2_converted_from_torchvision_is_found() -> None:
    rename = document("detectron2")["forms"]["torchvision-converted"]["rename"]
    assert rename == {"linear.": "stem.fc."}
    tensors = {
        name.replace("linear.", "stem.fc."): tensor
        for name, tensor in hollow_tensors("detectron2", "resnet50").items()
    }
    match = recognise(network("resnet50"), tensors, "detectron2")
    assert {name.upstream for name in match.head.values()} == {"stem.fc.weight", "stem.fc.bias"}


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
        recognise(network("resnet18"), {}, "keras")


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
