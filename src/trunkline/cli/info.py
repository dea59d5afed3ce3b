"""``trunkline info``: what is known of one backbone."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from trunkline.cli.completion import backbones
from trunkline.cli.output import in_billions, in_millions, print_json, print_table


def info_command(
    name: Annotated[
        str,
        typer.Argument(
            help="A backbone, or what another library calls it.", autocompletion=backbones
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Show one backbone: family, aliases, size, and each level it has."""
    from trunkline.facts import fact  # as zoo.info, without PyTorch

    one = fact(name)
    if as_json:
        print_json(dataclasses.asdict(one))
        return
    typer.echo(f"{one.name}  ({one.family})")
    typer.echo(f"aliases     {', '.join(one.aliases) or 'none'}")
    typer.echo(f"parameters  {one.num_parameters:,} ({in_millions(one.num_parameters)})")
    typer.echo(f"MACs        {one.macs:,} ({in_billions(one.macs)}) at 1x3x224x224\n")
    print_table(
        ["level", "stride", "channels"],
        [[level.name, level.stride, level.channels] for level in one.levels],
    )
