"""Names → backbones: every variant under every name that it has elsewhere."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

import trunkline
from trunkline import facts as written
from trunkline.backbones import dla, regnet, resnet
from trunkline.errors import ConfigError, UnknownVariantError
from trunkline.zoo import canonical_name

MODULES = (resnet, dla, regnet)


def test_upstream_names_mean_the_recorded_variant(facts: dict[str, Any]) -> None:
    assert len(facts["names"]) > 130
    assert {name: canonical_name(name) for name in facts["names"]} == facts["names"]


def test_upstream_names_have_the_recorded_widths(facts: dict[str, Any]) -> None:
    configs = {name: config for module in MODULES for name, config in module.VARIANTS.items()}
    for name, variant in facts["names"].items():
        config = configs[canonical_name(name)]
        widths = [channels for _, channels in facts["variants"][variant]["levels"]]
        assert [config.stem_channels, *config.stage_channels] == widths, name


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("regnet_x_400mf", "regnet-x-004-tv"),
        ("regnet_y_800mf", "regnet-y-008-tv"),
        ("regnet_y_8gf", "regnet-y-080-tv"),
        ("RegNetX-400MF", "regnet-x-004"),
        ("RegNetY-800MF", "regnet-y-008"),
        ("RegNetY-8.0GF", "regnet-y-080"),
        ("facebook/regnet-y-080", "regnet-y-080"),
        ("regnetx_004_tv", "regnet-x-004-tv"),
    ],
)
def test_torchvision_means_its_own_widths_and_nobody_else_does(name: str, variant: str) -> None:
    assert canonical_name(name) == variant


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("dla46", "dla46-c"),
        ("DLA46_C", "dla46-c"),
        ("DLA34", "dla34"),
        ("ResNet50", "resnet50"),
        (" resnet50 ", "resnet50"),
        ("RESNEXT50_32X4D", "resnext50-32x4d"),
        ("wide_resnet101_2", "wide-resnet101-2"),
        ("microsoft/resnet-50", "resnet50"),
        ("ResNet50_vd", "resnet50vd"),
        ("PResNet18", "resnet18vd"),
        ("regnet_y_1_6gf", "regnet-y-016"),
        ("regnet_y_128gf", "regnet-y-1280"),
        ("RegNetY-1.6GF", "regnet-y-016"),
        ("regnetx_4.0gf", "regnet-x-040"),
        ("facebook/regnet-y-640-seer", "regnet-y-640"),
        ("facebook/regnet-y-1280-seer-in1k", "regnet-y-1280"),
    ],
)
def test_capitals_underscores_and_owners_do_not_matter(name: str, variant: str) -> None:
    assert canonical_name(name) == variant


def test_no_name_means_two_things() -> None:
    variants = [name for module in MODULES for name in module.VARIANTS]
    aliases = [name for module in MODULES for name in module.ALIASES]
    assert len(set(variants)) == len(variants)
    assert len(set(aliases)) == len(aliases)
    assert not set(aliases) & set(variants)


def test_aliases_are_normalised_and_stay_in_their_family() -> None:
    for module in MODULES:
        for alias, variant in module.ALIASES.items():
            assert variant in module.VARIANTS
            assert alias == alias.lower().replace("_", "-")
            assert "/" not in alias


def test_no_two_variants_are_the_same_network() -> None:
    for module in MODULES:
        configs = [*module.VARIANTS.values()]
        assert len(set(configs)) == len(configs)


def test_list_backbones_by_family() -> None:
    everything = trunkline.list_backbones()
    by_family = [trunkline.list_backbones(family) for family in ("resnet", "dla", "regnet")]
    assert everything == [name for names in by_family for name in names]
    assert len(set(everything)) == len(everything)
    assert by_family[1] == [*dla.VARIANTS]
    everything.clear()
    assert trunkline.list_backbones()


@pytest.mark.parametrize("family", ["vit", "ResNet", ""])
def test_list_backbones_of_no_family(family: str) -> None:
    with pytest.raises(ConfigError, match=rf"no family '{family}'; allowed: resnet, dla, regnet"):
        trunkline.list_backbones(family)


def test_info_knows_name_family_and_aliases() -> None:
    known = trunkline.info("regnet_y_8gf")
    assert (known.name, known.family) == ("regnet-y-080-tv", "regnet")
    assert "regnet-y-8gf" in known.aliases
    assert "regnety-080-tv" in known.aliases
    assert trunkline.info("dla46").aliases == ("dla46",)
    assert trunkline.info("resnet50").family == "resnet"


@pytest.mark.parametrize("name", ["resnet18vd", "dla34", "regnet-x-002"])
def test_create_backbone_returns_all_levels_and_hands_options_on(name: str) -> None:
    backbone = trunkline.create_backbone(
        name, return_idx=(2, 0), in_channels=1, output_stride=8, norm="group", frozen_stages=1
    )
    assert backbone.variant == name
    assert backbone.strides == (8, 4)
    assert backbone.in_channels == 1
    assert backbone.frozen_stages == 1
    assert backbone.training
    with torch.device("meta"):
        assert trunkline.create_backbone(name).strides == (4, 8, 16, 32)


@pytest.mark.parametrize("name", ["resnet18", "dla46-c", "regnet-y-002"])
def test_create_backbone_refuses_options_that_no_backbone_has(name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"unknown option out_indices; allowed: act, .*return_stem"
    ):
        trunkline.create_backbone(name, out_indices=(1, 2))  # type: ignore[call-arg]


def test_what_is_written_down_of_the_variants_is_what_they_are() -> None:
    assert list(written.facts()) == trunkline.list_backbones()
    for name, known in written.facts().items():
        assert known == trunkline.info(name), "run `make fix`"
        for alias in (name.upper(), name.replace("-", "_"), f"owner/{name}", *known.aliases):
            assert written.fact(alias) == known
    with pytest.raises(UnknownVariantError, match=r"no variant .resnet49.; closest: "):
        written.fact("resnet49")


@pytest.mark.parametrize("verb", [["list"], ["list", "--json"], ["info", "regnety_040"]])
def test_verbs_that_only_tell_do_not_import_pytorch(verb: list[str]) -> None:
    script = (
        "import sys\nfrom trunkline.cli.root import app\n"
        f"try:\n    app({verb!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
