"""PyTorch's exporter: networks as programs for any size, in one thread at a time."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.fx.experimental._config as shapes_config
from torch import Tensor, nn

from trunkline.runtimes.graphs import TRACING


def exported(
    network: nn.Module, images: Tensor, dynamic: dict[int, Any]
) -> torch.export.ExportedProgram:
    """Return a network as a program.

    Args:
        network: In eval mode.
        images: An example.
        dynamic: Axis of the images → how it may vary; axes that are not there are fixed.
    """
    with TRACING, _any_size(), torch.no_grad():
        return torch.export.export(
            network, (images,), dynamic_shapes=(dynamic or None,), strict=False
        )


@contextmanager
def _any_size() -> Iterator[None]:
    """Let sizes that are free be 1 as well.

    By default the exporter takes for granted that no free size is 1, and a last map of one pixel
    is no map then: programs refuse images below 33 pixels. Older PyTorch has no choice.
    """
    if not hasattr(shapes_config, "backed_size_oblivious"):
        yield
        return
    with shapes_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        yield


def write_program(
    program: torch.export.ExportedProgram, path: Path, extra: dict[str, str] | None = None
) -> None:
    """Write a program, with further files in its archive."""
    # Not straight to the path: PyTorch's own writer reports a full disk as an internal error.
    written = io.BytesIO()
    with TRACING:
        torch.export.save(program, written, extra_files=extra or {})
    path.write_bytes(written.getbuffer())


def open_program(path: Path) -> nn.Module:
    """Open a program. Expressions in it run as Python, so it must be a trusted one."""
    with TRACING:
        return torch.export.load(path).module()


def compile_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Compile a program for this processor into a package. Its weights are frozen."""
    with TRACING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs={"freezing": True}
        )


def open_package(path: Path) -> Any:
    """Open a compiled package. It is machine code, so it must be a trusted one."""
    with TRACING:
        return torch._inductor.aoti_load_package(str(path))
