"""Several threads at once: loading, deploying, saving, and running other networks meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tests.runtimes.conftest import furthest, own_maps
from torch import nn

from trunkline import Backbone, deploy, load_runner
from trunkline.runtimes import onnx_writer

if TYPE_CHECKING:
    from tests.conftest import Family

Images = np.ndarray[Any, Any]
QUICK = ("torch", "onnxruntime", "openvino")


def at_once(work: Callable[[int], Any], threads: int = 8) -> list[Any]:
    barrier = threading.Barrier(threads)

    def begin(number: int) -> Any:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(begin, range(threads)))


@pytest.mark.parametrize("runtime", QUICK)
def test_eight_threads_load_one_runner(
    tiny: Backbone, images: Images, tmp_path: Path, runtime: str
) -> None:
    wanted = own_maps(tiny, images)
    folder = deploy(tiny, runtime).save(tmp_path / "runner")
    for one in at_once(lambda _: load_runner(folder)(images)):
        assert furthest(wanted, one) < 1e-5


def test_threads_that_export_load_and_deploy(
    families: dict[str, Family], tmp_path: Path, images: Images
) -> None:
    own = families["resnet-basic"].build(return_idx=(0,), act=nn.PReLU).eval()
    program = deploy(own, "torch").save(tmp_path / "program")

    def work(number: int) -> Any:
        if number < 2:
            deploy(own, "torch").save(tmp_path / f"{number}")
        elif number < 4:
            return load_runner(program)(images)
        else:
            named = families["dla-basic"].build().eval()
            got = deploy(named, "onnxruntime")(images)
            assert furthest(own_maps(named, images), got) < 1e-5
        return own_maps(own, images)

    before = nn.Module.__call__
    for maps in at_once(work, 6):
        assert furthest(own_maps(own, images), maps) < 1e-5
    assert nn.Module.__call__ is before  # which tracers replace meanwhile


def test_networks_of_other_threads_are_not_traced(
    tiny: Backbone, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, found = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), []
    image = torch.from_numpy(images)
    wanted = other(image)
    right = onnx_writer._Tracer.is_leaf_module

    def run_the_other(self: Any, m: nn.Module, name: str) -> bool:
        thread = threading.Thread(target=lambda: found.append(other(image)))
        thread.start()
        thread.join()
        return right(self, m, name)

    monkeypatch.setattr(onnx_writer._Tracer, "is_leaf_module", run_the_other)
    runner = deploy(tiny, "onnxruntime")
    assert len(found) > 10
    assert all(torch.equal(one, wanted) for one in found)
    assert furthest(own_maps(tiny, images), runner(images)) < 1e-5
