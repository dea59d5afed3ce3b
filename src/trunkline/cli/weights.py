"""``trunkline weights``: which checkpoints are published for the backbones, and what each one is.

Another verb on weights is another ``@app.command`` in this file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from trunkline.cli import weights_files
from trunkline.cli.completion import backbones, checkpoints
from trunkline.cli.output import in_millions, one_line, print_json, print_table
from trunkline.errors import ConfigError

if TYPE_CHECKING:
    from trunkline.weights.catalog import Place, WeightEntry

app = typer.Typer(
    no_args_is_help=True,
    help="Published checkpoints: what there is, and what each one is.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("pull")(weights_files.pull_command)
app.command("verify")(weights_files.verify_command)

_SHORT = {
    "supervised": "sup",
    "semi-supervised": "semi",
    "self-supervised": "self",
    "satellite": "sat",
    "medical": "med",
    "robust": "rob",
}
_ORDERS = ("variant", "accuracy")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.command("list")
def list_command(
    variant: Annotated[
        str | None,
        typer.Argument(
            help="Only of this backbone, by any of its names.", autocompletion=backbones
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only of this upstream, such as timm.")
    ] = None,
    license_: Annotated[
        str,
        typer.Option(
            "--license",
            metavar="any|CLASS|SPDX",
            help="CLASS: permissive, share-alike, noncommercial, unknown. SPDX: such as MIT.",
        ),
    ] = "any",
    commercial: Annotated[
        bool, typer.Option("--commercial", help="Only what needs no agreement to its licence.")
    ] = False,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Only trained for this: supervised, semi-supervised, self-supervised, satellite, "
            "medical, robust.",
        ),
    ] = None,
    channels: Annotated[
        int | None, typer.Option(metavar="N", help="Only for this number of input channels.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only trained on this, such as places365.")
    ] = None,
    family: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only of this one: resnet, dla, regnet.")
    ] = None,
    sort: Annotated[
        str, typer.Option(metavar="variant|accuracy", help="accuracy: the best top-1 first.")
    ] = "variant",
    as_json: AsJson = False,
) -> None:
    """List published checkpoints."""
    from trunkline.weights import catalog  # when the verb runs

    if commercial and license_ != "any":
        raise ConfigError("--commercial and --license both choose licences; give one of them.")
    if sort not in _ORDERS:
        raise ConfigError(f"no order --sort {sort!r}; allowed: {', '.join(_ORDERS)}.")
    rows = catalog.entries(
        variant,
        source=source,
        license="commercial" if commercial else license_,
        task=task,
        channels=channels,
        dataset=dataset,
        family=family,
    )
    if sort == "accuracy":
        rows = catalog.by_accuracy(rows)
    if as_json:
        print_json([_plain(row) for row in rows])
        return
    cells = [
        [
            row.variant,
            row.tag + (" *" if _is_default(row) else ""),
            row.license.removeprefix("LicenseRef-"),
            _SHORT[row.task],
            row.channels,
            _or_dash(row.top1) + (" lin" if row.metric == "linear" and row.top1 else ""),
            _or_dash(row.metric_size),
        ]
        for row in rows
    ]
    if cells:
        print_table(["variant", "tag", "licence", "task", "ch", "top-1", "px"], cells, left=4)
    typer.echo(
        f"\n{len(rows)} checkpoints; * is the default of its variant. ch: input channels.\n"
        "top-1: published, at px; lin: of a linear classifier on frozen features.\n"
        "task: shortened; see --help. `trunkline weights show VARIANT TAG` tells all of one."
    )


@app.command("show")
def show_command(
    variant: Annotated[
        str, typer.Argument(help="A backbone, by any of its names.", autocompletion=backbones)
    ],
    tag: Annotated[
        str,
        typer.Argument(help="A tag of it, or the upstream's name.", autocompletion=checkpoints),
    ] = "default",
    as_json: AsJson = False,
) -> None:
    """Show one checkpoint: where it is had, its licence, what it expects and how good it is."""
    from trunkline.weights import catalog

    row = catalog.find(variant, tag)
    if as_json:
        print_json(_plain(row))
        return
    default = "  (the default)" if _is_default(row) else ""
    typer.echo(f"{row.variant}  {row.tag}{default}")
    for heading, text in _facts(row):
        typer.echo(f"{heading:<14} {one_line(text)}")
    typer.echo("\nplaces, in the order to try:")
    for place in row.places:
        typer.echo(
            f"  {one_line(place.url)}\n    {_hash(place)}, layout {place.layout}{_inside(place)}"
        )


def _is_default(row: WeightEntry) -> bool:
    from trunkline.weights import catalog

    return catalog.default_tag(row.variant) == row.tag


def _plain(row: WeightEntry) -> dict[str, Any]:
    return {**row.to_dict(), "default": _is_default(row)}


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def _inside(place: Place) -> str:
    return f", at prefix {place.prefix}" if place.prefix else ""


def _hash(place: Place) -> str:
    if place.sha256 is not None:
        return f"sha256 {place.sha256}"
    if place.sha256_prefix is not None:
        return f"sha256 {place.sha256_prefix}..."
    return "no hash published"


def _facts(row: WeightEntry) -> list[tuple[str, str]]:
    """Return what is known of a row, in words, as (heading, text)."""
    from trunkline.weights.catalog import LICENSES, REQUIREMENTS

    facts = [
        ("upstream", f"{row.source}: {row.upstream_name}"),
        ("licence", f"{row.license} ({LICENSES[row.license].title}; {row.license_class})"),
        ("layout", row.layout),
        ("task", f"{row.task}, on {row.dataset or 'data that is not recorded'}"),
        *_expected(row),
    ]
    if row.assumed:
        facts.append(("unpublished", f"{', '.join(row.assumed)}: the usual value is assumed"))
    if row.num_classes is None:
        facts.append(("classes", "none, or not recorded"))
    else:
        facts.append(("classes", f"{row.num_classes} ({row.classes_dataset})"))
    facts.append(("accuracy", _accuracy(row)))
    if row.num_params is not None:
        facts.append(("parameters", f"{row.num_params:,} ({in_millions(row.num_params)}) in all"))
    if row.size_bytes is not None:
        facts.append(("file", f"{row.file_name}, about {row.size_bytes / 1e6:.1f} MB"))
    else:
        facts.append(("file", row.file_name))
    facts += [("needs", REQUIREMENTS[word]) for word in row.requires]
    if row.notes:
        facts.append(("notes", row.notes))
    return [*facts, ("facts from", row.facts_source)]


def _expected(row: WeightEntry) -> list[tuple[str, str]]:
    """Return what a network expects of its pictures, as (heading, text)."""
    known = row.preprocessing or row.bands
    if known is None:
        return []
    heading = "preprocessing" if row.preprocessing else "bands"
    numbers = [("mean", known.mean), ("std", known.std)]
    return [
        (heading, known.describe()),
        *((name, ", ".join(f"{v:g}" for v in values)) for name, values in numbers if values),
    ]


def _accuracy(row: WeightEntry) -> str:
    if row.top1 is None:
        return "none published"
    top5 = "" if row.top5 is None else f", top-5 {row.top5:g}"
    of = "" if row.metric == "classifier" else ", of a linear classifier on frozen features"
    return f"top-1 {row.top1:g}{top5} at {row.metric_size} px{of}"
