"""Full and former names of timm and torchvision mean a network, and a checkpoint of it."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import pytest

from trunkline import create_backbone, list_backbones
from trunkline.backbones.upstream_names import CHECKPOINTS
from trunkline.cli.loaded import build_network
from trunkline.errors import OfflineError, UnknownVariantError, WeightsNotFoundError
from trunkline.heads.classifier import load_classifier
from trunkline.weights.catalog import entries, find
from trunkline.weights.catalog.entry import spelled
from trunkline.weights.catalog.lookup import tag_of_enum
from trunkline.weights.conversion import convert
from trunkline.zoo import canonical_name, named_checkpoint

pytestmark = pytest.mark.usefixtures("weights_home")

NAMED = [
    ("resnet50.a1_in1k", "resnet50", "timm-a1-in1k"),
    ("timm/ResNet50.a1_in1k", "resnet50", "timm-a1-in1k"),
    ("wide_resnet50_2.tv2_in1k", "wide-resnet50-2", "timm-tv2-in1k"),
    ("dla34.in1k", "dla34", "timm-in1k"),
    ("regnety_040.pycls_in1k", "regnet-y-040", "timm-pycls-in1k"),
    ("resnet50.IMAGENET1K_V2", "resnet50", "torchvision-in1k-v2"),
    ("regnet_y_400mf.IMAGENET1K_V1", "regnet-y-004", "torchvision-in1k-v1"),
    ("tv_resnet50", "resnet50", "timm-tv-in1k"),
    ("tv_resnext50_32x4d", "resnext50-32x4d", "timm-tv-in1k"),
    ("ssl_resnext50_32x4d", "resnext50-32x4d", "timm-fb-ssl-yfcc100m-ft-in1k"),
    ("swsl_resnet18", "resnet18", "timm-fb-swsl-ig1b-ft-in1k"),
    ("ig_resnext101_32x8d", "resnext101-32x8d", "timm-fb-wsl-ig1b-ft-in1k"),
    ("gluon_resnet50_v1b", "resnet50", "timm-gluon-in1k"),
    ("gluon_resnet50_v1c", "resnet50c", "timm-gluon-in1k"),
    ("gluon_resnet101_v1d", "resnet101d", "timm-gluon-in1k"),
    ("gluon_resnet50_v1s", "resnet50s", "timm-gluon-in1k"),
    ("gluon_resnext50_32x4d", "resnext50-32x4d", "timm-gluon-in1k"),
]


@pytest.mark.parametrize(("name", "variant", "tag"), NAMED)
def test_a_name_means_a_variant_and_one_of_its_checkpoints(
    name: str, variant: str, tag: str
) -> None:
    assert canonical_name(name) == variant
    checkpoint = named_checkpoint(name)
    assert checkpoint is not None
    assert find(variant, checkpoint).tag == tag
    assert find(variant, name).tag == tag


@pytest.mark.parametrize("name", ["resnet50", "regnetx_4.0gf", "RegNetY-1.6GF", "timm/dla34"])
def test_a_name_of_a_network_alone_says_no_checkpoint(name: str) -> None:
    assert canonical_name(name)
    assert named_checkpoint(name) is None


def test_default_weights_are_those_that_the_name_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_OFFLINE", "1")
    with pytest.raises(OfflineError, match=r"resnet18\.timm-a2-in1k"):
        create_backbone("resnet18.a2_in1k", weights="default", return_idx=(0,))
    with pytest.raises(OfflineError, match=r"resnet18\.timm-a1-in1k"):  # what is asked for in words
        create_backbone("resnet18.a2_in1k", weights="timm-a1-in1k", return_idx=(0,))
    backbone = create_backbone("resnet18.a2_in1k", return_idx=(0,))
    assert (backbone.variant, backbone.load_report) == ("resnet18", None)


def test_every_door_hears_the_checkpoint_of_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUNKLINE_OFFLINE", "1")
    name, said = "resnet18.a2_in1k", r"resnet18\.timm-a2-in1k"
    assert find(name).tag == "timm-a2-in1k"
    with pytest.raises(OfflineError, match=said):
        load_classifier(name, "default")
    with pytest.raises(OfflineError, match=said):
        convert("default", tmp_path / "x.pth", "timm", variant=name)
    with pytest.raises(OfflineError, match=said):
        build_network(name, "default", (0,), seed=0, allow_noncommercial=False)


def test_a_checkpoint_that_is_none_names_the_closest() -> None:
    said = r"no checkpoint 'a1-in1kk', as 'resnet50\.a1_in1kk' asks for; closest: .*a1-in1k"
    with pytest.raises(UnknownVariantError, match=said):
        create_backbone("resnet50.a1_in1kk")
    with pytest.raises(UnknownVariantError, match="for example: a1-in1k"):
        create_backbone("resnet50.zzzzzzzzzzzzz")
    with pytest.raises(WeightsNotFoundError, match=r"no weights 'b1k-in1k' of resnet18"):
        create_backbone("resnet18.b1k_in1k", weights="default", return_idx=(0,))


@pytest.mark.parametrize(
    "name",
    ["nonet.a1_in1k", "tv_vgg16", "ssl_resnext101_32x16d", "resnet50.", ".a1_in1k", "gluon_senet"],
)
def test_a_network_that_is_none_stays_unknown(name: str) -> None:
    with pytest.raises(UnknownVariantError, match="no variant"):
        canonical_name(name)
    assert named_checkpoint(name) is None


def test_the_checkpoints_are_those_of_the_catalog() -> None:
    known = {
        spelled(row.upstream_name.partition(".")[2])
        for row in entries()
        if row.source in ("timm", "torchvision")
    }
    assert known - {""} <= set(CHECKPOINTS)
    assert len(set(CHECKPOINTS)) == len(CHECKPOINTS)
    for row in entries(source="timm"):
        # resnet50_gn is resnet50 with norm="group", which no name gives.
        if "group-norm" not in row.requires:
            assert canonical_name(row.upstream_name) == row.variant
        assert find(row.variant, row.upstream_name) == row


class ResNet50_Weights(Enum):  # noqa: N801 - as torchvision's
    IMAGENET1K_V1 = 1
    IMAGENET1K_V2 = 2
    DEFAULT = 2


class Colour(Enum):
    RED = 1


@pytest.mark.parametrize(
    ("member", "variant", "tag"),
    [
        (ResNet50_Weights.IMAGENET1K_V1, "resnet50", "torchvision-in1k-v1"),
        (ResNet50_Weights.DEFAULT, "resnet50", "torchvision-in1k-v2"),
        ("ResNet50_Weights.IMAGENET1K_V2", "resnet50", "torchvision-in1k-v2"),
        ("IMAGENET1K_V2", "resnet50", "torchvision-in1k-v2"),
        ("DEFAULT", "resnet18", "torchvision-in1k-v1"),
        ("ResNeXt50_32X4D_Weights.DEFAULT", "resnext50_32x4d", "torchvision-in1k-v2"),
        ("Wide_ResNet50_2_Weights.IMAGENET1K_V1", "wide_resnet50_2", "torchvision-in1k-v1"),
        ("RegNet_Y_800MF_Weights.IMAGENET1K_V2", "regnet_y_800mf", "torchvision-in1k-v2"),
        ("RegNet_Y_128GF_Weights.DEFAULT", "regnet-y-1280", "torchvision-in1k-swag-e2e-v1"),
    ],
)
def test_torchvision_s_enums_mean_tags(member: Enum | str, variant: str, tag: str) -> None:
    assert tag_of_enum(member, variant) == tag
    if isinstance(member, str) and "Weights" in member:
        assert find(variant, member).tag == tag


@pytest.mark.parametrize(
    ("member", "variant", "said"),
    [
        (
            ResNet50_Weights.IMAGENET1K_V1,
            "resnet18",
            "are weights of resnet50, and this is resnet1",
        ),
        (
            Colour.RED,
            "resnet18",
            r"Colour\.RED is no member of torchvision's enums of weights, such",
        ),
        ("ViT_B_16_Weights.DEFAULT", "resnet18", "are weights of no network here"),
        ("IMAGENET1K_V2", "resnet18", "no IMAGENET1K_V2 of resnet18 .* there are: IMAGENET1K_V1"),
        ("DEFAULT", "resnet18d", "no DEFAULT of resnet18d in the catalog; there are: none"),
    ],
)
def test_other_enums_are_refused(member: Enum | str, variant: str, said: str) -> None:
    with pytest.raises(WeightsNotFoundError, match=said):
        tag_of_enum(member, variant)


def test_the_names_of_our_own_variants_say_no_checkpoint() -> None:
    assert all(named_checkpoint(name) is None for name in list_backbones())
