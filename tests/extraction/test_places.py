"""Where a store may be: beside its source, by a name that a folder can have."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_blocks import (
    contents,
)
from image_sources import write_photos

from trunkline import Backbone, extract
from trunkline.errors import ConfigError, OutputError, StoreError, TrunklineError
from trunkline.extraction.checking import stats, verify
from trunkline.extraction.merging import merge
from trunkline.extraction.places import (
    check_apart,
    check_place,
    store_at,
)
from trunkline.extraction.reader import open_features
from trunkline.extraction.reports import ExtractReport
from trunkline.extraction.sources import source_of
from trunkline.preprocessing import IMAGENET


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


# --- A store and its source


def a_source(kind: str, folder: Path) -> str:
    """Make a source of a kind in ``folder/data``; return how it is asked for."""
    data = folder / "data"
    data.mkdir()
    (data / "deep").mkdir()
    (data / "0.jpg").write_bytes(b"x")
    if kind == "list":
        (data / "images.txt").write_text("0.jpg\n")
        return str(data / "images.txt")
    if kind in ("glob", "deep glob"):
        return str(data / ("*.jpg" if kind == "glob" else "**/*.jpg"))
    if kind != "folder":
        (data / "0.jpg").unlink()
        (data / "deep").rmdir()
    if kind.startswith("tar"):
        with tarfile.open(data / "0.tar", "w") as archive:
            archive.addfile(tarfile.TarInfo("0.jpg"))
    if kind.startswith("parquet"):
        pq.write_table(pa.table({"image": [b"x"]}), data / "0.parquet")
    return {"tar file": f"{data}/0.tar", "parquet file": f"{data}/0.parquet"}.get(
        kind, f"{data}/" + {"tar range": "{0..0}.tar", "parquet glob": "*.parquet"}.get(kind, "")
    )


SOURCES = (
    *("folder", "glob", "deep glob", "list", "tar folder", "tar file", "tar range"),
    *("parquet folder", "parquet file", "parquet glob"),
)
FOLDERS = ("folder", "tar folder", "parquet folder")  # which are listed, whatever is in them
SPELLINGS: dict[str, Callable[[Path], str]] = {
    "plain": str,
    "slash": lambda path: f"{path}/",
    "up and down": lambda path: f"{path.parent}/gone/../{path.name}",
    "link above": lambda path: str(path.parent.parent / "link" / path.name),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("kind", SOURCES)
def test_a_store_is_apart_from_its_source(tmp_path: Path, kind: str, spelling: str) -> None:
    top = tmp_path / "top"
    (top / "gone").mkdir(parents=True)
    (tmp_path / "link").symlink_to(top)
    source = source_of(a_source(kind, top))
    data = top / "data"
    spelled = SPELLINGS[spelling]
    (data / "gone").mkdir()

    def is_refused(out: Path) -> bool:
        store = store_at(spelled(out) if out.parent == top else out)
        try:
            check_apart(source, store)
        except ConfigError:
            return True
        return False

    assert is_refused(data)  # equal, or around a file
    assert is_refused(top)  # around
    assert is_refused(data / "f.parquet") is (kind in (*FOLDERS, "deep glob"))  # inside
    assert is_refused(data / "deep" / "f.parquet") is (kind in (*FOLDERS, "deep glob"))
    assert is_refused(data / ".hidden" / "f.parquet") is (kind in FOLDERS)
    assert not is_refused(top / "f.parquet")  # beside
    assert not is_refused(top / "data2")
    assert not is_refused(top / "dat")


def test_bookkeeping_is_apart_from_the_source_too(tmp_path: Path) -> None:
    photos = tmp_path / "f.parquet.trunkline" / "photos"
    photos.mkdir(parents=True)
    (photos / "0.jpg").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"f\.parquet\.trunkline cannot be written while .*lies"):
        check_apart(source_of(photos), store_at(tmp_path / "f.parquet"))


def test_a_name_in_other_capitals_is_the_same_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system that does not tell capitals apart, both names have one identity."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0.jpg").write_bytes(b"x")
    stat = os.stat
    monkeypatch.setattr(
        os, "stat", lambda path, **how: stat(str(path).replace("PHOTOS", "photos"), **how)
    )
    for out in ("PHOTOS", "PHOTOS/f.parquet"):
        with pytest.raises(ConfigError, match="cannot be written while"):
            check_apart(source_of(tmp_path / "photos"), store_at(tmp_path / out))


def test_a_list_of_images_that_lie_in_the_store(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "images.txt").write_text("photos/0.jpg\nout/1.jpg\n")
    source = source_of(tmp_path / "images.txt")
    with pytest.raises(ConfigError, match=r"out/1\.jpg lies in it"):
        check_apart(source, store_at(out))
    check_apart(source, store_at(tmp_path / "other"))


def test_sources_elsewhere_are_apart(tmp_path: Path) -> None:
    check_apart(source_of("memory://nowhere/{00..12}.tar"), store_at(tmp_path / "f.parquet"))


def test_a_parquet_of_images_is_not_destroyed_by_features_of_its_name(
    tmp_path: Path, backbone: Backbone, photos: Path
) -> None:
    folder = tmp_path / "data.parquet"
    folder.mkdir()
    table = pa.table({"image": [next(photos.iterdir()).read_bytes()] * 4})
    pq.write_table(table, folder / "part-00000.parquet")
    before = contents(tmp_path)
    for out in (folder, folder / "f.parquet", f"{folder}/../data.parquet"):
        with pytest.raises(ConfigError, match=r"cannot be written while .*Choose an OUT beside"):
            run(folder, out, backbone)
    assert contents(tmp_path) == before


# --- Names


@pytest.mark.parametrize(
    ("out", "error", "told"),
    [
        ("", ConfigError, "'' is none"),
        ("a\0b.parquet", ConfigError, "is the path of a folder, and"),
        (b"f.parquet", ConfigError, "is none"),
        (7, ConfigError, "is the path of a folder, not 7"),
        ("/", ConfigError, "the root of the disk; give a folder below it"),
    ],
)
def test_what_no_folder_can_be_called(out: Any, error: type[TrunklineError], told: str) -> None:
    with pytest.raises(error, match=told):
        store_at(out)


def test_a_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for ask in (store_at, verify, stats, lambda out: merge([out], "g.parquet")):
        with pytest.raises(OutputError, match="working directory, which was removed; go to"):
            ask("f.parquet")
    with pytest.raises(StoreError, match="there is nothing"):
        open_features("f.parquet")


def test_the_working_directory_and_the_one_above_have_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert store_at(".").home == tmp_path / "a" / "b.trunkline"
    assert store_at("..").home == tmp_path / "a.trunkline"
    assert store_at("f.parquet/").home == tmp_path / "a" / "b" / "f.parquet.trunkline"


def test_what_has_the_name_and_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file.parquet").touch()
    (tmp_path / "link.parquet").symlink_to(tmp_path / "nowhere")
    (tmp_path / "f.parquet.trunkline").touch()
    os.mkfifo(tmp_path / "pipe.parquet")
    for name, what in (
        ("file.parquet", "no folder"),
        ("pipe.parquet", "no folder"),
        ("link.parquet", "a link that leads nowhere"),
        ("f.parquet", "no folder"),
    ):
        with pytest.raises(OutputError, match=rf"cannot be written: it is {what}; give another"):
            check_place(store_at(tmp_path / name))


def test_a_name_that_is_too_long(tmp_path: Path, photos: Path, backbone: Backbone) -> None:
    out = tmp_path / f"{'x' * 250}.parquet"
    with pytest.raises(OutputError, match="cannot be written: File name too long"):
        run(photos, out, backbone)
    for ask in (verify, stats):
        with pytest.raises(StoreError, match="has no bookkeeping"):
            ask(out)
    with pytest.raises(StoreError, match="there is nothing"):
        open_features(out)


def test_a_link_to_a_folder_of_another_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "f.parquet"
    out.mkdir()
    stat = os.stat

    def moved(path: Any, **how: Any) -> os.stat_result:
        found = stat(path, **how)
        if str(path) == str(out):
            return os.stat_result([*found[:2], found.st_dev + 1, *found[3:]])
        return found

    monkeypatch.setattr(os, "stat", moved)
    with pytest.raises(OutputError, match="it is on another disk than"):
        check_place(store_at(out))
