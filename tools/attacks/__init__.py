"""Kinds of bad input, each made from a number by a generator, and what is right for it.

A kind is a function of a source of chance and an empty folder. It makes one input, hands it to
trunkline as a user does, and returns a word for what became of it (``"right"``, ``"refused"``, …).
A ``TrunklineError`` that it lets through counts as refused. Anything else that it raises is a
shortfall, and so is one that takes too long, needs too much memory or ends its process.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

Chance = random.Random
Kind = Callable[[Chance, Path], str]


class ShortfallError(Exception):
    """What must not happen has happened."""


def check(condition: bool, text: str) -> None:
    """Raise a ShortfallError if something is not as it must be."""
    if not condition:
        raise ShortfallError(text)
