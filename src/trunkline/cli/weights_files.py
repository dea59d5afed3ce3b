"""``trunkline weights pull`` and ``verify``: files onto this machine, and are they intact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trunkline.cli.completion import backbones
from trunkline.cli.loaded import download_bars
from trunkline.cli.output import one_line, print_json, print_table, say
from trunkline.errors import ConfigError

if TYPE_CHECKING:
    from trunkline.weights.catalog import WeightEntry
    from trunkline.weights.hub import FileCheck


def pull_command(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="VARIANT (its default weights) or VARIANT:TAG.",
            autocompletion=backbones,
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Copy there too, for a machine without network."),
    ] = None,
    tag: Annotated[
        str | None, typer.Option(help="This tag of every NAME that does not say one.")
    ] = None,
    everything: Annotated[
        bool,
        typer.Option("--all", help="All tags of every NAME; without a NAME, all default weights."),
    ] = False,
    allow_noncommercial: Annotated[
        bool,
        typer.Option("--allow-noncommercial", help="Also what forbids commercial use."),
    ] = False,
) -> None:
    """Download weights into the cache, check them, and print where each one is."""
    from trunkline.weights import catalog, hub  # when the verb runs

    rows = _chosen(names or [], tag, everything)
    if everything:
        rows = [row for row in rows if allow_noncommercial or _is_free(row)]
    for row in rows:  # all licences before the first byte
        catalog.check_license(row, allow_noncommercial=allow_noncommercial)
    with download_bars() as progress:
        for row in rows:
            file = hub.pull([row], to=to, progress=progress)[0]
            typer.echo(f"{row.variant}:{row.tag}  {one_line(str(file.path))}")
    if to is not None:
        typer.echo(f"Set TRUNKLINE_WEIGHTS={one_line(str(to))} where there is no network.")


def verify_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Hash every weight file on this machine; exit with 1 if one is not what it was."""
    from trunkline.weights import catalog, hub

    places = (place for row in catalog.entries() for place in row.places)
    checks = hub.verify(places)
    if as_json:
        print_json([_plain(check) for check in checks])
    else:
        _print_checks(checks)
    if any(check.state in ("changed", "missing") for check in checks):
        raise typer.Exit(1)


def _chosen(names: list[str], tag: str | None, everything: bool) -> list[WeightEntry]:
    from trunkline.facts import names as known
    from trunkline.weights import catalog

    if everything and tag is not None:
        raise ConfigError("--all means every tag: leave out --tag, or leave out --all.")
    if not names and not everything:
        raise ConfigError(
            "pull what? Name backbones, such as `trunkline weights pull resnet50 dla34`, or say "
            "--all for the default weights of every one; `trunkline weights list` shows them."
        )
    if not names:
        variants = [name for name in known().listed() if catalog.default_tag(name)]
        return [catalog.find(variant) for variant in variants]
    rows: list[WeightEntry] = []
    for name in names:
        variant, colon, own = name.partition(":")
        if everything and not colon:
            rows += catalog.entries(variant)
        else:
            rows.append(catalog.find(variant, own or tag or "default"))
    return list({(row.variant, row.tag): row for row in rows}.values())


def _is_free(row: WeightEntry) -> bool:
    from trunkline.errors import LicenseError
    from trunkline.weights import catalog

    try:
        catalog.check_license(row)
    except LicenseError as error:
        say(f"left out: {one_line(str(error))}")
        return False
    return True


def _plain(check: FileCheck) -> dict[str, Any]:
    return {
        "path": str(check.path),
        "state": check.state,
        "sha256": check.sha256,
        "expected": check.expected,
        "known_by": check.known_by,
    }


def _print_checks(checks: list[FileCheck]) -> None:
    if checks:
        rows = [[check.state, check.known_by or "-", check.path] for check in checks]
        print_table(["state", "known by", "file"], rows, left=3)
    for check in checks:
        if check.state == "changed":
            typer.echo(
                f"\n{one_line(str(check.path))}\n  must be {check.expected or '?'}\n"
                f"  but is  {check.sha256 or '?'}\n  Delete it and pull it again."
            )
    bad = sum(check.state in ("changed", "missing") for check in checks)
    typer.echo(f"\n{len(checks)} files, {bad} of them changed or missing.")
