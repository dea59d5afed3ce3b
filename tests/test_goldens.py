"""Every variant against what its peer computed, at every level, without any peer installed.

Stored by tools/goldens.py; variants over 100 M parameters are compared in ``make parity`` only.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from peers import images_for
from safetensors import safe_open
from safetensors.numpy import load_file

import goldens
import trunkline

STORED = sorted(goldens.GOLDENS.glob("*.safetensors"))
TOLERANCE = 1e-5  # of the largest value of a map, in float64


def test_every_variant_of_up_to_100_million_parameters_has_a_golden() -> None:
    wanted = {
        name
        for name in trunkline.list_backbones()
        if trunkline.info(name).num_parameters <= goldens.LARGEST
    }
    assert {path.stem for path in STORED} == wanted
    assert len(wanted) == 59


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_maps_equal_the_peers(path: Path) -> None:
    backbone = goldens.empty_backbone(path.stem)
    with torch.inference_mode():
        maps = backbone(images_for(goldens.HEIGHT, goldens.WIDTH))
    ours = {
        level.name: goldens.summary(level.name, feature_map)
        for level, feature_map in zip(backbone.returned_levels, maps, strict=True)
    }
    stored = load_file(path)
    # Hugging Face's ResNets have no stride-2 map; all others do.
    assert ours.keys() - stored.keys() <= ({"stem"} if path.stem.endswith("vd") else set())
    for name, theirs in stored.items():
        scale = np.abs(theirs).max()
        assert scale > 0.1  # a golden of zeros would agree with a network that computes nothing
        assert np.abs(ours[name] - theirs).max() <= TOLERANCE * scale, name


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_goldens_name_their_peer(path: Path) -> None:
    with safe_open(path, "numpy") as stored:
        assert stored.metadata()["peer"].split()[0] in {"timm", "transformers", "torchvision"}
