"""``trunkline features``: the maps of one photo, as a table, as JSON, in a file."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trunkline.cli.loaded import (
    AgreeOption,
    BackboneOption,
    CheckOption,
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
from trunkline.cli.photos_given import decoded
from trunkline.errors import ConfigError, LevelIndexError

if TYPE_CHECKING:
    from trunkline.backbones.backbone import Backbone
    from trunkline.extraction.features import FeatureMap
    from trunkline.preprocessing import Preprocessing

_LEVELS = re.compile(r"-?\d+(,-?\d+)*")
_SIZE = re.compile(r"(\d+)(?:x(\d+))?")

BandsOption = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Bands of rasters, such as 4,3,2 (from 1), for the channels of the network.",
    ),
]
WhiteOption = Annotated[
    float | None,
    typer.Option(metavar="NUMBER", help="Which number of the bands is white, such as 10000."),
]


def features_command(  # one parameter per flag, one entry per key of the report
    image: Annotated[str, typer.Argument(help="A photo: JPEG, PNG, TIFF, WebP, GIF, ...")],
    backbone: BackboneOption,
    levels: Annotated[
        str | None,
        typer.Option(
            metavar="INDEX...",
            help="Which maps, in this order: 0 1 2 3 are strides 4 8 16 32; -1 is the last. "
            "Every number after the flag counts. Default: all, or those that were saved.",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="N|HxW|original",
            help="N: cropped to NxN as the weights expect. HxW: the whole photo, squeezed to that. "
            "original: as it is. Default: what the weights expect.",
        ),
    ] = None,
    bands: BandsOption = None,
    white: WhiteOption = None,
    weights: WeightsOption = "none",
    prefix: PrefixOption = None,
    seed: SeedOption = 0,
    out: Annotated[
        str | None, typer.Option(metavar="PATH", help="Save the maps as .safetensors.")
    ] = None,
    check: CheckOption = False,
    allow_noncommercial: AgreeOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compute the feature maps of one photo."""
    # All of these when the verb runs: --help does not need them.
    from trunkline.extraction.checks import checked_bands
    from trunkline.extraction.features import features, preprocessing_of, save_features

    return_idx = None if levels is None else parse_levels(levels)
    chosen_bands = None if bands is None else parse_bands(bands)
    photo = decoded(image, checked_bands(chosen_bands, white))
    network = build_network(
        backbone,
        weights,
        return_idx,
        seed=seed,
        allow_noncommercial=allow_noncommercial,
        check=check,
        prefix=prefix,
        in_channels=len(chosen_bands or "RGB"),
    )
    warn_of_assumed(network)
    chosen = preprocessing_of(network)
    if size is not None:
        chosen = chosen.with_size(parse_size(size))
    maps = features(photo, network, preprocessing=chosen)
    random = network.load_report is None
    said = weights_said(network, weights)
    origin = f"none (random, seed {seed})" if random else str(said)
    if out is not None:
        save_features(maps, out, metadata={"weights": one_line(origin)})
    report = {
        "image": image,
        "image_size": [photo.height, photo.width],
        "input_size": list(chosen.output_size(photo.height, photo.width)),
        "backbone": maps[0].model,
        "weights": said,
        "seed": seed if random else None,
        "loaded": None if network.load_report is None else report_as_dict(network.load_report),
        "preprocessing": chosen.to_dict(),
        "preprocessing_assumed": network.stated_preprocessing is None,
        "maps": [_as_dict(one) for one in maps],
        "out": out,
    }
    _print_report(report, maps, network, chosen, as_json=as_json)


def join_levels(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with ``--levels 0 1 2`` as ``--levels=0,1,2``.

    Options of the parser take one value each. Every following argument that is an index, or a
    list of them with commas, belongs to the flag.
    """
    joined: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return [*joined, argument, *rest]
        if argument == "--levels":
            indices = []
            while rest and _LEVELS.fullmatch(rest[0]):
                indices.append(rest.pop(0))
            if indices:
                argument = f"--levels={','.join(indices)}"
        joined.append(argument)
    return joined


def parse_bands(text: str) -> tuple[int, ...]:
    """Return numbers of bands, which are counted from 1: 4,3,2.

    Raises:
        ConfigError: It is something else.
    """
    try:
        return tuple(int(one) for one in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"--bands {text} is no list of bands; give their numbers, from 1: 4,3,2"
        ) from error


def parse_levels(text: str) -> tuple[int, ...]:
    """Return the indices in a text such as ``"3,1"``, in its order.

    Raises:
        LevelIndexError: anything but integers and commas.
    """
    if not _LEVELS.fullmatch(text):
        raise LevelIndexError(
            f"--levels got {text!r}; give indices from 0 to 3, or -4 to -1 counted from the last, "
            "such as --levels 0 1 2 3."
        )
    return tuple(int(index) for index in text.split(","))


def parse_size(text: str) -> int | tuple[int, int] | None:
    """Return what ``Preprocessing.with_size`` takes.

    Raises:
        ConfigError: anything but N, HxW (from 1 pixel on) or ``original``.
    """
    if text == "original":
        return None
    match = _SIZE.fullmatch(text)
    if match is None or 0 in (sides := [int(side) for side in match.groups() if side]):
        raise ConfigError(
            f"--size got {text!r}; give N or HxW in pixels from 1 on, such as 320 or 480x640, "
            "or original."
        )
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _as_dict(one: FeatureMap) -> dict[str, Any]:
    # JSON has no NaN or infinity; broken weights can make them.
    mean, std = (value if math.isfinite(value) else None for value in (one.mean, one.std))
    return {
        "level": one.level,
        "stride": one.stride,
        "name": one.name,
        "shape": list(one.shape),
        "dtype": one.dtype,
        "mean": mean,
        "std": std,
    }


def _print_report(
    report: dict[str, Any],
    maps: list[FeatureMap],
    network: Backbone,
    chosen: Preprocessing,
    *,
    as_json: bool,
) -> None:
    if report["weights"] is None:
        warn_of_random(report["seed"], on_stderr=as_json)
    if as_json:
        print_json(report)
        return
    height, width = report["image_size"]
    in_height, in_width = report["input_size"]
    typer.echo(f"image     {one_line(report['image'])} ({height}x{width})")
    typer.echo(f"input     3x{in_height}x{in_width}: {chosen.describe()}")
    typer.echo(f"backbone  {report['backbone']}, weights {one_line(report['weights'] or 'none')}")
    if network.load_report is not None:
        print_report(network.load_report)
    typer.echo()
    print_table(
        ["level", "stride", "shape", "dtype", "mean", "std"],
        [
            [
                m.level,
                m.stride,
                "x".join(map(str, m.shape)),
                m.dtype,
                f"{m.mean:.6g}",
                f"{m.std:.6g}",
            ]
            for m in maps
        ],
    )
    if report["out"] is not None:
        typer.echo(f"\nsaved     {one_line(report['out'])}")
