"""Names → backbones: every variant of every family, and what each is known to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any, cast

import msgspec
import torch
from torch import nn
from typing_extensions import Unpack

from trunkline.backbones import dla, regnet, resnet
from trunkline.backbones.backbone import Architecture, Backbone
from trunkline.backbones.layers import NormStandIn
from trunkline.backbones.options import ALL_STAGES, Options, WeightsLike
from trunkline.backbones.variants import VariantNames, is_architecture
from trunkline.backbones.words import check_words
from trunkline.errors import ConfigError
from trunkline.facts import BackboneInfo

# A row a family: where its variants and other libraries' names for them stand.
_MODULES = {"resnet": resnet, "dla": dla, "regnet": regnet}
_NAMES = VariantNames(
    {name: family for family, module in _MODULES.items() for name in module.VARIANTS},
    {alias: name for module in _MODULES.values() for alias, name in module.ALIASES.items()},
)


def create_backbone(
    name: str | Architecture,
    *,
    weights: WeightsLike | None = None,
    return_idx: Sequence[int] = ALL_STAGES,
    **options: Unpack[Options],
) -> Backbone:
    """Build a backbone by name.

    Args:
        name: A variant such as ``"resnet50d"``, ``"dla34"``, ``"regnet-y-040"``, or what
            torchvision, timm, Hugging Face or pycls call it. Capitals do not matter, and ``_`` is
            ``-``. A name that says a checkpoint too, such as timm's ``"resnet50.a1_in1k"`` or
            ``"tv_resnet50"``, means the network alone; with ``weights="default"`` that checkpoint.
            A network of one's own is its family's config, such as ``ResNetConfig`` of
            ``trunkline.backbones.resnet``.
        weights: None for a random network (PyTorch's global generator), a path to a checkpoint,
            or ``"default"``.
        return_idx: Stages to return, in this order; index i has stride 4·2^i.
        **options: See ``trunkline.backbones.backbone.BackboneOptions``.

    Returns:
        The backbone, in training mode as PyTorch makes every module.

    Raises:
        UnknownVariantError: No such name; the closest ones are in the text.
        ConfigError: An option outside what is allowed.
        WeightsError: Weights that cannot be had or do not fit.

    Example:
        >>> import torch
        >>> from trunkline import create_backbone
        >>> backbone = create_backbone("dla34", return_idx=(3, 1))
        >>> backbone.channels, backbone.strides
        ((512, 128), (32, 8))
    """
    if is_architecture(name):
        return build_backbone(
            cast(Architecture, name), weights=weights, return_idx=return_idx, **options
        )
    name = cast(str, name)
    config = variant_config(name)
    chosen = weights_of_name(name, weights) if isinstance(weights, str) else weights
    return build_backbone(config, weights=chosen, return_idx=return_idx, **options)


def build_backbone(
    config: Architecture,
    *,
    weights: WeightsLike | None = None,
    return_idx: Sequence[int] = ALL_STAGES,
    **options: Unpack[Options],
) -> Backbone:
    """Build a backbone from a family's config; the rest is as for ``create_backbone``."""
    check_words(options)
    if isinstance(config, resnet.ResNetConfig):
        return resnet.ResNet(config, return_idx=return_idx, weights=weights, **options)
    if isinstance(config, dla.DLAConfig):
        return dla.DLANet(config, return_index=return_idx, weights=weights, **options)
    if isinstance(config, regnet.RegNetConfig):
        return regnet.RegNet(config, return_idx=return_idx, weights=weights, **options)
    raise ConfigError(
        f"{type(config).__name__} is no config of a family; give a ResNetConfig, DLAConfig or "
        "RegNetConfig."
    )


def family_config(family: str, values: Mapping[str, Any]) -> Architecture:
    """Return a family's config from the values of its fields.

    Args:
        family: ``"resnet"``, ``"dla"`` or ``"regnet"``.
        values: One entry per field, as ``dataclasses.asdict`` gives them, or as JSON gives those:
            lists are taken for tuples. Fields with a default may be absent.

    Raises:
        ConfigError: Another family; a field that it does not have, that is missing, or whose value
            is of another kind or outside what is allowed.
    """
    configs: dict[str, type[resnet.ResNetConfig | dla.DLAConfig | regnet.RegNetConfig]] = {
        "resnet": resnet.ResNetConfig,
        "dla": dla.DLAConfig,
        "regnet": regnet.RegNetConfig,
    }
    if family not in configs:
        raise ConfigError(f"no family {family!r}; allowed: {', '.join(configs)}.")
    known = [field.name for field in fields(configs[family])]
    if unknown := sorted(values.keys() - known):
        raise ConfigError(
            f"{family} has no {', '.join(unknown[:10])}; its fields: {', '.join(known)}."
        )
    try:
        return msgspec.convert(dict(values), configs[family])
    except msgspec.ValidationError as error:
        raise ConfigError(f"this is no {family}: {error}") from error


def canonical_name(name: str) -> str:
    """Return the variant that ``name`` means.

    Raises:
        UnknownVariantError: No such name; the closest ones are in the text.
    """
    return _NAMES.canonical(name)


def named_checkpoint(name: str) -> str | None:
    """Return the checkpoint that a name says beside its variant, None for a name of that alone.

    Args:
        name: As for ``create_backbone``: ``"tv_resnet50"`` says ``"tv-in1k"``.
    """
    return _NAMES.checkpoint(name)


def weights_of_name(name: str, weights: str) -> str:
    """Return which weights are meant by ``weights`` beside a name, which may say a checkpoint.

    Args:
        name: As for ``create_backbone``.
        weights: ``"default"`` is the checkpoint that the name says, where it says one; anything
            else stays what it is.
    """
    return _NAMES.weights(name, weights)


def variant_config(name: str) -> Architecture:
    """Return the config of a variant.

    Raises:
        UnknownVariantError: No such name; the closest ones are in the text.
    """
    variant = canonical_name(name)
    configs: Mapping[str, Architecture] = _MODULES[_NAMES.families[variant]].VARIANTS
    return configs[variant]


def list_backbones(family: str | None = None) -> list[str]:
    """Return the names of all variants, or of one family, in the families' own order.

    Args:
        family: ``"resnet"``, ``"dla"``, ``"regnet"``, or None for all.

    Raises:
        ConfigError: Another family.
    """
    return _NAMES.listed(family)


@cache
def info(name: str) -> BackboneInfo:
    """Return what is known of a variant, without computing or storing a single weight.

    Args:
        name: As for ``create_backbone``.

    Raises:
        UnknownVariantError: No such name; the closest ones are in the text.
    """
    variant = canonical_name(name)
    with torch.device("meta"):
        backbone = create_backbone(variant, norm=NormStandIn, act=nn.Identity)
    return BackboneInfo(
        name=variant,
        family=_NAMES.families[variant],
        aliases=tuple(sorted(alias for alias, of in _NAMES.aliases.items() if of == variant)),
        num_parameters=backbone.num_parameters,
        macs=backbone.macs(),
        levels=backbone.levels,
    )
