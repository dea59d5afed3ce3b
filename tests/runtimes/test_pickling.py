"""Runners in pickles, as spawned processes, joblib and Ray send them."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtimes.conftest import exchange, pretend

from trunkline import Backbone, deploy, load_runner
from trunkline.errors import RunnerError, UntrustedError
from trunkline.runtimes import pickling
from trunkline.runtimes.manifest import read_manifest
from trunkline.runtimes.runner import Runner
from trunkline.runtimes.selection import Decision

Images = np.ndarray[Any, Any]
QUICK = ("torch", "onnxruntime", "openvino")


def same(one: list[Any], other: list[Any]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def received(sent: bytes) -> Runner:
    again: Runner = pickle.loads(sent)  # noqa: S301  # of this process
    return again


def through(runner: Runner) -> Runner:
    return received(pickle.dumps(runner))


@pytest.mark.parametrize("runtime", QUICK)
@pytest.mark.parametrize("input_shape", [None, (2, 65, 97)])
def test_a_new_runner_travels_as_its_files(
    tiny: Backbone, images: Images, runtime: str, input_shape: tuple[int, int, int] | None
) -> None:
    runner = deploy(tiny, runtime, input_shape=input_shape)
    runner.decision = Decision(chosen=runtime, shape=(1, 2, 3), rounds=5, candidates=())
    again = through(through(runner))
    assert same(runner(images), again(images))
    for name in ("spec", "fidelity", "provenance", "decision"):
        assert getattr(again, name) == getattr(runner, name)


def test_files_go_with_the_runner(tiny: Backbone, images: Images, tmp_path: Path) -> None:
    again = through(deploy(tiny, "onnxruntime"))
    assert again.saved is not None
    folder = again.saved.folder
    assert folder.is_dir()
    again.save(tmp_path / "saved")
    del again
    gc.collect()
    assert not folder.exists()
    assert len(load_runner(tmp_path / "saved")(images)) == 4


@pytest.mark.parametrize("runtime", QUICK)
def test_a_loaded_runner_travels_as_its_folder(
    tiny: Backbone, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    deploy(tiny, runtime).save(tmp_path / "runner")
    monkeypatch.chdir(tmp_path)
    loaded = load_runner("runner", threads=1)
    sent = pickle.dumps(loaded)
    assert len(sent) < 1000
    monkeypatch.chdir("/")
    again = received(sent)
    assert again.threads == 1
    assert same(loaded(images), again(images))
    shutil.rmtree(tmp_path / "runner")
    with pytest.raises(RunnerError, match=r"holds no runner"):
        received(sent)
    deploy(tiny, runtime, preprocess=True).save(tmp_path / "runner")
    with pytest.raises(RunnerError, match=r"holds another runner than when this one was loaded"):
        received(sent)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_is_another_runner(
    tiny: Backbone, images: Images, copied: Callable[[Runner], Runner]
) -> None:
    runner = deploy(tiny, "onnxruntime")
    assert same(runner(images), copied(runner)(images))


def test_trust_is_neither_lost_nor_won_on_the_way(
    tiny: Backbone, tmp_path: Path, elsewhere: Callable[[], None], images: Images
) -> None:
    mine = load_runner(deploy(tiny, "torch").save(tmp_path / "mine"))
    doubtful = deploy(tiny, "onnxruntime").save(tmp_path / "doubtful")
    sent = pickle.dumps(deploy(tiny, "torch"))
    elsewhere()  # such as a node of a cluster
    for again in (through(mine), received(sent)):
        assert again.saved is not None
        assert again.saved.trusted
    exchange(doubtful, "optimized.onnx", b"for a hole in the engine's reader")
    found = through(load_runner(doubtful))
    assert found.saved is not None
    assert not found.saved.trusted
    assert len(found(images)) == 4
    pretend(doubtful, "torch", "program.pt2")
    digest = read_manifest(doubtful).digest
    with pytest.raises(UntrustedError, match=r"runner|doubtful"):
        pickling._reopened(str(doubtful), digest, False, 1, None)


def shapes_of(runner: Runner) -> list[tuple[int, ...]]:
    return [one.shape for one in runner(np.zeros((1, 3, 8, 8), np.float32))]


def test_a_spawned_process_gets_it(tiny: Backbone) -> None:
    runner = deploy(tiny, "openvino")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(shapes_of, (runner,)) == shapes_of(runner)
