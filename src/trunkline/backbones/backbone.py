"""The contract: a stem and four stages, and everything that follows from that.

A family describes its stem and its stages in an ``Architecture``. Which maps come out and in which
order, what is left out, what is frozen, checkpointed, dilated or dropped, and what is known
beforehand is written here, once, for all of them.

Legend: N images, C channels, H and W of the images. Index i of ``return_idx`` is the stage whose
map has stride 4·2^i: 0 → H/4, 1 → H/8, 2 → H/16, 3 → H/32, rounded up.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Protocol, TypedDict, TypeVar, cast

import torch
from torch import Tensor, nn

from trunkline.backbones.blocks import (
    ActSpec,
    Checkpointed,
    Layers,
    NormSpec,
    ResidualBlock,
    Sampling,
    make_act,
    make_norm,
)
from trunkline.errors import ConfigError, InputError, LevelIndexError, UnknownVariantError
from trunkline.preprocessing import Preprocessing

NUM_STAGES = 4
ALL_STAGES = (0, 1, 2, 3)
T = TypeVar("T")


@dataclass(frozen=True)
class Level:
    """One feature map of a network: where it comes from, its stride in pixels, its channels."""

    name: str
    stride: int
    channels: int


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


class Options(TypedDict, total=False):
    """The keyword-only options of every family; ``BackboneOptions`` describes and checks them."""

    return_stem: bool
    in_channels: int
    output_stride: Literal[8, 16, 32]
    norm: NormSpec
    act: ActSpec
    drop_path_rate: float
    frozen_stages: int
    checkpointing: bool


@dataclass(frozen=True, kw_only=True)
class BackboneOptions:
    """What a caller may choose of any backbone, checked when it is made.

    Args:
        return_idx: Stages to return, in this order; negative ones count from the last.
        return_stem: Put the stride-2 map in front.
        in_channels: Channels of the images.
        output_stride: 8 or 16 keep the resolution from there on and dilate instead.
        norm: ``"batch"``, ``"frozen"``, ``"sync"``, ``"group"``, or a callable: channels → module.
        act: Name of an activation, or a callable without arguments that makes one.
        drop_path_rate: Chance to drop the last residual branch in training, in [0, 1); earlier
            blocks are dropped less, in proportion to their depth in the whole network.
        frozen_stages: −1 nothing, 0 the stem, k the stem and the first k stages.
        checkpointing: Keep only the inputs of blocks in training, and compute the rest again.

    Raises:
        ConfigError: A value outside what is allowed.
        LevelIndexError: A ``return_idx`` that is empty, repeated, out of range or not of integers.
    """

    return_idx: Sequence[int] = ALL_STAGES
    return_stem: bool = False
    in_channels: int = 3
    output_stride: int = 32
    norm: NormSpec = "batch"
    act: ActSpec = "relu"
    drop_path_rate: float = 0.0
    frozen_stages: int = -1
    checkpointing: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "return_idx", resolve_indices(self.return_idx))
        for name in ("return_stem", "checkpointing"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be True or False, got {getattr(self, name)!r}.")
        if not _is_int(self.in_channels) or self.in_channels < 1:
            raise ConfigError(
                f"in_channels must be an integer of 1 or more, got {self.in_channels!r}."
            )
        if not _is_int(self.output_stride) or self.output_stride not in (8, 16, 32):
            raise ConfigError(f"output_stride must be 8, 16 or 32, got {self.output_stride!r}.")
        rate = self.drop_path_rate
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
            raise ConfigError(f"drop_path_rate must be at least 0 and less than 1, got {rate!r}.")
        check_frozen_stages(self.frozen_stages, max(self.return_idx) + 1)


def _is_int(value: object) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool | Tensor)


def resolve_indices(return_idx: Sequence[int]) -> tuple[int, ...]:
    """Return the stages meant by ``return_idx``, each in 0…3, in the order given.

    Raises:
        LevelIndexError: Empty, repeated, out of range, or not a sequence of integers.
    """
    allowed = (
        "allowed: a sequence of different integers from 0 to 3 (strides 4, 8, 16, 32), "
        "or from -4 to -1 counted from the last"
    )
    if isinstance(return_idx, str | bytes) or not hasattr(return_idx, "__iter__"):
        raise LevelIndexError(
            f"return_idx={return_idx!r} is not a sequence; {allowed}, such as (1, 2, 3)."
        )
    given = tuple(return_idx)
    if not given:
        raise LevelIndexError(f"return_idx is empty, so nothing would be returned; {allowed}.")
    for index in given:
        if not _is_int(index):
            raise LevelIndexError(
                f"return_idx={given!r} holds {index!r}, not an integer; {allowed}."
            )
        if not -NUM_STAGES <= index < NUM_STAGES:
            raise LevelIndexError(f"return_idx={given!r} holds {index}, out of range; {allowed}.")
    resolved = tuple(int(index) % NUM_STAGES for index in given)
    if len(set(resolved)) != len(resolved):
        raise LevelIndexError(f"return_idx={given!r} names a stage twice; {allowed}.")
    return resolved


def check_frozen_stages(frozen_stages: int, num_stages: int) -> None:
    """Refuse a number of frozen stages that a network of ``num_stages`` does not have.

    Raises:
        ConfigError: Not an integer from −1 to ``num_stages``.
    """
    if not _is_int(frozen_stages) or not -1 <= frozen_stages <= num_stages:
        raise ConfigError(
            f"frozen_stages must be an integer from -1 (none) over 0 (the stem) to {num_stages} "
            f"(the stem and all {num_stages} stages that return_idx keeps), got {frozen_stages!r}."
        )


def normalize_name(name: str) -> str:
    """Return ``name`` as variants are looked up: lower case, hyphens, without a hub's owner."""
    return name.strip().lower().replace("_", "-").rpartition("/")[2]


def resolve_variant(name: object, variants: Mapping[str, T], aliases: Mapping[str, str]) -> str:
    """Return the variant that ``name`` means.

    Args:
        name: A variant or an alias; ``_`` and ``-`` are the same, so are capitals.
        variants: All variants by name.
        aliases: Other names, normalised, with the variant that each stands for.

    Raises:
        UnknownVariantError: No such name; the closest ones are in the text.
    """
    if not isinstance(name, str):
        raise UnknownVariantError(
            f"a variant is named by a string, not {type(name).__name__}; see `trunkline list`."
        )
    wanted = normalize_name(name)
    wanted = aliases.get(wanted, wanted)
    if wanted in variants:
        return wanted
    close = difflib.get_close_matches(wanted, [*variants, *aliases], n=6, cutoff=0.5)
    names = list(dict.fromkeys(aliases.get(match, match) for match in close))[:3]
    hint = f"closest: {', '.join(names)}" if names else f"for example: {', '.join([*variants][:3])}"
    raise UnknownVariantError(f"no variant {name!r}; {hint}. `trunkline list` shows all.")


def is_architecture(value: object) -> bool:
    """Return whether ``value`` is a family's config, by what it can do.

    Not by its class: a family's file that is run from its own folder defines that a second time.
    """
    return hasattr(value, "build_stem") and hasattr(value, "build_stage")


def resolve_config(wanted: Any, variants: Mapping[str, T], aliases: Mapping[str, str]) -> T:
    """Return the config that is wanted: itself, or a variant's by name.

    Raises:
        UnknownVariantError: Neither a config nor the name of a variant.
    """
    if is_architecture(wanted):
        return cast(T, wanted)
    return variants[resolve_variant(wanted, variants, aliases)]


def name_of(config: object, variants: Mapping[str, object]) -> str | None:
    """Return the variant whose config this is, None if there is none."""
    return next((name for name, known in variants.items() if known == config), None)


def choose_weights(
    pretrained: bool, weights: str | os.PathLike[str] | None
) -> str | os.PathLike[str] | None:
    """Return what ``pretrained`` and ``weights`` mean together.

    Raises:
        ConfigError: ``pretrained`` is not a boolean, or both were given.
    """
    if not isinstance(pretrained, bool):
        raise ConfigError(
            f"pretrained must be True or False, got {pretrained!r}; "
            "a tag or a path goes into weights."
        )
    if pretrained and weights is not None:
        raise ConfigError(
            f"pretrained=True asks for the default weights, but weights={weights!r} was given too; "
            "give one of the two."
        )
    return "default" if pretrained else weights


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
        preprocessing: How the weights want their images, where that is known.

    Raises:
        ConfigError: An option outside what is allowed, see ``BackboneOptions``.
        WeightsError: Weights that cannot be had or do not fit.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        variant: str | None = None,
        weights: str | os.PathLike[str] | None = None,
        return_idx: Sequence[int] = ALL_STAGES,
        **options: Any,
    ) -> None:
        super().__init__()
        known = {field.name for field in fields(BackboneOptions)}
        if unknown := sorted(options.keys() - known):
            raise ConfigError(
                f"unknown option {', '.join(unknown)}; allowed: {', '.join(sorted(known))}."
            )
        chosen = BackboneOptions(return_idx=return_idx, **options)
        self.architecture = architecture
        self.variant = variant
        self.preprocessing: Preprocessing | None = None
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

    def _set_up_blocks(self, chosen: BackboneOptions) -> None:
        deepest = max(sum(self.architecture.stage_depths) - 1, 1)
        depth = 0
        for module in self.stages.modules():
            if isinstance(module, ResidualBlock):
                module.drop_path_rate = chosen.drop_path_rate * depth / deepest
                depth += 1
            if isinstance(module, Checkpointed):
                module.checkpointing = chosen.checkpointing

    def _load(self, weights: str | os.PathLike[str]) -> None:
        from trunkline.weights.loading import load_weights  # the one upward arrow, see DESIGN

        load_weights(self, weights)

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
        counted = 0

        def count(conv: nn.Module, _inputs: object, output: Tensor) -> None:
            nonlocal counted
            counted += cast(Tensor, conv.weight).numel() * output.shape[2] * output.shape[3]

        meta = {
            name: torch.empty_like(tensor, device="meta")
            for name, tensor in (*self.named_parameters(), *self.named_buffers())
        }
        dtype = self._dtype() or torch.get_default_dtype()
        # Two images: batch norm in training refuses one value per channel.
        images = torch.empty((2, self.in_channels, height, width), dtype=dtype, device="meta")
        convolutions = [module for module in self.modules() if isinstance(module, nn.Conv2d)]
        hooks = [conv.register_forward_hook(count) for conv in convolutions]
        try:
            with torch.no_grad():
                torch.func.functional_call(self, meta, (images,))
        finally:
            for hook in hooks:
                hook.remove()
        return counted

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
        for depth, part in enumerate(self._parts()):
            if depth <= max(frozen_stages, self._frozen_stages):
                part.requires_grad_(depth > frozen_stages)
        self._frozen_stages = int(frozen_stages)
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
        self, lr: float, weight_decay: float, layer_decay: float = 1.0
    ) -> list[dict[str, Any]]:
        """Return groups for a ``torch.optim`` optimizer.

        Args:
            lr: Learning rate of the last stage.
            weight_decay: Of convolution weights; norms and biases get none.
            layer_decay: The learning rate is multiplied by this for every step from the last stage
                towards the stem, in (0, 1].

        Returns:
            Dicts with ``params``, ``lr``, ``weight_decay`` and ``name`` (``"stage3.decay"``,
            ``"stem.no_decay"``), the stem first. Frozen parameters are in none of them.

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
            trained = [p for p in part.parameters() if p.requires_grad]
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
