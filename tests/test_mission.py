"""The mission's three snippets, word for word, run as it says: `python testing.py` in the folder.

The folder is mirrored by symbolic links, so that no test writes into the sources. `pretrained` is
served from a local store of seeded random weights.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import trunkline

SNIPPETS = Path(__file__).parent / "mission"
BACKBONES = Path(trunkline.__file__).parent / "backbones"
FILES = sorted(path for path in BACKBONES.glob("*.py") if path.stem != "__init__")
DEPENDENCIES = {
    "torch",
    "numpy",
    "PIL",
    "safetensors",
    "huggingface_hub",
    "typer",
    "rich",
    "typing_extensions",
    "timm",
    "torchvision",
    "transformers",
    "onnx",
    "openvino",
    "ray",
}

# The bytes of the mission's code blocks, trailing blank included: an editor must not tidy them.
SHA256 = {
    "resnet": "0b62b4052f71358846fbfdfba04097bbd81509173dc87e18e78a81ffd1597696",
    "dla": "0cf3ab27190348ffa1b3140e34433411315089d24a242d803a3ab1d78a430b84",
    "regnet": "a4ae680423561e5201cf10143a81c207416b01ee7f26dfbdfb958d2198167e3f",
}


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Start Python in a folder, without traces there and without a store of the caller's."""
    inherited = {k: v for k, v in os.environ.items() if k != "TRUNKLINE_WEIGHTS"}
    return subprocess.run(
        [sys.executable, "-B", *arguments],
        cwd=folder,
        env={**inherited, "TRUNKLINE_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    mirror = tmp_path / "backbones"
    mirror.mkdir()
    for path in FILES:
        (mirror / path.name).symlink_to(path)
    return mirror


def store_for(folder: Path, variant: str) -> str:
    store = folder.parent / "store"
    store.mkdir()
    torch.manual_seed(0)
    backbone = trunkline.create_backbone(variant)
    save_file(backbone.state_dict(), store / f"{variant}.safetensors")
    return str(store)


def snippet(name: str, folder: Path) -> str:
    text = (SNIPPETS / f"{name}.txt").read_bytes()
    (folder / "testing.py").write_bytes(text)
    return "testing.py"


@pytest.mark.parametrize("name", ["resnet", "dla", "regnet"])
def test_snippets_are_the_mission_s_to_the_byte(name: str) -> None:
    text = (SNIPPETS / f"{name}.txt").read_bytes()
    assert hashlib.sha256(text).hexdigest() == SHA256[name]


def test_resnet_snippet(folder: Path) -> None:
    store = store_for(folder, "resnet50")
    done = run(folder, snippet("resnet", folder), TRUNKLINE_WEIGHTS=store)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "Feature Map 0: torch.Size([8, 256, 56, 56])",
        "Feature Map 1: torch.Size([8, 512, 28, 28])",
        "Feature Map 2: torch.Size([8, 1024, 14, 14])",
    ]
    assert done.stderr == ""


def test_dla_snippet(folder: Path) -> None:
    store = store_for(folder, "dla34")
    done = run(folder, snippet("dla", folder), TRUNKLINE_WEIGHTS=store)
    assert done.returncode == 0, done.stderr
    # The mission prints the first of strides 8, 16, 32; the 128 channels are the ones it names.
    assert done.stdout == "Output shape: torch.Size([8, 128, 28, 28])\n"
    assert done.stderr == ""


def test_regnet_snippet(folder: Path) -> None:
    done = run(folder, snippet("regnet", folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "Output shapes: [torch.Size([8, 168, 56, 56]), torch.Size([8, 448, 28, 28]), "
        "torch.Size([8, 896, 14, 14])]\n"
    )
    assert done.stderr == ""


def test_pretrained_without_a_store_is_an_error_not_a_random_network(folder: Path) -> None:
    home = str(folder.parent / "home")  # no cache either
    done = run(folder, snippet("dla", folder), TRUNKLINE_HOME=home)
    assert done.returncode == 1
    assert done.stdout == ""
    last = done.stderr.strip()
    assert "trunkline.errors." in last
    assert "dla34" in last


def test_pretrained_loads_what_the_store_holds(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUNKLINE_WEIGHTS", store_for(folder, "dla46-c"))
    torch.manual_seed(0)
    want = trunkline.create_backbone("dla46-c").eval()
    torch.manual_seed(1)
    got = trunkline.DLANet(dla="dla46", pretrained=True, return_index=(0, 1, 2, 3)).eval()
    with torch.no_grad():
        images = torch.randn(1, 3, 64, 64)
        for one, other in zip(got(images), want(images), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_file_names_shadow_no_other_module(path: Path) -> None:
    assert path.stem not in sys.stdlib_module_names | DEPENDENCIES | {"trunkline", "testing"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_file_works_from_its_own_folder(path: Path) -> None:
    code = f"import {path.stem}; print({path.stem}.__file__)"
    done = run(path.parent, "-c", code)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).samefile(path)


def test_a_family_that_exists_twice_still_follows_the_contract() -> None:
    code = """
from resnet import ResNet, ResNetConfig
import trunkline
own = ResNet(ResNetConfig(depths=(1, 1, 1, 1), bottleneck=False, width=8))
assert ResNet is not trunkline.ResNet
assert isinstance(own, trunkline.Backbone)
mixed = trunkline.ResNet(own.architecture)
assert mixed.channels == own.channels == (8, 16, 32, 64)
assert ResNet(depth=18).variant == "resnet18"
"""
    done = run(BACKBONES, "-c", code)
    assert done.returncode == 0, done.stderr
