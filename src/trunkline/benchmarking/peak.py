"""The most that this machine computes in a convolution, as the engines reach it.

What a layer could reach at best is not what the processor's data sheet says: clocks fall under
vector load, and neighbours share memory. So the peak is measured, with the shapes that these
networks are made of, by every engine that is installed, in the same process as what it is
compared with. A chain of convolutions with weights of their own keeps the caches as busy as a
network does. Two operations per multiply-accumulate, counted as a plain convolution needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from trunkline.errors import ConfigError
from trunkline.runtimes.optional import is_installed, require
from trunkline.runtimes.signal_stack import signal_stack_kept
from trunkline.runtimes.timing import Clocks, take_turns

_ROUNDS = 2  # per shape, to find the best; whoever reports a share times the winner anew
_OPSET, _IR_VERSION = 18, 10  # what every supported version of the engines reads


@dataclass(frozen=True)
class ConvShape:
    """A dense convolution with stride 1 that keeps its size, and how many stand in a row.

    Attributes:
        batch: Images.
        channels: In and out.
        size: Height and width of the map.
        kernel: 1 or 3.
        depth: Convolutions in the chain.
    """

    batch: int
    channels: int
    size: int
    kernel: int
    depth: int = 3

    @property
    def operations(self) -> int:
        """Floating-point operations of the chain."""
        weights = self.channels**2 * self.kernel**2
        return 2 * self.depth * self.batch * weights * self.size**2

    def __str__(self) -> str:
        maps = f"{self.batch}×{self.channels}×{self.size}²"
        return f"{self.kernel}×{self.kernel} convolution at {maps}"


SHAPES = (
    ConvShape(8, 64, 56, 3),
    ConvShape(8, 128, 28, 3),
    ConvShape(8, 256, 14, 3),
    ConvShape(8, 512, 7, 3),
    ConvShape(8, 256, 56, 1, depth=2),
    ConvShape(8, 512, 28, 1),
    ConvShape(8, 1024, 14, 1),
)


@dataclass(frozen=True)
class Peak:
    """The best convolution of this machine.

    Attributes:
        precision: ``"fp32"`` or ``"bf16"``.
        gflops: Of the fastest engine and shape, 10⁹ operations per second.
        engine: Which engine that was.
        shape: Which convolution.
        run: Computes the chain once, so that it can be timed beside a network.
    """

    precision: str
    gflops: float
    engine: str
    shape: ConvShape
    run: Callable[[], object] = field(repr=False, compare=False)


def measure_peak(
    threads: int,
    precision: str = "fp32",
    *,
    shapes: Sequence[ConvShape] = SHAPES,
    clocks: Clocks | None = None,
) -> Peak:
    """Find the fastest convolution over the shapes and the engines that are installed.

    Args:
        threads: Of each engine, 1 or more. PyTorch's own number is the caller's to set.
        precision: ``"fp32"`` or ``"bf16"``; ask for the latter where the processor has it.
        shapes: Which convolutions.
        clocks: None for the machine's own.

    Raises:
        ConfigError: Another precision.
    """
    if precision not in ("fp32", "bf16"):
        raise ConfigError(f"no convolution peak for {precision!r}; allowed: fp32, bf16.")
    best: Peak | None = None
    for shape in shapes:
        runs = _chains(shape, threads, precision)
        for engine, seconds in take_turns(runs, _ROUNDS, clocks=clocks).items():
            gflops = shape.operations / min(seconds) / 1e9
            if best is None or gflops > best.gflops:
                best = Peak(precision, gflops, engine, shape, runs[engine])
    if best is None:
        raise ConfigError("no shapes to measure the convolution peak with; give one or more.")
    return best


def _chains(shape: ConvShape, threads: int, precision: str) -> dict[str, Callable[[], object]]:
    """Return the same chain by every engine that is installed and has the precision."""
    generator = np.random.default_rng(0)
    maps = (shape.batch, shape.channels, shape.size, shape.size)
    images = generator.standard_normal(maps, dtype=np.float32)
    kernel = (shape.channels, shape.channels, shape.kernel, shape.kernel)
    spread = np.float32(np.sqrt(1 / np.prod(kernel[1:])))  # values neither grow nor fade
    weights = [
        generator.standard_normal(kernel, dtype=np.float32) * spread for _ in range(shape.depth)
    ]
    runs = {"torch": _torch_chain(images, weights, precision)}
    if is_installed("onnx") and is_installed("onnxruntime") and precision == "fp32":
        runs["onnxruntime"] = _onnxruntime_chain(images, weights, threads)
    if is_installed("onnx") and is_installed("openvino"):
        runs["openvino"] = _openvino_chain(images, weights, threads, precision)
    return runs


def _torch_chain(
    images: NDArray[np.float32], weights: Sequence[NDArray[np.float32]], precision: str
) -> Callable[[], object]:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    layout = torch.channels_last
    start = torch.from_numpy(images).to(dtype=dtype, memory_format=layout)
    kernels = [torch.from_numpy(w).to(dtype=dtype, memory_format=layout) for w in weights]

    def run() -> object:
        x = start
        with torch.inference_mode():
            for kernel in kernels:
                x = torch.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
        return x

    return run


def _onnxruntime_chain(
    images: NDArray[np.float32], weights: Sequence[NDArray[np.float32]], threads: int
) -> Callable[[], object]:
    engine = require("onnxruntime", "the convolution peak")
    options = engine.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = engine.InferenceSession(
        _chain_model(images, weights), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"x": images})


def _openvino_chain(
    images: NDArray[np.float32],
    weights: Sequence[NDArray[np.float32]],
    threads: int,
    precision: str,
) -> Callable[[], object]:
    engine = require("openvino", "the convolution peak")
    core = engine.Core()
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }
    model = core.read_model(_chain_model(images, weights), b"")
    with signal_stack_kept():
        request = core.compile_model(model, "CPU", options).create_infer_request()
    return lambda: request.infer({0: images}, share_inputs=True)


def _chain_model(images: NDArray[np.float32], weights: Sequence[NDArray[np.float32]]) -> bytes:
    """Return the chain as an ONNX file."""
    onnx = require("onnx", "the convolution peak")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    names = ["x", *(f"x{number}" for number in range(1, len(weights) + 1))]
    pad = [weights[0].shape[-1] // 2] * 4
    nodes = [
        helper.make_node("Conv", [names[i], f"w{i}"], [names[i + 1]], pads=pad)
        for i in range(len(weights))
    ]
    ends = [helper.make_tensor_value_info(name, kind, images.shape) for name in ("x", names[-1])]
    stored = [onnx.numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], stored)
    opset = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=_IR_VERSION)
    return bytes(model.SerializeToString())
