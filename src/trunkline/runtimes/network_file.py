"""A network of PyTorch as data: how it is built, and its tensors, in one safetensors file.

Whoever opens it builds the network with this library's own code and gives it the file's numbers, so
nothing in the file is run, and images may have any size. Networks that our code does not build,
with layers of one's own or parts that were exchanged, cannot be kept so.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from msgspec import Meta
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from trunkline.backbones.backbone import Backbone
from trunkline.errors import RunnerError
from trunkline.files import parse_document
from trunkline.heads.logits import LogitsNetwork, meta_head, with_logits
from trunkline.runtimes.engine import Spec, in_one_line
from trunkline.runtimes.folding import fold_structure
from trunkline.runtimes.graphs import FromPixels
from trunkline.zoo import build_backbone, family_config

NETWORK = "network.safetensors"

_MAX_BLOCKS = 4096  # several times those of the deepest network that was published
_KEY = "network"  # of the file's metadata

_Size = Annotated[int, Meta(ge=0, le=1 << 16)]
_Number = Annotated[float, Meta(ge=0, le=1 << 16)]


@dataclass(frozen=True, kw_only=True)
class _Head:
    """A classifier on the last map."""

    num_classes: Annotated[int, Meta(ge=1, le=1 << 20)]
    pool: Literal["avg", "max"]


@dataclass(frozen=True, kw_only=True)
class _Built:
    """How a backbone is built; fields as those of ``BackboneOptions``."""

    family: Literal["resnet", "dla", "regnet"]
    architecture: dict[str, bool | _Size | _Number | tuple[_Size, ...]]
    return_idx: tuple[_Size, ...]
    return_stem: bool
    in_channels: _Size
    output_stride: Literal[8, 16, 32]
    norm: Literal["batch", "frozen", "sync", "group"]
    act: str
    drop_path_rate: Annotated[float, Meta(ge=0, lt=1)]  # of no effect here, and seen by who prints
    head: _Head | None = None


_OPTIONS = [
    one.name for one in fields(_Built) if one.name not in ("family", "architecture", "head")
]


class InBfloat16(nn.Module):
    """A backbone that computes in bfloat16, between images and maps in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.bfloat16()

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Map images to the network's maps."""
        return [one.float() for one in self.network(images.bfloat16())]


def in_precision(network: nn.Module, spec: Spec) -> nn.Module:
    """Return a network that computes in the spec's precision."""
    if spec.precision != "bf16":
        return network
    if not isinstance(network, FromPixels):
        return InBfloat16(network)
    network.backbone = InBfloat16(network.backbone)  # bfloat16 could not tell 8-bit values apart
    return network


def write_network(network: nn.Module, backbone: Backbone, path: Path) -> None:
    """Write a network.

    Args:
        network: What runs.
        backbone: That it was made of.
        path: Of the file.
    """
    built: dict[str, Any] = {
        "family": backbone.architecture.family,
        "architecture": asdict(backbone.architecture),  # type: ignore[call-overload]
        **{name: getattr(backbone.options, name) for name in _OPTIONS},
    }
    if isinstance(backbone, LogitsNetwork):
        pool = "max" if backbone.head.is_max else "avg"
        built["head"] = {"num_classes": backbone.head.conv.out_channels, "pool": pool}
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    path.write_bytes(save(state, {_KEY: json.dumps(built)}))


def read_network(path: Path, spec: Spec) -> nn.Module:
    """Build the network that a file describes.

    Raises:
        RunnerError: It is damaged, or not a network that this version builds.
    """
    try:
        with safe_open(path, framework="pt") as file:
            built = parse_document((file.metadata() or {}).get(_KEY, ""), _Built)
            # Copied out of the mapped file: what is aligned otherwise is added up otherwise.
            state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        network = _skeleton(built, spec, len(state))
        for name, wanted in network.state_dict().items():
            if name in state and state[name].dtype != wanted.dtype:
                raise ValueError(f"{name} is {state[name].dtype} where {wanted.dtype} belongs")
        network.load_state_dict(state, strict=True, assign=True)
    except Exception as error:  # safetensors, configs and modules each have errors of their own
        raise RunnerError(
            f"PyTorch cannot open the network in {path.name}: {in_one_line(error)}; deploy the "
            "backbone again."
        ) from error
    return network.eval().requires_grad_(False)


def _skeleton(built: _Built, spec: Spec, num_tensors: int) -> nn.Module:
    """Build a network without numbers, no larger than its file."""
    architecture = family_config(built.family, built.architecture)
    blocks = sum(architecture.stage_depths[: max(built.return_idx, default=0) + 1])
    if blocks > min(_MAX_BLOCKS, num_tensors):
        raise ValueError(f"{blocks} blocks cannot be made of {num_tensors} tensors")
    with torch.device("meta"):
        options: dict[str, Any] = {name: getattr(built, name) for name in _OPTIONS}
        if built.norm != "group":  # the others were folded
            options["norm"] = _no_norm
        backbone = build_backbone(architecture, **options)
        folded: nn.Module = fold_structure(backbone)
        if built.head is not None:
            last = backbone.channels[-1]
            head = meta_head(last, built.head.num_classes, built.head.pool)
            folded = with_logits(backbone, head, None)
        if spec.preprocess:
            if spec.preprocessing is None or built.in_channels != 3:
                raise ValueError("it is to normalise pictures, and does not say how")
            folded = FromPixels(folded, spec.preprocessing)
        return in_precision(folded, spec)


def _no_norm(_channels: int) -> nn.Module:
    return nn.Identity()
