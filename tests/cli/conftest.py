"""A photo, a small network with 1000 classes in a file, and a Hub that serves it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from loopback import LoopbackHub
from PIL import Image
from safetensors.torch import save_file

import trunkline
from trunkline.weights.conversion import convert


@pytest.fixture
def photo(tmp_path: Path) -> str:
    """Noise, 40 pixels high and 50 wide."""
    path = tmp_path / "photo.png"
    noise = torch.randint(256, (40, 50, 3), generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.byte().numpy()).save(path)
    return str(path)


@pytest.fixture(scope="session")
def dla46(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dla46-c with its classifier, in timm's names."""
    folder = tmp_path_factory.mktemp("dla46")
    generator = torch.Generator().manual_seed(0)
    state = trunkline.create_backbone("dla46-c").state_dict()
    state["classifier.weight"] = torch.randn((1000, 256), generator=generator)
    state["classifier.bias"] = torch.randn(1000, generator=generator)
    save_file(state, folder / "native.safetensors")
    convert(folder / "native.safetensors", folder / "dla46.safetensors", "timm", variant="dla46-c")
    return folder / "dla46.safetensors"


@pytest.fixture
def hub(tmp_path: Path, dla46: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A Hugging Face endpoint on 127.0.0.1 with dla46-c's default weights, and an empty cache."""
    for name in ("TRUNKLINE_WEIGHTS", "TRUNKLINE_OFFLINE", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRUNKLINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    served = LoopbackHub()
    monkeypatch.setenv("HF_ENDPOINT", served.origin)
    served.add_file("timm/dla46_c.in1k", "model.safetensors", dla46.read_bytes())
    yield served
    served.close()
