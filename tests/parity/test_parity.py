"""Every variant against every peer that has it, live: full maps, both precisions, both sizes.

Run by ``make parity`` in the peers' environment; ``make test`` leaves it out.
"""

import pytest
import torch
from peers import images_for, peers_of, state_for, upstream_state
from torch import nn

import trunkline
from trunkline import Backbone, create_backbone

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("default"),  # what peers warn of is theirs to mend
]
SIZES = [(224, 224), (97, 161)]
# Of a map's largest value. Float32 rounds differently where two libraries order sums differently.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}


def _fill(model: nn.Module, state: dict[str, torch.Tensor]) -> nn.Module:
    counted = any(name.endswith("num_batches_tracked") for name in model.state_dict())
    if not counted:
        state = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


@pytest.mark.parametrize("variant", trunkline.list_backbones())
def test_full_maps_equal_every_peers(variant: str) -> None:
    with torch.device("meta"):
        backbone: Backbone = create_backbone(variant, return_stem=True).double().eval()
    state = state_for(backbone)
    backbone.load_state_dict(state, assign=True)
    peers = peers_of(backbone)
    assert peers
    for peer in peers:
        model = _fill(peer.build(), upstream_state(peer, backbone, state))
        for dtype, tolerance in TOLERANCES.items():
            backbone.to(dtype)
            model.to(dtype)
            for height, width in SIZES[:1] if peer.only_even else SIZES:
                images = images_for(height, width).to(dtype)
                with torch.inference_mode():
                    theirs = peer.maps(model, images)
                    ours = backbone(images)[0 if peer.has_stem else 1 :]
                assert len(ours) == len(theirs)
                for mine, other in zip(ours, theirs, strict=True):
                    assert mine.shape == other.shape
                    difference = (mine - other).abs().max() / other.abs().max()
                    assert float(difference) <= tolerance, (peer.library, peer.name, dtype)
        backbone.load_state_dict(state, assign=True)  # float64 again
