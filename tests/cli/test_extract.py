"""``trunkline extract``: run, verify, stats and merge, as text and as JSON."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from trunkline import create_backbone, deploy, open_features
from trunkline.cli import extract as verb
from trunkline.cli.extract import parse_shard
from trunkline.cli.root import app
from trunkline.errors import ConfigError
from trunkline.extraction import checking
from trunkline.extraction.reports import Progress

SMALL = ("--runtime", "torch", "--size", "64", "--workers", "1", "--threads", "1")
BATCHES = ("--batch-size", "2", "--shard-size", "2")
NETWORK = ("--backbone", "regnet-x-002")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(
        app,
        ["extract", *map(str, arguments)],
        prog_name="trunkline",
        catch_exceptions=False,
    )


def as_json(*arguments: object) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def error(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five images of noise."""
    drawn = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        noise = drawn.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved runner of two levels, the deeper one first."""
    folder = tmp_path_factory.mktemp("runner") / "saved"
    backbone = create_backbone("regnet-x-002", return_idx=(3, 1))
    deploy(backbone, "torch", preprocess=True).save(folder)
    return folder


def levels(out: Path) -> list[str]:
    names = pq.read_schema(next(out.glob("*.parquet"))).names
    return [name for name in names if name.startswith("stage")]


def test_a_folder_as_text_and_everything_that_can_be_done_with_the_store(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "f.parquet"
    result = run(photos, out, *NETWORK, "--levels", "3", "1", *SMALL, *BATCHES)
    assert result.exit_code == 0, result.output
    assert "The network is RANDOM (--weights none, --seed 0)" in result.stderr
    lines = result.stdout.splitlines()
    assert lines[:3] == [
        f"store     {out}",
        "backbone  regnet-x-002, torch, fp32",
        "levels    stage3_stride_32, stage1_stride_8",
    ]
    assert lines[3].startswith("images    5 in ")
    assert lines[3].endswith(" images/s), 0 failed")
    assert lines[4:] == ["shards    3 finished, 0 were before, 0 missing"]
    assert levels(out) == ["stage3_stride_32", "stage1_stride_8"]
    assert open_features(out).numpy("stage1").shape == (5, 56)

    again = as_json("run", photos, out, *NETWORK, "--levels", "3", "1", *SMALL, *BATCHES)
    assert (again["images"], again["shards_before"], again["complete"]) == (0, 3, True)

    result = run("verify", out, "--count", "3")
    assert result.exit_code == 0
    assert "rows      3 computed again: 3 equal\n" in result.stdout
    found = as_json("verify", out)
    assert (found["rows"], found["good"], found["verdicts"]) == (5, True, {"equal": 5})

    result = run("stats", out)
    assert result.exit_code == 0
    assert "shards    3 of 3 finished\nimages    5, 0 failed\n" in result.stdout
    assert "backbone  regnet-x-002, torch, fp32\n" in result.stdout
    assert as_json("stats", out)["images"] == 5

    part = min(out.glob("*.parquet"))
    data = bytearray(part.read_bytes())
    data[8] ^= 1
    part.write_bytes(data)
    Image.new("RGB", (32, 32)).save(photos / "4.png")
    result = run("verify", out, "--count", "9")
    assert result.exit_code == 1
    assert f"damaged   {part.name} is not the file that was written\n" in result.stdout
    assert "source changed 4.png\n" in result.stdout
    monkeypatch.setattr(checking, "_NAMED", 0)
    assert "damaged   1 more files\n" in run("verify", out, "--count", "1").stdout


def test_two_parts_are_merged(photos: Path, tmp_path: Path, runner: Path) -> None:
    parts = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    for number, part in enumerate(parts):
        result = run(photos, part, "--backbone", runner, "--shard", f"{number}/2", *SMALL, *BATCHES)
        assert result.exit_code == 0, result.output
        assert "Other runs work on the missing shards, or other parts of --shard" in result.stdout
        assert "RANDOM" not in result.output
    assert "shards    1 finished, 0 were before, 2 missing" in result.stdout
    out = tmp_path / "all.parquet"
    result = run("merge", *parts, out)
    assert (result.exit_code, result.stdout) == (0, f"merged    2 stores, 5 rows: {out}\n")
    assert levels(out) == ["stage3_stride_32", "stage1_stride_8"]
    assert "all.parquet exists already" in error("merge", *parts, out)
    assert "merge needs at least one store, and the place" in error("merge", out)


def test_failed_images_and_trying_them_again(photos: Path, tmp_path: Path, runner: Path) -> None:
    good = (photos / "3.png").read_bytes()
    (photos / "3.png").write_bytes(b"no image")
    asked = (photos, tmp_path / "f.parquet", "--backbone", runner, "--levels", "3", *SMALL)
    ended = error(*asked, *BATCHES, "--max-errors", "0")
    assert "1 images failed, and max_errors allows 0; the last one: 3.png: " in ended
    result = run(*asked, *BATCHES, "--max-errors", "1")
    assert result.exit_code == 0
    assert ", 1 failed\n" in result.stdout
    assert "Failed images are rows with status 'failed'" in result.stdout
    assert "1 failed: " in run("stats", tmp_path / "f.parquet").stdout
    ended = error(*asked, *BATCHES, "--retry-failed", "--max-errors", "0")
    assert "1 images failed, and max_errors allows 0; the last one: 3.png: " in ended
    (photos / "3.png").write_bytes(good)
    report = as_json(*asked, *BATCHES, "--retry-failed")
    assert (report["images"], report["failed"], report["shards"]) == (1, 0, 1)
    assert as_json("stats", tmp_path / "f.parquet")["failed"] == 0


def test_sizes_of_their_own_are_padded(photos: Path, tmp_path: Path, runner: Path) -> None:
    Image.new("RGB", (40, 50)).save(photos / "0.png")
    out = tmp_path / "f.parquet"
    report = as_json(
        *(photos, out, "--backbone", runner, "--size", "original", "--pad", "64"),
        *("--workers", "1", "--threads", "1", "--normalize", "--dtype", "float16"),
    )
    assert (report["images"], report["failed"], report["batch_size"]) == (5, 0, 1)
    vectors = open_features(out).numpy("stage3")
    assert vectors.dtype == np.float16
    np.testing.assert_allclose(np.linalg.norm(vectors.astype(float), axis=1), 1, atol=2e-3)
    manifest = json.loads((tmp_path / "f.parquet.trunkline" / "manifest.json").read_text())
    assert manifest["job"]["images"]["preprocessing"]["pad_to_multiple"] == 64


@pytest.mark.parametrize("text", ["2/2", "3", "-1/2", "1/0", "a/b", "0/2/3", " 0/2", ""])
def test_parts_are_i_of_n(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--shard got .*; give I/N with I from 0 to N-1"):
        parse_shard(text)


def test_a_part() -> None:
    assert parse_shard("0/4") == (0, 4)
    assert parse_shard("3/4") == (3, 4)


def test_what_is_refused(photos: Path, tmp_path: Path, runner: Path) -> None:
    out = tmp_path / "f.parquet"
    saved = ("--backbone", runner)
    assert "--shard got '2/2'" in error(photos, out, *NETWORK, "--shard", "2/2")
    assert "which has its weights, and --weights is default; leave --weights out" in error(
        photos, out, *saved, "--weights", "default"
    )
    assert "engine='dask' is unknown; use one of local, ray" in error(
        photos, out, *saved, "--engine", "dask"
    )
    assert "levels=(0,) must be some of what the backbone returns" in error(
        photos, out, *saved, "--levels", "0", *SMALL
    )
    assert "has no bookkeeping" in error("verify", tmp_path / "nothing.parquet")
    assert "has no bookkeeping" in error("stats", tmp_path / "nothing.parquet")
    assert "Missing option '--backbone'" in run(photos, out).stderr
    assert not out.exists()


def test_a_folder_called_verify(
    photos: Path, tmp_path: Path, runner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photos.rename("verify")
    assert as_json("./verify", "f.parquet", "--backbone", runner, *SMALL)["images"] == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_and_the_same_command_goes_on(
    photos: Path, tmp_path: Path, runner: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    class Signalled:
        def __call__(self, now: Progress) -> None:
            if now.images == 2:
                signal.raise_signal(number)

    before = signal.getsignal(number)
    asked = (photos, tmp_path / "f.parquet", "--backbone", runner, *SMALL, *BATCHES)
    with monkeypatch.context() as patch:
        patch.setattr(verb, "_Lines", Signalled)
        result = run(*asked)
    assert result.exit_code == 128 + number
    assert "Stopping after this batch; once more ends it at once." in result.stderr
    assert "Stopped. Finished shards are kept; the same command goes on" in result.stdout
    assert signal.getsignal(number) == before
    report = as_json(*asked)
    assert report["complete"]
    assert report["shards"] + report["shards_before"] == 3


def progress(images: int, *, listed: bool, failed: int = 0) -> Progress:
    return Progress(images=images, failed=failed, before=10, total=100, listed=listed, seconds=2.0)


def test_a_line_a_minute_where_nobody_looks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter((0.0, 59.0, 61.0, 61.0, 122.0, 122.0, 183.0, 183.0))
    monkeypatch.setattr("trunkline.cli.extract.time.monotonic", lambda: next(clock))
    show: Callable[[Progress], None] = verb._Lines()
    show(progress(20, listed=False))
    assert capsys.readouterr().err == ""
    show(progress(20, listed=False, failed=3))
    assert capsys.readouterr().err == "30 of 100 or more images, 10.0 images/s, 3 failed\n"
    show(progress(30, listed=True))
    assert capsys.readouterr().err == ("40 of 100 images, 15.0 images/s, 0 failed, 0 min left\n")
    show(progress(0, listed=True))
    assert capsys.readouterr().err == "10 of 100 images, 0.0 images/s, 0 failed\n"


def test_rasters_make_a_network_of_as_many_channels_as_bands(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    folder, out = tmp_path / "scenes", tmp_path / "f.parquet"
    folder.mkdir()
    scene = np.random.default_rng(0).integers(0, 10000, (6, 40, 40), dtype=np.uint16)
    tifffile.imwrite(folder / "a.tif", scene, photometric="minisblack")
    options = ("--bands", "5,4,3,2", "--white", "10000")
    report = as_json(folder, out, *NETWORK, *SMALL, *options)
    assert (report["images"], report["failed"]) == (1, 0)
    other = ("--bands", "5,4,3,1", "--white", "10000")
    assert "bands" in error(folder, out, *NETWORK, *SMALL, *other)
    assert "give their numbers, from 1: 4,3,2" in error(folder, out, *NETWORK, "--bands", "red")
    verified = run("verify", out)
    assert verified.exit_code == 0, verified.output


def test_a_cut_jpeg_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    content = Path("examples/cat.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(content[: len(content) // 2])
    report = as_json(folder, tmp_path / "f.parquet", *NETWORK, *SMALL, "--truncated", "keep")
    assert report["failed"] == 0
