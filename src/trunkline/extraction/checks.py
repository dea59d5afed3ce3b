"""The options of ``extract``, each refused while neither OUT nor the source has been touched."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trunkline.errors import ConfigError
from trunkline.extraction.asked import Asked
from trunkline.extraction.manifests import MOST_IMAGES, MOST_OF_A_BATCH, MOST_OF_AN_IMAGE
from trunkline.extraction.reports import Progress
from trunkline.photos import ALPHAS, DECODES, TRUNCATED
from trunkline.preprocessing import is_positive_int
from trunkline.rasters import Bands
from trunkline.runtimes.engine import check_runtime, check_threads
from trunkline.runtimes.fidelity import PRECISIONS
from trunkline.runtimes.processor import processor
from trunkline.runtimes.runner import Runner

if TYPE_CHECKING:
    from trunkline.backbones.backbone import Backbone

ENGINES = ("local", "ray")
_DTYPES = ("float32", "float16")
_MOST_WORKERS = 256  # or four for each core, where those are more: starting others would hang


@dataclass(frozen=True, kw_only=True)
class Running:
    """How a call runs: what decides no number. The options of ``extract``, as they were given."""

    workers: int | None
    timeout_seconds: float
    shard: tuple[int, int] | None
    retry_failed: bool
    max_errors: int | None
    engine: str
    ray_address: str | None
    threads: int | None
    progress: bool | Callable[[Progress], None] | None
    stopping: threading.Event | None
    trust: bool


def check_options(asked: Asked, running: Running) -> None:
    """Refuse options outside what is allowed.

    Raises:
        ConfigError: One of them; what is allowed is in the text.
    """
    _check_numbers(asked, running)
    _check_choices(asked, running)
    _check_kinds(asked, running)
    _check_channels(asked)
    check_threads(running.threads)
    _ = asked.kept  # levels


def checked_backbone(backbone: object) -> Backbone | Runner:
    """Return the backbone or the runner that was given.

    Raises:
        ConfigError: It is neither.
    """
    if isinstance(backbone, Runner):
        if 0 in backbone.strides:
            raise ConfigError(
                "this runner gives the logits of a classifier, and features are maps; extract "
                "with the classifier's .backbone, or deploy that."
            )
        return backbone
    from trunkline.runtimes.folding import check_backbone

    check_backbone(backbone)
    return backbone  # type: ignore[return-value]


def checked_levels(levels: object) -> tuple[int, ...] | None:
    """Return indices of levels.

    Raises:
        ConfigError: Something else than a sequence of integers, or None.
    """
    if levels is None:
        return None
    try:
        given = list(levels)  # type: ignore[call-overload]
        if any(isinstance(index, bool) for index in given):
            raise TypeError
        return tuple(map(operator.index, given))
    except TypeError as error:
        raise ConfigError(
            f"levels={levels!r} must be a tuple of indices from 0 to 3, such as (3,), or None for "
            "all that the backbone returns."
        ) from error


def checked_bands(bands: object, white: float | tuple[float, ...] | None) -> Bands | None:
    """Return which bands are read, None for photos.

    Raises:
        ConfigError: No bands, or a white beside ``Bands``, which have their own.
    """
    if bands is None and white is None:
        return None
    if isinstance(bands, Bands):
        if white is not None:
            raise ConfigError(f"white={white!r} stands beside {bands!r}; say it within.")
        return bands
    if bands is not None and (isinstance(bands, str) or not isinstance(bands, Sequence)):
        raise ConfigError(
            f"bands={bands!r} must be numbers of bands, the first one is 1: (4, 3, 2), or Bands."
        )
    return Bands(bands=None if bands is None else tuple(bands), white=white)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_numbers(asked: Asked, running: Running) -> None:
    cores = processor().cores
    numbers: tuple[tuple[str, Any, int, bool], ...] = (
        ("max_pixels", asked.decoding.max_pixels, MOST_OF_AN_IMAGE, False),
        ("max_bytes", asked.decoding.max_bytes, MOST_OF_AN_IMAGE, False),
        ("shard_size", asked.shard_size, MOST_IMAGES, False),
        ("batch_size", asked.batch_size, MOST_OF_A_BATCH, True),
        ("workers", running.workers, max(_MOST_WORKERS, 4 * cores), True),
    )
    for name, value, most, may_be_none in numbers:
        if value is None and may_be_none:
            continue
        if name == "workers" and _is_int(value) and value == 0 and running.engine != "ray":
            continue
        if not is_positive_int(value):
            ray = " with engine='ray'" if name == "workers" and running.engine == "ray" else ""
            raise ConfigError(f"{name}={value!r} must be a positive integer{ray}.")
        if value > most:
            raise ConfigError(f"{name}={value!r} is more than {most}; choose a smaller one.")
    seconds, errors = running.timeout_seconds, running.max_errors
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise ConfigError(f"timeout_seconds={seconds!r} must be more than 0, a number.")
    if errors is not None and not (_is_int(errors) and errors >= 0):
        raise ConfigError(
            f"max_errors={errors!r} must be 0 or more, an integer, or None for any number."
        )
    part: Any = running.shard
    if part is not None and not (
        isinstance(part, tuple | list)
        and len(part) == 2
        and all(map(_is_int, part))
        and 0 <= part[0] < part[1]
    ):
        raise ConfigError(
            f"shard={part!r} must be (i, n) with i from 0 to n - 1: part i of n equal parts."
        )


def _check_choices(asked: Asked, running: Running) -> None:
    choices: tuple[tuple[str, object, Sequence[str]], ...] = (
        ("dtype", asked.dtype, _DTYPES),
        ("alpha", asked.decoding.alpha, ALPHAS),
        ("truncated", asked.decoding.truncated, TRUNCATED),
        ("decode", asked.decoding.decode, DECODES),
        ("precision", asked.precision, PRECISIONS),
        ("engine", running.engine, ENGINES),
    )
    for name, value, allowed in choices:
        if value not in allowed:
            raise ConfigError(f"{name}={value!r} is unknown; use one of {', '.join(allowed)}.")
    check_runtime(asked.runtime)


def _check_kinds(asked: Asked, running: Running) -> None:
    for name, flag in (
        ("normalize", asked.normalize),
        ("retry_failed", running.retry_failed),
        ("trust", running.trust),
    ):
        if not isinstance(flag, bool):
            raise ConfigError(f"{name}={flag!r} must be True or False.")
    address = running.ray_address
    if address is not None and (not isinstance(address, str) or running.engine != "ray"):
        raise ConfigError(
            f"ray_address={address!r} must be the address of a cluster, such as "
            "'ray://head:10001', with engine='ray'; leave it out to compute here."
        )
    telling = running.progress
    if not (telling is None or isinstance(telling, bool) or callable(telling)):
        raise ConfigError(
            f"progress={telling!r} must be True for a line in a terminal, or what is called with "
            "a Progress."
        )
    if running.stopping is not None and not hasattr(running.stopping, "is_set"):
        raise ConfigError(f"stopping={running.stopping!r} must be a threading.Event, or None.")


def _check_channels(asked: Asked) -> None:
    decoding, taken = asked.decoding, asked.backbone.in_channels
    if decoding.bands is None and taken != 3:
        raise ConfigError(
            f"the network takes {taken} channels, and photos have 3; for pictures of other bands "
            "give bands=, such as bands=(1, 2, 3, 4), and white=, the number that is white in them."
        )
    if decoding.bands is None:
        return
    chosen = decoding.bands.bands
    if chosen is not None and len(chosen) != taken:
        raise ConfigError(
            f"bands={chosen} are {len(chosen)}, and the network takes {taken} channels; name one "
            "band for each."
        )
    if decoding.preprocessing.num_channels != taken:
        raise ConfigError(
            f"the preprocessing has numbers for {decoding.preprocessing.num_channels} channels, "
            f"and the network takes {taken}; give one mean and std per channel."
        )
    if decoding.decode != "exact" or decoding.alpha != "white":
        raise ConfigError(
            "decode= and alpha= are for photos, and bands= reads every number as it is; leave "
            "them out."
        )
