"""How each format makes its graph, writes it, and gives its maps again from the written file."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import Dim

from trunkline.backbones.backbone import Backbone
from trunkline.errors import DeploymentError, OutputError
from trunkline.runtimes.export_config import ExportConfig
from trunkline.runtimes.graphs import AXES, INPUT_NAME, TRACING, example_images, network_of
from trunkline.runtimes.onnx_writer import onnx_model
from trunkline.runtimes.optional import require
from trunkline.runtimes.programs import exported, open_program, write_program
from trunkline.runtimes.signal_stack import signal_stack_kept
from trunkline.runtimes.telemetry import unreported

Batches = Sequence[NDArray[Any]]
Maps = Callable[[NDArray[Any]], list[NDArray[np.float32]]]

MESSAGE_BYTES = 2_000_000_000
"""Weights that fit into one ONNX file: its format ends at 2 GiB, and the operators take some."""

METADATA_FILE = "trunkline.json"
"""Where files of PyTorch's formats have their metadata: this name among their extra files."""

TRACED = (2, 64, 96)
"""(N, H, W) at which dynamic axes are traced: 1 would become a constant, equal sizes one size."""


@dataclass(frozen=True)
class Exporter:
    """The three steps of one format.

    Attributes:
        make: Backbone, choices, metadata and calibration images (none unless int8) → graph, in
            memory.
        write: Graph and path → file, and others beside it where the format needs them.
        load: Path and names of the outputs → what computes them, as a user's program would.
    """

    make: Callable[[Backbone, ExportConfig, Mapping[str, str], Batches], Any]
    write: Callable[[Any, Path], None]
    load: Callable[[Path, Sequence[str]], Maps]


@contextmanager
def _refusals(engine: str, *kinds: Any) -> Iterator[None]:
    """Say which engine refuses a graph, and what can be done about it."""
    refused: tuple[type[Exception], ...] = (RuntimeError, *kinds)
    try:
        yield
    except refused as error:
        raise DeploymentError(
            f"{engine} refuses the graph: {' '.join(str(error).split())[:300]}; "
            "update it, or use a lower opset or another format."
        ) from error


def _make_fp32(backbone: Backbone, config: ExportConfig) -> Any:
    n, h, w = config.input_shape
    return onnx_model(
        backbone,
        input_shape=(n, h, w),
        dynamic=config.dynamic,
        preprocess=config.preprocess,
        opset=config.opset,
    )


def _make_onnx(
    backbone: Backbone, config: ExportConfig, metadata: Mapping[str, str], batches: Batches
) -> Any:
    require("onnxruntime", "the check of an ONNX file")  # missing: known before anything is made
    model = _make_fp32(backbone, config)
    if batches:
        from trunkline.runtimes.quantization import quantize_onnx

        # Sizes are fixed afterwards: photos need not come in the batches that the file takes.
        static = model.graph
        model = quantize_onnx(_make_fp32(backbone, replace(config, dynamic=AXES)), batches)
        for ours, wanted in (
            (model.graph.input, static.input),
            (model.graph.output, static.output),
        ):
            for one, other in zip(ours, wanted, strict=True):
                one.CopyFrom(other)
    require("onnx", "an ONNX file").helper.set_model_props(model, dict(metadata))
    return model


def _weight_bytes(model: Any) -> int:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def _write_onnx(model: Any, path: Path) -> None:
    onnx = require("onnx", "an ONNX file")
    apart = _weight_bytes(model) > MESSAGE_BYTES
    onnx.save_model(model, path, save_as_external_data=apart, location=f"{path.name}.data")
    with _refusals("onnx.checker", onnx.checker.ValidationError):
        onnx.checker.check_model(str(path), full_check=True)


def _load_onnx(path: Path, names: Sequence[str]) -> Maps:
    ort = require("onnxruntime", "the check of an ONNX file")
    errors = ort.capi.onnxruntime_pybind11_state
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors: a library is silent
    with _refusals("onnxruntime", errors.Fail, errors.InvalidGraph, errors.NotImplemented):
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: NDArray[Any]) -> list[NDArray[np.float32]]:
        maps: list[NDArray[np.float32]] = session.run(list(names), {INPUT_NAME: images})
        return maps

    return run


def _openvino(purpose: str) -> Any:
    with unreported():
        return require("openvino", purpose)


def _make_openvino(
    backbone: Backbone, config: ExportConfig, metadata: Mapping[str, str], batches: Batches
) -> Any:
    ov = _openvino("an OpenVINO file")
    model = _make_fp32(backbone, replace(config, dynamic=AXES))
    if (size := _weight_bytes(model)) > MESSAGE_BYTES:
        raise DeploymentError(
            f"the backbone has {size / 1e9:.1f} GB of weights, and OpenVINO reads it as one ONNX "
            "message of at most 2 GB; use format='onnx' or 'torch-export'."
        )
    with _refusals("openvino"):
        graph = ov.Core().read_model(model.SerializeToString())
    if batches:
        from trunkline.runtimes.quantization import quantize_openvino

        graph = quantize_openvino(graph, batches)
    n, h, w = config.sized(-1, -1, -1)
    c = backbone.in_channels
    graph.reshape([n, h, w, c] if config.preprocess else [n, c, h, w])
    layout = "NHWC" if config.preprocess else "NCHW"
    graph.get_parameters()[0].set_layout(ov.Layout(layout))
    for key, value in metadata.items():
        graph.set_rt_info(value, key.split("."))
    return graph


def _write_openvino(graph: Any, path: Path) -> None:
    ov = _openvino("an OpenVINO file")
    try:  # compressed weights would be another network's, within half precision
        ov.save_model(graph, path, compress_to_fp16=False)
    except RuntimeError as error:  # what its streams make of a full disk
        raise OutputError(
            f"{path.name} cannot be written: {' '.join(str(error).split())}; "
            "see whether the disk is full, or choose another place."
        ) from error


def _load_openvino(path: Path, names: Sequence[str]) -> Maps:
    ov = _openvino("the check of an OpenVINO file")
    # Some processors would compute in bfloat16 otherwise: not what the file holds.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    with _refusals("openvino"), signal_stack_kept():
        compiled = ov.Core().compile_model(path, "CPU", settings)

    def run(images: NDArray[Any]) -> list[NDArray[np.float32]]:
        results = compiled({INPUT_NAME: images})
        return [np.array(results[name]) for name in names]

    return run


def _traced_images(backbone: Backbone, config: ExportConfig) -> torch.Tensor:
    return example_images(backbone, *config.sized(*TRACED), preprocess=config.preprocess)


def _make_program(
    backbone: Backbone, config: ExportConfig, metadata: Mapping[str, str], _batches: Batches
) -> Any:
    places = (0, 1, 2) if config.preprocess else (0, 2, 3)
    free = {
        place: Dim.DYNAMIC
        for place, axis in zip(places, AXES, strict=True)
        if axis in config.dynamic
    }
    network = network_of(backbone, preprocess=config.preprocess)
    return exported(network, _traced_images(backbone, config), free), json.dumps(metadata)


def _write_program(made: tuple[Any, str], path: Path) -> None:
    program, metadata = made
    write_program(program, path, {METADATA_FILE: metadata})


def _load_program(path: Path, _names: Sequence[str]) -> Maps:
    return _from_torch(open_program(path))  # which was just written


def _from_torch(network: Callable[[torch.Tensor], list[torch.Tensor]]) -> Maps:
    @torch.inference_mode()
    def run(images: NDArray[Any]) -> list[NDArray[np.float32]]:
        return [one.numpy() for one in network(torch.from_numpy(images))]

    return run


@contextmanager
def _old_format() -> Iterator[None]:
    """Keep to ourselves that PyTorch prefers torch.export: the user asked for the old format."""
    with TRACING, warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", r".*`?torch\.jit\.", category)
        yield


def _make_script(
    backbone: Backbone, config: ExportConfig, metadata: Mapping[str, str], _batches: Batches
) -> Any:
    network = network_of(backbone, preprocess=config.preprocess)
    images = _traced_images(backbone, config)
    with _old_format(), torch.no_grad():
        # Not strict, as the network returns a list; unchecked, as the written file is.
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            network, images, check_trace=False, strict=False
        )
    return traced, json.dumps(metadata)


def _write_script(made: tuple[Any, str], path: Path) -> None:
    traced, metadata = made
    written = io.BytesIO()
    with _old_format():
        torch.jit.save(traced, written, _extra_files={METADATA_FILE: metadata})
    path.write_bytes(written.getbuffer())


def _load_script(path: Path, _names: Sequence[str]) -> Maps:
    with _old_format():
        return _from_torch(torch.jit.load(path))  # type: ignore[no-untyped-call]


EXPORTERS: dict[str, Exporter] = {
    "onnx": Exporter(_make_onnx, _write_onnx, _load_onnx),
    "openvino": Exporter(_make_openvino, _write_openvino, _load_openvino),
    "torch-export": Exporter(_make_program, _write_program, _load_program),
    "torchscript": Exporter(_make_script, _write_script, _load_script),
}
