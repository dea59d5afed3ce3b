"""Other libraries' words for what a backbone takes, each with the word that is meant.

They are answered, never obeyed: two libraries mean different things by the same word often enough.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields

from trunkline.backbones.options import BackboneOptions
from trunkline.errors import ConfigError

_LEVELS = (
    "return_idx=(0, 1, 2, 3) says which maps come out; index i has stride 4·2^i. Where a library "
    "counts the stride-2 map as 0 (timm), its index is ours plus one"
)
_NO_HEAD = (
    "a backbone has no classifier; create_classifier(NAME, num_classes) puts one on it, and "
    "load_classifier reads one from a checkpoint"
)
_PRETRAINED = "weights='default', or a tag, a path or hf://owner/repo, loads trained weights"
_FREEZE = (
    "frozen_stages=k freezes the stem (k=0), or the stem and the first k stages; "
    "backbone.freeze(k) changes it later"
)
_FREEZE_AT = f"{_FREEZE}. RT-DETR's freeze_at counts alike; detectron2's is one more than k"
_TRAINABLE = f"{_FREEZE}. n trainable layers of torchvision are frozen_stages=4-n"
_FROZEN_NORM = (
    "norm='frozen' keeps the statistics and the affine map of every norm as loaded; "
    "frozen_stages=k does so for the first stages alone"
)
_DILATE = "output_stride=16 or 8 dilates instead of halving, from that stride on"
_OWN_SHAPE = (
    "a network of one's own is a config: ResNetConfig, DLAConfig or RegNetConfig, of "
    "trunkline.backbones.resnet, .dla and .regnet, given in the place of the name"
)
_NORM = (
    "norm='batch', 'frozen', 'sync' or 'group', or a callable that takes a number of channels "
    "and returns a module"
)
_ACT = "act='relu', 'silu', 'gelu', ..., or a callable that takes nothing and returns a module"
_VARIANT = "variants have names: the stem and the shortcut of -D, vd, -S, -T and -C are in them"
_DEEP_STEM = (
    "a variant such as 'resnet50d' has a deep stem, or ResNetConfig(stem_widths=(32, 32, 64))"
)
_CHECKPOINTING = "checkpointing=True keeps only the inputs of blocks in training"
_RATE = "drop_path_rate=0.1 drops residual branches in training (stochastic depth)"
_NAME = (
    "the name comes first: create_backbone('resnet50'), ResNet(depth=50), DLANet(dla='dla34'), "
    "RegNet(variant='regnet-y-040')"
)
_STYLE = "the stride in the first 1×1 is a variant of its own: 'resnet50-caffe', 'resnet101-caffe'"

MEANT: Mapping[str, str] = {
    **dict.fromkeys(
        ("out_indices", "out_features", "out_levels", "return_index", "return_indices"), _LEVELS
    ),
    **dict.fromkeys(("return_layers", "return_nodes"), _LEVELS),
    "features_only": "every backbone returns feature maps alone; return_idx says which",
    "num_stages": "return_idx=(0, 1) builds no stage behind the last one that it names",
    **dict.fromkeys(("encoder_depth", "stages"), "return_idx=(0, 1) builds no stage behind those"),
    "freeze_at": _FREEZE_AT,
    **dict.fromkeys(("freeze", "freeze_encoder", "frozen_stage", "freeze_stages"), _FREEZE),
    **dict.fromkeys(("trainable_layers", "trainable_backbone_layers"), _TRAINABLE),
    **dict.fromkeys(
        ("freeze_norm", "freeze_bn", "norm_eval", "bn_frozen", "frozen_bn"),
        _FROZEN_NORM,
    ),
    **dict.fromkeys(
        ("in_chans", "in_ch", "in_channel", "in_chan", "num_channels", "input_channels"),
        "in_channels=4 is the number of channels of the images",
    ),
    **dict.fromkeys(
        ("num_classes", "global_pool", "with_cls", "include_top", "classes", "num_labels"), _NO_HEAD
    ),
    **dict.fromkeys(("drop_rate", "dropout"), f"{_NO_HEAD}. Of a backbone, {_RATE}"),
    **dict.fromkeys(("drop_path", "drop_path_prob", "stochastic_depth_prob"), _RATE),
    "drop_block_rate": _RATE,
    **dict.fromkeys(
        ("weights_backbone", "encoder_weights", "init_cfg", "checkpoint_path", "checkpoint",
         "pretrained_cfg", "pretrained_strict", "model_path", "init_weights"),
        _PRETRAINED,
    ),
    "progress": "downloads are shown by load_weights(backbone, 'default', progress=...)",
    "strict": "loading is always strict; what is not the backbone's is left aside and reported",
    **dict.fromkeys(("replace_stride_with_dilation", "dilation", "dilations", "strides"), _DILATE),
    **dict.fromkeys(("dilate", "dilated"), _DILATE),
    **dict.fromkeys(("norm_layer", "norm_cfg", "norm_type", "bn", "use_syncbn"), _NORM),
    **dict.fromkeys(("act_layer", "act_cfg", "activation", "hidden_act"), _ACT),
    **dict.fromkeys(("with_cp", "grad_checkpointing", "use_checkpoint"), _CHECKPOINTING),
    **dict.fromkeys(("stem_type", "stem_width", "deep_stem", "stem_channels"), _DEEP_STEM),
    "avg_down": "a -D variant such as 'resnet50d' halves by an average pool in its shortcut",
    **dict.fromkeys(("style", "stride_in_1x1", "caffe"), _STYLE),
    "zero_init_residual": "set the weights of the last norms to zero yourself, after building",
    "base_width": "width_per_group=64 is torchvision's and timm's base width (ResNet alone)",
    "base_channels": _OWN_SHAPE,
    **dict.fromkeys(("block", "layers", "depths", "widths", "channels", "cardinality"), _OWN_SHAPE),
    "cfg": _OWN_SHAPE,
    **dict.fromkeys(("model_name", "arch", "backbone", "name", "model", "encoder_name"), _NAME),
    **dict.fromkeys(("depth", "dla"), _NAME),
    "variant": f"{_VARIANT}; {_NAME}",
    "architecture": _OWN_SHAPE,
    "scriptable": "every variant can be traced and exported; nothing has to be switched on",
    "exportable": "every variant can be traced and exported; nothing has to be switched on",
    "device": "build under `with torch.device(...)`, or call backbone.to(...)",
    "dtype": "call backbone.to(torch.bfloat16) after building",
    "pretrained": f"create_backbone takes weights: {_PRETRAINED}; the classes take pretrained=True",
    "weights": "a saved folder has its weights; create_backbone(NAME, weights=...) takes others",
}  # fmt: skip
"""A word, and a sentence about the word that is meant."""

_RESNET = {
    "variant": "depth='resnet50d', 'resnet50vd' (which RT-DETR and Paddle call variant='d'), "
    "'resnet50s', 'resnet50t' or 'resnet50c' names the variant as a whole",
    "dla": "DLANet(dla='dla34') builds a DLA; here depth=50, or depth='resnet50d'",
    "return_index": "ResNet and RegNet call it return_idx; return_index is DLANet's name for it",
}
_DLA = {
    "return_idx": "DLANet calls it return_index, with the same meaning; create_backbone('dla34', "
    "return_idx=(1, 2, 3)) has one name for all families",
    "variant": "dla='dla34' names the variant",
    "depth": "dla='dla34' names the variant; DLANet(dla='dla60') is DLA-60",
}
_REGNET = {
    "depth": "variant='regnet-y-080' names the variant, or a RegNetConfig; ResNet(depth=50) "
    "builds a ResNet",
    "dla": "variant='regnet-y-080' names the variant; DLANet(dla='dla34') builds a DLA",
    "return_index": _RESNET["return_index"],
}
OF_CLASS: Mapping[str, Mapping[str, str]] = {"ResNet": _RESNET, "DLANet": _DLA, "RegNet": _REGNET}


def check_words(
    given: Iterable[str], *, of: str = "", refused: Iterable[str] = (), allowed: Iterable[str] = ()
) -> None:
    """Refuse words that are no options, and say which word is meant.

    Args:
        given: The names of the arguments.
        of: The class that was called, if its words differ from those of ``create_backbone``.
        refused: Options that the caller has another name for.
        allowed: Words that are taken beside the options.

    Raises:
        ConfigError: One of them is not known here.
    """
    known = {field.name for field in fields(BackboneOptions)}
    takes = (known | set(allowed)) - set(refused)
    unknown = sorted(set(given) - takes)
    if not unknown:
        return
    meant = {**MEANT, **OF_CLASS.get(of, {})}
    answers = [f" For {word}: {meant[word]}." for word in unknown if word in meant]
    for word in unknown:
        close = difflib.get_close_matches(word, sorted(takes), n=1, cutoff=0.75)
        if word not in meant and close:
            answers.append(f" Is {close[0]} meant by {word}?")
    raise ConfigError(
        f"unknown option {', '.join(unknown)}; allowed: {', '.join(sorted(takes))}."
        + "".join(answers)
    )


# How names begin, and what builds them; the longer beginning first where one holds another.
