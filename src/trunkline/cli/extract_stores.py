"""``trunkline extract verify``, ``stats`` and ``merge``: what can be done with stores."""

from __future__ import annotations

from typing import Annotated

import typer

from trunkline.cli.loaded import TrustOption
from trunkline.cli.output import one_line, print_json, print_table

OutArgument = Annotated[str, typer.Argument(metavar="OUT", help="A store.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def verify_command(
    out: OutArgument,
    count: Annotated[int, typer.Option(metavar="N", min=1, help="Rows to compute again.")] = 20,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the choice of rows.")] = 0,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compute random rows again and compare; exits with 1 where something disagrees."""
    from trunkline.extraction.checking import verify

    report = verify(out, count, seed=seed, trust=trust)
    if as_json:
        print_json(report.to_dict())
    else:
        verdicts = ", ".join(f"{number} {verdict}" for verdict, number in report.verdicts.items())
        typer.echo(f"store     {one_line(report.out)}")
        if report.left_out is None:
            typer.echo(f"rows      {report.rows} computed again: {verdicts}")
            typer.echo(f"largest   relative difference {report.worst:.1e}")
        else:
            typer.echo(f"left out  files were hashed, no row computed: {one_line(report.left_out)}")
        for name in report.damaged:
            typer.echo(f"damaged   {one_line(name)} is not the file that was written")
        if report.num_damaged > len(report.damaged):
            typer.echo(f"damaged   {report.num_damaged - len(report.damaged)} more files")
        for row in report.bad:
            typer.echo(f"{row.verdict:<9} {one_line(row.key)}")
    if not report.good:
        raise typer.Exit(1)


def stats_command(out: OutArgument, as_json: JsonOption = False) -> None:
    """Show how far a store is, where its time went, and why images failed."""
    from trunkline.extraction.checking import stats

    report = stats(out)
    if as_json:
        print_json(report.to_dict())
        return
    planned = f"{report.shards_planned}" + ("" if report.listed else " or more")
    job = report.job
    typer.echo(f"store     {one_line(report.out)} ({report.bytes / 1e6:.1f} MB)")
    typer.echo(f"backbone  {job['network']['variant']}, {job['runtime']}, {job['precision']}")
    typer.echo(f"shards    {report.shards} of {planned} finished")
    typer.echo(f"images    {report.images}, {report.failed} failed")
    typer.echo(f"speed     {report.images_per_second:.1f} images/s per worker")
    typer.echo(f"slowest   {report.bottleneck}\n")
    print_table(["stage", "seconds"], [[name, f"{s:.1f}"] for name, s in report.seconds.items()])
    for reason, number in report.failures:
        typer.echo(f"\n{number} failed: {one_line(reason)}")


def merge_command(
    stores: Annotated[list[str], typer.Argument(metavar="STORE... OUT", help="OUT comes last.")],
) -> None:
    """Make one store of several that parts of --shard wrote on machines without a common disk."""
    from trunkline.errors import ConfigError
    from trunkline.extraction.merging import merge

    if len(stores) < 2:
        raise ConfigError(
            "merge needs at least one store, and the place for the result at the end."
        )
    rows = merge(stores[:-1], stores[-1])
    typer.echo(f"merged    {len(stores) - 1} stores, {rows} rows: {one_line(stores[-1])}")
