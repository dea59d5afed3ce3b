"""``extract``: its rows are what one photo at a time gives, however the work was cut or resumed."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from feature_blocks import newer_python
from image_sources import write_photos
from kill_and_resume import leftovers
from store_files import data_files
from torch.nn import functional

from trunkline import Backbone, deploy
from trunkline.errors import StoreError, TooManyFailuresError
from trunkline.extraction.extracting import extract
from trunkline.extraction.features import features
from trunkline.extraction.reader import open_features
from trunkline.extraction.reports import ExtractReport, Progress
from trunkline.extraction.store import Store
from trunkline.preprocessing import IMAGENET

COUNT, BAD = 12, 6  # photos, and the number of the one that cannot be read
SMALL = IMAGENET.with_size(32)


@pytest.fixture(scope="module")
def src(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve photos, number 6 cut short."""
    return write_photos(tmp_path_factory.mktemp("src") / "photos", COUNT, bad_every=BAD + 1)


@pytest.fixture(scope="module")
def backbone(families: dict[str, Any]) -> Backbone:
    """A tiny network that returns all four levels."""
    built: Backbone = families["resnet-basic"].build()
    return built


def run(src: Path, out: Path, network: Any, **options: Any) -> ExtractReport:
    """Extract with what keeps tests fast, unless told otherwise."""
    fixed = {"preprocessing": SMALL, "batch_size": 4, "workers": 1, "threads": 1, "shard_size": 5}
    if isinstance(network, Backbone):
        fixed["runtime"] = "torch"
    return extract(src, out, network, **{**fixed, **options})


def maps_of(src: Path, network: Backbone, number: int, **options: Any) -> dict[str, torch.Tensor]:
    """The maps of one photo, alone and in eager mode."""
    options.setdefault("preprocessing", SMALL)
    found = features(src / f"{number:05d}.jpg", network, **options)
    return {one.name: one.tensor for one in found}


def pooled(tensor: torch.Tensor, pool: str, normalize: bool) -> torch.Tensor:
    """Pooling in PyTorch's words."""
    positions = tensor.flatten(1).double()
    vector = {
        "avg": lambda: positions.mean(1),
        "max": lambda: positions.amax(1),
        "gem": lambda: positions.clamp(min=1e-6).pow(3).mean(1).pow(1 / 3),
    }[pool]()
    return functional.normalize(vector, dim=0) if normalize else vector


def good() -> list[int]:
    """Numbers of the photos that can be read."""
    return [number for number in range(COUNT) if number != BAD]


@pytest.mark.parametrize(
    ("pool", "normalize", "dtype", "levels"),
    [
        ("avg", False, "float32", None),
        ("max", True, "float32", (3, 1)),
        ("gem", True, "float16", (2,)),
        ("gem", False, "float32", (0, -1)),
    ],
)
def test_rows_are_those_of_one_photo_at_a_time(
    src: Path,
    backbone: Backbone,
    tmp_path: Path,
    pool: str,
    normalize: bool,
    dtype: Literal["float32", "float16"],
    levels: tuple[int, ...] | None,
) -> None:
    out = tmp_path / "f.parquet"
    report = run(src, out, backbone, pool=pool, normalize=normalize, dtype=dtype, levels=levels)
    assert (report.images, report.failed, report.shards, report.complete) == (COUNT, 1, 3, True)
    strides = {index % 4: 4 << (index % 4) for index in levels or range(4)}
    assert report.levels == tuple(f"stage{index}_stride_{s}" for index, s in strides.items())
    store = open_features(out)
    assert store.levels == report.levels
    assert store.dtype == str(dtype)
    expected = [maps_of(src, backbone, number) for number in good()]
    for level in report.levels:
        values = np.stack([pooled(one[level], pool, normalize).numpy() for one in expected])
        tolerance = 2e-3 if dtype == "float16" else 2e-5
        np.testing.assert_allclose(
            store.numpy(level), values, rtol=tolerance, atol=tolerance * np.abs(values).max()
        )


def test_rows_tell_of_their_images(src: Path, backbone: Backbone, tmp_path: Path) -> None:
    run(src, tmp_path / "f.parquet", backbone, levels=(3,))
    table = pq.read_table(tmp_path / "f.parquet")
    assert table["key"].to_pylist() == [f"{number:05d}.jpg" for number in range(COUNT)]
    for number, row in enumerate(table.to_pylist()):
        content = (src / row["key"]).read_bytes()
        assert row["path"] == str(src / row["key"])
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
        if number == BAD:
            assert (row["status"], row["width"], row["stage3_stride_32"]) == ("failed", None, None)
            assert "image" in row["error"]
        else:
            assert (row["status"], row["error"]) == ("ok", None)
            assert 40 <= row["width"] <= 60
            assert len(row["stage3_stride_32"]) == 64


@pytest.mark.parametrize("preprocess", [False, True])
@pytest.mark.parametrize("shape", [None, (4, 32, 32)])
def test_runners_give_the_rows_of_their_backbone(
    src: Path,
    backbone: Backbone,
    tmp_path: Path,
    preprocess: bool,
    shape: tuple[int, int, int] | None,
) -> None:
    runner = deploy(backbone, "onnxruntime", "fp32", shape, preprocess, threads=1)
    batch_size = 4 if shape is None else None
    report = run(src, tmp_path / "f.parquet", runner, levels=(1, 3), batch_size=batch_size)
    assert (report.runtime, report.batch_size, report.failed) == ("onnxruntime", 4, 1)
    store = open_features(tmp_path / "f.parquet")
    for place, number in enumerate(good()[:3]):
        for level, tensor in maps_of(src, backbone, number).items():
            if level in store.levels:
                np.testing.assert_allclose(
                    store.numpy(level)[place], pooled(tensor, "avg", False), rtol=1e-4, atol=1e-5
                )


@newer_python
def test_zarr_keeps_maps(src: Path, backbone: Backbone, tmp_path: Path) -> None:
    out = tmp_path / "f.zarr"
    report = run(src, out, backbone, levels=(2, 3))
    assert (report.images, report.failed, report.complete) == (COUNT, 1, True)
    store = open_features(out)
    assert store.dtype == "float16"
    (batch,) = store.batches("stage2", 100)
    level = batch.values
    assert level.shape == (COUNT - 1, 32, 2, 2)
    expected = np.stack([maps_of(src, backbone, n)["stage2_stride_16"].numpy() for n in good()])
    np.testing.assert_allclose(level, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def test_clip_retrieval(src: Path, backbone: Backbone, tmp_path: Path) -> None:
    out = tmp_path / "clip"
    report = run(src, out, backbone, levels=(3,), layout="clip-retrieval", normalize=True)
    assert report.complete
    found = np.concatenate([np.load(one) for one in sorted(out.rglob("*.npy"))])
    assert found.shape == (COUNT - 1, 64)
    np.testing.assert_allclose(np.linalg.norm(found.astype(np.float64), axis=1), 1, atol=1e-3)
    first = maps_of(src, backbone, 0)["stage3_stride_32"]
    np.testing.assert_allclose(found[0], pooled(first, "avg", True), rtol=2e-3, atol=2e-4)


def test_images_of_sizes_of_their_own(src: Path, backbone: Backbone, tmp_path: Path) -> None:
    whole = dataclasses.replace(IMAGENET.with_size(None), pad_to_multiple=32)
    options = {"preprocessing": whole, "levels": (3,)}
    report = run(src, tmp_path / "f.parquet", backbone, batch_size=None, **options)
    assert (report.images, report.failed, report.batch_size) == (COUNT, 1, 1)
    values = open_features(tmp_path / "f.parquet").numpy()
    for place, number in enumerate(good()):
        tensor = maps_of(src, backbone, number, preprocessing=whole)["stage3_stride_32"]
        assert tensor.shape[1:] != (1, 1)
        np.testing.assert_allclose(
            values[place], pooled(tensor, "avg", False), rtol=1e-4, atol=1e-5
        )


@pytest.fixture(scope="module")
def finished(
    src: Path, backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ExtractReport]:
    """A store that is complete; not to be changed."""
    out = tmp_path_factory.mktemp("finished") / "f.parquet"
    return out, run(src, out, backbone)


def test_the_same_again_computes_nothing(
    src: Path, backbone: Backbone, finished: tuple[Path, ExtractReport]
) -> None:
    out, first = finished
    before, times = data_files(out), [one.stat().st_mtime_ns for one in sorted(out.iterdir())]
    again = run(src, out, backbone)
    assert (again.images, again.shards, again.shards_before, again.complete) == (0, 0, 3, True)
    assert again.first_seconds is None
    assert first.first_seconds is not None
    assert again.levels == first.levels
    assert data_files(out) == before
    assert [one.stat().st_mtime_ns for one in sorted(out.iterdir())] == times
    assert leftovers(out) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"levels": (3, 1)}, r"levels .*stage0.* there, .*stage3.*stage1.* now"),
        ({"pool": "max"}, "pool avg there, max now"),
        ({"normalize": True}, "normalize false there, true now"),
        ({"dtype": "float16"}, "dtype float32 there, float16 now"),
        ({"batch_size": 3}, "batch_size 4 there, 3 now"),
        ({"precision": "bf16"}, "precision fp32 there, bf16 now"),
        ({"runtime": "onnxruntime"}, "runtime torch there, onnxruntime now"),
        ({"shard_size": 6}, "shard_size 5 there, 6 now"),
        ({"decode": "fast"}, "images.decode exact there, fast now"),
        ({"max_pixels": 10_000}, "images.max_pixels .* there, 10000 now"),
        ({"max_bytes": 10_000}, "images.max_bytes .* there, 10000 now"),
        ({"preprocessing": IMAGENET.with_size(64)}, "images.preprocessing.crop .*32, 32.* there"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_job_is_refused(
    src: Path,
    backbone: Backbone,
    finished: tuple[Path, ExtractReport],
    change: dict[str, Any],
    told: str,
) -> None:
    before = data_files(finished[0])
    with pytest.raises(StoreError, match=f"belongs to another job: (?s:.*){told}"):
        run(src, finished[0], backbone, **change)
    assert data_files(finished[0]) == before


def test_other_weights_and_another_source_are_refused(
    src: Path,
    families: dict[str, Any],
    backbone: Backbone,
    finished: tuple[Path, ExtractReport],
) -> None:
    other = families["resnet-basic"].build(seed=1)
    with pytest.raises(StoreError, match=r"network\.state_sha256 .* there, .* now.*Ask for the sa"):
        run(src, finished[0], other)
    with pytest.raises(StoreError, match=r"source location .*photos there, .* now"):
        run(src.parent, finished[0], backbone)


def test_what_is_left_to_choose_is_the_stores(
    src: Path, backbone: Backbone, finished: tuple[Path, ExtractReport]
) -> None:
    report = run(src, finished[0], backbone, runtime="auto", batch_size=None)
    assert (report.runtime, report.batch_size, report.images) == ("torch", 4, 0)


def test_parts_make_the_whole(
    src: Path, backbone: Backbone, finished: tuple[Path, ExtractReport], tmp_path: Path
) -> None:
    out = tmp_path / "f.parquet"
    first = run(src, out, backbone, shard=(0, 2))
    assert (first.images, first.shards, first.shards_missing, first.complete) == (7, 2, 1, False)
    assert sorted(one.name for one in out.iterdir()) == [
        "part-00000.parquet",
        "part-00002.parquet",
    ]
    second = run(src, out, backbone, shard=(1, 2), workers=2)
    assert (second.images, second.shards_before, second.complete) == (5, 2, True)
    assert data_files(out) == data_files(finished[0])


def test_retry_failed_writes_its_shard_anew(src: Path, backbone: Backbone, tmp_path: Path) -> None:
    mended, out = tmp_path / "photos", tmp_path / "f.parquet"
    shutil.copytree(src, mended)
    run(mended, out, backbone, levels=(3,))
    before = data_files(out)
    assert [record.failed for record in Store(out).records()] == [0, 1, 0]
    spent = Store(out).record(1).seconds["total"]
    shutil.copy(mended / "00007.jpg", mended / f"{BAD:05d}.jpg")
    report = run(mended, out, backbone, levels=(3,), retry_failed=True)
    assert (report.images, report.failed, report.shards, report.complete) == (1, 0, 1, True)
    store = open_features(out)
    assert store.num_failed == 0
    assert store.keys == [f"{number:05d}.jpg" for number in range(COUNT)]
    np.testing.assert_allclose(store.numpy()[BAD], store.numpy()[7], rtol=1e-5)
    assert [record.failed for record in Store(out).records()] == [0, 0, 0]
    assert Store(out).record(1).seconds["total"] >= spent > 0  # a second time is added
    changed = {name for name, digest in data_files(out).items() if before[name] != digest}
    assert changed == {"/part-00001.parquet"}


def test_retry_after_a_death_between_rows_and_record(
    src: Path, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shard counts as missing from its first new file to its new record."""
    mended, out = tmp_path / "photos", tmp_path / "f.parquet"
    shutil.copytree(src, mended)
    run(mended, out, backbone, levels=(3,))
    shutil.copy(mended / "00007.jpg", mended / f"{BAD:05d}.jpg")

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_record", dies)
        with pytest.raises(KeyboardInterrupt):
            run(mended, out, backbone, levels=(3,), retry_failed=True)
    assert Store(out).done() == [0, 2]
    after = data_files(out)
    report = run(mended, out, backbone, levels=(3,), retry_failed=True)
    assert (report.images, report.shards, report.complete) == (5, 1, True)
    assert data_files(out) == after
    assert [one.failed for one in Store(out).records()] == [0, 0, 0]


def test_max_errors_ends_the_run(src: Path, backbone: Backbone, tmp_path: Path) -> None:
    out = tmp_path / "f.parquet"
    text = f"1 images failed, and max_errors allows 0; the last one: {BAD:05d}.jpg: .*same command"
    with pytest.raises(TooManyFailuresError, match=text):
        run(src, out, backbone, max_errors=0)
    assert [record.shard for record in Store(out).records()] == [0]
    assert leftovers(out) == []
    report = run(src, out, backbone, max_errors=1)
    assert (report.shards_before, report.failed, report.complete) == (1, 1, True)


def test_stopping_ends_it_and_the_same_call_goes_on(
    src: Path, backbone: Backbone, finished: tuple[Path, ExtractReport], tmp_path: Path
) -> None:
    out, stopping, told = tmp_path / "f.parquet", threading.Event(), list[Progress]()

    def progress(now: Progress) -> None:
        told.append(now)
        if now.images >= 5:
            stopping.set()

    report = run(src, out, backbone, progress=progress, stopping=stopping)
    assert report.stopped
    assert not report.complete
    assert 0 < report.shards < 3
    assert leftovers(out) == []
    assert all(one.total >= one.images and one.before == 0 for one in told)
    again = run(src, out, backbone, progress=told.append)
    assert (again.shards_before, again.complete) == (report.shards, True)
    assert (told[-1].before + told[-1].images, told[-1].total) == (COUNT, COUNT)
    assert data_files(out) == data_files(finished[0])


SCRIPT = """
import sys
from trunkline import extract
from trunkline.preprocessing import IMAGENET
from trunkline.runtimes.saving import load_runner

report = extract(sys.argv[1], sys.argv[2], load_runner(sys.argv[3], threads=1), workers=2,
                 preprocessing=IMAGENET.with_size(32))
print("images", report.images)
"""


def test_a_script_without_a_guard(src: Path, backbone: Backbone, tmp_path: Path) -> None:
    runner = deploy(backbone, "onnxruntime", "fp32", (4, 32, 32), True, threads=1)
    saved, script = runner.save(tmp_path / "runner"), tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script, src, tmp_path / "f.parquet", saved],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"images {COUNT}\n"), done.stderr
    assert len(open_features(tmp_path / "f.parquet")) == COUNT
