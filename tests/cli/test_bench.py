"""``trunkline bench`` on a small network. Nothing timed is asserted."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner, Result

from trunkline.benchmarking import bench as bench_module
from trunkline.benchmarking import peak, profile
from trunkline.cli.bench import parse_shape
from trunkline.cli.root import app
from trunkline.errors import ConfigError

SMALL = ("--shape", "1x64x64", "--rounds", "2", "--threads", "1")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(
        app, ["bench", *arguments], prog_name="trunkline", catch_exceptions=False
    )


@pytest.fixture(autouse=True)
def _quick_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = [peak.ConvShape(1, 8, 8, 3, depth=1)]

    def measure(threads: int, precision: str = "fp32", **_: object) -> peak.Peak:
        return peak.measure_peak(threads, precision, shapes=tiny)

    for module in (bench_module, profile):
        monkeypatch.setattr(module, "measure_peak", measure)


def test_json_has_a_row_per_runner() -> None:
    runtimes = ("--runtime", "eager", "--runtime", "torch")
    done = run("resnet18", *SMALL, *runtimes, "--no-memory", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert [row["runner"] for row in report["rows"]] == ["eager", "torch fp32"]
    assert report["rows"][1]["shape"] == [1, 64, 64]
    assert len(report["rows"][1]["fidelity"]) == 4
    assert report["threads"] == 1


def test_the_table_says_against_what_and_that_numbers_are_random() -> None:
    done = run("resnet_18", *SMALL, "--runtime", "eager", "--no-memory")
    assert done.exit_code == 0
    assert "weights: none, numbers are RANDOM" in done.stdout
    assert re.search(r"resnet18 at 1x64x64, 2 rounds", done.stdout)
    assert re.search(r"median ms +p5 +p95 +images/s +x eager +of peak", done.stdout)
    (row,) = re.findall(r"^eager .*$", done.stdout, re.MULTILINE)
    assert re.fullmatch(r"eager( +[\d.]+){4} +1\.00 +\d+% +- +- +-", row.rstrip())


def test_a_ratio_that_is_no_quotient_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    from trunkline.cli import bench

    runtimes = ("--runtime", "eager", "--runtime", "torch", "--no-memory")
    said = (
        r"x eager of torch fp32 is the median of 2 ratios, each of two neighbours in time; the quo"
    )
    monkeypatch.setattr(bench, "_SURPRISE", -1.0)
    assert re.search(said, run("resnet18", *SMALL, *runtimes).stdout)
    monkeypatch.setattr(bench, "_SURPRISE", 1e9)
    assert not re.search(said, run("resnet18", *SMALL, *runtimes).stdout)


def test_a_profile_as_a_table_and_as_json() -> None:
    flags = (*SMALL, "--profile", "--runtime", "onnxruntime")
    done = run("resnet18", *flags)
    assert done.exit_code == 0
    assert re.search(r"by kind: Conv \d", done.stdout)
    assert re.search(r"^stages\.\S+ +Conv +[\d.]+ +[\d.]+% +\d+ +\d+%", done.stdout, re.MULTILINE)
    (one,) = json.loads(run("resnet18", *flags, "--json").stdout)
    assert (one["runtime"], len(one["layers"])) == ("onnxruntime", 15)


@pytest.mark.parametrize("text", ["8x224x224", "8,224,224"])
def test_shapes_are_batch_height_width(text: str) -> None:
    assert parse_shape(text) == (8, 224, 224)


@pytest.mark.parametrize("text", ["224", "8x224", "0x224x224", "1x2x3x4", "1x-2x3", ""])
def test_other_shapes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=rf"--shape got '{text}'; give batch, height and width"):
        parse_shape(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet19"], r"no variant 'resnet19'"),
        (["resnet18", "--shape", "big"], r"--shape got 'big'; give batch"),
        (["resnet18", "--runtime", "tensorrt"], r"no runtime 'tensorrt'; allowed: eager, auto"),
        (["resnet18", "--against", "keras"], r"no peer 'keras'; allowed: timm, torchvision"),
        (["resnet18", "--profile", "--runtime", "torch"], r"--profile got torch; it works with"),
    ],
)
def test_mistakes_are_one_line_and_exit_with_2(arguments: list[str], message: str) -> None:
    done = run(*arguments, "--threads", "1")
    assert (done.exit_code, done.stdout) == (2, "")
    assert re.fullmatch(rf"trunkline: error: .*{message}.*\n", done.stderr)
