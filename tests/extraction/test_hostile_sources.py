"""Sources that lie, of every kind that a generator makes: a sample of a few seconds.

``python tools/hostile_sources.py`` tries as many as are asked for.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import hostile_sources
import numpy as np
import pyarrow.parquet as pq
import pytest
from hostile_sources import KINDS, run

from trunkline.extraction.extracting import extract
from trunkline.preprocessing import IMAGENET


def test_whatever_a_source_says_it_ends_in_images_and_in_errors_of_ours() -> None:
    cases = list(run(range(200), seed=7))  # another seed than the command's default
    assert [case for case in cases if case[2] is not None] == []
    assert set(Counter(kind for kind, _, _ in cases)) == set(KINDS)


@pytest.mark.parametrize(
    "make", [hostile_sources.tar, hostile_sources.zipped, hostile_sources.table]
)
def test_a_case_is_always_the_same_bytes(make: Any) -> None:
    made = [[make(np.random.default_rng([3, n])) for n in range(5)] for _ in range(2)]
    if make is not hostile_sources.zipped:  # which holds the time of its making
        assert made[0] == made[1]
    assert len({*made[0]}) == 5


def test_what_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"x")
    assert hostile_sources.problem_of(str(tmp_path)) is None

    def raising(*_: Any, **__: Any) -> bytes:
        raise RuntimeError("a driver that nobody caught")

    monkeypatch.setattr(hostile_sources, "read_bytes", raising)
    assert "RuntimeError('a driver" in (hostile_sources.problem_of(str(tmp_path)) or "")


def test_the_command_prints_counts_and_its_verdict() -> None:
    done = subprocess.run(
        [sys.executable, hostile_sources.__file__, "--count", "10", "--first", "40"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 tar, 2 tar in a chain, 2 zip, 2 Parquet, 2 address; 0 wrong; " in done.stdout


def test_tar_with_an_impossible_size_costs_no_other_tar(
    photos: Path, families: dict[str, Any], tmp_path: Path
) -> None:
    photo, tars = (photos / "b.jpg").read_bytes(), tmp_path / "tars"
    tars.mkdir()
    bad = tarfile.TarInfo("bad.jpg")
    bad.size = -1536  # which would lead back to the beginning for ever
    for name, headers in (("0", [bad]), ("1", [])):
        with tarfile.open(tars / f"{name}.tar", "w") as tar:
            info = tarfile.TarInfo("good.jpg")
            info.size = len(photo)
            tar.addfile(info, io.BytesIO(photo))
        content = (tars / f"{name}.tar").read_bytes()[: 512 + -(-len(photo) // 512) * 512]
        more = b"".join(one.tobuf(tarfile.GNU_FORMAT) for one in headers)
        (tars / f"{name}.tar").write_bytes(content + more + bytes(1024))
    backbone = families["resnet-basic"].build()
    options: Any = {"runtime": "torch", "preprocessing": IMAGENET.with_size(32), "workers": 1}
    report = extract(tars, tmp_path / "f.parquet", backbone, shard_size=2, **options)
    assert (report.images, report.failed, report.complete) == (3, 1, True)
    table = pq.read_table(tmp_path / "f.parquet").to_pylist()
    assert [row["key"] for row in table] == ["0.tar/good.jpg", "0.tar/bad.jpg", "1.tar/good.jpg"]
    assert "has -1536 bytes by its header, which cannot be" in table[1]["error"]
