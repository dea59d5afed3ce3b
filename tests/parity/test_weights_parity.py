"""Files between trunkline and live peers, both ways: strict loads, same maps, same logits.

Run by ``make parity`` in the peers' environment; ``make test`` leaves it out. Each side reads the
other's files with the calls that its users make.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import Peer, images_for, peers_of, state_for, tensor_for
from record_keys import LIVE
from safetensors.torch import save_file
from torch import Tensor, nn

import trunkline
from trunkline import Backbone, create_backbone
from trunkline.heads.classifier import load_classifier
from trunkline.weights.conversion import convert
from trunkline.weights.matching import classifier_names

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("default"),  # what peers warn of is theirs to mend
]
MAX_PARAMETERS = 30_000_000  # above are the same blocks, wider and deeper
# Of the largest value. Float32 rounds differently where two libraries order sums differently; a
# few networks of random numbers amplify that (regnet-y-016 to 8e-4), so there the peer's own
# distance from its float64 result is allowed four times over.
EXACT, TOLERANCE = 1e-10, 1e-4
HEIGHT, WIDTH = 96, 64  # multiples of 32: timm's DLA takes no other
CLASSES = 1000


def _meta(variant: str) -> Backbone:
    with torch.device("meta"):
        backbone: Backbone = create_backbone(variant)
    return backbone


@cache
def _networks(layout: str) -> dict[tuple[str, str], Any]:
    """Return how to build a peer's whole networks, by our name and by its own."""
    return {(variant, name): build for variant, name, build in LIVE[layout]()}


def _cases() -> list[tuple[str, str]]:
    """Return (variant, layout) for every layout of a live peer."""
    found = []
    for variant in trunkline.list_backbones():
        backbone = _meta(variant)
        if backbone.num_parameters <= MAX_PARAMETERS:
            layouts = [peer.layout for peer in peers_of(backbone)]
            applying = [one for one in layouts if one.applies(backbone.architecture)]
            found += [(variant, one.name) for one in dict.fromkeys(applying)]
    return found


CASES = _cases()


def _peer(variant: str, layout: str) -> tuple[Peer, nn.Module]:
    """Return a peer and its whole network, with its classifier and without weights to speak of."""
    peer = next(one for one in peers_of(_meta(variant)) if one.layout.name == layout)
    builders = {n: build for (v, n), build in _networks(layout).items() if v == variant}
    build = builders.get(peer.name) or next(iter(builders.values()))
    model: nn.Module = build()
    return peer, model.eval()


def _has_classifier(peer: Peer, variant: str) -> bool:
    return bool(classifier_names(peer.layout, _meta(variant).architecture))


def _their_outputs(peer: Peer, model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return a peer's maps, and behind them its logits, where it has some."""
    maps = peer.maps(model, images)
    output = model(images)
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    return maps if logits is None else [*maps, logits]


def _our_outputs(peer: Peer, networks: list[nn.Module], images: Tensor) -> list[Tensor]:
    backbone, *classifier = networks
    maps = backbone(images)[0 if peer.has_stem else 1 :]
    return [*maps, *(network(images) for network in classifier)]


def _compare(peer: Peer, variant: str, model: nn.Module, file: Path) -> None:
    """Hold a peer's network against ours, loaded from ``file``."""
    networks: list[nn.Module] = [create_backbone(variant, weights=file, return_stem=True).eval()]
    if _has_classifier(peer, variant):
        networks.append(load_classifier(variant, file))
    images = images_for(HEIGHT, WIDTH)
    ours, theirs = {}, {}
    with torch.inference_mode():
        for dtype in (torch.float32, torch.float64):  # the same numbers, widened
            for network in (model, *networks):
                network.to(dtype)
            ours[dtype] = _our_outputs(peer, networks, images.to(dtype))
            theirs[dtype] = _their_outputs(peer, model, images.to(dtype))
    exact = theirs[torch.float64]
    if len(networks) == 2:
        assert exact[-1].shape == (1, CLASSES)
    triples = zip(
        exact, ours[torch.float64], ours[torch.float32], theirs[torch.float32], strict=True
    )
    for truth, mine64, mine32, other32 in triples:
        assert mine64.shape == truth.shape
        assert _distance(mine64, truth, truth) <= EXACT
        lost = _distance(other32, truth, truth)
        assert _distance(mine32, other32, truth) <= TOLERANCE + 4 * lost


def _distance(one: Tensor, other: Tensor, truth: Tensor) -> float:
    return float((one - other).abs().max() / truth.abs().max())


def _load(library: str, model: nn.Module, file: Path) -> nn.Module:
    """Load a file as a peer's users do, strictly."""
    if library == "timm":
        from timm.models import load_checkpoint

        load_checkpoint(model, str(file), strict=True)
        return model
    if library == "torchvision":
        model.load_state_dict(torch.load(file, weights_only=True), strict=True)
        return model
    peer_model: Any = model
    peer_model.config.save_pretrained(file.parent)
    loaded, info = type(peer_model).from_pretrained(file.parent, output_loading_info=True)
    problems = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    assert {name: list(info[name]) for name in problems if info.get(name)} == {}
    result: nn.Module = loaded.eval()
    return result


def _save(library: str, model: nn.Module, folder: Path) -> Path:
    """Save a network as a peer's users do."""
    if library == "torchvision":
        torch.save(model.state_dict(), folder / "model.pth")
        return folder / "model.pth"
    if library == "timm":
        save_file(model.state_dict(), folder / "model.safetensors")
    else:
        peer_model: Any = model
        peer_model.save_pretrained(folder)
    return folder / "model.safetensors"


@pytest.mark.parametrize(("variant", "layout"), CASES)
def test_peer_loads_what_we_write(variant: str, layout: str, tmp_path: Path) -> None:
    peer, model = _peer(variant, layout)
    backbone = _meta(variant)
    state = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in state_for(backbone).items()
    }
    if _has_classifier(peer, variant):
        for leaf, shape in (("weight", (CLASSES, backbone.channels[-1])), ("bias", (CLASSES,))):
            state[f"classifier.{leaf}"] = tensor_for(f"classifier.{leaf}", shape).float()
    native = tmp_path / "native.safetensors"
    save_file(state, native)
    suffix = "pth" if peer.library == "torchvision" else "safetensors"
    written = tmp_path / "theirs" / f"model.{suffix}"
    report = convert(native, written, peer.library, variant=variant)
    assert report.written_as == layout
    assert report.classifier == _has_classifier(peer, variant)
    _compare(peer, variant, _load(peer.library, model, written), native)


@pytest.mark.parametrize(("variant", "layout"), CASES)
def test_we_load_what_the_peer_saves(variant: str, layout: str, tmp_path: Path) -> None:
    peer, model = _peer(variant, layout)
    numbers = {n: tensor_for(n, tuple(t.shape)) for n, t in model.state_dict().items()}
    model.load_state_dict(numbers, strict=True)  # torch casts them to the network's type
    _compare(peer, variant, model, _save(peer.library, model, tmp_path))


def test_every_layout_of_a_live_peer_is_compared() -> None:
    assert {layout for _, layout in CASES} == set(LIVE)
    assert {trunkline.info(variant).family for variant, _ in CASES} == {"resnet", "dla", "regnet"}
