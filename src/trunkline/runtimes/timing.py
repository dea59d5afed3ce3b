"""Several ways to do one thing, timed in turns, so that whatever else happens meets all alike.

The order is A B C, then C B A, and so on. A ratio is the median of the ratios of neighbours, the
runs of one round, and not the ratio of two medians: a slow minute then slows both sides of it.

**Threads that spin.** After a run, the workers of some engines keep a core busy while they wait
for more to do: ONNX Runtime's for about 50 ms of processor time, PyTorch's OpenMP for 5 to 10 ms,
OpenVINO's for 1 ms (measured as the time that a sleeping process uses). The next in turn would
pay for that, and at batch 1 take twice as long. So every turn begins by waiting until the process
is quiet, and then runs once without the clock: a user who calls one engine again and again finds
its workers awake and its weights in the caches.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from trunkline.errors import ConfigError

WINDOW_S = 0.01  # one look at whether the process is quiet
QUIET_SHARE = 0.1  # of a window that a quiet process may compute
MAX_WINDOWS = 50  # a program whose other threads never rest is measured all the same


@dataclass(frozen=True)
class Clocks:
    """Where time comes from.

    Attributes:
        wall: Seconds that pass.
        busy: Seconds that all threads of this process have computed.
        sleep: Waits that many seconds.
    """

    wall: Callable[[], float] = time.perf_counter
    busy: Callable[[], float] = time.process_time
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Timing:
    """The runs of one contestant.

    Attributes:
        median_ms: The middle one, in milliseconds.
        p5_ms: A twentieth of the runs were faster.
        p95_ms: A twentieth of the runs were slower.
        rounds: How many runs.
    """

    median_ms: float
    p5_ms: float
    p95_ms: float
    rounds: int


def settle(clocks: Clocks) -> None:
    """Wait until the threads of this process sleep, half a second at most."""
    for _ in range(MAX_WINDOWS):
        before = clocks.busy()
        clocks.sleep(WINDOW_S)
        if clocks.busy() - before <= QUIET_SHARE * WINDOW_S:
            return


def take_turns(
    runs: Mapping[str, Callable[[], object]], rounds: int, *, clocks: Clocks | None = None
) -> dict[str, list[float]]:
    """Time every run once a round, in turns: A B C, C B A, and so on.

    Args:
        runs: What to time, by name. Each is warmed up twice before the first round.
        rounds: How many, 1 or more.
        clocks: None for the machine's own.

    Returns:
        Seconds by name, one per round, in the order of the rounds.

    Raises:
        ConfigError: Nothing to time, or no rounds.
    """
    if not runs:
        raise ConfigError("there is nothing to time; give one runtime or more.")
    if rounds < 1:
        raise ConfigError(f"rounds must be 1 or more, got {rounds}; 15 gives steady medians.")
    chosen = clocks or Clocks()
    for run in runs.values():  # memory is mapped, kernels are made
        run()
        run()
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            for name in names if number % 2 == 0 else reversed(names):
                seconds[name].append(_turn(runs[name], chosen))
    finally:
        if collecting:
            gc.enable()
    return seconds


def _turn(run: Callable[[], object], clocks: Clocks) -> float:
    settle(clocks)
    run()
    start = clocks.wall()
    run()
    return clocks.wall() - start


def summarize(seconds: Sequence[float]) -> Timing:
    """Return median, 5th and 95th percentile of the runs of one contestant."""
    return Timing(
        median_ms=statistics.median(seconds) * 1e3,
        p5_ms=quantile(seconds, 0.05) * 1e3,
        p95_ms=quantile(seconds, 0.95) * 1e3,
        rounds=len(seconds),
    )


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which ``share`` of them lie, interpolated between neighbours.

    Args:
        values: One or more, in any order.
        share: 0 for the smallest, 1 for the largest.
    """
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def paired_ratio(base: Sequence[float], other: Sequence[float]) -> float:
    """Return how many times as fast as ``base`` the other is: the median over the rounds.

    Args:
        base: Seconds, one per round.
        other: Seconds of the same rounds.
    """
    return statistics.median(a / b for a, b in zip(base, other, strict=True))
