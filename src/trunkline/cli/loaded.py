"""What the verbs that load weights share: the bar of a download, and what a load did."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from trunkline.cli.completion import backbones, checkpoints
from trunkline.cli.output import one_line, say

if TYPE_CHECKING:
    from trunkline.backbones.backbone import Backbone
    from trunkline.weights.hub import Progress
    from trunkline.weights.loading import LoadReport


BackboneOption = Annotated[
    str,
    typer.Option(
        autocompletion=backbones,
        metavar="NAME|DIR|hf://...",
        help="Its name; `trunkline list` shows all. Or a folder or repository that "
        "save_pretrained wrote.",
    ),
]

# The flags of verbs that build a network, for `build_network`.
WeightsOption = Annotated[
    str,
    typer.Option(
        autocompletion=checkpoints,
        metavar="none|default|TAG|PATH|hf://...",
        help="A checkpoint; `trunkline weights list` shows tags. none is a random network.",
    ),
]
SeedOption = Annotated[
    int, typer.Option(metavar="N", min=0, max=2**63 - 1, help="Of the random network.")
]
AgreeOption = Annotated[
    bool,
    typer.Option("--allow-noncommercial", help="Agree to weights that forbid commercial use."),
]
PrefixOption = Annotated[
    str | None,
    typer.Option(
        metavar="PREFIX",
        help="Where in the file of --weights the backbone is, such as teacher.backbone. "
        "Default: it is searched for.",
    ),
]
CheckOption = Annotated[
    bool,
    typer.Option(
        "--check", help="Run one image through the loaded network; say what is dead or exploding."
    ),
]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust", help="Open runners of elsewhere that could run code: you know who made them."
    ),
]


@contextmanager
def download_bars() -> Iterator[Progress | None]:
    """Show how far each file is, if somebody is looking."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), console=Console(stderr=True)) as display:
        tasks: dict[str, Any] = {}

        def show(name: str, done_bytes: int, total_bytes: int | None) -> None:
            if name not in tasks:
                tasks[name] = display.add_task(one_line(name), total=total_bytes)
            display.update(tasks[name], completed=done_bytes, total=total_bytes)

        yield show


def fetch_saved(name: str) -> None:
    """Bring a repository (``hf://...``) onto this machine, with a bar; of other names do nothing.

    Raises:
        WeightsError: It cannot be had.
    """
    if not name.startswith("hf://"):
        return
    from trunkline.weights.pretrained import files_of

    with download_bars() as progress:
        files_of(name, progress=progress)


def build_network(
    name: str,
    weights: str,
    return_idx: tuple[int, ...] | None,
    *,
    seed: int,
    allow_noncommercial: bool,
    prefix: str | None = None,
    check: bool = False,
    classifier: bool = False,
    in_channels: int = 3,
) -> Backbone:
    """Build the backbone that ``--backbone`` means, with the weights that a verb was given.

    Args:
        name: A variant, a folder that ``save_pretrained`` wrote, or ``hf://owner/repo``.
        weights: Of a variant; ``none`` is a seeded random network. A saved one has its own.
        return_idx: Which maps; None for all of a variant, and for those that were saved. Given,
            it asks for maps of a classifier too.
        seed: Of a random network.
        allow_noncommercial: Agree to weights that forbid commercial use.
        prefix: Where in the weights' file the network is.
        check: Run one image through the loaded network.
        classifier: Of a classifier of ours, saved or in a file, take the logits; else the maps.
        in_channels: Of the images of a variant; a saved one knows.

    Returns:
        The backbone. Its ``load_report`` is None where it is random.
    """
    import torch

    import trunkline
    from trunkline.backbones.options import ALL_STAGES
    from trunkline.errors import ConfigError
    from trunkline.heads.classifier import Classifier
    from trunkline.heads.logits import LogitsNetwork
    from trunkline.heads.opening import load_network
    from trunkline.weights import pretrained
    from trunkline.weights.opening import check_no_weights, is_saved

    if is_saved(name):
        check_no_weights(name, weights)
        if prefix is not None:
            raise ConfigError(
                f"{name} is a saved network, and --prefix is for files; leave it out."
            )
        fetch_saved(name)
        if return_idx is not None:
            return pretrained.from_pretrained(name, return_idx=return_idx)
        saved = trunkline.from_pretrained(name)
        if isinstance(saved, Classifier):
            return saved.as_network() if classifier else saved.backbone
        return cast("Backbone", saved)
    random = weights == "none"
    if random and prefix is not None:
        raise ConfigError(
            f"--prefix {prefix} is a place in a file, and --weights names none; add it, or leave "
            "--prefix out."
        )
    if random:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return trunkline.create_backbone(
                name, return_idx=return_idx or ALL_STAGES, in_channels=in_channels
            )
    with download_bars() as progress:
        network = load_network(
            name,
            weights,
            return_idx if classifier else return_idx or ALL_STAGES,
            in_channels=in_channels,
            prefix=prefix,
            check=check,
            allow_noncommercial=allow_noncommercial,
            progress=progress,
        )
    if isinstance(network, LogitsNetwork):
        say(
            f"{one_line(weights)} is a classifier of {network.head.conv.out_channels} classes: "
            "these are its logits. --levels gives maps of its backbone."
        )
    return network


def weights_said(network: Backbone, weights: str) -> str | None:
    """Return what a report calls the weights: as asked for, ``saved``, or None for random ones."""
    if network.load_report is None:
        return None
    return "saved" if weights == "none" else weights


def warn_of_random(seed: int, *, on_stderr: bool) -> None:
    """Say loudly that a network knows nothing."""
    tell = say if on_stderr else typer.echo  # standard output may be for JSON alone
    tell(
        f"The network is RANDOM (--weights none, --seed {seed}): its maps carry no learned meaning."
    )


def warn_of_assumed(network: Backbone) -> None:
    """Say on standard error that nobody said how images are prepared; of random networks nothing.

    Args:
        network: As ``build_network`` made it.
    """
    if network.load_report is not None and network.stated_preprocessing is None:
        say(
            "The preprocessing is ASSUMED: the weights do not say how they want their images, so "
            f"ImageNet's usual way is taken ({network.preprocessing.describe()}). If they want "
            "another, set backbone.preprocessing in Python, save_pretrained it into a folder, and "
            "give that as --backbone."
        )


def report_as_dict(report: LoadReport) -> dict[str, Any]:
    """Return a load report for JSON; of what was left aside, the reasons and how many."""
    return {
        "path": str(report.path),
        "sha256": report.sha256,
        "tag": report.tag,
        "license": report.license,
        "claims": dict(report.claims),
        "layout": report.layout,
        "container": report.container,
        "prefix": report.prefix,
        "matched": report.matched,
        "adapted": list(report.adapted),
        "dropped": {reason: len(names) for reason, names in report.dropped.items()},
        "filled": len(report.filled),
        "notes": list(report.notes),
    }


def print_report(report: LoadReport) -> None:
    """Print what a load did and under which licence the weights are."""
    for line in str(report).splitlines():
        typer.echo(f"loaded    {one_line(line)}")
    claimed = f"{report.claims['license']}, says the file" if "license" in report.claims else ""
    typer.echo(f"licence   {one_line(report.license or claimed or 'not stated by the file')}")
