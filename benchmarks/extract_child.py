"""What benchmarks/extract.py measures in a process of its own: one call, one line of JSON.

    python benchmarks/extract_child.py WHAT '{"src": …, "work": …}'

Steady images per second are those after the first batch: of an extraction until its store is
complete, files synced.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

BATCHES = (2, 4, 8, 16, 32)
MARKS = (1_000, 5_000, 10_000, 20_000)
WINDOW = 400  # images before a mark whose samples of memory count
LINES, RECORDS = 200_000, 5_000  # of the long list, and of a folder of records
SMALL = 64  # side of the images of the memory runs, in pixels


def build_runner(
    name: str,
    precision: str,
    shape: tuple[int, int, int] | None,
    folder: Path,
    photos: Path,
    runtime: str = "auto",
) -> Any:
    """Deploy a backbone, save the runner and return it."""
    import torch

    import trunkline

    torch.manual_seed(0)
    backbone = trunkline.create_backbone(name).eval()
    calibration = photos if precision == "int8" else None
    runner = trunkline.deploy(
        backbone,
        runtime,
        precision,
        shape,
        preprocess=True,
        threads=2,
        calibration=calibration,
        remeasure=True,  # an earlier decision may be of a busier day
    )
    runner.save(folder)
    return runner


def prepare(given: dict[str, Any]) -> dict[str, Any]:
    """Save a runner; say which engine it is."""
    runner = build_runner(
        given["backbone"],
        given["precision"],
        tuple(given["shape"]),
        Path(given["runner"]),
        Path(given["photos"]),
        given.get("runtime", "auto"),
    )
    return {"runtime": runner.runtime}


def emptied(out: Path) -> Path:
    """Return a place for a store in which there is none."""
    for path in (out, out.with_name(f"{out.name}.trunkline")):
        shutil.rmtree(path, ignore_errors=True)
    return out


def extracted(src: Path, out: Path, runner: Any, **options: Any) -> dict[str, Any]:
    """Extract into a new store; return its report and its steady images per second."""
    import trunkline

    seen: list[tuple[float, int]] = []

    def note(progress: Any) -> None:
        seen.append((time.perf_counter(), progress.images))

    report = trunkline.extract(src, emptied(out), runner, progress=note, **options)
    ended = time.perf_counter()
    first, images = seen[0]
    return report.to_dict() | {"images_per_second": (report.images - images) / (ended - first)}


def run_extract(given: dict[str, Any]) -> dict[str, Any]:
    """Extract with a saved runner: what the plain script is compared with."""
    import psutil

    import trunkline

    runner = trunkline.load_runner(given["runner"], threads=given.get("threads"))
    options = {name: given[name] for name in ("dtype",) if name in given}
    figures = extracted(Path(given["src"]), Path(given["out"]), runner, **options)
    began = psutil.Process().create_time()
    whole = time.time() - began
    first = whole - figures["seconds"] + figures["first_seconds"]
    return figures | {"whole_seconds": whole, "first_seconds": first}


def run_overhead(given: dict[str, Any]) -> dict[str, Any]:
    """Time extraction and the same runner over pixels in memory, in turns."""
    import numpy as np

    import trunkline
    from trunkline.extraction.decoding import Decoding, decode_item
    from trunkline.extraction.sources import list_items, source_of
    from trunkline.preprocessing import IMAGENET

    src, runner = Path(given["src"]), trunkline.load_runner(given["runner"])
    assert runner.input_shape is not None  # noqa: S101 (prepare gave it one)
    size = runner.input_shape[0]
    source = source_of(src)
    decoding = Decoding(source=source, preprocessing=IMAGENET)
    found = (decode_item(decoding, item)[1] for item in islice(list_items(source), 4 * size))
    decoded = [one for one in found if one is not None]
    batches = [np.stack(decoded[start : start + size]) for start in range(0, len(decoded), size)]
    count = len(list(list_items(source))) // size

    def pure() -> float:
        runner(batches[0])
        began = time.perf_counter()
        for number in range(count):
            runner(batches[number % len(batches)])
        return (time.perf_counter() - began) / (count * size)

    def whole() -> float:
        figures = extracted(src, Path(given["out"]), runner)
        stages.append(figures["stages"])
        return float(1 / figures["images_per_second"])

    stages: list[dict[str, float]] = []
    seconds: dict[str, list[float]] = {"pure": [], "whole": []}
    ways: dict[str, Callable[[], float]] = {"pure": pure, "whole": whole}
    for number in range(given["rounds"]):
        for name in ways if number % 2 == 0 else reversed(ways):
            seconds[name].append(ways[name]())
    shares = [w / p - 1 for w, p in zip(seconds["whole"], seconds["pure"], strict=True)]
    return {
        "overhead": statistics.median(shares),
        "overheads": shares,
        **{f"{name}_ms": 1e3 * statistics.median(values) for name, values in seconds.items()},
        "stages": stages[-1],
        "images": count * size,
    }


def run_memory(given: dict[str, Any]) -> dict[str, Any]:
    """Sample the resident memory of this process and its workers while it extracts."""
    import psutil

    import trunkline
    from trunkline.preprocessing import IMAGENET

    work = Path(given["work"])
    runner = trunkline.load_runner(given["runner"])
    process = psutil.Process()
    samples: dict[int, list[tuple[int, int]]] = {mark: [] for mark in MARKS}

    def note(progress: Any) -> None:
        for mark in MARKS:
            if mark - WINDOW <= progress.images <= mark:
                workers = sum(one.memory_info().rss for one in process.children(recursive=True))
                samples[mark].append((process.memory_info().rss, workers))

    began = time.perf_counter()
    report = trunkline.extract(
        given["src"],
        emptied(work / "memory.parquet"),
        runner,
        preprocessing=IMAGENET.with_size(SMALL),
        workers=2,
        progress=note,
    )
    return {
        "images": report.images,
        "failed": report.failed,
        "shards": report.shards,
        "seconds": time.perf_counter() - began,
        "marks": {
            str(mark): {
                "parent": statistics.median(parent for parent, _ in found),
                "workers": statistics.median(workers for _, workers in found),
                "samples": len(found),
            }
            for mark, found in samples.items()
            if found
        },
    }


def run_ray(given: dict[str, Any]) -> dict[str, Any]:
    """Extract the same images here and on Ray with two workers, in turns."""
    import ray

    import trunkline

    src, out = Path(given["src"]), Path(given["out"])
    runner = trunkline.load_runner(given["runner"])
    seconds: dict[str, list[float]] = {"local": [], "ray": [], "init": []}

    def local() -> float:
        return float(extracted(src, out, runner, shard_size=given["shard_size"])["seconds"])

    def on_ray() -> float:
        began = time.perf_counter()
        ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
        seconds["init"].append(time.perf_counter() - began)
        began = time.perf_counter()
        report = trunkline.extract(
            src, emptied(out), runner, shard_size=given["shard_size"], engine="ray", threads=1
        )
        if not report.complete:
            raise SystemExit(f"Ray left {report.shards_missing} shards")
        elapsed = time.perf_counter() - began
        ray.shutdown()
        return elapsed

    ways: dict[str, Callable[[], float]] = {"local": local, "ray": on_ray}
    for number in range(given["rounds"]):
        for name in ways if number % 2 == 0 else reversed(ways):
            seconds[name].append(ways[name]())
    return {"seconds": seconds, "shard_size": given["shard_size"]}


def run_batch(given: dict[str, Any]) -> dict[str, Any]:
    """Time one network at several batch sizes, in turns."""
    import numpy as np

    from trunkline.runtimes.timing import take_turns

    runs: dict[str, Callable[[], object]] = {}
    for batch in BATCHES:
        folder = Path(given["work"], f"batch{batch}")
        runner = build_runner(
            given["backbone"], "fp32", (batch, 224, 224), folder, Path(), given["runtime"]
        )
        pixels = np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), dtype=np.uint8)
        runs[str(batch)] = lambda runner=runner, pixels=pixels: runner(pixels)  # type: ignore[misc]
    seconds = take_turns(runs, given["rounds"])
    return {
        name: statistics.median(int(name) / one for one in values)
        for name, values in seconds.items()
    }


def run_bookkeeping(given: dict[str, Any]) -> dict[str, Any]:
    """Time the listing of a long text list, and the reading of many records."""
    from dataclasses import replace

    from trunkline.extraction.plan import Plan
    from trunkline.extraction.sources import source_of
    from trunkline.extraction.store import Store

    work = Path(given["work"])
    names = work / "names.txt"
    lines = (f"s3://bucket/part{number // 1000:06d}/{number:09d}.jpg\n" for number in range(LINES))
    names.write_text("".join(lines), encoding="utf-8")
    shutil.rmtree(work / "plan", ignore_errors=True)
    plan = Plan(work / "plan", source_of(names), 10_000)
    began = time.perf_counter()
    while plan.extend():
        pass
    listed = LINES / (time.perf_counter() - began)
    record = next(Store(given["store"]).records())
    many = Store(emptied(work / "records.parquet"))
    many.create_folders()
    for shard in range(RECORDS):
        many.write_record(replace(record, shard=shard))
    began = time.perf_counter()
    count = sum(1 for _ in many.records())
    seconds = time.perf_counter() - began
    return {"listed_per_second": listed, "records_1000_seconds": 1000 * seconds / count}


RUNS = {
    "bookkeeping": run_bookkeeping,
    "prepare": prepare,
    "extract": run_extract,
    "overhead": run_overhead,
    "memory": run_memory,
    "ray": run_ray,
    "batch": run_batch,
}

if __name__ == "__main__":
    print("\n" + json.dumps(RUNS[sys.argv[1]](json.loads(sys.argv[2]))))
