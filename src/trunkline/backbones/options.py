"""What a caller may choose of any backbone, checked before anything is built."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, BinaryIO, Literal, TypeAlias, TypedDict

from torch import Tensor

from trunkline.backbones.layers import ActSpec, NormSpec
from trunkline.errors import ConfigError, LevelIndexError

NUM_STAGES = 4
ALL_STAGES = (0, 1, 2, 3)
MOST = 2**20  # of anything that a config counts: a file of a stranger's may hold one
MOST_BLOCKS = 500  # ten times those of the deepest variant
# Words that say how weights are read; no folder keeps them, for the next file is another one.
LOADING = ("allow_noncommercial", "layout", "prefix", "channel_map", "check")

# What weights may be given as: a tag, an address or a path; tensors by name; an open file; a member
# of torchvision's enums of weights.
WeightsLike: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | BinaryIO | Enum
CUSTOM = "custom"  # stands for a norm or an activation that was given as a callable


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
    allow_noncommercial: bool
    layout: str
    prefix: str | None
    channel_map: Sequence[int | None] | None
    check: bool


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
        allow_noncommercial: Agree to weights whose licence forbids commercial use.
        layout: How the weights' file names its tensors, see ``load_weights``.
        prefix: Where in the file the backbone is, see ``load_weights``.
        channel_map: Which of the file's input channels feeds which, see ``load_weights``.
        check: Run one image through the loaded network, see ``load_weights``.

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
    allow_noncommercial: bool = False
    layout: str = "auto"
    prefix: str | None = None
    channel_map: Sequence[int | None] | None = None
    check: bool = False

    def storable(self) -> BackboneOptions:
        """Return the same options with ``"custom"`` for callables, which no file can hold."""
        return replace(
            self,
            norm=self.norm if isinstance(self.norm, str) else CUSTOM,
            act=self.act if isinstance(self.act, str) else CUSTOM,
        )

    def __post_init__(self) -> None:
        object.__setattr__(self, "return_idx", resolve_indices(self.return_idx))
        for name in ("return_stem", "checkpointing", "allow_noncommercial", "check"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be True or False, got {getattr(self, name)!r}.")
        if not _is_int(self.in_channels) or self.in_channels < 1:
            raise ConfigError(
                f"in_channels must be an integer of 1 or more, got {self.in_channels!r}."
            )
        check_integers(in_channels=self.in_channels)
        if not _is_int(self.output_stride) or self.output_stride not in (8, 16, 32):
            raise ConfigError(f"output_stride must be 8, 16 or 32, got {self.output_stride!r}.")
        rate = self.drop_path_rate
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
            raise ConfigError(f"drop_path_rate must be at least 0 and less than 1, got {rate!r}.")
        check_frozen_stages(self.frozen_stages, max(self.return_idx) + 1)


def _is_int(value: object) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool | Tensor)


def check_integers(**values: object) -> None:
    """Refuse fields of a config that are not integers, or tuples of them where tuples are meant.

    Raises:
        ConfigError: One is not; its name and value are in the text.
    """
    for name, value in values.items():
        for one in value if isinstance(value, tuple) else (value,):
            if not _is_int(one):
                raise ConfigError(
                    f"{name} must be an integer, or a tuple of integers where several are meant, "
                    f"got {value!r}."
                )
            if abs(int(one)) > MOST:
                raise ConfigError(f"{name} must be at most {MOST}, got {value!r}.")


def check_blocks(count: int) -> None:
    """Refuse a network of so many residual blocks that building it would take minutes.

    Raises:
        ConfigError: There are more than ``MOST_BLOCKS``.
    """
    if count > MOST_BLOCKS:
        raise ConfigError(
            f"a backbone has at most {MOST_BLOCKS} residual blocks, and these numbers give {count}."
        )


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


def choose_weights(pretrained: bool, weights: WeightsLike | None) -> WeightsLike | None:
    """Return what ``pretrained`` and ``weights`` mean together.

    Raises:
        ConfigError: ``pretrained`` is not a boolean, or both were given.
    """
    if not isinstance(pretrained, bool):
        raise ConfigError(
            f"pretrained must be True or False, got {pretrained!r}; weights='default' are the "
            "default weights, and a tag or a path goes into weights too."
        )
    if pretrained and weights is not None:
        raise ConfigError(
            f"pretrained=True asks for the default weights, but weights={weights!r} was given too; "
            "give one of the two."
        )
    return "default" if pretrained else weights
