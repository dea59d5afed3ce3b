"""Parts of one job become the store that one machine would have written."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from store_files import nameless, store_id

from trunkline import Backbone, extract
from trunkline.errors import ConfigError, StoreError
from trunkline.extraction.manifests import Manifest
from trunkline.extraction.merging import merge
from trunkline.extraction.reports import ExtractReport
from trunkline.extraction.store import Store
from trunkline.preprocessing import IMAGENET

IMAGES = 7  # in shards of two: the last has one


def run(folder: Path, backbone: Backbone, out: Path, **options: Any) -> ExtractReport:
    asked = {"runtime": "torch", "batch_size": 2, "shard_size": 2, "workers": 1, "threads": 1}
    size = IMAGENET.with_size((32, 32))
    return extract(folder / "photos", out, backbone, preprocessing=size, **{**asked, **options})


@pytest.fixture(scope="module")
def backbone(families: dict[str, Any]) -> Backbone:
    network: Backbone = families["regnet-x"].build(return_idx=(3,))
    return network


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone) -> Path:
    """``whole.parquet`` by one run, ``0.parquet`` and ``1.parquet`` by its two parts."""
    folder = tmp_path_factory.mktemp("merging")
    random = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number in range(IMAGES):
        noise = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "photos" / f"{number}.png")
    (folder / "photos" / "3.png").write_bytes(b"no image")
    assert run(folder, backbone, folder / "whole.parquet").complete
    for part in (0, 1):
        report = run(folder, backbone, folder / f"{part}.parquet", shard=(part, 2))
        assert (report.shards, report.shards_missing) == (2, 2)
    return folder


def contents(out: Path) -> dict[str, bytes]:
    """Every data file, without the id of the store."""
    return {
        path.relative_to(out).as_posix(): nameless(path, store_id(out))
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def copied(store: Path, folder: Path) -> Store:
    for name in (store.name, f"{store.name}.trunkline"):
        shutil.copytree(store.parent / name, folder / name)
    return Store(folder / store.name)


def rewritten(store: Store, **changes: Any) -> Path:
    """Give a store another manifest, whose digest is right."""
    store.write_manifest(Manifest(**{**vars(store.manifest()), **changes}))
    return store.out


def test_parts_in_any_order_are_the_whole_byte_for_byte(
    made: Path, tmp_path: Path, backbone: Backbone
) -> None:
    out = tmp_path / "merged.parquet"
    parts = [made / "1.parquet", made / "0.parquet", made / "1.parquet"]  # one of them twice
    assert merge(parts, out) == IMAGES
    assert contents(out) == contents(made / "whole.parquet")
    records = [
        [(one.shard, one.images, one.failed, [*one.files]) for one in Store(store).records()]
        for store in (out, made / "whole.parquet")
    ]
    assert records[0] == records[1]
    merged, whole = (Store(one).manifest() for one in (out, made / "whole.parquet"))
    assert merged.id != whole.id
    assert replace(merged, schema=whole.schema) == whole
    assert replace(merged.schema, store_id=whole.id) == whole.schema
    again = run(made, backbone, out)
    assert (again.images, again.shards_before, again.complete) == (0, 4, True)


def test_what_is_missing_is_computed_by_the_same_call(
    made: Path, tmp_path: Path, backbone: Backbone
) -> None:
    out = tmp_path / "merged.parquet"
    assert merge([made / "1.parquet"], out) == 3
    report = run(made, backbone, out)
    assert (report.shards_before, report.shards, report.complete) == (2, 2, True)
    assert contents(out) == contents(made / "whole.parquet")


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="merge got no store; give at least one"):
        merge([], tmp_path / "merged.parquet")
    with pytest.raises(StoreError, match=r"nothing\.parquet has no bookkeeping"):
        merge([tmp_path / "nothing.parquet"], tmp_path / "merged.parquet")
    assert list(tmp_path.iterdir()) == []


def test_the_place_is_taken(made: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"whole\.parquet exists already; give a new place"):
        merge([made / "0.parquet"], made / "whole.parquet")
    (tmp_path / "m.parquet.trunkline").mkdir()
    with pytest.raises(StoreError, match=r"m\.parquet exists already"):
        merge([made / "0.parquet"], tmp_path / "m.parquet")


def test_another_kind_of_store(made: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"merged\.zarr is another format than .*0\.parquet"):
        merge([made / "0.parquet"], tmp_path / "merged.zarr")
    assert list(tmp_path.iterdir()) == []


def test_another_job(made: Path, tmp_path: Path) -> None:
    store = copied(made / "1.parquet", tmp_path)
    job = {**store.manifest().job, "normalize": True, "batch_size": 8}
    other = rewritten(store, job=job)
    with pytest.raises(
        StoreError,
        match=r"1\.parquet is not of the same job as .*0\.parquet: batch_size 2 there, 8 now; "
        r"normalize false there, true now\. Merge stores that one command wrote",
    ):
        merge([made / "0.parquet", other], tmp_path / "merged.parquet")


def test_another_source_or_shard_size(made: Path, tmp_path: Path) -> None:
    store = copied(made / "1.parquet", tmp_path)
    manifest = store.manifest()
    source = replace(manifest.source, location="/elsewhere")
    other = rewritten(store, source=source, schema=replace(manifest.schema, shard_size=3))
    with pytest.raises(StoreError, match=r"source location .*shard_size 2 there, 3 here"):
        merge([made / "0.parquet", other], tmp_path / "merged.parquet")


def test_another_listing(made: Path, tmp_path: Path, backbone: Backbone) -> None:
    added = made / "photos" / "00.png"
    shutil.copy(made / "photos" / "0.png", added)
    try:
        run(made, backbone, tmp_path / "later.parquet", shard=(1, 2))
    finally:
        added.unlink()
    with pytest.raises(
        StoreError, match=r"shard 1 of .* has other images .*the source changed between the runs"
    ):
        merge(
            [made / "0.parquet", made / "1.parquet", tmp_path / "later.parquet"],
            tmp_path / "m.parquet",
        )
    assert not (tmp_path / "m.parquet").exists()
