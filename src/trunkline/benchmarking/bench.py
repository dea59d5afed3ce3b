"""Backbones on several engines and against other libraries, timed in turns."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

import torch

from trunkline.backbones.backbone import Backbone
from trunkline.backbones.options import ALL_STAGES
from trunkline.benchmarking.contestants import EAGER, Contestant, check_names, deployed, eager, peer
from trunkline.benchmarking.memory import peak_memory
from trunkline.benchmarking.peak import Peak, measure_peak
from trunkline.benchmarking.report import BenchReport, BenchRow, PeakRow, Shape
from trunkline.errors import ConfigError
from trunkline.heads.classifier import Classifier, as_network
from trunkline.heads.opening import load_network
from trunkline.heads.pretrained import from_pretrained
from trunkline.runtimes.calibration import CalibrationSource
from trunkline.runtimes.fidelity import compare_maps
from trunkline.runtimes.graphs import example_images
from trunkline.runtimes.processor import processor
from trunkline.runtimes.timing import Clocks, paired_ratio, summarize, take_turns
from trunkline.weights.opening import check_no_weights, is_saved, open_backbone
from trunkline.zoo import create_backbone

_PEAK = "convolution peak"  # no contestant can be called that
_LIBRARIES = ("trunkline", "torch", "onnxruntime", "openvino", "nncf")


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What to measure.

    Attributes:
        shapes: (N, H, W) of the images, one or more.
        runtimes: Any of ``RUNTIMES``; ``"eager"`` is the backbone itself, in fp32.
        precisions: Of the deployed runners.
        against: Peers, any of ``LIBRARIES``; the first one is what ratios are to.
        rounds: Counted runs of each.
        threads: Of every engine; None for all cores of this process.
        weights: As for ``create_backbone``, ``"none"`` for seeded random numbers.
        calibration: Photos for int8, as ``deploy`` takes them.
        memory: Whether to start a process per contestant that measures its memory.
    """

    shapes: tuple[Shape, ...] = ((1, 224, 224),)
    runtimes: tuple[str, ...] = (EAGER, "auto")
    precisions: tuple[str, ...] = ("fp32",)
    against: tuple[str, ...] = ()
    rounds: int = 15
    threads: int | None = None
    weights: str = "none"
    calibration: CalibrationSource | None = None
    memory: bool = True

    def __post_init__(self) -> None:
        check_names(self.runtimes, self.precisions)
        if len(set(self.against)) < len(self.against):
            raise ConfigError(f"a peer is named twice: {', '.join(self.against)}; name each once.")
        if not self.shapes or any(len(s) != 3 or min(s) < 1 for s in self.shapes):
            raise ConfigError(f"shapes={self.shapes!r} must be (N, H, W), integers from 1 on.")
        if self.rounds < 1:
            raise ConfigError(f"rounds must be 1 or more, got {self.rounds}; 15 is the default.")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads must be 1 or more, got {self.threads}; None takes all.")


def bench(
    names: Sequence[str | Backbone | Classifier],
    config: BenchConfig | None = None,
    *,
    progress: Callable[[str], None] | None = None,
    clocks: Clocks | None = None,
) -> BenchReport:
    """Measure backbones: speed, share of the convolution peak, memory, and whether maps agree.

    All contestants of a backbone and a shape live in this process and take turns. So that the
    share of the peak is fair, the convolution that reached it takes its turns among them.

    Args:
        names: Of variants, as ``create_backbone`` takes them; folders and repositories that
            ``save_pretrained`` wrote, which have their own weights; backbones and classifiers. A
            classifier of ours, saved or the file of ``weights``, is measured to its logits; where
            ``against`` names peers, which have none of it, to its backbone's maps.
        config: What to measure; None for the defaults.
        progress: Told, in words, what is measured next.
        clocks: None for the machine's own.

    Returns:
        One row per backbone, shape and contestant, in that order.

    Raises:
        ConfigError: No names, a peer without the variant, or an option outside what is allowed.
        NotInstalledError: An engine or a peer that cannot be imported.
        DeploymentError: A runner that cannot be had here.
    """
    if not names:
        raise ConfigError("no backbone to measure; give one or more names, see `trunkline list`.")
    chosen, tell = config or BenchConfig(), progress or (lambda _: None)
    machine = processor()
    threads = chosen.threads or machine.cores
    wanted = ["fp32"]
    if "bf16" in chosen.precisions and machine.has_bf16:
        wanted.append("bf16")

    @cache  # searched for once, when the first contestants are there: a mistake costs no minute
    def peaks() -> list[Peak]:
        tell("the convolution peak")
        return [measure_peak(threads, precision, clocks=clocks) for precision in wanted]

    rows: list[BenchRow] = []
    with torch_threads(threads):
        backbones = [_network_of(one, chosen) for one in names]
        called = [
            one if isinstance(one, str) else backbone.variant or type(one).__name__
            for one, backbone in zip(names, backbones, strict=True)
        ]
        for (name, backbone), shape in product(zip(called, backbones, strict=True), chosen.shapes):
            tell(f"{backbone.variant or name} at {'x'.join(map(str, shape))}")
            rows += _Cell(name, backbone, shape, chosen, threads).rows(peaks, clocks)
    return BenchReport(
        date=datetime.date.today().isoformat(),
        processor=machine.describe(),
        threads=threads,
        versions=_versions((*_LIBRARIES, *chosen.against)),
        weights=chosen.weights,
        peaks=tuple(
            PeakRow(
                precision=p.precision, gflops=p.gflops, engine=p.engine, convolution=str(p.shape)
            )
            for p in peaks()
        ),
        rows=tuple(rows),
    )


@dataclass(frozen=True)
class _Measured:
    """The times of one cell, and what they are compared with."""

    seconds: dict[str, list[float]]
    base: str  # whom ratios are to
    peaks: dict[str, Peak]
    maps: Sequence[Any]  # of the eager backbone


@dataclass(frozen=True)
class _Cell:
    """One backbone at one shape."""

    name: str  # as it was asked for
    backbone: Backbone
    shape: Shape
    config: BenchConfig
    threads: int

    def rows(
        self, find_peaks: Callable[[], Sequence[Peak]], clocks: Clocks | None
    ) -> list[BenchRow]:
        """Measure and return the rows, the one that ratios are to first."""
        images = example_images(self.backbone, *self.shape, preprocess=False)
        reference = eager(self.backbone, images, self.name)
        contestants = self._contestants(reference, images)
        runs: dict[str, Callable[[], object]] = {one.label: one.run for one in contestants}
        peaks = {f"{_PEAK} {peak.precision}": peak for peak in find_peaks()}
        runs |= {label: peak.run for label, peak in peaks.items()}
        measured = _Measured(
            seconds=take_turns(runs, self.config.rounds, clocks=clocks),
            base=contestants[0].label,
            peaks=peaks,
            maps=reference.maps(),
        )
        with tempfile.TemporaryDirectory(prefix="trunkline-bench-") as folder:
            return [self._row(one, measured, Path(folder)) for one in contestants]

    def _contestants(self, reference: Contestant, images: torch.Tensor) -> list[Contestant]:
        config = self.config
        found = [peer(library, self.backbone, images) for library in config.against]
        for runtime in config.runtimes:
            if runtime == EAGER:
                found.append(reference)
                continue
            found += [
                deployed(
                    self.backbone,
                    images,
                    runtime,
                    precision,
                    threads=self.threads,
                    calibration=config.calibration,
                )
                for precision in config.precisions
            ]
        if not found:
            raise ConfigError("there is nothing to time; give a runtime or a peer.")
        return found

    def _row(self, one: Contestant, measured: _Measured, folder: Path) -> BenchRow:
        batch, height, width = self.shape
        operations = 2 * batch * self.backbone.macs(height, width)
        times = measured.seconds[one.label]
        timing = summarize(times)
        label, share = f"{_PEAK} {one.precision}", None
        if label in measured.peaks:  # operations per second of both, round by round
            speed = paired_ratio(measured.seconds[label], times)
            share = speed * operations / measured.peaks[label].shape.operations
        memory = None
        if self.config.memory:
            size = [batch, self.backbone.in_channels, height, width]
            job = {**one.memory_job(folder), "shape": size, "threads": self.threads}
            memory = peak_memory(job)
        levels = self.backbone.returned_levels
        return BenchRow(
            backbone=self.backbone.variant or self.name,
            shape=self.shape,
            runner=one.label,
            runtime=one.runtime,
            precision=one.precision,
            median_ms=timing.median_ms,
            p5_ms=timing.p5_ms,
            p95_ms=timing.p95_ms,
            rounds=timing.rounds,
            images_per_s=batch / timing.median_ms * 1e3,
            ratio=paired_ratio(measured.seconds[measured.base], times),
            gflops=operations / timing.median_ms / 1e6,
            peak_share=share,
            peak_memory_bytes=memory,
            fidelity=() if one.label == EAGER else compare_maps(levels, measured.maps, one.maps()),
        )


def seeded_backbone(name: str, weights: str, *, maps: bool = False) -> Backbone:
    """Build what a name means, in eval mode; random weights are the same in every run.

    A classifier of ours, saved or in a file, is that of its logits unless ``maps`` are asked for.
    """
    if is_saved(name):
        if maps:
            return open_backbone(name, weights).eval()
        check_no_weights(name, weights)
        return as_network(from_pretrained(name)).eval()
    if weights != "none":
        return load_network(name, weights, ALL_STAGES if maps else None).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_backbone(name).eval()


def _network_of(given: str | Backbone | Classifier, config: BenchConfig) -> Backbone:
    """Return what is measured; peers have maps and not our classifiers, so they meet maps."""
    maps = bool(config.against)
    if isinstance(given, str):
        return seeded_backbone(given, config.weights, maps=maps)
    if maps and isinstance(given, Classifier):
        return given.backbone
    return as_network(given)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Give PyTorch that many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _versions(libraries: Sequence[str]) -> dict[str, str]:
    """Return the versions of those that are installed."""
    found = {}
    for name in libraries:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # an extra that is not there took no part
    return found
