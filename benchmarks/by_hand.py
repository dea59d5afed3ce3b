"""What people build by hand today to make a timm network fast, each as its own manual says.

Every function takes the network in eval mode, the images whose size it may count on, and how many
threads it may use, and returns what computes the maps of these images once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[[], object]


def openvino(network: nn.Module, images: Tensor, threads: int) -> Run:
    """``ov.convert_model`` of the PyTorch network, compiled for latency."""
    import openvino as ov  # type: ignore[import-untyped, unused-ignore]

    with torch.no_grad():
        model = ov.convert_model(network, example_input=images, input=list(images.shape))
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    compiled = ov.compile_model(model, "CPU", options)
    array = images.numpy()
    return lambda: compiled(array)


def onnxruntime(network: nn.Module, images: Tensor, threads: int) -> Run:
    """``torch.onnx.export`` with its default exporter, and a session with its default options."""
    import onnxruntime as ort  # type: ignore[import-untyped, unused-ignore]

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.onnx")
        with torch.no_grad():
            torch.onnx.export(
                network, (images,), path, dynamo=True, external_data=False, verbose=False
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name, array = session.get_inputs()[0].name, images.numpy()
    return lambda: session.run(None, {name: array})


def inductor(network: nn.Module, images: Tensor, _threads: int) -> Run:
    """``torch.compile`` with freezing, which packs the weights for the processor."""
    config: Any = import_module("torch._inductor.config")
    config.freezing = True
    compiled = torch.compile(network)

    def run() -> object:
        with torch.no_grad():
            return compiled(images)

    run()  # compiled while the setting is made
    return run


BY_HAND: dict[str, Callable[[nn.Module, Tensor, int], Run]] = {
    "OpenVINO": openvino,
    "ONNX Runtime": onnxruntime,
    "inductor": inductor,
}
