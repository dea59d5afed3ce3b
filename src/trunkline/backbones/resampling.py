"""Strides, dilations and pools of stages that are built already, as other stages have them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from trunkline.backbones.blocks import POOLS
from trunkline.errors import ConfigError

_SHAPE = ("in_channels", "out_channels", "kernel_size", "groups")
_SAMPLING = ("stride", "padding", "dilation")


def resample(pairs: Sequence[tuple[nn.Module, nn.Module, str]]) -> None:
    """Give each stage the sampling of another one, and leave its tensors alone.

    Args:
        pairs: A stage; the same stage with the sampling that is wanted, whose values are not
            used; and the stage's name, for errors.

    Raises:
        ConfigError: A stage holds other layers than it was built with. Then none is changed.
    """
    convolutions: list[tuple[nn.Module, nn.Conv2d]] = []
    pools: list[tuple[nn.Module, str, nn.Module]] = []
    for stage, like, stage_name in pairs:
        for name, wanted in like.named_modules():
            if not isinstance(wanted, (nn.Conv2d, *POOLS)):
                continue
            found = _submodule(stage, name)
            if isinstance(wanted, nn.Conv2d):
                if found is None or not _same_shape(found, wanted):
                    raise ConfigError(_refusal(f"{stage_name}.{name}", found, "convolution"))
                convolutions.append((found, wanted))
            else:
                if not isinstance(found, POOLS):
                    raise ConfigError(_refusal(f"{stage_name}.{name}", found, "pool"))
                parent, _, child = name.rpartition(".")
                pools.append((stage.get_submodule(parent), child, wanted.train(found.training)))
    for found, wanted in convolutions:
        for field in _SAMPLING:
            setattr(found, field, getattr(wanted, field))
    for owner, child, wanted_pool in pools:
        setattr(owner, child, wanted_pool)


def _submodule(stage: nn.Module, name: str) -> nn.Module | None:
    try:
        return stage.get_submodule(name)
    except AttributeError:  # what says that there is none
        return None


def _same_shape(found: nn.Module, wanted: nn.Conv2d) -> bool:
    return isinstance(found, nn.Conv2d) and all(
        getattr(found, field) == getattr(wanted, field) for field in _SHAPE
    )


def _refusal(name: str, found: nn.Module | None, kind: str) -> str:
    is_now = "gone" if found is None else f"a {type(found).__name__}"
    return (
        f"{name} is not the {kind} that it was built as, it is {is_now} now; call "
        "set_output_stride before layers are replaced, or build with output_stride=."
    )
