"""``trunkline weights pull`` and ``verify``, on rows of the catalog that 127.0.0.1 serves."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from loopback import LoopbackHub
from typer.testing import CliRunner, Result

from trunkline.cli import weights_files
from trunkline.cli.root import app
from trunkline.cli.weights import app as weights_app
from trunkline.errors import ConfigError, LicenseError
from trunkline.weights import catalog
from trunkline.weights.catalog import Place, WeightEntry

BODY = b"weights" * 1000
FLAGS = {
    "pull": ["--all", "--allow-noncommercial", "--help", "--tag", "--to", "names"],
    "verify": ["--help", "--json"],
}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["weights", *arguments], prog_name="trunkline")


def test_flags_are_these() -> None:
    verbs = getattr(typer.main.get_command(weights_app), "commands")  # noqa: B009 - as in typer
    for name, flags in FLAGS.items():
        with verbs[name].make_context(name, [], resilient_parsing=True) as context:
            parameters = verbs[name].get_params(context)
        found = (next(flag for flag in one.opts if flag != "-h") for one in parameters)
        assert sorted(found) == flags


@pytest.fixture
def rows(loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> list[WeightEntry]:
    """The catalog's dla34, one that may not be sold, and a default of another variant."""
    found = []
    for variant, tag, spdx in (
        ("dla34", "timm-in1k", "BSD-3-Clause"),
        ("dla34", "other", "CC-BY-NC-4.0"),
        ("dla60", "timm-in1k", "BSD-3-Clause"),
    ):
        address = loopback_hub.add_file(f"o/{variant}-{tag}", "model.safetensors", BODY)
        place = Place(url=address, layout="timm-dla")
        model = catalog.find("dla34")
        found.append(
            dataclasses.replace(
                model,
                variant=variant,
                tag=tag,
                license=spdx,
                places=(place,),
                layout="timm-dla",
            )
        )

    def find(variant: str, tag: str = "default") -> WeightEntry:
        tag = "timm-in1k" if tag == "default" else tag
        return next(row for row in found if (row.variant, row.tag) == (variant, tag))

    def entries(variant: str | None = None) -> list[WeightEntry]:
        return [row for row in found if variant in (None, row.variant)]

    def default_tag(variant: str) -> str | None:
        return "timm-in1k" if entries(variant) else None

    monkeypatch.setattr(catalog, "find", find)
    monkeypatch.setattr(catalog, "entries", entries)
    monkeypatch.setattr(catalog, "default_tag", default_tag)
    return found


def test_pull_prints_where_each_file_is(rows: list[WeightEntry], weights_home: Path) -> None:
    assert rows
    result = run("pull", "dla34", "dla60:timm-in1k", "dla34")
    folder = weights_home / "weights" / "hf" / "o"
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        f"dla34:timm-in1k  {folder / 'dla34-timm-in1k' / 'main' / 'model.safetensors'}",
        f"dla60:timm-in1k  {folder / 'dla60-timm-in1k' / 'main' / 'model.safetensors'}",
    ]
    assert result.stderr == ""


def test_pull_to_a_folder(rows: list[WeightEntry], tmp_path: Path) -> None:
    assert rows
    result = run("pull", "dla34", "--tag", "timm-in1k", "--to", str(tmp_path / "stick"))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "stick" / "dla34.timm-in1k.safetensors").read_bytes() == BODY
    assert "Set TRUNKLINE_WEIGHTS=" in result.stdout


def test_pull_asks_about_licences_first(rows: list[WeightEntry], loopback_hub: LoopbackHub) -> None:
    assert rows
    result = run("pull", "dla60", "dla34:other")
    assert isinstance(result.exception, LicenseError) or result.exit_code == 2
    assert loopback_hub.requests == []
    assert run("pull", "dla34:other", "--allow-noncommercial").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "pulled", "left_out"),
    [
        (["--all"], ["dla34:timm-in1k", "dla60:timm-in1k"], 0),
        (["dla34", "--all"], ["dla34:timm-in1k"], 1),
        (["dla34", "--all", "--allow-noncommercial"], ["dla34:timm-in1k", "dla34:other"], 0),
    ],
)
def test_pull_all(
    rows: list[WeightEntry], arguments: list[str], pulled: list[str], left_out: int
) -> None:
    assert rows
    result = run("pull", *arguments)
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.stdout.splitlines()] == pulled
    assert result.stderr.count("left out: dla34 other") == left_out


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: weights_files.pull_command(), "pull what"),
        (
            lambda: weights_files.pull_command(["dla34"], tag="x", everything=True),
            "leave out --tag",
        ),
    ],
)
def test_pull_says_what_it_needs(call: Callable[[], None], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        call()


def test_pull_shows_bars_on_a_terminal(
    rows: list[WeightEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert rows
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    weights_files.pull_command(["dla34"])
    assert "dla34.timm-in1k" in screen.getvalue()


def test_verify_says_which_file_changed(rows: list[WeightEntry], weights_home: Path) -> None:
    assert rows
    assert run("verify").stdout.strip() == "0 files, 0 of them changed or missing."
    run("pull", "dla34", "dla60")
    good = run("verify")
    assert good.exit_code == 0
    assert good.stdout.endswith("2 files, 0 of them changed or missing.\n")
    path = next(weights_home.rglob("dla60*/main/model.safetensors"))
    path.write_bytes(BODY[1:])
    bad = run("verify")
    assert bad.exit_code == 1
    assert f"{path}\n  must be " in bad.stdout
    told = json.loads(run("verify", "--json").stdout)
    assert {Path(row["path"]).parts[-3]: row["state"] for row in told} == {
        "dla34-timm-in1k": "ok",
        "dla60-timm-in1k": "changed",
    }
