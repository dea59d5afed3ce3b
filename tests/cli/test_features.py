"""``trunkline features``, in this process."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loopback import LoopbackHub
from safetensors import safe_open
from typer.testing import CliRunner, Result

import trunkline
from trunkline.cli.features import join_levels, parse_levels, parse_size
from trunkline.cli.root import app
from trunkline.errors import ConfigError, LevelIndexError
from trunkline.extraction.features import features
from trunkline.images import IMAGENET
from trunkline.weights.catalog import entries


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="trunkline", catch_exceptions=False)


def report(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def levels(*arguments: str) -> list[str]:
    maps = report("features", *arguments, "--size", "32", "--backbone", "resnet18")["maps"]
    return [one["level"] for one in maps]


def test_levels_are_read_as_people_write_them(photo: str) -> None:
    assert levels(photo) == ["stage0", "stage1", "stage2", "stage3"]
    assert levels(photo, "--levels", "0", "1", "2", "3") == levels(photo)
    assert levels("--levels", "3", "1", photo) == ["stage3", "stage1"]
    assert levels("--levels", "3,1", photo) == ["stage3", "stage1"]
    assert levels(photo, "--levels=-1,0") == ["stage3", "stage0"]
    assert levels("--levels", "-1", "-4", photo) == ["stage3", "stage0"]


def test_join_levels_leaves_the_rest_alone() -> None:
    assert join_levels(["features", "--levels", "0", "1", "a.jpg", "2"]) == [
        *("features", "--levels=0,1", "a.jpg", "2")
    ]
    assert join_levels(["--levels", "--", "--levels", "0"]) == ["--levels", "--", "--levels", "0"]
    assert join_levels(["--levels", "a"]) == ["--levels", "a"]


def test_report_equals_what_python_gives(photo: str) -> None:
    got = report("features", photo, "--backbone", "resnet18", "--size", "33x47", "--seed", "3")
    torch.manual_seed(3)
    backbone = trunkline.create_backbone("resnet18")
    maps = features(photo, backbone, preprocessing=IMAGENET.with_size((33, 47)))
    assert got["image_size"] == [40, 50]
    assert got["input_size"] == [33, 47]
    assert (got["backbone"], got["weights"], got["seed"]) == ("resnet18", None, 3)
    assert got["preprocessing"] == IMAGENET.with_size((33, 47)).to_dict()
    for row, one in zip(got["maps"], maps, strict=True):
        assert (row["shape"], row["stride"]) == (list(one.shape), one.stride)
        assert (row["mean"], row["std"]) == pytest.approx((one.mean, one.std), rel=1e-5)


def test_seed_chooses_the_network_and_leaves_the_global_generator(photo: str) -> None:
    state = torch.random.get_rng_state()
    common = ("features", photo, "--backbone", "resnet18", "--size", "32")
    first, again, other = (report(*common, "--seed", seed)["maps"] for seed in ("1", "1", "2"))
    assert first == again
    assert first != other
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("size", "expected"), [("32", [32, 32]), ("20x30", [20, 30]), ("original", [40, 50])]
)
def test_size(photo: str, size: str, expected: list[int]) -> None:
    got = report("features", photo, "--backbone", "resnet18", "--size", size)
    assert got["input_size"] == expected
    assert got["maps"][0]["shape"][1:] == [-(-side // 4) for side in expected]


def test_size_is_the_weights_own_unless_given(photo: str) -> None:
    assert report("features", photo, "--backbone", "resnet18")["input_size"] == [224, 224]


def test_table_says_that_the_network_is_random(photo: str) -> None:
    result = run("features", photo, "--backbone", "resnet18", "--size", "32", "--levels", "3")
    assert result.exit_code == 0
    assert "The network is RANDOM (--weights none, --seed 0)" in result.stdout
    assert "carry no learned meaning" in result.stdout
    assert re.search(r"level +stride +shape +dtype +mean +std\n", result.stdout)
    assert re.search(r"stage3 +32 +512x1x1 +float32 +\d\S+ +\d\S+", result.stdout)
    assert "\x1b" not in result.stdout
    quiet = run("features", photo, "--backbone", "resnet18", "--size", "32", "--json")
    assert "RANDOM" in quiet.stderr  # standard output holds the JSON alone


def test_out_holds_the_maps_and_says_that_they_are_random(photo: str, tmp_path: Path) -> None:
    out = tmp_path / "new" / "maps.safetensors"
    common = ("features", photo, "--backbone", "dla34", "--size", "32")
    result = run(*common, "--levels", "1", "--out", str(out))
    assert result.exit_code == 0
    assert f"saved     {out}" in result.stdout
    with safe_open(out, "pt") as file:
        assert list(file.keys()) == ["stage1_stride_8"]
        assert file.get_tensor("stage1_stride_8").shape == (128, 4, 4)
        assert file.metadata()["weights"] == "none (random, seed 0)"


def test_weights_from_a_file(photo: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(9)
    backbone = trunkline.create_backbone("resnet18")
    weights = tmp_path / "w.safetensors"
    save_file(backbone.state_dict(), weights)
    common = ("features", photo, "--backbone", "resnet18", "--size", "32")
    got = report(*common, "--weights", str(weights))
    expected = features(photo, backbone, preprocessing=IMAGENET.with_size(32))
    assert got["maps"][0]["mean"] == pytest.approx(expected[0].mean, rel=1e-5)
    assert (got["weights"], got["seed"]) == (str(weights), None)
    assert "RANDOM" not in run(*common, "--weights", str(weights)).output


def test_check_says_what_one_image_shows(photo: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(trunkline.create_backbone("resnet18").state_dict(), tmp_path / "w.safetensors")
    call = ("features", photo, "--backbone", "resnet18", "--size", "32", "--levels", "0")
    weights = ("--weights", str(tmp_path / "w.safetensors"))
    notes = report(*call, *weights, "--check")["loaded"]["notes"]
    assert any(note.startswith("NEVER TRAINED: ") for note in notes)
    assert notes[-1].startswith("Checked with one image of 128×128: the stem up to ")
    assert not any("TRAINED" in note for note in report(*call, *weights)["loaded"]["notes"])


def test_weights_of_a_file_say_what_was_loaded(photo: str, dla46: Path, tmp_path: Path) -> None:
    common = ("features", photo, "--backbone", "dla46-c", "--size", "32", "--levels", "0")
    out = tmp_path / "maps.safetensors"
    result = run(*common, "--weights", str(dla46), "--out", str(out))
    assert result.exit_code == 0
    assert re.fullmatch(r"The preprocessing is ASSUMED: .*\n", result.stderr)
    assert "RANDOM" not in result.stdout
    loaded = re.findall(r"^loaded +(.+)$", result.stdout, re.M)
    assert re.fullmatch(r"\d+ tensors from dla46\.safetensors, read as timm-dla\.", loaded[0])
    assert re.search(r"^licence +not stated by the file$", result.stdout, re.M)
    with safe_open(out, "pt") as file:
        assert file.metadata()["weights"] == str(dla46)
    got = report(*common, "--weights", str(dla46))
    assert got["loaded"]["layout"] == "timm-dla"
    assert sum(got["loaded"]["dropped"].values()) > 2  # the classifier, and stages after the first
    assert report(*common)["loaded"] is None


def test_default_weights_tags_and_addresses_are_the_same_file_here(
    photo: str, hub: LoopbackHub
) -> None:
    common = ("features", photo, "--backbone", "dla46_c", "--size", "32")
    default = report(*common, "--weights", "default")
    assert (default["loaded"]["tag"], default["loaded"]["license"]) == ("timm-in1k", "BSD-3-Clause")
    assert re.search(
        r"^licence +BSD-3-Clause$", run(*common, "--weights", "timm-in1k").stdout, re.M
    )
    address = report(*common, "--weights", "hf://timm/dla46_c.in1k")
    assert address["maps"] == default["maps"]
    assert hub.gets("model.safetensors") == 1


def test_licence_must_be_agreed_to(
    photo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUNKLINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRUNKLINE_OFFLINE", "1")
    monkeypatch.delenv("TRUNKLINE_WEIGHTS", raising=False)
    tag = entries("resnet18", license="noncommercial")[0].tag
    call = ("features", photo, "--backbone", "resnet18", "--weights", tag)
    refused = run(*call)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert re.search(r"licence for non-commercial use only: .*--allow-noncommer", refused.stderr)
    agreed = run(*call, "--allow-noncommercial")
    assert re.search(r"not on this machine, and the network is switched off", agreed.stderr)


def test_nan_in_the_weights_is_null_in_json(photo: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = trunkline.create_backbone("resnet18").state_dict()
    state = {key: t * float("nan") if t.is_floating_point() else t for key, t in state.items()}
    save_file(state, tmp_path / "nan.safetensors")
    common = ("features", photo, "--backbone", "resnet18", "--size", "32")
    got = report(*common, "--weights", str(tmp_path / "nan.safetensors"))
    assert got["maps"][0]["mean"] is None


def test_brackets_and_control_characters_in_file_names(photo: str, tmp_path: Path) -> None:
    odd = tmp_path / "[red]a[bold]\n\x1b[31mb.png"
    odd.write_bytes(Path(photo).read_bytes())
    result = run("features", str(odd), "--backbone", "resnet18", "--size", "32")
    assert result.exit_code == 0
    assert "/[red]a[bold] \\x1b[31mb.png (40x50)" in result.stdout
    missing = run("features", str(odd) + "x", "--backbone", "resnet18")
    assert missing.stderr.count("\n") == 1
    assert "\x1b" not in missing.stderr


BAD_FLAGS = [
    (["--backbone", "resnet5"], r"no variant 'resnet5'; closest: .*resnet50"),
    (["--backbone", "resnet18", "--levels", "4"], r"4, out of range; allowed"),
    (["--backbone", "resnet18", "--levels", "1", "1"], r"names a stage twice"),
    (["--backbone", "resnet18", "--levels", "all"], r"--levels got 'all'; give indices from 0"),
    (["--backbone", "resnet18", "--size", "0"], r"--size got '0'; give N or HxW in pixels"),
    (["--backbone", "resnet18", "--size", "big"], r"--size got 'big'; give N or HxW"),
    (["--backbone", "resnet18", "--size", "99999"], r"above the limit of 67108864 pixels; use"),
    (["--backbone", "resnet18", "--weights", "nowhere.safetensors"], r"no file nowhere\.safe"),
    (["--backbone", "resnet18", "--weights", "timm-v9"], r"'timm-v9'"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_FLAGS)
def test_bad_flags_end_in_one_line_and_code_2(
    photo: str, tmp_path: Path, flags: list[str], message: str
) -> None:
    out = tmp_path / "new" / "maps.safetensors"
    result = run("features", photo, "--out", str(out), *flags)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("trunkline: error: ")
    assert result.stderr.count("\n") == 1
    assert re.search(message, result.stderr)
    assert not out.parent.exists()


def test_parsers_of_flags() -> None:
    assert parse_levels("3,-4") == (3, -4)
    assert parse_size("7") == 7
    assert parse_size("7x9") == (7, 9)
    assert parse_size("original") is None
    for text in ("", "1,", "1.5", "a"):
        with pytest.raises(LevelIndexError, match=r"--levels got .*such as --levels 0 1 2 3"):
            parse_levels(text)
    for text in ("", "0", "3x0", "x3", "3x", "-3", "3x4x5", "Original"):
        with pytest.raises(ConfigError, match=r"--size got .*such as 320 or 480x640, or original"):
            parse_size(text)


def test_prefix_picks_one_of_two_networks_of_a_file(photo: str, tmp_path: Path) -> None:
    path = tmp_path / "two.pth"
    held: dict[str, torch.Tensor] = {}
    for seed, eye in enumerate(("left", "right")):
        torch.manual_seed(seed)
        state = trunkline.create_backbone("resnet18").state_dict()
        held |= {f"module.{eye}.net.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": held}, path)
    given = ("features", photo, "--backbone", "resnet18", "--size", "32", "--weights", str(path))
    result = run_failing(*given)
    assert "prefix='state_dict.left.net' and prefix='state_dict.right.net'" in result
    for seed, prefix in enumerate(("left", "state_dict.module.right.net.")):
        got = report(*given, "--prefix", prefix)
        torch.manual_seed(seed)
        network = trunkline.create_backbone("resnet18")
        maps = features(photo, network, preprocessing=IMAGENET.with_size(parse_size("32")))
        assert [one["std"] for one in got["maps"]] == pytest.approx([m.std for m in maps], rel=1e-5)
        assert got["loaded"]["prefix"].endswith("net.")


def test_prefix_without_a_file_is_refused(photo: str) -> None:
    assert "--weights names none" in run_failing(
        "features", photo, "--backbone", "resnet18", "--prefix", "teacher"
    )


def run_failing(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code != 0
    return " ".join(result.stderr.split())


def test_bands_of_a_raster_are_the_channels(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    scene = tmp_path / "scene.tif"
    values = np.random.default_rng(0).integers(0, 10000, (6, 40, 50), dtype=np.uint16)
    tifffile.imwrite(scene, values, photometric="minisblack", planarconfig="separate")
    command = ["features", str(scene), "--backbone", "regnet-x-002", "--size", "64", "--json"]
    result = CliRunner().invoke(app, [*command, "--bands", "5,4,3,2", "--white", "10000"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["image_size"] == [40, 50]
    assert len(report["preprocessing"]["mean"]) == 4
    refused = CliRunner().invoke(app, command)
    assert "is a TIFF of 6 bands, uint16, 50x40, and no photo" in " ".join(refused.stderr.split())


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
def test_an_assumed_preprocessing_is_said(photo: str, tmp_path: Path, flags: list[str]) -> None:
    backbone = trunkline.create_backbone("dla46-c")
    torch.save(backbone.state_dict(), tmp_path / "plain.pth")
    silent, told = tmp_path / "silent", tmp_path / "told"
    trunkline.save_pretrained(backbone, silent)
    backbone.preprocessing = IMAGENET.with_size(40)
    trunkline.save_pretrained(backbone, told)
    plain = ["--backbone", "dla46-c", "--weights", str(tmp_path / "plain.pth")]
    for asked, is_assumed in (
        (plain, True),
        (["--backbone", str(silent)], True),
        (["--backbone", str(told)], False),
        (["--backbone", "dla46-c"], False),  # a random network, which is said instead
    ):
        result = run("features", photo, *asked, *flags)
        assert result.exit_code == 0, result.stderr
        said = re.search(r"The preprocessing is ASSUMED: .*save_pretrained it", result.stderr)
        assert bool(said) is is_assumed, asked
    assert report("features", photo, *plain)["preprocessing_assumed"] is True
    assert report("features", photo, "--backbone", str(told))["preprocessing_assumed"] is False


def test_an_assumed_preprocessing_is_said_of_a_whole_extraction(photo: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    folder = trunkline.save_pretrained(trunkline.create_backbone("dla46-c"), tmp_path / "silent")
    asked = ("extract", str(Path(photo).parent / "*.png"), str(tmp_path / "f.parquet"))
    result = run(*asked, "--backbone", str(folder), "--runtime", "torch", "--workers", "0")
    assert result.exit_code == 0, result.stderr
    assert "The preprocessing is ASSUMED" in result.stderr
