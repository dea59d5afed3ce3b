"""``trunkline classify``: what a photo shows, by a checkpoint with classes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from trunkline.cli.loaded import download_bars, print_report, report_as_dict
from trunkline.cli.output import one_line, print_json, print_table

if TYPE_CHECKING:
    from trunkline.heads.classifier import Guess


def classify_command(  # one parameter per flag, one entry per key of the report
    image: Annotated[str, typer.Argument(help="A photo: JPEG, PNG, TIFF, WebP, GIF, ...")],
    backbone: Annotated[str, typer.Option(help="Its name; `trunkline list` shows all.")],
    weights: Annotated[
        str,
        typer.Option(
            metavar="default|TAG|PATH|hf://...",
            help="A checkpoint with its classifier; `trunkline weights list` shows tags.",
        ),
    ] = "default",
    layout: Annotated[str, typer.Option(help="How the file names its tensors.")] = "auto",
    top: Annotated[int, typer.Option(metavar="N", min=1, help="How many classes.")] = 5,
    allow_noncommercial: Annotated[
        bool,
        typer.Option("--allow-noncommercial", help="Agree to weights that forbid commercial use."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Print the likeliest classes of one photo."""
    from trunkline.extraction.features import preprocessing_of
    from trunkline.heads.classifier import classify, load_classifier
    from trunkline.images import decode_image  # when the verb runs: --help does not need them

    photo = decode_image(image)  # a bad photo is known before the first byte of weights
    with download_bars() as progress:
        classifier = load_classifier(
            backbone,
            weights,
            layout=layout,
            allow_noncommercial=allow_noncommercial,
            progress=progress,
        )
    guesses = classify(photo, classifier, top)
    network, chosen = classifier.backbone, preprocessing_of(classifier.backbone)
    loaded = network.load_report
    assert loaded is not None  # noqa: S101 - load_classifier always leaves one
    num_classes = classifier.head.linear.out_features
    in_height, in_width = chosen.output_size(photo.height, photo.width)
    if as_json:
        print_json(
            {
                "image": image,
                "image_size": [photo.height, photo.width],
                "input_size": [in_height, in_width],
                "backbone": network.variant,
                "weights": weights,
                "loaded": report_as_dict(loaded),
                "preprocessing": chosen.to_dict(),
                "num_classes": num_classes,
                "named": classifier.labels is not None,
                "top": [_as_dict(guess) for guess in guesses],
            }
        )
        return
    typer.echo(f"image     {one_line(image)} ({photo.height}x{photo.width})")
    typer.echo(f"input     3x{in_height}x{in_width}: {chosen.describe()}")
    typer.echo(f"backbone  {network.variant}, weights {one_line(weights)}, {num_classes} classes")
    print_report(loaded)
    if classifier.labels is None:
        typer.echo("classes   without names: these are not known to be ImageNet-1k's")
    typer.echo()
    print_table(
        ["class", "index", "probability"],
        [[guess.label, guess.index, f"{guess.probability:.4f}"] for guess in guesses],
    )


def _as_dict(guess: Guess) -> dict[str, str | int | float | None]:
    # JSON has no NaN; broken weights can make one.
    sure = guess.probability if math.isfinite(guess.probability) else None
    return {"index": guess.index, "label": guess.label, "probability": sure}
