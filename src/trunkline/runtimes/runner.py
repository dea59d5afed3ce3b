"""A backbone on an engine: called like the backbone, faster."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from trunkline.backbones.levels import Level
from trunkline.errors import DeploymentError, InputError, RunnerError
from trunkline.preprocessing import Preprocessing, assumed_for
from trunkline.runtimes.engine import Engine, Maps, Spec, empty_maps, in_one_line, map_shapes
from trunkline.runtimes.fidelity import LevelFidelity

if TYPE_CHECKING:
    from trunkline.runtimes.manifest import Provenance
    from trunkline.runtimes.selection import Decision

Images = TypeVar("Images")


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a runner was loaded from.

    Attributes:
        folder: That holds it.
        digest: Of its manifest, and so of everything in it.
        trusted: This machine wrote it, or the caller said so.
        own: The folder goes with the runner: it was made for one that came out of a pickle.
    """

    folder: Path
    digest: str
    trusted: bool
    own: bool = False


class Runner:
    """Images in, the maps of one backbone out. ``deploy`` and ``load_runner`` make one.

    It may be called from several threads at once, and no call touches the maps of another.

    Args:
        engine: What computes.
        spec: What it computes; its fields are attributes of the runner.
        fidelity: How its maps compared with the backbone's when it was built.
        provenance: Where the weights came from, see ``Manifest``.
        decision: What ``runtime="auto"`` decided from.
        saved: What it was loaded from, None for a new one.
    """

    def __init__(
        self,
        engine: Engine,
        spec: Spec,
        fidelity: Sequence[LevelFidelity],
        *,
        provenance: Provenance,
        decision: Decision | None = None,
        saved: Saved | None = None,
    ) -> None:
        self._engine = engine
        self.spec = spec
        self.fidelity = tuple(fidelity)
        self.provenance = provenance
        self.decision = decision
        self.saved = saved

    @property
    def variant(self) -> str | None:
        """Published name of the backbone, None for one of somebody's own."""
        return self.spec.variant

    @property
    def runtime(self) -> str:
        """Name of the engine."""
        return self.spec.runtime

    @property
    def precision(self) -> str:
        """``"fp32"``, ``"bf16"`` or ``"int8"``."""
        return self.spec.precision

    @property
    def levels(self) -> tuple[Level, ...]:
        """All maps that the backbone has, the stem's first."""
        return self.spec.levels

    @property
    def returned_levels(self) -> tuple[Level, ...]:
        """The maps that a call returns, in that order."""
        return self.spec.returned_levels

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the maps that a call returns, in that order."""
        return tuple(level.channels for level in self.returned_levels)

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides, in pixels of the image, of the maps that a call returns, in that order."""
        return tuple(level.stride for level in self.returned_levels)

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return self.spec.in_channels

    @property
    def input_shape(self) -> tuple[int, int, int] | None:
        """The only (N, H, W) that a call takes, None for any."""
        return self.spec.input_shape

    @property
    def preprocess(self) -> bool:
        """Whether images are 8-bit pictures ``(N, H, W, 3)`` that are normalised inside."""
        return self.spec.preprocess

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared: as the weights want them, else ImageNet's usual way."""
        return self.spec.preprocessing or assumed_for(self.spec.in_channels)

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Of a classifier, one name per class; None where nobody gave any."""
        return self.spec.labels

    @property
    def threads(self) -> int:
        """Threads that one call uses."""
        return self.spec.threads

    def __call__(self, images: Images) -> list[Images]:
        """Compute the feature maps.

        Args:
            images: A NumPy array or a PyTorch tensor on the CPU: ``(N, in_channels, H, W)``
                float32, normalised as the weights want it; with ``preprocess`` ``(N, H, W, 3)``
                uint8 RGB. N, H and W as ``input_shape`` says, where it says it.

        Returns:
            One float32 map ``(N, channels[i], ceil(H/strides[i]), ceil(W/strides[i]))`` per entry
            of ``channels``, of the same kind as the images; of a classifier one array of logits
            ``(N, num_classes)``. Later calls do not write to it.

        Raises:
            InputError: Another kind, dtype, rank, channel count or size; NaN or infinite numbers.
            DeploymentError: The engine fails, for lack of memory most of the time.
        """
        array, give_back = _as_array(images)
        self._check(array)
        if array.shape[0] == 0:
            return [give_back(one) for one in empty_maps(array, self.spec)]
        return [give_back(one) for one in self._run(array)]

    def _run(self, array: NDArray[Any]) -> Maps:
        try:
            maps = self._engine.run(np.ascontiguousarray(array))
        except Exception as error:  # each engine has classes of its own
            raise DeploymentError(
                f"{self.runtime} failed on images of shape {array.shape}: "
                f"{in_one_line(error) or type(error).__name__}; smaller or fewer images need less "
                "memory."
            ) from error
        if [one.shape for one in maps] != map_shapes(array, self.spec):
            raise RunnerError(
                f"the engine gave maps of shapes {[one.shape for one in maps]} where the runner "
                f"promises {map_shapes(array, self.spec)}; it was put together from two: save it "
                "again."
            )
        return maps

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the runner into a new folder, whole or not at all; ``load_runner`` opens it.

        Args:
            folder: Must not exist yet.

        Returns:
            The folder.

        Raises:
            OutputError: It exists, or cannot be written.
            RunnerError: It was loaded, and its folder holds another one now, or a damaged one.
            DeploymentError: Its network has layers of one's own that cannot be saved.
        """
        from trunkline.runtimes.saving import save_runner

        return save_runner(self, self._engine, folder)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the folder that it was loaded from, else by its files; see ``pickling``."""
        from trunkline.runtimes.pickling import reduced

        return reduced(self)

    def __repr__(self) -> str:
        """Return what tells one runner from another."""
        shape = "any" if self.input_shape is None else "×".join(map(str, self.input_shape))
        return (
            f"Runner({self.variant or 'backbone'}, runtime={self.runtime!r}, "
            f"precision={self.precision!r}, input_shape={shape}, strides={self.strides})"
        )

    def _sides(self, array: NDArray[Any]) -> tuple[int, int]:
        height, width = array.shape[1:3] if self.preprocess else array.shape[2:]
        return height, width

    def _check(self, array: NDArray[Any]) -> None:
        kind, dtype = (
            ("(N, H, W, 3)", np.uint8)
            if self.preprocess
            else (f"(N, {self.in_channels}, H, W)", np.float32)
        )
        wanted = f"expected {np.dtype(dtype)} images of shape {kind}"
        shape = array.shape
        if array.ndim != 4:
            hint = "; add the batch with images[None]" if array.ndim == 3 else ""
            raise InputError(f"{wanted}, got {array.ndim} dimensions, {shape}{hint}.")
        if array.dtype != dtype:
            hint = (
                "give 8-bit RGB pictures: this runner normalises by itself (preprocess=True)"
                if self.preprocess
                else "use images.astype(numpy.float32), after normalising"
            )
            raise InputError(f"{wanted}, got {array.dtype}; {hint}.")
        if shape[3 if self.preprocess else 1] != self.in_channels:
            raise InputError(f"{wanted}, got {shape}; check the order of the axes.")
        height, width = self._sides(array)
        if min(height, width) < 1:
            raise InputError(f"{wanted} with H and W of 1 or more, got {shape}.")
        if not self.preprocess and not _all_finite(array):
            # Some engines would give finite maps for them: OpenVINO, and all of them in int8.
            raise InputError(
                f"{wanted}, all of them finite, got NaN or infinity; "
                "numpy.nan_to_num replaces them."
            )
        if self.input_shape is not None and (shape[0], height, width) != self.input_shape:
            n, h, w = self.input_shape
            raise InputError(
                f"this runner was built for N, H, W = {n}, {h}, {w} alone, got {shape[0]}, "
                f"{height}, {width}; resize the images, or deploy with input_shape=None."
            )


def _all_finite(array: NDArray[Any]) -> bool:
    """Look without memory of its own: NaN is the least and the largest of what holds it."""
    if not array.size:
        return True
    with np.errstate(invalid="ignore"):
        return bool(np.isfinite(array.min()) and np.isfinite(array.max()))


def _as_array(images: Any) -> tuple[NDArray[Any], Callable[[NDArray[np.float32]], Any]]:
    """Return the images as an array, and what turns an array into their kind."""
    if isinstance(images, np.ndarray):
        return images, lambda array: array
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it
    if torch is not None and isinstance(images, torch.Tensor):
        if images.device.type != "cpu":
            raise InputError(
                f"images are on {images.device}, and runners work on the processor; use "
                "images.cpu(), or the backbone itself on that device."
            )
        if images.dtype == torch.bfloat16:
            raise InputError(
                "images are torch.bfloat16, which NumPy does not have; use images.float(): "
                "a runner in bf16 converts inside."
            )
        return images.detach().numpy(), torch.from_numpy
    raise InputError(
        f"images must be a NumPy array or a PyTorch tensor, got {type(images).__name__}; "
        "numpy.asarray makes one of a list."
    )
