"""``progress``: a bar in a terminal, nothing elsewhere, and numbers for whoever is called."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import rich.progress

from trunkline import Backbone, extract
from trunkline.extraction.progress import bar, told
from trunkline.extraction.reports import Progress
from trunkline.preprocessing import IMAGENET


class Terminal(io.StringIO):
    """Standard error with somebody in front of it."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def backbone(families: dict[str, Any]) -> Backbone:
    """A tiny network."""
    built: Backbone = families["resnet-basic"].build()
    return built


def run(photos: Path, out: Path, backbone: Backbone, progress: Any) -> int:
    """Extract small images in batches of two; return how many."""
    report = extract(
        photos,
        out,
        backbone,
        preprocessing=IMAGENET.with_size(32),
        runtime="torch",
        batch_size=2,
        workers=0,
        progress=progress,
    )
    return report.images


def shown(screen: io.StringIO) -> str:
    """Return all that was drawn, without colours and movements of the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())


def now(images: int, *, failed: int = 0, listed: bool = True) -> Progress:
    return Progress(images=images, failed=failed, before=10, total=40, listed=listed, seconds=2.0)


def test_a_bar_in_a_terminal(
    photos: Path, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    images = run(photos, tmp_path / "f.parquet", backbone, progress=True)
    assert re.search(rf"{images}/{images} .*images/s", shown(screen)), shown(screen)


@pytest.mark.parametrize("progress", [True, False, None])
def test_quiet_where_nobody_looks(
    photos: Path,
    backbone: Backbone,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    progress: bool | None,
) -> None:
    run(photos, tmp_path / "f.parquet", backbone, progress)
    assert capfd.readouterr() == ("", "")


def test_quiet_in_a_terminal_unless_asked(
    photos: Path, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    run(photos, tmp_path / "f.parquet", backbone, progress=False)
    assert screen.getvalue() == ""


def test_whoever_is_called_gets_numbers(photos: Path, backbone: Backbone, tmp_path: Path) -> None:
    heard: list[Progress] = []
    images = run(photos, tmp_path / "f.parquet", backbone, heard.append)
    counts = [one.images for one in heard]
    assert counts == sorted(counts)
    assert counts[-1] == images
    assert (heard[-1].total, heard[-1].listed, heard[-1].failed) == (images, True, 0)
    assert all(one.seconds > 0 for one in heard)


def test_what_the_bar_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with told(True) as tell:
        assert tell is not None
        tell(now(20, failed=3, listed=False))
        tell(now(30, failed=3))
    assert re.search(r"40/40 15\.0 images/s .*3 failed", shown(screen)), shown(screen)


def test_the_bar_is_drawn_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    original = rich.progress.Progress

    def noted(*columns: Any, **options: Any) -> rich.progress.Progress:
        asked.append(options["refresh_per_second"])
        return original(*columns, **options)

    monkeypatch.setattr(rich.progress, "Progress", noted)
    with bar():
        pass
    assert asked == [1]
