"""``trunkline classify``: what photos show, by a checkpoint with classes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trunkline.cli.completion import backbones
from trunkline.cli.features import parse_size
from trunkline.cli.loaded import AgreeOption, download_bars, print_report, report_as_dict
from trunkline.cli.output import one_line, print_json, print_table
from trunkline.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from trunkline.heads.classifier import Classifier, Guess
    from trunkline.preprocessing import Preprocessing


def classify_command(  # one parameter per flag, one entry per key of the report
    images: Annotated[
        list[str],
        typer.Argument(metavar="PHOTO...", help="Photos: JPEG, PNG, TIFF, WebP, GIF, ..."),
    ],
    backbone: Annotated[
        str,
        typer.Option(
            autocompletion=backbones,
            metavar="NAME|FOLDER|hf://...",
            help="Its name; `trunkline list` shows all. Or what save_pretrained wrote.",
        ),
    ],
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="default|TAG|PATH|hf://...",
            help="A checkpoint with its classifier; `trunkline weights list` shows tags.",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Names of the classes: one a line, or a JSON list."),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="N|HxW", help="Of the network's input in pixels.")
    ] = None,
    layout: Annotated[str, typer.Option(help="How the file names its tensors.")] = "auto",
    prefix: Annotated[
        str | None, typer.Option(help="Where in the file the backbone is, such as model.backbone.")
    ] = None,
    top: Annotated[int, typer.Option(metavar="N", min=1, help="How many classes.")] = 5,
    allow_noncommercial: AgreeOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Print the likeliest classes of photos."""
    from trunkline.extraction.features import preprocessing_of
    from trunkline.heads.classifier import classify
    from trunkline.images import decode_image  # when the verb runs: --help does not need them

    names = None if labels is None else read_labels(labels)
    images = [one for given in images for one in _photos_in(given)]
    photos = [decode_image(one) for one in images]  # a bad one is known before any weights
    classifier = _classifier(
        backbone,
        weights,
        names,
        layout=layout,
        prefix=prefix,
        allow_noncommercial=allow_noncommercial,
    )
    chosen = preprocessing_of(classifier.backbone)
    if size is not None:
        chosen = chosen.with_size(parse_size(size))
        classifier.backbone.preprocessing = chosen
    found = classify(photos, classifier, top)
    reports = [
        _report(name, (photo.height, photo.width), chosen, guesses)
        for name, photo, guesses in zip(images, photos, found, strict=True)
    ]
    about = _about(classifier, backbone, weights, chosen)
    if as_json:
        one = {**reports[0], **about} if len(reports) == 1 else {**about, "images": reports}
        print_json(one)
        return
    _print(reports, classifier, about)


def _photos_in(given: str) -> list[str]:
    """Return the photos of a folder in the order of their names, or what is none as it is.

    Raises:
        ImageError: A folder without photos.
    """
    from trunkline.images import image_suffixes

    folder = Path(given)
    if not folder.is_dir():
        return [given]
    found = sorted(one for one in folder.rglob("*") if one.suffix.lower() in image_suffixes())
    if not found:
        raise ImageError(
            f"{given} is a folder without photos; give one that has some, or the paths of photos."
        )
    return [str(one) for one in found]


def _classifier(
    backbone: str,
    weights: str | None,
    labels: tuple[str, ...] | None,
    *,
    layout: str,
    prefix: str | None,
    allow_noncommercial: bool,
) -> Classifier:
    from trunkline.heads.classifier import Classifier, check_labels, load_classifier
    from trunkline.heads.pretrained import from_pretrained

    if not (backbone.startswith("hf://") or Path(backbone).is_dir()):
        with download_bars() as progress:
            return load_classifier(
                backbone,
                "default" if weights is None else weights,
                labels=labels,
                layout=layout,
                prefix=prefix,
                allow_noncommercial=allow_noncommercial,
                progress=progress,
            )
    if weights is not None:
        raise ConfigError(
            f"--backbone {backbone} brings its own weights, and --weights {weights} was given too; "
            "leave one of them out."
        )
    found = from_pretrained(backbone)
    if not isinstance(found, Classifier):
        raise ConfigError(
            f"{backbone} holds a backbone without a classifier; `trunkline features` shows its "
            "maps, create_classifier puts a classifier on it."
        )
    if labels is not None:
        found.labels = check_labels(labels, found.num_classes)
    return found


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the names of classes in a file: one a line, a JSON list, or number → name in JSON.

    Raises:
        ConfigError: It cannot be read, or holds something else.
    """
    try:
        text = path.read_text("utf-8-sig")
        if path.suffix.lower() != ".json" and not text.lstrip().startswith(("[", "{")):
            return tuple(line.strip() for line in text.splitlines() if line.strip())
        held: Any = json.loads(text)
        if isinstance(held, dict):
            held = [held[str(n)] for n in range(len(held))]
        if not isinstance(held, list) or not all(isinstance(one, str) for one in held):
            raise ValueError("no list of names")
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"--labels {path} cannot be read ({type(error).__name__}: {error}); give a text file "
            'with one name a line, a JSON list of names, or a JSON object {"0": "name", ...}.'
        ) from error
    return tuple(held)


def _report(
    image: str, size: tuple[int, int], chosen: Preprocessing, guesses: list[Guess]
) -> dict[str, Any]:
    return {
        "image": image,
        "image_size": list(size),
        "input_size": list(chosen.output_size(*size)),
        "top": [_as_dict(guess) for guess in guesses],
    }


def _about(
    classifier: Classifier, backbone: str, weights: str | None, chosen: Preprocessing
) -> dict[str, Any]:
    loaded = classifier.backbone.load_report
    return {
        "backbone": classifier.backbone.variant or backbone,
        "weights": weights or (backbone if classifier.backbone.variant != backbone else "default"),
        "loaded": None if loaded is None else report_as_dict(loaded),
        "preprocessing": chosen.to_dict(),
        "num_classes": classifier.num_classes,
        "named": classifier.labels is not None,
    }


def _print(reports: list[dict[str, Any]], classifier: Classifier, about: dict[str, Any]) -> None:
    from trunkline.extraction.features import preprocessing_of

    chosen = preprocessing_of(classifier.backbone)
    for n, report in enumerate(reports):
        height, width = report["image_size"]
        in_height, in_width = report["input_size"]
        typer.echo(f"image     {one_line(report['image'])} ({height}x{width})")
        if n == 0:
            said = chosen.describe() if chosen else ""
            typer.echo(
                f"input     {classifier.backbone.in_channels}x{in_height}x{in_width}: {said}"
            )
            typer.echo(
                f"backbone  {one_line(about['backbone'])}, weights {one_line(about['weights'])}, "
                f"{about['num_classes']} classes"
            )
            if (loaded := classifier.backbone.load_report) is not None:
                print_report(loaded)
            if classifier.labels is None:
                typer.echo("classes   without names: these are not known to be ImageNet-1k's")
        typer.echo()
        print_table(
            ["class", "index", "probability"],
            [
                [
                    one["label"],
                    one["index"],
                    "nan" if one["probability"] is None else f"{one['probability']:.4f}",
                ]
                for one in report["top"]
            ],
        )
        if n + 1 < len(reports):
            typer.echo()


def _as_dict(guess: Guess) -> dict[str, str | int | float | None]:
    # JSON has no NaN; broken weights can make one.
    sure = guess.probability if math.isfinite(guess.probability) else None
    return {"index": guess.index, "label": guess.label, "probability": sure}
