"""The attack counts what falls short, whatever way it does, and makes each case again."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import attack
import pytest
from attacks import Chance, ShortfallError, check

from trunkline.errors import ConfigError

QUICK = (
    "images/mutated photos",
    "sources/address",
    "sources/tar",
    "stores/places of somebody else",
)


def _refused(chance: Chance, folder: Path) -> str:
    (folder / "file").write_text(str(chance.random()))
    raise ConfigError("no.")


def _silent(_chance: Chance, _folder: Path) -> str:
    raise ConfigError("")


def _fault(_chance: Chance, _folder: Path) -> str:
    raise KeyError("a fault of ours")


def _short(chance: Chance, _folder: Path) -> str:
    check(chance.random() > 2, "it fell short")
    return "right"


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    made: dict[str, Any] = {}
    monkeypatch.setattr(attack, "kinds", lambda: made)
    return made


@pytest.mark.parametrize("name", QUICK)
def test_kinds_hold(name: str) -> None:
    for number in range(3):
        outcome, _ = attack.run_case(name, number, seed=1)
        assert outcome in ("right", "refused")


def test_every_family_has_kinds_of_its_own_name() -> None:
    assert {name.split("/")[0] for name in attack.kinds()} == set(attack.FAMILIES)


def test_an_error_of_ours_is_a_refusal_and_leaves_nothing(kinds: dict[str, Any]) -> None:
    kinds["refused"] = _refused
    here = Path.cwd()
    assert attack.run_case("refused", 0, seed=0)[0] == "refused"
    assert Path.cwd() == here


@pytest.mark.parametrize(
    ("kind", "match"),
    [(_silent, "refused with ''"), (_fault, "KeyError: 'a fault of ours'"), (_short, "fell short")],
)
def test_what_falls_short_is_told(kinds: dict[str, Any], kind: Any, match: str) -> None:
    kinds["kind"] = kind
    with pytest.raises(ShortfallError, match=match):
        attack.run_case("kind", 0, seed=0)


def test_growth_and_time_are_limited(
    kinds: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds["large"] = lambda *_: "right"
    peaks = iter((0, attack.CASE_BYTES + 1))
    monkeypatch.setattr(attack, "_peak_bytes", lambda: next(peaks))
    with pytest.raises(ShortfallError, match="the process grew by 1024 MiB"):
        attack.run_case("large", 0, seed=0)
    tally = attack.Tally()

    class Late:
        def exception(self) -> TimeoutError:
            return TimeoutError()

    attack._count(tally, 7, Late())
    assert tally.short == ["case 7: took longer than 30 s"]
    assert (tally.cases, tally.outcomes["fell short"]) == (1, 1)


def test_a_case_is_the_same_whenever_it_is_made(kinds: dict[str, Any]) -> None:
    drawn: list[float] = []

    def draw(chance: random.Random, _folder: Path) -> str:
        drawn.append(chance.random())
        return "right"

    kinds["draw"] = draw
    for number in (3, 4, 3):
        began = time.perf_counter()
        _, took = attack.run_case("draw", number, seed=5)
        assert took <= time.perf_counter() - began
    assert drawn[0] == drawn[2] != drawn[1]
