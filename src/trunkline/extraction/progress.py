"""How far an extraction is, shown to people: a bar in a terminal, now and then a line in a log."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trunkline.extraction.reports import Progress

_PER_SECOND = 1  # how often the bar is drawn; it costs nothing that can be measured

Tell = Callable[[Progress], None]


@contextmanager
def told(progress: bool | Tell | None) -> Iterator[Tell | None]:
    """Yield what is to be called after every batch, None where nobody wants to know.

    Args:
        progress: What is called; True for a bar where standard error is a terminal.
    """
    if progress is not True:
        yield progress or None
    elif sys.stderr.isatty():
        with bar() as show:
            yield show
    else:
        yield None


@contextmanager
def bar() -> Iterator[Tell]:
    """Show a bar on standard error, drawn once a second and at the end."""
    from rich import progress as bars  # when a bar is shown
    from rich.console import Console

    columns = (
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[speed]}"),
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.fields[failed]}"),
    )
    console = Console(stderr=True)
    with bars.Progress(*columns, console=console, refresh_per_second=_PER_SECOND) as display:
        task = display.add_task("images", total=None, speed="", failed="")

        def show(now: Progress) -> None:
            display.update(
                task,
                completed=now.before + now.images,
                total=now.total if now.listed else None,
                speed=f"{now.images / now.seconds:.1f} images/s",
                failed=f"{now.failed} failed" if now.failed else "",
            )

        yield show
