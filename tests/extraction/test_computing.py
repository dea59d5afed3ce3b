"""What the network cannot take fails alone, and a fault of the engine is no fault of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import trunkline
from trunkline import Backbone, deploy
from trunkline.errors import ExtractionError, ImageError, InputError
from trunkline.extraction import computing, memory
from trunkline.extraction.checking import verify
from trunkline.extraction.computing import Computing
from trunkline.extraction.extracting import extract
from trunkline.extraction.pipeline import Seconds
from trunkline.extraction.pooling import unfit
from trunkline.extraction.records import Column, Schema
from trunkline.extraction.store import Store
from trunkline.preprocessing import IMAGENET
from trunkline.runtimes.runner import Runner

ENGINES = ("torch", "onnxruntime", "openvino")
SIZES = {"a": (40, 50), "b": (2400, 2500), "c": (7, 9), "d": (64, 33)}  # b is too large
FREE = 50_000_000  # bytes; as float32 b has 72 MB, and its first map more


@pytest.fixture(scope="module")
def backbone(families: dict[str, Any]) -> Backbone:
    """A tiny network of two levels."""
    built: Backbone = families["resnet-basic"].build(return_idx=(1, 3))
    return built


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with little memory, as far as this process is told."""
    for module in (memory, computing):
        monkeypatch.setattr(module, "free_memory", lambda: FREE)


def of(runner: Any, *, one_size: bool) -> Computing:
    columns = (Column(name="stage3_stride_32", stride=32, shape=(64,)),)
    schema = Schema(columns=columns, dtype="float32", shard_size=10)
    options: dict[str, Any] = {"pool": "avg", "normalize": False, "schema": schema}
    return Computing(runner, IMAGENET, [1], one_size=one_size, **options)


def picture(name: str) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(ord(name)).integers(0, 256, (1, 3, 3, 3), np.uint8)
    height, width = SIZES[name]
    return coarse.repeat(-(-height // 3), 1).repeat(-(-width // 3), 2)[:, :height, :width].copy()


class Fails:
    """A runner that raises something for images of more pixels than it likes."""

    preprocess, runtime, levels = True, "torch", ()

    def __init__(self, most: int, error: Exception) -> None:
        self._most, self._error = most, error
        self.calls: list[tuple[int, ...]] = []

    def __call__(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        self.calls.append(images.shape)
        if images.shape[1] * images.shape[2] > self._most:
            raise self._error
        return [np.ones((len(images), 64, 2, 2), np.float32)] * 2


ERRORS = [
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
    InputError("expected images of 33 pixels or more."),
    ValueError("a\nb " * 5000),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_image_that_cannot_be_computed_fails_alone(error: Exception) -> None:
    runner = Fails(10_000, error)
    with pytest.raises(ImageError, match=r"cannot take its 2500x2400 pixels.*Set a size") as told:
        of(runner, one_size=False)(picture("b"), Seconds())
    assert runner.calls == [(1, 2400, 2500, 3), (1, 64, 64, 3)]  # it takes others
    assert len(str(told.value)) < 700
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_engine_that_takes_nothing_ends_the_run(error: Exception) -> None:
    with pytest.raises(ExtractionError, match=r"network fails on any image: .*deploy the backbone"):
        of(Fails(0, error), one_size=False)(picture("a"), Seconds())


def test_where_all_images_have_one_size_none_is_to_blame() -> None:
    runner = Fails(10_000, MemoryError("no room"))
    with pytest.raises(
        ExtractionError, match=r"fails on a batch of 1 images of 2500x2400.*: no room.*batch_size"
    ):
        of(runner, one_size=True)(picture("b"), Seconds())
    with pytest.raises(InputError, match=r"33 pixels or more"):  # which says it better
        of(Fails(0, ERRORS[2]), one_size=True)(picture("a"), Seconds())


@pytest.mark.skipif(memory.free_memory() is None, reason="needs a limit of memory that Linux has")
@pytest.mark.usefixtures("scarce")
@pytest.mark.parametrize("runtime", ENGINES)
def test_engines_go_on_after_an_image_that_is_too_large(
    backbone: Backbone, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO computed the large one again, whatever came next."""
    runner = deploy(backbone, runtime, "fp32", None, True, threads=1)
    compute = of(runner, one_size=False)
    with pytest.raises(
        ImageError, match=r"2500x2400 pixels with the 0\.05 GB of memory that are free"
    ):
        compute(picture("b"), Seconds())
    found = compute(picture("a"), Seconds())["stage3_stride_32"]
    monkeypatch.undo()
    expected = runner(picture("a"))[1].mean((2, 3))
    np.testing.assert_array_equal(found, expected)
    fresh = deploy(backbone, runtime, "fp32", None, True, threads=1)
    np.testing.assert_array_equal(
        found, of(fresh, one_size=False)(picture("a"), Seconds())["stage3_stride_32"]
    )


@pytest.mark.usefixtures("scarce")
def test_in_a_run_what_is_too_large_is_a_row(backbone: Backbone, tmp_path: Path) -> None:
    src, out = tmp_path / "photos", tmp_path / "f.parquet"
    src.mkdir()
    for name in SIZES:
        Image.fromarray(picture(name)[0]).save(src / f"{name}.png")
    options: dict[str, Any] = {"runtime": "torch", "workers": 1, "threads": 1, "shard_size": 3}
    report = extract(src, out, backbone, preprocessing=IMAGENET.with_size(None), **options)
    assert (report.images, report.failed, report.shards, report.complete) == (4, 1, 2, True)
    rows = {row["key"][0]: row for row in pq.read_table(out).to_pylist()}
    assert [row["status"] for row in rows.values()] == ["ok", "failed", "ok", "ok"]
    assert (rows["b"]["height"], rows["b"]["width"]) == SIZES["b"]
    assert rows["b"]["sha256"] is not None
    assert "cannot take its 2500x2400 pixels" in rows["b"]["error"]


def test_in_a_run_a_fault_of_the_engine_is_an_error(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    src, out = tmp_path / "photos", tmp_path / "f.parquet"
    src.mkdir()
    for name in "abcd":
        Image.new("RGB", (32, 32), (ord(name), 0, 0)).save(src / f"{name}.png")
    options: dict[str, Any] = {"runtime": "torch", "workers": 1, "threads": 1, "shard_size": 1}
    options |= {"batch_size": 1, "preprocessing": IMAGENET.with_size(32)}
    call, calls = Runner.__call__, list[int]()

    def fails_later(self: Runner, images: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("the engine has lost its device")
        return call(self, images)

    monkeypatch.setattr(Runner, "__call__", fails_later)
    with pytest.raises(ExtractionError, match=r"images of 32x32.*lost its device.*same command"):
        extract(src, out, backbone, **options)
    assert [one.shard for one in Store(out).records()] == [0, 1]
    report = extract(src, out, backbone, **options)
    assert (report.shards_before, report.shards, report.complete) == (2, 2, True)


def test_numbers_that_no_store_should_hold_are_found() -> None:
    values = np.ones((4, 3), np.float16)
    values[1, 2] = np.inf
    values[2, 0] = np.nan
    assert unfit({"stage3": values}) == {
        1: "level stage3 has values beyond 65504, the largest of float16; use dtype float32.",
        2: "level stage3 has values that are NaN or infinite: look at the weights and the image.",
    }
    single = np.full((2, 1, 1, 1), np.inf, np.float32)
    assert "NaN or infinite" in unfit({"a": single})[0]
    assert unfit({"a": np.zeros((2, 3), np.float32)}) == {}


def test_what_float16_cannot_hold_is_a_failed_row(tmp_path: Path, photos: Path) -> None:
    backbone = trunkline.create_backbone("resnet18", return_idx=(0,))
    with torch.no_grad():
        backbone.stages[-1].blocks[-1].conv2.norm.weight.fill_(3e6)  # type: ignore[union-attr, index]
    report = extract(photos, tmp_path / "f.parquet", backbone, runtime="torch", dtype="float16")
    store = trunkline.open_features(tmp_path / "f.parquet")
    assert report.failed == report.images == len(store) == 5
    assert "use dtype float32" in store.failures().to_pylist()[0]["error"]
    checked = verify(tmp_path / "f.parquet", 3)
    assert (checked.good, checked.verdicts["failed again"]) == (True, 3)
    whole = extract(photos, tmp_path / "g.parquet", backbone, runtime="torch")
    assert whole.failed == 0
