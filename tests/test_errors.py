"""Texts of errors: strangers choose the names in them."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.errors import OutputError, TrunklineError, WeightsError, legible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("two\nlines", "two\nlines"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\ud800", r"\ud800"),
        ("\0\a\b\r", r"\x00\x07\x08\r"),
    ],
)
def test_a_terminal_has_nothing_to_obey(text: str, shown: str) -> None:
    assert str(WeightsError(text)) == shown


def test_a_long_name_keeps_its_ends() -> None:
    text = str(WeightsError(f"{'a' * 100_000}z is no tensor"))
    assert len(text) < 330
    assert text.startswith("aaa")
    assert "…[99741 more]…" in text
    assert text.endswith("az is no tensor")


def test_a_long_text_is_cut() -> None:
    assert len(str(WeightsError("word " * 100_000))) < 6_000


@given(st.text())
def test_legible_twice_is_legible_once(text: str) -> None:
    once = legible(text)
    assert legible(once) == once
    assert all(one.isprintable() or one == "\n" for one in once)


def test_an_error_survives_another_process() -> None:
    error = OutputError("a\x1bb")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert isinstance(again, TrunklineError)
    assert str(again) == str(error) == r"a\x1bb"
