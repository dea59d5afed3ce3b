"""Options of ``extract`` that are refused before anything is written."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trunkline import Backbone, create_backbone, deploy
from trunkline.errors import ConfigError, NotInstalledError, TrunklineError
from trunkline.extraction import jobs
from trunkline.extraction.extracting import extract
from trunkline.extraction.reports import ExtractReport
from trunkline.preprocessing import IMAGENET
from trunkline.rasters import Bands

SMALL = IMAGENET.with_size(32)
INT8 = {"precision": "int8", "runtime": "onnxruntime"}


@pytest.fixture(scope="module")
def backbone(families: dict[str, Any]) -> Backbone:
    """A tiny network that returns all four levels."""
    built: Backbone = families["resnet-basic"].build()
    return built


def run(src: Any, out: Path, network: Any, **options: Any) -> ExtractReport:
    """Ask for features of small images."""
    fixed: dict[str, Any] = {"preprocessing": SMALL, "batch_size": 4}
    if isinstance(network, Backbone):
        fixed["runtime"] = "torch"
    return extract(src, out, network, **{**fixed, **options})


# Every option of ``extract``, out of what is allowed, and what the error says of it.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"levels": (3, 3)}, r"levels=\(3, 3\) must be some of what the backbone returns"),
    ({"levels": ()}, r"levels=\(\) must be some of what the backbone returns"),
    ({"levels": (7,)}, r"levels=\(7,\) must be some of what the backbone returns"),
    ({"levels": 3}, r"levels=3 must be a tuple of indices from 0 to 3, such as \(3,\)"),
    ({"levels": "3"}, "levels='3' must be a tuple of indices"),
    ({"levels": (True,)}, r"levels=\(True,\) must be a tuple of indices"),
    ({"pool": "mean"}, "pool='mean' is unknown; use one of avg, max, gem, none"),
    ({"pool": ""}, "pool='' is unknown; use one of"),
    ({"pool": "none"}, "Parquet holds pooled features"),
    ({"normalize": "yes"}, "normalize='yes' must be True or False"),
    ({"dtype": "float64"}, "dtype='float64' is unknown; use one of float32, float16"),
    ({"layout": "tfrecord"}, "no layout 'tfrecord'"),
    ({"preprocessing": 224}, "preprocessing=224 must be a Preprocessing, such as"),
    ({"decode": "quick"}, "decode='quick' is unknown; use one of exact, fast"),
    ({"max_pixels": 0}, "max_pixels=0 must be a positive integer"),
    ({"max_pixels": None}, "max_pixels=None must be a positive integer"),
    ({"max_bytes": 1.5}, "max_bytes=1.5 must be a positive integer"),
    ({"max_bytes": 2**41}, "max_bytes=2199023255552 is more than 1099511627776; choose a sm"),
    ({"alpha": "green"}, "alpha='green' is unknown; use one of white, black, ignore"),
    ({"truncated": "mend"}, "truncated='mend' is unknown; use one of"),
    ({"bands": 3}, r"bands=3 must be numbers of bands, the first one is 1: \(4, 3, 2\), or Bands"),
    ({"bands": (0, 1, 2)}, r"bands=\(0, 1, 2\) must be numbers of bands"),
    ({"bands": (1, 2)}, r"bands=\(1, 2\) are 2, and the network takes 3 channels"),
    ({"bands": Bands(), "white": 9}, "white=9 stands beside Bands"),
    ({"white": -1}, "white=-1 must be more than black=0.0"),
    ({"runtime": "tensorflow"}, "runtime='tensorflow' is unknown; use one of auto, onnxruntime"),
    ({"runtime": None}, "runtime=None is unknown; use one of"),
    ({"precision": "fp16"}, "precision='fp16' is unknown; use one of fp32, bf16, int8"),
    ({"precision": "int8"}, "int8 is not offered by the engines of PyTorch"),
    ({"threads": True}, "threads=True must be a positive integer"),
    ({"threads": 10**6}, "threads=1000000 is more than"),
    ({"threads": 77}, "threads=77 cannot be chosen for runtime='torch'"),
    ({"calibration": "photos"}, "calibration images are for precision='int8', and precision is"),
    ({**INT8, "calibration": "nowhere"}, "calibration='nowhere' does not exist"),
    ({**INT8, "calibration": 3}, "calibration is one int; give a folder of photos"),
    ({**INT8, "preprocessing": IMAGENET.with_size(None)}, "int8 is fitted to images of one size"),
    ({"batch_size": 0}, "batch_size=0 must be a positive integer"),
    ({"batch_size": 10**6}, "batch_size=1000000 is more than 65536"),
    ({"workers": 1.5}, "workers=1.5 must be a positive integer"),
    ({"workers": -1}, "workers=-1 must be a positive integer"),
    ({"workers": False}, "workers=False must be a positive integer"),
    ({"workers": 10**7}, "workers=10000000 is more than"),
    ({"timeout_seconds": 0}, "timeout_seconds=0 must be more than 0"),
    ({"timeout_seconds": "1"}, "timeout_seconds='1' must be more than 0, a number"),
    ({"timeout_seconds": float("nan")}, "timeout_seconds=nan must be more than 0"),
    ({"shard_size": -1}, "shard_size=-1 must be a positive integer"),
    ({"shard_size": 10**9 + 1}, "shard_size=1000000001 is more than 1000000000; choose a sma"),
    ({"shard": (2, 2)}, r"shard=\(2, 2\) must be \(i, n\) with i from 0"),
    ({"shard": 3}, r"shard=3 must be \(i, n\)"),
    ({"shard": (0.5, 2)}, r"shard=\(0.5, 2\) must be \(i, n\)"),
    ({"retry_failed": "no"}, "retry_failed='no' must be True or False"),
    ({"max_errors": -1}, "max_errors=-1 must be 0 or more"),
    ({"max_errors": 1.5}, "max_errors=1.5 must be 0 or more, an integer"),
    ({"engine": "spark"}, "engine='spark' is unknown; use one of local, ray"),
    ({"ray_address": "auto"}, "ray_address='auto' must be the address of a cluster"),
    ({"progress": "yes"}, "progress='yes' must be True for a line in a terminal"),
    ({"stopping": True}, r"stopping=True must be a threading.Event"),
    ({"trust": 1}, "trust=1 must be True or False"),
]


@pytest.mark.parametrize(
    ("options", "told"),
    REFUSED,
    ids=[f"{list(options)[-1]}-{n}" for n, (options, _) in enumerate(REFUSED)],
)
def test_options_are_refused_before_anything_is_there(
    photos: Path, backbone: Backbone, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    if options.get("runtime") == "onnxruntime":
        pytest.importorskip("onnxruntime")
    folder = tmp_path / "new"
    folder.mkdir()
    for src in (photos, [np.zeros((40, 40, 3), np.uint8)] * 2):
        with pytest.raises(TrunklineError, match=told):
            run(src, folder / "f.parquet", backbone, **options)
        assert list(folder.iterdir()) == []


def test_every_option_is_tried() -> None:
    parameters = inspect.signature(extract).parameters.values()
    options = {one.name for one in parameters if one.kind is one.KEYWORD_ONLY}
    columns = {"column", "key_column"}  # of sources, see there
    assert {name for refused, _ in REFUSED for name in refused} == options - columns


def test_columns_are_refused_before_anything_is_there(
    photos: Path, backbone: Backbone, tmp_path: Path
) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    for name in ("column", "key_column"):
        with pytest.raises(TrunklineError, match=r"photos matches no \.parquet file"):
            run(photos, folder / "f.parquet", backbone, **{name: "image"})
        with pytest.raises(ConfigError, match="images in memory have no columns"):
            run([np.zeros((40, 40, 3), np.uint8)], folder / "f.parquet", backbone, **{name: "a"})
    assert list(folder.iterdir()) == []


def test_the_right_call_works_after_all_the_wrong_ones(
    photos: Path, backbone: Backbone, tmp_path: Path
) -> None:
    for src in (photos, [np.zeros((40, 40, 3), np.uint8)] * 2):
        out = tmp_path / f"{type(src).__name__}.parquet"
        for options, _ in REFUSED:
            with pytest.raises(TrunklineError):
                run(src, out, backbone, **options)
        assert run(src, out, backbone, workers=0).complete


def test_jobs_that_cannot_be(
    photos: Path, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"no format for .*features: a store is called NAME"):
        run(photos, tmp_path / "features", backbone)
    if sys.version_info >= (3, 11):
        whole = IMAGENET.with_size(None)
        with pytest.raises(ConfigError, match="maps of one array have one size"):
            run(photos, tmp_path / "f.zarr", backbone, preprocessing=whole, batch_size=None)
        huge = IMAGENET.with_size((4096, 4096))
        monkeypatch.setattr(jobs, "MOST_NUMBERS", 8_000_000)
        with pytest.raises(ConfigError, match=r"a map of stage0 would have 8388608 numbers, and 8"):
            run(photos, tmp_path / "f.zarr", backbone, preprocessing=huge)
        monkeypatch.undo()
        with pytest.raises(ConfigError, match=r"shard of 999983 images would have 3999932 files"):
            run(photos, tmp_path / "f.zarr", backbone, shard_size=999_983)
    runner = deploy(backbone, "torch", "fp32", (2, 64, 64), threads=1)
    with pytest.raises(ConfigError, match=r"takes batches of 2 images of 64x64.* have 32x32"):
        run(photos, tmp_path / "g.parquet", runner, batch_size=None)
    with pytest.raises(ConfigError, match=r"the runner is torch, fp32; leave runtime"):
        run(photos, tmp_path / "g.parquet", runner, runtime="onnxruntime")
    inside = deploy(backbone, "torch", "fp32", preprocess=True, threads=1)
    other = dataclasses.replace(SMALL, mean=(0.5, 0.5, 0.5))
    with pytest.raises(ConfigError, match="the runner normalises by itself"):
        run(photos, tmp_path / "g.parquet", inside, preprocessing=other)


@pytest.mark.parametrize("library", ["pebble", "pyarrow"])
def test_what_is_missing_is_said_before_a_store_is_begun(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(NotInstalledError, match=rf"needs {library}, .*trunkline\[extract\]"):
        extract(photos, tmp_path / "f.parquet", create_backbone("resnet18"), runtime="torch")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]
