"""What other libraries call a variant; their real networks are compared by `make parity`."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trunkline import Backbone, create_backbone
from trunkline.benchmarking import peers
from trunkline.benchmarking.peers import Peer, find_peer, give_weights, maps_of
from trunkline.errors import ConfigError, NotInstalledError, WeightsMismatchError

TIMM = ("resnet18", "resnet50d", "dla34", "dla46_c", "regnety_040", "regnety_008_tv", "vit_tiny")
TORCHVISION = ("resnet18", "regnet_y_800mf", "wide_resnet50_2", "vgg11")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries that know some names; nothing of them is built here."""
    timm: Any = ModuleType("timm")
    timm.list_models = lambda: list(TIMM)
    torchvision: Any = ModuleType("torchvision")
    torchvision.models = SimpleNamespace(list_models=lambda **_: list(TORCHVISION))
    for module in (timm, torchvision, ModuleType("transformers")):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def meta(name: str) -> Backbone:
    with torch.device("meta"):
        return create_backbone(name)


@pytest.mark.parametrize(
    ("variant", "library", "model"),
    [
        ("resnet18", "timm", "resnet18"),
        ("dla46-c", "timm", "dla46_c"),
        ("regnet-y-040", "timm", "regnety_040"),
        ("regnet-y-008-tv", "timm", "regnety_008_tv"),
        ("regnet-y-008-tv", "torchvision", "regnet_y_800mf"),
        ("wide-resnet50-2", "torchvision", "wide_resnet50_2"),
        ("resnet50", "transformers", "ResNetConfig"),
        ("resnet50vd", "transformers", "RTDetrResNetConfig"),
        ("regnet-x-002", "transformers", "RegNetConfig"),
    ],
)
@pytest.mark.usefixtures("installed")
def test_a_variant_is_found_under_each_library_s_name(
    variant: str, library: str, model: str
) -> None:
    found = find_peer(library, meta(variant))
    assert (found.library, found.model) == (library, model)


@pytest.mark.usefixtures("installed")
def test_levels_asked_for_are_those_at_strides_4_to_32() -> None:
    assert find_peer("timm", meta("dla34")).options == {"out_indices": [2, 3, 4, 5]}
    assert find_peer("timm", meta("resnet18")).options == {"out_indices": [1, 2, 3, 4]}


@pytest.mark.usefixtures("installed")
def test_a_library_without_the_variant_is_an_error_that_names_those_that_have_it() -> None:
    with pytest.raises(ConfigError, match=r"torchvision has no dla34; .* here: timm\. Compare"):
        find_peer("torchvision", meta("dla34"))
    with pytest.raises(ConfigError, match=r"timm has no resnet50-caffe; .* here: transformers\."):
        find_peer("timm", meta("resnet50-caffe"))
    with pytest.raises(ConfigError, match=r"transformers has no resnext50-32x4d; .* here: "):
        find_peer("transformers", meta("resnext50-32x4d"))


@pytest.mark.usefixtures("installed")
def test_transformers_is_told_where_a_bottleneck_halves() -> None:
    options = find_peer("transformers", meta("resnet50-caffe")).options
    assert options["downsample_in_bottleneck"] is True
    assert "downsample_in_bottleneck" not in find_peer("transformers", meta("resnet50")).options


def test_an_unknown_peer_is_an_error_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no peer 'keras'; .* timm, torchvision, transformers"):
        find_peer("keras", meta("resnet18"))


@pytest.mark.parametrize("error", [ImportError("not here"), RuntimeError("another torch")])
def test_a_library_that_does_not_import_is_an_error_with_the_install_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_name: str) -> ModuleType:
        raise error

    monkeypatch.setattr(peers, "import_module", broken)
    with pytest.raises(NotInstalledError, match=rf"\({error}\); .*: pip install torchvision"):
        find_peer("torchvision", meta("resnet18"))


class Answers(nn.Module):
    def __init__(self, shape: Any) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, images: Tensor) -> Any:
        return self.shape(images + 1, images + 2)


class Output(dict[str, Any]):
    """As transformers' outputs: a dict with attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


@pytest.mark.parametrize(
    "answer",
    [
        lambda a, b: [a, b],
        lambda a, b: (a, b),
        lambda a, b: {"layer1": a, "layer2": b},
        lambda a, b: Output(feature_maps=(a, b)),
        lambda a, b: Output(last_hidden_state=b, hidden_states=(a - 1, a, b)),
    ],
)
def test_maps_come_out_of_every_container(answer: Any) -> None:
    images = torch.rand(1, 3, 4, 4)
    maps = maps_of(Answers(answer), images)
    assert [torch.equal(one, images + n) for n, one in enumerate(maps, 1)] == [True, True]
    assert maps[0].is_inference()


def test_names_of_another_version_are_an_error_and_nothing_is_copied() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1))
    before = network[0].weight.clone()  # type: ignore[operator]
    peer = Peer("timm", "resnet18", "resnet", {})
    with pytest.raises(WeightsMismatchError, match=r"timm's resnet18 differ .* another version"):
        give_weights(peer, network, create_backbone("resnet18"))
    assert torch.equal(before, network[0].weight)  # type: ignore[arg-type]
    with pytest.raises(WeightsMismatchError, match=r"torchvision has no names .* of dla34"):
        give_weights(Peer("torchvision", "dla34", "dla", {}), network, meta("dla34"))
