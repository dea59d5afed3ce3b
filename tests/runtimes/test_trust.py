"""Who may open which runner: what this machine wrote, what it did not, and what runs code."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.runtimes.conftest import exchange, furthest, own_maps, pretend, rewrite
from torch import nn

from trunkline import Backbone, deploy, load_runner
from trunkline.errors import RunnerError, UntrustedError
from trunkline.files import sign
from trunkline.runtimes import inductor, manifest, pytorch
from trunkline.runtimes.saving import is_trusted

if TYPE_CHECKING:
    from tests.conftest import Family

Move = Callable[[], None]
Images = np.ndarray[Any, Any]

COMPILED = {"onnxruntime": "optimized.onnx", "openvino": "compiled.blob"}
RISKY = {"inductor": "compiled.pt2", "torch": "program.pt2"}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What came to the two functions that open what can run code; they open nothing here."""
    found: list[bytes] = []

    def open_nothing(path: Path) -> nn.Module:
        found.append(path.read_bytes())
        return nn.Identity()

    monkeypatch.setattr(pytorch, "open_program", open_nothing)
    monkeypatch.setattr(inductor, "open_package", open_nothing)
    return found


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
def test_a_runner_of_elsewhere_that_is_data_computes_the_same(
    tiny: Backbone, images: Images, tmp_path: Path, elsewhere: Move, runtime: str
) -> None:
    folder = deploy(tiny, runtime).save(tmp_path / "runner")
    assert is_trusted(folder, trust=False)
    elsewhere()
    assert not is_trusted(folder, trust=False)
    assert is_trusted(folder, trust=True)
    if runtime in COMPILED:  # whoever wrote it can write anything there, with the right hash
        exchange(folder, COMPILED[runtime], b"for a hole in the engine's reader")
    assert furthest(own_maps(tiny, images), load_runner(folder)(images)) < 1e-5


@pytest.mark.parametrize("runtime", COMPILED)
def test_what_was_compiled_elsewhere_is_opened_if_it_is_trusted(
    tiny: Backbone, tmp_path: Path, elsewhere: Move, runtime: str
) -> None:
    folder = deploy(tiny, runtime).save(tmp_path / "runner")
    elsewhere()
    exchange(folder, COMPILED[runtime], b"no graph")
    with pytest.raises(RunnerError, match=r"cannot open .*deploy the backbone again"):
        load_runner(folder, trust=True)


@pytest.mark.parametrize("runtime", RISKY)
def test_what_could_run_code_is_not_opened(
    saved: Path, elsewhere: Move, opened: list[bytes], runtime: str
) -> None:
    pretend(saved, runtime, RISKY[runtime])
    sign("runner", "another one")  # so that this machine has a key
    for verify in (True, False):
        with pytest.raises(
            UntrustedError,
            match=rf"runner is not opened: it was written on another machine, .* {RISKY[runtime]} "
            r".*trust=True \(--trust\); else ask for a runner of onnxruntime or openvino",
        ):
            load_runner(saved, verify=verify)
    elsewhere()
    with pytest.raises(UntrustedError, match=r"this machine has no key yet"):
        load_runner(saved)
    assert opened == []
    load_runner(saved, trust=True)
    assert opened == [b"a file of a stranger"]


@pytest.mark.parametrize("runtime", RISKY)
def test_what_could_run_code_is_always_hashed(
    saved: Path, opened: list[bytes], runtime: str
) -> None:
    pretend(saved, runtime, RISKY[runtime])
    (saved / RISKY[runtime]).write_bytes(b"another file")
    with pytest.raises(RunnerError, match=r"is not the file that was saved: its sha256 differs"):
        load_runner(saved, verify=False, trust=True)
    assert opened == []


def test_files_that_are_not_in_the_manifest_are_not_opened(
    saved: Path, opened: list[bytes]
) -> None:
    pretend(saved, "torch", "network.safetensors")
    shutil.copyfile(saved / "model.onnx", saved / "program.pt2")
    with pytest.raises(RunnerError, match=r"cannot open the network"):
        load_runner(saved, trust=True)
    assert opened == []


def test_a_network_of_layers_of_ones_own_is_a_program_and_opened_here_only(
    families: dict[str, Family], tmp_path: Path, elsewhere: Move
) -> None:
    backbone = families["resnet-basic"].build(return_idx=(0,), act=nn.PReLU).eval()
    runner = deploy(backbone, "torch", preprocess=True)
    folder = runner.save(tmp_path / "runner")
    assert {one.name for one in folder.iterdir()} == {"runner.json", "program.pt2"}
    loaded = load_runner(folder)
    for shape in ((1, 1, 1, 3), (2, 20, 33, 3), (3, 65, 97, 3)):  # the exporter's favourites
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        assert furthest(runner(pixels), loaded(pixels)) < 1e-5
    elsewhere()
    with pytest.raises(UntrustedError, match=r"expressions in program\.pt2 run as Python"):
        load_runner(folder)
    assert furthest(runner(pixels), load_runner(folder, trust=True)(pixels)) < 1e-5


@pytest.mark.parametrize("part", ["files", "processor", "versions"])
def test_a_signature_does_not_fit_another_manifest(saved: Path, part: str) -> None:
    before = (saved / "runner.json").read_text()
    empty = "" if part == "processor" else {}
    rewrite(saved, lambda fields: fields.update({part: empty}))
    after = (saved / "runner.json").read_text()
    assert json.loads(before)["signature"] == json.loads(after)["signature"] is not None
    assert not is_trusted(saved, trust=False)


def test_where_no_key_can_be_kept_this_process_still_knows_its_runners(
    tiny: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("TRUNKLINE_HOME", str(tmp_path / "file"))
    runner = deploy(tiny, "torch")
    with caplog.at_level(logging.WARNING, logger="trunkline"):
        folder = runner.save(tmp_path / "runner")
    assert "cannot be signed, as no key can be kept (set TRUNKLINE_HOME" in caplog.text
    assert is_trusted(folder, trust=False)
    monkeypatch.setattr(manifest, "_written", set())  # a later process
    pretend(folder, "torch", "program.pt2")
    with pytest.raises(UntrustedError, match=r"it carries no signature of the machine"):
        load_runner(folder)


def test_a_copy_of_a_strangers_runner_is_a_strangers(
    saved: Path, tmp_path: Path, elsewhere: Move
) -> None:
    elsewhere()
    (saved / "more.so").write_bytes(b"that the manifest does not name")
    loaded = load_runner(saved, trust=True)
    copied = loaded.save(tmp_path / "copied")
    assert not is_trusted(copied, trust=False)
    assert (copied / "runner.json").read_bytes() == (saved / "runner.json").read_bytes()
    assert not (copied / "more.so").exists()


def test_a_copy_of_another_runner_than_was_loaded_is_refused(
    saved: Path, tmp_path: Path, tiny: Backbone
) -> None:
    loaded = load_runner(saved)
    shutil.rmtree(saved)
    deploy(tiny, "torch").save(saved)
    with pytest.raises(RunnerError, match=r"holds another runner than when this one was loaded"):
        loaded.save(tmp_path / "copied")
    assert not (tmp_path / "copied").exists()


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "a/b.onnx", "..", ".", "", "a\\b", "C:x", "-x", "n\n"]
)
def test_names_of_files_lead_nowhere(saved: Path, name: str) -> None:
    rewrite(saved, lambda fields: fields["files"].update({name: "0" * 64}))
    with pytest.raises(RunnerError, match=r"is no manifest .* at `key` in `\$\.files`"):
        load_runner(saved)


def test_a_link_is_read_only_as_the_file_that_it_must_be(
    saved: Path, tmp_path: Path, images: Images
) -> None:
    (saved / "model.onnx").rename(tmp_path / "blob")  # as caches of hubs keep their files
    (saved / "model.onnx").symlink_to(tmp_path / "blob")
    wanted = load_runner(saved)(images)
    (tmp_path / "blob").write_bytes(b"something secret")
    with pytest.raises(RunnerError, match=r"is not the file that was saved"):
        load_runner(saved).save(tmp_path / "copied")
    (saved / "model.onnx").unlink()
    os.mkfifo(saved / "model.onnx")
    with pytest.raises(RunnerError, match=r"lacks model\.onnx"):
        load_runner(saved)
    assert len(wanted) == 4
