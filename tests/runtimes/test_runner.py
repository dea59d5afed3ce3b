"""What a runner takes, and what it says of what it does not take."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.runtimes.conftest import furthest, own_maps

from trunkline import Backbone, deploy
from trunkline.errors import DeploymentError, InputError, RunnerError
from trunkline.runtimes.runner import Runner

Images = np.ndarray[Any, Any]
QUICK = ("torch", "onnxruntime", "openvino")

CALLS = [
    (lambda x: x[0], r"expected float32 images of shape \(N, 3, H, W\), got 3 dimensions.*None"),
    (lambda x: x[0, 0], r"got 2 dimensions"),
    (lambda x: x.astype("f8"), r"got float64; use images\.astype\(numpy\.float32\)"),
    (lambda x: (x * 9).astype("u1"), r"got uint8; use images\.astype"),
    (lambda x: x[:, :2], r"got \(2, 2, 65, 97\); check the order of the axes"),
    (lambda x: x.transpose(0, 2, 3, 1), r"got \(2, 65, 97, 3\); check the order"),
    (lambda x: x[:, :, :0], r"with H and W of 1 or more"),
    (lambda x: x.tolist(), r"must be a NumPy array or a PyTorch tensor, got list; numpy\.asarray"),
    (lambda x: torch.from_numpy(x).bfloat16(), r"torch\.bfloat16.*images\.float\(\)"),
    (lambda x: torch.from_numpy(x).to("meta"), r"images are on meta.*images\.cpu\(\)"),
]


@pytest.mark.parametrize(("make", "message"), CALLS)
def test_images_that_a_runner_does_not_take(
    tiny: Backbone, images: np.ndarray[Any, Any], make: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        deploy(tiny, "torch")(make(images))


def test_another_shape_than_it_was_built_for(tiny: Backbone, images: np.ndarray[Any, Any]) -> None:
    runner = deploy(tiny, "onnxruntime", input_shape=(2, 65, 96))
    with pytest.raises(
        InputError, match=r"built for N, H, W = 2, 65, 96 alone, got 2, 65, 97; .*input_shape=None"
    ):
        runner(images)


def test_a_runner_of_pictures_takes_no_floats(tiny: Backbone, images: np.ndarray[Any, Any]) -> None:
    runner = deploy(tiny, "torch", preprocess=True)
    with pytest.raises(InputError, match=r"expected uint8 images of shape \(N, H, W, 3\).*8-bit"):
        runner(images.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("runtime", QUICK)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_some_engines_would_hide_are_refused(
    tiny: Backbone, images: Images, runtime: str, value: float
) -> None:
    runner = deploy(tiny, runtime)
    images[1, 2, 64, 96] = value  # the last one
    for given in (images, torch.from_numpy(images), images[:, :, ::-1]):
        with pytest.raises(InputError, match=r"all of them finite, got NaN or infinity"):
            runner(given)
    images[1, 2, 64, 96] = 3e4  # large, and a number
    assert furthest(own_maps(tiny, images), runner(images)) < 1e-4


class Broken:
    """An engine that gives back what a test wants."""

    name = "broken"

    def __init__(self, given: Any) -> None:
        self.given = given

    def run(self, _images: Images) -> list[Images]:
        if isinstance(self.given, BaseException):
            raise self.given
        maps: list[Images] = self.given
        return maps


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), r"torch failed on images of shape \(2, 3, 65, 97\): MemoryError; smaller"),
        (RuntimeError("can't\nallocate"), r"can't allocate; smaller or fewer images need less"),
        (ValueError("one number"), r"one number"),
    ],
)
def test_an_engine_that_fails_is_an_error_of_ours(
    tiny: Backbone, images: Images, error: Exception, message: str
) -> None:
    runner = deploy(tiny, "torch")
    broken = Runner(Broken(error), runner.spec, (), provenance=runner.provenance)  # type: ignore[arg-type]
    with pytest.raises(DeploymentError, match=message):
        broken(images)


def test_images_that_no_memory_holds(tiny: Backbone) -> None:
    runner = deploy(tiny, "torch", preprocess=True)
    with pytest.raises(DeploymentError, match=r"torch failed .* Unable to allocate .*smaller or"):
        runner(np.broadcast_to(np.uint8(0), (1, 10**7, 10**7, 3)))


def test_maps_of_other_shapes_than_promised(tiny: Backbone, images: Images) -> None:
    runner = deploy(tiny, "torch")
    maps = runner(images)
    for wrong in (maps[:3], [one[:1] for one in maps], [one[..., :-1] for one in maps]):
        broken = Runner(Broken(wrong), runner.spec, (), provenance=runner.provenance)  # type: ignore[arg-type]
        with pytest.raises(RunnerError, match=r"gave maps of shapes .* promises .* save it again"):
            broken(images)
