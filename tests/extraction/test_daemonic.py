"""Where no processes may be started: in workers of Celery, of a Pool, and by choice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trunkline import create_backbone, extract
from trunkline.errors import ConfigError

BACKBONE = create_backbone("resnet18", return_idx=(0,))


@pytest.mark.parametrize("size", [{}, {"resize": None, "crop": None}], ids=["one size", "any size"])
def test_without_processes_the_numbers_are_the_same(
    tmp_path: Path, photos: Path, size: dict[str, Any]
) -> None:
    (photos / "broken.png").write_bytes(b"no")
    chosen = BACKBONE.preprocessing.with_size(None) if size else None
    from trunkline import open_features

    for workers in (1, 0):
        report = extract(
            photos,
            tmp_path / f"{workers}.parquet",
            BACKBONE,
            runtime="torch",
            preprocessing=chosen,
            workers=workers,
        )
        assert (report.images, report.failed) == (6, 1)
    one, other = (open_features(tmp_path / f"{n}.parquet") for n in (1, 0))
    assert (one.numpy() == other.numpy()).all()
    assert one.table(["key", "sha256", "status", "error"]).equals(
        other.table(["key", "sha256", "status", "error"])
    )


def test_no_processes_are_for_this_machine_alone(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"workers=0 must be a positive integer with engine='ray'"
    ):
        extract(photos, tmp_path / "f.parquet", BACKBONE, workers=0, engine="ray")
    with pytest.raises(ConfigError, match=r"workers=False must be a positive integer"):
        extract(photos, tmp_path / "f.parquet", BACKBONE, workers=False)


SCRIPT = """
import multiprocessing, sys
from trunkline import create_backbone, extract

def job():
    backbone = create_backbone("resnet18", return_idx=(0,))
    report = extract(sys.argv[1], sys.argv[2], backbone, runtime="torch")
    print(report.images, report.failed, multiprocessing.current_process().daemon, flush=True)

if __name__ == "__main__":
    process = multiprocessing.get_context("fork").Process(target=job, daemon=True)
    process.start()
    process.join(100)
    sys.exit(process.exitcode)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_daemonic_process_has_workers(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "job.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "job.py"), str(photos), str(tmp_path / "f.parquet")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "5 0 True"
