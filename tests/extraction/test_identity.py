"""A store is two folders that know each other: what has lost one, or is not its, is refused."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from feature_blocks import (
    block,
    contents,
    map_schema,
    newer_python,
    pooled_schema,
    write_kept_store,
)
from image_sources import write_photos

from trunkline import Backbone, extract
from trunkline.errors import StoreError
from trunkline.extraction.checking import stats, verify
from trunkline.extraction.merging import merge
from trunkline.extraction.parquet_files import ParquetFiles
from trunkline.extraction.places import (
    check_continued,
    check_place,
    store_at,
)
from trunkline.extraction.reader import open_features
from trunkline.extraction.reports import ExtractReport
from trunkline.extraction.store import Store
from trunkline.preprocessing import IMAGENET

KINDS = ["p.parquet", pytest.param("m.zarr", marks=newer_python), "clip"]


def kept(folder: Path, name: str, total: int = 25) -> Store:
    """A whole store of a format, with its bookkeeping and without a runner."""
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".zarr"):
        return write_kept_store(folder / name, map_schema(), total)
    layout = None if name.endswith(".parquet") else "clip-retrieval"
    return write_kept_store(folder / name, pooled_schema(levels=1), total, layout)


def goes_on(store: Store) -> None:
    """Do what a run does before it computes or writes anything."""
    check_place(store)
    check_continued(store, store.manifest())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("src") / "photos", 4, bad_every=0)


@pytest.fixture(scope="module")
def backbone(families: dict[str, Any]) -> Backbone:
    network: Backbone = families["regnet-x"].build(return_idx=(3,))
    return network


def run(src: Path | str, out: Path | str, network: Backbone, **options: Any) -> ExtractReport:
    fixed = {"runtime": "torch", "batch_size": 2, "shard_size": 2, "workers": 1, "threads": 1}
    size = IMAGENET.with_size((32, 32))
    return extract(src, out, network, preprocessing=size, **{**fixed, **options})


@pytest.fixture(scope="module")
def made(photos: Path, backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two shards; not to be changed."""
    out = tmp_path_factory.mktemp("made") / "f.parquet"
    assert run(photos, out, backbone).complete
    return out


def copied(store: Path, folder: Path, name: str | None = None) -> Path:
    """Copy a store, both folders, under another name."""
    for suffix in ("", ".trunkline"):
        shutil.copytree(f"{store}{suffix}", folder / f"{name or store.name}{suffix}")
    return folder / (name or store.name)


# --- What is there already


@pytest.mark.parametrize("name", ["part-00000.parquet", "README", ".hidden", "img_emb"])
@pytest.mark.parametrize("place", ["f.parquet", "f.parquet.trunkline/plan"])
def test_files_that_no_manifest_tells_of(
    tmp_path: Path, photos: Path, backbone: Backbone, place: str, name: str
) -> None:
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / name).write_text("somebody else's")
    before = contents(tmp_path)
    with pytest.raises(StoreError, match=rf"{name}.*Nothing was changed; put .* back, or extract"):
        run(photos, tmp_path / "f.parquet", backbone)
    assert contents(tmp_path) == before


def test_a_store_in_a_store(tmp_path: Path) -> None:
    outer = kept(tmp_path, "p.parquet")
    for out in (outer.out / "f.parquet", outer.home / "f.parquet", outer.out / "a" / "f.parquet"):
        for ask in (check_place, lambda store: merge([outer.out], store.out)):
            with pytest.raises(StoreError, match=r"lies in .* a folder of another store"):
                ask(store_at(out))
    assert not (outer.out / "f.parquet").exists()
    with pytest.raises(StoreError, match="exists already"):
        merge([outer.out], f"{outer.out}/")


def test_an_empty_folder_is_a_place(tmp_path: Path, photos: Path, backbone: Backbone) -> None:
    out = tmp_path / "f.parquet"
    out.mkdir()
    (tmp_path / "f.parquet.trunkline" / "plan").mkdir(parents=True)
    assert run(photos, f"{out}/", backbone, shard_size=4).complete


def test_a_store_without_its_bookkeeping(
    tmp_path: Path, photos: Path, backbone: Backbone, made: Path
) -> None:
    shutil.copytree(made, tmp_path / "f.parquet")
    before = contents(tmp_path)
    with pytest.raises(StoreError, match=r"is not empty .* has lost the folder beside it"):
        run(photos, tmp_path / "f.parquet", backbone)
    for ask in (verify, stats, lambda out: merge([out], tmp_path / "g.parquet")):
        with pytest.raises(StoreError, match=r"has no bookkeeping: .*manifest\.json is not there"):
            ask(tmp_path / "f.parquet")
    assert contents(tmp_path) == before
    assert len(open_features(tmp_path / "f.parquet")) == 4  # reading needs no bookkeeping


def test_bookkeeping_without_its_manifest(
    tmp_path: Path, photos: Path, backbone: Backbone, made: Path
) -> None:
    out = copied(made, tmp_path)
    (tmp_path / "f.parquet.trunkline" / "manifest.json").unlink()
    shutil.rmtree(out)
    with pytest.raises(StoreError, match=r"has lost its manifest\.json, but still holds plan/"):
        run(photos, out, backbone)


def everything(made: Path, photos: Path, backbone: Backbone, out: Path, told: str) -> None:
    """Every use of the bookkeeping refuses a store, and changes nothing of it."""
    before = contents(out.parent)
    for ask in (
        lambda: run(photos, out, backbone),
        lambda: run(photos, out, backbone, retry_failed=True),
        lambda: verify(out),
        lambda: stats(out),
        lambda: merge([made, out], out.with_name("merged.parquet")),
    ):
        with pytest.raises(StoreError, match=told):
            ask()
    assert contents(out.parent) == before


def test_bookkeeping_without_its_data(
    tmp_path: Path, photos: Path, backbone: Backbone, made: Path
) -> None:
    out = copied(made, tmp_path)
    shutil.rmtree(out)
    told = r"tells of 2 finished shards, and their folder .*f\.parquet is not there; put it back"
    everything(made, photos, backbone, out, told)


def test_bookkeeping_beside_the_data_of_another_store_of_the_same_job(
    tmp_path: Path, photos: Path, backbone: Backbone, made: Path
) -> None:
    run(photos, tmp_path / "g.parquet", backbone)
    out = copied(made, tmp_path / "there")
    shutil.rmtree(out)
    (tmp_path / "g.parquet").rename(out)
    told = r"f\.parquet holds the data of another store than .* their ids differ"
    everything(made, photos, backbone, out, told)


def test_a_copy_of_both_folders_is_a_store_by_any_name(
    tmp_path: Path, photos: Path, backbone: Backbone, made: Path
) -> None:
    out = copied(made, tmp_path, "other.parquet")
    assert verify(out).good
    assert run(photos, out, backbone).shards_before == 2
    out.rename(tmp_path / "third.parquet")
    Path(f"{out}.trunkline").rename(tmp_path / "third.parquet.trunkline")
    assert run(photos, tmp_path / "third.parquet", backbone).complete
    assert merge([made, tmp_path / "third.parquet"], tmp_path / "all.parquet") == 4


# --- What is there already, of every format


@pytest.mark.parametrize("name", KINDS)
def test_every_format_knows_its_data(tmp_path: Path, name: str) -> None:
    store, other = kept(tmp_path / "a", name), kept(tmp_path / "b", name)
    goes_on(store)
    shutil.rmtree(store.out)
    shutil.copytree(other.out, store.out)
    for ask in (goes_on, lambda store: verify(store.out), lambda store: stats(store.out)):
        with pytest.raises(StoreError, match=r"their ids differ|is of another store"):
            ask(store)


def lacking(store: Store) -> list[Path]:
    """The files that the first shard cannot lack, by their names."""
    names = store.format(store.manifest()).files(0, 10)
    return [store.out / one for one in names if not one.startswith(("stage", "index/c"))]


@pytest.mark.parametrize("name", KINDS)
def test_a_finished_shard_whose_file_is_gone(tmp_path: Path, name: str) -> None:
    store = kept(tmp_path, name)
    for path in lacking(store):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(StoreError, match=rf"{path.name} is missing, though shard 0 is fin"):
            goes_on(store)
        path.write_bytes(content)
    goes_on(store)


def test_a_shard_that_another_run_finishes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the records and the look at the files, in either order."""
    store = kept(tmp_path, "p.parquet")
    record, part = store.record(2), store.out / "part-00002.parquet"
    found = ParquetFiles.found

    def finishes(form: ParquetFiles) -> Counter[int]:
        names = found(form)
        content.rename(part)
        store.write_record(record)
        return names

    content = part.rename(tmp_path / "part")
    store.forget(2)
    monkeypatch.setattr(ParquetFiles, "found", finishes)
    goes_on(store)


@pytest.mark.parametrize("name", KINDS)
def test_what_stands_in_the_place_of_a_shard(tmp_path: Path, name: str) -> None:
    """A stranger's file, one of another store, and one that a dead run of this store left."""
    store, other = kept(tmp_path / "a", name), kept(tmp_path / "b", name)
    form = store.format(store.manifest())
    store.forget(2)
    goes_on(store)  # its files carry the store's id: they are replaced
    schema = store.manifest().schema
    for path in sorted({*form.owners(2)} - {*form.owners(0)}, reverse=True):
        if path.suffix == ".npy":  # it is of the store that the table beside it is of
            for table in ("metadata", "failed"):
                (store.out / table / f"{table}_00002.parquet").rename(tmp_path / table)
        ours = path.read_bytes()
        strangers = [b"somebody else's", b""]
        if path.suffix == ".parquet":
            strangers.append((other.out / path.relative_to(store.out)).read_bytes())
        for content in strangers:
            path.write_bytes(content)
            with pytest.raises(StoreError, match=rf"{path.name}.* stands where a shard shall be"):
                goes_on(store)
            writer = form.writer(2)  # whoever comes in between is seen at the last moment
            writer.append(block(schema, range(20, 25)))
            with pytest.raises(StoreError, match=rf"{path.name}.* stands where a shard shall be"):
                writer.commit()
            writer.discard()
            assert path.read_bytes() == content
        path.write_bytes(ours)
        if path.suffix == ".npy":
            for table in ("metadata", "failed"):
                (tmp_path / table).rename(store.out / table / f"{table}_00002.parquet")


@newer_python
def test_a_group_of_others_is_not_written_into(tmp_path: Path) -> None:
    store = kept(tmp_path, "m.zarr")
    form = store.format(store.manifest())
    for name in ("zarr.json", "stage1_stride_8/zarr.json", "index/zarr.json"):
        path = store.out / name
        whole = path.read_text()
        path.write_text(whole.replace(store.manifest().id, "0" * 32))
        with pytest.raises(StoreError, match=r"zarr\.json stands where .* is of another store"):
            form.create()
        path.unlink()
        if "/" in name:
            with pytest.raises(StoreError, match=r"zarr\.json .* says of no store"):
                form.create()
        path.write_text(whole)
    form.create()
