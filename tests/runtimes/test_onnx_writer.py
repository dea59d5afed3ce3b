"""The ONNX writer against the backbone itself, run by ONNX Runtime and by OpenVINO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from torch import nn

import trunkline
from trunkline import Backbone, Preprocessing
from trunkline.errors import ConfigError, DeploymentError
from trunkline.runtimes.graphs import example_images, unfolded_network_of
from trunkline.runtimes.onnx_writer import OPSETS, onnx_model
from trunkline.runtimes.signal_stack import signal_stack_kept

if TYPE_CHECKING:
    from tests.conftest import Family

SIZES = [(2, 64, 96), (1, 33, 97), (3, 65, 48)]
ACTS = ["relu", "leaky-relu", "elu", "gelu", "hardswish", "mish", "silu"]


Array = np.ndarray[Any, Any]
Run = Callable[[Array], list[Array]]


def open_onnxruntime(model: Any) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return lambda images: session.run(None, {"image": images})


def open_openvino(model: Any) -> Run:
    core = openvino.Core()
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    with signal_stack_kept():
        compiled = core.compile_model(core.read_model(model.SerializeToString(), b""), "CPU", hints)
    return lambda images: [np.array(value) for value in compiled([images]).values()]


ENGINES = {"onnxruntime": open_onnxruntime, "openvino": open_openvino}


def assert_same(
    backbone: Backbone,
    model: Any,
    *,
    engines: Sequence[str] = ("onnxruntime", "openvino"),
    sizes: Sequence[tuple[int, int, int]] = SIZES,
    preprocess: bool = False,
) -> None:
    onnx.checker.check_model(model, full_check=True)
    network = unfolded_network_of(backbone, preprocess=preprocess)
    opened = {engine: ENGINES[engine](model) for engine in engines}
    for size in sizes:
        images = example_images(backbone, *size, preprocess=preprocess)
        with torch.inference_mode():
            wanted = [one.numpy() for one in network(images)]
        for engine, run in opened.items():
            got = run(images.numpy())
            assert [one.shape for one in got] == [one.shape for one in wanted]
            for one, other in zip(wanted, got, strict=True):
                assert np.abs(one - other).max() <= 1e-5 * np.abs(one).max(), (engine, size)


def test_every_family_at_sizes_that_no_power_of_two_divides(family: Family) -> None:
    backbone = family.build()
    assert_same(backbone, onnx_model(backbone), sizes=[*SIZES, (1, 1, 1)])  # a pixel is an image


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_networks(family: Family, output_stride: int) -> None:
    backbone = family.build(output_stride=output_stride)
    assert_same(backbone, onnx_model(backbone), sizes=SIZES[:2])


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("opset", [OPSETS[0], 18, OPSETS[-1]])
def test_activations_in_every_opset(families: dict[str, Family], act: str, opset: int) -> None:
    backbone = families["resnet-basic"].build(act=act, return_idx=(0,))
    model = onnx_model(backbone, opset=opset)
    assert model.opset_import[0].version == opset
    assert_same(backbone, model, sizes=SIZES[:1])


def test_group_norm(families: dict[str, Family]) -> None:
    backbone = families["regnet-y"].build(norm="group")
    assert_same(backbone, onnx_model(backbone), sizes=SIZES[:2])


@pytest.mark.parametrize("norm", ["frozen", "sync"])
def test_norms_that_fold(families: dict[str, Family], norm: str) -> None:
    backbone = families["dla-residual"].build(norm=norm)
    model = onnx_model(backbone)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert_same(backbone, model, sizes=SIZES[:1])


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("value_range", ["0..1", "0..255"])
def test_pictures_are_normalised_inside(
    families: dict[str, Family], order: Any, value_range: Any
) -> None:
    backbone = families["resnet-basic"].build()
    scale = 1.0 if value_range == "0..1" else 255.0
    backbone.preprocessing = Preprocessing(
        resize=None,
        crop=None,
        interpolation="bilinear",
        mean=(0.4 * scale, 0.5 * scale, 0.6 * scale),
        std=(0.2 * scale, 0.3 * scale, 0.4 * scale),
        value_range=value_range,
        channel_order=order,
    )
    model = onnx_model(backbone, preprocess=True)
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert_same(backbone, model, preprocess=True)


def test_names_and_axes() -> None:
    model = onnx_model(trunkline.create_backbone("dla34", return_idx=(3, 1), return_stem=True))
    assert [one.name for one in model.graph.input] == ["image"]
    assert [one.name for one in model.graph.output] == ["stride_2", "stride_32", "stride_8"]
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert [one.dim_param or one.dim_value for one in dims] == ["batch", 3, "height", "width"]
    dims = model.graph.output[1].type.tensor_type.shape.dim
    assert [one.dim_param or one.dim_value for one in dims] == [
        *("batch", 512, "height_over_32", "width_over_32")
    ]


def test_levels_of_one_stride_say_which_they_are(families: dict[str, Family]) -> None:
    model = onnx_model(families["resnet-basic"].build(output_stride=16))
    assert [one.name for one in model.graph.output] == [
        *("stride_4", "stride_8", "stage2_stride_16", "stage3_stride_16")
    ]


def test_axes_that_are_not_dynamic_are_fixed(families: dict[str, Family]) -> None:
    model = onnx_model(
        families["resnet-basic"].build(), input_shape=(5, 40, 72), dynamic=("width",)
    )
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert [one.dim_param or one.dim_value for one in dims] == [5, 3, 40, "width"]
    dims = model.graph.output[2].type.tensor_type.shape.dim
    assert [one.dim_param or one.dim_value for one in dims][2:] == [3, "width_over_16"]


def test_the_mean_of_squeeze_and_excitation_stays_in_the_blocked_layout() -> None:
    kinds = [n.op_type for n in onnx_model(trunkline.create_backbone("regnet-y-002")).graph.node]
    assert "ReduceMean" not in kinds
    assert kinds.count("GlobalAveragePool") == 13  # one a block


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"opset": 13}, r"opset=13 cannot be written; allowed: 14 to 23"),
        ({"opset": 99}, r"opset=99 cannot be written"),
        ({"dynamic": ("depth",)}, r"dynamic=\('depth',\) must name each of batch, height, width"),
        ({"dynamic": ("batch", "batch")}, r"at most once"),
        ({"input_shape": (1, 0, 4)}, r"input_shape=\(1, 0, 4\) must be \(N, H, W\)"),
        ({"input_shape": (1, 3, 4, 4)}, r"must be \(N, H, W\)"),
    ],
)
def test_arguments_outside_what_is_allowed(
    families: dict[str, Family], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        onnx_model(families["resnet-basic"].build(), **arguments)


def test_pictures_have_three_channels(families: dict[str, Family]) -> None:
    backbone = families["resnet-basic"].build(in_channels=4)
    with pytest.raises(ConfigError, match=r"preprocess=True makes three channels.* takes 4"):
        onnx_model(backbone, preprocess=True)


class Logistic(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate: torch.Tensor = torch.special.expit(x)
        return gate


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"act": nn.PReLU}, r"stem\.act is a PReLU, which the ONNX writer does not know; .*torch"),
        ({"act": Logistic}, r"a layer calls .*expit.*which the ONNX writer does not know"),
        ({"act": lambda: nn.GELU("tanh")}, r"GELU with approximate='tanh'"),
        ({"norm": nn.InstanceNorm2d}, r"stem\.norm is a InstanceNorm2d"),
    ],
)
def test_layers_of_ones_own_are_refused_by_name(
    families: dict[str, Family], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DeploymentError, match=message):
        onnx_model(families["resnet-basic"].build(**options).eval())
