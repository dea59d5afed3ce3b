"""What benchmarks/gpu.py says of its runs: titles, ratios, and how much time is left."""

from __future__ import annotations

import statistics
import time
from typing import Any

from gpu_networks import AMP, Cell

from trunkline.runtimes.timing import paired_ratio

GUESS_S = {
    "safety": 10.0,
    "peak": 10.0,
    "layers": 10.0,
    "processor": 10.0,
    "photos": 60.0,
    "training": 40.0,
}
CELL_S = 20.0  # of a cell, until one was measured


class Budget:
    """Seconds that a run may take, and how long its parts took."""

    def __init__(self, seconds: float) -> None:
        self.ends = time.monotonic() + seconds
        self.took: dict[str, float] = {}

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self.ends - time.monotonic())

    def expected(self, section: str) -> float:
        """Return how long a section will take: as long as a cell of that size took."""
        if "@" not in section:
            return GUESS_S.get(section, CELL_S)
        size = section.partition("@")[2]
        alike = [s for name, s in self.took.items() if name.endswith(f"@{size}")]
        cells = [s for name, s in self.took.items() if "@" in name]
        return statistics.mean(alike) if alike else max(cells, default=CELL_S)


def cell_title(cell: Cell) -> str:
    """Return what a cell is called: ``resnet50@128x224``."""
    return f"{cell[0]}@{cell[1]}x{cell[2]}"


def said(error: Exception) -> str:
    """Return an error as one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def against(base: str, seconds: dict[str, list[float]]) -> dict[str, float]:
    """Return how many times as fast as one of them the others are."""
    if base not in seconds:
        return {}
    return {label: paired_ratio(seconds[base], t) for label, t in seconds.items() if label != base}


def ratios(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Return the ratios to timm's amp, and of trunkline's best to the best on timm's network."""
    medians = {label: statistics.median(times) for label, times in seconds.items()}
    ours = min((m for m in medians if m.startswith("trunkline")), key=medians.__getitem__)
    theirs = [label for label in medians if label.startswith("timm")]
    best = min(theirs, key=medians.__getitem__, default=None)
    return {
        "against_amp": against(AMP, seconds),
        "best": ours,
        "best_by_hand": best,
        "against_best": paired_ratio(seconds[best], seconds[ours]) if best else None,
    }
