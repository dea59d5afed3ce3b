"""What the tab key finds, as the shells ask for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from trunkline.cli.root import app


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("trunkline exp", ["export"]),
        ("trunkline extract run --band", ["--bands"]),
        ("trunkline extract --band", ["--bands"]),
        ("trunkline extract ver", ["verify"]),
        ("trunkline extract photos f.parquet --band", ["--bands"]),
        ("trunkline extract photos f.parquet --backbone dla46", ["dla46-c", "dla46x-c"]),
        ("trunkline features a.jpg --backbone dla34 --weights t", ["timm-in1k"]),
        ("trunkline features a.jpg --backbone folder --weights de", ["default"]),
        ("trunkline weights show dla34 uc", ["ucbdrive"]),
        ("trunkline weights pull dla46", ["dla46-c", "dla46x-c"]),
        ("trunkline bench resnet18 dla46", ["dla46-c", "dla46x-c"]),
        ("trunkline convert a.pth b.pth --variant dla16", ["dla169"]),
        ("trunkline completion z", ["zsh"]),
        ("trunkline extract run --backbone dla46", ["dla46-c", "dla46x-c"]),
        ("trunkline info regnet-x-00", [f"regnet-x-00{n}" for n in ("2", "4", "4-tv", "6", "8")]),
    ],
)
def test_shells_complete(typed: str, found: list[str]) -> None:
    words = typed.split()
    asked = {
        **os.environ,
        "_TRUNKLINE_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(words) - 1),
    }
    code = "from trunkline.cli.root import app; app(prog_name='trunkline')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=asked, check=False
    )
    assert sorted(done.stdout.split()) == found, done.stderr


def test_a_script_for_every_shell() -> None:
    for shell in ("bash", "zsh", "fish"):
        result = CliRunner().invoke(app, ["completion", shell])
        assert result.exit_code == 0, result.output
        assert "_TRUNKLINE_COMPLETE" in result.stdout
    result = CliRunner().invoke(app, ["completion", "tcsh"])
    assert result.exit_code == 2
    assert "no completion for tcsh; allowed: bash, zsh, fish" in result.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_ask_in_their_own_way(shell: str) -> None:
    asked = {
        **os.environ,
        "_TRUNKLINE_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": "trunkline info resnet15",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    code = "from trunkline.cli.root import app; app(prog_name='trunkline')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=asked, check=False
    )
    assert "resnet152d" in done.stdout, done.stderr
    assert "resnet18" not in done.stdout
