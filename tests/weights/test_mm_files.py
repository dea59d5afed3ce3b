"""Files of mmsegmentation and of networks with group norms, as people have them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from upstream_files import run, upstream_tensors

from trunkline import ResNet, create_backbone, load_weights
from trunkline.errors import WeightsMismatchError
from trunkline.weights.layouts import LAYOUTS
from trunkline.weights.translation import to_upstream
from trunkline.zoo import variant_config

pytestmark = pytest.mark.usefixtures("weights_home")

# timm's names of a deep stem, and mmsegmentation's.
STEM = {
    **{"conv1.0.": "stem.0.", "conv1.1.": "stem.1.", "conv1.3.": "stem.3."},
    **{"conv1.4.": "stem.4.", "conv1.6.": "stem.6.", "bn1.": "stem.7."},
}


def of_mmsegmentation(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return timm's tensors of a network without pools in its shortcuts, as V1c calls them."""
    renamed = {}
    for name, tensor in tensors.items():
        start = next((start for start in STEM if name.startswith(start)), "")
        renamed[prefix + STEM.get(start, "") + name[len(start) :]] = tensor
    return renamed


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_resnet50_v1c_is_resnet50c(tmp_path: Path, prefix: str) -> None:
    tensors = {
        n: t for n, t in upstream_tensors("timm-resnet", "resnet50c").items() if "fc" not in n
    }
    torch.save(tensors, tmp_path / "timm.pth")
    torch.save({"state_dict": of_mmsegmentation(tensors, prefix), "meta": {}}, tmp_path / "mm.pth")
    ours, theirs = (
        create_backbone("resnet50c", weights=tmp_path / f"{name}.pth", return_idx=(0, 1))
        for name in ("mm", "timm")
    )
    assert ours.load_report is not None
    assert ours.load_report.layout == "mmsegmentation-resnet-deep-stem"
    images = torch.randn(1, 3, 64, 48)
    assert all(map(torch.equal, run(ours, images), run(theirs, images)))
    with pytest.raises(
        WeightsMismatchError, match=r"resnet50d .*Missing.*layer2\.0\.downsample\.2"
    ):
        create_backbone("resnet50d", weights=tmp_path / "mm.pth")


def test_other_depths_of_v1c_are_networks_of_one_s_own(tmp_path: Path) -> None:
    config = replace(variant_config("resnet18"), stem_widths=(32, 32, 64))  # type: ignore[type-var]
    ours = ResNet(config)  # type: ignore[arg-type]
    tensors = to_upstream(LAYOUTS["timm-resnet"], ours.architecture, ours.state_dict())
    save_file(of_mmsegmentation(tensors, "backbone."), tmp_path / "x.safetensors")
    loaded = ResNet(depth=18, stem_widths=(32, 32, 64), weights=tmp_path / "x.safetensors")
    assert all(torch.equal(t, ours.state_dict()[n]) for n, t in loaded.state_dict().items())


def test_group_norms_under_timm_s_names_need_group_norms(tmp_path: Path) -> None:
    theirs = create_backbone("resnet50", norm="group", return_idx=(0,))
    layout = LAYOUTS["timm-resnet-group-norm"]
    tensors = to_upstream(layout, theirs.architecture, theirs.state_dict())
    assert {"bn1.weight", "bn1.bias", "layer1.0.downsample.1.bias"} < tensors.keys()
    assert not any("running" in name or "tracked" in name for name in tensors)
    save_file(tensors, tmp_path / "x.safetensors")
    ours = create_backbone("resnet50", norm="group", return_idx=(0,))
    report = load_weights(ours, tmp_path / "x.safetensors")
    assert report.layout == "timm-resnet-group-norm"
    assert all(torch.equal(t, theirs.state_dict()[n]) for n, t in ours.state_dict().items())
    with pytest.raises(WeightsMismatchError, match=r"running_mean.*build it with norm='group'"):
        create_backbone("resnet50", return_idx=(0,), weights=tmp_path / "x.safetensors")
