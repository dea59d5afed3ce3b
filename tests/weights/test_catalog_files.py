"""One file of each kind that the catalog lists, as its upstream writes it, asked for by its tag."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trunkline import Backbone, create_backbone
from trunkline.outputs import sha256_of
from trunkline.weights import catalog
from trunkline.weights.catalog import lookup
from trunkline.weights.files.places import suffix
from trunkline.weights.layouts import LAYOUTS
from trunkline.weights.layouts.layout import BATCH_COUNTER
from trunkline.weights.translation import to_upstream

State = dict[str, Tensor]
Wrap = Callable[[State, State], Any]


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def linear(name: str, classes: int, features: int) -> State:
    weight = torch.full((classes, features), 0.5)
    return {f"{name}.weight": weight, f"{name}.bias": torch.zeros(classes)}


def timm_without_head(mine: State, _: State) -> Any:
    return mine


def data_parallel(mine: State, _: State) -> Any:
    inner = mine | linear("fc", 365, 512)
    return {"arch": "resnet18", "epoch": 90, "state_dict": under("module.", inner)}


def x_ray(mine: State, _: State) -> Any:
    return mine | linear("fc", 18, 2048)


def attacked(mine: State, _: State) -> Any:
    inner = mine | linear("fc", 1000, 512)
    colours = {"new_mean": torch.zeros(3, 1, 1), "new_std": torch.ones(3, 1, 1)}
    state = {
        **under("module.normalizer.", colours),
        **under("module.model.", inner),
        **under("module.attacker.normalize.", colours),
        **under("module.attacker.model.", inner),
    }
    return {"model": state, "optimizer": {"state": {}}, "epoch": 90}


def moco(mine: State, other: State) -> Any:
    state = {
        **under("module.encoder_q.", mine | linear("fc.0", 512, 512) | linear("fc.2", 128, 512)),
        **under("module.encoder_k.", other | linear("fc.0", 512, 512) | linear("fc.2", 128, 512)),
        "module.queue": torch.zeros(128, 8),
        "module.queue_ptr": torch.zeros(1, dtype=torch.long),
    }
    return {"epoch": 800, "arch": "resnet18", "state_dict": state}


def moco_v3(mine: State, other: State) -> Any:
    state = {
        **under("module.base_encoder.", mine | linear("fc.0", 8, 2048)),
        **under("module.momentum_encoder.", other | linear("fc.0", 8, 2048)),
        **under("module.predictor.", linear("0", 8, 8)),
    }
    return {"epoch": 1000, "arch": "resnet50", "state_dict": state, "scaler": {"scale": 1.0}}


def vissl(mine: State, _: State) -> Any:
    model = {"trunk": under("_feature_blocks.", mine), "heads": linear("0.clf.0", 8, 2048)}
    return {"classy_state_dict": {"base_model": {"model": model}}, "iteration": 10}


def swav(mine: State, _: State) -> Any:
    heads = linear("projection_head.0", 8, 2048) | {"prototypes.weight": torch.ones(8, 8)}
    return under("module.", mine | heads)


def lightly(mine: State, other: State) -> Any:
    state = {
        **under("backbone.", mine),
        **under("student_backbone.", other),
        **under("projection_head.", linear("layers.0", 8, 2048)),
        **linear("online_classifier.linear", 10, 2048),
    }
    return {"state_dict": state, "epoch": 99, "pytorch-lightning_version": "2.0.0"}


def mmpretrain(mine: State, other: State) -> Any:
    state = {
        **under("backbone.", mine),
        **under("target_net.module.0.", other),
        **under("neck.", linear("fc0", 8, 2048)),
    }
    return {"meta": {"epoch": 200}, "state_dict": state}


FILES: dict[str, tuple[str, str, Wrap]] = {  # kind → variant, tag, what its upstream writes
    "torchgeo": ("resnet50", "torchgeo-sentinel2-all-softcon", timm_without_head),
    "torchxrayvision": ("resnet50", "torchxrayvision-all-512", x_ray),
    "places365": ("resnet18", "places365", data_parallel),
    "robust": ("resnet18", "robust-linf-eps4", attacked),
    "pass": ("resnet18", "pass-moco-v2-800ep", moco),
    "moco-v3": ("resnet50", "moco-v3-1000ep", moco_v3),
    "vissl": ("resnet50", "vissl-simclr-1000ep", vissl),
    "swav": ("resnet50", "swav-800ep", swav),
    "lightly": ("resnet50", "lightly-dino", lightly),
    "mmpretrain": ("resnet50", "mmpretrain-byol-200ep", mmpretrain),
}


def named(backbone: Backbone, layout: str) -> State:
    """Return a network's tensors as its upstream names them, without its own prefix."""
    known = LAYOUTS[layout]
    written = to_upstream(known, backbone.architecture, backbone.state_dict())
    return {name.removeprefix(known.prefix): tensor for name, tensor in written.items()}


def network(variant: str, seed: int, channels: int) -> Backbone:
    torch.manual_seed(seed)
    return create_backbone(variant, weights=None, in_channels=channels)


@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_each_kind_loads_by_its_tag(
    kind: str, weights_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not weights_home.exists()  # nothing is in the cache
    variant, tag, wrap = FILES[kind]
    row = catalog.find(variant, tag)
    trained = network(variant, 1, row.channels)
    twin = network(variant, 2, row.channels)
    folder = tmp_path / "brought"
    folder.mkdir()
    written = wrap(named(trained, row.layout), named(twin, row.layout))
    path = folder / f"{variant}.{tag}{suffix(row.file_name)}"
    torch.save(written, path)
    if row.sha256_prefix:  # the row knows its own file: let it know this one
        place = replace(row.places[0], sha256=sha256_of(path), sha256_prefix=None)
        known = replace(row, places=(place,))
        monkeypatch.setattr(lookup, "_rows", lambda: {variant: (known,)})
    monkeypatch.setenv("TRUNKLINE_WEIGHTS", str(folder))
    monkeypatch.setenv("TRUNKLINE_OFFLINE", "1")

    loaded = create_backbone(
        variant, weights=tag, in_channels=row.channels, allow_noncommercial=True
    )

    theirs = loaded.state_dict()
    for name, tensor in trained.state_dict().items():
        if not name.endswith(BATCH_COUNTER):
            assert torch.equal(tensor, theirs[name]), name
    assert loaded.load_report is not None
    assert (loaded.load_report.tag, loaded.load_report.license) == (tag, row.license)
    assert "was trained on" not in str(loaded.load_report)


def test_another_number_of_channels_is_said(
    weights_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not weights_home.exists()
    row = catalog.find("resnet50", "torchgeo-sentinel2-all-softcon")
    folder = tmp_path / "brought"
    folder.mkdir()
    torch.save(named(network("resnet50", 1, 13), row.layout), folder / f"resnet50.{row.tag}.pth")
    monkeypatch.setenv("TRUNKLINE_WEIGHTS", str(folder))
    loaded = create_backbone("resnet50", weights=row.tag)
    assert loaded.in_channels == 3
    said = str(loaded.load_report)
    assert "was trained on 13 channels (B1, B2, " in said
    assert "this network takes 3: in_channels=13 loads the stem as it is." in said
