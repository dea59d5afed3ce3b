"""PyTorch's compiler, ahead of time: the network becomes one library of C++ for this processor.

Weights are frozen, that is, reordered once for the kernels that use them. Compiling takes a C++
compiler and a minute or so. Source: https://docs.pytorch.org, "AOTInductor".
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from trunkline.backbones.backbone import Backbone
from trunkline.errors import DeploymentError, RunnerError
from trunkline.runtimes.engine import Maps, Spec, in_one_line
from trunkline.runtimes.programs import compile_program, open_package
from trunkline.runtimes.pytorch import run_network, traced

PACKAGE = "compiled.pt2"


class InductorEngine:
    """One compiled package.

    Args:
        backbone: What the runner shall compute.
        spec: How.
    """

    name: ClassVar[str] = "inductor"
    runs_code: ClassVar[Mapping[str, str]] = {
        PACKAGE: f"{PACKAGE} is a library of machine code, which runs in this process"
    }

    def __init__(self, backbone: Backbone, spec: Spec) -> None:
        program = traced(backbone, spec)
        with tempfile.TemporaryDirectory(prefix="trunkline-") as folder:
            package = Path(folder, PACKAGE)
            try:
                compile_program(program, package)
            except Exception as error:  # a missing compiler, a full disk, an operator it lacks
                raise DeploymentError(
                    f"PyTorch's compiler failed: {in_one_line(error)}; it needs a C++ compiler "
                    "(g++ or clang++) and its temporary folder. runtime='torch' needs neither."
                ) from error
            self._package = package.read_bytes()
            self._network: Any = open_package(package)

    def run(self, images: NDArray[Any]) -> Maps:
        """Compute the maps; see ``Engine``."""
        return run_network(self._network, images)

    def save(self, folder: Path) -> None:
        """Write the package."""
        Path(folder, PACKAGE).write_bytes(self._package)

    @classmethod
    def files(cls, _names: Collection[str], *, compiled: bool) -> tuple[str, ...]:
        """Return the files that ``load`` opens."""
        del compiled  # nothing else was written
        return (PACKAGE,)

    @classmethod
    def load(
        cls, files: Sequence[Path], _spec: Spec, *, compiled: bool, ours: bool
    ) -> InductorEngine:
        """Open what ``save`` wrote; a package runs only on the kind of machine that made it."""
        del ours
        if not compiled:
            raise RunnerError(
                "the runner was compiled for another processor or another version of PyTorch; "
                "deploy the backbone again on this machine."
            )
        engine = cls.__new__(cls)
        engine._network = open_package(files[0])
        return engine
