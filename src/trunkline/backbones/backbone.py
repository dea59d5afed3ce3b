"""The contract: a stem and four stages, and everything that follows from that.

A family describes its stem and its stages in an ``Architecture``. Which maps come out and in which
order, what is left out, what is frozen, checkpointed, dilated or dropped, and what is known
beforehand is written here, once, for all of them.

Legend: N images, C channels, H and W of the images. Index i of ``return_idx`` is the stage whose
map has stride 4·2^i: 0 → H/4, 1 → H/8, 2 → H/16, 3 → H/32, rounded up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from trunkline.backbones.blocks import Checkpointed, ResidualBlock, Sampling
from trunkline.backbones.counting import count_macs
from trunkline.backbones.layers import Layers, NormStandIn, make_act, make_norm
from trunkline.backbones.levels import Level
from trunkline.backbones.options import (
    ALL_STAGES,
    LOADING,
    NUM_STAGES,
    BackboneOptions,
    WeightsLike,
    check_frozen_stages,
    resolve_indices,
)
from trunkline.backbones.resampling import resample
from trunkline.backbones.words import check_words
from trunkline.errors import ConfigError, InputError
from trunkline.preprocessing import Preprocessing, assumed_for

if TYPE_CHECKING:
    from trunkline.weights.loading import LoadReport


class Architecture(Protocol):
    """What a family says of one network, and how it builds the parts."""

    family: ClassVar[str]

    def __hash__(self) -> int:
        """Configs are frozen, so that what is known of one can be kept."""

    @property
    def stem_channels(self) -> int:
        """Channels of the stride-2 map."""

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of the maps at strides 4, 8, 16 and 32."""

    @property
    def stage_depths(self) -> tuple[int, ...]:
        """Residual blocks of each stage."""

    def build_stem(self, in_channels: int, layers: Layers) -> nn.Module:
        """Build what maps ``(N, in_channels, H, W)`` to ``(N, stem_channels, H/2, W/2)``."""

    def build_stage(
        self, index: int, in_channels: int, sampling: Sampling, layers: Layers
    ) -> nn.Module:
        """Build stage ``index``, which halves H and W unless ``sampling`` says otherwise."""


def _samplings(output_stride: int) -> list[Sampling]:
    """Return how each of the four stages samples: strides first, then dilations."""
    stride, dilation = 2, 1  # of the stem's map
    samplings = []
    for _ in range(NUM_STAGES):
        if stride < output_stride:
            samplings.append(Sampling(stride=2))
            stride *= 2
        else:
            samplings.append(Sampling(stride=1, first_dilation=dilation, dilation=2 * dilation))
            dilation *= 2
    return samplings


class Backbone(nn.Module):
    """Images in, a list of feature maps out.

    Args:
        architecture: The family's description of this network.
        variant: Its published name, None for a network of one's own.
        weights: None for a random network; ``"default"``, a tag or a path for trained ones.
        return_idx: See ``BackboneOptions``.
        **options: See ``BackboneOptions``.

    Attributes:
        levels: All maps that this network has, the stem's first; after pruning, so are these.
        channels: Of the maps that ``forward`` returns, in that order.
        strides: Of the same maps, in pixels of the image.
        variant: The published name, or None.
        load_report: What loading the weights did, None for a random network.
        options: What was chosen when it was built.

    Raises:
        ConfigError: An option outside what is allowed, see ``BackboneOptions``.
        WeightsError: Weights that cannot be had or do not fit.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        variant: str | None = None,
        weights: WeightsLike | None = None,
        return_idx: Sequence[int] = ALL_STAGES,
        **options: Any,
    ) -> None:
        super().__init__()
        check_words(options)
        chosen = BackboneOptions(return_idx=return_idx, **options)
        self.architecture = architecture
        self.variant = variant
        self._preprocessing: Preprocessing | None = None
        self.load_report: LoadReport | None = None
        self.options = chosen.storable()
        self.in_channels = chosen.in_channels
        self._order = resolve_indices(chosen.return_idx)
        self._return_stem = chosen.return_stem
        self._frozen_stages = -1
        if weights is None:
            self._build(chosen)
        else:
            with torch.device("meta"):  # no time goes into numbers that the file replaces
                self._build(chosen)
            self._load(weights)
        self.freeze(chosen.frozen_stages)

    def _build(self, chosen: BackboneOptions) -> None:
        plan = self.architecture
        layers = Layers(norm=make_norm(chosen.norm), act=make_act(chosen.act))
        self.stem = plan.build_stem(chosen.in_channels, layers)
        self.stages = nn.ModuleList()
        levels = [Level("stem", 2, plan.stem_channels)]
        samplings = _samplings(chosen.output_stride)[: max(self._order) + 1]
        for index, sampling in enumerate(samplings):
            below = levels[-1]
            self.stages.append(plan.build_stage(index, below.channels, sampling, layers))
            stride = below.stride * sampling.stride
            levels.append(Level(f"stage{index}", stride, plan.stage_channels[index]))
        self.levels = tuple(levels)
        self._set_up_blocks(chosen)

    def set_output_stride(self, output_stride: int) -> None:
        """Change the coarsest stride of a network that is built, and keep its weights.

        The network computes what one built with this ``output_stride`` and the same weights does.
        Parameters stay the same objects, so optimizers go on; ``levels``, ``strides`` and
        ``options`` follow. What was traced, exported or deployed before stays as it was.

        Args:
            output_stride: 8, 16 or 32.

        Raises:
            ConfigError: Another number, or a stage whose convolutions or pools were replaced.
        """
        chosen = replace(self.options, output_stride=output_stride)
        layers = Layers(norm=NormStandIn, act=nn.Identity)  # neither samples
        levels = [self.levels[0]]
        pairs = []
        with torch.device("meta"):
            for index, (stage, sampling) in enumerate(
                zip(self.stages, _samplings(output_stride), strict=False)
            ):
                below, name = levels[-1], f"stage{index}"
                wanted = self.architecture.build_stage(index, below.channels, sampling, layers)
                pairs.append((stage, wanted, f"stages.{index}"))
                stride = below.stride * sampling.stride
                levels.append(Level(name, stride, self.levels[index + 1].channels))
        resample(pairs)
        self.levels, self.options = tuple(levels), chosen

    def _set_up_blocks(self, chosen: BackboneOptions) -> None:
        deepest = max(sum(self.architecture.stage_depths) - 1, 1)
        depth = 0
        for module in self.stages.modules():
            if isinstance(module, ResidualBlock):
                module.drop_path_rate = chosen.drop_path_rate * depth / deepest
                depth += 1
            if isinstance(module, Checkpointed):
                module.checkpointing = chosen.checkpointing

    def _load(self, weights: WeightsLike) -> None:
        from trunkline.weights.loading import load_weights  # the one upward arrow, see DESIGN

        load_weights(self, weights, **{word: getattr(self.options, word) for word in LOADING})

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared: as the weights want them, else ImageNet's usual way.

        Set it to what your weights were trained with; None goes back to what is assumed.
        """
        return self._preprocessing or assumed_for(self.in_channels)

    @preprocessing.setter
    def preprocessing(self, stated: Preprocessing | None) -> None:
        if not (stated is None or isinstance(stated, Preprocessing)):
            raise ConfigError(
                f"backbone.preprocessing is a {type(stated).__name__}; set a Preprocessing, or "
                "None for ImageNet's."
            )
        self._preprocessing = stated

    @property
    def stated_preprocessing(self) -> Preprocessing | None:
        """What the weights or the caller said of ``preprocessing``, None where it is assumed."""
        return self._preprocessing

    @property
    def returned_levels(self) -> tuple[Level, ...]:
        """The maps that ``forward`` returns, in that order."""
        stages = tuple(self.levels[index + 1] for index in self._order)
        return (self.levels[0], *stages) if self._return_stem else stages

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the maps that ``forward`` returns, in that order."""
        return tuple(level.channels for level in self.returned_levels)

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides, in pixels of the image, of the maps that ``forward`` returns, in that order."""
        return tuple(level.stride for level in self.returned_levels)

    @property
    def num_parameters(self) -> int:
        """Number of learned values, frozen ones included; buffers are not counted."""
        return sum(parameter.numel() for parameter in self.parameters())

    def macs(self, height: int = 224, width: int = 224) -> int:
        """Count multiply-accumulates of convolutions for one image, without computing any.

        Args:
            height: Of the image, in pixels.
            width: Of the image, in pixels.

        Returns:
            The count. Twice as many floating-point operations; norms, pools and activations are
            left out, as in the papers' tables.
        """
        return count_macs(self, height, width)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the feature maps.

        Args:
            images: ``(N, in_channels, H, W)``, floating-point, of the network's dtype, normalised
                as its weights want it (``preprocessing``); RGB order unless that says otherwise.
                Any N ≥ 0, any H and W ≥ 1.

        Returns:
            One map ``(N, channels[i], ceil(H/strides[i]), ceil(W/strides[i]))`` per entry of
            ``channels``, in that order, of the images' dtype; not negative after a ReLU.

        Raises:
            InputError: Not a tensor, or of another rank, channel count, size or dtype.
        """
        self._check(images)
        x = self.stem(images)  # (N, C, H/2, W/2)
        stem = x if self._return_stem else None
        reached: dict[int, Tensor] = {}
        for index, stage in enumerate(self.stages):
            x = stage(x)  # (N, C, H/4, W/4), then H/8, H/16, H/32
            if index in self._order:
                reached[index] = x
        maps = [reached[index] for index in self._order]
        return maps if stem is None else [stem, *maps]

    def _check(self, images: Tensor) -> None:
        # A tracer sees symbols, not values; the caller's own images were checked eagerly or not
        # at all, and a question about a symbol would end up in the graph.
        if (
            torch.compiler.is_compiling()
            or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
            or isinstance(images, torch.fx.Proxy)
        ):
            return
        wanted = f"expected a float tensor of shape (N, {self.in_channels}, H, W)"
        if not isinstance(images, Tensor):
            raise InputError(f"{wanted}, got {type(images).__name__}; use torch.as_tensor first.")
        shape = tuple(images.shape)
        if images.ndim != 4:
            hint = "; add the batch with images[None]" if images.ndim == 3 else ""
            raise InputError(f"{wanted}, got {images.ndim} dimensions, {shape}{hint}.")
        if shape[1] != self.in_channels:
            hint = (
                "permute(0, 3, 1, 2) puts channels second"
                if shape[3] == self.in_channels
                else (f"build the backbone with in_channels={shape[1]}")
            )
            raise InputError(f"{wanted}, got {shape[1]} channels, {shape}; {hint}.")
        if shape[2] < 1 or shape[3] < 1:
            raise InputError(f"{wanted} with H and W of 1 or more, got {shape}.")
        if not images.is_floating_point():
            raise InputError(f"{wanted}, got {images.dtype}; divide uint8 by 255, then normalise.")
        dtype = self._dtype()
        if dtype not in (None, images.dtype) and not torch.is_autocast_enabled(images.device.type):
            raise InputError(
                f"images are {images.dtype} but the network is {dtype}; "
                f"use images.to({dtype}), or backbone.to({images.dtype})."
            )

    def _dtype(self) -> torch.dtype | None:
        return next((p.dtype for p in self.stem.parameters() if p.is_floating_point()), None)

    @property
    def frozen_stages(self) -> int:
        """−1 nothing is frozen, 0 the stem, k the stem and the first k stages."""
        return self._frozen_stages

    def freeze(self, frozen_stages: int) -> None:
        """Freeze the stem and the first stages, and thaw what an earlier call froze beyond them.

        Frozen parts take no gradient and stay in eval mode through ``train()``, so the statistics
        of their norms do not move and nothing in them is dropped.

        Args:
            frozen_stages: −1 nothing, 0 the stem, k the stem and the first k stages.

        Raises:
            ConfigError: Out of range for the stages that this network has.
        """
        check_frozen_stages(frozen_stages, len(self.stages))
        frozen_stages = int(frozen_stages)  # NumPy's comparisons are no booleans to PyTorch
        for depth, part in enumerate(self._parts()):
            if depth <= max(frozen_stages, self._frozen_stages):
                part.requires_grad_(depth > frozen_stages)
        self._frozen_stages = frozen_stages
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """Set training mode, except for what is frozen."""
        super().train(mode)
        for part in self._parts()[: self._frozen_stages + 1]:
            part.eval()
        return self

    def _parts(self) -> list[nn.Module]:
        return [self.stem, *self.stages]

    def param_groups(
        self,
        lr: float,
        weight_decay: float,
        layer_decay: float = 1.0,
        *,
        frozen: bool = False,
    ) -> list[dict[str, Any]]:
        """Return groups for a ``torch.optim`` optimizer.

        Args:
            lr: Learning rate of the last stage.
            weight_decay: Of convolution weights; norms and biases get none.
            layer_decay: The learning rate is multiplied by this for every step from the last stage
                towards the stem, in (0, 1].
            frozen: Put frozen parameters into the groups as well. They take no gradient, so they
                do not move; the groups, and so the optimizer's state, are then the same whatever
                ``freeze`` says later.

        Returns:
            Dicts with ``params``, ``lr``, ``weight_decay`` and ``name`` (``"stage3.decay"``,
            ``"stem.no_decay"``), the stem first. Frozen parameters are in none of them unless
            ``frozen``.

        Raises:
            ConfigError: A negative rate or decay, or a ``layer_decay`` outside (0, 1].
        """
        if lr < 0 or weight_decay < 0:
            raise ConfigError(
                f"lr and weight_decay must not be negative, got {lr!r} and {weight_decay!r}."
            )
        if not 0 < layer_decay <= 1:
            raise ConfigError(f"layer_decay must be above 0 and at most 1, got {layer_decay!r}.")
        groups: list[dict[str, Any]] = []
        for depth, (level, part) in enumerate(zip(self.levels, self._parts(), strict=True)):
            scaled = lr * layer_decay ** (len(self.stages) - depth)
            trained = [p for p in part.parameters() if frozen or p.requires_grad]
            for label, decay, members in (
                ("decay", weight_decay, [p for p in trained if p.ndim > 1]),
                ("no_decay", 0.0, [p for p in trained if p.ndim <= 1]),
            ):
                if members:
                    name = f"{level.name}.{label}"
                    groups.append(
                        {"params": members, "lr": scaled, "weight_decay": decay, "name": name}
                    )
        return groups

    def extra_repr(self) -> str:
        """Return what ``print`` shows between the brackets."""
        return f"variant={self.variant!r}, channels={self.channels}, strides={self.strides}"
