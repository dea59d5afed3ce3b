"""What backbones do on a graphics card, by hand: docs/gpu-benchmarks.md is written by this program.

    tools/gpu_check.sh                                # where there is a card: eight minutes
    python benchmarks/gpu.py --device cpu --tiny      # everything but speed, without a card
    python benchmarks/gpu.py --write PAGE --only photos training   # anew, the others stay
    python benchmarks/gpu.py --render PAGE            # the page again, from the kept figures

``deploy`` computes on the processor. What is measured here are networks that are moved to the card,
narrowed, folded, compiled and captured by hand with PyTorch's own means, timm's and trunkline's
(gpu_networks.py), from which a later ``deploy`` for cards has to start.

Everything happens in one process, in the order of importance, and what the budget of seconds does
not allow for is left out by name. Beforehand processes compile in parallel. Those who are compared
take turns; ratios are medians of the ratios of neighbours. Figures are kept beside the page as JSON
after every section, so that a run that is cut off leaves what it had found.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from benchmark_page import keep, kept
from gpu_device import Device, compare, measuring_flags, take_turns
from gpu_figures import Budget, against, cell_title, ratios, said
from gpu_layers import CardPeak, card_peak, kernels, layers
from gpu_networks import (
    AMP,
    CACHE,
    POOLED,
    STEP,
    STEPS,
    WAYS,
    Cell,
    has_timm,
    images_of,
    network_of,
    prepare,
    prepare_step,
    seeded,
    warm,
    warm_in_parallel,
)
from gpu_page import summary, write_page
from gpu_photos import Load, Pipeline
from gpu_safety import safety
from torch import Tensor

from trunkline import Backbone
from trunkline.images import load_images
from trunkline.preprocessing import IMAGENET
from trunkline.runtimes.fidelity import compare_maps
from trunkline.runtimes.timing import paired_ratio, summarize

PHOTOS = Path(__file__).parent.parent / "examples"
MAIN = ("resnet50", 128, 224)  # the cell whose layers are shown
BACKBONES = ("resnet50", "resnet18", "dla34", "dla60", "regnet-y-040")
FIRST, LATER = ((128, 224), (1, 224)), ((16, 640), (1, 640), (32, 224))
TRAINED = ("resnet50", 64, 224)
FASTEST = "trunkline folded half NHWC compiled graph"
COMPILED = next(way for way in WAYS if way.label == FASTEST)
PEAK = "peak"
WARM_SHARE, MOST_WARMING = 0.3, 12  # of the budget; processes that compile


class Benchmark:
    """One run: its device, its plan, and what it has found."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device = Device(torch.device(args.device))
        self.tiny: bool = args.tiny
        self.rounds: int = args.rounds
        self.budget = Budget(args.budget_seconds)
        names = ("resnet18",) if self.tiny else BACKBONES
        sizes = (((2, 64),), ((1, 32),)) if self.tiny else (FIRST, LATER)
        self.first, self.later = ([(n, *size) for n in names for size in s] for s in sizes)
        self.main: Cell = self.first[0] if self.tiny else MAIN
        self.trained: Cell = ("resnet18", 2, 64) if self.tiny else TRAINED
        small = Load(width=60, height=45, distinct=4, batch=2, batches=3, loader_batches=1)
        workers = 0 if self.tiny else min(16, os.cpu_count() or 1)
        self.load = Load(**asdict(small if self.tiny else Load()) | {"workers": workers})
        self.peak: CardPeak | None = None
        self.figures: dict[str, Any] = {
            "trial": self.tiny or not self.device.is_card,
            "setting": self.device.setting(),
            "command": f"python benchmarks/gpu.py --budget-seconds {args.budget_seconds:g}",
            "skipped": {},
            "failed": {},
            "cells": {},
            "seconds": self.budget.took,
        }

    @cached_property
    def photos(self) -> Tensor:
        """The example photos, as the weights of ImageNet want them."""
        return self.sized(4 if self.tiny else 8, 64 if self.tiny else 224)

    def sized(self, batch: int, side: int) -> Tensor:
        """Return the example photos again and again."""
        images = load_images(sorted(PHOTOS.glob("*.jpg")), IMAGENET.with_size(side))
        return images[torch.arange(batch) % len(images)]

    def backbone(self, name: str) -> Backbone:
        """Build a backbone on the device."""
        return seeded(name, self.device, self.photos)

    def sections(self) -> dict[str, Callable[[], Any]]:
        """Return the parts in the order of their importance."""
        plan: dict[str, Callable[[], Any]] = {
            "safety": lambda: safety(self.device, self.backbone("resnet18"), self.photos[:2]),
            PEAK: self.find_peak,
            cell_title(self.main): partial(self.cell, self.main),
            "layers": self.layers,
        }
        for cell in self.first:
            plan.setdefault(cell_title(cell), partial(self.cell, cell))
        plan |= {"processor": self.processor, "photos": self.pipeline, "training": self.training}
        return plan | {cell_title(cell): partial(self.cell, cell) for cell in self.later}

    def jobs(self) -> list[tuple[str, Cell]]:
        """Return what will be compiled, the most important first."""
        steps = [(STEP + step.label, self.trained) for step in STEPS if step.compiled]
        cells = [self.main, *(cell for cell in self.first if cell != self.main)]
        pooled = [(POOLED, (self.trained[0], self.load.batch, 224))]
        return (
            self._compiled(cells[:1]) + steps + pooled + self._compiled([*cells[1:], *self.later])
        )

    def _compiled(self, cells: list[Cell]) -> list[tuple[str, Cell]]:
        # Frozen graphs hold the weights, and are in no cache.
        ways = [way for way in WAYS if way.compiled and not way.frozen]
        return [(way.label, cell) for cell in cells for way in ways if way.takes_part(cell)]

    def find_peak(self) -> dict[str, Any]:
        """Find the fastest convolution; the main cell times it again."""
        self.peak = card_peak(self.device, tiny=self.tiny)
        return self.peak.to_dict()

    def cell(self, cell: Cell) -> dict[str, Any]:
        """Measure one backbone at one size in all ways."""
        name, batch, side = cell
        backbone, images = self.backbone(name), self.sized(batch, side)
        absent = has_timm(backbone)
        missing, runs = {}, {}
        for way in WAYS:
            if not way.takes_part(cell):
                continue
            if absent and way.library == "timm":
                missing[way.label] = absent
                continue
            try:
                runs[way.label] = prepare(way, self.device, backbone, images)
            except Exception as error:  # a benchmark reports what did not work
                missing[way.label] = said(error)
        with torch.inference_mode():
            wanted = backbone(images.to(self.device.where))
        fidelity = {
            label: [one.to_dict() for one in compare(backbone.returned_levels, wanted, run())]
            for label, run in runs.items()
        }
        timed: dict[str, Callable[[], object]] = dict(runs)
        if cell == self.main and self.peak is not None:
            timed[PEAK] = self.peak.run
        seconds = take_turns(self.device, timed, self.rounds)
        clocks = self.device.clocks()  # just after the last run
        operations = 2 * batch * backbone.macs(side, side)
        return {
            "backbone": name,
            "batch": batch,
            "side": side,
            "operations": operations,
            "missing": missing,
            "clocks": clocks,
            "runs": {label: asdict(summarize(times)) for label, times in seconds.items()},
            "fidelity": fidelity,
            **ratios(seconds),
            "peak_shares": self._peak_shares(seconds, operations),
        }

    def _peak_shares(self, seconds: dict[str, list[float]], operations: int) -> dict[str, float]:
        if self.peak is None or PEAK not in seconds:
            return {}
        scale = operations / self.peak.shape.operations
        return {
            label: paired_ratio(seconds[PEAK], times) * scale
            for label, times in seconds.items()
            if label != PEAK
        }

    def layers(self) -> dict[str, Any]:
        """Say where the time of the main cell goes."""
        name, batch, side = self.main
        backbone, images = self.backbone(name), self.sized(batch, side)
        eager = next(way for way in WAYS if way.folded and not way.compiled)
        taken = images_of(eager, self.device, images)
        found = layers(self.device, network_of(eager, self.device, backbone), taken)
        fused = prepare(COMPILED, self.device, backbone, images)
        whole = take_turns(self.device, {FASTEST: fused}, self.rounds)[FASTEST]
        return {
            "cell": cell_title(self.main),
            "network_ms": statistics.median(whole) * 1e3,
            "layers": found,
            "kernels": kernels(self.device, fused),
        }

    def processor(self) -> dict[str, Any]:
        """Compare fp32 on the device with the processor's maps."""
        found = {}
        for name in dict.fromkeys(cell[0] for cell in self.first):
            backbone = self.backbone(name)
            with torch.inference_mode():
                wanted = [maps.numpy() for maps in copy.deepcopy(backbone).cpu()(self.photos[:2])]
                got = [
                    maps.cpu().numpy() for maps in backbone(self.photos[:2].to(self.device.where))
                ]
            levels = compare_maps(backbone.returned_levels, wanted, got)
            found[name] = [level.to_dict() for level in levels]
        return found

    def pipeline(self) -> dict[str, Any]:
        """Measure from JPEGs to vectors."""
        made = Pipeline(self.device, self.backbone(self.trained[0]), self.load)
        found: dict[str, Any] = {
            "load": asdict(self.load),
            "jpeg_bytes": statistics.mean(len(one) for one in made.contents),
            "speeds": {},
            "missing": {},
        }
        parts: dict[str, Callable[[], Any]] = {
            "network alone": made.network_alone,
            "decoder alone": made.decoder_alone,
            "decoded on the card": made.both,
            "timm with a DataLoader": made.timm,
            "exact decoding in a DataLoader": made.exact,
        }
        for label, part in parts.items():
            try:
                speed = part()
            except Exception as error:  # a benchmark reports what did not work
                found["missing"][label] = said(error)
                continue
            rate, first = speed if isinstance(speed, tuple) else (speed, None)
            found["speeds"][label] = {"images_per_s": rate, "first_batch_s": first}
        if "decoder alone" in found["speeds"]:
            found["agreement"] = made.agreement()
        return found

    def training(self) -> dict[str, Any]:
        """Measure a training step."""
        name, batch, side = self.trained
        backbone, images = self.backbone(name), self.sized(batch, side)
        absent = has_timm(backbone)
        taking_part = [step for step in STEPS if not (absent and step.library == "timm")]
        runs = {s.label: prepare_step(s, self.device, backbone, images) for s in taking_part}
        seconds = take_turns(self.device, runs, self.rounds)
        return {
            "cell": cell_title(self.trained),
            "missing": {s.label: absent for s in STEPS if s.label not in runs},
            "runs": {label: asdict(summarize(times)) for label, times in seconds.items()},
            "against_timm": against(AMP, seconds),
        }

    def take_over(self, kept: dict[str, Any], only: Sequence[str]) -> None:
        """Keep what an earlier run had found of the sections that this one leaves alone."""
        card, now = (one.get("setting", {}).get("device") for one in (kept, self.figures))
        if card not in (None, now):
            sys.exit(f"the kept figures are of {card} and this is {now}; write another page")
        if unknown := [name for name in only if name not in self.sections()]:
            sys.exit(f"no section {unknown[0]}; there are {', '.join(self.sections())}")
        for part in ("skipped", "failed", "cells"):
            earlier = kept.get(part, {})
            self.figures[part] |= {name: earlier[name] for name in earlier if name not in only}
        for name, took in kept.get("seconds", {}).items():
            self.budget.took.setdefault(name, took)
        plain = [name for name in self.sections() if "@" not in name and name not in only]
        self.figures |= {name: kept[name] for name in plain if name in kept}
        if cell_title(self.main) in only and PEAK not in only:
            self.find_peak()  # the cell times it again

    def run(self, write: Path | None, only: Sequence[str] = ()) -> None:
        """Go through the sections, or some of them, as far as the budget allows."""
        for name, section in self.sections().items():
            if only and name not in only:
                continue
            left, expected = self.budget.left, self.budget.expected(name)
            if left < expected:
                why = f"{left:.0f} s of the budget were left, and it takes about {expected:.0f} s"
                self.figures["skipped"][name] = why
                print(f"{name}: skipped, {why}", flush=True)
                continue
            began = time.monotonic()
            try:
                made = section()
            except Exception as error:  # the other sections are worth having
                self.figures["failed"][name] = said(error)
                traceback.print_exc()
            else:
                place = self.figures["cells"] if "@" in name else self.figures
                place[name] = made
            self.device.release()
            took = self.budget.took[name] = time.monotonic() - began
            print(f"{name}: {took:.1f} s, {self.budget.left:.0f} s left", flush=True)
            if write:  # after every section: the machine may be taken back
                keep(write, self.figures)
        if write:
            write_page(write, self.figures)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--tiny", action="store_true", help="small networks and images: a trial")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each")
    parser.add_argument("--budget-seconds", type=float, default=420.0, help="of the whole run")
    parser.add_argument("--only", nargs="+", default=[], metavar="SECTION", help="photos, …")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="docs/gpu-benchmarks.md")
    parser.add_argument("--render", type=Path, metavar="PAGE", help="write PAGE from its JSON")
    parser.add_argument("--warm", metavar="NUMBER/WORKERS", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.render and args.device != "cpu" and not torch.cuda.is_available():
        parser.error("no card can be used here; --device cpu --tiny tries everything but speed")
    return args


def warm_up(benchmark: Benchmark, args: argparse.Namespace) -> None:
    """Compile in parallel what will be measured."""
    began = time.monotonic()
    workers = max(1, min(MOST_WARMING, (os.cpu_count() or 1) - 2))
    flags = ["--device", args.device, *(["--tiny"] if args.tiny else [])]
    seconds = WARM_SHARE * args.budget_seconds
    good = warm_in_parallel(Path(__file__), flags, workers, seconds)
    took = benchmark.budget.took["compiling beforehand"] = time.monotonic() - began
    print(f"{good} of {workers} processes compiled their share in {took:.1f} s", flush=True)


def measure(args: argparse.Namespace) -> None:
    """Measure, print, and write the page if it is asked for."""
    benchmark = Benchmark(args)
    print(benchmark.figures["setting"], flush=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        os.environ[CACHE] = cache
        if args.only:
            benchmark.take_over(kept(args.write) if args.write else {}, args.only)
        if benchmark.device.is_card and not args.only:
            warm_up(benchmark, args)
        benchmark.run(args.write, args.only)
    print(summary(benchmark.figures))
    if failed := benchmark.figures["failed"]:
        sys.exit(f"failed: {', '.join(failed)}")


def main() -> None:
    """Do what the command line says."""
    args = arguments()
    if args.render:
        write_page(args.render, kept(args.render))
        return
    warnings.simplefilter("ignore")  # what other libraries warn of is theirs to mend
    with measuring_flags():
        if args.warm:
            torch.backends.cudnn.benchmark = False  # nothing is timed here
            number, workers = (int(part) for part in args.warm.split("/"))
            benchmark = Benchmark(args)
            if failed := warm(benchmark.device, benchmark.jobs()[number::workers]):
                sys.exit("\n".join(failed))
        else:
            measure(args)


if __name__ == "__main__":
    main()
