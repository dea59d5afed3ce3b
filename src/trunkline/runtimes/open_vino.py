"""OpenVINO on the processor.

Source: https://docs.openvino.ai, "CPU Device" and "Optimizing Inference".
"""

from __future__ import annotations

import io
import queue
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from trunkline.errors import RunnerError
from trunkline.runtimes.engine import Maps, Spec, in_one_line
from trunkline.runtimes.optional import require

GRAPH, WEIGHTS = "model.xml", "model.bin"
COMPILED = "compiled.blob"

# OpenVINO takes bf16 by itself where the processor has it; fp32 has to be asked for.
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


class OpenVinoEngine:
    """One compiled model, and a request for each call that runs at the same time.

    Args:
        graph: An ``openvino.Model``, or a serialised ONNX model. It may be changed.
        spec: What it computes.
    """

    name: ClassVar[str] = "openvino"

    def __init__(self, graph: Any, spec: Spec) -> None:
        core = self._core()
        model = self.read(graph) if isinstance(graph, bytes) else graph
        if spec.input_shape is not None:
            n, height, width = spec.input_shape
            sides = (height, width)
            shape = (
                (n, *sides, spec.in_channels) if spec.preprocess else (n, spec.in_channels, *sides)
            )
            model.reshape(list(shape))
        self._model: Any = model
        self._start(core.compile_model(model, "CPU", _properties(spec)))

    def _start(self, compiled: Any) -> None:
        self._compiled = compiled
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()

    @staticmethod
    def _core() -> Any:
        return require("openvino", "runtime 'openvino'").Core()

    @classmethod
    def read(cls, graph: bytes) -> Any:
        """Return the ``openvino.Model`` of a serialised ONNX model."""
        return cls._core().read_model(graph, b"")

    def run(self, images: NDArray[Any]) -> Maps:
        """Compute the maps; see ``Engine``."""
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            request = self._compiled.create_infer_request()
        try:
            results = request.infer([images], share_inputs=True)
            return [results[index] for index in range(len(results))]
        finally:
            self._idle.put(request)

    def save(self, folder: Path) -> None:
        """Write the graph, and what this machine made of it."""
        openvino = require("openvino", "runtime 'openvino'")
        openvino.save_model(self._model, str(folder / GRAPH), compress_to_fp16=False)
        Path(folder, COMPILED).write_bytes(self._compiled.export_model().getvalue())

    @classmethod
    def files(cls, *, same_machine: bool) -> tuple[str, ...]:
        """Return the files that ``load`` opens."""
        return (COMPILED,) if same_machine else (GRAPH, WEIGHTS)

    @classmethod
    def load(cls, folder: Path, spec: Spec, *, same_machine: bool) -> OpenVinoEngine:
        """Open what ``save`` wrote; what was compiled for another machine is compiled anew."""
        core = cls._core()
        try:
            if not same_machine:
                return cls(core.read_model(str(folder / GRAPH)), spec)
            engine = cls.__new__(cls)
            blob = io.BytesIO(Path(folder, COMPILED).read_bytes())
            engine._start(core.import_model(blob, "CPU", _properties(spec)))
            return engine
        except RuntimeError as error:
            raise RunnerError(
                f"OpenVINO cannot open the runner: {in_one_line(error)}; deploy the backbone again "
                "on this machine."
            ) from error


def _properties(spec: Spec) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",  # all threads work on one call
        "INFERENCE_NUM_THREADS": spec.threads,
        "INFERENCE_PRECISION_HINT": _HINTS[spec.precision],
    }
