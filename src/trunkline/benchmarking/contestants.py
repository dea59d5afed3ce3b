"""Who takes part in a benchmark: the eager backbone, deployed runners, other libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trunkline.backbones.backbone import Backbone
from trunkline.benchmarking.peers import build_peer, find_peer, give_weights, maps_of
from trunkline.errors import ConfigError
from trunkline.runtimes.calibration import CalibrationSource
from trunkline.runtimes.deployment import deploy
from trunkline.runtimes.processor import OFFERED

EAGER, AUTO = "eager", "auto"
RUNTIMES = (EAGER, AUTO, *OFFERED)
Maps = list[NDArray[np.float32]]


@dataclass(frozen=True)
class Contestant:
    """One way to compute the maps of a backbone.

    Attributes:
        label: Its name in the report.
        runtime: Which engine.
        precision: Which numbers it computes with.
        run: Computes the maps of the benchmark's images once.
        memory_job: What ``peak_memory`` needs, without shape and threads.
    """

    label: str
    runtime: str
    precision: str
    run: Callable[[], Sequence[Any]]
    memory_job: Callable[[Path], Mapping[str, Any]]

    def maps(self) -> Maps:
        """Return the maps as NumPy arrays."""
        return [np.asarray(one, np.float32) for one in self.run()]


def eager(backbone: Backbone, images: Tensor, name: str | None = None) -> Contestant:
    """Return the backbone itself, as PyTorch runs it; ``name`` builds it in another process."""
    backbone.eval()

    def run() -> list[Tensor]:
        with torch.inference_mode():
            return backbone(images)  # type: ignore[no-any-return]

    job = {"variant": name or backbone.variant}
    return Contestant(EAGER, EAGER, "fp32", run, lambda _: job)


def peer(library: str, backbone: Backbone, images: Tensor) -> Contestant:
    """Return another library's version with the weights of the backbone.

    Raises:
        NotInstalledError: The library cannot be imported.
        ConfigError: It has no such variant.
        WeightsMismatchError: Its names are not the known ones.
    """
    found = find_peer(library, backbone)
    network = build_peer(found)
    give_weights(found, network, backbone)
    job = {"peer": asdict(found)}
    return Contestant(library, EAGER, "fp32", lambda: maps_of(network, images), lambda _: job)


def deployed(
    backbone: Backbone,
    images: Tensor,
    runtime: str,
    precision: str,
    *,
    threads: int,
    calibration: CalibrationSource | None,
    remeasure: bool = False,
) -> Contestant:
    """Return a runner that was deployed for the shape of the images; fed with NumPy arrays.

    Args:
        backbone: What to deploy.
        images: ``(N, C, H, W)`` float32.
        runtime: ``"auto"`` or an engine.
        precision: ``"fp32"``, ``"bf16"`` or ``"int8"``.
        threads: Of the engine; PyTorch's must have been told the same.
        calibration: Images for int8; other precisions do without.
        remeasure: Do not use an earlier decision of "auto".

    Raises:
        DeploymentError: The engine or the precision is not to be had here.
    """
    batch, _, height, width = images.shape
    runner = deploy(
        backbone,
        runtime=runtime,
        precision=precision,
        input_shape=(batch, height, width),
        threads=threads,
        calibration=calibration if precision == "int8" else None,
        remeasure=remeasure,
    )
    arrays = images.numpy()
    chosen = runner.runtime
    label = f"{AUTO} ({chosen})" if runtime == AUTO else chosen

    def saved(folder: Path) -> dict[str, Any]:
        place = folder / f"{chosen}-{precision}"
        if not place.exists():
            runner.save(place)
        return {"saved": str(place)}

    return Contestant(f"{label} {precision}", chosen, precision, lambda: runner(arrays), saved)


def check_names(runtimes: Sequence[str], precisions: Sequence[str]) -> None:
    """Refuse runtimes and precisions that are unknown or named twice.

    Raises:
        ConfigError: With the allowed names.
    """
    known = {"runtime": RUNTIMES, "precision": ("fp32", "bf16", "int8")}
    for what, given in (("runtime", runtimes), ("precision", precisions)):
        unknown = [name for name in given if name not in known[what]]
        if unknown:
            raise ConfigError(f"no {what} {unknown[0]!r}; allowed: {', '.join(known[what])}.")
        if len(set(given)) < len(given):
            raise ConfigError(f"a {what} is named twice: {', '.join(given)}; name each once.")
