from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from trunkline.errors import ConfigError, OutputError, SourceError, StoreError
from trunkline.extraction import plan as plan_module
from trunkline.extraction.plan import Plan, PlanCounts
from trunkline.extraction.records import Item
from trunkline.extraction.sources import Source, list_items, source_of


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def numbered(folder: Path, count: int) -> Source:
    return source_of(touch(folder, *(f"{number:04d}.jpg" for number in range(count))))


def all_keys(plan: Plan) -> list[str]:
    return [item.key for shard in plan.shards() for item in plan.items(shard)]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_plan_is_the_listing_in_shards(photos: Path, tmp_path: Path) -> None:
    source = source_of(photos)
    plan = Plan(tmp_path / "plan", source, 2)
    assert plan.counts() == PlanCounts(shards=0, images=0, complete=False)
    assert [plan.extend(), plan.counts()] == [True, PlanCounts(shards=1, images=2)]
    assert list(plan.shards()) == [0, 1, 2]
    assert plan.counts() == PlanCounts(shards=3, images=5, complete=True)
    assert not plan.extend()
    assert [plan.size(shard) for shard in range(3)] == [2, 2, 1]
    assert [item for shard in range(3) for item in plan.items(shard)] == list(list_items(source))
    assert names(tmp_path / "plan") == [
        "00000.parquet",
        "00001.parquet",
        "00002.parquet",
        "complete.json",
    ]
    totals = json.loads((tmp_path / "plan/complete.json").read_text())
    assert totals == {"shards": 3, "images": 5}


def test_starts_and_sizes_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [Item("a", "/x.tar", 512, 1 << 40), Item("b", "/x.parquet", 0), Item("é", "/é")]
    monkeypatch.setattr(plan_module, "list_items", lambda *_: iter(items))
    plan = Plan(tmp_path, Source(kind="tar", location="/x.tar"), 10)
    assert [plan.items(shard) for shard in plan.shards()] == [items]


@pytest.mark.parametrize("count", [1, 3, 4, 6])
def test_complete_plan_is_never_listed_again(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = numbered(tmp_path / "photos", count)
    before = all_keys(Plan(tmp_path / "plan", source, 3))
    assert len(before) == count
    (tmp_path / "photos").rename(tmp_path / "gone")
    monkeypatch.setattr(plan_module, "list_items", None)  # calling it is an error
    plan = Plan(tmp_path / "plan", source, 3)
    assert plan.counts() == PlanCounts(shards=-(-count // 3), images=count, complete=True)
    assert not plan.extend()
    assert all_keys(plan) == before
    (tmp_path / "plan/complete.json").unlink()  # as after a crash just before it
    plan = Plan(tmp_path / "plan", source, 3)
    assert plan.counts() == PlanCounts(shards=-(-count // 3), images=count, complete=True)
    assert all_keys(plan) == before
    assert not plan.extend()
    assert (tmp_path / "plan/complete.json").exists()


@pytest.mark.parametrize("kind", ["folder", "glob", "list", "parquet"])
def test_new_process_continues_where_the_plan_ends(photos: Path, tmp_path: Path, kind: str) -> None:
    source = source_of(photos)
    paths = [item.path for item in list_items(source)]
    (tmp_path / "list.txt").write_text("\n".join(paths))
    parquet.write_table(pa.table({"path": paths}), tmp_path / "x.parquet", row_group_size=2)
    location = {"glob": photos / "**/*", "list": tmp_path / "list.txt"}.get(kind, photos)
    source = source_of(tmp_path / "x.parquet" if kind == "parquet" else location)
    assert source.kind == kind
    for shard in range(3):
        plan = Plan(tmp_path / "plan", source, 2)
        assert plan.counts() == PlanCounts(shards=shard, images=shard * 2)
        assert plan.extend()
    assert [item.path for shard in range(3) for item in plan.items(shard)] == paths
    assert plan.counts().complete


def test_what_is_frozen_stays_whatever_becomes_of_the_source(photos: Path, tmp_path: Path) -> None:
    source = source_of(photos)
    first = Plan(tmp_path / "plan", source, 2)
    assert first.extend()
    (photos / "a/2.JPEG").unlink()
    touch(photos, "a/0.jpg", "c/0.jpg")
    assert all_keys(Plan(tmp_path / "plan", source, 2)) == [
        "a/1.jpg",
        "a/2.JPEG",
        "b.jpg",
        "c/0.jpg",
        "c/d/3.jpg",
        "e.jpg",
    ]


def test_source_is_listed_no_further_than_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def three(*_: Any) -> Iterator[Item]:
        for number in range(3):
            yield Item(str(number), str(number))
        raise AssertionError("listed too far")

    monkeypatch.setattr(plan_module, "list_items", three)
    plan = Plan(tmp_path, Source(kind="folder", location="/x"), 3)
    shards = plan.shards()
    assert next(shards) == 0
    assert plan.counts() == PlanCounts(shards=1, images=3)


def test_error_of_the_listing_is_not_taken_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = True

    def listing(_: Source, __: Item | None, count: int, *___: object) -> Iterator[Item]:
        for number in range(count, 5):
            if number == 3 and broken:
                raise SourceError("the disk is away")
            yield Item(str(number), str(number))

    monkeypatch.setattr(plan_module, "list_items", listing)
    plan = Plan(tmp_path, Source(kind="folder", location="/x"), 2)
    assert plan.extend()
    for _ in range(2):
        with pytest.raises(SourceError, match="the disk is away"):
            plan.extend()
    broken = False
    assert all_keys(plan) == ["0", "1", "2", "3", "4"]


def test_two_plans_in_turn_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = numbered(tmp_path / "photos", 23)
    begun: list[Item | None] = []

    def noting(source: Source, after: Item | None, count: int, *_: object) -> Iterator[Item]:
        begun.append(after)
        return list_items(source, after, count)

    monkeypatch.setattr(plan_module, "list_items", noting)
    one, other = (Plan(tmp_path / "plan", source, 2) for _ in range(2))
    while not (one.counts().complete and other.counts().complete):
        for plan in (one, other):
            plan.extend()  # takes over what the other has frozen
            plan.extend()  # and freezes the next
    expected = [f"{number:04d}.jpg" for number in range(23)]
    assert all_keys(one) == all_keys(other) == expected
    assert len(begun) == 2  # each listed the folder once, past what the other had frozen


def test_plan_far_behind_begins_again_behind_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "CATCH_UP_SHARDS", 2)
    source = numbered(tmp_path / "photos", 23)
    slow, fast = (Plan(tmp_path / "plan", source, 2) for _ in range(2))
    assert slow.extend()
    while fast.counts().shards < 6:
        fast.extend()
    assert slow.extend()
    assert slow.counts().shards == 6
    assert all_keys(slow) == [f"{number:04d}.jpg" for number in range(23)]


def test_loser_takes_what_the_winner_listed_and_continues_behind_it(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(photos)
    loser, winner = (Plan(tmp_path / "plan", source, 2) for _ in range(2))
    link = os.link

    def overtaken(written: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        touch(photos, "a/0.jpg")  # so that the winner lists something else
        assert winner.extend()
        link(written, target)

    monkeypatch.setattr(os, "link", overtaken)
    assert loser.extend()
    assert [item.key for item in loser.items(0)] == ["a/0.jpg", "a/1.jpg"]
    assert all_keys(loser) == all_keys(winner)
    assert all_keys(loser) == ["a/0.jpg", "a/1.jpg", "a/2.JPEG", "b.jpg", "c/d/3.jpg", "e.jpg"]
    assert not [name for name in names(tmp_path / "plan") if "~" in name]


def test_end_is_agreed_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = numbered(tmp_path / "photos", 2)
    loser, winner = (Plan(tmp_path / "plan", source, 2) for _ in range(2))
    assert loser.extend()
    link = os.link

    def overtaken(written: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        touch(tmp_path / "photos", "0002.jpg")  # one sees the end here, the other one more image
        assert winner.extend()
        link(written, target)

    assert winner.counts().shards == 0
    assert winner.extend()
    monkeypatch.setattr(os, "link", overtaken)
    assert loser.extend()
    assert loser.counts() == winner.counts() == PlanCounts(shards=2, images=3, complete=True)


def test_threads_and_processes_make_one_plan(tmp_path: Path) -> None:
    source = numbered(tmp_path / "photos", 300)
    code = (
        "import sys; from pathlib import Path\n"
        "from trunkline.extraction.plan import Plan\n"
        "from trunkline.extraction.sources import source_of\n"
        "plan = Plan(Path(sys.argv[2]), source_of(sys.argv[1]), 7)\n"
        "print(*[item.key for shard in plan.shards() for item in plan.items(shard)])\n"
    )
    command = [sys.executable, "-c", code, source.location, str(tmp_path / "plan")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    plans = [Plan(tmp_path / "plan", source, 7) for _ in range(2)]
    found: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda plan=plan: found.append(all_keys(plan)))
        for plan in plans * 2  # two threads share a plan
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found += [process.communicate()[0].split() for process in processes]
    assert found == [[f"{number:04d}.jpg" for number in range(300)]] * 6
    assert len(names(tmp_path / "plan")) == 43 + 1


def test_a_listing_that_others_have_run_past_is_begun_again_where_it_is_another(
    tmp_path: Path,
) -> None:
    source = numbered(tmp_path / "photos", 10)
    slow = Plan(tmp_path / "plan", source, 2)
    slow.extend()  # its listing has all ten
    (tmp_path / "photos" / "0003.jpg").unlink()
    quick = Plan(tmp_path / "plan", source, 2)
    assert [quick.extend(), quick.extend()] == [True, True]
    left = [f"{number:04d}.jpg" for number in range(10) if number != 3]
    assert all_keys(slow) == left


def test_counts_and_frozen_shards_do_not_wait_for_a_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, go_on = threading.Event(), threading.Event()

    def slow(*_: Any) -> Iterator[Item]:
        yield Item("0", "0")
        waiting.set()
        assert go_on.wait(10)
        yield Item("1", "1")

    monkeypatch.setattr(plan_module, "list_items", slow)
    plan = Plan(tmp_path, Source(kind="folder", location="/x"), 1)
    assert plan.extend()
    ahead = threading.Thread(target=plan.extend)
    ahead.start()
    assert waiting.wait(10)
    assert plan.counts() == PlanCounts(shards=1, images=1)
    assert next(plan.shards()) == 0
    assert plan.items(0) == [Item("0", "0")]
    go_on.set()
    ahead.join()
    assert all_keys(plan) == ["0", "1"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", r"has no images: it was taken for a folder\. Files count by their ending"),
        ("*.gif", r"has no images: it was taken for a glob\. .* others can be given as a list"),
        ("empty.txt", r"has no images: it was taken for a list\. Every line"),
    ],
)
def test_source_without_images_is_refused_and_leaves_no_plan(
    tmp_path: Path, name: str, message: str
) -> None:
    folder = touch(tmp_path / "photos", "notes.md")
    (folder / "empty.txt").write_text("\n\n")
    plan = Plan(tmp_path / "plan", source_of(folder / name), 2)
    for _ in range(2):
        with pytest.raises(SourceError, match=message):
            plan.extend()
    assert not (tmp_path / "plan").exists()


def test_of_a_key_that_two_images_have_the_second_says_so(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.jpg\nb.jpg\na.jpg\na.jpg\nc.jpg\n")
    for size in (10, 4):  # also where the second is what a listing goes on behind
        plan = Plan(tmp_path / f"plan-{size}", source_of(tmp_path / "list.txt"), size)
        assert all_keys(plan) == ["a.jpg", "b.jpg", "a.jpg (again: 2)", "a.jpg (again: 3)", "c.jpg"]


def test_damaged_plan_file_is_refused(photos: Path, tmp_path: Path) -> None:
    source = source_of(photos)
    plan = Plan(tmp_path, source, 2)
    assert plan.extend()
    assert plan.extend()
    path = tmp_path / "00001.parquet"
    whole = path.read_bytes()
    place = whole.index(b"b.jpg")
    for damaged in (b"", whole[:-30], whole[:place] + b"X" + whole[place + 1 :]):
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"00001\.parquet is missing or damaged"):
            plan.items(1)
    path.write_bytes(b"")
    with pytest.raises(StoreError, match=r"00001\.parquet is missing or damaged"):
        Plan(tmp_path, source, 2)
    path.unlink()
    with pytest.raises(StoreError, match=r"00001\.parquet is missing or damaged"):
        plan.items(1)


def test_plan_file_of_another_place_is_refused(photos: Path, tmp_path: Path) -> None:
    plan = Plan(tmp_path, source_of(photos), 2)
    assert list(plan.shards()) == [0, 1, 2]
    (tmp_path / "00001.parquet").write_bytes((tmp_path / "00000.parquet").read_bytes())
    with pytest.raises(StoreError, match=r"is a plan file of .*'shard': 0.* 'shard': 1"):
        plan.items(1)


def test_gap_in_the_plan_is_refused(photos: Path, tmp_path: Path) -> None:
    source = source_of(photos)
    plan = Plan(tmp_path, source, 2)
    assert plan.extend()
    assert plan.extend()
    (tmp_path / "00000.parquet").unlink()
    with pytest.raises(StoreError, match=r"00000\.parquet is missing, though later files"):
        Plan(tmp_path, source, 2)


def test_other_shard_size_is_refused(photos: Path, tmp_path: Path) -> None:
    source = source_of(photos)
    plan = Plan(tmp_path, source, 2)
    assert plan.extend()
    with pytest.raises(StoreError, match="give the shard size that the plan was begun with"):
        Plan(tmp_path, source, 3)
    assert list(plan.shards()) == [0, 1, 2]
    with pytest.raises(StoreError, match="counts 5 images in 3 shards, which are not shards of 3"):
        Plan(tmp_path, source, 3)
    with pytest.raises(ConfigError, match="shard_size=0 must be a positive number"):
        Plan(tmp_path, source, 0)


@pytest.mark.parametrize("text", ["", "[]", '{"shards": 3}', '{"shards": "x", "images": 5}'])
def test_damaged_totals_are_refused(photos: Path, tmp_path: Path, text: str) -> None:
    source = source_of(photos)
    assert len(all_keys(Plan(tmp_path, source, 2))) == 5
    (tmp_path / "complete.json").write_text(text)
    with pytest.raises(StoreError, match=r"complete\.json is damaged .* remove it"):
        Plan(tmp_path, source, 2)
    (tmp_path / "complete.json").unlink()
    assert Plan(tmp_path, source, 2).counts() == PlanCounts(shards=3, images=5, complete=True)


def test_shard_that_is_not_frozen_is_refused(photos: Path, tmp_path: Path) -> None:
    plan = Plan(tmp_path, source_of(photos), 2)
    assert plan.extend()
    for ask in (plan.items, plan.size):
        for shard in (1, -1):
            with pytest.raises(StoreError, match=f"has 1 shards so far, and no shard {shard}"):
                ask(shard)


def test_full_disk_is_said_and_can_be_tried_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    plan = Plan(tmp_path / "plan", source_of(photos), 2)
    with monkeypatch.context() as patch:
        patch.setattr(plan_module, "sync", full)
        with pytest.raises(OutputError, match=r"00000\.parquet cannot be written: No space left"):
            plan.extend()
    assert names(tmp_path / "plan") == []
    assert len(all_keys(plan)) == 5


def test_file_system_without_hard_links_is_used_with_a_warning(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refusing(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refusing)
    with caplog.at_level(logging.WARNING):
        plan = Plan(tmp_path / "plan", source_of(photos), 2)
        assert len(all_keys(plan)) == 5
    assert "run one process at a time" in caplog.text
    assert len(names(tmp_path / "plan")) == 4


def test_what_a_dead_process_left_is_removed(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plan"
    folder.mkdir()
    code = (
        "import sys; from pathlib import Path\n"
        "from trunkline.extraction.durable import aside\n"
        "aside(Path(sys.argv[1]), '00000.parquet').write_bytes(b'half')"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    left = max(names(folder), key=len)
    assert left.startswith("00000.parquet~")
    assert len(all_keys(Plan(folder, source_of(photos), 5))) == 5
    assert left not in names(folder)
