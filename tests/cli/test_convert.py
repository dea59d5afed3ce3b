"""``trunkline convert``, in this process."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from loopback import LoopbackHub
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

import trunkline
from trunkline.cli.root import app
from trunkline.weights.catalog import entries


def run(*arguments: str) -> Result:
    return CliRunner().invoke(
        app, ["convert", *arguments], prog_name="trunkline", catch_exceptions=False
    )


def test_report_in_words(dla46: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "dla46.pth"
    result = run(str(dla46), str(out), "--to", "trunkline")
    assert (result.exit_code, result.stderr) == (0, "")
    assert re.fullmatch(
        r".*dla46\.pth: dla46-c, \d+ tensors with its classifier, read as timm-dla, written as "
        r"trunkline\.\n",
        result.stdout,
    )
    assert len(torch.load(out, weights_only=True)) == len(load_file(dla46))


def test_there_and_back_is_the_same_file_and_json_says_what_was_done(
    dla46: Path, tmp_path: Path
) -> None:
    native, back = str(tmp_path / "native.safetensors"), str(tmp_path / "back.safetensors")
    assert run(str(dla46), native, "--to", "trunkline").exit_code == 0
    result = run(native, back, "--to", "timm", "--layout", "trunkline", "--json")
    assert json.loads(result.stdout) == {
        "path": back,
        "variant": "dla46-c",
        "read_as": "trunkline",
        "written_as": "timm-dla",
        "num_tensors": len(load_file(dla46)),
        "classifier": True,
        "notes": [],
    }
    before, after = load_file(dla46), load_file(back)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_notes_are_printed_on_lines_of_their_own(tmp_path: Path) -> None:
    src, dst = tmp_path / "r.safetensors", tmp_path / "out.pyth"
    save_file(trunkline.create_backbone("regnet-x-002").state_dict(), src)
    lines = run(str(src), str(dst), "--to", "pycls").stdout.splitlines()
    assert re.search(r"regnet-x-002, \d+ tensors without a classifier", lines[0])
    assert lines[1:] == ["The stem takes BGR, as that library's networks do."]


def test_a_classifier_of_one_s_own_is_left_out_only_if_told(tmp_path: Path) -> None:
    state = trunkline.create_backbone("resnet18vd").state_dict()
    state |= {"classifier.weight": torch.zeros(9, 512), "classifier.bias": torch.zeros(9)}
    src, dst = tmp_path / "r.safetensors", tmp_path / "out.bin"
    save_file(state, src)
    refused = run(str(src), str(dst), "--to", "transformers")
    assert "transformers' RT-DETR backbone has no classifier; classifier=False" in refused.stderr
    told = run(str(src), str(dst), "--to", "transformers", "--without-classifier")
    assert re.search(r"resnet18vd, \d+ tensors without a classifier", told.stdout)


def test_tag_of_a_variant_is_downloaded_without_bars_in_a_pipe(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    result = run("timm-in1k", str(out), "--variant", "dla46_c", "--to", "dla")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "written as dla." in result.stdout
    assert hub.gets("model.safetensors") == 1


def test_licence_must_be_agreed_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRUNKLINE_OFFLINE", "1")
    monkeypatch.delenv("TRUNKLINE_WEIGHTS", raising=False)
    tag = entries("resnet18", license="noncommercial")[0].tag
    call = (tag, str(tmp_path / "o.pth"), "--variant", "resnet18", "--to", "timm")
    refused = run(*call)
    assert refused.exit_code == 2
    assert re.match(
        rf"trunkline: error: resnet18 {tag} comes with a licence for non-commercial use only: .*"
        r"--allow-noncommercial on the command line",
        refused.stderr,
    )
    agreed = run(*call, "--allow-noncommercial")
    assert re.search(r"not on this machine, and the network is switched off", agreed.stderr)


@pytest.mark.parametrize(
    ("dst", "flags", "message"),
    [
        ("o.pth", ["--to", "keras"], r"to='keras' is not known; allowed: trunkline, timm, "),
        ("o.onnx", ["--to", "timm"], r"o\.onnx has an ending that is not written for timm; use"),
        ("o.pkl", ["--to", "timm"], r"ending that is not written for timm"),
        ("o.pth", ["--to", "pycls"], r"pycls has no dla46-c; it can be written for: "),
        ("o.pth", ["--to", "timm", "--variant", "dla"], r"no variant 'dla'; closest: "),
        ("o.pth", ["--to", "timm", "--variant", "dla34"], r"holds dla46-c, and dla34 computes"),
        ("o.pth", ["--to", "timm", "--layout", "caffe"], r"caffe"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(
    dla46: Path, tmp_path: Path, dst: str, flags: list[str], message: str
) -> None:
    result = run(str(dla46), str(tmp_path / dst), *flags)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert re.fullmatch(rf"trunkline: error: .*{message}.*\n", result.stderr)
    assert list(tmp_path.iterdir()) == []


def test_source_that_is_not_there(tmp_path: Path) -> None:
    result = run(str(tmp_path / "no.pth"), str(tmp_path / "o.pth"), "--to", "timm")
    assert result.exit_code == 2
    assert re.search(r"no file .*no\.pth; give the path of a checkpoint", result.stderr)
