"""The peers of `trunkline bench` compute what the backbone computes. Run by `make parity`."""

import pytest
import torch

from trunkline import create_backbone
from trunkline.benchmarking.peers import build_peer, find_peer, give_weights, maps_of

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("default"),  # what peers warn of is theirs to mend
]


@pytest.mark.parametrize(
    ("variant", "libraries"),
    [
        ("resnet18", ("timm", "torchvision", "transformers")),
        ("resnet50d", ("timm",)),
        ("resnet50vd", ("transformers",)),
        ("dla34", ("timm",)),
        ("dla60x-c", ("timm",)),
        ("regnet-y-004", ("timm", "transformers")),
        ("regnet-x-008", ("timm", "transformers")),
        ("regnet-y-008-tv", ("timm", "torchvision")),
    ],
)
def test_a_peer_with_our_weights_returns_our_maps(variant: str, libraries: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(variant).eval()
    images = torch.randn(2, 3, 96, 64)
    with torch.inference_mode():
        ours = backbone(images)
    for library in libraries:
        peer = find_peer(library, backbone)
        network = build_peer(peer)
        give_weights(peer, network, backbone)
        theirs = maps_of(network, images)
        assert [tuple(m.shape) for m in theirs] == [tuple(m.shape) for m in ours]
        for mine, other in zip(ours, theirs, strict=True):
            assert float((mine - other).abs().max() / mine.abs().max()) <= 1e-4, library
