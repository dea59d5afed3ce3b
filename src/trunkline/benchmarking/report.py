"""What a benchmark found, as plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from trunkline.runtimes.fidelity import LevelFidelity

Shape = tuple[int, int, int]  # N, H, W


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One contestant at one shape.

    Attributes:
        backbone: Name of the variant.
        shape: (N, H, W) of the images.
        runner: Who ran: a peer, ``"eager"``, or runtime and precision.
        runtime: The engine; what ``auto`` chose, where that was asked for.
        precision: ``"fp32"``, ``"bf16"`` or ``"int8"``.
        median_ms: Milliseconds per run, the middle one of ``rounds``.
        p5_ms: A twentieth of the runs were faster.
        p95_ms: A twentieth of the runs were slower.
        rounds: Runs that were counted.
        images_per_s: Images per second, from the median.
        ratio: How many times as fast as the first row of this backbone and shape.
        gflops: 10⁹ operations of the convolutions per second.
        peak_share: Of the convolution peak of this precision, timed in the same rounds; None where
            no peak of the precision is measured.
        peak_memory_bytes: Of a process that loads or builds it and runs once; None where that was
            left out.
        fidelity: How far each map is from the eager backbone's; empty for the eager one itself.
    """

    backbone: str
    shape: Shape
    runner: str
    runtime: str
    precision: str
    median_ms: float
    p5_ms: float
    p95_ms: float
    rounds: int
    images_per_s: float
    ratio: float
    gflops: float
    peak_share: float | None
    peak_memory_bytes: int | None
    fidelity: tuple[LevelFidelity, ...]

    @property
    def max_relative(self) -> float | None:
        """The largest difference over all levels, None for the eager backbone."""
        return max((level.max_relative for level in self.fidelity), default=None)

    @property
    def min_cosine(self) -> float | None:
        """The smallest cosine over all levels, None for the eager backbone."""
        return min((level.cosine for level in self.fidelity), default=None)


@dataclass(frozen=True, kw_only=True)
class PeakRow:
    """The convolution peak of one precision, as the search for it found it.

    Attributes:
        precision: ``"fp32"`` or ``"bf16"``.
        gflops: 10⁹ operations per second.
        engine: Which engine reached it.
        convolution: Which convolution that was, in words.
    """

    precision: str
    gflops: float
    engine: str
    convolution: str


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """All rows of a benchmark, and where and how it was run.

    Attributes:
        date: Of the run, ISO 8601.
        processor: In words.
        threads: Of every engine.
        versions: Of the libraries that took part, by name.
        weights: What the backbones held, ``"none"`` for random numbers.
        peaks: One per precision.
        rows: In the order of backbones, shapes and contestants.
    """

    date: str
    processor: str
    threads: int
    versions: dict[str, str]
    weights: str
    peaks: tuple[PeakRow, ...]
    rows: tuple[BenchRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return asdict(self)
