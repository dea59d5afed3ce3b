"""The libraries that trunkline is compared with, and numbers that both sides can make alike.

Everything random here is a function of a name and a shape alone: PCG64's raw stream, which NumPy
promises never to change. Imports of peers stand inside the functions, since only the environment
of ``make parity`` has them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trunkline.backbones.backbone import Backbone
from trunkline.weights.layouts.layout import Layout
from trunkline.weights.layouts.timm import TIMM_DLA, TIMM_REGNET, TIMM_RESNET
from trunkline.weights.layouts.torchvision import TORCHVISION_REGNET, TORCHVISION_RESNET
from trunkline.weights.layouts.transformers import (
    TRANSFORMERS_REGNET,
    TRANSFORMERS_RESNET,
    TRANSFORMERS_RTDETR,
)

NUM_POSITIONS = 256  # of each map that a golden keeps


def uniform(name: str, shape: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return numbers in [−1, 1) that depend on ``name`` and ``shape`` only."""
    count = int(np.prod(shape, dtype=np.int64))
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(count)
    numbers: np.ndarray[Any, np.dtype[np.float64]] = np.asarray(raw >> np.uint64(11), np.float64)
    return numbers.reshape(shape) * 2.0**-52 - 1.0


def tensor_for(name: str, shape: Sequence[int]) -> Tensor:
    """Return a float64 tensor fit for the parameter or buffer ``name`` of a backbone."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    numbers = uniform(name, shape)
    if len(shape) == 4:  # keeps the variance of what a ReLU let through
        numbers *= np.sqrt(6.0 / np.prod(shape[1:]))
    elif name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
        numbers = 1.0 + 0.5 * numbers
    else:
        numbers *= 0.2
    return torch.from_numpy(numbers)


def state_for(backbone: Backbone) -> dict[str, Tensor]:
    """Return a float64 state dict for a backbone, by its own names."""
    return {n: tensor_for(n, tuple(t.shape)) for n, t in backbone.state_dict().items()}


def images_for(height: int, width: int) -> Tensor:
    """Return one float64 image ``(1, 3, height, width)``."""
    return torch.from_numpy(2.0 * uniform("images", (1, 3, height, width)))


def positions_for(level: str, size: int) -> Tensor:
    """Return the flat positions of a map of ``size`` values that a golden keeps."""
    chosen = (uniform(level, (NUM_POSITIONS,)) + 1.0) / 2.0 * size
    return torch.from_numpy(chosen.astype(np.int64))


@dataclass(frozen=True)
class Peer:
    """Another library's version of one variant.

    Attributes:
        library: Its name.
        name: What it calls the variant.
        layout: How it names its tensors.
        has_stem: Whether its maps begin with the stride-2 one.
        build: Makes the network, without weights.
        maps: Runs it: the network and images in, all maps from the finest stride out.
        only_even: It cannot run where a map is odd (DLA).
    """

    library: str
    name: str
    layout: Layout
    has_stem: bool
    build: Callable[[], nn.Module]
    maps: Callable[[nn.Module, Tensor], list[Tensor]]
    only_even: bool = False


def upstream_state(peer: Peer, backbone: Backbone, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state`` under the peer's names, as its bare model wants them."""
    names = peer.layout.names(backbone.architecture, state)
    prefixes = ("resnet.", "regnet.") if peer.library == "transformers" else ()
    renamed = {}
    for native, tensor in state.items():
        name = names[native].upstream
        for prefix in prefixes:
            name = name.removeprefix(prefix)
        renamed[name] = tensor
    return renamed


def _hooked(model: nn.Module, images: Tensor, names: Sequence[str]) -> list[Tensor]:
    caught: dict[str, Tensor] = {}

    def catch(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            caught.setdefault(name, output.clone())  # torchvision's stem ReLU runs once

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(catch(name)) for name in names]
    try:
        model(images)
    finally:
        for handle in hooks:
            handle.remove()
    return [caught[name] for name in names]


_LAYERS = ["layer1", "layer2", "layer3", "layer4"]


def _timm(name: str, layout: Layout, modules: list[str], **kwargs: bool) -> Peer:
    def build() -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name, num_classes=0)
        return model

    return Peer("timm", name, layout, True, build, lambda m, x: _hooked(m, x, modules), **kwargs)


def _timm_caffe(name: str) -> Peer:
    """Return timm's network with the stride of every stage moved where Caffe had it."""
    plain = _timm(name, TIMM_RESNET, ["act1", *_LAYERS])

    def build() -> nn.Module:
        model = plain.build()
        for layer in _LAYERS[1:]:
            first: Any = model.get_submodule(f"{layer}.0")
            first.conv1.stride, first.conv2.stride = (2, 2), (1, 1)
        return model

    return replace(plain, name=f"{name}, stride moved into the first 1x1", build=build)


def _torchvision(name: str, layout: Layout, modules: list[str]) -> Peer:
    def build() -> nn.Module:
        import torchvision

        model: nn.Module = torchvision.models.get_model(name, weights=None)
        model.fc = nn.Identity()
        return model

    maps = lambda m, x: _hooked(m, x, modules)  # noqa: E731 (one expression, named for its role)
    return Peer("torchvision", name, layout, True, build, maps)


def _transformers_maps(model: nn.Module, images: Tensor) -> list[Tensor]:
    return list(model(images, output_hidden_states=True).hidden_states)


def _transformers_resnet(name: str, backbone: Backbone) -> Peer:
    plan: Any = backbone.architecture

    def build() -> nn.Module:
        from transformers import ResNetConfig, ResNetModel

        model: nn.Module = ResNetModel(
            ResNetConfig(
                embedding_size=64,
                hidden_sizes=list(plan.stage_channels),
                depths=list(plan.stage_depths),
                layer_type="bottleneck" if plan.bottleneck else "basic",
            )
        )
        return model

    # hidden_states[0] is behind the max-pool there, so there is no stride-2 map
    return Peer(
        "transformers",
        name,
        TRANSFORMERS_RESNET,
        False,
        build,
        lambda m, x: _transformers_maps(m, x)[1:],
    )


def _transformers_regnet(name: str, backbone: Backbone) -> Peer:
    plan: Any = backbone.architecture

    def build() -> nn.Module:
        from transformers import RegNetConfig, RegNetModel

        model: nn.Module = RegNetModel(
            RegNetConfig(
                hidden_sizes=list(plan.stage_channels),
                depths=list(plan.stage_depths),
                groups_width=plan.group_width,
                layer_type="y" if plan.squeeze else "x",
            )
        )
        return model

    return Peer("transformers", name, TRANSFORMERS_REGNET, True, build, _transformers_maps)


def _transformers_rtdetr(name: str, backbone: Backbone) -> Peer:
    plan: Any = backbone.architecture

    def build() -> nn.Module:
        from transformers import RTDetrResNetBackbone, RTDetrResNetConfig

        model: nn.Module = RTDetrResNetBackbone(
            RTDetrResNetConfig(
                embedding_size=64,
                hidden_sizes=list(plan.stage_channels),
                depths=list(plan.stage_depths),
                layer_type="bottleneck" if plan.bottleneck else "basic",
                out_features=["stage1", "stage2", "stage3", "stage4"],
            )
        )
        return model

    return Peer(
        "transformers",
        f"RTDetrResNetBackbone({name})",
        TRANSFORMERS_RTDETR,
        False,
        build,
        lambda m, x: list(m(x).feature_maps),
    )


_TORCHVISION_RESNETS = {
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *("resnext50-32x4d", "resnext101-32x8d", "resnext101-64x4d"),
    *("wide-resnet50-2", "wide-resnet101-2"),
}


def peers_of(backbone: Backbone) -> list[Peer]:
    """Return every library's version of a published variant, the one for goldens first."""
    variant = backbone.variant or ""
    family = backbone.architecture.family
    if family == "dla":
        levels = [f"level{i}" for i in range(1, 6)]
        return [_timm(variant.replace("-", "_"), TIMM_DLA, levels, only_even=True)]
    if family == "regnet":
        return _regnet_peers(variant, backbone)
    if variant.endswith("vd"):
        rtdetr = _transformers_rtdetr(variant, backbone)
        if not getattr(backbone.architecture, "bottleneck", False):
            return [rtdetr]
        return [rtdetr, _timm(variant.replace("vd", "d"), TIMM_RESNET, ["act1", *_LAYERS])]
    if variant.endswith("-caffe"):
        return [_timm_caffe(variant.removesuffix("-caffe"))]
    name = variant.replace("-", "_")
    found = [_timm(name, TIMM_RESNET, ["act1", *_LAYERS])]
    if variant in _TORCHVISION_RESNETS:
        found.append(_torchvision(name, TORCHVISION_RESNET, ["relu", *_LAYERS]))
    if TRANSFORMERS_RESNET.applies(backbone.architecture):
        found.append(_transformers_resnet(variant, backbone))
    return found


def _regnet_peers(variant: str, backbone: Backbone) -> list[Peer]:
    from trunkline.zoo import info

    timm_name = variant.replace("regnet-", "regnet").replace("-", "_")
    found = [_timm(timm_name, TIMM_REGNET, ["stem", "s1", "s2", "s3", "s4"])]
    trunk = ["stem", *(f"trunk_output.block{i}" for i in range(1, 5))]
    found += [
        _torchvision(alias.replace("-", "_"), TORCHVISION_REGNET, trunk)
        for alias in info(variant).aliases
        if alias.startswith("regnet-") and alias.endswith(("mf", "gf"))
    ]
    if TRANSFORMERS_REGNET.applies(backbone.architecture):
        found.append(_transformers_regnet(variant, backbone))
    return found
