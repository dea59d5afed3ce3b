"""How fast extract is: docs/extract-benchmarks.md and docs/scale.md are written by this program.

    make bench-extract                              # everything, about a quarter of an hour
    python benchmarks/extract.py --only start       # one section; the page keeps the others
    python benchmarks/extract.py --render docs/extract-benchmarks.md    # from the kept figures

Sections: peer (a plain timm and DataLoader script, extract_peer.py), overhead (of decoding and
writing), memory, start, ray, batch, and plan (bytes read and written, for docs/scale.md).

The images are seeded crops of examples/*.jpg, 500×375, with seeded noise, as JPEG of quality 90.
Every call is a process of its own (extract_child.py), and those that are compared take turns
(A B C, C B A, …). Ratios are medians of the ratios within a round. Figures are kept beside the page
as JSON, a part for each section.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_page import keep, kept
from extract_child import MARKS
from extract_page import write_page
from PIL import Image
from scale_page import write_scale

from trunkline.runtimes.processor import processor

HERE = Path(__file__).parent
PHOTOS = HERE.parent / "examples"
SIDES = (500, 375)  # width, height
NOISE = 4.0  # standard deviation in levels of 255, so that files are as large as a camera's
BACKBONE, SMALL_BACKBONE = "resnet50", "resnet18"
PEER_WORKERS = (0, 2)
LIBRARIES = ("trunkline", "torch", "timm", "openvino", "onnxruntime", "pillow", "pyarrow", "ray")
FILES = 1_000  # of the memory section, listed again and again through links
Figures = dict[str, Any]


def write_photos(folder: Path, count: int) -> None:
    """Write seeded crops of the example photos."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = sorted(PHOTOS.glob("*.jpg"))
    photos = [Image.open(path).convert("RGB") for path in paths]
    for number in range(count):
        target = folder / f"{number:05d}.jpg"
        if target.exists():
            continue
        random = np.random.default_rng(number)
        photo = photos[number % len(photos)]
        height = int(photo.height * random.uniform(0.7, 1))
        width = min(photo.width, round(height * SIDES[0] / SIDES[1]))
        left = int(random.integers(0, photo.width - width + 1))
        top = int(random.integers(0, photo.height - height + 1))
        crop = photo.crop((left, top, left + width, top + height)).resize(SIDES)
        noise = random.standard_normal((*crop.size[::-1], 3), np.float32)
        values = np.asarray(crop, np.float32) + np.float32(NOISE) * noise
        Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).save(target, quality=90)


def last_line(command: list[str]) -> Figures:
    """Run a process and return the JSON of its last line."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: Figures = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def child(what: str, **given: Any) -> Figures:
    """Run one part of extract_child.py."""
    texts = {name: str(v) if isinstance(v, Path) else v for name, v in given.items()}
    return last_line([sys.executable, str(HERE / "extract_child.py"), what, json.dumps(texts)])


class Bench:
    """The sections, and what they share in one folder."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.args, self.work = args, work
        self.src = work / f"photos{args.images}"
        write_photos(self.src, args.images)

    def runner(self, precision: str, backbone: str = BACKBONE, side: int = 224) -> Path:
        """Return a saved runner for batches of 8, which is what extract would choose on 2 cores."""
        folder = self.work / f"{backbone}-{precision}-{side}"
        if not (folder / "runner.json").is_file():
            shape = [8, side, side]
            given = {"backbone": backbone, "precision": precision, "shape": shape}
            if backbone == SMALL_BACKBONE:  # of the memory section, where speed does not count
                given["runtime"] = "onnxruntime"
            child("prepare", **given, runner=folder, photos=self.src)
        return folder

    def precisions(self) -> list[str]:
        """Return those that this processor has."""
        return ["fp32", *(["bf16"] if processor().has_bf16 else []), "int8"]

    def peer(self) -> Figures:
        """Compare with the plain script."""
        script, out = str(HERE / "extract_peer.py"), str(self.work / "peer")
        plain = [sys.executable, script, str(self.src), out, "--backbone", BACKBONE, "--workers"]
        folders = {precision: self.runner(precision) for precision in self.precisions()}
        names = [*(f"plain {count}" for count in PEER_WORKERS), *folders]
        runs: dict[str, list[Figures]] = {name: [] for name in names}
        for number in range(self.args.rounds):
            for name in names if number % 2 == 0 else reversed(names):
                if name in folders:
                    one = child("extract", src=self.src, runner=folders[name], out=self.store)
                else:
                    one = last_line([*plain, name.split()[1]])
                runs[name].append(one)
                print(f"  {name}: {one['images_per_second']:.1f} images/s", flush=True)
        return {
            "images": self.args.images,
            "runs": {name: _medians(found) for name, found in runs.items()},
            "ratios": {name: _ratios(runs, name) for name in folders},
            "missing": {} if processor().has_bf16 else {"bf16": "this processor has no bf16"},
        }

    @property
    def store(self) -> Path:
        """Where stores go that nobody reads."""
        return self.work / "features.parquet"

    def overhead(self) -> Figures:
        """Compare with the same runner over pixels in memory."""
        shared = {"src": self.src, "out": self.store, "rounds": self.args.rounds}
        return {p: child("overhead", **shared, runner=self.runner(p)) for p in self.precisions()}

    def memory(self) -> Figures:
        """Extract from many images with a small network, and look at the memory."""
        source = self.work / "many"
        files = self.work / f"photos{FILES}"
        write_photos(files, FILES)
        for part in range(MARKS[-1] // FILES):
            folder = source / f"{part:02d}"
            folder.mkdir(parents=True, exist_ok=True)
            for file in files.glob("*.jpg"):
                if not (folder / file.name).exists():
                    os.link(file, folder / file.name)
        runner = self.runner("fp32", SMALL_BACKBONE, 64)
        return child("memory", src=source, work=self.work, runner=runner)

    def start(self) -> Figures:
        """Time whole processes until their first numbers."""
        few = self.work / "few"
        write_photos(few, 16)
        saved = str(self.runner("fp32"))
        return {
            f"{name}, {state}": statistics.median(
                self.started(few, given, resumed=state == "resumed")
                for _ in range(self.args.rounds)
            )
            for name, given in (("saved runner", saved), ("backbone", BACKBONE))
            for state in ("new store", "resumed")
        }

    def started(self, few: Path, backbone: str, *, resumed: bool) -> float:
        """Return the seconds from the start of a process to its first numbers, and those at exit.

        What comes after the first numbers is what the report says; the process's end counts in.
        """
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            command = [sys.executable, "-m", "trunkline", "extract", "run", str(few)]
            command += [f"{folder}/f.parquet", "--backbone", backbone, "--json"]
            command += ["--shard-size", "8"]
            if resumed:
                subprocess.run([*command, "--shard", "0/2"], capture_output=True, check=True)
            began = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            whole = time.perf_counter() - began
            report = json.loads(done.stdout)
            return float(whole - report["seconds"] + report["first_seconds"])

    def ray(self) -> Figures:
        """Compare Ray's two workers with the local engine."""
        size = max(8, self.args.images // 8)
        given = {"src": self.src, "out": self.store, "runner": self.runner("fp32")}
        return child("ray", **given, shard_size=size, rounds=self.args.rounds)

    def batch(self) -> Figures:
        """Time batches of several sizes."""
        text = (self.runner("fp32") / "runner.json").read_text(encoding="utf-8")
        saved = json.loads(text)["runner"]["spec"]
        given = {"backbone": BACKBONE, "runtime": saved["runtime"], "rounds": 5}
        return {"runtime": saved["runtime"], "speeds": child("batch", **given, work=self.work)}

    def plan(self) -> Figures:
        """Count the bytes that an image costs, with the network that the plan is for."""
        sizes = [path.stat().st_size for path in self.src.glob("*.jpg")]
        figures: Figures = {"bytes_read": statistics.mean(sizes)}
        runner = self.runner("fp32")
        for dtype in ("float32", "float16"):
            shared = {"src": self.src, "out": self.store, "runner": runner, "dtype": dtype}
            one = child("extract", **shared)
            home = self.store.with_name(f"{self.store.name}.trunkline")
            figures[dtype] = _bytes(self.store) / one["images"]
            figures["plan_bytes"] = _bytes(home / "plan") / one["images"]
            figures["record_bytes"] = _bytes(home / "shards") / one["shards"]
            figures["image_seconds"] = 1 / one["images_per_second"]
            figures["write_seconds"] = one["stages"]["write"] / one["images"]
        figures["cores"] = processor().cores
        figures["runtime"] = one["runtime"]
        return figures | child("bookkeeping", work=self.work, store=self.store)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _medians(runs: list[Figures]) -> Figures:
    names = ("images_per_second", "whole_seconds", "first_seconds")
    found: Figures = {name: statistics.median(one[name] for one in runs) for name in names}
    speeds = [one["images_per_second"] for one in runs]
    return found | {"least": min(speeds), "most": max(speeds), "runtime": runs[0].get("runtime")}


def _ratios(runs: dict[str, list[Figures]], name: str) -> Figures:
    """Compare with the better plain script of every round."""
    plains = [runs[f"plain {count}"] for count in PEER_WORKERS]
    pairs = [(one, rivals) for one, *rivals in zip(runs[name], *plains, strict=True)]
    steady = [
        one["images_per_second"] / max(rival["images_per_second"] for rival in rivals)
        for one, rivals in pairs
    ]
    whole = [
        min(rival["whole_seconds"] for rival in rivals) / one["whole_seconds"]
        for one, rivals in pairs
    ]
    return {"steady": statistics.median(steady), "whole": statistics.median(whole)}


SECTIONS = ("peer", "overhead", "memory", "start", "ray", "batch", "plan")


def setting(args: argparse.Namespace) -> Figures:
    """Return where and how a section was measured."""
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor().describe(),
        "cores": processor().cores,
        "rounds": args.rounds,
        "load": round(os.getloadavg()[0], 1),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def command(section: str, args: argparse.Namespace) -> str:
    """Return what measures a section again; where files are kept meanwhile changes nothing."""
    words = ["python", "benchmarks/extract.py", "--only", section]
    return shlex.join([*words, "--images", str(args.images), "--rounds", str(args.rounds)])


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--images", type=int, default=240, help="of one run")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--work", type=Path, help="folder that is kept; default: a temporary one")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="docs/extract-benchmarks.md")
    parser.add_argument("--render", type=Path, metavar="PAGE", help="write PAGE from its JSON")
    return parser.parse_args()


def write_pages(page: Path) -> None:
    """Write both pages from the kept figures."""
    figures = kept(page)
    write_page(page, figures)
    if "plan" in figures:
        write_scale(page.with_name("scale.md"), figures)


def main() -> None:
    """Measure, print, and write the pages if that is asked for."""
    args = arguments()
    if args.render:
        write_pages(args.render)
        return
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, args.work or Path(folder))
        for name in args.only:
            where = setting(args)
            print(f"{name} (load {where['load']})", flush=True)
            found = {"setting": where, "figures": getattr(bench, name)()}
            print(json.dumps(found["figures"], indent=1), flush=True)
            if args.write:  # after every section: a quarter of an hour is long
                figures = {key: v for key, v in kept(args.write).items() if key != "cells"}
                figures[name] = found | {"command": command(name, args)}
                keep(args.write, figures)
    if args.write:
        write_pages(args.write)


if __name__ == "__main__":
    main()
