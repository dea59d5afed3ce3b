"""verify and stats: what they say of stores that are right, and of each way to be wrong."""

from __future__ import annotations

import json
import os
import random
import shutil
import tracemalloc
from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_blocks import newer_python
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trunkline import Backbone, extract
from trunkline.errors import ConfigError, StoreError
from trunkline.extraction import checking, session
from trunkline.extraction.checking import chosen, stats, verify
from trunkline.extraction.parquet_files import ParquetFiles, TableWriter
from trunkline.extraction.reports import ExtractReport
from trunkline.extraction.store import Store
from trunkline.outputs import sha256_of
from trunkline.preprocessing import IMAGENET

COLUMN = "stage3_stride_32"


@pytest.fixture(scope="module")
def backbone(families: dict[str, Any]) -> Backbone:
    network: Backbone = families["regnet-x"].build(return_idx=(3,))
    return network


def make(folder: Path, backbone: Backbone, name: str = "f.parquet", **options: Any) -> Path:
    """Six images, of which the third is none, in shards of four."""
    return Path(run(folder, backbone, name, **options).out)


def run(folder: Path, backbone: Backbone, name: str, **options: Any) -> ExtractReport:
    """The same, and what the run says of itself."""
    drawn = np.random.default_rng(0)
    photos = folder / "photos"
    photos.mkdir(parents=True)
    for number in range(6):
        noise = drawn.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(photos / f"{number}.png")
    (photos / "2.png").write_bytes(b"no image")
    asked = {"runtime": "torch", "batch_size": 2, "shard_size": 4, "workers": 1, "threads": 1}
    size = IMAGENET.with_size((32, 32))
    return extract(photos, folder / name, backbone, preprocessing=size, **{**asked, **options})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone) -> Path:
    return make(tmp_path_factory.mktemp("checking"), backbone)


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """A copy, for what changes the store; its source is the one of ``made``."""
    for name in (made.name, f"{made.name}.trunkline"):
        shutil.copytree(made.parent / name, tmp_path / name)
    return tmp_path / made.name


@pytest.fixture
def changed(made: Path) -> Any:
    """Replace the bytes of images of the source; they come back afterwards."""
    before: dict[Path, bytes] = {}

    def change(name: str, data: bytes | None) -> None:
        path = made.parent / "photos" / name
        before[path] = path.read_bytes()
        path.unlink() if data is None else path.write_bytes(data)

    yield change
    for path, data in before.items():
        path.write_bytes(data)


Change = Callable[[str, bytes | None], None]


def test_everything_is_equal_and_any_number_of_rows_can_be_asked_for(made: Path) -> None:
    report = verify(made, 1000)
    assert report.good
    assert (report.rows, report.worst, report.bad, report.damaged) == (6, 0.0, (), ())
    assert report.verdicts == {"equal": 5, "failed again": 1}
    assert json.loads(json.dumps(report.to_dict()))["good"] is True
    assert verify(made, 2, seed=3).rows == 2


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_count_is_a_positive_integer(made: Path, count: Any) -> None:
    with pytest.raises(ConfigError, match=rf"count={count} must be a positive integer"):
        verify(made, count)


def test_no_store_and_no_finished_shard(store: Path, tmp_path: Path) -> None:
    for look in (verify, stats):
        with pytest.raises(StoreError, match=r"nothing\.parquet has no bookkeeping"):
            look(tmp_path / "nothing.parquet")
    for record in (Path(f"{store}.trunkline") / "shards").iterdir():
        record.unlink()
    with pytest.raises(StoreError, match="has no finished shard; run the command that makes it"):
        verify(store)


def test_images_that_are_others_now(made: Path, changed: Change) -> None:
    other = made.parent / "other.png"
    Image.new("RGB", (32, 32), "blue").save(other)
    changed("0.png", other.read_bytes())
    changed("1.png", None)
    changed("2.png", other.read_bytes())
    changed("5.png", b"no image either")
    report = verify(made)
    assert not report.good
    assert {row.key: row.verdict for row in report.bad} == {
        "0.png": "source changed",
        "1.png": "unreadable now",
        "2.png": "source changed",
        "5.png": "source changed",
    }
    assert report.verdicts == {"source changed": 3, "unreadable now": 1, "equal": 2}
    assert report.damaged == ()


def test_an_image_that_was_away_is_there_again(tmp_path: Path, backbone: Backbone) -> None:
    photos = tmp_path / "photos"
    listed = tmp_path / "list.txt"
    listed.write_text(f"{photos / '0.png'}\n{photos / 'later.png'}\n")
    photos.mkdir()
    Image.new("RGB", (32, 32), "red").save(photos / "0.png")
    out = tmp_path / "f.parquet"
    extract(
        listed,
        out,
        backbone,
        runtime="torch",
        preprocessing=IMAGENET.with_size((32, 32)),
        workers=1,
        threads=1,
    )
    Image.new("RGB", (32, 32), "green").save(photos / "later.png")
    report = verify(out)
    assert [row.verdict for row in report.bad] == ["now readable"]
    assert report.bad[0].difference is None


def test_a_flipped_byte(store: Path) -> None:
    part = sorted(store.glob("*.parquet"))[1]
    data = bytearray(part.read_bytes())
    data[8] ^= 1
    part.write_bytes(data)
    report = verify(store)
    assert report.damaged == (part.name,)
    assert report.rows == 4  # those of the other shard
    assert not report.good


def test_a_lost_file(store: Path) -> None:
    part = sorted(store.glob("*.parquet"))[1]
    part.unlink()
    report = verify(store)
    assert report.damaged == (part.name,)
    assert report.rows == 4  # those of the other shard


@pytest.mark.parametrize(("factor", "verdict"), [(1.00001, "close"), (1.01, "different")])
def test_another_number_in_a_file_whose_digest_is_right(
    store: Path, factor: float, verdict: str
) -> None:
    part = sorted(store.glob("*.parquet"))[0]
    table = pq.read_table(part)
    place = table.schema.get_field_index(COLUMN)
    rows = table[COLUMN].to_pylist()
    largest = int(np.argmax(np.abs(rows[3])))
    rows[3][largest] *= factor
    column = pa.array(rows, table.schema.field(COLUMN).type)
    pq.write_table(table.set_column(place, table.schema.field(COLUMN), column), part)
    bookkeeping = Store(store)
    record = bookkeeping.record(0)
    bookkeeping.write_record(replace(record, files={part.name: sha256_of(part)}))
    report = verify(store)
    assert report.damaged == ()
    assert report.verdicts[verdict] == 1
    assert report.worst == pytest.approx(factor - 1, rel=0.1)
    assert report.good is (verdict == "close")
    assert [row.key for row in report.bad] == ([] if report.good else ["3.png"])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("f.parquet", {"dtype": "float16"}),
        ("f", {"layout": "clip-retrieval", "normalize": True}),
        pytest.param("f.zarr", {}, marks=newer_python),
    ],
)
def test_every_format(
    tmp_path: Path, backbone: Backbone, name: str, options: dict[str, Any]
) -> None:
    out = make(tmp_path, backbone, name, **options)
    report = verify(out)
    assert report.verdicts == {"equal": 5, "failed again": 1}
    assert report.good
    assert stats(out).images == 6


def test_stats(made: Path) -> None:
    report = stats(made)
    assert (report.images, report.failed, report.shards, report.shards_planned) == (6, 1, 2, 2)
    assert report.listed
    assert report.bytes == sum(path.stat().st_size for path in made.iterdir())
    assert report.images_per_second == pytest.approx(6 / report.seconds["total"], rel=0.01)
    assert {*report.seconds} == {
        *("read", "decode", "wait", "compute", "pool", "write", "total"),
    }
    assert report.job["network"]["variant"] == Store(made).manifest().job["network"]["variant"]
    ((reason, count),) = report.failures
    assert count == 1
    assert "2.png" not in reason
    assert json.loads(json.dumps(report.to_dict()))["images"] == 6


@pytest.mark.parametrize(
    ("seconds", "bottleneck"),
    [
        ({"compute": 5.0, "wait": 3.0, "write": 1.0}, "compute"),
        ({"compute": 2.0, "pool": 2.0, "wait": 3.0, "write": 1.0}, "compute"),
        ({"compute": 1.0, "wait": 3.0, "write": 1.0}, "decode"),
        ({"compute": 1.0, "wait": 0.5, "write": 9.0}, "write"),
    ],
)
def test_bottleneck_and_reasons_over_shards(
    store: Path, seconds: dict[str, float], bottleneck: str
) -> None:
    bookkeeping = Store(store)
    zero = dict.fromkeys(("read", "decode", "wait", "compute", "pool", "write", "total"), 0.0)
    failures = [(f"d/{n}.jpg", f"/data/d/{n}.jpg has {n} bytes") for n in (11, 12)]
    for shard in (0, 1):
        record = bookkeeping.record(shard)
        bookkeeping.write_record(
            replace(record, seconds={**zero, **seconds, "total": 2.0}, failures=failures, failed=2)
        )
    report = stats(store)
    assert report.bottleneck == bottleneck
    assert report.seconds["compute"] == 2 * seconds["compute"]
    assert report.images_per_second == pytest.approx(6 / 4)
    assert report.failed == 4
    assert report.failures == (("… has N bytes", 4),)


def test_stats_tell_the_seconds_of_the_writer(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards of four images and of two, in blocks of two: each takes 3 s, and each end 5 s."""
    now = [100.0]

    def slow(method: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def called(*given: Any) -> Any:
            now[0] += seconds
            return method(*given)

        return called

    monkeypatch.setattr(session, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(ParquetFiles, "block_size", 2)
    monkeypatch.setattr(TableWriter, "append", slow(TableWriter.append, 3.0))
    monkeypatch.setattr(TableWriter, "commit", slow(TableWriter.commit, 5.0))
    ended = run(tmp_path, backbone, "f.parquet")
    assert ended.stages["write"] == 3 * 3.0 + 2 * 5.0
    written = [one.seconds["write"] for one in Store(ended.out).records()]
    assert written == [2 * 3.0 + 5.0, 3.0 + 5.0]
    report = stats(ended.out)
    assert report.seconds["write"] == 3 * 3.0 + 2 * 5.0
    assert report.bottleneck == "write"
    assert report.seconds["total"] < 3.0  # the writer works meanwhile


def test_rows_are_chosen_in_little_memory() -> None:
    sizes = array("q", [9_973] * 20_000)  # 2·10⁸ rows
    tracemalloc.start()
    try:
        found = list(chosen(sizes, 1_000, seed=3))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
    assert sum(len(numbers) for _, numbers in found) == 1_000
    assert found == list(chosen(sizes, 1_000, seed=3))
    assert found != list(chosen(sizes, 1_000, seed=4))


@settings(derandomize=True, database=None)
@given(sizes=st.lists(st.integers(0, 9), max_size=9), count=st.integers(1, 99), seed=st.integers())
def test_rows_are_those_of_a_sample_of_all(sizes: list[int], count: int, seed: int) -> None:
    places = [(place, number) for place, size in enumerate(sizes) for number in range(size)]
    drawn = random.Random(seed)  # noqa: S311 - of rows, not of secrets
    wanted = sorted(drawn.sample(places, min(count, len(places))))
    found = [(place, number) for place, some in chosen(sizes, count, seed) for number in some]
    assert found == wanted


def test_damaged_files_are_counted_and_some_are_named(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "_NAMED", 1)
    for part in store.glob("*.parquet"):
        part.write_bytes(b"")
    report = verify(store)
    assert (report.damaged, report.num_damaged, report.rows) == (("part-00000.parquet",), 2, 0)
    assert not report.good


def test_what_is_no_record_does_not_count(store: Path) -> None:
    folder = Path(f"{store}.trunkline") / "shards"
    for name in ("notes.json", "00002.json~", "000001.json", "٠٠٠٠٢.json", "1.json", ".00002.json"):
        (folder / name).write_text("{}")
    (folder / "00003.json").mkdir()
    os.mkfifo(folder / "00004.json")
    assert verify(store).good
    assert stats(store).shards == 2
    assert Store(store).done() == [0, 1]


def test_stats_of_nothing_finished(store: Path) -> None:
    for record in (Path(f"{store}.trunkline") / "shards").iterdir():
        record.unlink()
    report = stats(store)
    assert (report.images, report.shards, report.shards_planned) == (0, 0, 2)
    assert report.images_per_second == 0.0
