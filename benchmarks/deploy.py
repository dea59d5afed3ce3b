"""Deployed runners against timm: docs/benchmarks.md is written by this program.

    make bench-peers                                         # everything, about an hour
    python benchmarks/deploy.py --cells resnet18@1x224       # one cell; the others stay as they are
    python benchmarks/deploy.py --quick                      # one small cell, three rounds
    python benchmarks/deploy.py --profile --cells dla60@8x224    # instead: where its time goes
    python benchmarks/deploy.py --render                     # the page again, from the kept figures

A cell is one backbone at one size. It is measured in a process of its own, in which all take turns
(A B C, C B A, …): timm eagerly, as its users run it; what is built by hand on timm's network today
(by_hand.py); trunkline's ``deploy`` with ``runtime="auto"``; and the convolution that this machine
computes fastest. Images are the photos in examples/, the weights of both libraries are the same.
Ratios are medians of the ratios of neighbours. How turns are taken, and why they begin with a
pause, is said in trunkline.runtimes.timing.

Figures are kept beside the page as JSON, a row per cell, so that cells can be measured at different
times: a cell that is measured again replaces its row.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import by_hand
import torch
from benchmark_page import keep, kept, write_page
from torch import Tensor, nn

import trunkline
from trunkline.backbones.backbone import Backbone
from trunkline.benchmarking.bench import BenchConfig, seeded_backbone, torch_threads
from trunkline.benchmarking.contestants import Contestant, deployed, eager
from trunkline.benchmarking.peak import Peak, measure_peak
from trunkline.benchmarking.peers import build_peer, find_peer, give_weights, maps_of
from trunkline.benchmarking.profile import profile_runners
from trunkline.errors import TrunklineError
from trunkline.images import load_images
from trunkline.preprocessing import IMAGENET
from trunkline.runtimes.fidelity import compare_maps
from trunkline.runtimes.processor import processor
from trunkline.runtimes.timing import paired_ratio, summarize, take_turns

PHOTOS = Path(__file__).parent.parent / "examples"
BACKBONES = ("resnet18", "resnet50", "dla34", "dla60", "regnet-y-040")
SIZES = ((1, 224), (8, 224), (1, 640))  # images, side
EAGER = "timm"
LIBRARIES = ("trunkline", "torch", "timm", "openvino", "onnxruntime", "nncf")
Cell = tuple[str, int, int]


def title(cell: Cell) -> str:
    """Return what a cell is called: ``resnet50@8x224``."""
    return f"{cell[0]}@{cell[1]}x{cell[2]}"


ALL_CELLS: dict[str, Cell] = {
    title((name, *size)): (name, *size) for name in BACKBONES for size in SIZES
}


def photos(batch: int, side: int) -> Tensor:
    """Return the example photos again and again, as the weights of ImageNet want them."""
    paths = sorted(PHOTOS.glob("*.jpg"))
    chosen = [paths[number % len(paths)] for number in range(batch)]
    return load_images(chosen, IMAGENET.with_size(side))


def timm_network(backbone: Backbone) -> nn.Module:
    """Return timm's network with the weights of the backbone."""
    peer = find_peer("timm", backbone)
    network = build_peer(peer)
    give_weights(peer, network, backbone)
    return network


def runners(
    backbone: Backbone, images: Tensor, threads: int
) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Deploy in every precision; return the runners, and why a precision is not there."""
    found: dict[str, Contestant] = {}
    missing: dict[str, str] = {}
    for precision in ("fp32", "bf16", "int8"):
        if precision == "bf16" and not processor().has_bf16:
            missing[precision] = "this processor has no bf16 arithmetic"
            continue
        try:
            found[precision] = deployed(
                backbone,
                images,
                "auto",
                precision,
                threads=threads,
                calibration=PHOTOS,
                remeasure=True,  # an earlier decision may be of a busier day
            )
        except TrunklineError as error:  # a benchmark reports what did not work
            missing[precision] = str(error)
    return found, missing


def measure_cell(cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one cell in this process; return its row."""
    name, batch, side = cell
    torch.manual_seed(0)
    backbone = seeded_backbone(name, args.weights)
    images = photos(batch, side)
    network = timm_network(backbone)
    deployments, missing = runners(backbone, images, args.threads)
    runs: dict[str, Callable[[], object]] = {EAGER: lambda: maps_of(network, images)}
    for tool, build in by_hand.BY_HAND.items():
        if tool != "inductor" or not args.no_inductor:
            runs[f"{tool} by hand"] = build(network, images, args.threads)
    runs |= {f"trunkline {precision}": one.run for precision, one in deployments.items()}
    peaks = [measure_peak(args.threads, p) for p in ("fp32", "bf16") if p in deployments]
    runs |= {f"peak {peak.precision}": peak.run for peak in peaks}
    seconds = take_turns(runs, args.rounds)
    operations = 2 * batch * backbone.macs(side, side)
    row: dict[str, Any] = {
        "backbone": name,
        "batch": batch,
        "side": side,
        "setting": setting(args),
        "missing": missing,
        "runs": {label: asdict(summarize(times)) for label, times in seconds.items()},
        "peaks": {p.precision: {"engine": p.engine, "convolution": str(p.shape)} for p in peaks},
    }
    wanted = eager(backbone, images).maps()
    row["trunkline"] = {
        precision: {
            "runtime": one.runtime,
            "fidelity": [
                asdict(level)
                for level in compare_maps(backbone.returned_levels, wanted, one.maps())
            ],
            **ratios(f"trunkline {precision}", seconds),
            "peak_share": peak_share(precision, peaks, seconds, operations),
        }
        for precision, one in deployments.items()
    }
    return row


def ratios(label: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Return how many times as fast as timm, and as the closest one by hand, one of them is."""
    hand = {
        other: paired_ratio(times, seconds[label])
        for other, times in seconds.items()
        if other.endswith("by hand")
    }
    best = min(hand, key=lambda other: hand[other])
    return {
        "against_timm": paired_ratio(seconds[EAGER], seconds[label]),
        "best_by_hand": best,
        "against_best": hand[best],
    }


def peak_share(
    precision: str, peaks: list[Peak], seconds: dict[str, list[float]], operations: int
) -> float | None:
    """Return the share of the convolution peak, round by round; None without such a peak."""
    for peak in peaks:
        if peak.precision == precision:
            speed = paired_ratio(seconds[f"peak {precision}"], seconds[f"trunkline {precision}"])
            return speed * operations / peak.shape.operations
    return None


def setting(args: argparse.Namespace) -> dict[str, Any]:
    """Return where and how a row came to be."""
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor().describe(),
        "threads": args.threads,
        "rounds": args.rounds,
        "weights": args.weights,
        "versions": {name: version(name) for name in LIBRARIES},
    }


def in_own_process(cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    """Measure a cell in a process that has done nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "row.json")
        flags = ["--child", str(out), "--cells", title(cell), "--weights", args.weights]
        flags += ["--rounds", str(args.rounds), "--threads", str(args.threads)]
        flags += ["--no-inductor"] if args.no_inductor else []
        subprocess.run([sys.executable, __file__, *flags], check=True)
        row: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return row


def profiles(cell: Cell, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time the layers of a cell on the engines that have a profiler, and print the sums."""
    name, batch, side = cell
    config = BenchConfig(
        shapes=((batch, side, side),),
        runtimes=("onnxruntime", "openvino"),
        rounds=args.rounds,
        threads=args.threads,
        weights=args.weights,
    )
    found = profile_runners([name], config)
    for one in found:
        kinds = ", ".join(f"{kind} {share:.1%}" for kind, share in one.kinds.items())
        print(f"{title(cell)} on {one.runtime}: {one.peak_share:.0%} of the peak; {kinds}")
    return [one.to_dict() for one in found]


def timed(cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    """Measure a cell in a process of its own, print its row and return it."""
    row = in_own_process(cell, args)
    say(row)
    return row


def say(row: dict[str, Any]) -> None:
    """Print one row."""
    where = f"{row['backbone']}@{row['batch']}x{row['side']}"
    print(where, *(f"{k} {v['median_ms']:.1f}" for k, v in row["runs"].items()), sep="  ")
    for precision, one in row["trunkline"].items():
        share = "" if one["peak_share"] is None else f", {one['peak_share']:.0%} of the peak"
        worst = max(level["max_relative"] for level in one["fidelity"])
        cosine = min(level["cosine"] for level in one["fidelity"])
        print(
            f"  {precision} on {one['runtime']}: {one['against_timm']:.2f} x timm, "
            f"{one['against_best']:.2f} x {one['best_by_hand']}{share}, "
            f"difference {worst:.1e}, cosine {cosine:.5f}",
            flush=True,
        )
    for precision, why in row["missing"].items():
        print(f"  no {precision}: {why}", flush=True)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--cells", nargs="+", metavar="NAME[@NxS]", help="default: all fifteen")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each")
    parser.add_argument("--threads", type=int, default=2, help="of everybody")
    parser.add_argument("--weights", default="none", help="of both libraries, see create_backbone")
    parser.add_argument("--no-inductor", action="store_true", help="it compiles for minutes")
    parser.add_argument("--profile", action="store_true", help="time the layers of the cells")
    parser.add_argument("--quick", action="store_true", help="resnet18@1x224, three rounds")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="docs/benchmarks.md")
    parser.add_argument("--render", type=Path, metavar="PAGE", help="write PAGE from its JSON")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.cells, args.rounds = ["resnet18@1x224"], 3
    wanted = args.cells or list(ALL_CELLS)
    chosen = [key for key in ALL_CELLS if key in wanted or ALL_CELLS[key][0] in wanted]
    if unknown := [w for w in wanted if not any(w in (key, ALL_CELLS[key][0]) for key in chosen)]:
        parser.error(f"no cell {unknown[0]}; there are {', '.join(ALL_CELLS)}")
    args.cells = [ALL_CELLS[key] for key in chosen]
    return args


def main() -> None:
    """Measure, and write the page if it is asked for."""
    args = arguments()
    if args.child:
        warnings.simplefilter("ignore")  # what exporters warn of is theirs to mend
        with torch_threads(args.threads):
            row = measure_cell(args.cells[0], args)
        args.child.write_text(json.dumps(row), encoding="utf-8")
        return
    if args.render:
        write_page(args.render, kept(args.render))
        return
    print(f"trunkline {trunkline.__version__}, {processor().describe()}, {args.threads} threads")
    for cell in args.cells:
        part = "profiles" if args.profile else "cells"
        found = profiles(cell, args) if args.profile else timed(cell, args)
        if args.write:  # after every cell: an hour is long
            figures = kept(args.write)
            figures.setdefault(part, {})[title(cell)] = found
            figures["command"] = shlex.join(["python", *sys.argv])
            keep(args.write, figures)
    if args.write:
        write_page(args.write, kept(args.write))


if __name__ == "__main__":
    main()
