"""The command line as a whole: its flags, list, info, and real processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

import trunkline
from trunkline.cli.output import one_line, print_table
from trunkline.cli.root import app

FLAGS = {
    "list": ["--family", "--help", "--json"],
    "info": ["--help", "--json", "name"],
    "features": [
        *("--allow-noncommercial", "--backbone", "--bands", "--check", "--help", "--json"),
        *("--levels", "--out", "--prefix", "--seed", "--size", "--weights", "--white", "image"),
    ],
    "classify": [
        *("--allow-noncommercial", "--backbone", "--bands", "--batch-size", "--help", "--json"),
        *("--labels", "--layout", "--pool", "--prefix", "--size", "--top", "--weights"),
        *("--white", "images"),
    ],
    "completion": ["--help", "shell"],
    "convert": [
        *("--allow-noncommercial", "--help", "--json", "--layout", "--prefix", "--to"),
        *("--variant", "--without-classifier", "dst", "src"),
    ],
    "deploy": [
        *("--allow-noncommercial", "--calibration", "--explain", "--help", "--json", "--levels"),
        *(
            "--out",
            "--precision",
            "--prefix",
            "--preprocess",
            "--remeasure",
            "--runtime",
            "--seed",
            "--shape",
        ),
        *("--threads", "--weights", "name"),
    ],
    "export": [
        *("--allow-noncommercial", "--batch", "--calibration", "--dynamic", "--format", "--help"),
        *("--json", "--levels", "--max-batch-size", "--model-version", "--name", "--opset"),
        *(
            "--precision",
            "--prefix",
            "--preprocess",
            "--repo",
            "--seed",
            "--serve",
            "--size",
            "--weights",
        ),
        *("name", "out"),
    ],
    "bench": [
        *("--against", "--calibration", "--help", "--json", "--no-memory", "--precision"),
        *("--profile", "--rounds", "--runtime", "--shape", "--threads", "--weights", "names"),
    ],
    "extract run": [
        *("--allow-noncommercial", "--alpha", "--backbone", "--bands", "--batch-size"),
        *(
            "--calibration",
            "--column",
            "--decode",
            "--dtype",
            "--engine",
            "--help",
            "--json",
            "--key-column",
            "--layout",
        ),
        *("--levels", "--max-bytes", "--max-errors", "--max-pixels", "--normalize", "--pad"),
        *(
            "--pool",
            "--precision",
            "--prefix",
            "--ray-address",
            "--retry-failed",
            "--runtime",
            "--seed",
        ),
        *(
            "--shard",
            "--shard-size",
            "--size",
            "--threads",
            "--timeout",
            "--truncated",
            "--trust",
            "--weights",
            "--white",
        ),
        *("--workers", "out", "src"),
    ],
    "extract verify": ["--count", "--help", "--json", "--seed", "--trust", "out"],
    "extract stats": ["--help", "--json", "out"],
    "extract merge": ["--help", "stores"],
    "weights list": [
        *("--channels", "--commercial", "--dataset", "--family", "--help", "--json", "--license"),
        *("--sort", "--source", "--task", "variant"),
    ],
    "weights show": ["--help", "--json", "tag", "variant"],
    "weights pull": ["--all", "--allow-noncommercial", "--help", "--tag", "--to", "names"],
    "weights verify": ["--help", "--json"],
}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="trunkline", catch_exceptions=False)


def process(
    *arguments: str, cwd: Path | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("FORCE_")}
    return subprocess.run(
        [sys.executable, "-m", "trunkline", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**plain, "COLUMNS": "80", **more},
        check=False,
    )


def verbs(group: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    for name, verb in group.commands.items():
        if hasattr(verb, "commands"):
            yield from verbs(verb, f"{above}{name} ")
        else:
            yield above + name, verb


def test_flags_are_these() -> None:
    found = {}
    for name, verb in verbs(typer.main.get_command(app)):
        with verb.make_context(name, [], resilient_parsing=True) as context:
            parameters = verb.get_params(context)
        found[name] = sorted(
            next(flag for flag in parameter.opts if flag != "-h") for parameter in parameters
        )
    assert found == FLAGS


@pytest.mark.parametrize("verb", ["", "weights", *FLAGS])
def test_help_of_every_verb_can_be_printed(verb: str) -> None:  # brackets in it are Rich's markup
    result = run(*verb.split(), "--help")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Usage: trunkline" in result.stdout


def test_version() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"trunkline {trunkline.__version__}\n")


@pytest.mark.parametrize("arguments", [["list", "--bogus"], ["features"], ["nonsense"]])
def test_unknown_options_and_verbs_exit_with_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_list_has_every_backbone_and_loses_no_cell_in_80_columns() -> None:
    result = run("list")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in result.stdout
    assert re.match(r"name +params +MACs +/2 +/4 +/8 +/16 +/32$", lines[0])
    names = trunkline.list_backbones()
    assert [line.split()[0] for line in lines[2 : 2 + len(names)]] == names
    resnet50 = next(line for line in lines if line.startswith("resnet50 "))
    assert resnet50.split() == [
        *("resnet50", "23.51", "M", "4.09", "G", "64", "256", "512", "1024", "2048")
    ]


def test_list_of_one_family_as_json() -> None:
    rows = json.loads(run("list", "--family", "dla", "--json").stdout)
    assert [row["name"] for row in rows] == trunkline.list_backbones("dla")
    one = trunkline.info("dla34")
    row = next(row for row in rows if row["name"] == "dla34")
    assert (row["num_parameters"], row["macs"]) == (one.num_parameters, one.macs)
    assert row["levels"][1] == {"name": "stage0", "stride": 4, "channels": 64}
    wrong = run("list", "--family", "vgg")
    assert wrong.exit_code == 2
    assert re.search(r"trunkline: error: .*'vgg'.*resnet, dla, regnet", wrong.stderr)


def test_info() -> None:
    result = run("info", "resnet_50")
    assert result.exit_code == 0
    assert "resnet50  (resnet)" in result.stdout
    assert "23,508,032 (23.51 M)" in result.stdout
    assert re.search(r"stage3 +32 +2048", result.stdout)
    assert json.loads(run("info", "resnet50", "--json").stdout)["num_parameters"] == 23_508_032
    wrong = run("info", "resnet51")
    assert wrong.exit_code == 2
    assert re.fullmatch(r"trunkline: error: no variant 'resnet51'; closest: .*\n", wrong.stderr)


def test_wide_tables_are_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", "[bold]n"], [["x" * 200, "[red]1"], ["b", "2\x1b[0m"]])
    shown = capsys.readouterr().out
    assert "x" * 200 in shown
    assert "[bold]n" in shown
    assert "[red]1" in shown
    assert "\x1b" not in shown


def test_tables_of_wide_characters_stay_straight(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", "n"], [["\u56fe\u50cf", 1], ["ab", 20]])
    assert capsys.readouterr().out == (
        f"name    n\n{chr(0x2500) * 9}\n\u56fe\u50cf    1\nab     20\n"
    )


def test_tables_in_a_terminal_without_unicode() -> None:
    done = process("info", "dla34", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert f"level    stride   channels\n{'-' * 26}\n" in done.stdout


def test_one_line_spells_out_what_a_terminal_could_obey() -> None:
    assert one_line("a\n  b\tc\x1b[0m\udcffé") == "a b\\tc\\x1b[0m\\udcffé"


def test_real_process_saves_the_maps(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "p.jpg")
    flags = (
        "--backbone",
        "resnet18",
        "--size",
        "32",
        "--levels",
        "0",
        "3",
        "--out",
        "o/m.safetensors",
    )
    done = process("features", "p.jpg", *flags, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"stage3 +32 +512x1x1 +float32", done.stdout)
    assert "RANDOM" in done.stdout
    assert "\x1b" not in done.stdout
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["m.safetensors", "o", "p.jpg"]


def test_real_process_with_a_bad_photo(tmp_path: Path) -> None:
    path = tmp_path / "bad.jpg"
    Image.new("RGB", (640, 480), "teal").save(path)
    path.write_bytes(path.read_bytes()[:-400])
    flags = ("--backbone", "resnet18", "--out", "o/maps.safetensors")
    done = process("features", "bad.jpg", *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"trunkline: error: bad\.jpg is damaged or cut short .*\n", done.stderr)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.jpg"]
