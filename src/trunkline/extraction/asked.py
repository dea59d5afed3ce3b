"""What one call of ``extract`` asked for, before anything is opened or built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trunkline.backbones.levels import Level
from trunkline.errors import ConfigError
from trunkline.extraction.decoding import Decoding
from trunkline.extraction.pooling import Pool
from trunkline.extraction.records import Dtype
from trunkline.extraction.sources import Source
from trunkline.preprocessing import Preprocessing
from trunkline.runtimes.runner import Runner

if TYPE_CHECKING:
    from trunkline.backbones.backbone import Backbone


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What one call asked for.

    Attributes:
        backbone: Network or runner.
        source: Where the images come from.
        decoding: How they become pixels.
        levels: Indices of stages, None for all that the backbone returns.
        pool: See ``pooling``.
        normalize: Whether vectors get length 1.
        dtype: Of the numbers.
        runtime: Engine, or "auto".
        precision: Of the engine.
        batch_size: Images of a batch, None to choose.
        calibration: For int8; None takes images of the source.
        shard_size: Images of a shard.
        layout: See ``formats``.
    """

    backbone: Backbone | Runner
    source: Source
    decoding: Decoding
    levels: tuple[int, ...] | None
    pool: Pool
    normalize: bool
    dtype: Dtype
    runtime: str
    precision: str
    batch_size: int | None
    calibration: Any
    shard_size: int
    layout: str | None

    @property
    def returned(self) -> tuple[Level, ...]:
        """Levels that the network returns."""
        return self.backbone.returned_levels

    @property
    def kept(self) -> tuple[Level, ...]:
        """Levels that go into the store, in the order asked for.

        Raises:
            ConfigError: The network does not return one of them, or one is asked for twice.
        """
        if self.levels is None:
            return self.returned
        by_name = {level.name: level for level in self.returned}
        names = [f"stage{index + 4 if index < 0 else index}" for index in self.levels]
        if not names or len({*names}) < len(names) or not {*names} <= {*by_name}:
            raise ConfigError(
                f"levels={self.levels} must be some of what the backbone returns, each once: "
                f"{', '.join(by_name)}. Index i is stage i; build it with return_idx of those."
            )
        return tuple(by_name[name] for name in names)


def preprocessing_for(
    backbone: Backbone | Runner, preprocessing: Preprocessing | None
) -> Preprocessing:
    """Return how images are prepared: as given, or as the weights want them.

    Raises:
        ConfigError: No ``Preprocessing``, or a runner normalises inside, and the given numbers are
            others.
    """
    stated = backbone.preprocessing
    if preprocessing is None:
        return stated
    if not isinstance(preprocessing, Preprocessing):
        raise ConfigError(
            f"preprocessing={preprocessing!r} must be a Preprocessing, such as "
            "backbone.preprocessing.with_size(224), or None for what the weights expect."
        )
    numbers = ("mean", "std", "value_range", "channel_order")
    inside = isinstance(backbone, Runner) and backbone.preprocess
    if inside and any(getattr(stated, one) != getattr(preprocessing, one) for one in numbers):
        raise ConfigError(
            "the runner normalises by itself (preprocess=True) and the given preprocessing has "
            "another mean, std, value_range or channel_order; deploy it with preprocess=False, or "
            "leave those as they are."
        )
    return preprocessing
