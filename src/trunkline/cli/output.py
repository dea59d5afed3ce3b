"""What the verbs share: printing tables, JSON and other people's file names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trunkline.errors import printable

# Rich cuts cells to the width it believes in, 80 for a pipe. A table here is as wide as its
# content and a terminal wraps what it must: a name or a number is never lost.
_UNLIMITED = 100_000


def print_json(value: object) -> None:
    """Print one JSON document. It is ASCII, so that any pipe can carry it."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, left: int = 1) -> None:
    """Print rows below their headings; the first ``left`` columns hold words, the others numbers.

    Cells are printed as they are: brackets are not markup.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    for position, heading in enumerate(columns):
        justify: Any = "left" if position < left else "right"
        table.add_column(Text(heading), justify=justify, no_wrap=True)
    for row in rows:
        table.add_row(*(Text(one_line(str(cell))) for cell in row))
    console = Console(width=_UNLIMITED, highlight=False)
    with console.capture() as captured:
        console.print(table)
    typer.echo(captured.get(), nl=False)


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
