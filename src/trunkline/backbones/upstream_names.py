"""Full and former names of other libraries: which network, and which of its checkpoints.

timm and torchvision write ``resnet50.a1_in1k`` and ``resnet50.IMAGENET1K_V2``: the network, a dot,
the checkpoint. timm's names before version 0.9 have the checkpoint in front: ``tv_resnet50``,
``ssl_resnext50_32x4d``, ``gluon_resnet50_v1d``.

Source: timm 1.0 ``models/resnet.py``, ``register_model_deprecations``.
"""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple

from trunkline.errors import UnknownVariantError

# What stands behind the dot in the catalog's names of timm and torchvision, spelled as tags are. A
# test holds it against the catalog, which this folder knows nothing of.
CHECKPOINTS = (
    *("a1-in1k", "a1h-in1k", "a2-in1k", "a3-in1k", "am-in1k", "b1k-in1k", "b2k-in1k", "bamboo"),
    *("bt-in1k", "c1-in1k", "c2-in1k", "d-in1k", "deit-in1k", "gluon-in1k", "in1k"),
    *("fb-ssl-yfcc100m-ft-in1k", "fb-swsl-ig1b-ft-in1k", "fb-wsl-ig1b-ft-in1k"),
    *("lion-in12k-ft-in1k", "pycls-in1k", "ra-in1k", "ra2-in1k", "ra3-in1k", "racm-in1k"),
    *("ra4-e3600-r224-in1k", "ram-in1k", "seer", "seer-ft-in1k", "sw-in12k", "sw-in12k-ft-in1k"),
    *("swag-ft-in1k", "swag-lc-in1k", "tv-in1k", "tv2-in1k", "imagenet1k-v1", "imagenet1k-v2"),
    *("imagenet1k-swag-e2e-v1", "imagenet1k-swag-linear-v1"),
)

_FORMER = {
    "tv": "tv-in1k",
    "ig": "fb-wsl-ig1b-ft-in1k",
    "ssl": "fb-ssl-yfcc100m-ft-in1k",
    "swsl": "fb-swsl-ig1b-ft-in1k",
    "gluon": "gluon-in1k",
}
_IN_FRONT = re.compile(rf"({'|'.join(_FORMER)})-((?:wide-)?res(?:net|next)\d[a-z0-9-]*)")
_VERSION = re.compile(r"(resnet\d+)-v1([bcds])")  # GluonCV's; b is the plain network


class UpstreamName(NamedTuple):
    """A network by its upstream's name, and one of its checkpoints."""

    network: str
    checkpoint: str


def parted(name: str) -> UpstreamName | None:
    """Take a name that says a checkpoint apart; None for one that says none.

    Args:
        name: Lower case, hyphens, without an owner.

    Returns:
        The parts, whether or not there are such a network and such a checkpoint.
    """
    network, dot, checkpoint = name.partition(".")
    if dot and network and checkpoint:
        return UpstreamName(network, checkpoint)
    if (former := _IN_FRONT.fullmatch(name)) is None:
        return None
    prefix, network = former.groups()
    if prefix == "gluon" and (version := _VERSION.fullmatch(network)):
        network = version[1] + version[2].replace("b", "")
    return UpstreamName(network, _FORMER[prefix])


def check_checkpoint(name: str, checkpoint: str) -> None:
    """Refuse what is no checkpoint's name in any upstream.

    Raises:
        UnknownVariantError: It is none; the closest are in the text.
    """
    if checkpoint in CHECKPOINTS:
        return
    close = difflib.get_close_matches(checkpoint, CHECKPOINTS, n=3, cutoff=0.4)
    hint = f"closest: {', '.join(close)}" if close else f"for example: {CHECKPOINTS[0]}"
    raise UnknownVariantError(
        f"no checkpoint {checkpoint!r}, as {name!r} asks for; {hint}. Without what stands behind "
        "the dot it is a network by itself; `trunkline weights list` shows the checkpoints of each."
    )
