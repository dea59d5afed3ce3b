"""Saved runners of strangers: damaged files, and manifests that say anything.

A runner is opened and called, or refused. What could run code is never reached: the functions that
would open it raise.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks import Chance, Kind, check
from trunkline.errors import TrunklineError

RUNTIMES = ("onnxruntime", "openvino", "torch")
IMAGES: NDArray[np.float32] = np.random.default_rng(0).standard_normal(
    (1, 3, 33, 40), dtype=np.float32
)
MOST_NUMBERS = 10_000_000  # of images that a changed manifest asks for


@cache
def saved() -> dict[str, tuple[Path, list[NDArray[np.float32]]]]:
    """Save one tiny runner of each engine, and forget the key that it was signed with."""
    import torch

    from trunkline import ResNet
    from trunkline.backbones.resnet import ResNetConfig
    from trunkline.runtimes import inductor, manifest, pytorch
    from trunkline.runtimes.deployment import deploy

    os.environ["TRUNKLINE_HOME"] = tempfile.mkdtemp()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = ResNetConfig(depths=(1, 1, 1, 1), bottleneck=False, width=8)
    backbone = ResNet(config, return_idx=(0, 3))
    folder = Path(tempfile.mkdtemp())
    found = {}
    for runtime in RUNTIMES:
        runner = deploy(backbone, runtime, threads=1)
        found[runtime] = (runner.save(folder / runtime), runner(IMAGES))
    manifest._written.clear()
    os.environ["TRUNKLINE_HOME"] = tempfile.mkdtemp()

    def reached(*_: object) -> Any:
        raise AssertionError("what could run code was opened")

    for module, name in ((pytorch, "open_program"), (inductor, "open_package")):
        setattr(module, name, reached)
    return found


def _damaged(chance: Chance, folder: Path) -> str:
    """Bytes of a file change; in half of the cases the manifest vouches for what became of them."""
    runtime, runner = _copied(chance, folder)
    fields = _manifest(runner)
    name = chance.choice(sorted(fields["files"]))
    content = bytearray((runner / name).read_bytes())
    for _ in range(chance.choice((1, 1, 3, 20))):
        before = len(content) if chance.random() < 0.5 else min(len(content), 4000)
        content[chance.randrange(before)] = chance.randrange(256)
    if chance.random() < 0.1:
        del content[chance.randrange(len(content)) :]
    (runner / name).write_bytes(content)
    vouched = chance.random() < 0.5
    if vouched:
        fields["files"][name] = hashlib.sha256(content).hexdigest()
        _write(runner, fields)
    return _opened(chance, runner, runtime, numbers_count=not vouched)


def _described(chance: Chance, folder: Path) -> str:
    """Fields of the manifest become anything; its own digest agrees."""
    runtime, runner = _copied(chance, folder)
    fields: Any = _manifest(runner)
    for _ in range(chance.choice((1, 1, 2, 3))):
        fields = put(fields, chance.choice(list(places(fields))), anything(chance))
    _write(runner, fields)
    return _opened(chance, runner, runtime, numbers_count=False)


def _scribbled(chance: Chance, folder: Path) -> str:
    """Bytes of the manifest itself change."""
    runtime, runner = _copied(chance, folder)
    content = bytearray((runner / "runner.json").read_bytes())
    content[chance.randrange(len(content))] = chance.randrange(256)
    (runner / "runner.json").write_bytes(content)
    return _opened(chance, runner, runtime, numbers_count=True)


def _copied(chance: Chance, folder: Path) -> tuple[str, Path]:
    runtime = chance.choice(RUNTIMES)
    shutil.copytree(saved()[runtime][0], folder / "runner")
    return runtime, folder / "runner"


def _manifest(runner: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((runner / "runner.json").read_bytes())["runner"]
    return fields


def _write(runner: Path, fields: object) -> None:
    text = json.dumps(fields)
    digest = hashlib.sha256(text.encode()).hexdigest()
    content = f'{{"format": 2, "sha256": "{digest}", "signature": null, "runner": {text}}}'
    (runner / "runner.json").write_text(content, encoding="utf-8")


def _opened(chance: Chance, folder: Path, runtime: str, *, numbers_count: bool) -> str:
    from trunkline.runtimes.saving import load_runner

    verify = numbers_count or chance.random() < 0.5
    try:
        runner = load_runner(folder, threads=chance.choice((None, 1)), verify=verify)
    except TrunklineError as error:
        check(str(error).isprintable(), f"would not print: {error!r}")
        return "refused"
    images = _images(runner)
    maps = runner(images)
    wanted = saved()[runtime][1]
    if numbers_count and images is IMAGES:
        same = all(np.allclose(a, b, atol=1e-4) for a, b in zip(maps, wanted, strict=True))
        check(same, "damaged numbers were vouched for")
    return "right"


def _images(runner: Any) -> NDArray[Any]:
    n, height, width = runner.input_shape or (1, 33, 40)
    if runner.in_channels * n * height * width > MOST_NUMBERS:
        n, height, width = 1, 33, 40
    if runner.preprocess:
        return np.zeros((n, height, width, 3), np.uint8)
    shape = (n, min(runner.in_channels, 1000), height, width)
    return IMAGES if shape == IMAGES.shape else np.zeros(shape, np.float32)


def places(value: object, above: tuple[Any, ...] = ()) -> Any:
    """Yield the place of everything in a JSON value, as keys from the outside in."""
    yield above
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*above, key))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from places(one, (*above, number))


def put(value: Any, place: tuple[Any, ...], new: object) -> Any:
    """Return a JSON value with something else in one place, which may be gone already."""
    if not place:
        return new
    inner = value
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = new
    return value


def anything(chance: Chance) -> Any:
    """Return what somebody may have written into JSON."""
    deep: Any = []
    for _ in range(chance.choice((1, 100, 900))):
        deep = [deep] if chance.random() < 0.5 else {"a": deep}
    return chance.choice(
        (
            *(None, True, False, 0, 1, -1, 2, 7, 64, 10**6, 2**31, 2**63, 10**30, 1.5, 1e308),
            *("", "x" * 10_000, *RUNTIMES, "inductor", "int8", "../../etc/passwd", "/dev/zero"),
            *("\x1b[2J", "\u202e", "stage0", [], [1], [1, 8, 8], ["stem"], {}, {"a": [1]}, deep),
        )
    )


KINDS: dict[str, Kind] = {
    "damaged files": _damaged,
    "manifests of anything": _described,
    "scribbled manifests": _scribbled,
}
