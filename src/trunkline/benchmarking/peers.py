"""Other libraries' versions of a variant, used as their users run them.

========================  =====================================================================
timm                      ``create_model(NAME, features_only=True, out_indices=…)``
torchvision               ``create_feature_extractor(get_model(NAME), …)``
transformers              ``AutoBackbone.from_config``; its RegNet has no backbone class, so
                          ``RegNetModel`` with ``output_hidden_states``
========================  =====================================================================

All run eagerly, in eval mode and without gradients. They get trunkline's weights under their own
names, so that the maps can be compared, and not only their shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor, nn

from trunkline.backbones.backbone import Architecture, Backbone
from trunkline.errors import ConfigError, NotInstalledError, WeightsMismatchError
from trunkline.weights.layouts import TARGETS
from trunkline.weights.layouts.layout import BATCH_COUNTER, CLASSIFIER, Layout
from trunkline.weights.layouts.transformers import (
    TRANSFORMERS_REGNET,
    TRANSFORMERS_RESNET_1X1,
    TRANSFORMERS_RTDETR,
)
from trunkline.weights.translation import to_upstream
from trunkline.zoo import info

LIBRARIES = ("timm", "torchvision", "transformers")
_STAGES = ("stage1", "stage2", "stage3", "stage4")


@dataclass(frozen=True)
class Peer:
    """What another library calls a variant; plain values, so that another process can build it.

    Attributes:
        library: One of ``LIBRARIES``.
        model: Its name there; for transformers the kind of its config.
        family: Of the variant.
        options: What the library needs beside the name.
    """

    library: str
    model: str
    family: str
    options: Mapping[str, Any]


def find_peer(library: str, backbone: Backbone) -> Peer:
    """Return what a library calls the variant of a backbone.

    Raises:
        NotInstalledError: The library cannot be imported.
        ConfigError: An unknown library, or one without this variant.
    """
    if library not in LIBRARIES:
        raise ConfigError(f"no peer {library!r}; allowed: {', '.join(LIBRARIES)}.")
    _import(library)
    if found := _FINDERS[library](backbone):
        return found
    others = [other for other in LIBRARIES if other != library and _has(other, backbone)]
    raise ConfigError(
        f"{library} has no {backbone.variant or 'network of this config'}; "
        f"peers that have it here: {', '.join(others) or 'none'}. Compare with those."
    )


def build_peer(peer: Peer) -> nn.Module:
    """Build a peer's network in eval mode; called with images, it returns maps in any container.

    Raises:
        NotInstalledError: The library cannot be imported.
    """
    return _BUILDERS[peer.library](peer).eval()


def maps_of(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Run a peer's network without gradients.

    Args:
        network: Of ``build_peer``.
        images: ``(N, 3, H, W)``.

    Returns:
        Its maps at strides 4, 8, 16 and 32, ``(N, C, H/stride, W/stride)`` each.
    """
    with torch.inference_mode():
        out = network(images)
    if isinstance(out, Mapping) and not hasattr(out, "feature_maps"):
        out = out["hidden_states"][1:] if "hidden_states" in out else out.values()
    return list(getattr(out, "feature_maps", out))


def give_weights(peer: Peer, network: nn.Module, backbone: Backbone) -> None:
    """Copy a backbone's weights into a peer's network.

    Raises:
        WeightsMismatchError: The names of this version of the library are not the known ones.
    """
    layout = _layout(peer.library, backbone.architecture)
    if layout is None:
        raise WeightsMismatchError(
            f"{peer.library} has no names for the weights of {backbone.variant}; "
            "leave it out of the comparison."
        )
    renamed = to_upstream(layout, backbone.architecture, backbone.state_dict())
    state = {name.removeprefix(layout.prefix): tensor for name, tensor in renamed.items()}
    wanted = network.state_dict()
    shared = {name: tensor for name, tensor in state.items() if name in wanted}
    rest = [
        name
        for name in (wanted.keys() ^ state.keys())
        if not name.endswith(BATCH_COUNTER) and not name.startswith((CLASSIFIER, "fc."))
    ]
    if rest:
        raise WeightsMismatchError(
            f"the names of {peer.library}'s {peer.model} differ from the known ones in "
            f"{len(rest)} tensors ({', '.join(sorted(rest)[:10])}); "
            "try another version of that library."
        )
    network.load_state_dict(shared, strict=False)


def _import(library: str, module: str = "") -> Any:
    try:
        return import_module(module or library)
    # RuntimeError: torchvision beside a torch that it was not built for.
    except (ImportError, RuntimeError) as error:
        raise NotInstalledError(
            f"the comparison with {library} needs {library}, which cannot be imported "
            f"({error}); install it with: pip install {library}"
        ) from error


def _has(library: str, backbone: Backbone) -> bool:
    try:
        _import(library)
    except NotInstalledError:
        return False  # nobody can compare with it here
    return _FINDERS[library](backbone) is not None


def _layout(library: str, architecture: Architecture) -> Layout | None:
    fitting = (layout for layout in TARGETS[library] if layout.applies(architecture))
    return next(fitting, None)


def _plain(name: str) -> str:
    """Return a name without what libraries spell differently."""
    return name.lower().replace("-", "").replace("_", "")


def _named(backbone: Backbone, known: list[str]) -> str | None:
    """Return which of a library's names means the variant of a backbone."""
    if backbone.variant is None:
        return None
    by_plain = {_plain(name): name for name in known}
    own = info(backbone.variant)
    found = (by_plain.get(_plain(name)) for name in (own.name, *own.aliases))
    return next((name for name in found if name is not None), None)


def _find_timm(backbone: Backbone) -> Peer | None:
    name = _named(backbone, _import("timm").list_models())
    if name is None:
        return None
    family = backbone.architecture.family
    first = 2 if family == "dla" else 1  # DLA counts a map at stride 1
    return Peer("timm", name, family, {"out_indices": list(range(first, first + 4))})


def _build_timm(peer: Peer) -> nn.Module:
    timm = _import("timm")
    network = timm.create_model(
        peer.model, features_only=True, out_indices=tuple(peer.options["out_indices"])
    )
    return cast(nn.Module, network)


def _find_torchvision(backbone: Backbone) -> Peer | None:
    models = _import("torchvision").models
    name = _named(backbone, models.list_models(module=models))
    family = backbone.architecture.family
    stem = "trunk_output.block" if family == "regnet" else "layer"
    nodes = [f"{stem}{number}" for number in range(1, 5)]
    return Peer("torchvision", name, family, {"nodes": nodes}) if name else None


def _build_torchvision(peer: Peer) -> nn.Module:
    model = _import("torchvision").models.get_model(peer.model, weights=None)
    extraction = _import("torchvision", "torchvision.models.feature_extraction")
    nodes = {node: node for node in peer.options["nodes"]}
    return cast(nn.Module, extraction.create_feature_extractor(model.eval(), return_nodes=nodes))


def _find_transformers(backbone: Backbone) -> Peer | None:
    plan: Any = backbone.architecture
    layout = _layout("transformers", plan)
    if layout is None:
        return None
    sizes = {"hidden_sizes": list(plan.stage_channels), "depths": list(plan.stage_depths)}
    if layout is TRANSFORMERS_REGNET:
        kind = "y" if plan.squeeze else "x"
        options = {**sizes, "groups_width": plan.group_width, "layer_type": kind}
        return Peer("transformers", "RegNetConfig", plan.family, options)
    kind = "bottleneck" if plan.bottleneck else "basic"
    options = {**sizes, "embedding_size": plan.stem_channels, "layer_type": kind}
    options["out_features"] = list(_STAGES)
    if layout is TRANSFORMERS_RESNET_1X1:
        options["downsample_in_bottleneck"] = True
    config = "RTDetrResNetConfig" if layout is TRANSFORMERS_RTDETR else "ResNetConfig"
    return Peer("transformers", config, plan.family, options)


def _build_transformers(peer: Peer) -> nn.Module:
    transformers = _import("transformers")
    config = getattr(transformers, peer.model)(**peer.options)
    if peer.model == "RegNetConfig":
        config.output_hidden_states = True
        return cast(nn.Module, transformers.RegNetModel(config))
    return cast(nn.Module, transformers.AutoBackbone.from_config(config))


_FINDERS: dict[str, Callable[[Backbone], Peer | None]] = {
    "timm": _find_timm,
    "torchvision": _find_torchvision,
    "transformers": _find_transformers,
}
_BUILDERS: dict[str, Callable[[Peer], nn.Module]] = {
    "timm": _build_timm,
    "torchvision": _build_torchvision,
    "transformers": _build_transformers,
}
