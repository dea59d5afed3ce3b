"""Files and folders that exist whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from trunkline.errors import OutputError
from trunkline.outputs import folder_written_whole, sha256_of, written_whole


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder"
    with folder_written_whole(target) as aside:
        (aside / "file").write_text("all of it")
        assert not target.exists()
    assert names(tmp_path / "deep") == ["folder"]
    assert (target / "file").read_text() == "all of it"
    assert target.stat().st_mode & 0o777 == 0o755


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails() -> None:
        with folder_written_whole(tmp_path / "folder") as aside:
            (aside / "file").write_text("half of it")
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        fails()
    assert names(tmp_path) == []


@pytest.mark.parametrize("write", [folder_written_whole, written_whole])
def test_a_disk_that_refuses_is_an_output_error(
    tmp_path: Path, write: Callable[[Path], AbstractContextManager[Path]]
) -> None:
    def full() -> None:
        with write(tmp_path / "target"):
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"target cannot be written: No space left on device"):
        full()
    assert names(tmp_path) == []


def test_a_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("dear")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "folder", "link"):
        with (
            pytest.raises(OutputError, match=rf"{name} exists already; give a new folder"),
            folder_written_whole(tmp_path / name),
        ):
            pass
    assert names(tmp_path) == ["file", "folder", "link"]


def test_a_hash_of_a_file_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 1_000_000)
    assert sha256_of(path) == "f4096a131e7e6ebfa7a512b5c299e13b065df34d15624ee1202ab394cc4d7e90"
