"""``trunkline convert``: a checkpoint, rewritten as another library's."""

from __future__ import annotations

from typing import Annotated

import typer

from trunkline.cli.completion import backbones
from trunkline.cli.loaded import download_bars
from trunkline.cli.output import one_line, print_json


def convert_command(  # one parameter per flag
    src: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A file, a folder that save_pretrained wrote, hf://owner/repo, or a TAG of "
            "--variant.",
        ),
    ],
    dst: Annotated[
        str,
        typer.Argument(
            metavar="DST",
            help="Where to: .safetensors, .pth, .pt, .bin, .pyth; .pkl for detectron2.",
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="TARGET",
            help="timm, torchvision, transformers, detectron2, mmpretrain, pycls, rtdetr, dla or "
            "trunkline.",
        ),
    ],
    variant: Annotated[
        str | None,
        typer.Option(
            help="What SRC holds, where its names and shapes do not say.",
            autocompletion=backbones,
        ),
    ] = None,
    layout: Annotated[str, typer.Option(help="How SRC names its tensors.")] = "auto",
    prefix: Annotated[
        str | None, typer.Option(help="Where in SRC the backbone is, such as teacher.backbone.")
    ] = None,
    without_classifier: Annotated[
        bool, typer.Option("--without-classifier", help="Leave the classifier of SRC out.")
    ] = False,
    allow_noncommercial: Annotated[
        bool,
        typer.Option("--allow-noncommercial", help="Agree to weights that forbid commercial use."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Rewrite a checkpoint under another library's names, classifier included."""
    from trunkline.weights.conversion import convert  # when the verb runs: it needs torch

    with download_bars() as progress:
        report = convert(
            src,
            dst,
            to,
            variant=variant,
            layout=layout,
            prefix=prefix,
            classifier=not without_classifier,
            allow_noncommercial=allow_noncommercial,
            progress=progress,
        )
    if as_json:
        print_json(
            {
                "path": str(report.path),
                "variant": report.variant,
                "read_as": report.read_as,
                "written_as": report.written_as,
                "num_tensors": report.num_tensors,
                "classifier": report.classifier,
                "notes": list(report.notes),
            }
        )
        return
    for line in str(report).splitlines():
        typer.echo(one_line(line))
