"""Options of ``extract`` that are refused before anything is written."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

from trunkline import Backbone, create_backbone, deploy
from trunkline.errors import ConfigError, NotInstalledError
from trunkline.extraction import jobs
from trunkline.extraction.extracting import extract
from trunkline.preprocessing import IMAGENET

SMALL = IMAGENET.with_size(32)


@pytest.fixture(scope="module")
def backbone(families: dict[str, Any]) -> Backbone:
    """A tiny network that returns all four levels."""
    built: Backbone = families["resnet-basic"].build()
    return built


def run(src: Path, out: Path, network: Any, **options: Any) -> None:
    """Ask for features of small images."""
    fixed: dict[str, Any] = {"preprocessing": SMALL, "batch_size": 4}
    if isinstance(network, Backbone):
        fixed["runtime"] = "torch"
    extract(src, out, network, **{**fixed, **options})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_pixels": 0}, "max_pixels=0 must be a positive integer"),
        ({"max_bytes": 1.5}, "max_bytes=1.5 must be a positive integer"),
        ({"max_bytes": 2**41}, "max_bytes=2199023255552 is more than 1099511627776; choose a sm"),
        ({"batch_size": 0}, "batch_size=0 must be a positive integer"),
        ({"shard_size": -1}, "shard_size=-1 must be a positive integer"),
        ({"workers": 1.5}, "workers=1.5 must be a positive integer"),
        ({"threads": True}, "threads=True must be a positive integer"),
        ({"threads": 10**6}, "threads=1000000 is more than"),
        ({"timeout_seconds": 0}, "timeout_seconds=0 must be more than 0"),
        ({"dtype": "float64"}, "dtype='float64' is unknown; use float32 or float16"),
        ({"decode": "quick"}, "decode='quick' is unknown; use one of"),
        ({"engine": "spark"}, "engine='spark' is unknown; use one of local, ray"),
        ({"max_errors": -1}, "max_errors=-1 must be 0 or more"),
        ({"shard": (2, 2)}, r"shard=\(2, 2\) must be \(i, n\) with i from 0"),
        ({"pool": "mean"}, "pool='mean' is unknown; use one of avg, max, gem, none"),
        ({"pool": "none"}, "Parquet holds pooled features"),
        ({"levels": (3, 3)}, r"levels=\(3, 3\) must be some of what the backbone returns"),
        ({"levels": ()}, r"levels=\(\) must be some of what the backbone returns"),
        ({"layout": "tfrecord"}, "no layout 'tfrecord'"),
        ({"shard_size": 10**9 + 1}, "shard_size=1000000001 is more than 1000000000; choose a sma"),
        ({"batch_size": 10**6}, "batch_size=1000000 is more than 65536"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_outside_what_is_allowed(
    photos: Path, backbone: Backbone, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        run(photos, tmp_path / "f.parquet", backbone, **options)
    assert not (tmp_path / "f.parquet").exists()


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
