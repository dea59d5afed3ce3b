"""``trunkline classify``, in this process."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from loopback import LoopbackHub
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from trunkline.cli.loaded import download_bars, print_report, report_as_dict
from trunkline.cli.root import app
from trunkline.heads.classifier import classify, load_classifier
from trunkline.weights.catalog import entries
from trunkline.weights.loading import LoadReport


def run(*arguments: str) -> Result:
    return CliRunner().invoke(
        app, ["classify", *arguments], prog_name="trunkline", catch_exceptions=False
    )


def without_assumed(stderr: str) -> str:
    """Return standard error without what is said of a file that states no preprocessing."""
    return re.sub(r"The preprocessing is ASSUMED: .*\n", "", stderr)


def report(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert (result.exit_code, without_assumed(result.stderr)) == (0, "")
    return json.loads(result.stdout)


def test_a_licence_that_a_file_gives_itself_is_called_its_word(
    capsys: pytest.CaptureFixture[str],
) -> None:
    claims = {"license": "MIT\x1b[2J", "tag": "timm-in1k"}
    loaded = LoadReport("x", Path("x"), "0", None, None, "dla", "", 3, claims=claims)
    print_report(loaded)
    assert capsys.readouterr().out.splitlines()[-1] == r"licence   MIT\x1b[2J, says the file"
    assert report_as_dict(loaded)["claims"] == claims


def test_table_has_the_five_likeliest(photo: str, dla46: Path) -> None:
    result = run(photo, "--backbone", "dla46-c", "--weights", str(dla46))
    assert (result.exit_code, without_assumed(result.stderr)) == (0, "")
    assert re.search(r"^backbone +dla46-c, weights .*, 1000 classes$", result.stdout, re.M)
    tensors = len(load_file(dla46))
    assert f"loaded    {tensors} tensors from dla46.safetensors, read as timm-dla." in result.stdout
    assert "left aside" not in result.stdout
    assert "licence   not stated by the file" in result.stdout
    table = result.stdout.partition("probability\n")[2].splitlines()[1:]
    guesses = classify(photo, load_classifier("dla46-c", dla46))
    assert [re.split(r" {2,}", line) for line in table] == [
        [guess.label, str(guess.index), f"{guess.probability:.4f}"] for guess in guesses
    ]


def test_json_equals_what_python_gives(photo: str, dla46: Path) -> None:
    got = report(photo, "--backbone", "dla46_c", "--weights", str(dla46), "--top", "3")
    guesses = classify(photo, load_classifier("dla46-c", dla46), 3)
    assert [(row["index"], row["label"]) for row in got["top"]] == [
        (guess.index, guess.label) for guess in guesses
    ]
    assert [row["probability"] for row in got["top"]] == pytest.approx(
        [guess.probability for guess in guesses]
    )
    assert (got["backbone"], got["num_classes"], got["named"]) == ("dla46-c", 1000, True)
    assert (got["image_size"], got["input_size"]) == ([40, 50], [224, 224])
    assert got["loaded"]["layout"] == "timm-dla"
    assert got["loaded"]["dropped"] == {}


def test_default_weights_come_from_the_hub_once(photo: str, hub: LoopbackHub) -> None:
    got = report(photo, "--backbone", "dla46-c")
    assert (got["loaded"]["tag"], got["loaded"]["license"]) == ("timm-in1k", "BSD-3-Clause")
    table = run(photo, "--backbone", "dla46-c", "--weights", "timm-in1k").stdout
    assert "licence   BSD-3-Clause" in table
    assert hub.gets("model.safetensors") == 1


def test_address_on_the_hub(photo: str, hub: LoopbackHub) -> None:
    got = report(photo, "--backbone", "dla46-c", "--weights", "hf://timm/dla46_c.in1k")
    assert hub.gets("model.safetensors") == 1
    assert got["loaded"]["tag"] is None


def test_download_shows_a_bar_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    with download_bars() as nobody_looks:
        assert nobody_looks is None
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with download_bars() as progress:
        assert progress is not None
        progress("some.file", 3, 7)
    assert "some.file" in screen.getvalue()


def test_classes_without_names_are_numbers(photo: str, dla46: Path, tmp_path: Path) -> None:
    state = load_file(dla46)
    state["fc.weight"], state["fc.bias"] = state["fc.weight"][:7].clone(), state["fc.bias"][:7]
    save_file(state, tmp_path / "seven.safetensors")
    flags = ("--backbone", "dla46-c", "--weights", str(tmp_path / "seven.safetensors"))
    assert "classes   without names" in run(photo, *flags).stdout
    got = report(photo, *flags, "--top", "7")
    assert sorted(row["label"] for row in got["top"]) == [str(index) for index in range(7)]
    assert math.fsum(row["probability"] for row in got["top"]) == pytest.approx(1)
    assert got["named"] is False


def test_nan_in_the_weights_is_null_in_json(photo: str, dla46: Path, tmp_path: Path) -> None:
    state = load_file(dla46)
    state["fc.bias"] *= math.nan
    save_file(state, tmp_path / "nan.safetensors")
    flags = ("--backbone", "dla46-c", "--weights", str(tmp_path / "nan.safetensors"))
    assert {row["probability"] for row in report(photo, *flags)["top"]} == {None}


def test_licence_must_be_agreed_to(
    photo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUNKLINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRUNKLINE_OFFLINE", "1")
    monkeypatch.delenv("TRUNKLINE_WEIGHTS", raising=False)
    tag = entries("resnet18", license="noncommercial")[0].tag
    call = (photo, "--backbone", "resnet18", "--weights", tag)
    refused = run(*call)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert re.search(r"licence for non-commercial use only: .*--allow-noncommer", refused.stderr)
    agreed = run(*call, "--allow-noncommercial")
    assert re.search(r"not on this machine, and the network is switched off", agreed.stderr)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--weights", "nowhere.safetensors"], r"no file nowhere\.safetensors; give the path"),
        (["--weights", "none"], r"'none'"),
        (["--top", "1001"], r"top must be from 1 to 1000, the number of classes, got 1001"),
        (["--layout", "caffe"], r"no layout 'caffe'; allowed: auto, trunkline, "),
        (["--backbone", "dla34"], r"holds dla46-c, and dla34 computes .*build dla46-c"),
    ],
)
def test_errors_are_one_line(photo: str, dla46: Path, flags: list[str], message: str) -> None:
    result = run(photo, "--backbone", "dla46-c", "--weights", str(dla46), *flags)
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.fullmatch(rf"trunkline: error: .*{message}.*\n", without_assumed(result.stderr))


def test_bad_photo_is_known_before_the_weights_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no photo")
    result = run(str(tmp_path / "bad.jpg"), "--backbone", "dla46-c", "--weights", "nowhere.pth")
    assert result.exit_code == 2
    assert "bad.jpg" in result.stderr
    assert "nowhere" not in result.stderr
