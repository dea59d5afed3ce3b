"""Other libraries' words are answered with ours, and names with the class that builds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import trunkline
from trunkline import DLANet, RegNet, ResNet
from trunkline.backbones.dla import DLAConfig
from trunkline.backbones.options import Options
from trunkline.backbones.resnet import VARIANTS, ResNetConfig
from trunkline.backbones.words import MEANT, OF_CLASS, check_words
from trunkline.errors import ConfigError, UnknownVariantError

CALLS: dict[str, Callable[..., Any]] = {
    "ResNet": ResNet,
    "DLANet": DLANet,
    "RegNet": RegNet,
    "create_backbone": lambda **words: trunkline.create_backbone("resnet18", **words),
    "from_pretrained": lambda **words: trunkline.from_pretrained("nowhere", **words),
}
# What other libraries' constructors take, and what the answer must name.
ANSWERS = {
    "out_indices": "return_idx",
    "out_features": "return_idx",
    "return_layers": "return_idx",
    "features_only": "feature maps alone",
    "freeze_at": "frozen_stages",
    "trainable_layers": "frozen_stages=4-n",
    "freeze_norm": "norm='frozen'",
    "freeze_bn": "norm='frozen'",
    "norm_eval": "norm='frozen'",
    "in_chans": "in_channels",
    "num_classes": "no classifier",
    "global_pool": "no classifier",
    "replace_stride_with_dilation": "output_stride",
    "dilation": "output_stride",
    "num_stages": "return_idx",
    "strides": "output_stride",
    "style": "resnet50-caffe",
    "norm_layer": "norm=",
    "act_layer": "act=",
    "norm_cfg": "norm=",
    "zero_init_residual": "last norms to zero",
    "progress": "load_weights",
    "drop_rate": "drop_path_rate",
    "drop_path": "drop_path_rate",
    "stem_type": "resnet50d",
    "deep_stem": "resnet50d",
    "avg_down": "resnet50d",
    "with_cp": "checkpointing=True",
    "weights_backbone": "weights='default'",
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("word", ANSWERS)
def test_words_of_other_libraries_are_answered(word: str, call: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CALLS[call](**{word: 2})
    text = str(caught.value)
    assert text.startswith(f"unknown option {word}; allowed: act, ")
    assert ANSWERS[word] in text.partition(f" For {word}: ")[2]


def test_no_answer_is_for_a_word_that_is_taken() -> None:
    assert not set(MEANT) & set(Options.__annotations__)
    for sentence in [*MEANT.values(), *(s for words in OF_CLASS.values() for s in words.values())]:
        assert sentence == sentence.strip().rstrip(".")


@pytest.mark.parametrize(
    ("call", "words", "message"),
    [
        ("ResNet", {"variant": "d"}, r"For variant: depth='resnet50d', 'resnet50vd'"),
        ("ResNet", {"return_index": [1]}, r"For return_index: .* call it return_idx"),
        ("RegNet", {"return_index": [1]}, r"For return_index: .* call it return_idx"),
        ("RegNet", {"depth": 50}, r"For depth: variant='regnet-y-080'.*ResNet\(depth=50\)"),
        ("DLANet", {"return_idx": [1]}, r"For return_idx: DLANet calls it return_index"),
        ("DLANet", {"depth": 34}, r"For depth: dla='dla34'"),
        ("DLANet", {"variant": "dla34"}, r"For variant: dla='dla34'"),
        ("create_backbone", {"return_index": [1]}, r"For return_index: return_idx="),
        ("create_backbone", {"depth": 50}, r"For depth: the name comes first"),
        ("create_backbone", {"pretrained": True}, r"For pretrained: .*weights='default'"),
        ("from_pretrained", {"weights": "default"}, r"For weights: a saved folder has its weights"),
        ("from_pretrained", {"pretrained": True}, r"For pretrained: "),
    ],
)
def test_words_that_mean_another_thing_here(call: str, words: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CALLS[call](**words)


def test_several_words_are_answered_each_and_slips_are_guessed() -> None:
    with pytest.raises(ConfigError) as caught:
        check_words({"in_chans": 4, "retrun_idx": 1, "quite_another": 2, "norm": "batch"})
    text = str(caught.value)
    assert text.startswith("unknown option in_chans, quite_another, retrun_idx; allowed: act, ")
    assert "For in_chans: in_channels=4" in text
    assert "Is return_idx meant by retrun_idx?" in text
    assert "quite_another?" not in text


@pytest.mark.parametrize("pretrained", ["imagenet", "default", 1, None])
def test_pretrained_is_a_boolean(pretrained: Any) -> None:
    with pytest.raises(ConfigError, match=r"pretrained must be True or False.*weights='default'"):
        ResNet(50, pretrained=pretrained)


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        *((name, name) for name in VARIANTS),
        ("ResNet50_vd", "resnet50vd"),
        ("presnet18", "resnet18vd"),
    ],
)
def test_resnet_takes_the_name_of_any_variant(name: str, variant: str) -> None:
    with torch.device("meta"):
        backbone = ResNet(depth=name, return_idx=(0,))
    assert backbone.variant == variant
    assert backbone.architecture == VARIANTS[variant]


def test_aliases_of_the_other_classes() -> None:
    with torch.device("meta"):
        assert DLANet(dla="dla46").variant == "dla46-c"
        assert RegNet("regnety_080").variant == "regnet-y-080"
        assert RegNet("regnet_y_8gf").variant == "regnet-y-080-tv"


def test_a_depth_that_is_written_as_text_is_told_apart() -> None:
    with pytest.raises(UnknownVariantError, match=r"depth='50' is .*Here that is the number, dep"):
        ResNet(depth="50")


@pytest.mark.parametrize(
    ("build", "name", "message"),
    [
        (ResNet, "dla34", r"'dla34' is no variant of ResNet; DLANet\(dla='dla34'\) builds it"),
        (ResNet, "RegNetY_080", r"RegNet\(variant='regnety-080'\) builds it"),
        (DLANet, "resnet50", r"no variant of DLANet; ResNet\(depth='resnet50'\) builds it"),
        (DLANet, "wide_resnet50_2", r"ResNet\(depth='wide-resnet50-2'\) builds it"),
        (RegNet, "resnext50_32x4d", r"ResNet\(depth='resnext50-32x4d'\) builds it"),
        (RegNet, "regnet-z", r"no variant 'regnet-z'; closest: regnet-"),
        (ResNet, "resnet51", r"no variant 'resnet51'; closest: resnet"),
    ],
)
def test_names_of_another_family_point_to_its_class(
    build: Callable[..., Any], name: str, message: str
) -> None:
    with pytest.raises(UnknownVariantError, match=message):
        build(name)


def test_a_config_of_another_family_is_refused() -> None:
    resnet = ResNetConfig(depths=(1, 1, 1, 1), bottleneck=False)
    dla = DLAConfig(depths=(1, 1, 1, 1), channels=(8, 8, 8, 8), bottleneck=False)
    with pytest.raises(ConfigError, match="ResNet builds a resnet, and DLAConfig describes a dla"):
        ResNet(dla)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"RegNet builds a regnet.*ResNetConfig .*a resnet"):
        RegNet(resnet)  # type: ignore[arg-type]
