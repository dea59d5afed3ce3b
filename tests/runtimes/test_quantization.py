"""int8 graphs: as faithful as promised, really int8, the same outside, and made without a trace."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trunkline import Backbone, ResNet
from trunkline.errors import ConfigError
from trunkline.images import IMAGENET, load_images
from trunkline.runtimes.calibration import calibration_batches
from trunkline.runtimes.fidelity import MIN_COSINE, check_fidelity, compare_maps
from trunkline.runtimes.graph_checks import check_onnx, check_openvino
from trunkline.runtimes.onnx_writer import onnx_model
from trunkline.runtimes.quantization import quantize_onnx, quantize_openvino
from trunkline.runtimes.signal_stack import signal_stack_kept
from trunkline.runtimes.telemetry import unreported

pytest.importorskip("nncf")
with unreported():
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    openvino = pytest.importorskip("openvino")

Array = NDArray[Any]
Run = Callable[[Array], list[Array]]
EXAMPLES = Path(__file__).parents[2] / "examples"
ENGINES = ("onnxruntime", "openvino")
SHAPE = (1, 128, 160)


def to_openvino(model: Any) -> Any:
    return openvino.Core().read_model(model.SerializeToString())


def quantized(engine: str, model: Any, batches: Sequence[Array]) -> Any:
    if engine == "openvino":
        return quantize_openvino(to_openvino(model), batches)
    return quantize_onnx(model, batches)


def opened(model: Any) -> Run:
    """Return what runs either kind of model on one thread."""
    if isinstance(model, onnx.ModelProto):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        return lambda images: session.run(None, {"image": images})
    config = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    with signal_stack_kept():
        compiled = openvino.Core().compile_model(model, "CPU", config)
    return lambda images: [np.array(value) for value in compiled(images).values()]


def content(model: Any) -> bytes:
    """Return all of a model, as its file would hold it."""
    if isinstance(model, onnx.ModelProto):
        content: bytes = model.SerializeToString(deterministic=True)
        return content
    return b"".join(
        op.get_type_name().encode()
        + (op.data.tobytes() if op.get_type_name() == "Constant" else b"")
        for op in model.get_ordered_ops()
    )


def reference(backbone: Backbone, images: Array) -> list[Array]:
    with torch.inference_mode():
        return [m.numpy() for m in backbone.eval()(torch.from_numpy(images))]


def photos(backbone: Backbone, **options: Any) -> list[Array]:
    return calibration_batches(EXAMPLES, backbone, input_shape=SHAPE, **options)


def ends(model: Any) -> list[Any]:
    """Return names, types and shapes of what goes in and comes out."""
    if isinstance(model, onnx.ModelProto):
        return [value.SerializeToString() for value in (*model.graph.input, *model.graph.output)]
    return [
        (sorted(port.names), str(port.element_type), str(port.partial_shape))
        for port in (*model.inputs, *model.outputs)
    ]


@dataclass
class Case:
    """A network, its graph, and the int8 graph that two of the three photos gave."""

    engine: str
    backbone: Backbone
    model: Any
    before: bytes
    small: Any

    @property
    def given(self) -> Any:
        return to_openvino(self.model) if self.engine == "openvino" else self.model

    @cached_property
    def run(self) -> Run:
        return opened(self.small)


@pytest.fixture(
    scope="module",
    params=[(n, e) for n in ("resnet-pooled", "dla-basic", "regnet-y") for e in ENGINES],
    ids="-".join,
)
def case(request: pytest.FixtureRequest, families: Any) -> Case:
    name, engine = request.param
    backbone = families[name].build()
    model = onnx_model(backbone)
    onnx.helper.set_model_props(model, {"licence": "of the weights"})
    before = content(model)
    small = quantized(engine, model, photos(backbone)[:2])
    return Case(engine, backbone, model, before, small)


def check(backbone: Backbone, engine: str, run: Run, images: Array, fed: Any = None) -> None:
    """Check the promise of int8, and that it is int8 and not fp32."""
    maps = run(images if fed is None else fed)
    report = compare_maps(backbone.returned_levels, reference(backbone, images), maps)
    check_fidelity(report, "int8", f"int8 on {engine}")
    assert all(level.cosine < MIN_COSINE["fp32"] for level in report)


def test_its_graph_is_one_that_a_stranger_may_send(case: Case, tmp_path: Path) -> None:
    if case.engine == "openvino":
        check_openvino(case.small, tmp_path)
    else:
        (tmp_path / "model.onnx").write_bytes(case.small.SerializeToString())
        check_onnx(tmp_path / "model.onnx")


def test_maps_of_photos_keep_the_promised_cosine(case: Case) -> None:
    for images in photos(case.backbone):  # calibration has not seen the last one
        check(case.backbone, case.engine, case.run, images)


def test_any_batch_and_size_still_runs(case: Case) -> None:
    for path, size in zip(
        sorted(EXAMPLES.glob("*.jpg")), ((97, 131), (224, 64), (33, 35)), strict=True
    ):
        rule = (case.backbone.preprocessing or IMAGENET).with_size(size)
        images = load_images([path] * 2, rule).numpy()
        maps = case.run(images)
        report = compare_maps(case.backbone.returned_levels, reference(case.backbone, images), maps)
        # Sizes that calibration has not seen have no promise; a level that was swapped, missing
        # or misread would be nowhere near.
        assert min(level.cosine for level in report) > 0.97


def test_names_types_axes_and_metadata_are_kept(case: Case) -> None:
    assert ends(case.small) == ends(case.given)
    if case.engine == "onnxruntime":
        assert [port.name for port in case.small.graph.input] == ["image"]
        assert case.small.metadata_props == case.model.metadata_props
        onnx.checker.check_model(case.small, full_check=True)


def test_given_model_is_left_as_it_is(case: Case) -> None:
    assert content(case.model) == case.before


def test_weights_are_int8_and_the_file_smaller(case: Case, tmp_path: Path) -> None:
    given = [node.op_type for node in case.model.graph.node]
    # NNCF leaves squeeze-and-excitation in float32: two small convolutions per sigmoid.
    convolutions = given.count("Conv") - 2 * given.count("Sigmoid")
    if case.engine == "onnxruntime":
        kinds = [node.op_type for node in case.small.graph.node]
        tensors = case.small.graph.initializer
        weights = [len(t.dims) for t in tensors if t.data_type == onnx.TensorProto.INT8]
        assert kinds.count("QuantizeLinear") > convolutions // 2  # neighbours share one
    else:
        operations = list(case.small.get_ordered_ops())
        kinds = [op.get_type_name() for op in operations]
        constants = [op for op in operations if op.get_type_name() == "Constant"]
        weights = [len(op.shape) for op in constants if op.get_element_type().to_string() == "i8"]
        assert kinds.count("FakeQuantize") > convolutions // 2
        sizes = []
        for name, saved in (("fp32", case.given), ("int8", case.small)):
            openvino.save_model(saved, tmp_path / f"{name}.xml", compress_to_fp16=False)
            sizes.append((tmp_path / f"{name}.bin").stat().st_size)
        assert sizes[1] < 0.7 * sizes[0]
    assert sum(dimensions >= 4 for dimensions in weights) == convolutions


def test_onnx_file_of_a_network_of_some_size_shrinks_to_a_third(families: Any) -> None:
    config = replace(families["resnet-basic"].config, width=64)
    backbone = ResNet(config)
    model = onnx_model(backbone)
    small = quantize_onnx(model, photos(backbone)[:1])
    assert len(content(small)) < len(content(model)) / 3


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("resnet-bottleneck", "openvino"),
        ("resnet-caffe", "onnxruntime"),
        ("resnet-grouped", "openvino"),
        ("dla-bottleneck", "onnxruntime"),
        ("regnet-x", "onnxruntime"),
    ],
)
def test_other_networks_keep_the_promised_cosine(families: Any, name: str, engine: str) -> None:
    backbone = families[name].build()
    batches = photos(backbone)
    run = opened(quantized(engine, onnx_model(backbone), batches))
    for images in batches:
        check(backbone, engine, run, images)


@pytest.mark.parametrize("engine", ENGINES)
def test_graph_that_normalises_is_quantized_as_well(families: Any, engine: str) -> None:
    backbone = families["resnet-basic"].build()
    pixels = photos(backbone, preprocess=True)
    given = onnx_model(backbone, preprocess=True)
    model = quantized(engine, given, pixels)
    assert ends(model) == ends(to_openvino(given) if engine == "openvino" else given)
    run = opened(model)
    for fed, images in zip(pixels, photos(backbone), strict=True):
        check(backbone, engine, run, images, fed)


@pytest.mark.parametrize("engine", ENGINES)
def test_signed_activations_keep_the_promised_cosine(families: Any, engine: str) -> None:
    backbone = families["resnet-basic"].build(act="silu")
    batches = photos(backbone)
    model = quantized(engine, onnx_model(backbone), batches)
    check(backbone, engine, opened(model), batches[0])


@pytest.mark.parametrize("engine", ENGINES)
def test_fixed_shape_batch_and_an_order_of_ones_own(families: Any, engine: str) -> None:
    backbone = families["resnet-basic"].build(return_idx=(3, 1))
    shape = (2, 96, 64)
    batches = calibration_batches(EXAMPLES, backbone, input_shape=shape)
    model = quantized(engine, onnx_model(backbone, input_shape=shape, dynamic=()), batches)
    run = opened(model)
    assert [m.shape[2] for m in run(batches[0])] == [3, 12]
    check(backbone, engine, run, batches[0])


def states() -> tuple[Any, ...]:
    """Return what NNCF could change of a process."""
    legacy: Any = np.random.get_state()
    return (
        random.getstate(),
        legacy[1].tolist(),
        legacy[2:],
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
        logging.getLoggerClass(),
        logging.getLogger("nncf").level,
        logging.getLogger().level,
        [str(entry) for entry in warnings.filters],
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_same_images_same_graph_and_no_trace_in_the_process(
    families: Any, engine: str, capfd: pytest.CaptureFixture[str]
) -> None:
    backbone = families["resnet-basic"].build(return_idx=(0,))  # it is quantized three times
    model, batches = onnx_model(backbone), photos(backbone)
    first = content(quantized(engine, model, batches))
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    before = states()
    again = content(quantized(engine, model, batches))
    assert states() == before
    assert capfd.readouterr() == ("", "")
    assert again == first
    assert content(quantized(engine, model, batches[:1])) != first  # all images count


@pytest.mark.parametrize("quantize", [quantize_onnx, quantize_openvino])
def test_no_images_are_refused(quantize: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"got no calibration images; give calibration= a folder or a list of ph"
    ):
        quantize(None, [])
