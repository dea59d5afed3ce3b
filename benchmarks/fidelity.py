"""How faithful each precision of each engine is, and what int8 gains: for docs/precision.md.

    python benchmarks/fidelity.py                          # four backbones, about ten minutes
    python benchmarks/fidelity.py --backbones resnet18 --runtimes openvino
    python benchmarks/fidelity.py --speed                  # instead: the time of int8 against fp32

Maps of the photos in examples/ are compared with those that PyTorch computes in float32, level by
level; the worst photo counts. int8 is calibrated on all photos but the last, which stands for what
calibration has not seen and has a row of its own. Weights are random but seeded unless
``--weights default`` fetches trained ones.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import platform
import shlex
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import trunkline
from trunkline.backbones.backbone import Backbone
from trunkline.benchmarking.bench import seeded_backbone
from trunkline.errors import DeploymentError
from trunkline.images import load_images
from trunkline.preprocessing import IMAGENET
from trunkline.runtimes.fidelity import PRECISIONS, LevelFidelity, compare_maps
from trunkline.runtimes.processor import OFFERED, EmulationWarning, processor
from trunkline.runtimes.timing import paired_ratio, summarize, take_turns

PHOTOS = sorted((Path(__file__).parents[1] / "examples").glob("*.jpg"))
BACKBONES = ("resnet18", "resnet50", "dla34", "regnet-y-002")
LIBRARIES = ("trunkline", "torch", "onnxruntime", "openvino", "nncf")
Array = NDArray[Any]


def photo_batches(backbone: Backbone) -> list[Array]:
    """Return every photo as the backbone takes it, (1, 3, H, W) float32."""
    rule = backbone.preprocessing or IMAGENET
    return [load_images([path], rule).numpy() for path in PHOTOS]


def worst(
    backbone: Backbone, runner: Any, images: Sequence[Array]
) -> tuple[list[LevelFidelity], ...]:
    """Return the reports of all images, regrouped by level."""
    reports = []
    for one in images:
        with torch.inference_mode():
            expected = [m.numpy() for m in backbone(torch.from_numpy(one))]
        reports.append(compare_maps(backbone.returned_levels, expected, runner(one)))
    return tuple(list(level) for level in zip(*reports, strict=True))


def print_row(what: str, levels: tuple[list[LevelFidelity], ...]) -> None:
    """Print the least cosine and the largest relative difference of every level."""
    cosines = (f"{min(one.cosine for one in level):.6f}" for level in levels)
    differences = (f"{max(one.max_relative for one in level):.1e}" for level in levels)
    print(f"{what:<48} {'  '.join(cosines)}   {'  '.join(differences)}", flush=True)


def measure_fidelity(name: str, weights: str, runtimes: Sequence[str]) -> None:
    """Print the rows of one backbone."""
    backbone = seeded_backbone(name, weights).eval()
    *seen, unseen = photo_batches(backbone)
    for runtime in runtimes:
        for precision in (known for known in PRECISIONS if known in OFFERED[runtime]):
            what = f"{name:<14} {runtime:<12} {precision:<5}"
            int8 = precision == "int8"
            try:
                runner = trunkline.deploy(
                    backbone, runtime, precision, calibration=seen if int8 else None
                )
            except DeploymentError as error:
                print(f"{what} refused: {error}", flush=True)
                continue
            judged = seen if int8 else [*seen, unseen]
            print_row(what, worst(backbone, runner, judged))
            if int8:
                print_row(f"{what} unseen photo", worst(backbone, runner, [unseen]))


def measure_speed(name: str, weights: str, runtimes: Sequence[str], rounds: int) -> None:
    """Print what int8 takes beside fp32, in turns, for one image and for eight."""
    backbone = seeded_backbone(name, weights).eval()
    photos = np.concatenate(photo_batches(backbone) * 3)
    for batch in (1, 8):
        images = photos[:batch]
        shape = (batch, *images.shape[2:])
        runs = {}
        for runtime in (known for known in runtimes if "int8" in OFFERED[known]):
            for precision in ("fp32", "int8"):
                calibration = photos[: max(batch, len(PHOTOS))] if precision == "int8" else None
                runner = trunkline.deploy(
                    backbone, runtime, precision, input_shape=shape, calibration=calibration
                )
                runs[f"{runtime} {precision}"] = partial(runner, images)
        seconds = take_turns(runs, rounds)
        for runtime in {key.split()[0]: None for key in runs}:
            fp32, int8 = (seconds[f"{runtime} {precision}"] for precision in ("fp32", "int8"))
            print(
                f"{name:<14} {batch}×{shape[1]}×{shape[2]}  {runtime:<12}"
                f" fp32 {summarize(fp32).median_ms:7.1f} ms   int8 "
                f"{summarize(int8).median_ms:7.1f} ms   int8 is {paired_ratio(fp32, int8):.2f}× "
                f"as fast ({rounds} rounds)",
                flush=True,
            )


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--backbones", nargs="+", default=[*BACKBONES])
    parser.add_argument("--runtimes", nargs="+", choices=[*OFFERED], default=[*OFFERED])
    parser.add_argument("--weights", default="none", help="none (seeded), default, a tag or a path")
    parser.add_argument("--speed", action="store_true", help="measure time instead")
    parser.add_argument("--rounds", type=int, default=15, help="of --speed")
    return parser.parse_args()


def main() -> None:
    """Measure everything and print it."""
    args = arguments()
    warnings.simplefilter("ignore", EmulationWarning)  # whether it gains is what is measured
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    versions["Python"] = platform.python_version()
    print(f"date       {datetime.date.today().isoformat()}")
    print(f"processor  {processor().describe()}")
    print(f"versions   {', '.join(f'{name} {version}' for name, version in versions.items())}")
    print(f"command    {shlex.join(['python', *sys.argv])}\n")
    if not args.speed:
        print("least cosine per level, then largest difference relative to the map's largest value")
    for name in args.backbones:
        if args.speed:
            measure_speed(name, args.weights, args.runtimes, args.rounds)
        else:
            measure_fidelity(name, args.weights, args.runtimes)


if __name__ == "__main__":
    main()
