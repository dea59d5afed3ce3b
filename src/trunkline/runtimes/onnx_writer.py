"""A backbone as an ONNX graph: the one form that ONNX Runtime, OpenVINO and servers all read.

``torch.fx`` lists the layers of the folded backbone, and every kind of layer is one function below
that writes the operators for it. torch.onnx would write the same graph in ten to thirty seconds
instead of one half (nearly all of it goes into the arithmetic of symbolic sizes, which these
networks do not need: no operator here holds a size), keeps the mean of squeeze-and-excitation as a
reduction that ONNX Runtime cannot compute in its blocked layout, and knows fewer opsets.

Source: the ONNX operator specification, https://onnx.ai/onnx/operators.
"""

from __future__ import annotations

import math
import operator
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.fx
from torch import Tensor, nn

from trunkline.backbones.backbone import Backbone
from trunkline.backbones.blocks import DilatedAvgPool2d, DilatedMaxPool2d
from trunkline.backbones.levels import output_names
from trunkline.errors import ConfigError, DeploymentError
from trunkline.preprocessing import Preprocessing
from trunkline.runtimes.graphs import AXES, INPUT_NAME, TRACING, FromPixels, network_of
from trunkline.runtimes.optional import require

OPSETS = range(14, 24)
"""Versions of ONNX's operators that can be written; 18 suits most engines."""

_IR_VERSION = 10  # of the file format: the newest that ONNX Runtime 1.20 and OpenVINO 2025 read


class _Tracer(torch.fx.Tracer):
    """Stops at layers: a convolution is one node, whoever wrote its class."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaves = (nn.Conv2d, DilatedMaxPool2d, DilatedAvgPool2d)
        return isinstance(m, leaves) or super().is_leaf_module(m, module_qualified_name)

    def trace(self, *args: Any, **kwargs: Any) -> torch.fx.Graph:
        with TRACING:
            self._thread = threading.get_ident()
            return super().trace(*args, **kwargs)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        # Calls of all modules come here, those of other threads too, which only want to compute.
        mine = threading.get_ident() == self._thread
        return super().call_module(m, forward, args, kwargs) if mine else forward(*args, **kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        mine = threading.get_ident() == self._thread
        return super().getattr(attr, attr_val, parameter_proxy_cache) if mine else attr_val


class _Graph:
    """Operators and weights in the order in which they are written."""

    def __init__(self, opset: int) -> None:
        self.onnx = require("onnx", "an ONNX graph")
        self.opset = opset
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self._made = 0

    def add(
        self, kind: str, inputs: Sequence[str], output: str | None = None, **fields: Any
    ) -> str:
        """Write one operator and return the name of its result."""
        name = output or self._fresh(kind.lower())
        node = self.onnx.helper.make_node(kind, list(inputs), [name], name=f"node_{name}", **fields)
        self.nodes.append(node)
        return name

    def value(self, values: Any, name: str | None = None) -> str:
        """Write a tensor of numbers and return its name."""
        name = name or self._fresh("value")
        if name not in self.initializers:
            array = np.ascontiguousarray(values)
            self.initializers[name] = self.onnx.numpy_helper.from_array(array, name)
        return name

    def _fresh(self, stem: str) -> str:
        self._made += 1
        return f"{stem}_{self._made}"


def onnx_model(
    backbone: Backbone,
    *,
    input_shape: tuple[int, int, int] = (1, 224, 224),
    dynamic: Sequence[str] = AXES,
    preprocess: bool = False,
    opset: int = 18,
) -> Any:
    """Return the folded backbone as an ``onnx.ModelProto``, float32 inside.

    Args:
        backbone: Any of the three families. Norms that cannot be folded must be group norms, and
            activations one of those that trunkline names.
        input_shape: (N, H, W) of the axes that are not dynamic.
        dynamic: Which of ``AXES`` may take any size.
        preprocess: Take ``(N, H, W, 3)`` uint8 RGB and normalise inside.
        opset: Version of ONNX's operators, one of ``OPSETS``.

    Returns:
        A model with the input ``image`` and one output per returned level, see ``output_names``.

    Raises:
        ConfigError: An opset, an axis or a size outside what is allowed.
        NotInstalledError: onnx is missing.
        DeploymentError: A layer of one's own that the writer does not know.
    """
    _check(input_shape, dynamic, opset)
    network = network_of(backbone, preprocess=preprocess)
    graph = _Graph(opset)
    image = INPUT_NAME
    if isinstance(network, FromPixels):
        image = _normalise(graph, image, network.preprocessing)
        network = network.backbone
    names = output_names(backbone.returned_levels)
    _write_layers(graph, network, image, names)
    helper = graph.onnx.helper
    sizes = [axis if axis in dynamic else n for axis, n in zip(AXES, input_shape, strict=True)]
    described = helper.make_graph(
        graph.nodes,
        backbone.variant or type(backbone).__name__,
        [_input_info(helper, backbone.in_channels, sizes, preprocess=preprocess)],
        [
            helper.make_tensor_value_info(
                name,
                helper.TensorProto.FLOAT,
                [
                    sizes[0],
                    level.channels,
                    *(_reduced(size, level.stride) for size in sizes[1:] if level.stride),
                ],
            )
            for name, level in zip(names, backbone.returned_levels, strict=True)
        ],
        list(graph.initializers.values()),
    )
    return helper.make_model(
        described,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=_IR_VERSION,
        producer_name="trunkline",
    )


def _check(input_shape: Sequence[int], dynamic: Sequence[str], opset: int) -> None:
    if opset not in OPSETS:
        raise ConfigError(
            f"opset={opset!r} cannot be written; allowed: {OPSETS[0]} to {OPSETS[-1]}, "
            "18 suits most engines."
        )
    unknown = [axis for axis in dynamic if axis not in AXES]
    if unknown or len(set(dynamic)) < len(dynamic):
        raise ConfigError(
            f"dynamic={tuple(dynamic)!r} must name each of {', '.join(AXES)} at most once."
        )
    if len(input_shape) != 3 or any(type(n) is not int or n < 1 for n in input_shape):
        raise ConfigError(
            f"input_shape={tuple(input_shape)!r} must be (N, H, W), integers from 1 on."
        )


def _input_info(helper: Any, channels: int, sizes: Sequence[Any], *, preprocess: bool) -> Any:
    if preprocess:
        return helper.make_tensor_value_info(
            INPUT_NAME, helper.TensorProto.UINT8, [*sizes, channels]
        )
    shape = [sizes[0], channels, *sizes[1:]]
    return helper.make_tensor_value_info(INPUT_NAME, helper.TensorProto.FLOAT, shape)


def _reduced(size: int | str, stride: int) -> int | str:
    return f"{size}_over_{stride}" if isinstance(size, str) else math.ceil(size / stride)


def _normalise(graph: _Graph, image: str, preprocessing: Preprocessing) -> str:
    """Write what ``FromPixels`` does, in its order, so that the numbers are the same."""
    if preprocessing.channel_order == "BGR":
        image = graph.add("Gather", [image, graph.value(np.array([2, 1, 0]))], axis=3)
    image = graph.add("Transpose", [image], perm=[0, 3, 1, 2])
    image = graph.add("Cast", [image], to=graph.onnx.TensorProto.FLOAT)
    if preprocessing.value_range == "0..1":
        image = graph.add("Div", [image, graph.value(np.float32(255))])
    for kind, name in (("Sub", "mean"), ("Div", "std")):
        values = np.array(getattr(preprocessing, name), np.float32)[:, None, None]
        image = graph.add(kind, [image, graph.value(values, f"preprocessing.{name}")])
    return image


def _write_layers(graph: _Graph, network: nn.Module, image: str, names: Sequence[str]) -> None:
    """Follow the network from its input to its outputs."""
    traced = _Tracer().trace(network)
    modules = dict(network.named_modules())
    maps = next(node for node in traced.nodes if node.op == "output").args[0]
    wanted = dict(zip(maps, names, strict=True))
    written: dict[torch.fx.Node, str] = {}

    def of(value: Any) -> Any:
        return written[value] if isinstance(value, torch.fx.Node) else value

    for node in traced.nodes:
        output = wanted.get(node)
        if node.op == "placeholder":
            written[node] = image
        elif node.op == "call_module":
            layer = modules[str(node.target)]
            write = _LAYERS.get(_kind(layer))
            if write is None:
                raise _unknown(f"{node.target} is a {type(layer).__name__}")
            written[node] = write(graph, layer, of(node.args[0]), str(node.target), output)
        elif node.op in ("call_function", "call_method"):
            called = _CALLS.get(node.target)
            if called is None:
                raise _unknown(f"a layer calls {node.target}")
            written[node] = called(graph, [of(arg) for arg in _flat(node.args)], output)
        elif node.op != "output":
            raise _unknown(f"a layer reads its own tensor {node.target}")


def _unknown(what: str) -> DeploymentError:
    return DeploymentError(
        f"{what}, which the ONNX writer does not know; build the backbone with trunkline's own "
        "norms and activations, or use runtime='torch' or format='torch-export'."
    )


def _kind(layer: nn.Module) -> type[nn.Module]:
    return next((kind for kind in _LAYERS if isinstance(layer, kind)), type(layer))


def _flat(values: Sequence[Any]) -> list[Any]:
    return [one for v in values for one in (v if isinstance(v, list | tuple) else [v])]


def _conv(graph: _Graph, layer: Any, x: str, name: str, output: str | None) -> str:
    inputs = [x, graph.value(_numbers(layer.weight), f"{name}.weight")]
    if layer.bias is not None:
        inputs.append(graph.value(_numbers(layer.bias), f"{name}.bias"))
    return graph.add(
        "Conv",
        inputs,
        output,
        kernel_shape=list(layer.kernel_size),
        strides=list(layer.stride),
        pads=[*layer.padding, *layer.padding],
        dilations=list(layer.dilation),
        group=layer.groups,
    )


def _pool(graph: _Graph, layer: Any, x: str, _name: str, output: str | None) -> str:
    kernel, stride, before = (_pair(v) for v in (layer.kernel_size, layer.stride, layer.padding))
    # Ceil mode as padding at the end, of which no window takes more than it has to. OpenVINO
    # refuses a window that is larger than a padded map, which one pixel in ceil mode is.
    after = [p + (s - 1 if layer.ceil_mode else 0) for p, s in zip(before, stride, strict=True)]
    fields = {"kernel_shape": kernel, "strides": stride, "pads": [*before, *after]}
    if isinstance(layer, nn.AvgPool2d):
        if layer.count_include_pad and any(fields["pads"]):
            raise _unknown("a layer is an average pool that counts its padding")
        return graph.add("AveragePool", [x], output, **fields)
    return graph.add("MaxPool", [x], output, dilations=_pair(layer.dilation), **fields)


def _dilated_max(graph: _Graph, layer: Any, x: str, _name: str, output: str | None) -> str:
    d = layer.dilation
    # An operator of its own: ONNX Runtime takes no padding as wide as the kernel.
    ends = graph.value(np.array([0, 0, 0, 0, 0, 0, d, d]))
    padded = graph.add("Pad", [x, ends, graph.value(np.float32(-np.inf))])
    return graph.add("MaxPool", [padded], output, kernel_shape=[2, 2], dilations=[d, d])


def _dilated_avg(graph: _Graph, layer: Any, x: str, _name: str, output: str | None) -> str:
    """Sum four neighbours by a convolution that sees one channel at a time, and count them."""
    d = layer.dilation
    kernel = graph.value(np.ones((1, 1, 2, 2), np.float32), "window")

    def total(values: str) -> str:
        return graph.add("Conv", [values, kernel], dilations=[d, d], pads=[0, 0, d, d])

    shape = graph.add("Shape", [x])  # (N, C, H, W)
    sides = graph.add("Slice", [shape, *(graph.value(np.array([n])) for n in (2, 4))])
    one = graph.value(np.array([1, 1]))
    planes = graph.add("Concat", [graph.value(np.array([-1, 1])), sides], axis=0)
    summed = graph.add("Reshape", [total(graph.add("Reshape", [x, planes])), shape])
    inside = graph.add("Concat", [one, sides], axis=0)
    ones = graph.onnx.helper.make_tensor("one", graph.onnx.TensorProto.FLOAT, [1], [1.0])
    count = total(graph.add("ConstantOfShape", [inside], value=ones))
    return graph.add("Div", [summed, count], output)


def _group_norm(graph: _Graph, layer: Any, x: str, name: str, output: str | None) -> str:
    """Normalise each group as one instance: GroupNormalization is younger than most engines."""
    shape = graph.add("Shape", [x])
    groups = graph.add("Reshape", [x, graph.value(np.array([0, layer.num_groups, -1]))])
    ones, zeros = (graph.value(make(layer.num_groups, np.float32)) for make in (np.ones, np.zeros))
    normed = graph.add("InstanceNormalization", [groups, ones, zeros], epsilon=layer.eps)
    back = graph.add("Reshape", [normed, shape])
    weight, bias = (
        graph.value(_numbers(getattr(layer, part))[:, None, None], f"{name}.{part}")
        for part in ("weight", "bias")
    )
    return graph.add("Add", [graph.add("Mul", [back, weight]), bias], output)


def _identity(graph: _Graph, _layer: nn.Module, x: str, _name: str, output: str | None) -> str:
    return x if output is None else graph.add("Identity", [x], output)


def _gelu(graph: _Graph, layer: Any, x: str, _name: str, output: str | None) -> str:
    if layer.approximate != "none":
        raise _unknown("a layer is a GELU with approximate='tanh'")
    if graph.opset >= 20:
        return graph.add("Gelu", [x], output)
    erf = graph.add("Erf", [graph.add("Mul", [x, graph.value(np.float32(math.sqrt(0.5)))])])
    half = graph.add("Mul", [x, graph.value(np.float32(0.5))])
    return graph.add("Mul", [half, graph.add("Add", [erf, graph.value(np.float32(1))])], output)


def _mish(graph: _Graph, _layer: nn.Module, x: str, _name: str, output: str | None) -> str:
    gate = graph.add("Tanh", [graph.add("Softplus", [x])])
    return graph.add("Mul", [x, gate], output)


def _silu(graph: _Graph, _layer: nn.Module, x: str, _name: str, output: str | None) -> str:
    return graph.add("Mul", [x, graph.add("Sigmoid", [x])], output)


def _simple(kind: str, *fields: tuple[str, str]) -> _Writer:
    """Return a writer for a layer that is one operator; fields are (ours, PyTorch's) names."""

    def write(graph: _Graph, layer: nn.Module, x: str, _name: str, output: str | None) -> str:
        values = {ours: float(getattr(layer, theirs)) for ours, theirs in fields}
        return graph.add(kind, [x], output, **values)

    return write


def _pair(value: int | tuple[int, ...]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _numbers(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.detach().cpu().numpy()


def _add(graph: _Graph, inputs: list[Any], output: str | None) -> str:
    return graph.add("Add", inputs, output)


def _mul(graph: _Graph, inputs: list[Any], output: str | None) -> str:
    return graph.add("Mul", inputs, output)


def _cat(graph: _Graph, inputs: list[Any], output: str | None) -> str:
    return graph.add("Concat", [one for one in inputs if isinstance(one, str)], output, axis=1)


def _mean(graph: _Graph, inputs: list[Any], output: str | None) -> str:
    if inputs[1:] != [2, 3]:
        raise _unknown(f"a layer takes a mean over axes {inputs[1:]}")
    return graph.add("GlobalAveragePool", inputs[:1], output)


def _amax(graph: _Graph, inputs: list[Any], output: str | None) -> str:
    if inputs[1:] != [2, 3]:
        raise _unknown(f"a layer takes a maximum over axes {inputs[1:]}")
    return graph.add("GlobalMaxPool", inputs[:1], output)


def _flatten(graph: _Graph, inputs: list[Any], output: str | None) -> str:
    if inputs[1:] != [1]:
        raise _unknown(f"a layer flattens axes from {inputs[1:]}")
    return graph.add("Flatten", inputs[:1], output, axis=1)


def _sigmoid(graph: _Graph, inputs: list[Any], output: str | None) -> str:
    return graph.add("Sigmoid", inputs, output)


_Writer = Callable[[_Graph, Any, str, str, str | None], str]  # a layer is of its row's class

_LAYERS: dict[type[nn.Module], _Writer] = {
    nn.Conv2d: _conv,
    nn.MaxPool2d: _pool,
    nn.AvgPool2d: _pool,
    DilatedMaxPool2d: _dilated_max,
    DilatedAvgPool2d: _dilated_avg,
    nn.GroupNorm: _group_norm,
    nn.Identity: _identity,
    nn.ReLU: _simple("Relu"),
    nn.LeakyReLU: _simple("LeakyRelu", ("alpha", "negative_slope")),
    nn.ELU: _simple("Elu", ("alpha", "alpha")),
    nn.Hardswish: _simple("HardSwish"),
    nn.GELU: _gelu,
    nn.Mish: _mish,
    nn.SiLU: _silu,
}

_CALLS: dict[Any, Callable[[_Graph, list[Any], str | None], str]] = {
    operator.add: _add,
    operator.iadd: _add,
    operator.mul: _mul,
    torch.cat: _cat,
    "mean": _mean,
    "amax": _amax,
    "flatten": _flatten,
    "sigmoid": _sigmoid,
}
