"""Verbs that read tables answer at once: none of them waits for PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# What a process says on standard error at its end, after whatever else it says there.
_CODE = (
    "import atexit, sys\n"
    "atexit.register(lambda: print(sorted({'torch', 'rich.table'} & {*sys.modules}),"
    " file=sys.stderr))\n"
    "sys.argv[0] = 'trunkline'\n"
    "from trunkline.cli import main\n"
    "main()\n"
)


def imported(arguments: list[str], **environment: str) -> tuple[int, str]:
    """Run the command; return its exit code and which slow libraries it had at its end."""
    done = subprocess.run(
        [sys.executable, "-c", _CODE, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, **environment},
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "words",
    [
        "--version",
        "list",
        "list --family dla --json",
        "info resnet_50",
        "info resnet50 --json",
        "weights list",
        "weights list tv_resnet50 --commercial --source timm",
        "weights list --task satellite --channels 13 --sort accuracy --json",
        "weights show resnet50",
        "weights show dla34 timm-in1k --json",
        "completion bash",
    ],
)
def test_no_pytorch_for_what_is_in_tables(words: str) -> None:
    assert imported(words.split()) == (0, "[]")


@pytest.mark.parametrize(
    "words",
    [
        "list --family vgg",
        "info resnet51",
        "weights list resnet51",
        "weights show dla34 nothing",
        "weights pull",
    ],
)
def test_no_pytorch_for_their_errors(words: str) -> None:
    assert imported(words.split()) == (2, "[]")


@pytest.mark.parametrize(
    "typed",
    ["trunkline extract photos f.parquet --backbone re", "trunkline info re", "trunkline w"],
)
def test_no_pytorch_while_one_types(typed: str) -> None:
    asked = {"_TRUNKLINE_COMPLETE": "complete_bash", "COMP_WORDS": typed}
    assert imported([], **asked, COMP_CWORD=str(len(typed.split()) - 1)) == (0, "[]")


def test_no_pytorch_for_files_of_weights(tmp_path: Path) -> None:
    home = {"TRUNKLINE_HOME": str(tmp_path), "HF_HOME": str(tmp_path), "TRUNKLINE_OFFLINE": "1"}
    assert imported(["weights", "verify"], **home) == (0, "[]")
    assert imported(["weights", "pull", "dla34"], **home) == (2, "[]")  # which needs the network
