"""What the tests of the runtimes share."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import trunkline
from trunkline import Backbone
from trunkline.runtimes import manifest
from trunkline.runtimes.engine import versions_of

if TYPE_CHECKING:
    from tests.conftest import Family


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep decisions of one test from another, and from the user's own."""
    monkeypatch.setenv("TRUNKLINE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def _kept(families: dict[str, Family], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUNKLINE_HOME", str(folder / "home"))
        backbone = families["resnet-bottleneck"].build().eval()
        return trunkline.deploy(backbone, "onnxruntime").save(folder / "runner")


@pytest.fixture
def saved(_kept: Path, tmp_path: Path) -> Path:
    """A folder of its own with a runner of ONNX Runtime for ``tiny``."""
    return shutil.copytree(_kept, tmp_path / "runner")


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """Move to another machine: another key, and a process that has written nothing yet."""

    def move() -> None:
        monkeypatch.setenv("TRUNKLINE_HOME", str(tmp_path / "home of another machine"))
        monkeypatch.setattr(manifest, "_written", set())

    return move


@pytest.fixture
def tiny(families: dict[str, Family]) -> Backbone:
    """A bottleneck ResNet that runs in a millisecond."""
    return families["resnet-bottleneck"].build().eval()


@pytest.fixture
def images() -> np.ndarray[Any, Any]:
    """Two images of an odd size, (2, 3, 65, 97) float32."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn((2, 3, 65, 97), generator=generator).numpy()


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit a manifest as somebody would who also knows how its digest is made, but has no key."""
    path = folder / "runner.json"
    fields = json.loads(path.read_text())
    change(fields["runner"])
    text = json.dumps(fields["runner"])
    fields["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    about = json.dumps({name: fields[name] for name in ("format", "sha256", "signature")})
    path.write_text(f'{about[:-1]}, "runner": {text}}}')


def exchange(folder: Path, name: str, content: bytes) -> None:
    """Put another file into a runner, with the hash that fits."""
    (folder / name).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    rewrite(folder, lambda fields: fields["files"].update({name: digest}))


def pretend(folder: Path, runtime: str, name: str) -> None:
    """Make it look like a runner of another engine, with a file that must not be opened."""
    exchange(folder, name, b"a file of a stranger")
    kept = json.loads((folder / "runner.json").read_text())["runner"]["files"][name]
    rewrite(
        folder,
        lambda fields: fields.update(
            spec={**fields["spec"], "runtime": runtime},
            files={name: kept},
            versions={"trunkline": trunkline.__version__, **versions_of(runtime)},
        ),
    )


def own_maps(backbone: Backbone, images: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """Return what the backbone itself makes of images."""
    with torch.inference_mode():
        return [one.numpy() for one in backbone.eval()(torch.from_numpy(images))]


def furthest(wanted: Sequence[np.ndarray[Any, Any]], got: Sequence[np.ndarray[Any, Any]]) -> float:
    """Return the largest difference, relative to the largest value of its map."""
    assert [one.shape for one in got] == [one.shape for one in wanted]
    pairs = zip(wanted, got, strict=True)
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)
