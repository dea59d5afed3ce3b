"""``trunkline info``: what is known of one backbone."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from trunkline.cli.completion import backbones
from trunkline.cli.loaded import download_bars
from trunkline.cli.output import in_billions, in_millions, one_line, print_json, print_table

if TYPE_CHECKING:
    from trunkline.backbones.levels import Level


_NOT_RECORDED = "how they are prepared is not recorded; ImageNet's usual way is assumed"


def info_command(
    name: Annotated[
        str,
        typer.Argument(
            help="A backbone, or what another library calls it. Or a folder or repository "
            "(hf://...) that save_pretrained wrote.",
            autocompletion=backbones,
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Show one backbone: family, aliases, size, and each level it has."""
    if _is_saved(name):
        _show_saved(name, as_json=as_json)
        return
    from trunkline.facts import fact  # as zoo.info, without PyTorch

    one = fact(name)
    if as_json:
        print_json(dataclasses.asdict(one))
        return
    typer.echo(f"{one.name}  ({one.family})")
    typer.echo(f"aliases     {', '.join(one.aliases) or 'none'}")
    typer.echo(f"parameters  {one.num_parameters:,} ({in_millions(one.num_parameters)})")
    typer.echo(f"MACs        {one.macs:,} ({in_billions(one.macs)}) at 1x3x224x224\n")
    _print_levels(one.levels)


def _print_levels(levels: Sequence[Level]) -> None:
    print_table(
        ["level", "stride", "channels"],
        [[level.name, level.stride, level.channels] for level in levels],
    )


def _is_saved(name: str) -> bool:
    if not name.startswith("hf://") and not os.path.isdir(os.path.expanduser(name)):
        return False  # without PyTorch, which what follows needs
    from trunkline.weights.opening import is_saved

    return is_saved(name)


def _show_saved(source: str, *, as_json: bool) -> None:
    from trunkline.weights.saved_info import saved_info

    with download_bars() as progress:
        one = saved_info(source, progress=progress)
    if as_json:
        print_json(one.to_dict())
        return
    prepared = one.preprocessing.describe() if one.preprocessing else _NOT_RECORDED
    strides = ", ".join(map(str, one.returned_strides))
    typer.echo(f"{one_line(source)}  ({one.variant or f'a {one.family} of its own'})")
    typer.echo(f"parameters  {one.num_parameters:,} ({in_millions(one.num_parameters)})")
    typer.echo(f"MACs        {one.macs:,} ({in_billions(one.macs)}) at 1x{one.in_channels}x224x224")
    typer.echo(f"returns     strides {strides}")
    if one.num_classes is not None:
        typer.echo(f"classifier  {one.num_classes} classes")
    typer.echo(f"images      {prepared}")
    typer.echo(f"weights     {one_line(one.trained_as or 'not of the catalog')}")
    typer.echo(f"licence     {one_line(one.license or 'not stated')}\n")
    _print_levels(one.levels)
