"""Building a network and loading a local file: trunkline against timm and torchvision.

    make bench-loading                                        # all three networks
    python benchmarks/loading.py --models resnet50 --rounds 3
    python benchmarks/loading.py --detector                   # a search in a large file

Every measurement is a process of its own, and the libraries take turns (A B, B A, A B, …) on the
same file, which is in the page cache. A file holds a whole network, classifier included, in the
names of the peer that it is compared with. Imports are not counted. The clock stops when every
page of the parameters has been read, so that nobody gains by leaving them in the file; each side
does what its users do:

    trunkline    create_backbone(NAME, weights=PATH), which hashes the file as every load does
                 (with --classifier: load_classifier, so that all of the file is loaded)
    timm         create_model(NAME, pretrained=True, pretrained_cfg_overlay={"file": PATH})
    torchvision  get_model(NAME); load_state_dict(torch.load(PATH, weights_only=True))

``--detector`` asks no peer: trunkline loads a plain file of a ResNet-50, and the same network
within the file of a detector of 2 000 tensors, in turn. What is added is the search and the reading
of 1 680 tensors more.

A ratio is the median of the ratios of neighbours, peer / trunkline: above 1, trunkline is faster.
Memory is how far the process rose above what it held after its imports (resident set, so pages of
a mapped file count), as a share of the file plus the network that was built. The starting process
imports none of the libraries: on Linux a child inherits its parent's peak.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FORMATS = {"timm": ("safetensors", "pth"), "torchvision": ("pth",)}
NAMES = {
    "resnet50": {"timm": "resnet50", "torchvision": "resnet50"},
    "dla102": {"timm": "dla102"},
    "regnet-y-320": {"timm": "regnety_320", "torchvision": "regnet_y_32gf"},
}
FASTER, MEMORY = 1.5, 1.2  # what trunkline is held to: times as fast as timm, times file + network
_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Comparison:
    """One network and one file, loaded by trunkline and by a peer in turn; medians.

    Attributes:
        variant: The network.
        peer: The other library; the file has its names.
        format: Of the file.
        file_mb: Its size.
        trunkline_ms: From nothing to a network whose parameters have all been read.
        peer_ms: The same.
        ratio: Peer / trunkline, median of neighbours.
        trunkline_memory: Peak over file plus network.
        peer_memory: The same.
    """

    variant: str
    peer: str
    format: str
    file_mb: float
    trunkline_ms: float
    peer_ms: float
    ratio: float
    trunkline_memory: float
    peer_memory: float


def make_file(library: str, name: str, path: Path) -> None:
    """Write a peer's network with seeded random weights, as that peer's users would save it."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = _empty(library, name)
    if path.suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)


def _empty(library: str, name: str) -> Any:
    if library == "timm":
        import timm

        return timm.create_model(name)
    import torchvision

    return torchvision.models.get_model(name, weights=None)


def _loader(library: str, *, classifier: bool) -> Callable[[str, str], Any]:
    """Import what a library's users import, and return how they load."""
    if library == "timm":
        import timm

        return lambda name, path: timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay={"file": path}
        )
    if library == "torchvision":
        import torch
        import torchvision

        def load(name: str, path: str) -> Any:
            model = torchvision.models.get_model(name, weights=None)
            model.load_state_dict(torch.load(path, weights_only=True))
            return model

        return load
    if classifier:
        from trunkline.heads.classifier import load_classifier

        return load_classifier
    from trunkline import create_backbone

    importlib.import_module("trunkline.weights.loading")  # else the first load imports it

    return lambda name, path: create_backbone(name, weights=path)


def measure_here(library: str, name: str, path: str, *, classifier: bool) -> dict[str, float]:
    """Load once in this process; return milliseconds and bytes."""
    load = _loader(library, classifier=classifier)
    import torch  # no library is without it

    torch.zeros(64).sum()  # threads and allocator are there
    page = os.sysconf("SC_PAGE_SIZE")
    before = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * page
    start = time.perf_counter()
    model = load(name, path)
    tensors = model.state_dict().values()
    for tensor in tensors:
        tensor.flatten()[::1024].sum()  # one number of every page
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES
    network = sum(tensor.nbytes for tensor in tensors)
    return {"ms": 1000 * seconds, "peak": peak - before, "network": network}


def _child(*arguments: str) -> str:
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _measured(library: str, name: str, path: Path, options: Sequence[str]) -> dict[str, float]:
    output = _child("--child", "load", library, name, str(path), *options)
    values: dict[str, float] = json.loads(output)
    return values


def compare(variant: str, peer: str, path: Path, args: argparse.Namespace) -> Comparison:
    """Load one file with both libraries in turn, a warm-up first."""
    names = {"trunkline": variant, peer: NAMES[variant][peer]}
    options = ["--classifier"] if args.classifier else []
    runs: dict[str, list[dict[str, float]]] = {library: [] for library in names}
    for turn in range(args.rounds + 1):
        for library in list(names)[:: 1 if turn % 2 else -1]:
            result = _measured(library, names[library], path, options)
            if turn:
                runs[library].append(result)
    ours, theirs = runs["trunkline"], runs[peer]
    size = path.stat().st_size

    def median(results: list[dict[str, float]], key: str) -> float:
        return statistics.median(result[key] for result in results)

    return Comparison(
        variant=variant,
        peer=peer,
        format=path.suffix[1:],
        file_mb=size / 1e6,
        trunkline_ms=median(ours, "ms"),
        peer_ms=median(theirs, "ms"),
        ratio=statistics.median(b["ms"] / a["ms"] for a, b in zip(ours, theirs, strict=True)),
        trunkline_memory=median(ours, "peak") / (size + median(ours, "network")),
        peer_memory=median(theirs, "peak") / (size + median(theirs, "network")),
    )


def comparisons(args: argparse.Namespace) -> Iterator[Comparison]:
    """Make each file, compare on it, and delete it."""
    for variant in args.models:
        for peer, name in NAMES[variant].items():
            for suffix in FORMATS[peer]:
                with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                    path = Path(folder, f"{name}.{suffix}")
                    _child("--child", "make", peer, name, str(path))
                    yield compare(variant, peer, path, args)


def make_detector(plain: Path, path: Path) -> None:
    """Write a ResNet-50 of 318 tensors, and the file of a detector around it."""
    import torch

    from trunkline import create_backbone

    torch.manual_seed(0)
    state = create_backbone("resnet50").state_dict()
    torch.save(state, plain)
    held = {f"backbone.body.{name}": tensor for name, tensor in state.items()}
    parts = ("neck", "encoder", "decoder", "bbox_head", "mask_head", "roi_head", "criterion")
    names = ("conv1.weight", "bn1.weight", "bn1.bias", "linear.weight", "linear.bias", "gamma")
    for part in parts:
        for layer in range(40):
            held |= {f"{part}.layers.{layer}.{name}": torch.zeros(8) for name in names}
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in held.items()}}, path)


def time_detector(args: argparse.Namespace) -> None:
    """Load a plain file and a detector's in turn, a warm-up first; print medians."""
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        plain, detector = Path(folder, "resnet50.pth"), Path(folder, "detector.pth")
        _child("--child", "detector", "trunkline", str(plain), str(detector))
        runs: dict[Path, list[float]] = {plain: [], detector: []}
        for turn in range(args.rounds + 1):
            for path in (plain, detector):
                result = _measured("trunkline", "resnet50", path, [])
                if turn:
                    runs[path].append(result["ms"])
    alone, within = (statistics.median(times) for times in runs.values())
    print(
        f"resnet50 alone {alone:.0f} ms, within a detector {within:.0f} ms: +{within - alone:.0f}"
    )


def _print(row: Comparison) -> None:
    kept = row.trunkline_memory <= MEMORY and (row.peer != "timm" or row.ratio >= FASTER)
    print(
        f"{row.variant:<13} {row.format:<11} {row.file_mb:>6.1f} MB"
        f"  {row.trunkline_ms:>6.0f} ms, {row.peer} {row.peer_ms:>6.0f} ms: {row.ratio:.2f} x"
        f"   memory {row.trunkline_memory:.2f}, {row.peer} {row.peer_memory:.2f}"
        f"   {'' if kept else 'SHORT of the target'}".rstrip(),
        flush=True,
    )


def main() -> None:
    """Compare, and print or save the result."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--rounds", type=int, default=5, help="pairs, after one that warms up")
    parser.add_argument("--classifier", action="store_true", help="trunkline loads that too")
    parser.add_argument("--detector", action="store_true", help="within a file of 2 000 tensors")
    parser.add_argument("--folder", help="where the files go for a while; by default the system's")
    parser.add_argument("--json", type=Path, help="save the figures there too")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        job, library, name, path = args.child
        if job == "make":
            make_file(library, name, Path(path))
        elif job == "detector":
            make_detector(Path(name), Path(path))
        else:
            print(json.dumps(measure_here(library, name, path, classifier=args.classifier)))
        return
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("torch", "trunkline", *(() if args.detector else ("timm", "torchvision")))
    )
    print(f"# {datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, {versions}")
    print(f"# python benchmarks/loading.py {shlex.join(sys.argv[1:])}".rstrip())
    if args.detector:
        time_detector(args)
        return
    rows = []
    for row in comparisons(args):
        _print(row)
        rows.append(row)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
