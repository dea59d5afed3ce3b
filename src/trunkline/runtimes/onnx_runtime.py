"""ONNX Runtime on the processor: convolutions in its blocked layout, fused with what follows them.

A batch that can be dealt out evenly to the threads is: each computes images of its own, and no
thread waits for another after every layer (figures: docs/benchmarks.md).

Source: https://onnxruntime.ai/docs/performance (threading, graph optimisations).
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from trunkline.errors import RunnerError
from trunkline.runtimes.engine import Maps, Spec, empty_maps, in_one_line, parts_of
from trunkline.runtimes.graph_checks import check_onnx
from trunkline.runtimes.optional import require

GRAPH = "model.onnx"
COMPILED = "optimized.onnx"


class OnnxRuntimeEngine:
    """A session for single images, one for images dealt out to threads, or both.

    Args:
        graph: A serialised model.
        spec: What it computes.
    """

    name: ClassVar[str] = "onnxruntime"
    runs_code: ClassVar[Mapping[str, str]] = {}

    def __init__(self, graph: bytes, spec: Spec) -> None:
        self._set_up(graph, spec, compiled=False)

    def _set_up(self, source: bytes | str, spec: Spec, *, compiled: bool) -> None:
        self._source, self._spec, self._compiled = source, spec, compiled
        self._lock = threading.Lock()
        # Its threads start when they are first given something to do.
        self._helpers = ThreadPoolExecutor(spec.threads, "trunkline-onnxruntime")
        self._sessions: dict[int, Any] = {}  # by the number of parts of a batch
        expected = 1 if spec.input_shape is None else parts_of(spec.input_shape[0], spec)
        self._session(expected)

    def _session(self, parts: int) -> Any:
        """Return the session for a batch in so many parts; made when it is first needed."""
        with self._lock:
            if parts not in self._sessions:
                options = self._options(parts, compiled=self._compiled)
                self._sessions[parts] = self._open(self._source, options)
            return self._sessions[parts]

    def _options(self, parts: int, *, compiled: bool) -> Any:
        runtime = require("onnxruntime", "runtime 'onnxruntime'")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self._spec.threads // parts
        options.log_severity_level = 4  # fatal: its errors are raised, and it warns of fusions
        # Waiting threads burn their core for a while in case more work comes. Between two calls
        # that core belongs to whoever decodes the next image.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if compiled:
            level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.graph_optimization_level = level
        elif self._spec.input_shape is not None:
            n, height, width = self._spec.input_shape
            for axis, size in (("batch", n // parts), ("height", height), ("width", width)):
                options.add_free_dimension_override_by_name(axis, size)
        return options

    def _open(self, source: bytes | str, options: Any) -> Any:
        runtime = require("onnxruntime", "runtime 'onnxruntime'")
        try:
            # Its fallback prints, and tries the same once more.
            return runtime.InferenceSession(
                source, options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
        except Exception as error:  # it has a class for every status code
            raise RunnerError(
                f"ONNX Runtime {runtime.__version__} cannot open the graph: {in_one_line(error)}; "
                "deploy the backbone again on this machine."
            ) from error

    def run(self, images: NDArray[Any]) -> Maps:
        """Compute the maps; see ``Engine``."""
        parts = parts_of(len(images), self._spec)
        session = self._session(parts)
        if parts == 1:
            maps: Maps = session.run(None, {"image": images})
            return maps
        maps = empty_maps(images, self._spec)
        size = len(images) // parts
        slices = [slice(start, start + size) for start in range(0, len(images), size)]
        others: list[Future[None]] = [
            self._helpers.submit(_run_part, session, images[part], [one[part] for one in maps])
            for part in slices[1:]
        ]
        try:
            _run_part(session, images[slices[0]], [one[slices[0]] for one in maps])
        finally:
            failed = [error for other in others if (error := other.exception()) is not None]
        if failed:
            raise failed[0]
        return maps

    def save(self, folder: Path) -> None:
        """Write the graph, and what this machine made of it."""
        graph = Path(folder, GRAPH)
        graph.write_bytes(cast(bytes, self._source))  # a loaded runner copies its folder
        options = self._options(next(iter(self._sessions)), compiled=False)
        options.optimized_model_filepath = str(Path(folder, COMPILED))
        self._open(str(graph), options)

    @classmethod
    def files(cls, _names: Collection[str], *, compiled: bool) -> tuple[str, ...]:
        """Return the files that ``load`` opens."""
        return (COMPILED,) if compiled else (GRAPH,)

    @classmethod
    def load(
        cls, files: Sequence[Path], spec: Spec, *, compiled: bool, ours: bool
    ) -> OnnxRuntimeEngine:
        """Open what ``save`` wrote; what was compiled for another machine is compiled anew."""
        if not ours:
            check_onnx(files[0])
        engine = cls.__new__(cls)
        engine._set_up(str(files[0]), spec, compiled=compiled)
        return engine


def _run_part(session: Any, images: NDArray[Any], maps: Maps) -> None:
    """Compute the maps of some images into their place."""
    binding = session.io_binding()
    kind = images.dtype.type
    binding.bind_input("image", "cpu", 0, kind, images.shape, images.ctypes.data)
    for output, one in zip(session.get_outputs(), maps, strict=True):
        binding.bind_output(output.name, "cpu", 0, np.float32, one.shape, one.ctypes.data)
    session.run_with_iobinding(binding)
