"""``trunkline completion``: what a shell reads to complete verbs, flags and names of variants."""

from __future__ import annotations

from typing import Annotated

import typer
from typer import completion as typer_completion

from trunkline.errors import ConfigError

SHELLS = ("bash", "zsh", "fish")
_NAMING = ("backbone", "variant")  # parameters of verbs that say which network
_VARIABLE = "_TRUNKLINE_COMPLETE"  # which the parser looks for: the command's name in it


def _shells(incomplete: str) -> list[str]:
    return [shell for shell in SHELLS if shell.startswith(incomplete)]


def completion_command(
    shell: Annotated[str, typer.Argument(metavar="|".join(SHELLS), autocompletion=_shells)],
) -> None:
    """Print a script that completes this command; the shell is to read it.

    bash: add `eval "$(trunkline completion bash)"` to ~/.bashrc. zsh: the same in ~/.zshrc, after
    compinit. fish: trunkline completion fish > ~/.config/fish/completions/trunkline.fish
    """
    if shell not in SHELLS:
        raise ConfigError(f"no completion for {shell}; allowed: {', '.join(SHELLS)}.")
    script: str = typer_completion.get_completion_script(  # type: ignore[attr-defined]
        prog_name="trunkline", complete_var=_VARIABLE, shell=shell
    )
    typer.echo(script)


def backbones(incomplete: str) -> list[str]:
    """Return the variants that begin as what was typed. PyTorch is not imported."""
    from trunkline.facts import facts

    return [name for name in facts() if name.startswith(incomplete.lower())]


def checkpoints(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the tags of the variant that the line names, with what ``--weights`` takes beside."""
    from trunkline.errors import UnknownVariantError
    from trunkline.weights import catalog

    variant = next((ctx.params[one] for one in _NAMING if ctx.params.get(one)), None)
    try:
        tags = [] if variant is None else [row.tag for row in catalog.entries(variant)]
    except UnknownVariantError:  # half a name, or a folder
        tags = []
    words = [*(("none",) if "weights" in ctx.params else ()), "default", *tags]
    return [word for word in words if word.startswith(incomplete.lower())]


typer_completion.completion_init()  # type: ignore[attr-defined]  # lets the parser answer the scripts
