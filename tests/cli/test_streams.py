"""What a verb prints arrives, or its exit code and one line say that it did not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import pytest
import typer

from trunkline.cli.root import app

posix = pytest.mark.skipif(os.name == "nt", reason="needs the streams of POSIX")
pytestmark = posix

NO_ROOM = "trunkline: error: standard output cannot be written: No space left on device\n"
CLOSED = "trunkline: error: standard output cannot be written: Bad file descriptor\n"
PRINTING = [
    ["info", "resnet18"],
    ["info", "resnet18", "--json"],
    ["--version"],
    ["weights", "list", "--json"],
]


def commands() -> Iterator[list[str]]:
    """Every verb, however deep, without a list in which one could be forgotten."""

    def below(command: Any, path: list[str]) -> Iterator[list[str]]:
        yield path
        for name, inner in getattr(command, "commands", {}).items():
            yield from below(inner, [*path, name])

    yield from below(typer.main.get_command(app), [])


HELP = [[*path, "--help"] for path in commands()]


@pytest.fixture
def full() -> Iterator[TextIO]:
    """A disk that takes nothing."""
    with suppress(OSError), open("/dev/full", "w") as stream:
        yield stream


@pytest.fixture
def unread() -> Iterator[TextIO]:
    """A pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        yield stream


def ended(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ending:
        app(arguments, prog_name="trunkline")
    assert isinstance(ending.value.code, int)
    return ending.value.code


def test_all_verbs_are_here() -> None:
    assert len(HELP) > 15
    assert ["extract", "verify", "--help"] in HELP


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's full device")
@pytest.mark.parametrize("arguments", HELP + PRINTING, ids=" ".join)
def test_a_disk_without_room_is_told_in_one_line(
    arguments: list[str],
    full: TextIO,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdout", full)
    assert ended(arguments) == 2
    assert capsys.readouterr().err == NO_ROOM
    assert sys.stdout is full


@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
def test_a_reader_that_is_gone_ends_it_quietly(
    arguments: list[str],
    unread: TextIO,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdout", unread)
    assert ended(arguments) == 128 + 13
    assert capsys.readouterr().err == ""


def test_an_error_is_told_where_nothing_can_be_printed(
    full: TextIO, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", full)
    assert ended(["info", "resnet19"]) == 2
    assert "no variant 'resnet19'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["info", "resnet19"], ["info"], ["nosuch"]], ids=" ".join)
def test_an_error_that_nobody_can_read_keeps_its_code(
    arguments: list[str], full: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", full)
    assert ended(arguments) == 2


@pytest.mark.parametrize(
    ("redirected", "code", "told"),
    [
        (">/dev/full", 2, NO_ROOM),
        (">&-", 2, CLOSED),
        ("2>&-", 0, ""),
        (">&- 2>&- <&-", 2, ""),
        ("| exit 3", 141, ""),
    ],
)
def test_python_adds_nothing_at_its_end(redirected: str, code: int, told: str) -> None:
    script = f'"$0" -m trunkline --version {redirected}\nexit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["/usr/bin/env", "bash", "-c", script, sys.executable],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (code, told)
