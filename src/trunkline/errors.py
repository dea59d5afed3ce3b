"""Every error that trunkline raises on purpose.

::

    TrunklineError
    ├── ConfigError (ValueError)          an option or a configuration that cannot be built
    │   ├── UnknownVariantError           a name that no backbone has
    │   └── LevelIndexError               return_idx: out of range, repeated, empty, not an integer
    ├── InputError (ValueError)           images that a backbone cannot take: rank, channels, dtype
    ├── ImageError (ValueError)           a file that is not a readable photo, or is too large
    └── WeightsError (RuntimeError)       weights that cannot be had or do not fit
        ├── WeightsNotFoundError          no such file, store or checkpoint
        └── WeightsMismatchError          names or shapes differ from what the network needs

One base class, so that ``except TrunklineError`` catches all of them and nothing else; beside it
the built-in class that the same mistake raises elsewhere. Every text says what was given, what is
allowed, and what to do next. The command line prints the text alone and exits with ``exit_code``.
"""

from __future__ import annotations


class TrunklineError(Exception):
    """Base of every error that trunkline raises on purpose."""

    exit_code: int = 2


class ConfigError(TrunklineError, ValueError):
    """An option or a configuration that cannot be built."""


class UnknownVariantError(ConfigError):
    """A name that no backbone has."""


class LevelIndexError(ConfigError):
    """A ``return_idx`` that is out of range, repeated, empty or not made of integers."""


class InputError(TrunklineError, ValueError):
    """Images that a backbone cannot take: wrong type, rank, channels or dtype."""


class ImageError(TrunklineError, ValueError):
    """A file that is not a readable photo, or one that is too large to decode safely."""


class WeightsError(TrunklineError, RuntimeError):
    """Weights that cannot be had or do not fit."""


class WeightsNotFoundError(WeightsError):
    """No such file, store or checkpoint."""


class WeightsMismatchError(WeightsError):
    """Names or shapes in a file differ from what the network needs."""
