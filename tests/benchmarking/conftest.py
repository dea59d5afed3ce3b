"""A search for the convolution peak that takes no time."""

from __future__ import annotations

import pytest

from trunkline.benchmarking import bench, peak, profile


@pytest.fixture
def quick_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search among one tiny convolution only."""
    tiny = peak.ConvShape(1, 8, 8, 3, depth=1)

    def measure(threads: int, precision: str = "fp32", **options: object) -> peak.Peak:
        assert options.keys() <= {"clocks"}
        return peak.measure_peak(threads, precision, shapes=[tiny])

    monkeypatch.setattr(bench, "measure_peak", measure)
    monkeypatch.setattr(profile, "measure_peak", measure)
