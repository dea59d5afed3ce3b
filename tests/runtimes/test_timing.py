"""Turns, pauses and statistics, on clocks that the tests wind themselves."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest

from trunkline.errors import ConfigError
from trunkline.runtimes.timing import (
    MAX_WINDOWS,
    WINDOW_S,
    Clocks,
    paired_ratio,
    quantile,
    settle,
    summarize,
    take_turns,
)


class World:
    """A clock that moves when somebody works or sleeps, and threads that spin for a while."""

    def __init__(self) -> None:
        self.now = 0.0
        self.computed = 0.0
        self.spinning_until = 0.0
        self.calls: list[str] = []

    def clocks(self) -> Clocks:
        return Clocks(wall=lambda: self.now, busy=lambda: self.computed, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        spins = min(max(self.spinning_until - self.now, 0.0), seconds)
        self.computed += spins
        self.now += seconds

    def runner(self, name: str, seconds: float, *, spins: float = 0.0) -> Callable[[], None]:
        def run() -> None:
            self.calls.append(name)
            # Who runs while another's threads spin gets half of the processor.
            slowed = 2.0 if self.spinning_until > self.now and self.calls[-2] != name else 1.0
            self.now += seconds * slowed
            self.computed += seconds
            self.spinning_until = self.now + spins

        return run


def test_turns_go_there_and_back_again() -> None:
    world = World()
    runs = {name: world.runner(name, 0.5) for name in "ABC"}
    take_turns(runs, 3, clocks=world.clocks())
    warm_up, turns = world.calls[:6], world.calls[6:]
    assert warm_up == list("AABBCC")
    assert turns[::2] == turns[1::2] == list("ABCCBAABC")  # once without the clock, once with it


def test_every_round_has_one_time_of_each_in_order() -> None:
    world = World()
    runs = {"fast": world.runner("fast", 0.1), "slow": world.runner("slow", 0.4)}
    seconds = take_turns(runs, 4, clocks=world.clocks())
    assert seconds["fast"] == pytest.approx([0.1] * 4)
    assert seconds["slow"] == pytest.approx([0.4] * 4)


def test_nobody_pays_for_the_threads_of_the_one_before() -> None:
    world = World()
    runs = {
        "spins": world.runner("spins", 0.1, spins=0.05),
        "honest": world.runner("honest", 0.1),
    }
    seconds = take_turns(runs, 6, clocks=world.clocks())
    assert seconds["honest"] == pytest.approx([0.1] * 6)


def test_settling_waits_while_threads_spin_and_no_longer() -> None:
    world = World()
    world.spinning_until = 3.5 * WINDOW_S
    settle(world.clocks())
    assert world.now == pytest.approx(5 * WINDOW_S)  # the fifth window is the first quiet one


def test_settling_gives_up_on_threads_that_never_rest() -> None:
    world = World()
    world.spinning_until = float("inf")
    settle(world.clocks())
    assert world.now == pytest.approx(MAX_WINDOWS * WINDOW_S)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_rests_meanwhile_and_is_as_before(enabled: bool) -> None:
    world = World()
    seen: list[bool] = []

    def wall() -> float:
        seen.append(gc.isenabled())
        return 0.0

    clocks = Clocks(wall=wall, busy=lambda: 0.0)
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        take_turns({"one": world.runner("one", 0.0)}, 1, clocks=clocks)
        assert gc.isenabled() is enabled
        countdown = iter(range(3))  # two runs to warm up, one before the clock starts
        with pytest.raises(StopIteration):
            take_turns({"ends": lambda: next(countdown)}, 2, clocks=clocks)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
    assert seen == [False] * 3


def test_the_wrong_number_of_rounds_or_runs_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rounds must be 1 or more, got 0; 15 gives"):
        take_turns({"one": lambda: None}, 0)
    with pytest.raises(ConfigError, match=r"nothing to time; give one runtime or more"):
        take_turns({}, 3)


def test_summary_is_the_median_and_the_outer_twentieths() -> None:
    timing = summarize([number / 1000 for number in range(101)])
    assert (timing.median_ms, timing.p5_ms, timing.p95_ms) == pytest.approx((50.0, 5.0, 95.0))
    assert timing.rounds == 101


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([7.0], 0.95, 7.0), ([3.0, 1.0], 0.5, 2.0), ([4.0, 0.0, 2.0], 0.25, 1.0), ([1, 9], 1.0, 9)],
)
def test_quantiles_lie_between_neighbours(
    values: list[float], share: float, expected: float
) -> None:
    assert quantile(values, share) == pytest.approx(expected)


def test_a_ratio_is_of_neighbours_and_not_of_medians() -> None:
    base = [1.0, 10.0, 100.0]  # the machine became slower and slower, for both
    other = [0.5, 5.0, 60.0]
    assert paired_ratio(base, other) == pytest.approx(2.0)
    assert paired_ratio(other, base) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="shorter"):
        paired_ratio(base, other[:2])
