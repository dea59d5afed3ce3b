"""What the verbs that load weights share: the bar of a download, and what a load did."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from trunkline.cli.output import one_line

if TYPE_CHECKING:
    from trunkline.weights.hub import Progress
    from trunkline.weights.loading import LoadReport


@contextmanager
def download_bars() -> Iterator[Progress | None]:
    """Show how far each file is, if somebody is looking."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), console=Console(stderr=True)) as display:
        tasks: dict[str, Any] = {}

        def show(name: str, done_bytes: int, total_bytes: int | None) -> None:
            if name not in tasks:
                tasks[name] = display.add_task(one_line(name), total=total_bytes)
            display.update(tasks[name], completed=done_bytes, total=total_bytes)

        yield show


def report_as_dict(report: LoadReport) -> dict[str, Any]:
    """Return a load report for JSON; of what was left aside, the reasons and how many."""
    return {
        "path": str(report.path),
        "sha256": report.sha256,
        "tag": report.tag,
        "license": report.license,
        "layout": report.layout,
        "container": report.container,
        "matched": report.matched,
        "adapted": list(report.adapted),
        "dropped": {reason: len(names) for reason, names in report.dropped.items()},
        "filled": len(report.filled),
        "notes": list(report.notes),
    }


def print_report(report: LoadReport) -> None:
    """Print what a load did and under which licence the weights are."""
    for line in str(report).splitlines():
        typer.echo(f"loaded    {one_line(line)}")
    typer.echo(f"licence   {one_line(report.license or 'not stated by the file')}")
