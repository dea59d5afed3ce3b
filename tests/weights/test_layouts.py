"""Every upstream's names, there and back, for every network that the upstream has."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from record_keys import document, recorded_keys
from torch import Tensor
from upstream_files import hollow_tensors, numbers, recognise, upstream_tensors

from trunkline import Backbone, create_backbone, list_backbones
from trunkline.errors import UnknownLayoutError, WeightsMismatchError
from trunkline.weights.checkpoint import Checkpoint
from trunkline.weights.layouts import LAYOUTS, layouts_for
from trunkline.weights.layouts.layout import BATCH_COUNTER, Layout, Name
from trunkline.weights.matching import match_layout, native_shapes, stem_weight
from trunkline.weights.searching import find
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
    *(
        "mmsegmentation-resnet-deep-stem",
        "mmpretrain-resnet-deep-stem",
        "pycls",
        "rtdetr-dla",
        "rtdetr-resnet",
        "timm-dla",
    ),
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
    "rtdetr-dla": {"timm-dla"},
    "mmpretrain-resnet": {"torchvision-resnet", "mmpretrain-resnet"},  # backbones without a head
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
    assert len(FILES) == 218 - len(UNTOLD)  # 218: see test_upstream_keys


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


def plain(names: dict[str, Name], layout: Layout) -> dict[str, Name]:
    return {
        native: replace(name, upstream=name.upstream.removeprefix(layout.prefix))
        for native, name in names.items()
    }


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
    assert plain(found.found, layout) == plain(told.found, layout)
    assert found.head == told.head
    assert found.layout.bgr == layout.bgr


@pytest.mark.parametrize(("upstream", "variant"), sorted(UNTOLD))
def test_names_that_do_not_tell_the_stride_are_read_as_the_usual_network(
    upstream: str, variant: str
) -> None:
    tensors = hollow_tensors(upstream, variant)
    usual = network(variant.removesuffix("-caffe"))
    assert recognise(usual, tensors).layout.name in ALIKE.get(upstream, {upstream})
    said = {"mmpretrain-resnet": "mmpretrain-resnet-caffe"}.get(upstream, f"{upstream}-1x1")
    with pytest.raises(UnknownLayoutError, match=f"where the stride is.*say layout='{said}'"):
        recognise(network(variant), tensors)
    with pytest.raises(WeightsMismatchError, match=f"has no {variant}; layouts that have it: "):
        recognise(network(variant), tensors, upstream)
    held = Checkpoint(tensors=dict(tensors), format="memory")
    narrowed, match = find(network(variant), held, said)
    assert (match.complete, match.layout.bgr) == (True, upstream == "mmpretrain-resnet")
    written = to_upstream(
        match.layout,
        network(variant).architecture,
        to_native(network(variant), match, narrowed.tensors, bgr=match.layout.bgr).state,
    )
    assert all(same(written[name], tensors[name]) for name in written)


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
        *("pycls", "mmpretrain-regnet", "mmpretrain-resnet-caffe", "detectron2-msra"),
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
