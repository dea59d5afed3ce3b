"""Libraries that only some users need: imported where they are used, or an install line."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from trunkline.errors import NotInstalledError
from trunkline.runtimes.telemetry import unreported

# Module → the extra of pyproject.toml that brings it.
EXTRAS = {
    "fsspec": "extract",
    "matplotlib": "bench",
    "nncf": "quantize",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "pebble": "extract",
    "psutil": "bench",
    "pyarrow": "extract",
    "pyarrow.dataset": "extract",
    "pyarrow.parquet": "extract",
    "ray": "ray",
    "ray.data": "ray",
    "tifffile": "images",
    "zarr": "extract",
}


def is_installed(name: str) -> bool:
    """Say whether a library can be imported, without importing it."""
    return find_spec(name) is not None


def require(name: str, purpose: str) -> Any:
    """Import a library that an extra brings.

    Args:
        name: Of the module, a key of ``EXTRAS``.
        purpose: What it is needed for, the subject of the error's sentence.

    Raises:
        NotInstalledError: It is not installed, or fails to import.
    """
    try:
        with unreported():
            return import_module(name)
    except ImportError as error:
        raise NotInstalledError(
            f"{purpose} needs {name}, which cannot be imported ({error}); "
            f'install it with: pip install "trunkline[{EXTRAS[name]}]"'
        ) from error
