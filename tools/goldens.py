"""Write or check tests/goldens: what the peers compute, at a few hundred positions of every map.

    python tools/goldens.py             # compare the stored files with the peers
    python tools/goldens.py --update    # write them anew

Needs the environment of ``make parity``. Weights and image are functions of names and shapes
(tools/peers.py), so the tests make the same ones without any peer.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from pathlib import Path

import numpy as np
import torch
from peers import Peer, images_for, peers_of, positions_for, state_for, upstream_state
from safetensors.numpy import load_file, save_file
from torch import Tensor

from trunkline import Backbone, create_backbone, info, list_backbones

GOLDENS = Path(__file__).parent.parent / "tests" / "goldens"
LARGEST = 100_000_000  # parameters; beyond that only `make parity` compares
HEIGHT, WIDTH = 64, 96  # the least that has a 2×3 map at stride 32, so H and W cannot be swapped


def summary(level: str, feature_map: Tensor) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Return mean, standard deviation and the values at fixed positions of one map."""
    flat = feature_map.detach().flatten().double()
    kept = flat[positions_for(level, flat.numel())]
    moments = torch.stack([flat.mean(), flat.std(correction=0)])
    return torch.cat([moments, kept]).float().numpy()


def empty_backbone(variant: str) -> Backbone:
    """Return a float64 backbone with all its maps and the deterministic weights."""
    with torch.device("meta"):
        backbone = create_backbone(variant, return_stem=True).double().eval()
    backbone.load_state_dict(state_for(backbone), assign=True)
    return backbone


def golden(variant: str) -> tuple[dict[str, np.ndarray[tuple[int], np.dtype[np.float32]]], Peer]:
    """Return the peer's summaries of all maps by level name, and the peer."""
    with torch.device("meta"):
        backbone = create_backbone(variant, return_stem=True).double()
    peer = peers_of(backbone)[0]
    model = peer.build().double().eval()
    state = upstream_state(peer, backbone, state_for(backbone))
    # RT-DETR's frozen norms count no batches; everything else must be there to the letter.
    frozen = not any(name.endswith("num_batches_tracked") for name in model.state_dict())
    state = {n: t for n, t in state.items() if not (frozen and n.endswith("num_batches_tracked"))}
    model.load_state_dict(state, strict=True)
    with torch.inference_mode():
        maps = peer.maps(model, images_for(HEIGHT, WIDTH))
    levels = backbone.levels if peer.has_stem else backbone.levels[1:]
    return {
        level.name: summary(level.name, feature_map)
        for level, feature_map in zip(levels, maps, strict=True)
    }, peer


def main() -> int:
    """Compare or write every golden; return the number of differences."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--update", action="store_true", help="write the files anew")
    parser.add_argument("variants", nargs="*", help="only these; all if none is given")
    arguments = parser.parse_args()
    update = arguments.update
    wrong = 0
    for variant in arguments.variants or list_backbones():
        if info(variant).num_parameters > LARGEST:
            continue
        arrays, peer = golden(variant)
        path = GOLDENS / f"{variant}.safetensors"
        if update:
            version = importlib.metadata.version(peer.library)
            save_file(arrays, path, {"peer": f"{peer.library} {version} {peer.name}"})
            print(f"{variant}: written from {peer.library} {peer.name}")
            continue
        stored = load_file(path)
        same = stored.keys() == arrays.keys() and all(
            np.allclose(stored[name], arrays[name], rtol=1e-6, atol=1e-6) for name in arrays
        )
        print(f"{variant}: {'same' if same else 'DIFFERENT'} as {peer.library} {peer.name}")
        wrong += not same
    return wrong


if __name__ == "__main__":
    sys.exit(main())
