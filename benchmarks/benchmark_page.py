"""docs/benchmarks.md and its plots, from the figures that deploy.py and startup.py keep.

Every number on the page comes from the figures; the targets are those of TARGETS.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmark_plots import plot_cells

from trunkline.outputs import written_whole
from trunkline.runtimes.fidelity import MAX_RELATIVE, MIN_COSINE

AGAINST_TIMM = {"fp32": 2.0, "bf16": 4.0, "int8": 6.0}  # median over the cells
BEST_EVERYWHERE, BEST_MEDIAN = 1.0, 1.05
PEAK_SHARE = {"fp32": 0.9, "bf16": 0.8}
PEAK_CELL = "resnet50@8x224"
START_FASTER, START_GIB = 10.0, 0.3
NUM_CELLS = 15
SLOWEST = 8  # layers of a profile that the page shows
HAND = ("OpenVINO by hand", "ONNX Runtime by hand", "inductor by hand")
Row = dict[str, Any]


def write_page(page: Path, figures: Row) -> None:
    """Write the page and its plots.

    Args:
        page: Where to; plots go into the folder of the same name beside it.
        figures: What ``deploy.py`` and ``startup.py`` kept.
    """
    cells: dict[str, Row] = figures["cells"]
    parts = [_head(figures), _summary(cells, figures.get("startup"))]
    if cells:
        folder = page.with_suffix("")
        plot_cells(folder, cells, list(AGAINST_TIMM))
        parts += [_speed(cells, folder.name), _others(cells), _fidelity(cells)]
    if "profiles" in figures:
        parts.append(_profiles(figures["profiles"]))
    if "startup" in figures:
        parts.append(_startup(figures["startup"]))
    parts.append(_method(cells))
    with written_whole(page) as path:
        path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def kept(page: Path) -> dict[str, Any]:
    """Return the figures beside a page; an empty collection where there is none yet."""
    path = page.with_suffix(".json")
    if not path.exists():
        return {"cells": {}}
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return figures


def keep(page: Path, figures: dict[str, Any]) -> None:
    """Write the figures beside their page."""
    with written_whole(page.with_suffix(".json")) as path:
        path.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _table(columns: list[str], rows: Iterable[list[str]], *, left: int = 1) -> str:
    rule = ["---"] * left + ["--:"] * (len(columns) - left)
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, rule, *rows))


def _head(figures: Row) -> str:
    settings = [row["setting"] for row in figures["cells"].values()]
    if "startup" in figures:
        settings.append(figures["startup"]["setting"])
    lines = [
        "# Benchmarks of deployed runners",
        "",
        "Written by `make bench-peers` (benchmarks/deploy.py) and benchmarks/startup.py; nothing "
        "on this page is typed by hand. The figures are in [benchmarks.json](benchmarks.json).",
        "",
    ]
    for name, value in (
        ("date", _distinct(one["date"] for one in settings)),
        ("processor", _distinct(one["processor"] for one in settings)),
        ("threads", _distinct(str(one["threads"]) for one in settings)),
        ("versions", _distinct(_versions(one["versions"]) for one in settings)),
        ("weights", _distinct(one["weights"] for one in settings)),
        ("last command", f"`{figures.get('command', '')}`"),
    ):
        lines.append(f"- **{name}**: {value}")
    return "\n".join(lines)


def _distinct(values: Iterable[str]) -> str:
    return "; ".join(sorted(set(values)))


def _versions(versions: Row) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _of(cells: dict[str, Row], precision: str, key: str) -> dict[str, float]:
    """Return one figure of every cell that has it."""
    found = {name: row["trunkline"].get(precision, {}).get(key) for name, row in cells.items()}
    return {name: value for name, value in found.items() if value is not None}


def _worst(cells: dict[str, Row], precision: str, key: str, pick: Callable[..., float]) -> float:
    return pick(
        level[key]
        for row in cells.values()
        for level in row["trunkline"].get(precision, {}).get("fidelity", [])
    )


def _summary(cells: dict[str, Row], startup: Row | None) -> str:
    rows = [
        *_against_timm(cells, "fp32"),
        *_against_best(cells),
        *_against_timm(cells, "bf16"),
        *_against_timm(cells, "int8"),
        *_peak(cells),
        *_start_rows(startup),
    ]
    text = f"## Targets\n\n{len(cells)} of {NUM_CELLS} cells are measured.\n\n"
    return text + _table(["what", "at least", "measured", ""], rows, left=2)


def _verdict(reached: bool) -> str:
    return "reached" if reached else "**not reached**"


def _against_timm(cells: dict[str, Row], precision: str) -> list[list[str]]:
    what = f"`deploy(auto, {precision})` against timm eager in fp32, median"
    wanted = AGAINST_TIMM[precision]
    ratios = _of(cells, precision, "against_timm")
    if not ratios:
        whys = {row["missing"].get(precision, "") for row in cells.values()} - {""}
        why = f"not measured: {'; '.join(sorted(whys))}" if whys else "not measured"
        return [[what, f"{wanted:.1f}×", why, ""]]
    median = statistics.median(ratios.values())
    spread = f"{median:.2f}× ({min(ratios.values()):.2f} to {max(ratios.values()):.2f})"
    rows = [[what, f"{wanted:.1f}×", spread, _verdict(median >= wanted)]]
    if precision in MAX_RELATIVE:
        worst, bound = _worst(cells, precision, "max_relative", max), MAX_RELATIVE[precision]
        text = f"largest relative difference of any level, {precision}"
        rows.append([text, f"≤ {bound:.0e}", f"{worst:.1e}", _verdict(worst <= bound)])
    else:
        worst, bound = _worst(cells, precision, "cosine", min), MIN_COSINE[precision]
        text = f"smallest cosine of any level, {precision}"
        rows.append([text, f"{bound}", f"{worst:.5f}", _verdict(worst >= bound)])
    return rows


def _against_best(cells: dict[str, Row]) -> list[list[str]]:
    ratios = _of(cells, "fp32", "against_best")
    if not ratios:
        return []
    least = min(ratios, key=lambda name: ratios[name])
    median = statistics.median(ratios.values())
    short = [name for name, ratio in ratios.items() if ratio < BEST_EVERYWHERE]
    told = f"{ratios[least]:.2f}× ({least})" + (f", {len(short)} cells below" if short else "")
    return [
        [
            "fp32 against the best by hand, in every cell",
            f"{BEST_EVERYWHERE:.1f}×",
            told,
            _verdict(not short),
        ],
        [
            "the same, median",
            f"{BEST_MEDIAN:.2f}×",
            f"{median:.2f}×",
            _verdict(median >= BEST_MEDIAN),
        ],
    ]


def _peak(cells: dict[str, Row]) -> list[list[str]]:
    rows = []
    for precision, wanted in PEAK_SHARE.items():
        share = _of(cells, precision, "peak_share").get(PEAK_CELL)
        measured = "not measured" if share is None else f"{share:.0%}"
        verdict = "" if share is None else _verdict(share >= wanted)
        what = f"share of the convolution peak, {PEAK_CELL}, {precision}"
        rows.append([what, f"{wanted:.0%}", measured, verdict])
    return rows


def _start_rows(startup: Row | None) -> list[list[str]]:
    what = "process start to first maps of a saved runner, against timm"
    if startup is None:
        return [[what, f"{START_FASTER:.0f}×", "not measured", ""]]
    ratio, gib = startup["ratio"], startup["trunkline"]["peak_bytes"] / 2**30
    return [
        [what, f"{START_FASTER:.0f}×", f"{ratio:.1f}×", _verdict(ratio >= START_FASTER)],
        [
            "peak resident memory of that process",
            f"≤ {START_GIB} GiB",
            f"{gib:.2f} GiB",
            _verdict(gib <= START_GIB),
        ],
    ]


def _ms(row: Row, label: str) -> str:
    return f"{row['runs'][label]['median_ms']:.1f}" if label in row["runs"] else "-"


def _speed(cells: dict[str, Row], folder: str) -> str:
    rows = []
    for name, row in cells.items():
        one = row["trunkline"].get("fp32")
        if one is None:
            rows.append([name, _ms(row, "timm"), *(_ms(row, tool) for tool in HAND), *("-" * 5)])
            continue
        share = one["peak_share"]
        rows.append(
            [
                name,
                _ms(row, "timm"),
                *(_ms(row, tool) for tool in HAND),
                _ms(row, "trunkline fp32"),
                one["runtime"],
                f"{one['against_timm']:.2f}",
                f"{one['against_best']:.2f}",
                f"{share:.0%}",
            ]
        )
    hand = [tool.removesuffix(" by hand") + ", by hand" for tool in HAND]
    columns = ["cell", "timm eager", *hand, "trunkline", "engine", "× timm", "× best", "of peak"]
    engines = _distinct(f"`{row['trunkline'][p]['runtime']}`" for row, p in _measured(cells))
    return (
        "## fp32\n\nMilliseconds, medians; a cell is backbone@images×side. × timm and × best are "
        "medians of the ratios of neighbours, best being whichever by hand comes closest in that "
        "cell. "
        f"`auto` chose {engines}.\n\n"
        f"{_table(columns, rows)}\n\n"
        f"![Speed against timm, per cell]({folder}/speed.png)\n\n"
        f"![Share of the convolution peak, per cell]({folder}/peak.png)"
    )


def _measured(cells: dict[str, Row]) -> list[tuple[Row, str]]:
    return [(row, "fp32") for row in cells.values() if "fp32" in row["trunkline"]]


def _others(cells: dict[str, Row]) -> str:
    rows = [
        [
            name,
            precision,
            _ms(row, f"trunkline {precision}"),
            one["runtime"],
            f"{one['against_timm']:.2f}",
            f"{row['runs']['trunkline fp32']['median_ms'] / row['runs'][label]['median_ms']:.2f}"
            if "trunkline fp32" in row["runs"]
            else "-",
            f"{min(level['cosine'] for level in one['fidelity']):.5f}",
        ]
        for name, row in cells.items()
        for precision, one in row["trunkline"].items()
        if precision != "fp32"
        for label in [f"trunkline {precision}"]
    ]
    reasons = sorted({f"{p}: {why}" for row in cells.values() for p, why in row["missing"].items()})
    text = "## bf16 and int8\n\n"
    if reasons:
        text += "\n".join(f"- not measured, {reason}" for reason in reasons) + "\n\n"
    columns = ["cell", "precision", "ms", "engine", "× timm fp32", "× own fp32", "least cosine"]
    return text + _table(columns, rows, left=2)


def _fidelity(cells: dict[str, Row]) -> str:
    strides = sorted(
        {
            level["stride"]
            for row in cells.values()
            for one in row["trunkline"].values()
            for level in one["fidelity"]
        }
    )
    rows = []
    for name, row in cells.items():
        for precision, one in row["trunkline"].items():
            by_stride = {level["stride"]: level for level in one["fidelity"]}
            rows.append(
                [
                    name,
                    precision,
                    *(
                        f"{by_stride[s]['max_relative']:.1e}"
                        if precision == "fp32"
                        else f"{by_stride[s]['cosine']:.5f}"
                        for s in strides
                    ),
                ]
            )
    return (
        "## Agreement with the eager backbone, on photos\n\nfp32: largest difference as a share of "
        "the largest value of the map. Others: cosine.\n\n"
        + _table(["cell", "precision", *(f"stride {s}" for s in strides)], rows, left=2)
    )


def _profiles(profiles: dict[str, list[Row]]) -> str:
    parts = [
        "## Where the time goes\n\nLayers as the engine's own profiler times them, on the graph of "
        "`deploy`; the share of the peak is each layer's own limit, fused layers included."
    ]
    for cell, found in profiles.items():
        for one in found:
            kinds = ", ".join(f"{kind} {share:.1%}" for kind, share in one["kinds"].items())
            rows = [
                [
                    layer["name"],
                    layer["kind"],
                    f"{layer['ms']:.2f}",
                    f"{layer['share']:.1%}",
                    "-" if layer["peak_share"] is None else f"{layer['peak_share']:.0%}",
                ]
                for layer in one["layers"][:SLOWEST]
            ]
            parts.append(
                f"**{cell} on {one['runtime']}**: {one['total_ms']:.1f} ms in "
                f"{one['num_layers']} layers, {one['peak_share']:.0%} of "
                f"{one['peak_gflops']:.0f} GFLOP/s. {kinds}.\n\n"
                + _table(["layer", "kind", "ms", "of the time", "of peak"], rows, left=2)
            )
    return "\n\n".join(parts)


def _startup(startup: Row) -> str:
    rows = [
        [
            name,
            f"{startup[name]['seconds']:.2f}",
            f"{startup[name]['p5_s']:.2f} to {startup[name]['p95_s']:.2f}",
            f"{startup[name]['peak_bytes'] / 2**20:.0f}",
        ]
        for name in ("trunkline", "timm")
    ]
    return (
        f"## From process start to first maps\n\n{startup['backbone']}, one image of "
        f"{startup['side']}², {startup['rounds']} rounds in turns, files in the page cache. "
        f"trunkline: `load_runner` of a runner saved on {startup['runtime']}, in a process that "
        "cannot import torch. timm: `create_model(features_only=True)` with a local safetensors "
        f"file. Ratio, median of neighbours: {startup['ratio']:.1f}×.\n\n"
        + _table(["", "seconds, median", "5 % to 95 %", "peak resident MiB"], rows)
    )


def _method(cells: dict[str, Row]) -> str:
    rounds = _distinct(str(row["setting"]["rounds"]) for row in cells.values()) or "no"
    found = [
        (row["runs"][f"peak {precision}"]["median_ms"], precision, peak)
        for row in cells.values()
        for precision, peak in row["peaks"].items()
    ]
    winners = _distinct(
        f"{precision}: {p['engine']}, {p['convolution']}" for _, precision, p in found
    )
    random = any(row["setting"]["weights"] == "none" for row in cells.values())
    return (
        "## How\n\n"
        f"One process per cell, {rounds} rounds in turns (A B C, C B A, …). A turn waits until "
        "the process is quiet, because workers of some engines keep a core busy after a run, then "
        "runs once without the clock and once with it. timm gets trunkline's weights. "
        + ("Weights are random: speed does not depend on them, agreement does. " if random else "")
        + "By hand "
        "means: `ov.convert_model` compiled for latency, `torch.onnx.export` and a session with "
        "default options, `torch.compile` with freezing, all on timm's network at fixed sizes. "
        "The convolution peak is the fastest of a handful of convolutions on all installed "
        "engines; it takes its turns like everybody else, and a share is a median of ratios of "
        "neighbours, operations counted as plain convolutions need them"
        + (f" (fastest were {winners}).\n\n" if winners else ".\n\n")
        + "Run it again with `make bench-peers`; `python benchmarks/deploy.py --cells NAME` "
        "measures some cells and keeps the others."
    )
