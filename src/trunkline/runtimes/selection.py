"""How ``runtime="auto"`` decides: engines take turns, the fastest stays, the table is kept."""

from __future__ import annotations

import hashlib
import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trunkline
from trunkline.errors import ConfigError
from trunkline.files import DocumentError, home, read_document
from trunkline.runtimes.timing import Clocks, take_turns
from trunkline.weights.files.cache import write_atomically

_log = logging.getLogger(__name__)

_ROUNDS = (5, 30)  # at least, and at most
_MAX_BYTES = 1 << 20  # of a decision on disk, which has a thousand
_BUDGET_S = 8.0  # for all engines together, where it allows more than the least number of rounds


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One engine in a decision.

    Attributes:
        runtime: Its name.
        median_ms: Of a call, None where it was not tried.
        best_ms: The fastest call.
        max_relative: Largest difference of its maps from the backbone's, see ``LevelFidelity``.
        cosine: Smallest cosine of its maps with the backbone's.
        refusal: Why it was not tried, None where it was.
    """

    runtime: str
    median_ms: float | None = None
    best_ms: float | None = None
    max_relative: float | None = None
    cosine: float | None = None
    refusal: str | None = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What ``runtime="auto"`` chose, and from what.

    Attributes:
        chosen: Name of the engine.
        shape: (N, H, W) that was measured.
        rounds: Calls of each engine.
        candidates: The engines, the fastest first, those that were not tried last.
    """

    chosen: str
    shape: tuple[int, int, int]
    rounds: int
    candidates: tuple[Candidate, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return asdict(self)


def measure(
    runners: Mapping[str, Any],
    images: Any,
    *,
    shape: tuple[int, int, int],
    refused: Sequence[Candidate] = (),
    clocks: Clocks | None = None,
) -> Decision:
    """Time runners in turns, so that whatever else the machine does meets all of them alike.

    Args:
        runners: Runtime → runner.
        images: What each is called with.
        shape: Of the images.
        refused: Engines that could not be tried, for the table.
        clocks: None for the machine's own.

    Returns:
        The decision for the smallest median.
    """
    clocks = clocks or Clocks()
    calls = {runtime: partial(runner, images) for runtime, runner in runners.items()}
    for call in calls.values():  # first calls allocate and choose kernels
        call()
    started = clocks.wall()
    for call in calls.values():
        call()
    all_once = clocks.wall() - started
    rounds = max(_ROUNDS[0], min(_ROUNDS[-1], int(_BUDGET_S / (2 * all_once))))
    times = take_turns(calls, rounds, clocks=clocks)
    tried = [_candidate(runtime, runners[runtime], taken) for runtime, taken in times.items()]
    tried.sort(key=lambda one: one.median_ms or 0.0)
    return Decision(
        chosen=tried[0].runtime, shape=shape, rounds=rounds, candidates=(*tried, *refused)
    )


def _candidate(runtime: str, runner: Any, taken: Sequence[float]) -> Candidate:
    return Candidate(
        runtime=runtime,
        median_ms=1e3 * statistics.median(taken),
        best_ms=1e3 * min(taken),
        max_relative=max(one.max_relative for one in runner.fidelity),
        cosine=min(one.cosine for one in runner.fidelity),
    )


def recall(key: Mapping[str, Any]) -> Decision | None:
    """Return an earlier decision for the same question, None where there is none."""
    try:
        path = _path(key)
        return read_document(path, Decision, max_bytes=_MAX_BYTES)
    except FileNotFoundError:
        return None
    except (OSError, DocumentError, ConfigError) as error:
        _log.warning("no earlier decision can be read (%s); the engines are measured again", error)
        return None


def remember(key: Mapping[str, Any], decision: Decision) -> None:
    """Keep a decision for the next time; where the cache cannot be written, say so and go on."""
    try:
        path = _path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(decision.to_dict(), indent=2) + "\n")
    except (OSError, ConfigError) as error:
        _log.warning("the decision cannot be kept: %s", error)


def _path(key: Mapping[str, Any]) -> Path:
    question = json.dumps({**key, "trunkline": trunkline.__version__}, sort_keys=True)
    name = hashlib.sha256(question.encode()).hexdigest()[:32]
    return home() / "decisions" / f"{name}.json"
