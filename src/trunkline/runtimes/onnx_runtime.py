"""ONNX Runtime on the processor: convolutions in its blocked layout, fused with what follows them.

Source: https://onnxruntime.ai/docs/performance (threading, graph optimisations).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from trunkline.errors import RunnerError
from trunkline.runtimes.engine import Maps, Spec, in_one_line
from trunkline.runtimes.optional import require

GRAPH = "model.onnx"
COMPILED = "optimized.onnx"


class OnnxRuntimeEngine:
    """One session.

    Args:
        graph: A serialised model.
        spec: What it computes.
    """

    name: ClassVar[str] = "onnxruntime"

    def __init__(self, graph: bytes, spec: Spec) -> None:
        self._graph = graph
        self._spec = spec
        self._session = self._open(graph)

    def _open(self, source: bytes | str, *, compiled: bool = False, keep: str = "") -> Any:
        runtime = require("onnxruntime", "runtime 'onnxruntime'")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self._spec.threads
        options.log_severity_level = 3  # errors: it warns of fusions that it leaves out
        # Waiting threads burn their core for a while in case more work comes. Between two calls
        # that core belongs to whoever decodes the next image.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if compiled:
            level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.graph_optimization_level = level
        if keep:
            options.optimized_model_filepath = keep
        if self._spec.input_shape is not None:
            for axis, size in zip(
                ("batch", "height", "width"), self._spec.input_shape, strict=True
            ):
                options.add_free_dimension_override_by_name(axis, size)
        try:
            return runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # it has a class for every status code
            raise RunnerError(
                f"ONNX Runtime {runtime.__version__} cannot open the graph: {in_one_line(error)}; "
                "deploy the backbone again on this machine."
            ) from error

    def run(self, images: NDArray[Any]) -> Maps:
        """Compute the maps; see ``Engine``."""
        maps: Maps = self._session.run(None, {"image": images})
        return maps

    def save(self, folder: Path) -> None:
        """Write the graph, and what this machine made of it."""
        graph = Path(folder, GRAPH)
        graph.write_bytes(self._graph)
        self._open(str(graph), keep=str(Path(folder, COMPILED)))

    @classmethod
    def files(cls, *, same_machine: bool) -> tuple[str, ...]:
        """Return the files that ``load`` opens."""
        return (COMPILED,) if same_machine else (GRAPH,)

    @classmethod
    def load(cls, folder: Path, spec: Spec, *, same_machine: bool) -> OnnxRuntimeEngine:
        """Open what ``save`` wrote; what was compiled for another machine is compiled anew."""
        engine = cls.__new__(cls)
        engine._spec = spec
        file = Path(folder, COMPILED if same_machine else GRAPH)
        engine._session = engine._open(str(file), compiled=same_machine)
        return engine
