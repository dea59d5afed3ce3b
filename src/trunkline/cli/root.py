"""The command without a verb: --version, the list of verbs, and how errors leave it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from trunkline.cli import (
    bench,
    classify,
    completion,
    convert,
    deploy,
    export,
    extract,
    features,
    info,
    listing,
    weights,
)
from trunkline.cli.output import one_line, say
from trunkline.cli.streams import standard_streams
from trunkline.errors import TrunklineError
from trunkline.files import absolute


class _Verbs(TyperGroup):
    """Typer's group, with lists of numbers as arguments and with errors on one line."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        given = sys.argv[1:] if args is None else args
        with standard_streams():
            try:
                absolute(".")  # nor can PyTorch be imported where it was removed
                return super().main(features.join_levels(given), *rest, **options)
            except TrunklineError as error:
                say(f"trunkline: error: {one_line(str(error))}")
                sys.exit(error.exit_code)


app = typer.Typer(
    cls=_Verbs,
    add_completion=False,  # its flags write into the user's shell profile; see completion
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a bug shows Python's own traceback, which can be searched
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("list")(listing.list_command)
app.command("info")(info.info_command)
app.command("features")(features.features_command)
app.command("classify")(classify.classify_command)
app.command("convert")(convert.convert_command)
app.command("export")(export.export_command)
app.command("deploy")(deploy.deploy_command)
app.command("bench")(bench.bench_command)
app.command("completion")(completion.completion_command)
app.add_typer(extract.app, name="extract")
app.add_typer(weights.app, name="weights")


def _print_version(asked: bool) -> None:
    if asked:
        import trunkline

        typer.echo(f"trunkline {trunkline.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it, exit."),
    ] = False,
) -> None:
    """Multi-scale feature maps from ResNet, DLA and RegNet."""
