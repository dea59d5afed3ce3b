"""DLA: Deep Layer Aggregation.

Paper: Yu, Wang, Shelhamer & Darrell 2017, arXiv:1707.06484 (table 1: the variants; sections 3.1
and 3.2: iterative and hierarchical aggregation). Reference code: ucbdrive/dla ``dla.py``; timm
``models/dla.py`` computes the same function.

Deliberate choices:
- The reference draws a stage as a binary tree. Its leaves run one after the other, so here a stage
  is a list of leaves (``nodes``), two blocks and a root each; what a root joins follows from the
  leaf's number alone (``_joined``).
- The reference owns projections whose result it throws away; they are not built.
- Pools round up, so that any H and W run; at multiples of 32 the numbers are the reference's to
  the bit. It crashes at sizes where a map is odd.
- The input is pooled once per stage, not once per depth of its tree.
- The stem holds what the reference calls base_layer, level0 and level1, and stage i is level i+2:
  index i has stride 4·2^i, as in every family. The full-resolution maps are not returned.

Legend: N images, C channels, H and W of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from trunkline.backbones.backbone import Backbone
from trunkline.backbones.blocks import (
    BasicBlock,
    Bottleneck,
    Checkpointed,
    ConvNormAct,
    Sampling,
    max_pool_half,
    projection,
)
from trunkline.backbones.layers import Layers
from trunkline.backbones.options import (
    Options,
    WeightsLike,
    check_blocks,
    check_integers,
    choose_weights,
)
from trunkline.backbones.variants import name_of, resolve_config
from trunkline.backbones.words import check_words
from trunkline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DLAConfig:
    """Size and shape of one DLA.

    Args:
        depths: Depth of each stage's tree, at strides 4, 8, 16, 32; depth d has 2^(d-1) nodes.
        channels: Channels of the maps at those strides.
        bottleneck: 1×1, 3×3, 1×1 blocks in place of two 3×3.
        cardinality: Groups of the bottleneck's 3×3; above 1 its width is set as in ResNeXt.
        residual_root: Add the newest input of a root to its output.
        stem_channels: Channels at stride 2; the full-resolution part has half as many.

    Raises:
        ConfigError: A value outside what is allowed.
    """

    family: ClassVar[str] = "dla"

    depths: tuple[int, ...]
    channels: tuple[int, ...]
    bottleneck: bool
    cardinality: int = 1
    residual_root: bool = False
    stem_channels: int = 32

    def __post_init__(self) -> None:
        check_integers(
            depths=self.depths,
            channels=self.channels,
            cardinality=self.cardinality,
            stem_channels=self.stem_channels,
        )
        for name, values in (("depths", self.depths), ("channels", self.channels)):
            if len(values) != 4 or min(values) < 1:
                raise ConfigError(f"{name} must be four numbers of 1 or more, got {values}.")
        check_blocks(sum(2 ** min(depth, 99) for depth in self.depths))
        if self.stem_channels < 2 or self.stem_channels % 2:
            raise ConfigError(f"stem_channels must be even, got {self.stem_channels}.")
        if self.cardinality < 1 or (self.cardinality > 1 and not self.bottleneck):
            raise ConfigError(
                "cardinality must be 1, or more with bottleneck blocks, "
                f"got {self.cardinality} with bottleneck={self.bottleneck}."
            )
        for channels in self.channels if self.bottleneck else ():
            mid = self._mid_channels(channels)
            if mid < 1 or mid % self.cardinality:
                raise ConfigError(
                    f"{channels} channels give a bottleneck of {mid}, which cardinality "
                    f"{self.cardinality} does not divide; multiples of 32 always fit."
                )

    def _mid_channels(self, out_channels: int) -> int:
        grouped = self.cardinality > 1
        return out_channels * self.cardinality // 32 if grouped else out_channels // 2

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of the maps at strides 4, 8, 16 and 32."""
        return self.channels

    @property
    def stage_depths(self) -> tuple[int, ...]:
        """Residual blocks of each stage."""
        return tuple(2**depth for depth in self.depths)

    def build_stem(self, in_channels: int, layers: Layers) -> nn.Module:
        """Build ``(N, in_channels, H, W)`` → ``(N, stem_channels, H/2, W/2)``."""
        full = self.stem_channels // 2  # channels at full resolution
        return nn.Sequential(
            ConvNormAct(in_channels, full, 7, layers),
            ConvNormAct(full, full, 3, layers),
            ConvNormAct(full, self.stem_channels, 3, layers, stride=2),
        )

    def build_stage(
        self, index: int, in_channels: int, sampling: Sampling, layers: Layers
    ) -> nn.Module:
        """Build stage ``index``; from the second on, its input is joined into the last root."""
        out_channels = self.channels[index]
        joins_input = index > 0
        nodes = []
        for number in range(1, 2 ** (self.depths[index] - 1) + 1):
            joined = len(_joined(number)) * out_channels
            if joins_input and number == 2 ** (self.depths[index] - 1):
                joined += in_channels
            first = number == 1
            nodes.append(
                Node(
                    self,
                    in_channels if first else out_channels,
                    out_channels,
                    joined,
                    sampling if first else sampling.rest,
                    layers,
                )
            )
        return Stage(nodes, joins_input, sampling)

    def build_block(
        self, in_channels: int, out_channels: int, sampling: Sampling, layers: Layers
    ) -> nn.Module:
        """Build one residual block; a node hands in its shortcut."""
        if not self.bottleneck:
            return BasicBlock(in_channels, out_channels, sampling, layers)
        mid = self._mid_channels(out_channels)
        return Bottleneck(in_channels, mid, out_channels, sampling, layers, groups=self.cardinality)


def _joined(number: int) -> list[int]:
    """Return which earlier nodes the root of node ``number`` joins, oldest first; counted from 1.

    A node closes as many subtrees as its number has factors of two; the left half of each ends 1,
    2, 4, … nodes before it: node 8 joins 4, 6 and 7, node 6 joins 5, an odd one none.
    """
    closed = (number & -number).bit_length() - 1
    return [number - 2**step for step in reversed(range(closed))]


class Root(Checkpointed):
    """act(norm(1×1(join)) [+ newest]): aggregates maps of one resolution."""

    def __init__(self, in_channels: int, out_channels: int, residual: bool, layers: Layers) -> None:
        super().__init__()
        self.proj = projection(in_channels, out_channels, layers)
        self.act = layers.act()
        self.residual = residual

    def compute(self, *maps: Any) -> Tensor:
        """Map the maps, newest first, each ``(N, C_i, H, W)``, to ``(N, C_out, H, W)``."""
        out = self.proj(torch.cat(maps, 1))
        if self.residual:
            out += maps[0]
        return cast(Tensor, self.act(out))

    def extra_repr(self) -> str:
        """Return what ``print`` shows between the brackets."""
        return f"residual={self.residual}"


class Node(nn.Module):
    """Two residual blocks and the root that joins them with earlier nodes."""

    def __init__(
        self,
        config: DLAConfig,
        in_channels: int,
        out_channels: int,
        joined_channels: int,
        sampling: Sampling,
        layers: Layers,
    ) -> None:
        super().__init__()
        widens = in_channels != out_channels
        self.project = projection(in_channels, out_channels, layers) if widens else None
        self.block1 = config.build_block(in_channels, out_channels, sampling, layers)
        self.block2 = config.build_block(out_channels, out_channels, sampling.rest, layers)
        root_in = 2 * out_channels + joined_channels
        self.root = Root(root_in, out_channels, config.residual_root, layers)

    def forward(self, x: Tensor, pooled: Tensor, joined: list[Tensor]) -> Tensor:
        """Map ``x`` to ``(N, C_out, h, w)``, the size of ``pooled`` and of all of ``joined``."""
        shortcut = pooled if self.project is None else self.project(pooled)
        first = self.block1(x, shortcut)
        second = self.block2(first)
        return cast(Tensor, self.root(second, first, *joined))


class Stage(nn.Module):
    """Nodes in sequence; halves H and W unless dilated."""

    def __init__(self, nodes: list[Node], joins_input: bool, sampling: Sampling) -> None:
        super().__init__()
        self.pool = max_pool_half(sampling)
        self.nodes = nn.ModuleList(nodes)
        self.joins_input = joins_input

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C_in, H, W)`` to ``(N, C_out, ceil(H/2), ceil(W/2))``."""
        pooled = self.pool(x)
        outputs: list[Tensor] = []
        for number, node in enumerate(self.nodes, start=1):
            joined = [outputs[other - 1] for other in _joined(number)]
            if self.joins_input and number == len(self.nodes):
                joined.insert(0, pooled)
            if number == 1:
                outputs.append(node(x, pooled, joined))
            else:
                outputs.append(node(outputs[-1], outputs[-1], joined))
        return outputs[-1]


_COMPACT = (64, 64, 128, 256)
_WIDE = (128, 256, 512, 1024)

VARIANTS: dict[str, DLAConfig] = {
    "dla34": DLAConfig(depths=(1, 2, 2, 1), channels=(64, 128, 256, 512), bottleneck=False),
    "dla46-c": DLAConfig(depths=(1, 2, 2, 1), channels=_COMPACT, bottleneck=True),
    "dla46x-c": DLAConfig(depths=(1, 2, 2, 1), channels=_COMPACT, bottleneck=True, cardinality=32),
    "dla60x-c": DLAConfig(depths=(1, 2, 3, 1), channels=_COMPACT, bottleneck=True, cardinality=32),
    "dla60": DLAConfig(depths=(1, 2, 3, 1), channels=_WIDE, bottleneck=True),
    "dla60x": DLAConfig(depths=(1, 2, 3, 1), channels=_WIDE, bottleneck=True, cardinality=32),
    "dla102": DLAConfig(depths=(1, 3, 4, 1), channels=_WIDE, bottleneck=True, residual_root=True),
    "dla102x": DLAConfig(
        depths=(1, 3, 4, 1), channels=_WIDE, bottleneck=True, cardinality=32, residual_root=True
    ),
    "dla102x2": DLAConfig(
        depths=(1, 3, 4, 1), channels=_WIDE, bottleneck=True, cardinality=64, residual_root=True
    ),
    "dla169": DLAConfig(depths=(2, 3, 5, 1), channels=_WIDE, bottleneck=True, residual_root=True),
}

ALIASES: dict[str, str] = {"dla46": "dla46-c"}


class DLANet(Backbone):
    """DLA as a backbone: feature maps at strides 4, 8, 16 and 32.

    Args:
        dla: A variant such as ``"dla34"``, or a ``DLAConfig`` for a network of one's own.
        pretrained: Load the default weights of this variant.
        return_index: Stages to return, in this order; index i has stride 4·2^i. The default
            leaves out stride 4.
        weights: A tag or a path; ``pretrained=True`` is ``weights="default"``.
        **options: Those of every family, see ``trunkline.backbones.backbone.BackboneOptions``.

    Raises:
        UnknownVariantError: No such variant; where another class has it, the text says which.
        ConfigError: An option outside what is allowed.
        WeightsError: Weights that cannot be had or do not fit.

    Example:
        >>> import torch
        >>> backbone = DLANet(dla="dla34")
        >>> [tuple(m.shape) for m in backbone(torch.zeros(1, 3, 64, 96))]
        [(1, 128, 8, 12), (1, 256, 4, 6), (1, 512, 2, 3)]
    """

    def __init__(
        self,
        dla: str | DLAConfig = "dla34",
        pretrained: bool = False,
        return_index: Sequence[int] = (1, 2, 3),
        *,
        weights: WeightsLike | None = None,
        **options: Unpack[Options],
    ) -> None:
        check_words(options, of="DLANet", refused=["return_idx"], allowed=["return_index"])
        config = resolve_config(dla, VARIANTS, ALIASES, "DLANet")
        super().__init__(
            config,
            variant=name_of(config, VARIANTS),
            weights=choose_weights(pretrained, weights),
            return_idx=return_index,
            **options,
        )
