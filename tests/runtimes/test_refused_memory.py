"""Engines that once got no memory compute the next images, and compute them right."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from alone import passes_alone
from numpy.typing import NDArray

from trunkline import Backbone, deploy
from trunkline.errors import DeploymentError
from trunkline.extraction.memory import _allocated
from trunkline.runtimes import pytorch
from trunkline.runtimes.open_vino import OpenVinoEngine

SIDES = ((40, 50), (64, 64), (33, 95))


@pytest.fixture(scope="module")
def backbone(families: dict[str, Any]) -> Backbone:
    built: Backbone = families["resnet-basic"].build(return_idx=(1, 3))
    return built


def images(height: int, width: int) -> NDArray[np.uint8]:
    shape = (1, height, width, 3)
    return np.random.default_rng(height).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("parts", [1, 2])
def test_openvino_that_returns_the_maps_of_another_call_is_compiled_anew(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    runner = deploy(backbone, "openvino", "fp32", None, True, threads=parts)
    pair = [np.concatenate([images(*sides)] * parts) for sides in SIDES]
    expected = [runner(one) for one in pair]
    engine: Any = runner._engine
    compiled = engine._compiled[parts]
    with monkeypatch.context() as patch:
        patch.setattr(OpenVinoEngine, "_computed", lambda *_: expected[1])
        with pytest.raises(DeploymentError, match="no maps for these images, for want of memory"):
            runner(pair[0])
    for one, maps in zip(pair, expected, strict=True):
        for found, wanted in zip(runner(one), maps, strict=True):
            np.testing.assert_array_equal(found, wanted)
    assert engine._compiled[parts] is not compiled


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of memory that Linux has")
def test_torch_computes_when_memory_was_scarce() -> None:
    # In a process of its own: one that has freed much memory is not refused any.
    passes_alone(__file__, "test_torch_computes_after_its_compiler_got_no_memory", "alone")


@pytest.mark.alone
def test_torch_computes_after_its_compiler_got_no_memory(backbone: Backbone) -> None:
    """Its library refuses all further work of the thread in which that happened."""
    import resource

    runner = deploy(backbone, "torch", "fp32", None, True, threads=1)
    expected = runner(images(*SIDES[0]))
    before, errors = resource.getrlimit(resource.RLIMIT_DATA), list[str]()

    def compute_in_little_memory() -> bool:
        drawn = np.random.default_rng(0)
        for number in range(40):  # in some of them it is not a map that has no room
            spare, sides = int(10 ** drawn.uniform(4, 7)), drawn.integers(30, 600, 2)
            resource.setrlimit(resource.RLIMIT_DATA, (_allocated() + spare, before[1]))
            try:
                runner(images(*map(int, sides)))
            except DeploymentError as error:
                errors.append(str(error))
            finally:
                resource.setrlimit(resource.RLIMIT_DATA, before)
            found = runner(images(101 + number, 33))  # a shape that it has not compiled yet
            assert found[1].shape == (1, 64, -(-(101 + number) // 32), 2)
        for map_, wanted in zip(runner(images(*SIDES[0])), expected, strict=True):
            np.testing.assert_array_equal(map_, wanted)
        return hasattr(pytorch._thread, "substitute")

    with ThreadPoolExecutor(1) as thread:  # or other tests would have a broken one
        assert thread.submit(compute_in_little_memory).result()
    assert len(errors) > 5
    runner(images(200, 33))  # other threads are as they were
