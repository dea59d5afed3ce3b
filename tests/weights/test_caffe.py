"""Caffe's style under torchvision's names: refused where it is not meant, read where it is."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from upstream_files import hollow_tensors, on_meta, recognise

from trunkline import Backbone, ResNet, create_backbone, load_weights
from trunkline.errors import UnknownLayoutError, WeightsMismatchError
from trunkline.weights.caffe import MSRA, check_style
from trunkline.weights.catalog import find
from trunkline.weights.checkpoint import Checkpoint, read_checkpoint
from trunkline.weights.conversion import convert
from trunkline.weights.loading import Read, read_for
from trunkline.weights.reading.words import words_beside
from trunkline.weights.sources import Located
from trunkline.weights.statements import statement_of
from trunkline.zoo import variant_config

pytestmark = pytest.mark.usefixtures("weights_home")

STYLED = "model = dict(backbone=dict(type='ResNet', depth=50, style='caffe'))"


def fused(variant: str) -> dict[str, Tensor]:
    """Return torchvision's names, norms as Caffe's conversions leave them."""
    tensors = hollow_tensors("torchvision-resnet", variant)
    for name, value in tensors.items():
        if name.endswith(("running_mean", "running_var")):
            value.fill_(float(name.endswith("running_var")))
    return tensors


def read(
    backbone: Backbone, tensors: Mapping[str, Tensor], layout: str = "auto", **words: Any
) -> Read:
    located = Located(source="given", path=Path("given.pth"))
    checkpoint = Checkpoint(tensors=dict(tensors), format="torch-zip", metadata=words)
    return read_for(backbone, located, checkpoint, layout)


@pytest.mark.parametrize("variant", ["resnet50", "resnet101"])
def test_fused_norms_are_refused_with_the_way_to_load_them(variant: str) -> None:
    with pytest.raises(WeightsMismatchError) as caught:
        read(on_meta(variant), fused(variant))
    assert str(caught.value) == (
        "given.pth: all means of its norms are 0 and all variances 1, as Caffe's conversions leave "
        "them. It is probably the network of Caffe's style, which halves in "
        f"the first 1×1 of a bottleneck and takes BGR; {variant} halves in the 3×3 and would give "
        "other maps of the same tensors. Nothing was loaded; load it by "
        f'create_backbone("{variant}-caffe", weights=PATH), or convert it with '
        f'variant="{variant}-caffe". '
        f"If it is {variant} after all, say layout='torchvision-resnet', and "
        "channel_map=(2, 1, 0) where it takes BGR."
    )
    assert read(on_meta(variant), fused(variant), "torchvision-resnet").match.complete


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ("resnet152", r"ResNet\(dataclasses\.replace\(backbone\.architecture, stride_in_1x1=True"),
        ("wide-resnet50-2", "stride_in_1x1=True"),
        (
            "resnext101-32x8d",
            r"usually takes BGR, .*say layout='torchvision-resnet', and channel_m",
        ),
    ],
)
def test_variants_without_a_twin_say_what_can_be_done(variant: str, said: str) -> None:
    with pytest.raises(WeightsMismatchError, match=said):
        read(on_meta(variant), fused(variant))


def test_the_network_of_one_s_own_that_is_named_takes_the_file() -> None:
    config = replace(variant_config("resnet152"), stride_in_1x1=True)  # type: ignore[type-var]
    with torch.device("meta"):
        backbone = ResNet(config)  # type: ignore[arg-type]
    assert read(backbone, fused("resnet152")).match.layout.name == "mmpretrain-resnet-caffe"


def test_the_right_network_takes_the_names_as_they_are(tmp_path: Path) -> None:
    tensors = fused("resnet50")
    tensors["conv1.weight"] = torch.randn(64, 3, 7, 7)
    torch.save({"state_dict": tensors}, tmp_path / "x.pth")
    with torch.device("meta"):
        backbone = create_backbone("resnet50-caffe", return_idx=(0,))
    report = load_weights(backbone, tmp_path / "x.pth")
    weight = backbone.state_dict()["stem.conv.weight"]
    assert torch.equal(weight, tensors["conv1.weight"][:, [2, 1, 0]])
    assert report.layout == "mmpretrain-resnet-caffe"
    assert any(note.startswith("Read as Caffe's style (all means of its") for note in report.notes)
    # As the same network of detectron2's, whose row says it.
    assert backbone.preprocessing == MSRA
    known = find("resnet50-caffe", "detectron2-msra").preprocessing
    assert known is not None
    assert known.in_rgb() == MSRA


def test_a_conversion_is_told_which_network_it_is(tmp_path: Path) -> None:
    torch.save(fused("resnet50"), tmp_path / "x.pth")
    with pytest.raises(WeightsMismatchError, match='or convert it with variant="resnet50-caffe"'):
        convert(tmp_path / "x.pth", tmp_path / "y.safetensors", "trunkline")
    convert(tmp_path / "x.pth", tmp_path / "y.safetensors", "trunkline", variant="resnet50-caffe")
    again = read_checkpoint(tmp_path / "y.safetensors")
    assert statement_of(again) is not None
    with torch.device("meta"):
        backbone = create_backbone("resnet50-caffe", return_idx=(0,))
    load_weights(backbone, tmp_path / "y.safetensors")
    assert backbone.preprocessing == MSRA


def test_norms_with_statistics_do_not_load_into_it_without_a_word() -> None:
    tensors = hollow_tensors("torchvision-resnet", "resnet50")
    said = "have statistics of their own, as those of torchvision's networks do; build the network"
    with pytest.raises(UnknownLayoutError, match=said):
        read(on_meta("resnet50-caffe"), tensors)
    assert read(on_meta("resnet50-caffe"), tensors, "mmpretrain-resnet-caffe").match.complete
    assert read(on_meta("resnet50"), tensors).match.layout.name == "torchvision-resnet"


def test_a_network_that_was_never_trained_is_no_caffe() -> None:
    tensors = fused("resnet50")
    for name, value in tensors.items():
        if name.endswith(("bn1.weight", "bn2.weight", "bn3.weight", "downsample.1.weight")):
            value.fill_(0.0 if "bn3" in name else 1.0)
        elif name.endswith("bias"):
            value.fill_(0.0)
    assert read(on_meta("resnet50"), tensors).match.layout.name == "torchvision-resnet"
    with pytest.raises(UnknownLayoutError, match="layout='mmpretrain-resnet-caffe'"):
        read(on_meta("resnet50-caffe"), tensors)


def test_small_networks_have_no_such_stride_but_may_have_such_colours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        notes = read(on_meta("resnet18"), fused("resnet18")).notes
    assert any("if its network takes BGR, say channel_map=(2, 1, 0)" in note for note in notes)
    assert "It was taken for RGB" in caplog.text


def test_a_config_that_says_caffe_is_heard() -> None:
    tensors = hollow_tensors("torchvision-resnet", "resnet50")
    with pytest.raises(
        WeightsMismatchError, match=r"its config says style='caffe'.*resnet50-caffe"
    ):
        read(on_meta("resnet50"), tensors, style="caffe")
    ours = read(on_meta("resnet50-caffe"), tensors, style="caffe")
    assert ours.match.layout.name == "mmpretrain-resnet-caffe"
    assert ours.preprocessing == MSRA
    assert "its config says style='caffe'" in ours.notes[0]
    assert read(on_meta("resnet50"), tensors, style="pytorch").match.complete


@pytest.mark.parametrize(
    ("name", "source", "variant", "word"),
    [
        ("resnet50_caffe-788b5fa3.pth", "given", "resnet50", "caffe"),
        ("resnet50_msra-5891d200.pth", "given", "resnet50", "msra"),
        ("x.pth", "hf://me/mask_rcnn_r50_caffe_fpn", "resnet50", "caffe"),
        ("caffeine.pth", "given", "resnet50", None),
        ("caffe/x.pth", "given", "resnet50", None),
        ("resnet18_caffe.pth", "given", "resnet18", None),
    ],
)
def test_a_name_alone_is_a_hint(
    caplog: pytest.LogCaptureFixture, name: str, source: str, variant: str, word: str | None
) -> None:
    located = Located(source=source, path=Path(name))
    tensors = hollow_tensors("torchvision-resnet", variant)
    backbone = on_meta(variant)
    match = recognise(backbone, tensors)
    with caplog.at_level(logging.WARNING):
        notes = check_style(backbone, match, tensors, {}, located)
    if word is None:
        assert notes == ()
        assert not caplog.records
    else:
        assert notes[0].startswith(f"The file's name holds {word!r}, and its norms have statistics")
        assert "it was taken for resnet50: stride in the 3×3" in caplog.text


def test_words_are_read_from_where_scripts_put_them(tmp_path: Path) -> None:
    both = STYLED + STYLED.replace("caffe", "pytorch")
    cases: list[tuple[object, dict[str, str]]] = [
        ({"meta": {"config": STYLED}}, {"style": "caffe"}),
        (
            {"meta": {"cfg": STYLED.replace("style='caffe'", '"style": "caffe"')}},
            {"style": "caffe"},
        ),
        ({"meta": {"config": both}}, {}),
        ({"config": STYLED}, {"style": "caffe"}),
        ({"hyper_parameters": {"backbone": "resnet50", "lr": 0.1}}, {"backbone": "resnet50"}),
        ({"args": {"arch": "resnetaa50", "x": {"arch": "no"}}}, {"arch": "resnetaa50"}),
        ({"args": {"arch": "x" * 201, "encoder_name": 3}}, {}),
        ({"optimizer": {"arch": "no"}}, {}),
        ([], {}),
    ]
    for root, expected in cases:
        assert words_beside(root) == expected, root
    path = tmp_path / "x.pth"
    long = "#" * 200_000 + STYLED  # left in the file until it is asked for
    content = {"meta": {"config": long}, "state_dict": {"a": torch.zeros(2)}, "arch": "resnet50"}
    for new in (True, False):
        torch.save(content, path, _use_new_zipfile_serialization=new)
        assert read_checkpoint(path).metadata == {"style": "caffe", "arch": "resnet50"}
