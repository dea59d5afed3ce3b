"""docs/gpu-benchmarks.md, from the figures that gpu.py keeps.

Every number on the page comes from the figures; the targets are those of a later ``deploy`` for
cards, which these networks by hand are the baseline of.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from extract_page import table
from gpu_networks import AMP, FP32, STEPS, WAYS

from trunkline.outputs import written_whole

Figures = dict[str, Any]
BATCH_1, BATCH_128, BEST_CELL, BEST_MEDIAN = 8.0, 2.7, 1.0, 1.1
PEAK_SHARE, PHOTOS, PHOTOS_SHARE, EXACT, TRAIN = 0.6, 5.0, 0.8, 1.3, 1.3
NO = "–"
TRIAL = "This is a trial: it shows that everything runs, and no figure counts."
_SPEED_COLUMNS = [
    "cell",
    "trunkline's best",
    "best on timm's network",
    "images/s",
    "TFLOP/s",
    "× timm fp32",
    "× timm amp",
    "× best",
    "clock after",
]


def write_page(page: Path, figures: Figures) -> None:
    """Write the page."""
    parts: dict[str, Callable[[Figures], str]] = {
        "peak": _peak,
        "layers": _layers,
        "photos": _photos,
        "training": _training,
        "safety": _safety,
    }
    texts = [_head(figures), summary(figures), _left_out(figures), _speed(figures["cells"])]
    texts += [part(figures) for name, part in parts.items() if name in figures]
    texts += [_fidelity(figures), _method(figures)]
    with written_whole(page) as path:
        path.write_text("\n\n".join(text for text in texts if text) + "\n", encoding="utf-8")


def _head(figures: Figures) -> str:
    setting = dict(figures["setting"])
    versions = ", ".join(f"{name} {number}" for name, number in setting.pop("versions").items())
    lines = [f"- **{name}**: {value}" for name, value in setting.items()]
    trial = "" if not figures["trial"] else f"\n\n**{TRIAL}**"
    return (
        f"# Backbones on a graphics card, by hand{trial}\n\nThese are networks that were moved to "
        "a card, folded, narrowed, compiled and captured by hand with today's public API. They are "
        "not `deploy`, which computes on the processor, nor anything else that trunkline does by "
        "itself: this page is the baseline that support for cards has to start from.\n\nWritten "
        "by `tools/gpu_check.sh` (benchmarks/gpu.py); nothing on this page is typed by hand. The "
        "figures are in [gpu-benchmarks.json](gpu-benchmarks.json).\n\n"
        + "\n".join([*lines, f"- **versions**: {versions}", f"- **command**: {_command(figures)}"])
    )


def _command(figures: Figures) -> str:
    return f"`{figures['command']}`"


def _left_out(figures: Figures) -> str:
    reasons = {**figures["skipped"], **{k: f"failed: {v}" for k, v in figures["failed"].items()}}
    lines = [f"- {name}: {why}" for name, why in reasons.items()]
    return "## Left out\n\n" + "\n".join(lines) if lines else ""


def summary(figures: Figures) -> str:
    """Return the table of what a later ``deploy`` must reach, and what is had by hand today."""
    rows: list[list[str]] = []

    def add(what: str, wanted: float, values: list[float], unit: str = "×") -> None:
        if not values:
            rows.append([what, _number(wanted, unit), "not measured", ""])
            return
        median, least = statistics.median(values), min(values)
        told = _number(median, unit)
        if len(values) > 1:
            told += f" ({_number(least, unit)} to {_number(max(values), unit)})"
        rows.append([what, _number(wanted, unit), told, "yes" if least >= wanted else "**no**"])

    cells = figures["cells"]
    best = [row["against_best"] for row in cells.values() if row["against_best"]]
    shares = [s for row in cells.values() for s in row["peak_shares"].items()]
    ours = [share for label, share in shares if label.startswith("trunkline")]
    add("trunkline's best against timm amp, batch 1", BATCH_1, _ratios(cells, "@1x224"))
    add("the same, batch 128", BATCH_128, _ratios(cells, "@128x224"))
    add("against the best on timm's network, in every cell", BEST_CELL, best)
    add("the same, median", BEST_MEDIAN, [statistics.median(best)] if best else [])
    add("share of the convolution peak, resnet50@128x224", PEAK_SHARE, sorted(ours)[-1:], "%")
    speeds = figures.get("photos", {}).get("speeds", {})
    rate = {label: one["images_per_s"] for label, one in speeds.items()}
    script, card = rate.get("timm with a DataLoader"), rate.get("decoded on the card")
    exact, slower = rate.get("exact decoding in a DataLoader"), _slower(rate)
    add("photos decoded on the card, against the usual script", PHOTOS, _over(card, script))
    add("the same, of the slower of decoder and network", PHOTOS_SHARE, _over(card, slower), "%")
    add("exact decoding, against the usual script", EXACT, _over(exact, script))
    trained = figures.get("training", {}).get("against_timm", {}).get(STEPS[-1].label)
    add("training step against timm's amp", TRAIN, [trained] if trained else [])
    trial = "" if not figures["trial"] else f"**{TRIAL}**\n\n"
    return (
        "## By hand, and what `deploy` for cards must reach\n\n"
        f"{trial}Medians over the cells, and the range; the last column says whether every cell "
        "has it already. trunkline's best is the fastest of its ways in that cell.\n\n"
        + table(["what", "wanted", "by hand today", "reached"], rows, left=2)
    )


def _number(value: float, unit: str) -> str:
    return f"{value:.0%}" if unit == "%" else f"{value:.2f}{unit}"


def _ratios(cells: Figures, ending: str) -> list[float]:
    return [
        row["against_amp"][row["best"]]
        for name, row in cells.items()
        if name.endswith(ending) and row["against_amp"]
    ]


def _over(one: float | None, other: float | None) -> list[float]:
    return [one / other] if one and other else []


def _slower(rate: dict[str, float]) -> float | None:
    parts = [rate.get("network alone"), rate.get("decoder alone")]
    return min(float(part) for part in parts if part) if all(parts) else None


def _speed(cells: Figures) -> str:
    labels = [w.label for w in WAYS if any(w.label in row["runs"] for row in cells.values())]
    if not cells:
        return ""
    times, speeds, missing = [], [], Figures()
    for name, row in cells.items():
        runs = row["runs"]
        times.append([name, *(f"{runs[n]['median_ms']:.3f}" if n in runs else NO for n in labels)])
        best, by_hand, ratio = row["best"], row["best_by_hand"], row["against_best"]
        amp, fp32 = row["against_amp"], runs.get(FP32)
        rate = row["batch"] / runs[best]["median_ms"] * 1e3
        speeds.append(
            [
                name,
                best.removeprefix("trunkline "),
                (by_hand or NO).removeprefix("timm "),
                f"{rate:,.0f}".replace(",", " "),
                f"{row['operations'] / runs[best]['median_ms'] / 1e9:.1f}",
                f"{fp32['median_ms'] / runs[best]['median_ms']:.2f}" if fp32 else NO,
                f"{amp[best]:.2f}" if best in amp else NO,
                f"{ratio:.2f}" if ratio else NO,
                row["clocks"].get("clocks.sm", NO),
            ]
        )
        missing |= row["missing"]
    notes = "".join(f"\n\n{label} took no part everywhere: {why}" for label, why in missing.items())
    return (
        "## Speed\n\nMilliseconds, medians; a cell is backbone@images×side. amp is autocast to "
        "fp16 around an fp32 network, half a network in fp16, frozen the compiler's own folding; "
        "where nothing else is said, networks run eagerly and NCHW.\n\n"
        + table(["cell", *labels], times)
        + "\n\nThe fastest of trunkline's ways against timm's; ratios are medians of neighbours, "
        "that to fp32 is one of medians. TFLOP/s count the convolutions.\n\n"
        + table(
            _SPEED_COLUMNS,
            speeds,
            left=3,
        )
        + notes
    )


def _peak(figures: Figures) -> str:
    peak = figures["peak"]
    rows = [[name, f"{speed:.1f}"] for name, speed in peak["tried"].items()]
    shares = [
        [label, f"{share:.0%}"]
        for row in figures["cells"].values()
        for label, share in row["peak_shares"].items()
    ]
    text = (
        f"## The card's own limits\n\nHalf precision, NHWC, three convolutions in a row; the "
        f"fastest, {peak['convolution']}, is the peak: {peak['tflops']:.1f} TFLOP/s. A product of "
        f"large matrices reaches {peak['matmul_tflops']:.1f} TFLOP/s, a large copy "
        f"{peak['bytes_per_s'] / 1e12:.2f} TB/s, read and written.\n\n"
        + table(["convolution", "TFLOP/s"], rows)
    )
    if shares:
        text += (
            "\n\nThe peak took its turns in the cell below, and shares are medians of "
            "neighbours:\n\n" + table(["resnet50, 128 images", "of the peak"], shares)
        )
    return text


def _layers(figures: Figures) -> str:
    found, peak = figures["layers"], figures.get("peak")
    whole = found["network_ms"]
    rows = []
    for one in found["layers"]:
        speed = one["operations"] / one["ms"] / 1e9
        bound = one["moved_bytes"] / peak["bytes_per_s"] * 1e3 if peak else None
        rows.append(
            [
                one["first"],
                one["convolution"],
                str(one["count"]),
                f"{one['ms']:.3f}",
                f"{one['ms'] / whole:.1%}",
                f"{speed:.1f}",
                f"{speed / peak['tflops']:.0%}" if peak else NO,
                f"{bound / one['ms']:.0%}" if bound else NO,
            ]
        )
    total = sum(one["ms"] for one in found["layers"])
    columns = ["first", "convolution", "times", "ms", "of the network", "TFLOP/s", "of peak"]
    return (
        f"## Where the time of {found['cell']} goes\n\nThe folded, compiled half network with a "
        f"CUDA graph takes {whole:.3f} ms. Its convolutions, each distinct one timed by itself, "
        f"without its bias and as often as it occurs, take {total:.3f} ms ({total / whole:.0%}). "
        "The last column is the share of its time that a layer would take if it only read and "
        "wrote its inputs, weights and outputs as fast as a large copy.\n\n"
        + table([*columns, "of its bytes"], rows, left=2)
        + _kernels(found["kernels"])
    )


def _kernels(found: Figures) -> str:
    every = sum(found["kinds"].values()) or 1.0
    kinds = [[kind, f"{ms:.3f}", f"{ms / every:.1%}"] for kind, ms in found["kinds"].items()]
    longest = [
        [f"`{one['name'][:70]}`", one["kind"], f"{one['ms']:.3f}"] for one in found["longest"]
    ]
    return (
        "\n\nThe same network, its kernels as PyTorch's profiler times them, per run:\n\n"
        + table(["kind", "ms", "share"], kinds)
        + "\n\n"
        + table(["kernel", "kind", "ms"], longest, left=2)
    )


def _photos(figures: Figures) -> str:
    found = figures["photos"]
    load = found["load"]
    rows = [
        [label, f"{one['images_per_s']:,.0f}".replace(",", " "), _seconds(one["first_batch_s"])]
        for label, one in found["speeds"].items()
    ]
    text = (
        f"## From JPEGs to vectors\n\nresnet50, four levels averaged, vectors on the processor; "
        f"JPEGs of {load['width']}×{load['height']} in memory (gradients and noise, "
        f"{found['jpeg_bytes'] / 1e3:.0f} kB), {load['batch']} at once. The usual script is timm "
        f"in autocast behind a DataLoader with {load['workers']} workers, pinned memory and timm's "
        "own transform; what its workers had prefetched is not counted. On the card are "
        "`torchvision.io.decode_jpeg`, an antialiased resize to 256, a crop of 224² and the "
        "folded, compiled half network with a CUDA graph.\n\n"
        + table(["", "images/s", "first batch, s"], rows)
    )
    text += "".join(f"\n\n{label} was not measured: {why}" for label, why in missing(found).items())
    if "agreement" not in found:
        return text
    one = found["agreement"]
    levels = [
        [what, *(f"{lv['cosine']:.7f} / {lv['max_relative']:.1e}" for lv in one[key])]
        for what, key in (
            ("pixels of the card, fp32", "decoding"),
            ("pixels of the card, half network", "decoding_and_half"),
        )
    ]
    return (
        text + f"\n\nPixels of the card differ from Pillow's by at most {one['most_of_255']:.1f} "
        f"of 255, on average {one['mean_of_255']:.2f}. Averages over the maps of {one['images']} "
        "photos against the exact path in fp32, cosine and largest relative difference:\n\n"
        + table(["", "stride 4", "stride 8", "stride 16", "stride 32"], levels)
    )


def missing(found: Figures) -> dict[str, str]:
    """Return what took no part, and why."""
    return dict(found.get("missing", {}))


def _seconds(value: float | None) -> str:
    return NO if value is None else f"{value:.1f}"


def _training(figures: Figures) -> str:
    found = figures["training"]
    rows = [
        [
            label,
            f"{one['median_ms']:.2f}",
            f"{found['against_timm'][label]:.2f}" if label in found["against_timm"] else NO,
        ]
        for label, one in found["runs"].items()
    ]
    notes = "".join(f"\n\n{label} took no part: {why}" for label, why in missing(found).items())
    return (
        f"## A training step\n\n{found['cell']}: forward, backward and a step of SGD with "
        "momentum, autocast to bf16; the loss is the mean square of all four maps.\n\n"
        + table(["", "ms", f"× {AMP}"], rows)
        + notes
    )


def _safety(figures: Figures) -> str:
    rows = [[what, told.replace("|", "\\|")] for what, told in figures["safety"].items()]
    return "## What the verbs do with a backbone on a card\n\n" + table(
        ["", "what happens"], rows, left=2
    )


def _fidelity(figures: Figures) -> str:
    strides = ["stride 4", "stride 8", "stride 16", "stride 32"]
    rows = []
    for way in WAYS:
        told = [row["fidelity"].get(way.label) for row in figures["cells"].values()]
        if found := [levels for levels in told if levels]:
            worst = [_worst(levels) for levels in zip(*found, strict=True)]
            rows.append([way.label, str(len(found)), *worst])
    text = ""
    if rows:
        text = (
            "## Agreement\n\nMaps of every way against trunkline's eager fp32 ones on the same "
            "device, TF32 off: the least cosine of all its cells, and the largest difference as a "
            "share of the largest value. Weights are random, norms hold the statistics of the "
            "photos.\n\n" + table(["way", "cells", *strides], rows)
        )
    if "processor" in figures:
        others = [
            [name, *(_worst([level]) for level in levels)]
            for name, levels in figures["processor"].items()
        ]
        text += "\n\nEager fp32 on the card against the processor's maps:\n\n" + table(
            ["backbone", *strides], others
        )
    return text.strip()


def _worst(levels: Sequence[Figures]) -> str:
    cosine = min(one["cosine"] for one in levels)
    return f"{cosine:.7f} / {max(one['max_relative'] for one in levels):.1e}"


def _method(figures: Figures) -> str:
    took = ", ".join(f"{name} {seconds:.0f}" for name, seconds in figures["seconds"].items())
    return (
        "## How\n\nOne process, turns (A B C, C B A, …), CUDA events. A turn is one run outside "
        "the clock, then as many as take about 4 ms, 20 at most, whose mean counts; images are on "
        "the card in the layout and the precision that a way wants, and a CUDA graph first copies "
        "them into its own. fp32 is without TF32; cuDNN looks for its fastest kernels "
        "(`cudnn.benchmark`); `torch.compile` with `fullgraph` for one shape, in its default mode. "
        "Its kernels are compiled by several processes beforehand, into a cache of this run. "
        f"Seconds that the sections took: {took}."
    )
