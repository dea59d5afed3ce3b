"""``trunkline bench``: how fast backbones run here, on which engine, against whom."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from trunkline.cli.completion import backbones
from trunkline.cli.loaded import fetch_saved
from trunkline.cli.output import print_json, print_table, say
from trunkline.errors import ConfigError

if TYPE_CHECKING:
    from trunkline.benchmarking.profile import Profile
    from trunkline.benchmarking.report import BenchReport, BenchRow

_SHAPE = re.compile(r"(\d+)[x,](\d+)[x,](\d+)")

_SURPRISE = 0.02  # by which a quotient of medians may differ from a median of ratios unsaid


def bench_command(  # one parameter per flag
    names: Annotated[
        list[str],
        typer.Argument(
            help="Backbones; `trunkline list` shows all. Or saved folders.",
            autocompletion=backbones,
        ),
    ],
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="NxHxW", help="Images, as 8x224x224 or 8,224,224. May be repeated."),
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="eager, auto, torch, inductor, onnxruntime or openvino. May be repeated. "
            "Default: eager and auto.",
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="fp32, bf16 or int8. May be repeated."),
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            metavar="LIBRARY,...",
            help="timm, torchvision, transformers: eager, with the same weights. "
            "Ratios are to the first.",
        ),
    ] = "",
    rounds: Annotated[
        int, typer.Option(metavar="N", min=1, help="Counted runs of each, in turns.")
    ] = 15,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Of every engine. Default: all cores.")
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            metavar="none|default|TAG|PATH|hf://...",
            help="A checkpoint; a classifier of yours is timed to its logits. none is a random "
            "network, the same in every run.",
        ),
    ] = "none",
    calibration: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Photos that int8 is calibrated with.")
    ] = None,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Instead: the 15 slowest layers against the convolution peak, by the profiler of "
            "onnxruntime or openvino.",
        ),
    ] = False,
    no_memory: Annotated[
        bool, typer.Option("--no-memory", help="Start no processes that measure memory.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Time backbones in turns: speed, share of the convolution peak, memory, agreement of maps."""
    from trunkline.benchmarking.bench import BenchConfig, bench
    from trunkline.benchmarking.profile import profile_runners

    given = {} if runtime is None else {"runtimes": tuple(runtime)}
    config = BenchConfig(
        shapes=tuple(parse_shape(text) for text in shape or ["1x224x224"]),
        precisions=tuple(precision or ["fp32"]),
        against=tuple(name for name in against.split(",") if name),
        rounds=rounds,
        threads=threads,
        weights=weights,
        calibration=calibration,
        memory=not no_memory,
        **given,
    )
    for name in names:
        fetch_saved(name)
    if profile:
        profiles = profile_runners(names, config, progress=_progress)
        if as_json:
            print_json([one.to_dict() for one in profiles])
        else:
            _print_profiles(profiles)
        return
    report = bench(names, config, progress=_progress)
    if as_json:
        print_json(report.to_dict())
    else:
        _print_report(report, names)


def parse_shape(text: str) -> tuple[int, int, int]:
    """Return N, H and W of a text such as ``"8x224x224"`` or ``"8,224,224"``.

    Raises:
        ConfigError: Anything else, or a zero.
    """
    match = _SHAPE.fullmatch(text)
    sizes = tuple(map(int, match.groups())) if match else (0, 0, 0)
    if min(sizes) < 1:
        raise ConfigError(
            f"--shape got {text!r}; give batch, height and width from 1 on, such as 8x224x224."
        )
    return sizes[0], sizes[1], sizes[2]


def _progress(what: str) -> None:
    if sys.stderr.isatty():
        say(f"measuring {what} ...")


def _print_report(report: BenchReport, names: list[str]) -> None:
    from trunkline.weights.opening import is_saved  # when the verb runs: it needs torch

    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    typer.echo(f"{report.date}, {report.processor}, {report.threads} threads")
    typer.echo(versions)
    for peak in report.peaks:
        typer.echo(
            f"convolution peak {peak.precision}: {peak.gflops:.0f} GFLOP/s "
            f"({peak.engine}, {peak.convolution})"
        )
    if report.weights == "none" and not all(is_saved(name) for name in names):
        which = " where a variant is named" if any(is_saved(name) for name in names) else ""
        typer.echo(f"weights: none, numbers are RANDOM and the same for all{which}")
    cells: dict[tuple[str, tuple[int, int, int]], list[BenchRow]] = {}
    for row in report.rows:
        cells.setdefault((row.backbone, row.shape), []).append(row)
    for (name, shape), rows in cells.items():
        to = ", to the logits" if any(_gives_logits(row) for row in rows) else ""
        typer.echo(f"\n{name} at {'x'.join(map(str, shape))}, {rows[0].rounds} rounds{to}")
        columns = ["", "median ms", "p5", "p95", "images/s", f"x {rows[0].runner}", "of peak"]
        columns += ["peak RSS MiB", "max rel. diff.", "min cosine"]
        print_table(columns, [_cells(row) for row in rows])
    typer.echo("\npeak RSS: of a process that loads the saved runner, or builds the network, and")
    typer.echo("runs it once. Differences: worst level, to the eager backbone.")
    for rows in cells.values():
        for row in rows[1:]:
            if _differs(rows[0], row):
                typer.echo(
                    f"x {rows[0].runner} of {row.runner} is the median of {row.rounds} ratios, "
                    f"each of two neighbours in time; the quotient of the medians, "
                    f"{rows[0].median_ms / row.median_ms:.2f}, also has what else the machine did "
                    "between them."
                )


def _gives_logits(row: BenchRow) -> bool:
    from trunkline.backbones.levels import LOGITS

    return any(level.level == LOGITS for level in row.fidelity)


def _differs(base: BenchRow, row: BenchRow) -> bool:
    """Say whether a reader who divides the medians is surprised by the ratio beside them."""
    return abs(base.median_ms / row.median_ms / row.ratio - 1) > _SURPRISE


def _cells(row: BenchRow) -> list[str]:
    missing = "-"
    return [
        row.runner,
        f"{row.median_ms:.2f}",
        f"{row.p5_ms:.2f}",
        f"{row.p95_ms:.2f}",
        f"{row.images_per_s:.1f}",
        f"{row.ratio:.2f}",
        missing if row.peak_share is None else f"{row.peak_share:.0%}",
        missing if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 2**20:.0f}",
        missing if row.max_relative is None else f"{row.max_relative:.1e}",
        missing if row.min_cosine is None else f"{row.min_cosine:.6f}",
    ]


def _print_profiles(profiles: list[Profile]) -> None:
    for one in profiles:
        size = "x".join(map(str, one.shape))
        typer.echo(f"{one.backbone} at {size}, {one.runtime} {one.precision}")
        typer.echo(
            f"{one.total_ms:.2f} ms in {one.num_layers} layers, {one.peak_share:.0%} of the "
            f"convolution peak ({one.peak_gflops:.0f} GFLOP/s)"
        )
        shares = ", ".join(f"{kind} {share:.1%}" for kind, share in one.kinds.items())
        typer.echo(f"by kind: {shares}\n")
        print_table(
            ["layer", "kind", "ms", "share", "GFLOP/s", "of peak"],
            [
                [
                    layer.name,
                    layer.kind,
                    f"{layer.ms:.3f}",
                    f"{layer.share:.1%}",
                    "-" if layer.gflops is None else f"{layer.gflops:.0f}",
                    "-" if layer.peak_share is None else f"{layer.peak_share:.0%}",
                ]
                for layer in one.layers
            ],
            left=2,
        )
        typer.echo("")
