"""What every engine promises, and what a runner is, as data.

Nothing here imports PyTorch: a saved runner of ONNX Runtime or OpenVINO works without it.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from trunkline.backbones.levels import Level
from trunkline.errors import ConfigError, NotInstalledError
from trunkline.preprocessing import Preprocessing, is_positive_int
from trunkline.runtimes.optional import EXTRAS
from trunkline.runtimes.processor import processor

Maps = list[NDArray[np.float32]]

MAX_PIXELS = 1 << 28  # N·H·W of the one shape of a runner: 3 GB of float32 images
_MIN_LIMIT = 256  # threads that are allowed on any machine; ONNX Runtime takes 5 s to start them


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a runner computes and how.

    Attributes:
        variant: Published name of the backbone, None for one of somebody's own.
        runtime: Name of the engine.
        precision: "fp32", "bf16" or "int8".
        levels: All maps of the backbone, the stem's first.
        returned_levels: Those that a call returns, in that order.
        in_channels: Of the images.
        input_shape: The only (N, H, W) that is taken, None for any.
        preprocess: Whether images are 8-bit pictures that are normalised inside.
        preprocessing: How the weights want their images, None where that is not known.
        threads: That one call uses.
        labels: Of a classifier, one name per class; None where nobody gave any.
    """

    variant: str | None
    runtime: str
    precision: str
    levels: tuple[Level, ...]
    returned_levels: tuple[Level, ...]
    in_channels: int
    input_shape: tuple[int, int, int] | None
    preprocess: bool
    preprocessing: Preprocessing | None
    threads: int
    labels: tuple[str, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold; ``manifest.read_manifest`` reads them back."""
        plain = dict(vars(self))
        plain["levels"] = [vars(level) for level in self.levels]
        plain["returned_levels"] = [level.name for level in self.returned_levels]
        plain["input_shape"] = None if self.input_shape is None else list(self.input_shape)
        if self.preprocessing is not None:
            plain["preprocessing"] = self.preprocessing.to_dict()
        return plain

    def with_threads(self, threads: int | None) -> Spec:
        """Return the same for another number of threads; None changes nothing."""
        return self if threads is None else replace(self, threads=threads)


class Engine(Protocol):
    """Runs one network. Safe to call from several threads at once.

    Attributes:
        name: Key of ``ENGINES``.
        runs_code: File of a saved runner → what whoever made it could do by it, as a clause. Such
            files are opened only where this machine wrote them or the caller trusts them.
    """

    name: ClassVar[str]
    runs_code: ClassVar[Mapping[str, str]]

    def run(self, images: NDArray[Any]) -> Maps:
        """Compute the maps.

        Args:
            images: Contiguous, of the shape and dtype that the spec says, at least one image.

        Returns:
            New float32 arrays, which later calls do not write to.
        """

    def save(self, folder: Path) -> None:
        """Write what ``load`` needs into an empty folder. Names of files are plain ASCII."""

    @classmethod
    def files(cls, names: Collection[str], *, compiled: bool) -> tuple[str, ...]:
        """Return the files that ``load`` opens, in its order.

        Args:
            names: That the runner has.
            compiled: As for ``load``.
        """

    @classmethod
    def load(cls, files: Sequence[Path], spec: Spec, *, compiled: bool, ours: bool) -> Engine:
        """Open what ``save`` wrote.

        Args:
            files: As ``files`` names them.
            spec: That it was built with, but for the threads.
            compiled: The processor, the versions and the threads are those of then, and so what
                was compiled can be used again.
            ours: This machine wrote the files, or the caller trusts whoever did. Of others nothing
                is opened that ``runs_code`` names, and nothing that was compiled.

        Raises:
            RunnerError: The engine cannot open the files.
        """


# Name → where its class stands, and the distribution whose version decides whether a compiled file
# can be used again.
ENGINES = {
    "onnxruntime": ("trunkline.runtimes.onnx_runtime:OnnxRuntimeEngine", "onnxruntime"),
    "openvino": ("trunkline.runtimes.open_vino:OpenVinoEngine", "openvino"),
    "inductor": ("trunkline.runtimes.inductor:InductorEngine", "torch"),
    "torch": ("trunkline.runtimes.pytorch:TorchEngine", "torch"),
}
RUNTIMES = ("auto", *ENGINES)


def takes_threads(runtime: str) -> bool:
    """Say whether an engine has threads of its own; PyTorch's share those of the process."""
    return ENGINES[runtime][1] != "torch"


def check_runtime(runtime: str) -> None:
    """Refuse an engine that there is not, whether or not it is installed.

    Raises:
        ConfigError: Neither "auto" nor an engine.
    """
    if runtime not in RUNTIMES:
        raise ConfigError(f"runtime={runtime!r} is unknown; use one of {', '.join(RUNTIMES)}.")


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads that is none, or that only starting them would hang.

    Raises:
        ConfigError: Not a positive integer up to four times the cores, or 256.
    """
    if threads is None:
        return
    if not is_positive_int(threads):
        raise ConfigError(f"threads={threads!r} must be a positive integer, or None.")
    most = max(_MIN_LIMIT, 4 * processor().cores)
    if threads > most:
        raise ConfigError(
            f"threads={threads} is more than {most}, the most that make sense on this machine; "
            "None takes all cores."
        )


def parts_of(num_images: int, spec: Spec) -> int:
    """Return in how many parts a batch is computed: one for each thread, or one in all.

    Only where they are equal, so that no thread has to wait for the one with the larger part.
    """
    return spec.threads if num_images and num_images % spec.threads == 0 else 1


def map_shapes(images: NDArray[Any], spec: Spec) -> list[tuple[int, ...]]:
    """Return the shapes of the maps of some images."""
    height, width = images.shape[1:3] if spec.preprocess else images.shape[2:]
    return [
        (len(images), level.channels)  # of a classifier
        if level.stride == 0
        else (len(images), level.channels, -(-height // level.stride), -(-width // level.stride))
        for level in spec.returned_levels
    ]


def empty_maps(images: NDArray[Any], spec: Spec) -> Maps:
    """Return arrays for the maps of some images, whatever they hold."""
    return [np.empty(shape, np.float32) for shape in map_shapes(images, spec)]


def in_one_line(error: BaseException) -> str:
    """Return what an engine says without its line breaks."""
    return " ".join(str(error).split())


def engine_class(runtime: str) -> Any:  # the constructors differ
    """Import the class of an engine.

    Raises:
        NotInstalledError: It needs PyTorch, which is not there.
    """
    home, needed = ENGINES[runtime]
    module, name = home.split(":")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != needed:
            raise  # a fault of ours, or of what the engine itself needs
        raise NotInstalledError(
            f"runtime {runtime!r} needs {needed}, which cannot be imported ({error}); "
            "install it, or use a runner of another engine."
        ) from error


def versions_of(runtime: str) -> dict[str, str]:
    """Return the installed version of what an engine runs on, by name.

    Raises:
        NotInstalledError: It is not installed.
    """
    needed = ENGINES[runtime][1]
    try:
        return {needed: importlib.metadata.version(needed)}
    except importlib.metadata.PackageNotFoundError:
        extra = EXTRAS.get(needed)
        wanted = needed if extra is None else f'"trunkline[{extra}]"'
        raise NotInstalledError(
            f"runtime {runtime!r} needs {needed}, which is not installed; "
            f"install it with: pip install {wanted}"
        ) from None
