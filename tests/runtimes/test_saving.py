"""Saved runners: the same maps without PyTorch, and every way in which a folder can be wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tests.runtimes.conftest import furthest, own_maps, pretend, rewrite

import trunkline
from trunkline import Backbone, Runner, deploy, load_runner
from trunkline.errors import ConfigError, NotInstalledError, OutputError, RunnerError
from trunkline.runtimes import engine, onnx_runtime, saving
from trunkline.runtimes.manifest import read_manifest
from trunkline.runtimes.processor import Processor

if TYPE_CHECKING:
    from tests.conftest import Family

QUICK = ("torch", "onnxruntime", "openvino")
OTHER = Processor("another processor", 4, ("avx2",))

WITHOUT_TORCH = """
import sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("torch is forbidden here")

sys.meta_path.insert(0, Forbidden())
import numpy as np
import trunkline
runner = trunkline.load_runner(sys.argv[1])
maps = runner(np.load(sys.argv[2]))
np.savez(sys.argv[3], *maps)
assert "torch" not in sys.modules
print(runner.strides, runner.channels, runner.preprocessing is not None, runner.levels[0].name)
"""


def same(one: list[Any], other: list[Any]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("runtime", QUICK)
@pytest.mark.parametrize("input_shape", [None, (2, 65, 97)])
def test_a_loaded_runner_computes_the_same(
    tiny: Backbone,
    images: np.ndarray[Any, Any],
    tmp_path: Path,
    runtime: str,
    input_shape: tuple[int, int, int] | None,
) -> None:
    runner = deploy(tiny, runtime, input_shape=input_shape)
    loaded = load_runner(runner.save(tmp_path / "deep" / "runner"))
    assert same(runner(images), loaded(images))
    assert loaded.spec == runner.spec
    assert loaded.fidelity == runner.fidelity
    assert loaded.provenance == runner.provenance


@pytest.mark.parametrize("runtime", QUICK)
def test_a_loaded_runner_takes_any_size(tiny: Backbone, tmp_path: Path, runtime: str) -> None:
    loaded = load_runner(deploy(tiny, runtime).save(tmp_path / "runner"))
    for size in ((1, 1), (1, 300), (20, 20), (32, 64), (33, 33), (65, 97)):
        images = np.random.default_rng(0).standard_normal((2, 3, *size), np.float32)
        assert furthest(own_maps(tiny, images), loaded(images)) < 1e-5


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("preprocess", [False, True])
def test_a_process_without_pytorch(
    tiny: Backbone,
    images: np.ndarray[Any, Any],
    tmp_path: Path,
    runtime: str,
    preprocess: bool,
) -> None:
    if preprocess:
        images = np.random.default_rng(0).integers(0, 256, (2, 65, 97, 3), np.uint8)
    runner = deploy(tiny, runtime, preprocess=preprocess)
    runner.save(tmp_path / "runner")
    np.save(tmp_path / "images.npy", images)
    files = [str(tmp_path / name) for name in ("runner", "images.npy", "maps.npz")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *files],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{runner.strides} {runner.channels} True stem\n"
    with np.load(tmp_path / "maps.npz") as maps:
        assert same(runner(images), list(maps.values()))


def test_the_manifest_says_what_it_is(families: dict[str, Family], tmp_path: Path) -> None:
    backbone = families["regnet-y"].build(return_idx=(2, 0))
    manifest = json.loads(
        (deploy(backbone, "openvino").save(tmp_path / "r") / "runner.json").read_text()
    )["runner"]
    assert manifest["spec"]["runtime"] == "openvino"
    assert manifest["spec"]["returned_levels"] == ["stage2", "stage0"]
    assert [one["level"] for one in manifest["fidelity"]] == ["stage2", "stage0"]
    assert manifest["versions"]["trunkline"] == trunkline.__version__
    assert set(manifest["files"]) == {"model.xml", "model.bin", "compiled.blob"}
    assert len(manifest["provenance"]["state_sha256"]) == 64
    assert manifest["provenance"]["weights"] is None
    assert str(tmp_path) not in json.dumps(manifest)


def test_weights_and_licence_travel_along(tmp_path: Path) -> None:
    trunkline.save_pretrained(trunkline.create_backbone("resnet18"), tmp_path / "weights")
    backbone = trunkline.from_pretrained(tmp_path / "weights")
    manifest = read_manifest(deploy(backbone, "torch").save(tmp_path / "r")).manifest
    report = backbone.load_report
    assert report is not None
    assert manifest.provenance["weights"] == {
        "tag": report.tag,
        "sha256": report.sha256,
        "license": report.license,
        "layout": report.layout,
    }


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_elsewhere_it_is_compiled_anew(
    tiny: Backbone,
    images: np.ndarray[Any, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runtime: str,
) -> None:
    folder = deploy(tiny, runtime).save(tmp_path / "runner")
    monkeypatch.setattr(saving, "processor", lambda: OTHER)
    for compiled in ("optimized.onnx", "compiled.blob"):  # must not even be opened
        if (folder / compiled).exists():
            (folder / compiled).write_bytes(b"of another processor")
    assert furthest(own_maps(tiny, images), load_runner(folder)(images)) < 1e-5


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_another_number_of_threads(
    tiny: Backbone, images: np.ndarray[Any, Any], tmp_path: Path, runtime: str
) -> None:
    folder = deploy(tiny, runtime, threads=2).save(tmp_path / "runner")
    loaded = load_runner(folder, threads=1)
    assert loaded.threads == 1
    assert furthest(own_maps(tiny, images), loaded(images)) < 1e-5
    with pytest.raises(ConfigError, match=r"threads=0 must be a positive integer"):
        load_runner(folder, threads=0)


def test_what_the_compiler_made_for_another_processor_is_refused(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(saved, "inductor", "compiled.pt2")
    monkeypatch.setattr(saving, "processor", lambda: OTHER)
    with pytest.raises(RunnerError, match=r"compiled for another processor .* deploy .* again"):
        load_runner(saved, verify=False, trust=True)


def test_a_loaded_runner_can_be_saved_again(
    saved: Path, tmp_path: Path, images: np.ndarray[Any, Any]
) -> None:
    loaded = load_runner(saved)
    again = load_runner(loaded.save(tmp_path / "again"))
    assert same(loaded(images), again(images))
    assert (tmp_path / "again" / "runner.json").read_bytes() == (saved / "runner.json").read_bytes()


def test_a_folder_that_exists_is_not_touched(tiny: Backbone, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("dear")
    with pytest.raises(OutputError, match=r"mine exists already; give a new folder"):
        deploy(tiny, "torch").save(tmp_path / "mine")
    assert [one.name for one in (tmp_path / "mine").iterdir()] == ["file"]


def test_a_full_disk_leaves_nothing(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = deploy(tiny, "onnxruntime")

    def full(path: Path, _data: bytes) -> int:
        path.touch()
        raise OSError(28, "No space left on device")

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"runner cannot be written: No space left on device"):
        runner.save(tmp_path / "out" / "runner")
    assert list((tmp_path / "out").iterdir()) == []


def edit(text: str, other: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "runner.json"
        assert text in path.read_text()
        path.write_text(path.read_text().replace(text, other))

    return apply


def forge(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda fields: fields.update(changes))


BROKEN: list[tuple[str, Callable[[Path], object], str]] = [
    ("empty", lambda f: (f / "runner.json").write_text(""), r"is no manifest of a runner"),
    ("list", lambda f: (f / "runner.json").write_text("[1]"), r"is no manifest"),
    ("gone", lambda f: (f / "runner.json").unlink(), r"holds no runner: .* Runner\.save wrote"),
    ("edited", edit('"precision": "fp32"', '"precision": "int8"'), r"was changed after it was wr"),
    ("threads", edit('"threads": ', '"threads": 1'), r"changed.*load_runner\(folder, threads="),
    (
        "future",
        edit('"format": 2', '"format": 3'),
        r"has format 3 and this version of trunkline reads 2",
    ),
    ("spec", forge(spec={"variant": None}), r"no manifest .*required field"),
    ("no graph", lambda f: (f / "model.onnx").unlink(), r"lacks model\.onnx; copy the whole"),
    (
        "graph edited",
        lambda f: (f / "optimized.onnx").write_bytes(b"\0" * 100),
        r"optimized\.onnx is not the file that was saved: its sha256 differs",
    ),
]


@pytest.mark.parametrize(
    ("damage", "message"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN]
)
def test_a_damaged_folder(saved: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(saved)
    with pytest.raises(RunnerError, match=message):
        load_runner(saved)


def test_an_engine_of_a_later_version(saved: Path) -> None:
    rewrite(saved, lambda fields: fields["spec"].update(runtime="warpdrive"))
    with pytest.raises(RunnerError, match=r"runner of 'warpdrive', .* it knows onnxruntime, open"):
        load_runner(saved)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_files_that_the_engine_cannot_open(tiny: Backbone, tmp_path: Path, runtime: str) -> None:
    folder = deploy(tiny, runtime).save(tmp_path / "runner")
    kind: Any = engine.engine_class(runtime)
    for name in kind.files(read_manifest(folder).manifest.files, compiled=True):
        (folder / name).write_bytes(b"\0" * 100)
    with pytest.raises(RunnerError, match=r"cannot open .*deploy the backbone again"):
        load_runner(folder, verify=False)


def test_an_engine_that_is_not_installed(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, purpose: str) -> Any:
        raise NotInstalledError(f"{purpose} needs {name}")

    monkeypatch.setattr(onnx_runtime, "require", missing)
    with pytest.raises(NotInstalledError, match="runtime 'onnxruntime' needs onnxruntime"):
        load_runner(saved)


def test_a_runner_copied_elsewhere_works(
    saved: Path, tmp_path: Path, images: np.ndarray[Any, Any]
) -> None:
    wanted = load_runner(saved)(images)
    moved = shutil.copytree(saved, tmp_path / "moved")
    shutil.rmtree(saved)
    assert same(wanted, load_runner(moved)(images))


def test_repr_tells_runners_apart(saved: Path) -> None:
    assert repr(load_runner(saved)) == (
        "Runner(backbone, runtime='onnxruntime', precision='fp32', input_shape=any, "
        "strides=(4, 8, 16, 32))"
    )
    assert isinstance(load_runner(saved), Runner)
    assert torch.is_tensor(load_runner(saved)(torch.zeros(1, 3, 8, 8))[0])
