"""From the start of a process to the first maps: a saved runner against timm.

    make bench-peers                                  # resnet50, eleven rounds in turns
    python benchmarks/startup.py --rounds 7 --write docs/benchmarks.md

trunkline loads a saved runner in a process in which importing torch is an error. timm does what
its users do: import, ``create_model(NAME, features_only=True)`` with a local safetensors file, one
run in inference mode. Both get the same number of threads and one image; the files are in the page
cache. The clock runs from the spawn until the process says that it has its maps. Memory is the
peak of each process as the kernel counts it.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmark_page import keep, kept, write_page

from trunkline.runtimes.processor import processor
from trunkline.runtimes.timing import paired_ratio, quantile

SIDES = ("trunkline", "timm")
LIBRARIES = ("trunkline", "torch", "timm", "openvino", "onnxruntime")

# What a user's program would be, and then its peak; arguments: folder, timm's name, side, threads.
PROGRAMS = {
    "trunkline": """
import sys
sys.modules["torch"] = None  # importing it is an error now
import numpy as np
import trunkline
folder, _, side, _ = sys.argv[1:]
runner = trunkline.load_runner(f"{folder}/runner")
maps = runner(np.ones((1, 3, int(side), int(side)), np.float32))
""",
    "timm": """
import sys
import timm
import torch
folder, name, side, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
file = {"file": f"{folder}/timm.safetensors"}
network = timm.create_model(
    name, features_only=True, pretrained=True, pretrained_cfg_overlay=file
).eval()
with torch.inference_mode():
    maps = network(torch.ones(1, 3, int(side), int(side)))
""",
}
PEAK = """
print(len(maps), flush=True)  # the clock stops here
from trunkline.benchmarking.memory import resident_peak
print(resident_peak())
"""
NAMES = {"resnet18": "resnet18", "resnet50": "resnet50", "regnet-y-040": "regnety_040"}


def prepare(args: argparse.Namespace) -> None:
    """Save the runner, and a file of weights for timm."""
    import timm
    import torch
    from safetensors.torch import save_file

    import trunkline

    torch.manual_seed(0)
    backbone = trunkline.create_backbone(args.backbone).eval()
    shape = (1, args.side, args.side)
    runner = trunkline.deploy(
        backbone, runtime=args.runtime, input_shape=shape, threads=args.threads
    )
    runner.save(args.prepare / "runner")
    network = timm.create_model(NAMES[args.backbone])
    save_file(network.state_dict(), args.prepare / "timm.safetensors")


def start(who: str, folder: Path, args: argparse.Namespace) -> tuple[float, int]:
    """Start one process; return seconds until its first maps, and its peak in bytes."""
    given = [str(folder), NAMES[args.backbone], str(args.side), str(args.threads)]
    command = [sys.executable, "-c", PROGRAMS[who] + PEAK, *given]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # noqa: S101 (PIPE makes it so)
        num_maps = process.stdout.readline()
        seconds = time.perf_counter() - began
        peak = process.stdout.readline()
    if process.returncode or int(num_maps) < 4:
        sys.exit(f"the process of {who} failed with exit code {process.returncode}")
    return seconds, int(peak)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Prepare the files, start processes in turns, and return the figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = ["--prepare", name, "--backbone", args.backbone]
        flags += ["--side", str(args.side), "--threads", str(args.threads)]
        flags += ["--runtime", args.runtime]
        subprocess.run([sys.executable, __file__, *flags], check=True)
        seen: dict[str, list[tuple[float, int]]] = {side: [] for side in SIDES}
        for number in range(-1, args.rounds):  # the first fills the page cache
            for side in SIDES if number % 2 else reversed(SIDES):
                seen[side].append(start(side, folder, args))
    return summary(args, {side: runs[1:] for side, runs in seen.items()})


def summary(args: argparse.Namespace, seen: dict[str, list[tuple[float, int]]]) -> dict[str, Any]:
    """Reduce seconds and bytes of all rounds to the figures of the page."""
    seconds = {side: [one for one, _ in runs] for side, runs in seen.items()}
    figures: dict[str, Any] = {
        side: {
            "seconds": statistics.median(seconds[side]),
            "p5_s": quantile(seconds[side], 0.05),
            "p95_s": quantile(seconds[side], 0.95),
            "peak_bytes": int(statistics.median(peak for _, peak in runs)),
        }
        for side, runs in seen.items()
    }
    return figures | {
        "ratio": paired_ratio(seconds["timm"], seconds["trunkline"]),
        "backbone": args.backbone,
        "side": args.side,
        "rounds": args.rounds,
        "runtime": args.runtime,
        "setting": {
            "date": datetime.date.today().isoformat(),
            "processor": processor().describe(),
            "threads": args.threads,
            "rounds": args.rounds,
            "weights": "none",
            "versions": {name: version(name) for name in LIBRARIES},
        },
    }


def main() -> None:
    """Measure, print, and put the figures beside those of deploy.py."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--backbone", choices=list(NAMES), default="resnet50")
    parser.add_argument("--runtime", choices=["onnxruntime", "openvino"], default="onnxruntime")
    parser.add_argument("--side", type=int, default=224, help="of the image, in pixels")
    parser.add_argument("--rounds", type=int, default=11, help="pairs, after one that warms up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="docs/benchmarks.md")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.prepare:  # in a process of its own, which is gone before the clock runs
        prepare(args)
        return
    figures = measure(args)
    for side in SIDES:
        one = figures[side]
        print(f"{side:<10} {one['seconds']:.3f} s, {one['peak_bytes'] / 2**20:.0f} MiB")
    print(f"timm / trunkline, median of neighbours: {figures['ratio']:.1f}")
    if args.write:
        all_figures = kept(args.write)
        all_figures["startup"] = figures
        keep(args.write, all_figures)
        write_page(args.write, all_figures)


if __name__ == "__main__":
    main()
