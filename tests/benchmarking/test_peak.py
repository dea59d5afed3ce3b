"""The convolution peak, on a shape that takes microseconds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trunkline.benchmarking import peak as module
from trunkline.benchmarking.peak import SHAPES, ConvShape, measure_peak
from trunkline.errors import ConfigError

TINY = ConvShape(2, 8, 6, 3, depth=2)


def test_operations_are_those_of_the_convolutions() -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    positions = 6 * 6
    assert TINY.operations == 2 * 2 * 2 * conv.weight.numel() * positions
    assert str(TINY) == "3×3 convolution at 2×8×6²"


def test_the_peak_is_a_positive_number_and_can_be_run_again() -> None:
    found = measure_peak(1, shapes=[TINY])
    assert math.isfinite(found.gflops)
    assert found.gflops > 0
    assert found.engine in ("torch", "onnxruntime", "openvino")
    assert (found.precision, found.shape) == ("fp32", TINY)
    assert found.run() is not None


def test_every_engine_computes_the_same_chain() -> None:
    runs = module._chains(TINY, 1, "fp32")
    assert set(runs) == {"torch", "onnxruntime", "openvino"}
    done: dict[str, Any] = {engine: run() for engine, run in runs.items()}
    maps = [done["torch"].numpy(), done["onnxruntime"][0], done["openvino"][0]]
    assert maps[0].shape == (2, 8, 6, 6)
    assert 0.1 < maps[0].std() < 10  # neither grown nor faded
    for other in maps[1:]:
        np.testing.assert_allclose(other, maps[0], rtol=1e-4, atol=1e-4)


def test_onnxruntime_takes_no_part_in_bf16() -> None:
    runs = module._chains(TINY, 1, "bf16")
    assert "onnxruntime" not in runs
    assert runs["torch"]().dtype == torch.bfloat16  # type: ignore[attr-defined]


def test_engines_that_are_not_installed_take_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_installed", lambda name: name == "openvino")
    assert list(module._chains(TINY, 1, "fp32")) == ["torch"]  # no onnx to hand OpenVINO a graph


def test_the_usual_shapes_have_dense_and_pointwise_convolutions_on_eight_images() -> None:
    assert {shape.kernel for shape in SHAPES} == {1, 3}
    assert {shape.batch for shape in SHAPES} == {8}


def test_other_precisions_and_no_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no convolution peak for 'int8'; allowed: fp32, bf16"):
        measure_peak(1, "int8")
    with pytest.raises(ConfigError, match=r"no shapes .* give one or more"):
        measure_peak(1, shapes=[])
