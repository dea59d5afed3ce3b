"""The plots of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trunkline.outputs import written_whole
from trunkline.runtimes.optional import require

Row = dict[str, Any]
Series = dict[str, list[float | None]]


def plot_cells(folder: Path, cells: dict[str, Row], precisions: Sequence[str]) -> None:
    """Draw speed against timm, and share of the convolution peak, into a folder."""
    speeds, shares = _speeds(cells, precisions), _shares(cells, precisions)
    _plot(cells, folder / "speed.png", "times as fast as timm, eager", speeds)
    _plot(cells, folder / "peak.png", "share of the convolution peak", shares)


def _speeds(cells: dict[str, Row], precisions: Sequence[str]) -> Series:
    series: Series = {"best by hand": []}
    for row in cells.values():
        one = row["trunkline"].get("fp32")
        series["best by hand"].append(one and one["against_timm"] / one["against_best"])
    for precision in precisions:
        values = [row["trunkline"].get(precision, {}).get("against_timm") for row in cells.values()]
        if any(value is not None for value in values):
            series[f"trunkline {precision}"] = values
    return series


def _shares(cells: dict[str, Row], precisions: Sequence[str]) -> Series:
    series = {}
    for precision in precisions:
        values = [row["trunkline"].get(precision, {}).get("peak_share") for row in cells.values()]
        if any(value is not None for value in values):
            series[f"trunkline {precision}"] = values
    return series


def _plot(cells: dict[str, Row], path: Path, label: str, series: Series) -> None:
    """Draw bars, a group per cell."""
    matplotlib = require("matplotlib", "the plots of the benchmark page")
    matplotlib.use("Agg")
    plots = require("matplotlib.pyplot", "the plots of the benchmark page")
    figure, axes = plots.subplots(figsize=(9, 3.6), layout="constrained")
    width = 0.8 / max(len(series), 1)
    for number, (name, values) in enumerate(series.items()):
        places = [place + number * width for place in range(len(cells))]
        axes.bar(places, [value or 0.0 for value in values], width, label=name)
    middle = (len(series) - 1) * width / 2
    axes.set_xticks([place + middle for place in range(len(cells))], list(cells), rotation=35)
    for tick in axes.get_xticklabels():
        tick.set_horizontalalignment("right")
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_ylabel(label)
    figure.legend(loc="outside upper center", fontsize="small", ncols=len(series) or 1)
    with written_whole(path) as aside:
        figure.savefig(aside, dpi=90)
    plots.close(figure)
