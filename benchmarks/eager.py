"""Eager-mode speed of trunkline against timm: forward, training step, import, construction.

    make bench                                   # everything, about twenty minutes
    python benchmarks/eager.py --quick           # two backbones at one small shape, about a minute

Both libraries run in one process and take turns (A B, B A, A B, …), so that whatever else the
machine does meets both alike; a ratio is the median of the ratios of neighbours, timm / trunkline,
so more than 1 means that trunkline is faster. Both return the maps at strides 4, 8, 16 and 32.

Where other work shares the processor, ``OMP_WAIT_POLICY=passive`` in the environment and
``--clock cpu`` count the work of all threads without the waiting. Not ``--threads 1`` for that:
alone, PyTorch takes other convolution kernels (``_slow_conv2d_forward`` in place of oneDNN).

The package imports its parts when they are first asked for, so a bare ``import trunkline`` is next
to nothing; the row that counts asks for what builds a network, all families. Imports are wall time.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import json
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

import trunkline

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
FORWARD, STEP = "forward", "forward+backward"
FAST_PAIR_S = 0.3  # a pair that takes less is measured four times as often
Times = tuple[list[float], list[float]]  # trunkline's, timm's, in seconds
STRIDES = (4, 8, 16, 32)
IMPORTS = {
    "import, used": ("from trunkline import create_backbone", "from timm import create_model"),
    "import, bare": ("import trunkline", "import timm"),
}


@dataclass(frozen=True, kw_only=True)
class Peer:
    """What timm calls a backbone, and which of its levels have strides 4, 8, 16, 32."""

    name: str
    out_indices: tuple[int, ...] = (1, 2, 3, 4)


PEERS = {
    "resnet18": Peer(name="resnet18"),
    "resnet50": Peer(name="resnet50"),
    "dla34": Peer(name="dla34", out_indices=(2, 3, 4, 5)),
    "dla60": Peer(name="dla60", out_indices=(2, 3, 4, 5)),
    "regnet-y-040": Peer(name="regnety_040"),
}


@dataclass(frozen=True)
class Comparison:
    """Interleaved times of one thing done by both; ratios are timm / trunkline, paired."""

    what: str
    subject: str
    shape: str
    trunkline_ms: float
    timm_ms: float
    ratio: float
    ratio_p25: float
    ratio_p75: float
    pairs: int


def build_pair(name: str) -> tuple[nn.Module, nn.Module]:
    """Build one backbone twice, trunkline's and timm's, and check that they return the same maps.

    timm starts the last norm of some branches at zero; set to one, as everywhere else here, both
    compute with numbers of the same kind.
    """
    ours = trunkline.create_backbone(name)
    peer = PEERS[name]
    theirs = timm.create_model(peer.name, features_only=True, out_indices=peer.out_indices)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    images = torch.zeros(2, 3, 64, 64)
    shapes = [[tuple(m.shape[1:]) for m in net.eval()(images)] for net in (ours, theirs)]
    wanted = [(c, 64 // s, 64 // s) for c, s in zip(ours.channels, STRIDES, strict=True)]
    if shapes != [wanted, wanted]:
        sys.exit(f"{name}: the libraries return different maps: {shapes[0]} and {shapes[1]}")
    return ours, theirs


def forward(net: nn.Module, images: Tensor) -> None:
    """Compute the maps as inference does."""
    with torch.inference_mode():
        net(images)


def step(net: nn.Module, images: Tensor) -> None:
    """Do one training step, without an optimizer."""
    net.zero_grad()
    torch.stack([m.mean() for m in net(images)]).sum().backward()  # type: ignore[no-untyped-call]


def compare(
    what: str,
    subject: str,
    shape: str,
    runs: Sequence[Callable[[], object]],
    rounds: int,
    clock: Callable[[], float],
) -> Comparison:
    """Time ``runs``, trunkline's and timm's, in turns, and print the row."""

    def once(run: Callable[[], object]) -> float:
        start = clock()
        run()
        return clock() - start

    for _ in range(2):  # warm: primitives are created, memory is mapped
        warm = sum(once(run) for run in runs)
    pairs = rounds * (4 if warm < FAST_PAIR_S else 1)
    times: Times = ([], [])
    gc.collect()
    gc.disable()
    try:
        for number in range(pairs):
            for side in (0, 1) if number % 2 == 0 else (1, 0):
                times[side].append(once(runs[side]))
    finally:
        gc.enable()
    return summarize(what, subject, shape, times)


def summarize(what: str, subject: str, shape: str, times: Times) -> Comparison:
    """Reduce the paired seconds, trunkline's and timm's, to one row, and print it."""
    ratios = [theirs / ours for ours, theirs in zip(*times, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    ours_ms, theirs_ms = (statistics.median(side) * 1e3 for side in times)
    print(
        f"{what:<20}{subject:<14}{shape:<11}{ours_ms:>10.1f} {theirs_ms:>9.1f}"
        f" {middle:>7.3f}  {low:.3f}–{high:.3f}{len(ratios):>6}",
        flush=True,
    )
    return Comparison(what, subject, shape, ours_ms, theirs_ms, middle, low, high, len(ratios))


def compare_imports(what: str, statements: tuple[str, str], rounds: int) -> Comparison:
    """Time an import of each in fresh interpreters that have imported torch already."""

    def seconds(statement: str) -> float:
        code = f"import time, torch; t = time.time(); {statement}; print(time.time() - t)"
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        return float(done.stdout)

    times: Times = ([], [])
    for number in range(-1, rounds):  # the first writes the bytecode
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            times[side].append(seconds(statements[side]))
    return summarize(what, "", "", (times[0][1:], times[1][1:]))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="pairs per cell; fast cells 4×")
    parser.add_argument("--backbones", nargs="+", choices=[*PEERS], default=[*PEERS])
    parser.add_argument("--shapes", nargs="+", default=["1x224", "8x224", "1x640"], metavar="NxS")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=[*CLOCKS], default="wall")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results there too")
    parser.add_argument("--quick", action="store_true", help="two backbones, 1x224, three rounds")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.backbones, args.shapes = 3, ["resnet18", "dla34"], ["1x224"]
    if args.rounds < 2:
        parser.error("--rounds must be 2 or more")
    try:
        args.shapes = [tuple(int(n) for n in shape.split("x", 1)) for shape in args.shapes]
    except ValueError:
        parser.error("--shapes are batch and side, such as 8x224")
    return args


def processor() -> str:
    """Return the name of the processor, as far as the system tells."""
    told = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", told.read_text()) if told.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def main() -> None:
    """Measure everything and print it."""
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    versions = {name: importlib.metadata.version(name) for name in ("trunkline", "timm", "torch")}
    versions["Python"] = platform.python_version()
    setting = {
        "date": datetime.date.today().isoformat(),
        "processor": f"{processor()}, {args.threads} threads, {args.clock} clock",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "command": shlex.join(["python", *sys.argv]),
    }
    print(*(f"{key:<11}{value}" for key, value in setting.items()), sep="\n", end="\n\n")
    print(f"{'':<45}{'median ms':>18}   timm / trunkline")
    print(f"{'':<45}{'trunkline':>10}{'timm':>10}{'median':>8}  p25–p75{'pairs':>10}")
    clock, rows = CLOCKS[args.clock], []
    for name in args.backbones:
        ours, theirs = build_pair(name)
        for batch, side in args.shapes:
            images, shape = torch.randn(batch, 3, side, side), f"{batch}×{side}²"
            for what, run in ((FORWARD, forward), (STEP, step)):
                runs = [partial(run, net.train(what == STEP), images) for net in (ours, theirs)]
                rows.append(compare(what, name, shape, runs, args.rounds, clock))
    cells = list(rows)
    for what, options in (("build, whole", {}), ("build, features", {"features_only": True})):
        makers = (
            partial(trunkline.create_backbone, "resnet50"),
            partial(timm.create_model, "resnet50", **options),
        )
        rows.append(compare(what, "resnet50", "", makers, args.rounds, clock))
    for what, statements in IMPORTS.items():
        rows.append(compare_imports(what, statements, min(args.rounds, 7)))  # timm's: seconds
    print("\nmedian ratio over cells")
    overall = {
        label: statistics.median(row.ratio for row in cells if row.what in kinds)
        for label, kinds in {FORWARD: {FORWARD}, STEP: {STEP}, "all": {FORWARD, STEP}}.items()
    }
    print(*(f"{label:<20}{ratio:.3f}" for label, ratio in overall.items()), sep="\n")
    if args.json:
        result = {**setting, "overall": overall, "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
