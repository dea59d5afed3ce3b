"""Weights into a backbone: every tensor that it needs, of the right shape, or nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trunkline.backbones.backbone import Backbone
from trunkline.errors import WeightsError, WeightsMismatchError, WeightsNotFoundError

STORE = "TRUNKLINE_WEIGHTS"  # environment variable: a folder of VARIANT.safetensors
_COUNTER = "num_batches_tracked"  # of batch norm: no part of what it computes with a set momentum
_SHOWN = 10


def load_weights(backbone: Backbone, source: str | os.PathLike[str]) -> None:
    """Load a checkpoint into a backbone, strictly.

    The file holds the backbone's own names (``stem.…``, ``stages.0.…``). Stages that the backbone
    does not keep may be in the file; nothing else may be left over, and nothing may be missing. If
    anything is wrong, the backbone is left as it was.

    Args:
        backbone: Where the weights go; parameters on the meta device are materialised.
        source: A safetensors file, or ``"default"``: the file named after the variant in the
            folder that the environment variable ``TRUNKLINE_WEIGHTS`` names.

    Raises:
        WeightsNotFoundError: No such file, or no store to look in.
        WeightsMismatchError: Missing, left-over or wrongly shaped tensors; all are listed.
        WeightsError: Not a safetensors file.
    """
    path = _in_store(backbone) if source == "default" else Path(source)
    tensors = _read(path)
    wanted = backbone.state_dict()
    unused = {name for name in tensors if name not in wanted and not _pruned(name, backbone)}
    missing = {name for name in wanted.keys() - tensors.keys() if not name.endswith(_COUNTER)}
    wrong = [
        f"{name} is {tuple(tensors[name].shape)}, needs {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & tensors.keys())
        if tensors[name].shape != wanted[name].shape
    ]
    if unused or missing or wrong:
        raise WeightsMismatchError(
            f"{path} does not fit {backbone.variant or 'this network'}, nothing was loaded. "
            + " ".join(
                _listed(title, sorted(names))
                for title, names in (
                    ("Missing:", missing),
                    ("Left over:", unused),
                    ("Of another shape:", wrong),
                )
                if names
            )
        )
    _assign(backbone, wanted, tensors)


def _in_store(backbone: Backbone) -> Path:
    if backbone.variant is None:
        raise WeightsNotFoundError(
            "a network of one's own has no default weights; give weights=PATH, or none."
        )
    store = os.environ.get(STORE)
    name = f"{backbone.variant}.safetensors"
    if not store:
        raise WeightsNotFoundError(
            f"no default weights for {backbone.variant}: set {STORE} to a folder that holds "
            f"{name}, or give weights=PATH."
        )
    if not (path := Path(store, name)).is_file():
        raise WeightsNotFoundError(
            f"no default weights for {backbone.variant}: {path} does not exist. Put the file "
            "there, or give weights=PATH."
        )
    return path


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsNotFoundError(
            f"no file {path}; give the path of a safetensors file, or weights=None for a random "
            "network."
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(
            f"{path} is not a safetensors file ({error}); save one with "
            "safetensors.torch.save_file(backbone.state_dict(), path)."
        ) from error


def _pruned(name: str, backbone: Backbone) -> bool:
    part, _, rest = name.partition(".")
    index = rest.partition(".")[0]
    return part == "stages" and index in {str(i) for i in range(len(backbone.stages), 4)}


def _listed(title: str, names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{title} {len(names)} ({'; '.join(names[:_SHOWN])}{more})."


def _assign(
    backbone: Backbone, wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """Put checked tensors in place of what is there, on the device and in the dtype of that."""
    on_meta = any(tensor.is_meta for tensor in wanted.values())
    state = {}
    for name, old in wanted.items():
        device = torch.get_default_device() if old.is_meta else old.device
        new = tensors.get(name)
        state[name] = (
            torch.zeros_like(old, device=device) if new is None else new.to(device, old.dtype)
        )
    # Assigning would part a network that exists from its optimizer.
    backbone.load_state_dict(state, assign=on_meta)
