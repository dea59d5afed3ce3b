"""The mission's three snippets, word for word, run as it says: `python testing.py` in the folder.

The folder is mirrored by symbolic links, so that no test writes into the sources. `pretrained`
downloads through the real code, from hosts on loopback that serve seeded random weights in the
upstream's own names.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loopback import FileHost, LoopbackHub
from safetensors.torch import save

import trunkline
from trunkline.weights.layouts import LAYOUTS
from trunkline.weights.translation import to_upstream

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
    """Start Python in a folder, without traces there and without the caller's settings."""
    own = ("TRUNKLINE_", "HF_", "PYTHONPATH", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(own)}
    return subprocess.run(
        [sys.executable, "-B", *arguments],
        cwd=folder,
        env={**inherited, **environment},
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


def upstream_file(variant: str, layout: str) -> bytes:
    """Return a safetensors file of seeded random weights, classifier included."""
    torch.manual_seed(0)
    backbone = trunkline.create_backbone(variant)
    head = {
        "classifier.weight": torch.randn(1000, backbone.channels[-1]),
        "classifier.bias": torch.randn(1000),
    }
    state = {**backbone.state_dict(), **head}
    return save(to_upstream(LAYOUTS[layout], backbone.architecture, state), {"format": "pt"})


def snippet(name: str, folder: Path) -> str:
    text = (SNIPPETS / f"{name}.txt").read_bytes()
    (folder / "testing.py").write_bytes(text)
    return "testing.py"


@pytest.mark.parametrize("name", ["resnet", "dla", "regnet"])
def test_snippets_are_the_mission_s_to_the_byte(name: str) -> None:
    text = (SNIPPETS / f"{name}.txt").read_bytes()
    assert hashlib.sha256(text).hexdigest() == SHA256[name]


# torchvision's host cannot be named by an environment variable, and its file names carry the hash
# of the real weights. So the start-up hook of the snippet's process gives the row another place;
# all that follows is the real code.
HOOK = """
import dataclasses, os
from trunkline.weights import sources

find = sources.find


def found(variant, tag):
    entry = find(variant, tag)
    place = dataclasses.replace(
        entry.places[0], url=os.environ["PLACE"], file_name="", sha256_prefix=None
    )
    return dataclasses.replace(entry, places=(place,))


sources.find = found
"""


def test_resnet_snippet(folder: Path, tmp_path: Path) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(HOOK)
    host = FileHost()
    try:
        done = run(
            folder,
            snippet("resnet", folder),
            PYTHONPATH=str(hooks),
            PLACE=host.add("/resnet50.pth", upstream_file("resnet50", "torchvision-resnet")),
            TRUNKLINE_HOME=str(tmp_path / "home"),
        )
    finally:
        host.close()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "Feature Map 0: torch.Size([8, 256, 56, 56])",
        "Feature Map 1: torch.Size([8, 512, 28, 28])",
        "Feature Map 2: torch.Size([8, 1024, 14, 14])",
    ]
    assert done.stderr == ""
    assert [method for method, *_ in host.requests] == ["GET"]


def test_dla_snippet(folder: Path, tmp_path: Path) -> None:
    hub = LoopbackHub()
    hub.add_file("timm/dla34.in1k", "model.safetensors", upstream_file("dla34", "timm-dla"))
    try:
        done = run(
            folder,
            snippet("dla", folder),
            HF_ENDPOINT=hub.origin,
            TRUNKLINE_HOME=str(tmp_path / "home"),
            HF_HUB_CACHE=str(tmp_path / "hub"),
        )
    finally:
        hub.close()
    assert done.returncode == 0, done.stderr
    # The mission prints the first of strides 8, 16, 32; the 128 channels are the ones it names.
    assert done.stdout == "Output shape: torch.Size([8, 128, 28, 28])\n"
    assert done.stderr == ""
    assert any(method == "GET" for method, *_ in hub.requests)


def test_regnet_snippet(folder: Path) -> None:
    done = run(folder, snippet("regnet", folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "Output shapes: [torch.Size([8, 168, 56, 56]), torch.Size([8, 448, 28, 28]), "
        "torch.Size([8, 896, 14, 14])]\n"
    )
    assert done.stderr == ""


def test_pretrained_without_weights_is_an_error_not_a_random_network(
    folder: Path, tmp_path: Path
) -> None:
    done = run(
        folder,
        snippet("dla", folder),
        TRUNKLINE_OFFLINE="1",
        TRUNKLINE_HOME=str(tmp_path / "home"),
        HF_HUB_CACHE=str(tmp_path / "hub"),
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "trunkline.errors.OfflineError: the weights dla34.timm-in1k" in done.stderr


def test_regnet_s_default_weights_are_those_of_its_hugging_face_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = LoopbackHub()
    content = upstream_file("regnet-y-004", "transformers-regnet")
    hub.add_file("facebook/regnet-y-004", "model.safetensors", content)
    hub.add_file("facebook/regnet-y-004", "pytorch_model.bin", content)
    for name in ("TRUNKLINE_WEIGHTS", "TRUNKLINE_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", hub.origin)
    monkeypatch.setenv("TRUNKLINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    try:
        got = trunkline.RegNet(variant="regnet-y-004", pretrained=True).eval()
    finally:
        hub.close()
    torch.manual_seed(0)
    want = trunkline.create_backbone("regnet-y-004").eval()
    assert got.load_report is not None
    assert (got.load_report.tag, got.load_report.layout) == ("facebook", "transformers-regnet")
    assert got.preprocessing is not None
    with torch.no_grad():
        images = torch.randn(1, 3, 64, 64)
        for one, other in zip(got(images), want(images), strict=True):
            assert torch.equal(one, other)


def test_a_file_of_one_s_own_in_the_weights_folder_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    want = trunkline.create_backbone("dla46-c").eval()
    (tmp_path / "dla46-c.safetensors").write_bytes(save(want.state_dict()))
    monkeypatch.setenv("TRUNKLINE_WEIGHTS", str(tmp_path))
    got = trunkline.DLANet(dla="dla46", pretrained=True, return_index=(0, 1, 2, 3)).eval()
    with torch.no_grad():
        images = torch.randn(1, 3, 64, 64)
        for one, other in zip(got(images), want(images), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_file_names_shadow_no_other_module(path: Path) -> None:
    assert path.stem not in sys.stdlib_module_names | DEPENDENCIES | {"trunkline", "testing"}


# Only torch is imported before; each file is then the first one of its own process.
IMPORTS = """
import importlib, json, os, sys, traceback
import torch
told = {}
for stem in sys.argv[1:]:
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            answer = [importlib.import_module(stem).__file__, ""]
        except BaseException:
            answer = ["", traceback.format_exc()]
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told[stem] = pipe.read()
    os.wait()
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, str]:
    """What became of importing each file in its own folder, by the file's stem."""
    done = run(BACKBONES, "-c", IMPORTS, *(path.stem for path in FILES))
    assert done.returncode == 0, done.stderr
    told: dict[str, str] = json.loads(done.stdout)
    return told


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked after importing torch")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_file_works_from_its_own_folder(path: Path, imported: dict[str, str]) -> None:
    assert imported[path.stem], "the process died"
    file, error = json.loads(imported[path.stem])
    assert error == ""
    assert Path(file).samefile(path)


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
