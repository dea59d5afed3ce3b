"""Stores of elsewhere: nothing in them runs here, and what is left out is said."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from feature_blocks import newer_python
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from trunkline import Backbone, deploy, extract
from trunkline.cli.root import app
from trunkline.errors import RunnerError, StoreError, UntrustedError
from trunkline.extraction.checking import verify
from trunkline.extraction.maps_dataset import MapsDataset
from trunkline.extraction.merging import merge
from trunkline.extraction.on_ray import ShardWorker
from trunkline.extraction.reports import ExtractReport
from trunkline.extraction.store import Store
from trunkline.preprocessing import IMAGENET
from trunkline.runtimes import manifest, pytorch
from trunkline.runtimes.saving import is_trusted

SIZE = IMAGENET.with_size((32, 32))


def run(photos: Path, out: Path, backbone: Backbone, **options: Any) -> ExtractReport:
    asked = {"runtime": "torch", "batch_size": 2, "shard_size": 2, "workers": 1, "threads": 1}
    return extract(photos, out, backbone, preprocessing=SIZE, **{**asked, **options})


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    drawn = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("photos")
    for number in range(4):
        noise = drawn.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def own_layers(families: dict[str, Any]) -> Backbone:
    """A network whose runner is a program, which could run code."""
    network: Backbone = families["resnet-basic"].build(return_idx=(0,), act=nn.PReLU)
    return network


@pytest.fixture(scope="module")
def named_layers(families: dict[str, Any]) -> Backbone:
    network: Backbone = families["resnet-basic"].build(return_idx=(0,))
    return network


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, photos: Path, own_layers: Backbone) -> Path:
    """The first of two shards, with a program."""
    folder = tmp_path_factory.mktemp("made")
    run(photos, folder / "f.parquet", own_layers, shard=(0, 2))
    return folder / "f.parquet"


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    for name in (made.name, f"{made.name}.trunkline"):
        shutil.copytree(made.parent / name, tmp_path / name)
    return tmp_path / made.name


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Be on another machine than that of ``made``."""
    monkeypatch.setenv("TRUNKLINE_HOME", str(tmp_path / "another home"))
    monkeypatch.setattr(manifest, "_written", set())


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(_path: Path) -> nn.Module:
        raise AssertionError("a program of a stranger was opened")

    monkeypatch.setattr(pytorch, "open_program", opened)


@pytest.mark.usefixtures("elsewhere", "nothing_runs")
def test_verify_compares_hashes_and_says_what_it_left_out(store: Path) -> None:
    report = verify(store)
    assert (report.good, report.rows, report.damaged) == (True, 0, ())
    assert report.left_out is not None
    assert "expressions in program.pt2 run as Python" in report.left_out
    assert json.loads(json.dumps(report.to_dict()))["left_out"] == report.left_out
    told = CliRunner().invoke(app, ["extract", "verify", str(store)])
    assert told.exit_code == 0
    assert "left out  files were hashed, no row computed:" in told.stdout
    assert "trust=True (--trust)" in told.stdout
    part = next(store.glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    assert verify(store).damaged == (part.name,)


@pytest.mark.usefixtures("elsewhere")
def test_verify_computes_where_it_is_trusted(store: Path) -> None:
    report = verify(store, trust=True)
    assert (report.verdicts, report.left_out) == ({"equal": 2}, None)
    told = CliRunner().invoke(app, ["extract", "verify", str(store), "--trust"])
    assert "2 computed again: 2 equal" in told.stdout


@pytest.mark.usefixtures("elsewhere", "nothing_runs")
@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
def test_verify_computes_what_is_data(
    tmp_path: Path,
    photos: Path,
    named_layers: Backbone,
    runtime: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(photos, tmp_path / "g.parquet", named_layers, runtime=runtime)
    monkeypatch.setattr(manifest, "_written", set())
    monkeypatch.setenv("TRUNKLINE_HOME", str(tmp_path / "a third"))
    report = verify(tmp_path / "g.parquet")
    assert (report.good, report.rows, report.left_out) == (True, 4, None)


@pytest.mark.usefixtures("elsewhere")
def test_going_on_needs_trust(store: Path, photos: Path, own_layers: Backbone) -> None:
    with pytest.raises(
        UntrustedError, match=r"f\.parquet\.trunkline/runner is not opened: .*trust"
    ):
        run(photos, store, own_layers)
    assert run(photos, store, own_layers, trust=True).complete
    assert run(photos, store, own_layers).complete  # nothing is left to compute, nothing to open


@pytest.mark.usefixtures("elsewhere")
def test_the_command_line_passes_trust_on(store: Path, photos: Path, tmp_path: Path) -> None:
    runner = str(Store(store).runner_folder)
    command = ["extract", str(photos), str(tmp_path / "g.parquet"), "--backbone", runner]
    command += ["--size", "32x32", "--workers", "1"]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2
    assert "is not opened: this machine has no key yet" in " ".join(refused.stderr.split())
    done = CliRunner().invoke(app, [*command, "--trust"])
    assert (done.exit_code, done.exception) == (0, None)


@pytest.mark.usefixtures("elsewhere")
def test_workers_of_a_cluster_are_told(store: Path, tmp_path: Path) -> None:
    for trust in (False, True):
        (tmp_path / f"{trust}").mkdir()
        worker = ShardWorker(str(store), 1, 1, 60.0, str(tmp_path / f"{trust}"), trust)
        batch: dict[str, Any] = {"shard": [1], "retry": [False]}
        if trust:
            assert worker(batch)["images"] == [2]
        else:
            with pytest.raises(UntrustedError, match="is not opened"):
                worker(batch)
        worker.__del__()


@pytest.mark.usefixtures("elsewhere", "nothing_runs")
def test_merging_signs_nothing(store: Path, tmp_path: Path) -> None:
    runner = Store(store).runner_folder
    (runner / "more.so").write_bytes(b"that nobody wrote down")
    merge([store], tmp_path / "merged.parquet")
    merged = Store(tmp_path / "merged.parquet").runner_folder
    assert not is_trusted(merged, trust=False)
    assert (merged / "runner.json").read_bytes() == (runner / "runner.json").read_bytes()
    assert not (merged / "more.so").exists()
    assert verify(tmp_path / "merged.parquet").left_out is not None
    (runner / "program.pt2").write_bytes(b"damaged")
    with pytest.raises(RunnerError, match=r"is not the file that was saved"):
        merge([store], tmp_path / "again.parquet")


def test_the_runner_of_another_store_is_not_used(
    store: Path, photos: Path, own_layers: Backbone, named_layers: Backbone
) -> None:
    runner = Store(store).runner_folder
    shutil.rmtree(runner)
    deploy(named_layers, "torch", preprocess=True).save(runner)
    with pytest.raises(StoreError, match=r"is not the runner of this store: network\.state_sha256"):
        run(photos, store, own_layers)


class Code:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(os.environ["RAN"]),)


@newer_python
def test_maps_behind_a_pickling_codec_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    folder = tmp_path / "f.zarr" / "level"
    folder.mkdir(parents=True)
    described = {
        **{"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "<f4", "order": "C"},
        **{"compressor": None, "fill_value": None, "filters": [{"id": "pickle", "protocol": 5}]},
    }
    (folder / ".zarray").write_text(json.dumps(described))
    (folder / "0").write_bytes(pickle.dumps(Code()))
    maps = MapsDataset(tmp_path / "f.zarr", ["level"], pa.array(["a"]), np.zeros(1, np.int64))
    with pytest.raises(StoreError, match=r"level/zarr\.json cannot be read: No such file"):
        maps[0]
    assert not (tmp_path / "ran").exists()
