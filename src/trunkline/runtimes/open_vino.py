"""OpenVINO on the processor.

A batch that can be dealt out evenly to the threads is, as in ``trunkline.runtimes.onnx_runtime``.

Source: https://docs.openvino.ai, "CPU Device" and "Optimizing Inference".
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trunkline.errors import RunnerError, TrunklineError
from trunkline.runtimes.engine import Maps, Spec, empty_maps, in_one_line, map_shapes, parts_of
from trunkline.runtimes.graph_checks import check_openvino, check_openvino_file
from trunkline.runtimes.optional import require
from trunkline.runtimes.signal_stack import signal_stack_kept

GRAPH, WEIGHTS = "model.xml", "model.bin"
# Layers that are kept compiled for the sizes that came; about 25 sizes of a network of 40 layers.
# The default lets a process that meets sizes of all kinds grow by a MiB with each of them:
# benchmarks/many_sizes.py.
_KEPT_KERNELS = "1024"
COMPILED = "compiled.blob"

# OpenVINO takes bf16 by itself where the processor has it; fp32 has to be asked for.
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


class OpenVinoEngine:
    """A compiled model for single images, one for images dealt out to threads, or both.

    Args:
        graph: An ``openvino.Model``, or a serialised ONNX model. It may be changed.
        spec: What it computes.
    """

    name: ClassVar[str] = "openvino"
    runs_code: ClassVar[Mapping[str, str]] = {}

    def __init__(self, graph: Any, spec: Spec) -> None:
        model = self.read(graph) if isinstance(graph, bytes) else graph
        if spec.input_shape is not None:
            n, height, width = spec.input_shape
            n //= parts_of(n, spec)
            shape = [n, spec.in_channels, height, width]
            model.reshape([n, height, width, spec.in_channels] if spec.preprocess else shape)
        self._model: Any = model
        self._set_up(lambda properties: _core().compile_model(model, "CPU", properties), spec)

    def _set_up(self, compiler: Callable[[dict[str, Any]], Any], spec: Spec) -> None:
        self._compiler, self._spec = compiler, spec
        self._lock = threading.Lock()
        self._compiled: dict[int, Any] = {}  # by the number of parts of a batch
        self._idle: dict[int, queue.SimpleQueue[Any]] = {}
        self._expected = 1 if spec.input_shape is None else parts_of(spec.input_shape[0], spec)
        self._requests(self._expected, 0)

    def _requests(self, parts: int, number: int) -> list[Any]:
        """Return idle requests for a batch in so many parts."""
        with self._lock:
            if parts not in self._compiled:
                with signal_stack_kept():
                    self._compiled[parts] = self._compiler(_properties(self._spec, parts))
                self._idle[parts] = queue.SimpleQueue()
        taken: list[Any] = []
        while len(taken) < number:
            try:
                taken.append(self._idle[parts].get_nowait())
            except queue.Empty:
                taken.append(self._compiled[parts].create_infer_request())
        return taken

    @classmethod
    def read(cls, graph: bytes) -> Any:
        """Return the ``openvino.Model`` of a serialised ONNX model."""
        return _core().read_model(graph, b"")

    def run(self, images: NDArray[Any]) -> Maps:
        """Compute the maps; see ``Engine``."""
        parts = parts_of(len(images), self._spec)
        requests = self._requests(parts, parts)
        try:
            maps = self._computed(images, requests)
            self._check(images, maps)
        except Exception:
            self._forget(parts)
            raise
        for request in requests:
            self._idle[parts].put(request)
        return maps

    def _check(self, images: NDArray[Any], maps: Maps) -> None:
        """Make sure that the maps are those of the images.

        Where OpenVINO gets no memory it may return the maps of an earlier call, without an error.
        """
        if [one.shape for one in maps] != map_shapes(images, self._spec):
            raise MemoryError("OpenVINO returned no maps for these images, for want of memory")

    def _forget(self, parts: int) -> None:
        """Compile anew for the next call.

        A model that got no memory goes on with the images of that call, or its maps, whatever it
        is given next, and by whichever request.
        """
        with self._lock:
            self._compiled.pop(parts, None)

    def _computed(self, images: NDArray[Any], requests: list[Any]) -> Maps:
        if len(requests) == 1:
            results = requests[0].infer([images], share_inputs=True)
            return [results[index] for index in range(len(results))]
        maps = empty_maps(images, self._spec)
        size = len(images) // len(requests)
        for number, request in enumerate(requests):
            part = slice(number * size, (number + 1) * size)
            _bind(request, images[part], [one[part] for one in maps])
            request.start_async()
        for request in requests:
            request.wait()
        return maps

    def save(self, folder: Path) -> None:
        """Write the graph, and what this machine made of it."""
        openvino = require("openvino", "runtime 'openvino'")
        openvino.save_model(self._model, str(folder / GRAPH), compress_to_fp16=False)
        self._requests(self._expected, 0)  # which an error may have made it forget
        compiled = self._compiled[self._expected]
        Path(folder, COMPILED).write_bytes(compiled.export_model().getvalue())

    @classmethod
    def files(cls, _names: Collection[str], *, compiled: bool) -> tuple[str, ...]:
        """Return the files that ``load`` opens."""
        return (COMPILED,) if compiled else (GRAPH, WEIGHTS)

    @classmethod
    def load(
        cls, files: Sequence[Path], spec: Spec, *, compiled: bool, ours: bool
    ) -> OpenVinoEngine:
        """Open what ``save`` wrote; what was compiled for another machine is compiled anew."""
        with _refusals():
            if compiled:
                return cls._imported(files[0], spec)
            graph, weights = files
            if not ours:
                check_openvino_file(graph)
            model = _core().read_model(str(graph), str(weights))
            if not ours:
                check_openvino(model, graph)
            return cls(model, spec)

    @classmethod
    def _imported(cls, compiled: Path, spec: Spec) -> OpenVinoEngine:
        # Mapped, not read: the weights are in memory once. The engine keeps pointing into it.
        mapped = np.memmap(compiled, np.uint8, "c")
        blob = require("openvino", "runtime 'openvino'").Tensor(mapped, shared_memory=True)
        engine = cls.__new__(cls)
        engine._set_up(lambda properties: _core().import_model(blob, "CPU", properties), spec)
        return engine


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except TrunklineError:
        raise
    except Exception as error:  # its own, and UnicodeDecodeError where its text quotes the file
        raise RunnerError(
            f"OpenVINO cannot open the runner: {in_one_line(error)}; deploy the backbone again "
            "on this machine."
        ) from error


def _core() -> Any:
    return require("openvino", "runtime 'openvino'").Core()


def _bind(request: Any, images: NDArray[Any], maps: Maps) -> None:
    """Tell a request where its images are and where its maps shall go."""
    tensor = require("openvino", "runtime 'openvino'").Tensor
    request.set_input_tensor(0, tensor(images, shared_memory=True))
    for index, one in enumerate(maps):
        request.set_output_tensor(index, tensor(one, shared_memory=True))


def _properties(spec: Spec, parts: int) -> dict[str, Any]:
    return {
        # All threads work on one image, or each stream has a thread of its own.
        **({"PERFORMANCE_HINT": "LATENCY"} if parts == 1 else {"NUM_STREAMS": parts}),
        "INFERENCE_NUM_THREADS": spec.threads,
        "INFERENCE_PRECISION_HINT": _HINTS[spec.precision],
        "CPU_RUNTIME_CACHE_CAPACITY": _KEPT_KERNELS,
    }
