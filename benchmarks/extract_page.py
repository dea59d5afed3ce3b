"""docs/extract-benchmarks.md, from the figures that extract.py keeps.

Every number on the page comes from the figures; the targets are those of TARGETS.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trunkline.outputs import written_whole

TARGETS = {"fp32": 2.5, "bf16": 4.0, "int8": 5.0}  # times the plain script
OVERHEAD, MEMORY, START, RAY = 0.35, 0.10, 2.0, 1.3
MIB = 2**20
BUSY = 1.0  # a load average above this at a section's begin means that others were at work
Figures = dict[str, Any]


def write_page(page: Path, kept: Figures) -> None:
    """Write the page.

    Args:
        page: Where to.
        kept: Section → its setting, command and figures.
    """
    found = {name: kept[name]["figures"] for name in _SECTIONS if name in kept}
    parts = [_head(kept), _summary(found), *(_SECTIONS[name](one) for name, one in found.items())]
    with written_whole(page) as path:
        path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def table(columns: list[str], rows: Iterable[list[str]], *, left: int = 1) -> str:
    """Return a Markdown table whose first ``left`` columns are texts."""
    rule = ["---"] * left + ["--:"] * (len(columns) - left)
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, rule, *rows))


def head_lines(kept: Figures, names: Iterable[str]) -> str:
    """Say when, where and with what the sections were measured."""
    parts = [kept[name] for name in names if name in kept]
    settings = [part["setting"] for part in parts]
    versions = (", ".join(f"{k} {v}" for k, v in one["versions"].items()) for one in settings)
    loads = [f"{name} {kept[name]['setting']['load']}" for name in names if name in kept]
    lines = {
        "date": _distinct(one["date"] for one in settings),
        "processor": _distinct(one["processor"] for one in settings),
        "versions": _distinct(versions),
        "commands": _distinct(f"`{part['command']}`" for part in parts),
        "load average when a section began": ", ".join(loads),
    }
    return "\n".join(f"- **{name}**: {text}" for name, text in lines.items())


def _head(kept: Figures) -> str:
    names = [name for name in kept if name != "plan"]
    busy = [name for name in names if kept[name]["setting"]["load"] > BUSY]
    text = (
        "# How fast extract is\n\nWritten by `make bench-extract` (benchmarks/extract.py); nothing "
        "on this page is typed by hand. The figures are in "
        "[extract-benchmarks.json](extract-benchmarks.json).\n\n" + head_lines(kept, names)
    )
    if missing := [name for name in _SECTIONS if name not in kept]:
        text += f"\n\nNot measured yet: {', '.join(missing)}."
    if busy:
        text += (
            f"\n\nThe load average counts what this program itself did before a section, and "
            f"other programs: at {', '.join(busy)} it was above {BUSY:.0f}. What is compared takes "
            "turns, so ratios suffer less than speeds do; measure again on a quiet machine before "
            "you rely on a speed."
        )
    return text


def _distinct(values: Iterable[str]) -> str:
    return "; ".join(sorted(set(values)))


def _verdict(reached: bool) -> str:
    return "reached" if reached else "**not reached**"


def _summary(found: Figures) -> str:
    rows: list[list[str]] = []
    peer = found.get("peer", {"ratios": {}, "missing": {}})
    for precision, wanted in TARGETS.items():
        what = f"images/s against the plain script, {precision}"
        if precision in peer["ratios"]:
            ratio = peer["ratios"][precision]["steady"]
            rows.append([what, f"≥ {wanted}×", f"{ratio:.2f}×", _verdict(ratio >= wanted)])
        else:
            why = peer["missing"].get(precision)
            told = f"not measurable: {why}" if why else "not measured yet"
            rows.append([what, f"≥ {wanted}×", told, ""])
    for precision, one in found.get("overhead", {}).items():
        share = one["overhead"]
        what = f"decoding and writing over pure inference, {precision}"
        rows.append([what, f"≤ {OVERHEAD:.0%}", f"{share:.0%}", _verdict(share <= OVERHEAD)])
    if "memory" in found:
        grown = _growth(found["memory"])
        what = "largest change of the resident memory after 1 000 images"
        rows.append([what, f"≤ {MEMORY:.0%}", f"{grown:.1%}", _verdict(grown <= MEMORY)])
    for name, seconds in found.get("start", {}).items():
        what = f"process start to first numbers: {name}"
        rows.append([what, f"≤ {START:.0f} s", f"{seconds:.2f} s", _verdict(seconds <= START)])
    if "ray" in found:
        ratio = _ray_ratio(found["ray"])
        what = "Ray with two workers, time against the local engine"
        rows.append([what, f"≤ {RAY}×", f"{ratio:.2f}×", _verdict(ratio <= RAY)])
    return "## Targets\n\n" + table(["what", "target", "measured", ""], rows, left=2)


def _peer(found: Figures) -> str:
    rows = []
    for name, one in found["runs"].items():
        ratio = found["ratios"].get(name)
        rows.append(
            [
                f"trunkline {name}" if ratio else f"plain script, {name.split()[1]} workers",
                one["runtime"] or "PyTorch eager",
                f"{one['images_per_second']:.1f}",
                f"{one['least']:.1f} to {one['most']:.1f}",
                f"{one['first_seconds']:.1f}",
                f"{one['whole_seconds']:.1f}",
                f"{ratio['steady']:.2f}" if ratio else "",
                f"{ratio['whole']:.2f}" if ratio else "",
            ]
        )
    columns = ["", "engine", "images/s", "of rounds", "first s", "all s", "×", "× with start"]
    missing = "".join(f"\n\n{p} was not measured: {why}." for p, why in found["missing"].items())
    return (
        f"## Against a plain script\n\nresnet50, four levels averaged, {found['images']} JPEGs of "
        "500×375 a run, every run a process of its own, files in the page cache. The plain script "
        "is benchmarks/extract_peer.py: timm's `features_only` network in eager mode, timm's "
        "transform, a DataLoader with batches of 32, the mean of every map, `np.save` at the end. "
        'trunkline is `extract` with a saved runner (`runtime="auto"`, batches of 8) and writes '
        "a Parquet store, synced, with SHA-256 of every file. Images/s leave out everything until "
        "the first batch is computed; first s is that time, all s the whole process. × is the "
        "median over the rounds of the ratio to the better plain script of the round; × with start "
        "is the same of whole processes.\n\n" + table(columns, rows, left=2) + missing + "\n\n"
        "No pipeline can be faster than its network: what `deploy` gains over eager on this "
        "processor, in [benchmarks.md](benchmarks.md), bounds these ratios. Without int8 dot "
        "products (VNNI, AMX) int8 gains little, see [precision.md](precision.md)."
    )


def _overhead(found: Figures) -> str:
    rows = [
        [
            precision,
            f"{one['pure_ms']:.1f}",
            f"{one['whole_ms']:.1f}",
            f"{one['overhead']:.0%}",
            ", ".join(f"{share:.0%}" for share in one["overheads"]),
            *(f"{one['stages'][name]:.1f}" for name in _STAGES),
        ]
        for precision, one in found.items()
    ]
    columns = ["", "pure, ms/image", "extract, ms/image", "more", "of rounds", *_STAGES]
    return (
        "## Decoding and writing over pure inference\n\nThe same runner, in the same process, in "
        "turns: over pixels that are in memory already, and in `extract` after its first batch. "
        "With two cores, both of which the network uses, decoding in a worker has no core of its "
        "own: its time shows nearly in full. The last columns are seconds of the last round by "
        "stage; read and decode are the worker's, write is the writer's, wait is what the network "
        "waited for pixels.\n\n" + table(columns, rows)
    )


_STAGES = ("read", "decode", "wait", "compute", "pool", "write")


def _total(mark: Figures) -> float:
    return float(mark["parent"] + mark["workers"])


def _growth(found: Figures) -> float:
    first, *others = (_total(one) for one in found["marks"].values())
    return max((abs(one / first - 1) for one in others), default=0.0)


def _memory(found: Figures) -> str:
    first = next(iter(found["marks"].values()))
    rows = [
        [
            f"{int(mark):,}".replace(",", " "),
            f"{one['parent'] / MIB:.0f}",
            f"{one['workers'] / MIB:.0f}",
            f"{_total(one) / MIB:.0f}",
            f"{_total(one) / _total(first) - 1:+.1%}",
        ]
        for mark, one in found["marks"].items()
    ]
    return (
        f"## Memory\n\nOne run over {found['images']} images (1 000 files, each listed twenty "
        f"times), resnet18 at 64×64, two workers, {found['seconds']:.0f} s. Resident MiB, medians "
        "of the samples of the last 400 images before each mark; what processes share is counted "
        "in each of them.\n\n"
        + table(["images", "parent", "workers", "together", "since the first"], rows)
    )


def _start(found: Figures) -> str:
    rows = [[name, f"{seconds:.2f}"] for name, seconds in found.items()]
    return (
        "## From process start to first numbers\n\n`trunkline extract` on resnet50, the whole "
        "process less what its report says came after the first batch (the exit of the process "
        "counts in). The saved runner is a folder of `trunkline deploy --preprocess`, given as "
        "`--backbone DIR`; the backbone is `--backbone resnet50 --weights none`, with the decision "
        "of `auto` remembered. A backbone by name imports PyTorch, builds the network and converts "
        "it for the engine; a resumed store has its runner already, but the network is built all "
        "the same, because its tensors are part of the fingerprint that is compared.\n\n"
        + table(["", "seconds"], rows)
    )


def _ray_ratio(found: Figures, *, with_init: bool = False) -> float:
    seconds = found["seconds"]
    added = seconds["init"] if with_init else [0.0] * len(seconds["ray"])
    ratios = (
        (ray + more) / local
        for ray, more, local in zip(seconds["ray"], added, seconds["local"], strict=True)
    )
    return float(statistics.median(ratios))


def _ray(found: Figures) -> str:
    seconds = found["seconds"]
    rows = [
        [name, *(f"{one:.1f}" for one in seconds[key])]
        for name, key in (
            ("local engine", "local"),
            ("Ray, two workers of one core", "ray"),
            ("`ray.init` before that", "init"),
        )
    ]
    rounds = [f"round {number + 1}, s" for number in range(len(seconds["ray"]))]
    return (
        f"## Ray\n\nThe same images and runner, shards of {found['shard_size']}, on one machine, "
        "in turns. Ray's time includes the start of its actors, each of which imports, loads the "
        "runner and starts a decoder; that is paid once, so a longer run comes closer to 1. Time "
        f"against the local engine: {_ray_ratio(found):.2f}×, with `ray.init` "
        f"{_ray_ratio(found, with_init=True):.2f}×.\n\n" + table(["", *rounds], rows)
    )


def _batch(found: Figures) -> str:
    speeds = found["speeds"]
    best = max(speeds.values())
    rows = [[name, f"{one:.1f}", f"{one / best:.0%}"] for name, one in speeds.items()]
    return (
        f"## Batch size\n\nresnet50 alone on {found['runtime']}, fp32, a runner for each batch "
        "size, in turns, medians. `extract` takes four images per thread (8 on two cores).\n\n"
        + table(["batch", "images/s", "of the best"], rows)
    )


_SECTIONS = {
    "peer": _peer,
    "overhead": _overhead,
    "memory": _memory,
    "start": _start,
    "ray": _ray,
    "batch": _batch,
}
