"""``trunkline export``: a backbone as a file for another engine, or as a server's repository."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from trunkline.cli.completion import backbones
from trunkline.cli.features import parse_levels, parse_size
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
    weights_said,
)
from trunkline.cli.output import one_line, print_json, print_table
from trunkline.errors import ConfigError

if TYPE_CHECKING:
    from trunkline.runtimes.export import ExportReport
    from trunkline.runtimes.export_config import ExportOptions
    from trunkline.runtimes.serving import RepositoryReport


def export_command(  # one parameter per flag
    name: Annotated[
        str,
        typer.Argument(
            autocompletion=backbones,
            help="Of the backbone; `trunkline list` shows all. Or a saved folder, hf://...",
        ),
    ],
    out: Annotated[
        str | None,
        typer.Argument(
            metavar="OUT", help="Where to: .onnx, .xml (and .bin), .pt2, .pt. Not with --serve."
        ),
    ] = None,
    file_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="onnx|openvino|torch-export|torchscript",
            help="Of the file; by its ending unless given. Not with --serve, which knows.",
        ),
    ] = None,
    opset: Annotated[int, typer.Option(metavar="N", help="Of ONNX's operators.")] = 18,
    dynamic: Annotated[
        str,
        typer.Option(metavar="AXES|none", help="Axes of any size; the others are fixed."),
    ] = "batch,height,width",
    size: Annotated[
        str | None,
        typer.Option(
            metavar="N|HxW", help="Of fixed height and width, and of Triton's warm-up. 224x224."
        ),
    ] = None,
    batch: Annotated[int | None, typer.Option(metavar="N", help="Of a fixed batch. 1.")] = None,
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
    preprocess: Annotated[
        bool, typer.Option("--preprocess", help="Take 8-bit RGB pictures and normalise inside.")
    ] = False,
    precision: Annotated[str, typer.Option(metavar="fp32|int8", help="Of the file.")] = "fp32",
    calibration: Annotated[
        str | None, typer.Option(metavar="DIR", help="Photos that int8 is fitted to.")
    ] = None,
    serve: Annotated[
        str | None,
        typer.Option(metavar="triton|ovms", help="Write a model repository for this server."),
    ] = None,
    repo: Annotated[
        str | None, typer.Option(metavar="DIR", help="The repository, with --serve.")
    ] = None,
    model_name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="In the repository; the backbone's if absent."),
    ] = None,
    model_version: Annotated[
        int | None, typer.Option(metavar="N", help="In the repository; 1 unless given.")
    ] = None,
    max_batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="That Triton puts together; 8 unless given.")
    ] = None,
    allow_noncommercial: AgreeOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Write a backbone as a file for another engine, checked against the backbone."""
    _check_place(out, file_format, serve, repo)
    for_server = {
        "--name": model_name,
        "--model-version": model_version,
        "--max-batch-size": max_batch_size,
    }
    if serve is None and (
        given := [flag for flag, value in for_server.items() if value is not None]
    ):
        raise ConfigError(f"{', '.join(given)} is for --serve; leave it out, or add --serve.")
    options: ExportOptions = {
        "opset": opset,
        "dynamic": _parse_axes(dynamic),
        "input_shape": _parse_shape(size, batch, _parse_axes(dynamic), serve),
        "preprocess": preprocess,
        "precision": cast(Any, precision),  # checked where Python's callers are
        "calibration": calibration,
    }
    from trunkline.runtimes.export import export, format_of_path  # when the verb runs
    from trunkline.runtimes.export_config import config_of
    from trunkline.runtimes.serving import write_repository

    if serve is None:
        chosen = file_format or format_of_path(str(out))
        config_of(chosen, options)  # before weights are downloaded
    return_idx = None if levels is None else parse_levels(levels)
    network = build_network(
        name,
        weights,
        return_idx,
        seed=seed,
        allow_noncommercial=allow_noncommercial,
        prefix=prefix,
        classifier=True,
    )
    served: RepositoryReport | None = None
    if serve is None:
        written = export(network, str(out), cast(Any, chosen), **options)
    else:
        served = write_repository(
            network,
            str(repo),
            model_name or network.variant or "backbone",
            cast(Any, serve),
            version=1 if model_version is None else model_version,
            max_batch_size=max_batch_size,
            **options,
        )
        written = served.export
    random_seed = seed if network.load_report is None else None
    if random_seed is not None:
        warn_of_random(seed, on_stderr=as_json)
    warn_of_assumed(network)
    if as_json:
        loaded = None if network.load_report is None else report_as_dict(network.load_report)
        print_json(
            {
                "backbone": network.variant,
                "weights": weights_said(network, weights),
                "seed": random_seed,
                "loaded": loaded,
                **(written if served is None else served).to_dict(),
            }
        )
        return
    if network.load_report is not None:
        print_report(network.load_report)
    _print_file(written)
    if served is not None:
        typer.echo(f"\nconfig    {one_line(str(served.config))}")
        typer.echo(f"start     {one_line(served.start)}")


def _check_place(
    out: str | None, file_format: str | None, serve: str | None, repo: str | None
) -> None:
    """Refuse both places or neither: a file's path, and a repository."""
    if serve is None and (out is None or repo is not None):
        raise ConfigError(
            "--repo is for --serve; add --serve triton or --serve ovms."
            if repo is not None
            else "no OUT was given; give a path such as model.onnx, or --serve and --repo."
        )
    if serve is not None and (repo is None or out is not None or file_format is not None):
        raise ConfigError(
            "--serve needs --repo, the folder of the model repository."
            if repo is None
            else f"--serve {serve} decides on file and format; leave OUT and --format out."
        )


def _parse_axes(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(text.split(","))


def _parse_shape(
    size: str | None, batch: int | None, dynamic: tuple[str, ...], serve: str | None
) -> tuple[int, int, int]:
    """Return (N, H, W) of the fixed axes; refuse sizes that nothing would use."""
    if batch is not None and "batch" in dynamic:
        raise ConfigError(
            f"--batch {batch} fixes an axis that --dynamic leaves free; "
            "leave it out, or name the free axes, such as --dynamic height,width."
        )
    if size is not None and {"height", "width"} <= set(dynamic) and serve != "triton":
        raise ConfigError(
            f"--size {size} fixes axes that --dynamic leaves free; "
            "leave it out, or name the free axes, such as --dynamic batch or --dynamic none."
        )
    sides = parse_size(size or "224")
    if sides is None:
        raise ConfigError(f"--size got {size!r}; give N or HxW in pixels, such as 480x640.")
    height, width = (sides, sides) if isinstance(sides, int) else sides
    return 1 if batch is None else batch, height, width


def _print_file(report: ExportReport) -> None:
    for file in report.files:
        typer.echo(f"file      {one_line(str(file.path))} ({file.num_bytes:,} bytes)")
        typer.echo(f"sha256    {file.sha256}")
    opset = "" if report.opset is None else f", opset {report.opset}"
    typer.echo(f"format    {report.format}, {report.precision}{opset}")
    free = ", ".join(report.dynamic) or "none"
    typer.echo(f"axes      of any size: {free}")
    typer.echo(f"outputs   {', '.join(report.output_names)}\n")
    print_table(
        ["images", "level", "stride", "relative difference", "cosine"],
        [
            [
                "x".join(map(str, one.shape)),
                level.level,
                level.stride,
                f"{level.max_relative:.1e}",
                f"{level.cosine:.7f}",
            ]
            for one in report.fidelity
            for level in one.levels
        ],
        left=2,
    )
