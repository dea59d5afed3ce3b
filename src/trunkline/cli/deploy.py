"""``trunkline deploy``: a backbone on the engine that suits the machine, and why that one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from trunkline.cli.bench import parse_shape
from trunkline.cli.completion import backbones
from trunkline.cli.features import parse_levels
from trunkline.cli.loaded import (
    AgreeOption,
    PrefixOption,
    SeedOption,
    WeightsOption,
    build_network,
    print_report,
    report_as_dict,
    warn_of_assumed,
    warn_of_random,
)
from trunkline.cli.output import one_line, print_json, print_table, say
from trunkline.errors import ConfigError

if TYPE_CHECKING:
    from trunkline.runtimes.runner import Runner
    from trunkline.runtimes.selection import Decision


def deploy_command(  # one parameter per flag
    name: Annotated[
        str,
        typer.Argument(
            autocompletion=backbones,
            help="Of the backbone; `trunkline list` shows all. Or a saved folder, hf://...",
        ),
    ],
    runtime: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="auto (the fastest here), onnxruntime, openvino, inductor or torch.",
        ),
    ] = "auto",
    precision: Annotated[str, typer.Option(metavar="fp32|bf16|int8", help="Of numbers.")] = "fp32",
    shape: Annotated[
        str | None,
        typer.Option(metavar="NxHxW", help="Of all images, such as 8x224x224. Default: any."),
    ] = None,
    preprocess: Annotated[
        bool, typer.Option("--preprocess", help="Take 8-bit RGB pictures and normalise inside.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Of one call. Default: all cores.")
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(metavar="DIR", help="Photos that int8 is fitted to.")
    ] = None,
    levels: Annotated[
        str | None,
        typer.Option(
            metavar="INDEX...",
            help="Which maps, in this order: 0 1 2 3 are strides 4 8 16 32. Default: all, or "
            "those that were saved.",
        ),
    ] = None,
    weights: WeightsOption = "none",
    prefix: PrefixOption = None,
    seed: SeedOption = 0,
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Save the runner; trunkline.load_runner(DIR) opens it."),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show what auto decided from, engine by engine.")
    ] = False,
    remeasure: Annotated[
        bool, typer.Option("--remeasure", help="Do not use an earlier decision of auto.")
    ] = False,
    allow_noncommercial: AgreeOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Put a backbone on the fastest engine of this machine, checked against the backbone."""
    if runtime != "auto" and (explain or remeasure):
        raise ConfigError(
            f"--explain and --remeasure are for --runtime auto, got {runtime}; leave one out."
        )
    input_shape = None if shape is None else parse_shape(shape)
    return_idx = None if levels is None else parse_levels(levels)
    from trunkline.runtimes.deployment import deploy  # when the verb runs: it needs torch

    network = build_network(
        name,
        weights,
        return_idx,
        seed=seed,
        allow_noncommercial=allow_noncommercial,
        prefix=prefix,
        classifier=True,
    )
    if runtime == "auto":
        say("Measuring engines unless that was done before; it can take minutes.")
    runner = deploy(
        network,
        runtime,
        precision,
        input_shape,
        preprocess,
        threads,
        calibration,
        remeasure=remeasure,
    )
    if out is not None:
        runner.save(out)
    if network.load_report is None:
        warn_of_random(seed, on_stderr=as_json)
    warn_of_assumed(network)
    if as_json:
        loaded = None if network.load_report is None else report_as_dict(network.load_report)
        print_json({**_as_dict(runner), "loaded": loaded, "out": out})
        return
    if network.load_report is not None:
        print_report(network.load_report)
    _print_runner(runner, explain=explain)
    if out is not None:
        typer.echo(f"\nsaved     {one_line(out)}")


def _as_dict(runner: Runner) -> dict[str, Any]:
    return {
        **runner.spec.to_dict(),
        "fidelity": [one.to_dict() for one in runner.fidelity],
        "provenance": runner.provenance,
        "decision": None if runner.decision is None else runner.decision.to_dict(),
    }


def _print_runner(runner: Runner, *, explain: bool) -> None:
    shape = "any N, H, W" if runner.input_shape is None else "x".join(map(str, runner.input_shape))
    kind = "8-bit RGB pictures" if runner.preprocess else "normalised images"
    typer.echo(f"backbone  {runner.variant or 'of one’s own'}")
    typer.echo(f"runtime   {runner.runtime}, {runner.precision}, {runner.threads} threads")
    typer.echo(f"input     {shape}, {kind}\n")
    print_table(
        ["level", "stride", "channels", "relative difference", "cosine"],
        [
            [one.level, one.stride, channels, f"{one.max_relative:.1e}", f"{one.cosine:.6f}"]
            for one, channels in zip(runner.fidelity, runner.channels, strict=True)
        ],
    )
    if explain and runner.decision is not None:
        _print_decision(runner.decision)


def _print_decision(decision: Decision) -> None:
    n, height, width = decision.shape
    typer.echo(
        f"\nauto chose {decision.chosen}: medians of {decision.rounds} calls in turns "
        f"at {n}x{height}x{width}, this machine, these versions.\n"
    )
    rows = [
        [
            one.runtime,
            f"{one.median_ms:.2f}",
            f"{one.best_ms:.2f}",
            f"{one.median_ms / n:.2f}",
            f"{one.max_relative:.1e}",
            f"{one.cosine:.6f}",
        ]
        for one in decision.candidates
        if one.median_ms is not None
    ]
    headings = ["engine", "median ms", "best ms", "ms per image", "relative difference", "cosine"]
    print_table(headings, rows)
    for one in decision.candidates:
        if one.refusal is not None:
            typer.echo(f"\nnot tried: {one.runtime}. {one_line(one.refusal)}")
