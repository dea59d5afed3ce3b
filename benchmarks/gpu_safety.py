"""What trunkline's verbs do with a backbone on a card today, each checked and said in a line."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_device import Device
from torch import Tensor

import trunkline
from trunkline import Backbone, Runner, TrunklineError

_SAME = 1e-3  # largest difference, as a share of the largest value: fp32 in another order


def safety(device: Device, backbone: Backbone, photos: Tensor) -> dict[str, str]:
    """Try the verbs; return by verb what happened.

    Args:
        device: Where the backbone is.
        backbone: A variant of the catalog.
        photos: What it computes.
    """
    images = photos.to(device.where)
    with torch.inference_mode():
        wanted = [maps.cpu() for maps in backbone(images)]
    with tempfile.TemporaryDirectory() as folder:
        checks: dict[str, Callable[[], str]] = {
            "create_backbone, moved": lambda: f"on {_place(backbone)}",
            "save_pretrained, then load_weights into another one there": lambda: _round_trip(
                device, backbone, images, wanted, Path(folder)
            ),
            "fold": lambda: _folded(backbone, images, wanted),
        }
        told = {what: _said(check) for what, check in checks.items()}
    made: list[Runner] = []
    told["deploy"] = _said(lambda: _deployed(made, backbone, photos, wanted))
    told["a runner given a tensor there"] = _refused(made, images)
    return told


def _said(check: Callable[[], str]) -> str:
    try:
        return check()
    except Exception as error:  # what it says is the finding
        return f"FAILED with {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _place(backbone: Backbone) -> str:
    places = sorted({str(tensor.device) for tensor in backbone.state_dict().values()})
    return ", ".join(places)


def _difference(wanted: list[Tensor], got: list[Any]) -> str:
    worst = max(
        float((one - torch.as_tensor(other).cpu()).abs().max() / one.abs().max())
        for one, other in zip(wanted, got, strict=True)
    )
    return f"maps agree to {worst:.1e}" if worst <= _SAME else f"FAILED: maps differ by {worst:.1e}"


def _round_trip(
    device: Device, backbone: Backbone, images: Tensor, wanted: list[Tensor], folder: Path
) -> str:
    saved = trunkline.save_pretrained(backbone, folder / "saved")
    other = trunkline.create_backbone(str(backbone.variant)).to(device.where).eval()
    trunkline.load_weights(other, saved / "model.safetensors")
    with torch.inference_mode():
        return f"on {_place(other)}, {_difference(wanted, other(images))}"


def _folded(backbone: Backbone, images: Tensor, wanted: list[Tensor]) -> str:
    folded = trunkline.fold(backbone)
    with torch.inference_mode():
        return f"on {_place(folded)}, {_difference(wanted, folded(images))}"


def _deployed(made: list[Runner], backbone: Backbone, photos: Tensor, wanted: list[Tensor]) -> str:
    made.append(trunkline.deploy(backbone, runtime="torch"))
    maps = list(made[0](photos.numpy()))
    there = f"the backbone stays on {_place(backbone)}"
    return f"runs on the processor, {_difference(wanted, maps)}; {there}"


def _refused(made: list[Runner], images: Tensor) -> str:
    if not made:
        return "there is no runner"
    try:
        maps = made[0](images)
    except TrunklineError as error:
        return f"refused: {type(error).__name__}: {error}"
    return f"taken, {len(maps)} maps come back"
