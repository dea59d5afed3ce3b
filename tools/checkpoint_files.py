"""What tests of the readers share: how tensors are written, and what reading must give back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trunkline.weights.checkpoint import Checkpoint

Tensors = dict[str, Tensor]


def arrays(tensors: Tensors) -> dict[str, Any]:
    """Return the tensors as numpy arrays."""
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def assert_same(checkpoint: Checkpoint, tensors: Tensors) -> None:
    """Check that a file gave back these tensors, to the bit."""
    assert sorted(checkpoint.tensors) == sorted(tensors)
    for name, tensor in tensors.items():
        read = checkpoint.tensors[name]
        assert read.dtype == tensor.dtype, name
        assert read.shape == tensor.shape, name
        assert torch.equal(read, tensor), name
        assert read.device.type == "cpu", name


def save_zip(held: object, path: Path) -> None:
    """Write as torch does since 1.6."""
    torch.save(held, path)


def save_legacy(held: object, path: Path) -> None:
    """Write as torch did before 1.6."""
    torch.save(held, path, _use_new_zipfile_serialization=False)


WRITERS: dict[str, Callable[[object, Path], None]] = {
    "torch-zip": save_zip,
    "torch-legacy": save_legacy,
}
