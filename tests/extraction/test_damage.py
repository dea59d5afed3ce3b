"""Damaged data files: seen or refused by whatever reads them, and never given a new hash."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_blocks import (
    contents,
    fill_disk,
    map_schema,
    newer_python,
    pooled_schema,
    write_kept_store,
)
from image_sources import write_photos
from store_files import data_files

from trunkline import Backbone, extract
from trunkline.errors import OutputError, StoreError, TooManyFailuresError, TrunklineError
from trunkline.extraction import checking, merging
from trunkline.extraction.checking import verify
from trunkline.extraction.formats import ShardFormat
from trunkline.extraction.merging import merge
from trunkline.extraction.places import check_continued
from trunkline.extraction.reader import open_features
from trunkline.extraction.reports import ExtractReport
from trunkline.extraction.store import Store
from trunkline.preprocessing import IMAGENET

TOTAL = 25
KINDS = ["p.parquet", pytest.param("m.zarr", marks=newer_python), "clip"]
INPUTS = {"p.parquet": 8, "m.zarr": 2, "clip": 3}  # of each file


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Store]:
    """A store of each format. Whoever damages one mends it."""
    stores: dict[str, Store] = {}

    def keep(name: str) -> Store:
        if name not in stores:
            out = tmp_path_factory.mktemp("kept") / name
            schema = map_schema() if name == "m.zarr" else pooled_schema(levels=1)
            layout = "clip-retrieval" if name == "clip" else None
            stores[name] = write_kept_store(out, schema, TOTAL, layout)
        return stores[name]

    return keep


@pytest.fixture(autouse=True)
def _no_runner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores that were made without one compute nothing."""
    if "kept" in request.fixturenames:
        monkeypatch.setattr(checking, "computing_of", lambda *_, **__: lambda *_: {})
        monkeypatch.setattr(merging, "copy_runner", lambda *_: None)


def damages(content: bytes, drawn: random.Random) -> Iterator[bytes | None]:
    """A file with one bit flipped, cut, grown, emptied, and gone."""
    while True:
        flipped = bytearray(content)
        flipped[drawn.randrange(len(content))] ^= 1 << drawn.randrange(8)
        yield bytes(flipped)
        if drawn.random() < 0.2:
            cut = content[: drawn.randrange(len(content))]
            yield drawn.choice([cut, content + b"\0", b"", None])


def read(store: Store) -> tuple[Any, ...]:
    """All that a reader gives."""
    opened = open_features(store.out)
    table = opened.table()
    pieces = [
        (batch.keys, batch.values.tobytes())
        for level in opened.levels
        for batch in opened.batches(level, 7)
    ]
    return (table.to_pylist(), opened.keys, opened.num_failed, len(opened), pieces, opened.made_by)


def _read_for_writing(store: Store, form: ShardFormat) -> None:
    form.create()
    for shard in store.done():
        list(store.blocks(form, shard))


def outcomes(store: Store, name: str, copy: Path) -> None:
    """What each reader must do about a store one file of which, ``name``, is damaged."""
    manifest = store.manifest()
    form = store.format(manifest)
    before = contents(store.out.parent)

    assert verify(store.out, 1).damaged == (name,)

    with pytest.raises(StoreError):  # what --retry-failed reads
        _read_for_writing(store, form)

    if not name.endswith("zarr.json"):  # a merged store has others
        with pytest.raises(StoreError):
            merge([store.out], copy)

    try:  # what the same command does with a finished store
        check_continued(store, manifest)
        form.create()
        form.finish(TOTAL)
    except StoreError:
        pass
    assert contents(store.out.parent) == before


@pytest.mark.parametrize("name", KINDS)
def test_damage_is_seen_or_refused(kept: Callable[[str], Store], tmp_path: Path, name: str) -> None:
    store = kept(name)
    drawn = random.Random(name)  # noqa: S311 - of bits, not of secrets
    intact = read(store)
    shared = [path.relative_to(store.out).as_posix() for path in store.out.rglob("zarr.json")]
    for relative in [*store.record(1).files, *sorted(shared)]:
        path = store.out / relative
        content = path.read_bytes()
        for number, damage in zip(range(INPUTS[name]), damages(content, drawn), strict=False):
            if relative == "zarr.json" and damage is None:
                continue  # a run writes it again from what the manifest says
            copy = tmp_path / relative / str(number) / name
            copy.parent.mkdir(parents=True)
            try:
                path.unlink() if damage is None else path.write_bytes(damage)
                outcomes(store, relative, copy)
                if damage is None or path.suffix == ".npy":
                    continue  # a shard that is not there is none; and .npy has no checksum
                try:
                    found = read(store)
                except TrunklineError:
                    continue
                assert found[:-1] == intact[:-1]
            finally:
                path.write_bytes(content)
    assert read(store) == intact
    assert verify(store.out, 1).damaged == ()


@newer_python
def test_maps_that_are_gone_are_an_error_and_not_nan(kept: Callable[[str], Store]) -> None:
    store = kept("m.zarr")
    path = store.out / "stage3_stride_32" / "c.1.0.0.0"
    content = path.read_bytes()
    maps = open_features(store.out).maps("stage3")
    readers: list[Callable[[], Any]] = [
        lambda: list(open_features(store.out).batches("stage3", 5)),
        lambda: open_features(store.out).maps("stage3")[8],
        lambda: list(store.format(store.manifest()).blocks(1)),
    ]
    try:
        path.unlink()
        for ask in readers:
            with pytest.raises(StoreError, match=r"c\.1\.0\.0\.0 cannot be read: No such file"):
                ask()
        assert not np.isnan(maps[0]["stage3_stride_32"].numpy()).any()  # of another file
        os.mkfifo(path)
        for ask in readers:
            with pytest.raises(StoreError, match="it is a pipe or a device"):
                ask()
        path.unlink()
        shutil.copy(path.with_name("c.0.0.0.0"), path)  # undamaged, and not the one of this shard
        with pytest.raises(StoreError, match="is not the file that was written"):
            list(store.blocks(store.format(store.manifest()), 1))
    finally:
        path.unlink(missing_ok=True)
        path.write_bytes(content)


STRANGE: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "empty": Path.touch,
    "link to nothing": lambda path: path.symlink_to(path.with_name("nowhere")),
    "text": lambda path: path.write_text("PAR1 or so"),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_file_of_data_is_told_and_never_waited_for(
    kept: Callable[[str], Store], name: str, kind: str
) -> None:
    store = kept(name)
    names = [one for one in store.record(1).files if not one.startswith("index/c")]
    for relative in names:
        path = store.out / relative
        content = path.read_bytes()
        path.unlink()
        try:
            STRANGE[kind](path)
            with pytest.raises(StoreError, match=rf"{path.name} cannot be read: \w"):
                read(store)
            assert verify(store.out, 1).damaged == (relative,)
            with pytest.raises(StoreError, match=path.name):
                list(store.blocks(store.format(store.manifest()), 1))
        finally:
            path.rmdir() if kind == "folder" else path.unlink()
            path.write_bytes(content)


@pytest.mark.parametrize("name", KINDS)
def test_a_shard_that_is_written_anew_is_whole_or_missing(
    kept: Callable[[str], Store], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever rename is the last one that a dying run does."""
    store = kept(name)
    form, record = store.format(store.manifest()), store.record(1)
    replace = Path.replace

    def commits(renames: int) -> dict[str, str]:
        left = iter(range(renames))

        def dying(path: Path, target: Path) -> Path:
            if store.out in target.parents and next(left, None) is None:
                raise KeyboardInterrupt
            return replace(path, target)

        writer = form.writer(1)
        for block in store.blocks(form, 1):
            writer.append(block)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", dying)
            try:
                return writer.commit(lambda: store.forget(1))
            finally:
                writer.discard()

    for renames in range(len(record.files)):
        with pytest.raises(KeyboardInterrupt):
            commits(renames)
        assert not store.is_done(1)
        store.write_record(record)  # the new files are as the old ones, in whatever mixture
    assert commits(len(record.files)) == record.files
    assert not store.is_done(1)
    store.write_record(record)


def test_what_the_disk_refuses_leaves_a_shard_as_it_was(
    kept: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("p.parquet", "clip"):
        store = kept(name)
        form, before = store.format(store.manifest()), contents(store.out)
        writer = form.writer(1)
        for block in store.blocks(form, 1):
            writer.append(block)
        with monkeypatch.context() as patch:
            fill_disk(patch)
            with pytest.raises(OutputError, match="No space left"):
                writer.commit(lambda: store.forget(1))  # noqa: B023 - called now
        writer.discard()
        assert store.is_done(1)
        assert contents(store.out) == before


def test_a_record_that_does_not_tell_of_every_file(kept: Callable[[str], Store]) -> None:
    """Else a shard could be read, and written anew, unchecked."""
    store = kept("p.parquet")
    path = store.record_path(1)
    content, record = path.read_bytes(), store.record(1)
    try:
        for files in ({}, {"../p.parquet/part-00001.parquet": record.files["part-00001.parquet"]}):
            store.write_record(type(record)(**{**vars(record), "files": files}))
            for ask in (
                lambda: verify(store.out),
                lambda: list(store.blocks(store.format(store.manifest()), 1)),
                lambda: merge([store.out], store.out.with_name("m.parquet")),
            ):
                with pytest.raises(StoreError, match=r"00001\.json does not tell of the files of"):
                    ask()
            shutil.rmtree(store.out.with_name("m.parquet"))
            shutil.rmtree(store.out.with_name("m.parquet.trunkline"))
        store.write_record(type(record)(**{**vars(record), "images": 9}))
        with pytest.raises(StoreError, match="tells of 9 images, and the plan has 10"):
            verify(store.out)
        with pytest.raises(StoreError, match="has 10 rows, and its record tells of 9"):
            merge([store.out], store.out.with_name("m.parquet"))
    finally:
        path.write_bytes(content)


# --- With a network


@pytest.fixture(scope="module")
def backbone(families: dict[str, Any]) -> Backbone:
    network: Backbone = families["regnet-x"].build(return_idx=(3,))
    return network


def run(src: Path, out: Path, network: Backbone, **options: Any) -> ExtractReport:
    fixed = {"runtime": "torch", "batch_size": 2, "shard_size": 3, "workers": 1, "threads": 1}
    size = IMAGENET.with_size((32, 32))
    return extract(src, out, network, preprocessing=size, **{**fixed, **options})


def test_retry_refuses_damage_and_the_way_out_leads_to_an_unbroken_store(
    backbone: Backbone, tmp_path: Path
) -> None:
    photos = write_photos(tmp_path / "photos", 5, bad_every=2)  # 1 and 3 cannot be read
    out = tmp_path / "f.parquet"
    assert run(photos, out, backbone).failed == 2
    shutil.copy(photos / "00000.jpg", photos / "00001.jpg")
    part = out / "part-00000.parquet"
    content = bytearray(part.read_bytes())
    content[8] ^= 1
    part.write_bytes(content)
    record = Store(out).record_path(0)
    before = contents(tmp_path)
    told = rf"{part.name} is not the file that was written: .* The record is {record}\.$"
    with pytest.raises(StoreError, match=told):
        run(photos, out, backbone, retry_failed=True)
    assert contents(tmp_path) == before
    record.unlink()
    part.unlink()
    report = run(photos, out, backbone)
    assert (report.images, report.shards, report.complete) == (3, 1, True)
    run(photos, tmp_path / "whole.parquet", backbone)
    assert data_files(out) == data_files(tmp_path / "whole.parquet")


def test_a_retry_that_fails_again_counts_for_max_errors(backbone: Backbone, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 5, bad_every=2)
    out = tmp_path / "f.parquet"
    run(photos, out, backbone, shard_size=5)
    shutil.copy(photos / "00000.jpg", photos / "00001.jpg")
    with pytest.raises(
        TooManyFailuresError, match=r"1 images failed, and max_errors allows 0.*3\."
    ):
        run(photos, out, backbone, shard_size=5, retry_failed=True, max_errors=0)
    assert Store(out).record(0).failed == 1  # what was mended is kept
    report = run(photos, out, backbone, shard_size=5, retry_failed=True, max_errors=1)
    assert (report.images, report.failed, report.complete) == (1, 1, True)
