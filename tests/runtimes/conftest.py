"""What the tests of the runtimes share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from trunkline import Backbone

if TYPE_CHECKING:
    from tests.conftest import Family


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep decisions of one test from another, and from the user's own."""
    monkeypatch.setenv("TRUNKLINE_HOME", str(tmp_path / "home"))


@pytest.fixture
def tiny(families: dict[str, Family]) -> Backbone:
    """A bottleneck ResNet that runs in a millisecond."""
    return families["resnet-bottleneck"].build().eval()


@pytest.fixture
def images() -> np.ndarray[Any, Any]:
    """Two images of an odd size, (2, 3, 65, 97) float32."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn((2, 3, 65, 97), generator=generator).numpy()


def own_maps(backbone: Backbone, images: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """Return what the backbone itself makes of images."""
    with torch.inference_mode():
        return [one.numpy() for one in backbone.eval()(torch.from_numpy(images))]


def furthest(wanted: Sequence[np.ndarray[Any, Any]], got: Sequence[np.ndarray[Any, Any]]) -> float:
    """Return the largest difference, relative to the largest value of its map."""
    assert [one.shape for one in got] == [one.shape for one in wanted]
    pairs = zip(wanted, got, strict=True)
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)
