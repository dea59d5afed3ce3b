"""A store that cannot be written to: all that needs no writing works, the rest is told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from image_sources import write_photos

from trunkline import deploy
from trunkline.extraction.extracting import extract
from trunkline.preprocessing import IMAGENET

FORMATS = ("parquet", "zarr")

# Of the folder "stores" nothing can be written: not even by root, where it is mounted so.
SCRIPT = """
import sys
from pathlib import Path

from trunkline.errors import OutputError
from trunkline.extraction.checking import stats, verify
from trunkline.extraction.extracting import extract
from trunkline.extraction.merging import merge
from trunkline.extraction.reader import open_features
from trunkline.preprocessing import IMAGENET
from trunkline.runtimes.saving import load_runner

folder = Path(sys.argv[1])
stores, runner = folder / "stores", load_runner(folder / "runner", threads=1)
options = {"preprocessing": IMAGENET.with_size(32), "workers": 1, "shard_size": 2}

def run(out, **more):
    return extract(folder / "photos", stores / out, runner, **options, **more)

def refused(*arguments, **more):
    try:
        run(*arguments, **more)
    except OutputError as error:
        assert "cannot be written: " in str(error), error
        return True
    return False

try:
    (stores / "probe").touch()
    sys.exit("it can be written")
except OSError:
    pass
for suffix in ("parquet", "zarr"):
    whole, part = f"whole.{suffix}", f"part.{suffix}"
    for more in ({}, {"retry_failed": True}, {"max_errors": 0}):
        report = run(whole, **more)
        assert (report.images, report.complete, report.shards_before) == (0, True, 2), report
    assert verify(stores / whole).good and verify(stores / part).good
    assert (stats(stores / whole).shards, stats(stores / part).shards) == (2, 1)
    assert len(open_features(stores / whole).keys) == 4
    assert refused(part) and refused(part, retry_failed=True) and refused(f"new.{suffix}")
    assert merge([stores / part], folder / f"merged.{suffix}") == 2
print("all is well")
"""


def locked_out(folder: Path) -> list[str]:
    """Return what a command begins with that may not write into a folder."""
    if os.name == "nt":
        pytest.skip("needs the permissions of POSIX")
    if os.geteuid():
        for path in [folder, *folder.rglob("*")]:
            path.chmod(path.stat().st_mode & ~0o222)
        return []
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    begin = ["unshare", "-m", "sh", "-c", script, str(folder)]
    try:
        subprocess.run([*begin, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("root may write everywhere, and may not mount here")
    return begin


def test_what_needs_no_writing_works_and_the_rest_is_told(
    families: dict[str, Any], tmp_path: Path
) -> None:
    backbone = families["resnet-basic"].build(return_idx=(3,))
    runner = deploy(backbone, "onnxruntime", "fp32", (2, 32, 32), True, threads=1)
    runner.save(tmp_path / "runner")
    photos = write_photos(tmp_path / "photos", 4, bad_every=0)
    stores = tmp_path / "stores"
    for suffix in FORMATS:
        whole, part = stores / f"whole.{suffix}", stores / f"part.{suffix}"
        options: dict[str, Any] = {"preprocessing": IMAGENET.with_size(32), "workers": 1}
        extract(photos, whole, runner, shard_size=2, **options)
        for end in ("", ".trunkline"):
            shutil.copytree(f"{whole}{end}", f"{part}{end}")
        (stores / f"part.{suffix}.trunkline" / "shards" / "00001.json").unlink()
    begin = locked_out(stores)
    try:
        done = subprocess.run(
            [*begin, sys.executable, "-c", SCRIPT, str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    finally:
        for path in [stores, *stores.rglob("*")]:  # or nobody can remove it
            path.chmod(path.stat().st_mode | 0o200)
    assert (done.returncode, done.stdout) == (0, "all is well\n"), done.stderr
