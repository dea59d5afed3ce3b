"""Graphs of strangers: those of backbones are opened, others are not, whatever they are called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.runtimes.conftest import exchange

from trunkline import Backbone, deploy, load_runner
from trunkline.backbones.layers import ACTS
from trunkline.errors import RunnerError
from trunkline.runtimes.graph_checks import ONNX_OPERATORS, check_onnx, check_openvino
from trunkline.runtimes.onnx_writer import onnx_model
from trunkline.runtimes.open_vino import OpenVinoEngine

if TYPE_CHECKING:
    from tests.conftest import Family

onnx: Any = pytest.importorskip("onnx")
helper = onnx.helper


def assert_allowed(model: Any, folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    check_onnx(path)
    check_openvino(OpenVinoEngine.read(path.read_bytes()), path)


@pytest.mark.parametrize(
    "options", [{}, {"norm": "group", "output_stride": 8}, {"return_stem": True}], ids=str
)
def test_graphs_of_all_families_are_allowed(
    family: Family, tmp_path: Path, options: dict[str, Any]
) -> None:
    assert_allowed(onnx_model(family.build(**options), preprocess=bool(options)), tmp_path)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("opset", [14, 18, 23])
def test_graphs_of_all_activations_are_allowed(
    families: dict[str, Family], tmp_path: Path, act: str, opset: int
) -> None:
    assert_allowed(onnx_model(families["resnet-basic"].build(act=act), opset=opset), tmp_path)


@pytest.fixture
def model(tiny: Backbone) -> Any:
    return onnx_model(tiny)


def outside(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")


def outside_in_a_node(model: Any) -> None:
    inner = onnx.TensorProto(dims=[1], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    model.graph.node.append(helper.make_node("ConstantOfShape", ["x"], ["y"], value=inner))


def loop(model: Any) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["y"], body=body))


def hidden_graph(model: Any) -> None:
    inner = helper.make_graph([], "inner", [], [])
    model.graph.node.append(helper.make_node("Identity", ["image"], ["y"], body=inner))


def function(model: Any) -> None:
    node = helper.make_node("Loop", [], ["y"])
    opsets = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("", "Relu", ["x"], ["y"], [node], opsets))


def another_library(model: Any) -> None:
    model.graph.node.append(helper.make_node("Relu", ["image"], ["y"], domain="com.microsoft"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (outside, r"weights of it lie in other files"),
        (outside_in_a_node, r"weights of it lie in other files"),
        (loop, r"it holds what no backbone has: Loop"),
        (another_library, r"it holds what no backbone has: com\.microsoft\.Relu"),
        (hidden_graph, r"it has functions, inner graphs or sparse tensors"),
        (function, r"it has functions, inner graphs or sparse tensors"),
    ],
)
def test_a_graph_of_elsewhere_reaches_nothing(
    model: Any, tmp_path: Path, tiny: Backbone, change: Callable[[Any], None], message: str
) -> None:
    folder = deploy(tiny, "onnxruntime").save(tmp_path / "runner")
    change(model)
    exchange(folder, "model.onnx", model.SerializeToString())
    with pytest.raises(RunnerError, match=rf"{message}. It was not written here; .*trust=True"):
        load_runner(folder)


def test_what_is_no_graph(tmp_path: Path, tiny: Backbone, model: Any) -> None:
    folder = deploy(tiny, "onnxruntime").save(tmp_path / "onnx")
    exchange(folder, "model.onnx", b"\xff" * 100)
    with pytest.raises(RunnerError, match=r"it cannot be read"):
        load_runner(folder)
    folder = deploy(tiny, "openvino").save(tmp_path / "openvino")
    exchange(folder, "model.xml", model.SerializeToString())  # OpenVINO would read that too
    with pytest.raises(RunnerError, match=r"model\.xml is not opened: it is no XML"):
        load_runner(folder)


def test_a_graph_of_openvino_with_another_layer(tmp_path: Path, tiny: Backbone) -> None:
    folder = deploy(tiny, "openvino").save(tmp_path / "runner")
    text = (folder / "model.xml").read_text()
    changed = text.replace('type="ReLU"', 'type="Cosh"', 1)
    assert changed != text
    exchange(folder, "model.xml", changed.encode())
    with pytest.raises(RunnerError, match=r"^\S+ is not opened: it holds what .*: Cosh\."):
        load_runner(folder)


def test_a_graph_that_openvino_quotes_in_no_text(tmp_path: Path, tiny: Backbone) -> None:
    folder = deploy(tiny, "openvino").save(tmp_path / "runner")
    content = (folder / "model.xml").read_bytes()
    exchange(folder, "model.xml", content.replace(b'"f32"', b'"f3\xd6"', 1))
    with pytest.raises(RunnerError, match=r"OpenVINO cannot open the runner"):
        load_runner(folder)


def test_no_operator_that_holds_graphs_is_allowed() -> None:
    schemas = onnx.defs.get_all_schemas_with_history()
    graphs = (onnx.defs.OpSchema.AttrType.GRAPH, onnx.defs.OpSchema.AttrType.GRAPHS)
    holding = {
        one.name for one in schemas if any(a.type in graphs for a in one.attributes.values())
    }
    assert holding == {"If", "Loop", "Scan", "SequenceMap"} | holding
    assert holding.isdisjoint(ONNX_OPERATORS)
