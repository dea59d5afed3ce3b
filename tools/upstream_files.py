"""Stand-ins for other libraries' checkpoints: their names and shapes, numbers of our own.

And what the tests of loading do with them: files of every kind, and networks that want them.
"""

from __future__ import annotations

import math
import pickle
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record_keys import dtype_of, recorded_keys
from safetensors.torch import load_file, save_file
from torch import Tensor

from trunkline import Backbone, create_backbone
from trunkline.weights.checkpoint import Checkpoint
from trunkline.weights.layouts import LAYOUTS
from trunkline.weights.layouts.layout import Layout
from trunkline.weights.matching import Match, native_shapes, stage_of
from trunkline.weights.searching import find
from trunkline.zoo import variant_config

Tensors = Mapping[str, Tensor]

SMALL = 50_000  # values; what is larger stays untouched in ``hollow_tensors``
_VARIANCES = ("running_var", "_riv")
_SCALES = ("weight", "_s", "_gamma")


def upstream_tensors(layout: str, variant: str) -> dict[str, Tensor]:
    """Return numbers under the recorded names of a network, such as a trained one could have."""
    keys = recorded_keys(layout)[variant]
    return {name: numbers(name, shape) for name, shape in keys.items()}


def hollow_tensors(layout: str, variant: str) -> dict[str, Tensor]:
    """Return the same names, large tensors of zeros that nobody has written.

    The memory of a large network is only promised then, never had. Who moves such a tensor without
    a copy keeps its address.
    """
    keys = recorded_keys(layout)[variant]
    return {
        name: numbers(name, shape) if math.prod(shape) <= SMALL else _promised(shape)
        for name, shape in keys.items()
    }


def _promised(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.zeros(shape, np.float32))  # torch.zeros would write them


def numbers(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return numbers that follow from a name: no two tensors of a file have the same."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if not dtype_of(name).is_floating_point:
        return torch.randint(1, 10_000, shape, generator=generator)
    if len(shape) > 1:
        fan_in = max(math.prod(shape[1:]), 1)
        return torch.randn(shape, generator=generator) * math.sqrt(2 / fan_in)
    drawn = torch.rand(shape, generator=generator)
    return drawn + 0.5 if name.endswith((*_VARIANCES, *_SCALES)) else drawn - 0.5


def saved(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    """Write safetensors; return where."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def pickled(path: Path, tensors: Tensors, **beside: Any) -> Path:
    """Write a pickle of arrays, as ``model`` where there is something beside them; return where."""
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    path.write_bytes(pickle.dumps({**beside, "model": arrays} if beside else arrays, protocol=2))
    return path


def written(path: Path) -> dict[str, Tensor]:
    """Return what the upstream itself would see of a file of ours, its container taken off."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".pkl":
        arrays = pickle.loads(path.read_bytes())["model"]  # noqa: S301 - of our own making
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    content: dict[str, Any] = torch.load(path, weights_only=True)
    for container in ("state_dict", "model_state", "model"):
        if container in content:
            state: dict[str, Tensor] = content[container]
            return state
    return content


def equal(one: Tensors, other: Tensors) -> bool:
    """Return whether names, dtypes and values are the same."""
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and torch.equal(one[n], other[n]) for n in one
    )


def state_of(backbone: Backbone) -> dict[str, Tensor]:
    """Return what a backbone holds now, whatever becomes of it."""
    return {name: tensor.clone() for name, tensor in backbone.state_dict().items()}


def on_meta(variant: str, **options: Any) -> Backbone:
    """Return a backbone without numbers."""
    with torch.device("meta"):
        return create_backbone(variant, **options)


def run(backbone: Backbone, images: Tensor) -> list[Tensor]:
    """Return a backbone's maps in eval mode."""
    with torch.inference_mode():
        maps: list[Tensor] = backbone.eval()(images)
    return maps


def natives(variant: str, layout: Layout, stages: int = 4) -> list[str]:
    """Return our names of what a layout's file of the first stages holds."""
    return [
        name
        for name in native_shapes(variant_config(variant))
        if stage_of(name) < stages and (not layout.norm or name.endswith((".weight", ".bias")))
    ]


@cache
def shapes_under(variant: str, layout: str, stages: int = 4) -> frozenset[tuple[str, torch.Size]]:
    """Return the names and shapes of a file of the first stages, as an upstream writes it."""
    architecture, known = variant_config(variant), LAYOUTS[layout]
    shapes = native_shapes(architecture)
    names = known.names(architecture, natives(variant, known, stages))
    return frozenset((name.upstream, shapes[ours].shape) for ours, name in names.items())


def described_tensors(variant: str, layout: str) -> dict[str, Tensor]:
    """Return the tensors of such a file on the meta device."""
    return {
        name: torch.empty(shape, dtype=dtype_of(name), device="meta")
        for name, shape in shapes_under(variant, layout)
    }


def recognise(backbone: Backbone, tensors: Mapping[str, Tensor], layout: str = "auto") -> Match:
    """Find a backbone among tensors as in a file that holds them at its top."""
    return find(backbone, Checkpoint(tensors=dict(tensors), format="memory"), layout)[1]
