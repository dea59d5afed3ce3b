"""Every error that trunkline raises on purpose.

::

    TrunklineError
    ├── ConfigError (ValueError)          an option or a configuration that cannot be built
    │   ├── UnknownVariantError           a name that no backbone has
    │   └── LevelIndexError               return_idx: out of range, repeated, empty, not an integer
    ├── InputError (ValueError)           images that a backbone cannot take: rank, channels, dtype
    ├── ImageError (ValueError)           a file that is not a readable photo, or is too large
    ├── OutputError (OSError)             a place that a file cannot be written to
    ├── DeploymentError (RuntimeError)    an engine or a format that cannot take a backbone
    │   ├── NotInstalledError (ImportError)   an optional library that is not there
    │   ├── PrecisionError                a precision that the processor or the engine lacks
    │   ├── FidelityError                 maps that differ from those of the backbone
    │   └── RunnerError                   a saved runner that is incomplete, edited or of elsewhere
    │       └── UntrustedError            one that could run code, and was not written here
    ├── ExtractionError (RuntimeError)    features of many images that cannot be computed or kept
    │   ├── SourceError                   images that cannot be listed
    │   ├── StoreError                    a feature store that is damaged, or of another job
    │   └── TooManyFailuresError          more images failed than were allowed to
    └── WeightsError (RuntimeError)       weights that cannot be had or do not fit
        ├── WeightsNotFoundError          no such file, tag or repository, or no way to get it
        │   └── OfflineError              it would need the network, which is switched off
        ├── IntegrityError                a file whose hash is not the one it must have
        ├── LicenseError                  a licence that was not agreed to
        ├── CheckpointError               a file that cannot be read as a checkpoint
        │   └── UnsafeCheckpointError     a pickle that asks for more than arrays and containers
        └── WeightsMismatchError          names or shapes differ from what the network needs
            └── UnknownLayoutError        names that no known upstream uses, or several do

One base class, so that ``except TrunklineError`` catches all of them and nothing else; beside it
the built-in class that the same mistake raises elsewhere. Every text says what was given, what is
allowed, and what to do next. The command line prints the text alone and exits with ``exit_code``.
"""

from __future__ import annotations

_LONGEST_WORD = 300
_LONGEST_TEXT = 6_000


def legible(text: str) -> str:
    r"""Return a text that a terminal cannot obey and a person can read.

    Args:
        text: With names of files, keys and tensors that strangers chose.

    Returns:
        The same with what is not printable spelled out (``\x1b``), line breaks apart; of a word
        longer than 300 characters the beginning and the end, of a text longer than 6000 as well.
    """
    if text.isprintable() and len(text) <= _LONGEST_WORD:
        return text
    spelled = printable(text)
    if max(map(len, spelled.split(" ")), default=0) > _LONGEST_WORD:
        spelled = " ".join(_shortened(word, _LONGEST_WORD) for word in spelled.split(" "))
    return _shortened(spelled, _LONGEST_TEXT)


def printable(text: str) -> str:
    r"""Return a text with what a terminal could obey or not show spelled out (``\x1b``).

    Line breaks (``\n``) stay.
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    kept = longest // 2 - 20
    return f"{text[:kept]}…[{len(text) - 2 * kept} more]…{text[-kept:]}"


class TrunklineError(Exception):
    """Base of every error that trunkline raises on purpose. Its text is ``legible``."""

    exit_code: int = 2

    def __init__(self, *args: object) -> None:
        super().__init__(*(legible(one) if isinstance(one, str) else one for one in args))


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


class OutputError(TrunklineError, OSError):
    """A file that cannot be written where it was asked for."""


class DeploymentError(TrunklineError, RuntimeError):
    """An engine or a format that cannot take a backbone."""


class NotInstalledError(DeploymentError, ImportError):
    """An optional library that is not installed."""


class PrecisionError(DeploymentError):
    """A precision that the processor or the engine lacks."""


class FidelityError(DeploymentError):
    """Maps of an engine or a file that differ too much from those of the backbone."""


class RunnerError(DeploymentError):
    """A saved runner that is incomplete, was edited, or belongs to another version."""


class UntrustedError(RunnerError):
    """A saved runner that could run code when it is opened, and that this machine did not write."""


class ExtractionError(TrunklineError, RuntimeError):
    """Features of many images that cannot be computed or kept."""


class SourceError(ExtractionError):
    """Images that cannot be listed: no such place, or one of an unknown kind."""


class StoreError(ExtractionError):
    """A feature store that is damaged, incomplete, or belongs to another job."""


class TooManyFailuresError(ExtractionError):
    """More images failed than the caller allowed."""


class WeightsError(TrunklineError, RuntimeError):
    """Weights that cannot be had or do not fit."""


class WeightsNotFoundError(WeightsError):
    """No such file, tag or repository, or no way to get it."""


class OfflineError(WeightsNotFoundError):
    """Something would need the network, which is switched off."""


class IntegrityError(WeightsError):
    """A file whose hash is not the one it must have."""


class LicenseError(WeightsError):
    """A licence that was not agreed to."""


class CheckpointError(WeightsError):
    """A file that cannot be read as a checkpoint."""


class UnsafeCheckpointError(CheckpointError):
    """A pickle that asks for more than arrays and plain containers."""


class WeightsMismatchError(WeightsError):
    """Names or shapes in a file differ from what the network needs."""


class UnknownLayoutError(WeightsMismatchError):
    """Names that no known upstream uses, or that several do."""
