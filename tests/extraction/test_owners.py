"""What somebody still writes is theirs, in any container; what the dead left is anybody's."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trunkline.errors import OutputError
from trunkline.extraction import owners
from trunkline.extraction.durable import aside, put_in_place, remove, remove_leftovers
from trunkline.extraction.owners import owning

posix = pytest.mark.skipif(os.name == "nt", reason="forks and signals of POSIX")

WRITER = """
import sys
from pathlib import Path
from trunkline.extraction.durable import aside
scratch = Path(sys.argv[1])
aside(scratch, "part-00000.parquet").write_bytes(b"half")
aside(scratch, "maps-00000").mkdir()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that is writing a file and a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


def names(folder: Path) -> list[str]:
    """Return the names in a folder, without what tells one process from another."""
    return sorted(path.name.partition("~")[0] for path in folder.iterdir() if "~" in path.name)


def leave(folder: Path, name: str) -> Path:
    """Write what a process that is gone has left behind, its owner's file too."""
    left = aside(folder, name)
    left.touch()
    owner = owners._owned.pop(folder)
    assert owner.descriptor is not None
    os.close(owner.descriptor)
    return left


def test_what_a_living_process_writes_stays_and_what_it_left_goes(
    tmp_path: Path, writer: subprocess.Popen[str]
) -> None:
    (tmp_path / "zarr.lock").touch()
    mine = aside(tmp_path, "part-00001.parquet")
    mine.touch()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["maps-00000", "part-00000.parquet", "part-00001.parquet"]
    writer.kill()
    writer.wait()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["part-00001.parquet"]
    remove(mine)
    assert [path.name for path in tmp_path.iterdir()] == ["zarr.lock"]
    remove_leftovers(tmp_path / "missing")


def test_names_differ_and_the_owner_goes_with_the_last_of_them(tmp_path: Path) -> None:
    scratch = tmp_path / "tmp"
    first, second = aside(scratch, "a"), aside(scratch, "a")
    assert first != second
    first.touch()
    put_in_place(first, tmp_path / "a")
    assert len(list(scratch.glob("*.owner"))) == 1
    remove(second)  # which was never written
    assert list(scratch.iterdir()) == []
    with owning(scratch), owning(scratch):
        remove(aside(scratch, "a"))
        assert len(list(scratch.glob("*.owner"))) == 1
    assert list(scratch.iterdir()) == []


def test_files_without_their_owners_file_go(tmp_path: Path) -> None:
    left = leave(tmp_path, "part-00000.parquet")
    (owner,) = tmp_path.glob("*.owner")
    owner.unlink()
    remove_leftovers(tmp_path)
    assert not left.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("machine", [b"another", b""])
def test_what_another_machine_wrote_goes_after_a_day_without_a_touch(
    tmp_path: Path, machine: bytes
) -> None:
    """Its lock may be one that cannot be seen from here."""
    left = leave(tmp_path, "part-00000.parquet")
    (owner,) = tmp_path.glob("*.owner")
    owner.write_bytes(machine)
    remove_leftovers(tmp_path)
    assert left.exists()
    yesterday = time.time() - 25 * 3600
    os.utime(owner, (yesterday, yesterday))
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_owner_at_work_touches_its_file(tmp_path: Path) -> None:
    with owning(tmp_path):
        (owner,) = tmp_path.glob("*.owner")
        os.utime(owner, (0, 0))
        remove(aside(tmp_path, "record.json"))
        assert time.time() - owner.stat().st_mtime < 60


def test_without_locks_nothing_is_removed_and_a_warning_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left = leave(tmp_path, "part-00000.parquet")

    def refused(_: int) -> bool:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(owners, "_lock", refused)
    with owning(tmp_path):
        mine = aside(tmp_path, "part-00001.parquet")
        mine.touch()
        assert "~unlocked-" in mine.name
        remove_leftovers(tmp_path)
    assert left.exists()
    assert "file system without locks" in caplog.text
    monkeypatch.undo()
    remove_leftovers(tmp_path)  # from a machine that has locks there
    assert list(tmp_path.iterdir()) == [mine]


def test_an_owner_that_is_taken_for_dead_while_it_is_born_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process saw its file before it was locked."""
    lock, calls = owners._lock, list[int]()

    def late(descriptor: int) -> bool:
        calls.append(descriptor)
        if len(calls) == 1:
            next(tmp_path.glob("*.owner")).unlink()
        return lock(descriptor)

    monkeypatch.setattr(owners, "_lock", late)
    with owning(tmp_path):
        assert len(calls) == 2
        assert len(list(tmp_path.glob("*.owner"))) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_removed_is_left_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left = leave(tmp_path, "part-00000.parquet")

    def refused(_: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    owners.remove_abandoned(tmp_path, refused)
    assert left.exists()
    assert "has files of a run that has ended: " in caplog.text


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"tmp cannot be written: Not a directory; make room"):
        aside(tmp_path / "file" / "tmp", "part-00000.parquet")


def test_a_folder_that_was_made_again_is_owned_again(tmp_path: Path) -> None:
    with owning(tmp_path):
        next(tmp_path.glob("*.owner")).unlink()
        aside(tmp_path, "record.json").touch()
        remove_leftovers(tmp_path)
        assert names(tmp_path) == ["record.json"]


def test_threads_own_a_folder_together(tmp_path: Path) -> None:
    def work() -> None:
        for _ in range(20):
            with owning(tmp_path):
                path = aside(tmp_path, "a")
                path.touch()
                remove_leftovers(tmp_path)
                assert path.exists()
                remove(path)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert list(tmp_path.iterdir()) == []


@posix
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_is_an_owner_of_its_own(tmp_path: Path) -> None:
    with owning(tmp_path):
        mine = aside(tmp_path, "a")
        mine.touch()
        child = os.fork()
        if not child:
            try:
                theirs = aside(tmp_path, "a")
                theirs.touch()
                remove_leftovers(tmp_path)  # the parent's stays
                tokens = {path.name.partition("~")[2].partition("-")[0] for path in (mine, theirs)}
                os._exit(0 if mine.exists() and len(tokens) == 2 else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        remove_leftovers(tmp_path)
        assert [path for path in tmp_path.iterdir() if "~" in path.name] == [mine]
