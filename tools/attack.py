"""Hand trunkline bad input of every known kind for so many minutes, and count what became of it.

::

    python tools/attack.py --minutes 20 --seed 0
    python tools/attack.py --kind tar --case 17 --seed 0      # one case again, with its traceback

Every case comes from the seed, the name of its kind and its number, so it can be made again. Kinds
take turns by the time that they have had; each case runs in a process of its own folder, and falls
short if it raises anything but a ``TrunklineError``, takes longer than ``CASE_SECONDS``, makes the
process grow by more than ``CASE_BYTES``, kills it, leaves files outside its folder, or does what
its kind says must not happen. The exit code is 1 if one fell short.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from attacks import Kind, ShortfallError

from trunkline.errors import TrunklineError

FAMILIES = ("checkpoints", "downloads", "images", "processes", "runners", "sources", "stores")
CASE_SECONDS = 30.0  # what must be quick has a limit of its own in its kind
CASE_BYTES = 1 << 30
_CASES_OF_A_PROCESS = 400  # then another takes its place, so that growth of libraries is no growth


@dataclass
class Tally:
    """What became of the cases of one kind.

    Attributes:
        outcomes: Word → how many.
        seconds: In all.
        slowest: Seconds of the slowest case, and its number.
        short: What fell short: number of the case and what happened.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    slowest: tuple[float, int] = (0.0, -1)
    short: list[str] = field(default_factory=list)

    @property
    def cases(self) -> int:
        """How many there were."""
        return self.outcomes.total()


def kinds() -> dict[str, Kind]:
    """Return every kind by its name, ``family/kind``."""
    return {
        f"{family}/{name}": kind
        for family in FAMILIES
        for name, kind in import_module(f"attacks.{family}").KINDS.items()
    }


def run_case(name: str, number: int, seed: int) -> tuple[str, float]:
    """Run one case in this process.

    Returns:
        What became of it, and the seconds that it took.

    Raises:
        ShortfallError: It fell short, with the traceback.
    """
    kind, chance = kinds()[name], random.Random(f"{seed} {name} {number}")  # noqa: S311
    folder = Path(tempfile.mkdtemp(prefix="attack-"))
    here, before, began = Path.cwd(), _peak_bytes(), time.perf_counter()
    try:
        os.chdir(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = kind(chance, folder)
    except TrunklineError as error:
        outcome = "refused"
        if "Traceback" in str(error) or not str(error):
            raise ShortfallError(f"refused with {str(error)!r}") from error
    except Exception as error:
        raise ShortfallError("".join(traceback.format_exception(error))[-2000:]) from error
    finally:
        os.chdir(here)
        shutil.rmtree(folder, ignore_errors=True)
    took, grown = time.perf_counter() - began, _peak_bytes() - before
    if grown > CASE_BYTES:
        raise ShortfallError(f"the process grew by {grown >> 20} MiB")
    return outcome, took


def attack(minutes: float, seed: int, names: list[str], workers: int) -> dict[str, Tally]:
    """Run cases of these kinds in turns until the time is over."""
    from pebble import ProcessPool

    tallies = {name: Tally() for name in names}
    started = Counter[str]()
    end = time.monotonic() + 60 * minutes
    waiting: dict[Any, tuple[str, int]] = {}
    context = get_context("spawn")
    with ProcessPool(workers, _CASES_OF_A_PROCESS, _quiet, context=context) as pool:
        while waiting or time.monotonic() < end:
            while len(waiting) < 2 * workers and time.monotonic() < end:
                name = min(names, key=lambda one: (tallies[one].seconds, started[one]))
                arguments = (name, started[name], seed)
                future = pool.schedule(run_case, args=arguments, timeout=CASE_SECONDS)
                waiting[future] = (name, started[name])
                started[name] += 1
                tallies[name].seconds += 0.001  # so that a kind under way is not asked again
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                name, number = waiting.pop(future)
                _count(tallies[name], number, future)
    return tallies


def _quiet() -> None:
    """Keep what libraries of C print about damaged files off the terminal."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _count(tally: Tally, number: int, future: Any) -> None:
    error = future.exception()
    if error is None:
        outcome, took = future.result()
        tally.outcomes[outcome] += 1
        tally.seconds += took
        tally.slowest = max(tally.slowest, (took, number))
        return
    tally.outcomes["fell short"] += 1
    if isinstance(error, TimeoutError):
        tally.seconds += CASE_SECONDS
        tally.short.append(f"case {number}: took longer than {CASE_SECONDS:.0f} s")
        return
    tally.short.append(f"case {number}: {type(error).__name__}: {str(error).strip()}")


def _peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _print(tallies: dict[str, Tally], seed: int) -> None:
    width = max(map(len, tallies))
    print(f"{'kind':{width}}  inputs  fell short  slowest  what became of them")
    for name, one in sorted(tallies.items()):
        rest = ", ".join(f"{count} {word}" for word, count in one.outcomes.most_common())
        print(
            f"{name:{width}}  {one.cases:6}  {len(one.short):10}  {one.slowest[0]:5.1f} s  {rest}"
        )
    for name, one in sorted(tallies.items()):
        for text in one.short[:3]:
            print(f"\nFELL SHORT: --kind {name} --seed {seed} {text}")
    cases, short = (
        sum(one.cases for one in tallies.values()),
        sum(len(one.short) for one in tallies.values()),
    )
    print(f"\n{cases} inputs of {len(tallies)} kinds, seed {seed}: {short} fell short")


def main() -> int:
    """Read the command line, attack, and say what became of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kind", default="", help="only kinds whose name holds this")
    parser.add_argument("--case", type=int, help="this case alone, in this process")
    given = parser.parse_args()
    names = [name for name in kinds() if given.kind in name]
    if not names:
        parser.error(f"no kind holds {given.kind!r}; there are {', '.join(kinds())}")
    if given.case is not None:
        for name in names:
            print(name, *run_case(name, given.case, given.seed))
        return 0
    tallies = attack(given.minutes, given.seed, names, given.workers)
    _print(tallies, given.seed)
    return 1 if any(one.short for one in tallies.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
