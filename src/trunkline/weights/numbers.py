"""What the numbers in a file are: those of a network, or codes for them; finite, or not."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trunkline.errors import WeightsMismatchError
from trunkline.weights.layouts.layout import BATCH_COUNTER
from trunkline.weights.matching import listed

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_VARIANCE = "running_var"
_SCALES = re.compile(r"(.*[._])?(scales?|scale_inv|zero_points?|zeros|absmax|quant_state)(\..*)?")
_ADVICE = "Load what it was made from, or write the numbers themselves, as float16 or wider."


def check_kinds(found: Mapping[str, Tensor], path: Path, all_names: Iterable[str]) -> None:
    """Refuse tensors that are no floating-point numbers where those of a network belong.

    Args:
        found: Those that are to be loaded, by their names in the file.
        path: Of the file.
        all_names: Of every tensor in the file, which may hold the scales of a quantized one.

    Raises:
        WeightsMismatchError: There are; all are listed, and what they probably are is said.
    """
    wrong = {
        name: tensor.dtype
        for name, tensor in found.items()
        if tensor.dtype not in FLOATS and not name.endswith(BATCH_COUNTER)
    }
    if not wrong:
        return
    what = dict.fromkeys(_meaning(dtype) for dtype in wrong.values())
    counted = listed("No floating-point numbers", [f"{n} is {_said(d)}" for n, d in wrong.items()])
    said = " ".join((*counted, *what, *_scales(all_names), _ADVICE))
    raise WeightsMismatchError(f"{path}: {said} Nothing was loaded.")


def quantized(tensors: Mapping[str, Tensor]) -> str:
    """Return a sentence where a file that does not fit looks like a quantized one, else ``""``."""
    codes = sorted({_said(t.dtype) for t in tensors.values() if t.ndim > 1 and _is_code(t.dtype)})
    if not codes:
        return ""
    return " ".join((f"It holds {' and '.join(codes)}: a quantized file?", *_scales(tensors)))


def _is_code(dtype: torch.dtype) -> bool:
    return dtype.itemsize == 1 and dtype is not torch.bool


def _meaning(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return "Complex numbers are spectra, which no layer here takes."
    if dtype is torch.bool:
        return "Booleans are a mask, such as pruning keeps beside the weights."
    if dtype.is_floating_point:
        return "So narrow floats have scales beside them, which every writer applies its own way."
    return "Integers are what quantizing leaves: nothing without their scales and zero points."


def _scales(names: Iterable[str]) -> list[str]:
    return listed("Beside them", [name for name in names if _SCALES.fullmatch(name)])


def _said(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def unsound(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return sentences about numbers that make maps of NaN: not finite ones, negative variances.

    A sum is enough to see most tensors through: it costs a tenth of the copy that a load makes.
    """
    floats = {name: t for name, t in tensors.items() if t.is_floating_point() and t.numel()}
    with np.errstate(all="ignore"):
        broken = [name for name, tensor in floats.items() if not _finite(tensor.detach())]
    negative = [
        name for name, tensor in floats.items() if name.endswith(_VARIANCE) and (tensor < 0).any()
    ]
    return (
        *listed("NOT FINITE (NaN or infinite), so the maps are not either", broken),
        *listed("Negative variances, whose root is NaN", negative),
    )


def _finite(tensor: Tensor) -> bool:
    if tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64):
        total = float(np.add.reduce(tensor.numpy(), None))  # in this thread, as for copies
    else:
        total = float(tensor.sum(dtype=torch.float32))
    # The sum of finite numbers may be too large; that of others is never finite.
    return math.isfinite(total) or bool(tensor.isfinite().all())
