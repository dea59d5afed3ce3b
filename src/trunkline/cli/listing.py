"""``trunkline list``: which backbones there are.

Not named list.py, which would read like the built-in.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from trunkline.cli.output import in_billions, in_millions, print_json, print_table


def list_command(
    family: Annotated[
        str | None, typer.Option(help="Only this one: resnet, dla or regnet.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List all backbones: parameters, multiply-accumulates, channels at each stride."""
    from trunkline.facts import facts, names  # as zoo.info, without PyTorch

    known = facts()
    infos = [known[name] for name in names().listed(family)]
    if as_json:
        print_json([dataclasses.asdict(one) for one in infos])
        return
    strides = sorted({level.stride for one in infos for level in one.levels})
    rows = []
    for one in infos:
        channels = {level.stride: level.channels for level in one.levels}
        sizes = [channels.get(stride, "") for stride in strides]
        rows.append([one.name, in_millions(one.num_parameters), in_billions(one.macs), *sizes])
    print_table(["name", "params", "MACs", *(f"/{stride}" for stride in strides)], rows)
    typer.echo(
        f"\n{len(infos)} backbones. params: without classifier. MACs: at 1x3x224x224.\n"
        "/4: channels of the map at stride 4. `trunkline info NAME` tells more of one."
    )
