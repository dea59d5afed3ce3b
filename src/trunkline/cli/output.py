"""What the verbs share: printing tables, JSON and other people's file names."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import typer
from rich.cells import cell_len

from trunkline.errors import printable

_GAP = "   "  # between columns


def print_json(value: object) -> None:
    """Print one JSON document. It is ASCII, so that any pipe can carry it."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, left: int = 1) -> None:
    """Print rows below their headings; the first ``left`` columns hold words, the others numbers.

    A table is as wide as its content and a terminal wraps what it must: a name or a number is
    never lost. Cells are printed on one line each, as they are: brackets are not markup.
    """
    # By hand, as Rich's own table takes 0.5 s for the six hundred rows of `weights list`.
    cells = [list(columns), *([one_line(str(cell)) for cell in row] for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = []
        for position, (cell, width) in enumerate(zip(row, widths, strict=True)):
            blanks = " " * (width - cell_len(cell))
            padded.append(cell + blanks if position < left else blanks + cell)
        lines.append(_GAP.join(padded).rstrip())
    rule = "\N{BOX DRAWINGS LIGHT HORIZONTAL}" if _draws(sys.stdout.encoding) else "-"
    lines.insert(1, rule * (sum(widths) + len(_GAP) * (len(widths) - 1)))
    typer.echo("\n".join(lines))


def _draws(encoding: str | None) -> bool:
    return (encoding or "utf-8").lower().startswith("utf")


def say(text: str) -> None:
    """Print a line on standard error; a run of days does not end because nobody can read it."""
    with suppress(OSError):
        typer.echo(text, err=True)


def one_line(text: str) -> str:
    """Return text on one line, with what a terminal could obey (or not encode) spelled out."""
    lines = " ".join(part.strip() for part in text.splitlines())
    return printable(lines)


def in_millions(count: int) -> str:
    """Return a parameter count as people quote it: 23508032 becomes ``23.51 M``."""
    return f"{count / 1e6:.2f} M"


def in_billions(count: int) -> str:
    """Return a MAC count as people quote it: 4089184256 becomes ``4.09 G``."""
    return f"{count / 1e9:.2f} G"
