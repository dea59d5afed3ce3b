"""RegNet X and Y: networks whose widths follow a line, quantized.

Paper: Radosavovic et al. 2020, arXiv:2003.13678 (section 3.3: the design space; equations 2 to 4:
the widths; tables 5 and 6: the variants; Y adds squeeze-and-excitation). Y-640 and Y-1280: Goyal
et al. 2022, arXiv:2202.08360 (SEER). References: pycls ``regnet.py`` and ``anynet.py``,
torchvision ``models/regnet.py``, transformers ``modeling_regnet.py``.

Deliberate choices:
- widths are computed from the paper's four numbers, never typed in;
- torchvision rounds widths to their groups by another rule, which changes three of its networks;
  those three are variants of their own (``…-tv``);
- squeeze-and-excitation averages over the whole map, so it is the one part of the library whose
  dilated output is not the strided one at more positions.

Legend: N images, C channels, H and W of the image.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from torch import nn
from typing_extensions import Unpack

from trunkline.backbones.backbone import Backbone
from trunkline.backbones.blocks import Bottleneck, ConvNormAct, Sampling, projection
from trunkline.backbones.layers import Layers
from trunkline.backbones.options import (
    ALL_STAGES,
    MOST,
    Options,
    WeightsLike,
    check_blocks,
    check_integers,
    choose_weights,
)
from trunkline.backbones.variants import name_of, resolve_config
from trunkline.backbones.words import check_words
from trunkline.errors import ConfigError

_QUANTUM = 8  # widths are multiples of it, section 3.3
_SQUEEZE_RATIO = 0.25  # of a block's input width, section 4


@dataclass(frozen=True, kw_only=True)
class RegNetConfig:
    """Size and shape of one RegNet, in the paper's four numbers.

    Args:
        depth: Blocks of all stages together (d).
        initial_width: Channels that the line starts at (w_0), a multiple of 8.
        width_slope: By how much the line rises per block (w_a).
        width_multiplier: Ratio of the widths of two stages before rounding (w_m), above 1.
        group_width: Channels of a group of the 3×3 convolutions (g).
        squeeze: Squeeze-and-excitation in every block (Y).
        stem_width: Channels of the stem.
        torchvision_rounding: Round widths to their groups as torchvision does, never down by more
            than a tenth.

    Raises:
        ConfigError: A value outside what is allowed, or numbers that do not give four stages.
    """

    family: ClassVar[str] = "regnet"

    depth: int
    initial_width: int
    width_slope: float
    width_multiplier: float
    group_width: int
    squeeze: bool = False
    stem_width: int = 32
    torchvision_rounding: bool = False

    def __post_init__(self) -> None:
        check_integers(
            depth=self.depth,
            initial_width=self.initial_width,
            group_width=self.group_width,
            stem_width=self.stem_width,
        )
        if self.initial_width <= 0 or self.initial_width % _QUANTUM:
            raise ConfigError(
                f"initial_width must be a positive multiple of 8, got {self.initial_width}."
            )
        # written so that NaN is refused too
        if not (0 <= self.width_slope <= MOST and 1 < self.width_multiplier <= MOST):
            raise ConfigError(
                "width_slope must be 0 or more and width_multiplier above 1, "
                f"got {self.width_slope} and {self.width_multiplier}; {MOST} is the most of either."
            )
        if min(self.depth, self.group_width, self.stem_width) < 1:
            raise ConfigError(
                "depth, group_width and stem_width must be 1 or more, "
                f"got {self.depth}, {self.group_width} and {self.stem_width}."
            )
        check_blocks(self.depth)
        found = [width for width, _ in self._quantized()]
        if len(found) != 4:
            raise ConfigError(
                f"these numbers give {len(found)} stages, of widths {found}; a backbone has four. "
                "More depth or a greater width_slope gives more, a greater width_multiplier fewer."
            )
        check_integers(widths=self.stage_channels)

    def _quantized(self) -> list[tuple[int, int]]:
        """Return width and depth of each stage before groups are considered, equations 2 to 4."""
        stages: list[tuple[int, int]] = []
        for block in range(self.depth):
            on_line = self.initial_width + self.width_slope * block
            power = round(math.log(on_line / self.initial_width) / math.log(self.width_multiplier))
            ideal = self.initial_width * self.width_multiplier**power
            width = round(ideal / _QUANTUM) * _QUANTUM
            if stages and stages[-1][0] == width:
                stages[-1] = (width, stages[-1][1] + 1)
            else:
                stages.append((width, 1))
        return stages

    def _fit_groups(self, width: int) -> int:
        group = min(self.group_width, width)
        if self.torchvision_rounding:
            fitted = max(group, int(width + group / 2) // group * group)
            return fitted + group if fitted < 0.9 * width else fitted
        return max(group, round(width / group) * group)

    @property
    def stem_channels(self) -> int:
        """Channels of the stride-2 map."""
        return self.stem_width

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of the maps at strides 4, 8, 16 and 32."""
        return tuple(self._fit_groups(width) for width, _ in self._quantized())

    @property
    def stage_depths(self) -> tuple[int, ...]:
        """Residual blocks of each stage."""
        return tuple(depth for _, depth in self._quantized())

    def build_stem(self, in_channels: int, layers: Layers) -> nn.Module:
        """Build ``(N, in_channels, H, W)`` → ``(N, stem_channels, H/2, W/2)``."""
        return ConvNormAct(in_channels, self.stem_width, 3, layers, stride=2)

    def build_stage(
        self, index: int, in_channels: int, sampling: Sampling, layers: Layers
    ) -> nn.Module:
        """Build stage ``index``: blocks, the first of which halves and widens."""
        width = self.stage_channels[index]
        before, depth = self._quantized()[index]
        shortcut = projection(in_channels, width, layers, stride=sampling.stride)
        block = partial(Bottleneck, groups=width // min(self.group_width, before), layers=layers)
        blocks: list[nn.Module] = []
        for number in range(depth):
            first = number == 0
            entering = in_channels if first else width
            blocks.append(
                block(
                    entering,
                    width,
                    width,
                    sampling if first else sampling.rest,
                    squeezed=round(entering * _SQUEEZE_RATIO) if self.squeeze else 0,
                    shortcut=shortcut if first else None,
                )
            )
        return nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks)))


def _x(depth: int, w_0: int, w_a: float, w_m: float, g: int) -> RegNetConfig:
    return RegNetConfig(
        depth=depth, initial_width=w_0, width_slope=w_a, width_multiplier=w_m, group_width=g
    )


def _y(depth: int, w_0: int, w_a: float, w_m: float, g: int) -> RegNetConfig:
    return replace(_x(depth, w_0, w_a, w_m, g), squeeze=True)


def _tv(config: RegNetConfig) -> RegNetConfig:
    return replace(config, torchvision_rounding=True)


# The number in a name, times 10^8, is about the multiply-accumulates at 224×224.
# d, w_0, w_a, w_m, g as pycls trained them; the paper's tables print w_a and w_m rounded.
VARIANTS: dict[str, RegNetConfig] = {
    "regnet-x-002": _x(13, 24, 36.44, 2.49, 8),
    "regnet-x-004": _x(22, 24, 24.48, 2.54, 16),
    "regnet-x-006": _x(16, 48, 36.97, 2.24, 24),
    "regnet-x-008": _x(16, 56, 35.73, 2.28, 16),
    "regnet-x-016": _x(18, 80, 34.01, 2.25, 24),
    "regnet-x-032": _x(25, 88, 26.31, 2.25, 48),
    "regnet-x-040": _x(23, 96, 38.65, 2.43, 40),
    "regnet-x-064": _x(17, 184, 60.83, 2.07, 56),
    "regnet-x-080": _x(23, 80, 49.56, 2.88, 120),
    "regnet-x-120": _x(19, 168, 73.36, 2.37, 112),
    "regnet-x-160": _x(22, 216, 55.59, 2.1, 128),
    "regnet-x-320": _x(23, 320, 69.86, 2.0, 168),
    "regnet-x-004-tv": _tv(_x(22, 24, 24.48, 2.54, 16)),
    "regnet-y-002": _y(13, 24, 36.44, 2.49, 8),
    "regnet-y-004": _y(16, 48, 27.89, 2.09, 8),
    "regnet-y-006": _y(15, 48, 32.54, 2.32, 16),
    "regnet-y-008": _y(14, 56, 38.84, 2.4, 16),
    "regnet-y-016": _y(27, 48, 20.71, 2.65, 24),
    "regnet-y-032": _y(21, 80, 42.63, 2.66, 24),
    "regnet-y-040": _y(22, 96, 31.41, 2.24, 64),
    "regnet-y-064": _y(25, 112, 33.22, 2.27, 72),
    "regnet-y-080": _y(17, 192, 76.82, 2.19, 56),
    "regnet-y-120": _y(19, 168, 73.36, 2.37, 112),
    "regnet-y-160": _y(18, 200, 106.23, 2.48, 112),
    "regnet-y-320": _y(20, 232, 115.89, 2.53, 232),
    "regnet-y-640": _y(20, 352, 147.48, 2.4, 328),
    "regnet-y-1280": _y(27, 456, 160.83, 2.52, 264),
    "regnet-y-008-tv": _tv(_y(14, 56, 38.84, 2.4, 16)),
    "regnet-y-080-tv": _tv(_y(17, 192, 76.82, 2.19, 56)),
}

# What torchvision calls each size, and what pycls and mmpretrain do.
_TORCHVISION = {
    "regnet-x": {"400mf": "004-tv", "800mf": "008", "1-6gf": "016", "3-2gf": "032", "8gf": "080",
                 "16gf": "160", "32gf": "320"},
    "regnet-y": {"400mf": "004", "800mf": "008-tv", "1-6gf": "016", "3-2gf": "032", "8gf": "080-tv",
                 "16gf": "160", "32gf": "320", "128gf": "1280"},
}  # fmt: skip
_PYCLS = {"200mf": "002", "400mf": "004", "600mf": "006", "800mf": "008", "1.6gf": "016",
          "3.2gf": "032", "4.0gf": "040", "6.4gf": "064", "8.0gf": "080", "12gf": "120",
          "16gf": "160", "32gf": "320"}  # fmt: skip

# Normalised names of other libraries: timm writes regnety_040, torchvision regnet_y_8gf, pycls and
# mmpretrain RegNetY-4.0GF; Hugging Face's facebook/regnet-y-040 is ours.
ALIASES: dict[str, str] = {
    **{name.replace("regnet-", "regnet"): name for name in VARIANTS},
    **{
        f"{family}-{size}": f"{family}-{number}"
        for family, sizes in _TORCHVISION.items()
        for size, number in sizes.items()
    },
    **{
        f"regnet{kind}-{size}": f"regnet-{kind}-{number}"
        for kind in "xy"
        for size, number in _PYCLS.items()
    },
    **{
        f"regnet-y-{size}-{trained}": f"regnet-y-{size}"
        for size in ("320", "640", "1280")
        for trained in ("seer", "seer-in1k")
    },
}


class RegNet(Backbone):
    """RegNet as a backbone: feature maps at strides 4, 8, 16 and 32.

    Args:
        variant: A variant such as ``"regnet-y-080"``, or a ``RegNetConfig`` for one's own.
        pretrained: Load the default weights of this variant, those of its Hugging Face repository.
        return_idx: Stages to return, in this order; index i has stride 4·2^i.
        weights: A tag or a path; ``pretrained=True`` is ``weights="default"``.
        **options: Those of every family, see ``trunkline.backbones.backbone.BackboneOptions``.

    Raises:
        UnknownVariantError: No such variant; where another class has it, the text says which.
        ConfigError: An option outside what is allowed.
        WeightsError: Weights that cannot be had or do not fit.

    Example:
        >>> import torch
        >>> backbone = RegNet(variant="regnet-y-004", return_idx=[0, 3])
        >>> [tuple(m.shape) for m in backbone(torch.zeros(1, 3, 64, 96))]
        [(1, 48, 16, 24), (1, 440, 2, 3)]
    """

    def __init__(
        self,
        variant: str | RegNetConfig = "regnet-y-040",
        pretrained: bool = False,
        return_idx: Sequence[int] = ALL_STAGES,
        *,
        weights: WeightsLike | None = None,
        **options: Unpack[Options],
    ) -> None:
        check_words(options, of="RegNet")
        config = resolve_config(variant, VARIANTS, ALIASES, "RegNet")
        super().__init__(
            config,
            variant=name_of(config, VARIANTS),
            weights=choose_weights(pretrained, weights),
            return_idx=return_idx,
            **options,
        )
