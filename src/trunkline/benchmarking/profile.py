"""Where the time of an engine goes, layer by layer, against what each layer could reach at best."""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.backbones.backbone import Backbone
from trunkline.benchmarking.bench import BenchConfig, seeded_backbone, torch_threads
from trunkline.benchmarking.peak import Peak, measure_peak
from trunkline.benchmarking.report import Shape
from trunkline.errors import ConfigError
from trunkline.runtimes.graphs import INPUT_NAME, example_images
from trunkline.runtimes.onnx_writer import onnx_model
from trunkline.runtimes.optional import require
from trunkline.runtimes.processor import check_precision, processor
from trunkline.runtimes.signal_stack import signal_stack_kept

NUM_LAYERS = 15
_WARM_UP = 2  # runs that are not counted
_FUSED = {"Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh"}  # into a convolution
_PURPOSE = "the profile of a runner"


@dataclass(frozen=True)
class LayerTime:
    """One layer of a graph, as the engine ran it; what was fused into it is part of it.

    Attributes:
        name: Where it stands in the backbone, for a convolution; else the engine's own name.
        kind: What the engine calls such a layer.
        ms: Milliseconds, median over the rounds.
        share: Of the time of all layers.
        gflops: 10⁹ operations per second; None for what is no convolution.
        peak_share: Of the convolution peak; None for what is no convolution.
    """

    name: str
    kind: str
    ms: float
    share: float
    gflops: float | None
    peak_share: float | None


@dataclass(frozen=True)
class Profile:
    """The slowest layers of one backbone at one shape on one engine.

    Attributes:
        backbone: Name of the variant.
        shape: (N, H, W) of the images.
        runtime: ``"onnxruntime"`` or ``"openvino"``.
        precision: ``"fp32"`` or ``"bf16"``.
        total_ms: Of all layers.
        num_layers: That were run.
        peak_gflops: The convolution peak, 10⁹ operations per second.
        peak_share: Of all convolutions' operations over the time of all layers.
        kinds: Share of the time by kind of layer, the largest first.
        layers: The slowest first, ``NUM_LAYERS`` at most.
    """

    backbone: str
    shape: Shape
    runtime: str
    precision: str
    total_ms: float
    num_layers: int
    peak_gflops: float
    peak_share: float
    kinds: dict[str, float]
    layers: tuple[LayerTime, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return asdict(self)


@dataclass(frozen=True)
class _Timed:
    """A layer in the words of an engine, and its time in seconds."""

    name: str
    kind: str
    seconds: float


def profile_runners(
    names: Sequence[str],
    config: BenchConfig,
    *,
    progress: Callable[[str], None] | None = None,
) -> list[Profile]:
    """Profile backbones on the engines that have a profiler.

    Args:
        names: Of variants.
        config: As for ``bench``; runtimes are ``"onnxruntime"`` and ``"openvino"``, both if they
            were left at their default.
        progress: Told, in words, what is measured next.

    Returns:
        One profile per backbone, shape, runtime and precision.

    Raises:
        ConfigError: Another runtime, or a comparison with peers.
        PrecisionError: A precision that the engine or the processor lacks.
        NotInstalledError: An engine that cannot be imported.
    """
    runtimes = tuple(_PROFILERS) if config.runtimes == BenchConfig().runtimes else config.runtimes
    others = [name for name in runtimes if name not in _PROFILERS] + list(config.against)
    if others or "int8" in config.precisions:
        raise ConfigError(
            f"--profile got {others[0] if others else 'int8'}; it works with the runtimes "
            f"{' and '.join(_PROFILERS)} in fp32 and bf16, and without --against."
        )
    machine, tell = processor(), progress or (lambda _: None)
    threads = config.threads or machine.cores
    for runtime in runtimes:
        for precision in config.precisions:
            check_precision(precision, runtime, machine)
    profiles = []
    with torch_threads(threads):
        peaks = [measure_peak(threads, precision) for precision in config.precisions]
        for name, shape in itertools.product(names, config.shapes):
            tell(f"{name} at {'x'.join(map(str, shape))}")
            backbone = seeded_backbone(name, config.weights)
            model = onnx_model(backbone, input_shape=shape, dynamic=())
            images = example_images(backbone, *shape, preprocess=False).numpy()
            for runtime, peak in itertools.product(runtimes, peaks):
                run = _PROFILERS[runtime]
                timed = run(model, images, config.rounds, threads, peak.precision)
                profiles.append(summarize_profile(backbone, shape, runtime, timed, model, peak))
    return profiles


def summarize_profile(
    backbone: Backbone,
    shape: Shape,
    runtime: str,
    timed: Sequence[_Timed],
    model: Any,
    peak: Peak,
) -> Profile:
    """Put what an engine told beside what its convolutions had to compute.

    Args:
        backbone: That was run.
        shape: (N, H, W) of the images.
        runtime: The engine.
        timed: All layers that it ran.
        model: The graph that it read, with fixed sizes.
        peak: What a convolution reaches at best here.
    """
    total = sum(layer.seconds for layer in timed)
    slowest = sorted(timed, key=lambda layer: -layer.seconds)[:NUM_LAYERS]
    known = _convolutions(model)
    kinds: dict[str, float] = {}
    for one in timed:
        kinds[one.kind] = kinds.get(one.kind, 0.0) + one.seconds / total
    batch, height, width = shape
    operations_of_all = 2 * batch * backbone.macs(height, width)
    return Profile(
        backbone=str(backbone.variant),
        shape=shape,
        runtime=runtime,
        precision=peak.precision,
        total_ms=total * 1e3,
        num_layers=len(timed),
        peak_gflops=peak.gflops,
        peak_share=operations_of_all / total / 1e9 / peak.gflops,
        kinds=dict(sorted(kinds.items(), key=lambda item: -item[1])),
        layers=tuple(_layer_time(one, known, total, peak) for one in slowest),
    )


def _layer_time(
    one: _Timed, known: Mapping[str, tuple[str, int]], total: float, peak: Peak
) -> LayerTime:
    name, operations = known.get(_value_name(one.name), (one.name, None))
    gflops = None if operations is None else operations / max(one.seconds, 1e-9) / 1e9
    return LayerTime(
        name=name,
        kind=one.kind,
        ms=one.seconds * 1e3,
        share=one.seconds / total,
        gflops=gflops,
        peak_share=None if gflops is None else gflops / peak.gflops,
    )


def _convolutions(model: Any) -> dict[str, tuple[str, int]]:
    """Return name and operations of every convolution, by the values that it may be known by."""
    onnx = require("onnx", _PURPOSE)
    graph = onnx.shape_inference.infer_shapes(model).graph
    sizes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output)
    }
    weights = {value.name: list(value.dims) for value in graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    known = {}
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        made, weight = node.output[0], node.input[1]
        macs = int(np.prod(sizes[made])) * int(np.prod(weights[weight][1:]))
        known[made] = (weight.removesuffix(".weight").removesuffix(".conv"), 2 * macs)
        # An engine that fuses an activation calls both by the name of its result.
        after = readers.get(made, [])
        if len(after) == 1 and after[0].op_type in _FUSED:
            known[after[0].output[0]] = known[made]
    return known


def _value_name(layer: str) -> str:
    """Return the value that a layer makes from the engines' spellings of its name."""
    for suffix in ("_nchwc", "/WithoutBiases"):
        layer = layer.removesuffix(suffix)
    return layer.removeprefix("node_")


def _profile_onnxruntime(
    model: Any, images: NDArray[np.float32], rounds: int, threads: int, _precision: str
) -> list[_Timed]:
    engine = require("onnxruntime", _PURPOSE)
    options = engine.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="trunkline-profile-") as folder:
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = engine.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for _ in range(_WARM_UP + rounds):
            session.run(None, {INPUT_NAME: images})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    ends = "_kernel_time"
    nodes: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(ends):
            nodes.setdefault(event["args"]["node_index"], []).append(event)
    return [
        _Timed(
            seen[0]["name"].removesuffix(ends),
            seen[0]["args"]["op_name"],
            statistics.median(event["dur"] for event in seen[_WARM_UP:]) / 1e6,
        )
        for seen in nodes.values()
    ]


def _profile_openvino(
    model: Any, images: NDArray[np.float32], rounds: int, threads: int, precision: str
) -> list[_Timed]:
    engine = require("openvino", _PURPOSE)
    core = engine.Core()
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "PERF_COUNT": True,
    }
    graph = core.read_model(model.SerializeToString(), b"")
    with signal_stack_kept():
        request = core.compile_model(graph, "CPU", options).create_infer_request()
    kinds: dict[str, str] = {}
    seconds: dict[str, list[float]] = {}
    for number in range(_WARM_UP + rounds):
        request.infer({0: images})
        for one in request.get_profiling_info():
            if number >= _WARM_UP and one.status == engine.ProfilingInfo.Status.EXECUTED:
                kinds[one.node_name] = one.node_type
                seconds.setdefault(one.node_name, []).append(one.real_time.total_seconds())
    return [_Timed(name, kinds[name], statistics.median(seen)) for name, seen in seconds.items()]


_Profiler = Callable[[Any, NDArray[np.float32], int, int, str], list[_Timed]]
_PROFILERS: dict[str, _Profiler] = {
    "onnxruntime": _profile_onnxruntime,
    "openvino": _profile_openvino,
}
