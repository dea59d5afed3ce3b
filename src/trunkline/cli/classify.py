"""``trunkline classify``: what photos show, by a checkpoint with classes."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from trunkline.cli.completion import backbones
from trunkline.cli.features import BandsOption, WhiteOption, parse_bands, parse_size
from trunkline.cli.loaded import (
    AgreeOption,
    download_bars,
    fetch_saved,
    print_report,
    report_as_dict,
    warn_of_assumed,
)
from trunkline.cli.output import one_line, print_json, print_table, say
from trunkline.cli.photos_given import GivenPhoto, is_collection, photos_given
from trunkline.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from torch import Tensor

    from trunkline.heads.classifier import Classifier, Guess
    from trunkline.images import Bands
    from trunkline.preprocessing import Preprocessing


def classify_command(  # one parameter per flag, one entry per key of the report
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="PHOTO...",
            help="Photos (JPEG, PNG, TIFF, WebP, GIF, ...), folders, globs, .txt lists of paths, "
            "and whatever else trunkline extract takes.",
        ),
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
    bands: BandsOption = None,
    white: WhiteOption = None,
    layout: Annotated[str, typer.Option(help="How the file names its tensors.")] = "auto",
    prefix: Annotated[
        str | None, typer.Option(help="Where in the file the backbone is, such as model.backbone.")
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option(
            metavar="avg|max",
            help="Before the classifier, where its file does not say it. Default: avg.",
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="How many classes. Default: 5, or all of fewer."),
    ] = None,
    batch_size: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="Photos computed at once, where their prepared sizes agree."
        ),
    ] = 16,
    allow_noncommercial: AgreeOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Print the likeliest classes of photos.

    A photo that cannot be read is reported on standard error, and the others are classified. Exit
    codes: 0 for all classified, 1 for some that could not be read, 2 where nothing was begun: wrong
    flags or weights, or the one photo that was given cannot be read.
    """
    # All of these when the verb runs: --help does not need them.
    from trunkline.extraction.checks import checked_bands
    from trunkline.extraction.features import preprocessing_of

    chosen_bands = checked_bands(None if bands is None else parse_bands(bands), white)
    names = None if labels is None else read_labels(labels)
    photos = photos_given(images, chosen_bands)
    is_one = len(images) == 1 and not is_collection(images[0])
    if is_one:  # a bad one is known before any weights
        name, image = images[0], next(photos).decode()
        photos = iter([GivenPhoto(name, lambda: image)])
    classifier = _classifier(
        backbone,
        weights,
        labels=names,
        pool=cast(Any, pool),  # load_classifier says what is allowed
        layout=layout,
        prefix=prefix,
        allow_noncommercial=allow_noncommercial,
    )
    _check_channels(classifier.backbone.in_channels, chosen_bands)
    warn_of_assumed(classifier.backbone)
    chosen = preprocessing_of(classifier.backbone)
    if size is not None:
        chosen = chosen.with_size(parse_size(size))
    about = _about(classifier, backbone, weights, chosen)
    reports: list[dict[str, Any]] = []
    printed = failed = 0
    for report in _reports(photos, classifier, chosen, top, batch_size):
        if "error" in report:
            say(f"trunkline: error: {one_line(report['error'])}")
            failed += 1
        if as_json:
            reports.append(report)
        elif "error" not in report:
            _print(report, classifier, chosen, about, first=not printed)
            printed += 1
    if as_json:
        one = {**reports[0], **about} if is_one else {**about, "images": reports}
        print_json(one)
    if failed:
        raise typer.Exit(1)


def _check_channels(in_channels: int, wanted: Bands | None) -> None:
    if wanted is not None and wanted.bands is not None and len(wanted.bands) != in_channels:
        raise ConfigError(
            f"--bands names {len(wanted.bands)} bands, and the network takes {in_channels} "
            "channels; name one band for each channel."
        )
    if wanted is None and in_channels != 3:
        raise ConfigError(
            f"The network takes {in_channels} channels, and photos have 3; say with --bands which "
            "bands of the files they are, and with --white which number is white."
        )


def _reports(
    photos: Iterator[GivenPhoto],
    classifier: Classifier,
    chosen: Preprocessing,
    top: int | None,
    batch_size: int,
) -> Iterator[dict[str, Any]]:
    """Yield what is said of each photo, in their order: its classes, or why it has none."""
    from trunkline.heads.guesses import guesses_of

    waiting: deque[dict[str, Any]] = deque()  # photos whose batch is not full yet, and failures
    prepared = _prepared(photos, chosen, waiting)
    for guesses in guesses_of(prepared, classifier, top, batch_size=batch_size):
        while "error" in waiting[0]:
            yield waiting.popleft()
        yield {**waiting.popleft(), "top": [_as_dict(guess) for guess in guesses]}
    yield from waiting


def _prepared(
    photos: Iterator[GivenPhoto], chosen: Preprocessing, waiting: deque[dict[str, Any]]
) -> Iterator[Tensor]:
    """Yield the photos that can be read as ``(3, H, W)``; note each of them, and each failure."""
    from trunkline.images import preprocess

    for photo in photos:
        try:
            image = photo.decode()
            prepared = preprocess(image, chosen)
        except ImageError as error:
            told = str(error) if photo.name in str(error) else f"{photo.name}: {error}"
            waiting.append({"image": photo.name, "error": told})
            continue
        size = (image.height, image.width)
        input_size = list(chosen.output_size(*size))
        waiting.append({"image": photo.name, "image_size": list(size), "input_size": input_size})
        yield prepared


def _classifier(backbone: str, weights: str | None, **options: Any) -> Classifier:
    from trunkline.heads.classifier import load_classifier
    from trunkline.weights.opening import is_saved

    if weights is not None and is_saved(backbone):
        raise ConfigError(
            f"--backbone {backbone} brings its own weights, and --weights {weights} was given too; "
            "leave one of them out."
        )
    fetch_saved(backbone)
    with download_bars() as progress:
        return load_classifier(backbone, weights or "default", progress=progress, **options)


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the names of classes in a file: one a line, or a list or an object in JSON.

    Objects are number → name, or name → number as torchvision's ``class_to_idx``.

    Raises:
        ConfigError: It cannot be read, or holds no name or something else.
    """
    try:
        text = path.read_text("utf-8-sig")
        if path.suffix.lower() != ".json" and not text.lstrip().startswith(("[", "{")):
            held: Any = [line.strip() for line in text.splitlines() if line.strip()]
        else:
            held = json.loads(text)
        if isinstance(held, dict):
            numbered = all(isinstance(one, str) for one in held.values())
            named = held if numbered else {str(n): name for name, n in held.items()}
            if absent := [str(n) for n in range(len(held)) if str(n) not in named]:
                raise ValueError(f"{len(held)} classes, and number {absent[0]} is none of them")
            held = [named[str(n)] for n in range(len(held))]
        if not isinstance(held, list) or not all(isinstance(one, str) for one in held):
            raise ValueError("no list of names")
        if not held:
            raise ValueError("no name")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--labels {path} cannot be read ({type(error).__name__}: {error}); give a text file "
            'with one name a line, a JSON list of names, or a JSON object {"0": "name", ...}'
            ' or {"name": 0, ...}.'
        ) from error
    return tuple(held)


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


def _print(
    report: dict[str, Any],
    classifier: Classifier,
    chosen: Preprocessing,
    about: dict[str, Any],
    *,
    first: bool,
) -> None:
    height, width = report["image_size"]
    in_height, in_width = report["input_size"]
    if not first:
        typer.echo()
    typer.echo(f"image     {one_line(report['image'])} ({height}x{width})")
    if first:
        typer.echo(
            f"input     {classifier.backbone.in_channels}x{in_height}x{in_width}: "
            f"{chosen.describe()}"
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


def _as_dict(guess: Guess) -> dict[str, str | int | float | None]:
    # JSON has no NaN; broken weights can make one.
    sure = guess.probability if math.isfinite(guess.probability) else None
    return {"index": guess.index, "label": guess.label, "probability": sure}
