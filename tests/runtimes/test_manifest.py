"""runner.json as strangers write it: read, or refused with a text; nothing else."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtimes.conftest import rewrite
from tests.runtimes.json_values import QUIET, VALUES, places, put

from trunkline import Backbone, deploy, load_runner
from trunkline.errors import ConfigError, RunnerError, TrunklineError
from trunkline.runtimes.manifest import read_manifest


def write(folder: Path, manifest: str) -> None:
    digest = hashlib.sha256(manifest.encode()).hexdigest()
    (folder / "runner.json").write_text(
        f'{{"format": 2, "sha256": "{digest}", "signature": null, "runner": {manifest}}}'
    )


def refusal(call: Callable[[], object]) -> str:
    """Return the text of the error that a call raises on purpose, nothing where it raises none."""
    try:
        call()
    except TrunklineError as error:
        return str(error)
    return ""


@QUIET
@given(data=st.data())
def test_any_value_in_any_place_is_read_or_refused(saved: Path, data: st.DataObject) -> None:
    kept = (saved / "runner.json").read_text()
    fields = json.loads(kept)["runner"]
    place = data.draw(st.sampled_from(list(places(fields))))
    value = data.draw(VALUES)
    write(saved, json.dumps(put(fields, place, value)))

    def read() -> None:
        spec = read_manifest(saved).manifest.spec
        assert json.loads(json.dumps(spec.to_dict()))
        assert {*spec.returned_levels} <= {*spec.levels}

    try:
        assert len(refusal(read)) < 6100
    finally:
        (saved / "runner.json").write_text(kept)


LIES: list[tuple[Any, ...]] = [
    ("spec", "in_channels"),
    ("spec", "input_shape"),
    ("spec", "levels", 2, "channels"),
    ("spec", "levels", 2, "stride"),
    ("spec", "returned_levels"),
    ("spec", "preprocess"),
    ("spec", "precision"),
    ("spec", "runtime"),
    ("versions", "onnxruntime"),
    ("processor",),
    ("files",),
]
PLAUSIBLE = st.sampled_from(["torch", "openvino", "int8", ["stage1"], ["stem"], [1, 8, 8], 3, 4])


@settings(QUIET, max_examples=25)
@given(place=st.sampled_from(LIES), value=VALUES | PLAUSIBLE)
def test_a_runner_whose_manifest_lies_fails_with_a_text(
    saved: Path, place: tuple[Any, ...], value: Any
) -> None:
    kept = (saved / "runner.json").read_text()
    rewrite(saved, lambda fields: put(fields, place, value))

    def use() -> None:
        runner = load_runner(saved, threads=1)
        shape = (1, 8, 8, 3) if runner.preprocess else (1, runner.in_channels, 8, 8)
        maps = runner(np.zeros(shape, np.uint8 if runner.preprocess else np.float32))
        assert [one.shape[1] for one in maps] == [*runner.channels]

    try:
        assert len(refusal(use)) < 6100
    finally:
        (saved / "runner.json").write_text(kept)


@QUIET
@given(data=st.data())
def test_any_bytes_are_read_or_refused(saved: Path, data: st.DataObject) -> None:
    kept = (saved / "runner.json").read_bytes()
    changed = bytearray(kept)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(kept) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(kept), len(kept) // 2, 10, 0]))
    (saved / "runner.json").write_bytes(changed[:cut])
    try:
        found = read_manifest(saved)
    except RunnerError:
        pass  # what most of them are; the others have changed nothing that is signed
    else:
        wanted = json.loads(kept)
        assert found.digest == wanted["sha256"]
        assert found.manifest.files == wanted["runner"]["files"]
    finally:
        (saved / "runner.json").write_bytes(kept)


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (DEEP, r"nested too deeply"),
        (f'{{"format": 2, "runner": {DEEP}}}', r"nested too deeply"),
        ('{"format": 1, "spec": {}, "sha256": ""}', r"has format 1 and .* reads 2; save the"),
        ('{"format": true}', r"Expected `int`, got `bool`"),
        ("null", r"Expected `object`, got `null`"),
        ("{}", r"missing required field `format`"),
        ("\ufeff{}", r"is no manifest"),
        (b"\xff\xfe", r"is no manifest"),
        ("x" * (2 << 20), r"it has 2097152 bytes, and 1048576 is the most"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_text_that_is_no_manifest(tmp_path: Path, content: str | bytes, message: str) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "runner.json").write_bytes(data)
    with pytest.raises(RunnerError, match=message):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threads": 0}, r">= 1 - at `\$\.spec\.threads`"),
        ({"input_shape": [2**20, 2**20, 1]}, r"input_shape of 1048576x1048576x1 is too large"),
        ({"input_shape": [1, 2]}, r"at `\$\.spec\.input_shape`"),
        ({"returned_levels": ["stage9"]}, r"returned_levels are not among the levels"),
        ({"precision": "fp16"}, r"Invalid enum value 'fp16'"),
        ({"preprocess": 1}, r"Expected `bool`, got `int`"),
    ],
)
def test_fields_that_no_runner_has(saved: Path, change: dict[str, Any], message: str) -> None:
    rewrite(saved, lambda fields: fields["spec"].update(change))
    with pytest.raises(RunnerError, match=message):
        load_runner(saved)


def test_a_million_threads_are_not_started(saved: Path, tiny: Backbone) -> None:
    rewrite(saved, lambda fields: fields["spec"].update(threads=10**6))
    with pytest.raises(RunnerError, match=r"saved for 1000000 threads.*load_runner\(folder, thr"):
        load_runner(saved)
    assert load_runner(saved, threads=1).threads == 1
    calls: list[Callable[[], object]] = [
        lambda: load_runner(saved, threads=10**6),
        lambda: deploy(tiny, "openvino", threads=10**6),
        lambda: deploy(tiny, "torch", threads=10**6),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match=r"threads=1000000 is more than \d+, the most"):
            call()


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.mkdir()


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("make", [make_fifo, make_folder, link_to_itself])
def test_a_manifest_that_is_no_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "runner.json")
    with pytest.raises(RunnerError, match=r"no manifest|holds no runner"):
        load_runner(tmp_path)


def test_a_name_that_no_folder_has() -> None:
    with pytest.raises(RunnerError, match=r"is no manifest of a runner .*null"):
        load_runner("a\0b")
