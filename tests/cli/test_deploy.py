"""``trunkline deploy``."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from trunkline import load_runner
from trunkline.cli.bench import parse_shape
from trunkline.cli.root import app
from trunkline.errors import ConfigError
from trunkline.runtimes import deployment
from trunkline.runtimes.engine import ENGINES
from trunkline.runtimes.selection import measure
from trunkline.runtimes.timing import Clocks


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_HOME", str(tmp_path / "home"))
    quick = {name: home for name, home in ENGINES.items() if name != "inductor"}
    monkeypatch.setattr(deployment, "ENGINES", quick)
    no_pauses = Clocks(busy=lambda: 0.0, sleep=lambda _seconds: None)
    monkeypatch.setattr(deployment, "measure", partial(measure, clocks=no_pauses))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["deploy", *arguments], catch_exceptions=False)


def as_json(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0
    loaded: dict[str, Any] = json.loads(result.stdout)
    return loaded


def test_one_engine_as_text_and_saved(tmp_path: Path) -> None:
    out = tmp_path / "runner"
    result = run("resnet18", "--runtime", "onnxruntime", "--levels", "3", "1", "--out", str(out))
    assert result.exit_code == 0
    assert "The network is RANDOM (--weights none, --seed 0)" in result.stdout
    assert "runtime   onnxruntime, fp32" in result.stdout
    assert "input     any N, H, W, normalised images" in result.stdout
    assert f"saved     {out}" in result.stdout
    assert load_runner(out).strides == (32, 8)


def test_auto_explains_and_decides_the_same_the_second_time() -> None:
    arguments = ("resnet18", "--shape", "1x64x64", "--levels", "0")
    result = run(*arguments, "--explain")
    assert result.exit_code == 0
    assert "Measuring engines" in result.stderr
    assert "auto chose " in result.stdout
    assert "at 1x64x64, this machine, these versions." in result.stdout
    first, second = as_json(*arguments), as_json(*arguments)
    assert first["decision"] == second["decision"]
    assert first["decision"]["chosen"] == first["runtime"]
    assert {one["runtime"] for one in first["decision"]["candidates"]} == {
        *("onnxruntime", "openvino", "torch"),
    }


def test_json_holds_all() -> None:
    report = as_json("resnet18", "--runtime", "torch", "--preprocess", "--shape", "2,32,64")
    assert report["variant"] == "resnet18"
    assert report["input_shape"] == [2, 32, 64]
    assert report["preprocess"] is True
    assert [one["stride"] for one in report["fidelity"]] == [4, 8, 16, 32]
    assert report["decision"] is None
    assert report["out"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runtime", "tensorrt"], "runtime='tensorrt' is unknown"),
        (["--runtime", "torch", "--explain"], "--explain and --remeasure are for --runtime auto"),
        (["--runtime", "torch", "--precision", "int8"], "needs calibration images"),
        (["--shape", "224"], "--shape got '224'"),
        (["--levels", "4"], "4"),
    ],
)
def test_errors_on_one_line(arguments: list[str], message: str) -> None:
    result = run("resnet18", *arguments)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("trunkline: error: ")
    assert message in result.stderr


def test_shapes() -> None:
    assert parse_shape("8x224x224") == parse_shape("8,224,224") == (8, 224, 224)
    for text in ("", "8x224", "0x2x2", "-1x2x2", "axbxc", "1x2x3x4", "1.5x2x2"):
        with pytest.raises(ConfigError, match=r"--shape got .* such as 8x224x224"):
            parse_shape(text)
