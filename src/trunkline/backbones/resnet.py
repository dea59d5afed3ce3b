"""ResNet: stacks of residual blocks, and its -D, vd, ResNeXt and Wide relatives.

Papers: He et al. 2015, arXiv:1512.03385 (table 1: depths and widths); Xie et al. 2016,
arXiv:1611.05431 (ResNeXt); Zagoruyko & Komodakis 2016, arXiv:1605.07146 (Wide); He et al. 2018,
arXiv:1812.01187 (section 4: deep stem and pooled shortcut of -C and -D).
References: torchvision ``models/resnet.py``, timm ``models/resnet.py``, RT-DETR ``presnet.py``.

Deliberate choices:
- the stride of a bottleneck is in its 3×3 convolution ("v1.5"), as in all of the references; the
  paper's place, the first 1×1, is kept for the files that were trained so (``…-caffe``): their
  shapes fit the other network too, and would load into it without a word;
- the stem ends at stride 2; the max-pool that reaches stride 4 opens stage 0;
- vd (Paddle, RT-DETR) gives stage 0 a projection even where the width does not change, which
  makes its 18 and 34 differ from timm's resnet18d and resnet34d.

Legend: N images, C channels, H and W of the image.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn
from typing_extensions import Unpack

from trunkline.backbones.backbone import Backbone
from trunkline.backbones.blocks import (
    BasicBlock,
    Bottleneck,
    ConvNormAct,
    Sampling,
    avg_pool_half,
    projection,
)
from trunkline.backbones.layers import Layers
from trunkline.backbones.options import (
    ALL_STAGES,
    Options,
    WeightsLike,
    check_blocks,
    check_integers,
    choose_weights,
)
from trunkline.backbones.variants import is_architecture, name_of, resolve_config
from trunkline.backbones.words import check_words
from trunkline.errors import ConfigError, UnknownVariantError

DEEP_STEM = (32, 32, 64)


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Size and shape of one ResNet.

    Args:
        depths: Blocks of each stage.
        bottleneck: 1×1, 3×3, 1×1 with four times as many channels out, in place of two 3×3.
        width: Channels of stage 0 before expansion; every later stage has twice as many.
        groups: Groups of the bottleneck's 3×3 (ResNeXt's cardinality).
        width_per_group: Channels of one group where ``width`` is 64; 64 is the plain ResNet.
        stem_widths: One entry: a 7×7 convolution; three: a deep stem of 3×3 convolutions.
        pooled_shortcut: Halve in the shortcut by a 2×2 average pool, not by a stride (-D).
        project_first: Give stage 0 a projection in any case (vd).
        stride_in_1x1: Halve in the first 1×1 of a bottleneck, not in its 3×3 (Caffe).

    Raises:
        ConfigError: A value outside what is allowed.
    """

    family: ClassVar[str] = "resnet"

    depths: tuple[int, ...]
    bottleneck: bool
    width: int = 64
    groups: int = 1
    width_per_group: int = 64
    stem_widths: tuple[int, ...] = (64,)
    pooled_shortcut: bool = False
    project_first: bool = False
    stride_in_1x1: bool = False

    def __post_init__(self) -> None:
        check_integers(
            depths=self.depths,
            width=self.width,
            groups=self.groups,
            width_per_group=self.width_per_group,
            stem_widths=self.stem_widths,
        )
        if len(self.depths) != 4 or min(self.depths) < 1:
            raise ConfigError(f"depths must be four numbers of 1 or more, got {self.depths}.")
        check_blocks(sum(self.depths))
        if min(self.width, self.groups, self.width_per_group) < 1:
            raise ConfigError(
                "width, groups and width_per_group must be 1 or more, got "
                f"{self.width}, {self.groups} and {self.width_per_group}."
            )
        if self.width * self.width_per_group < 64:
            raise ConfigError(
                f"width={self.width} with width_per_group={self.width_per_group} leaves no channel "
                "in a group; their product must be 64 or more."
            )
        if len(self.stem_widths) not in (1, 3) or min(self.stem_widths) < 1:
            raise ConfigError(
                "stem_widths must be one width (7×7 stem) or three (deep 3×3 stem), "
                f"got {self.stem_widths}."
            )
        check_integers(bottleneck_channels=self._mid_channels(3))
        if not self.bottleneck and (
            (self.groups, self.width_per_group) != (1, 64) or self.stride_in_1x1
        ):
            raise ConfigError(
                "groups, width_per_group and stride_in_1x1 need bottleneck blocks, which start at "
                f"depth 50; got groups={self.groups}, width_per_group={self.width_per_group}, "
                f"stride_in_1x1={self.stride_in_1x1} without."
            )

    def _mid_channels(self, index: int) -> int:
        return (self.width << index) * self.width_per_group // 64 * self.groups

    @property
    def stem_channels(self) -> int:
        """Channels of the stride-2 map."""
        return self.stem_widths[-1]

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of the maps at strides 4, 8, 16 and 32."""
        expansion = 4 if self.bottleneck else 1
        return tuple(self.width * 2**index * expansion for index in range(4))

    @property
    def stage_depths(self) -> tuple[int, ...]:
        """Residual blocks of each stage."""
        return self.depths

    def build_stem(self, in_channels: int, layers: Layers) -> nn.Module:
        """Build ``(N, in_channels, H, W)`` → ``(N, stem_channels, H/2, W/2)``."""
        if len(self.stem_widths) == 1:
            return ConvNormAct(in_channels, self.stem_channels, 7, layers, stride=2)
        first, second, third = self.stem_widths
        return nn.Sequential(
            ConvNormAct(in_channels, first, 3, layers, stride=2),
            ConvNormAct(first, second, 3, layers),
            ConvNormAct(second, third, 3, layers),
        )

    def build_stage(
        self, index: int, in_channels: int, sampling: Sampling, layers: Layers
    ) -> nn.Module:
        """Build stage ``index``: [pool,] blocks, the first of which halves and widens."""
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if index == 0:  # the pool halves, so the blocks need not
            parts["pool"] = nn.MaxPool2d(3, stride=2, padding=1)
            sampling = Sampling(stride=1)
        shortcut = self._shortcut(index, in_channels, sampling, layers)
        blocks = [self._block(index, in_channels, sampling, layers, shortcut)]
        for _ in range(self.depths[index] - 1):
            wide = self.stage_channels[index]
            blocks.append(self._block(index, wide, sampling.rest, layers, None))
        parts["blocks"] = nn.Sequential(*blocks)
        return nn.Sequential(parts)

    def _shortcut(
        self, index: int, in_channels: int, sampling: Sampling, layers: Layers
    ) -> nn.Module | None:
        out_channels = self.stage_channels[index]
        if index == 0:
            if in_channels == out_channels and not self.project_first:
                return None
            return projection(in_channels, out_channels, layers)
        if self.pooled_shortcut:
            return projection(in_channels, out_channels, layers, pool=avg_pool_half(sampling))
        return projection(in_channels, out_channels, layers, stride=sampling.stride)

    def _block(
        self,
        index: int,
        in_channels: int,
        sampling: Sampling,
        layers: Layers,
        shortcut: nn.Module | None,
    ) -> nn.Module:
        out_channels = self.stage_channels[index]
        if not self.bottleneck:
            return BasicBlock(in_channels, out_channels, sampling, layers, shortcut=shortcut)
        return Bottleneck(
            in_channels,
            self._mid_channels(index),
            out_channels,
            sampling,
            layers,
            groups=self.groups,
            stride_in_1x1=self.stride_in_1x1,
            shortcut=shortcut,
        )


_18 = ResNetConfig(depths=(2, 2, 2, 2), bottleneck=False)
_34 = ResNetConfig(depths=(3, 4, 6, 3), bottleneck=False)
_50 = ResNetConfig(depths=(3, 4, 6, 3), bottleneck=True)
_101 = ResNetConfig(depths=(3, 4, 23, 3), bottleneck=True)
_152 = ResNetConfig(depths=(3, 8, 36, 3), bottleneck=True)
_PLAIN = {18: _18, 34: _34, 50: _50, 101: _101, 152: _152}


def _d(plain: ResNetConfig) -> ResNetConfig:
    return replace(plain, stem_widths=DEEP_STEM, pooled_shortcut=True)


def _vd(plain: ResNetConfig) -> ResNetConfig:
    return replace(_d(plain), project_first=True)


VARIANTS: dict[str, ResNetConfig] = {
    **{f"resnet{depth}": config for depth, config in _PLAIN.items()},
    **{f"resnet{depth}d": _d(config) for depth, config in _PLAIN.items()},
    **{f"resnet{depth}vd": _vd(_PLAIN[depth]) for depth in (18, 34, 50, 101)},
    "resnet50c": replace(_50, stem_widths=DEEP_STEM),
    "resnet50s": replace(_50, stem_widths=(64, 64, 128)),
    "resnet50t": replace(_50, stem_widths=(24, 32, 64), pooled_shortcut=True),
    "resnext50-32x4d": replace(_50, groups=32, width_per_group=4),
    "resnext101-32x4d": replace(_101, groups=32, width_per_group=4),
    "resnext101-32x8d": replace(_101, groups=32, width_per_group=8),
    "resnext101-64x4d": replace(_101, groups=64, width_per_group=4),
    "resnet50-caffe": replace(_50, stride_in_1x1=True),
    "resnet101-caffe": replace(_101, stride_in_1x1=True),
    "wide-resnet50-2": replace(_50, width_per_group=128),
    "wide-resnet101-2": replace(_101, width_per_group=128),
}

# Normalised names of other libraries. Hugging Face writes resnet-50, Paddle resnet50_vd, RT-DETR
# presnet50; timm and torchvision write ours with underscores.
ALIASES: dict[str, str] = {
    **{f"resnet-{depth}": f"resnet{depth}" for depth in _PLAIN},
    **{f"resnet{depth}-vd": f"resnet{depth}vd" for depth in (18, 34, 50, 101)},
    **{f"presnet{depth}": f"resnet{depth}vd" for depth in (18, 34, 50, 101)},
}


class ResNet(Backbone):
    """ResNet as a backbone: feature maps at strides 4, 8, 16 and 32.

    Args:
        depth: 18, 34, 50, 101 or 152; the name of a variant, such as ``"resnet50vd"``; or a
            ``ResNetConfig`` for a network of one's own.
        pretrained: Load the default weights of this variant.
        return_idx: Stages to return, in this order; index i has stride 4·2^i.
        weights: A tag or a path; ``pretrained=True`` is ``weights="default"``.
        groups: See ``ResNetConfig``; so are the four arguments after it. None leaves what
            ``depth`` says.
        width_per_group: Channels of one group of the bottleneck's 3×3.
        stem_widths: One width for a 7×7 stem, three for a deep one.
        pooled_shortcut: The average-pooled shortcut of -D.
        project_first: The extra projection of vd.
        **options: Those of every family, see ``trunkline.backbones.backbone.BackboneOptions``.

    Raises:
        UnknownVariantError: Another depth or name; where another class has it, the text says
            which.
        ConfigError: An option outside what is allowed.
        WeightsError: Weights that cannot be had or do not fit.

    Example:
        >>> import torch
        >>> backbone = ResNet(depth=18, return_idx=[1, 3])
        >>> [tuple(m.shape) for m in backbone(torch.zeros(1, 3, 64, 96))]
        [(1, 128, 8, 12), (1, 512, 2, 3)]
    """

    def __init__(
        self,
        depth: int | str | ResNetConfig = 50,
        pretrained: bool = False,
        return_idx: Sequence[int] = ALL_STAGES,
        *,
        weights: WeightsLike | None = None,
        groups: int | None = None,
        width_per_group: int | None = None,
        stem_widths: Sequence[int] | None = None,
        pooled_shortcut: bool | None = None,
        project_first: bool | None = None,
        **options: Unpack[Options],
    ) -> None:
        given: dict[str, Any] = {
            "groups": groups,
            "width_per_group": width_per_group,
            "stem_widths": None if stem_widths is None else tuple(stem_widths),
            "pooled_shortcut": pooled_shortcut,
            "project_first": project_first,
        }
        check_words(options, of="ResNet", allowed=given)
        plain = _config_of(depth)
        config = replace(plain, **{name: v for name, v in given.items() if v is not None})
        super().__init__(
            config,
            variant=name_of(config, VARIANTS),
            weights=choose_weights(pretrained, weights),
            return_idx=return_idx,
            **options,
        )


def _config_of(depth: object) -> ResNetConfig:
    if (isinstance(depth, str) and not depth.strip().isdecimal()) or is_architecture(depth):
        return resolve_config(depth, VARIANTS, ALIASES, "ResNet")
    if isinstance(depth, bool) or not isinstance(depth, int) or depth not in _PLAIN:
        hint = ""
        if isinstance(depth, str) and depth.strip() in map(str, _PLAIN):
            hint = f" Here that is the number, depth={depth.strip()}."
        raise UnknownVariantError(
            f"depth={depth!r} is not a ResNet; allowed: {', '.join(map(str, _PLAIN))}, "
            f"the name of a variant such as 'resnet50d', or a ResNetConfig.{hint}"
        )
    return _PLAIN[depth]
