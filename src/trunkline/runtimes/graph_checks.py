"""What a graph of a stranger may be made of: the layers of backbones, with numbers of its own.

ONNX Runtime and OpenVINO run no code of a graph. What is refused here could still reach outside of
it: weights that lie in other files, operators of other libraries; and loops, which need not end.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trunkline.errors import RunnerError
from trunkline.runtimes.engine import in_one_line
from trunkline.runtimes.optional import require

# fmt: off
# What ``onnx_writer`` writes, and NNCF adds.
ONNX_OPERATORS = frozenset((
    "Add", "AveragePool", "Cast", "Concat", "ConstantOfShape", "Conv", "DequantizeLinear", "Div",
    "Elu", "Erf", "Gather", "Gelu", "GlobalAveragePool", "HardSwish", "Identity",
    "InstanceNormalization", "LeakyRelu", "MaxPool", "Mul", "Pad", "QuantizeLinear", "Relu",
    "Reshape", "Shape", "Sigmoid", "Slice", "Softplus", "Sub", "Tanh", "Transpose",
))

# What OpenVINO makes of those, in this version and, as far as can be foreseen, in others.
OPENVINO_OPERATORS = frozenset((
    "Add", "AvgPool", "Broadcast", "Clamp", "Concat", "Constant", "Convert", "Convolution",
    "Divide", "Elu", "Erf", "Exp", "FakeQuantize", "Gather", "Gelu", "GroupConvolution", "HSwish",
    "Identity", "MVN", "MaxPool", "Mish", "Multiply", "PRelu", "Pad", "Parameter", "Power", "Range",
    "ReduceMean", "Relu", "Reshape", "Result", "ShapeOf", "Sigmoid", "Slice", "SoftPlus", "Split",
    "Squeeze", "StridedSlice", "Subtract", "Swish", "Tanh", "Transpose", "Unsqueeze",
    "VariadicSplit",
))
# fmt: on

_XML_STARTS = (b"<?xml", b"<net")


def check_onnx(path: Path) -> None:
    """Refuse an ONNX file that holds more than a backbone.

    Raises:
        RunnerError: As it says.
        NotInstalledError: onnx is missing.
    """
    onnx = require("onnx", "looking into the graph of a runner of elsewhere")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own class differs between its versions
        raise _refused(path, f"it cannot be read ({in_one_line(error)})") from error
    graph = model.graph
    _check_operators(path, (_full_name(node) for node in graph.node), ONNX_OPERATORS)
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    tensors = [*graph.initializer, *(one.t for one in attributes if one.HasField("t"))]
    if any(one.data_location == onnx.TensorProto.EXTERNAL for one in tensors):
        raise _refused(path, "weights of it lie in other files")
    inner = [one for one in attributes if one.HasField("g") or one.graphs or one.tensors]
    if inner or model.functions or graph.sparse_initializer:
        raise _refused(path, "it has functions, inner graphs or sparse tensors")


def _full_name(node: Any) -> str:
    return str(node.op_type if node.domain == "" else f"{node.domain}.{node.op_type}")


def check_openvino_file(path: Path) -> None:
    """Refuse a file that OpenVINO would not read as its own format, whatever its name says.

    Raises:
        RunnerError: As it says.
    """
    with path.open("rb") as file:
        if not file.read(64).lstrip().startswith(_XML_STARTS):
            raise _refused(path, "it is no XML")


def check_openvino(model: Any, path: Path) -> None:
    """Refuse an ``openvino.Model`` that holds more than a backbone.

    Raises:
        RunnerError: As it says.
    """
    _check_operators(path, (one.get_type_name() for one in model.get_ops()), OPENVINO_OPERATORS)


def _check_operators(path: Path, found: Iterable[str], allowed: frozenset[str]) -> None:
    others = sorted({*found} - allowed)
    if others:
        named = ", ".join(others[:10]) + (", …" if others[10:] else "")
        raise _refused(path, f"it holds what no backbone has: {named}")


def _refused(path: Path, reason: str) -> RunnerError:
    return RunnerError(
        f"{path} is not opened: {reason}. It was not written here; if you trust whoever made it, "
        "say so with trust=True (--trust)."
    )
