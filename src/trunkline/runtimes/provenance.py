"""Which weights a runner or an exported file holds."""

from __future__ import annotations

import hashlib

import torch

from trunkline.backbones.backbone import Backbone
from trunkline.runtimes.manifest import Provenance


def provenance_of(backbone: Backbone) -> Provenance:
    """Return where the weights came from, as plain values.

    Returns:
        ``state_sha256``, see ``state_digest``; and ``weights``: tag, sha256, licence and layout of
        the file that was loaded, None for a random network.
    """
    report = backbone.load_report
    return {
        "weights": None
        if report is None
        else {
            "tag": report.tag,
            "sha256": report.sha256,
            "license": report.license,
            "layout": report.layout,
        },
        "state_sha256": state_digest(backbone),
    }


def state_digest(backbone: Backbone) -> str:
    """Return a sha256 over all parameters and buffers: names, dtypes, shapes and bytes.

    Two backbones have the same digest if and only if their state dicts are equal bit by bit,
    whatever file they came from.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        # Through bytes: NumPy has no bfloat16.
        digest.update(values.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
