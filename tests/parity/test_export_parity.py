"""Every variant as an ONNX and as an OpenVINO file with dynamic sizes, against the backbone.

Run by ``make parity``: a quarter of an hour; ``make test`` exports tiny networks.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import trunkline
from trunkline import Backbone
from trunkline.runtimes.export import CHECKED, export
from trunkline.runtimes.fidelity import MAX_RELATIVE

pytestmark = pytest.mark.parity


def _well_conditioned(variant: str) -> Backbone:
    """Return a random network whose norms are near the identity, but not it.

    Statistics drawn more freely let a deep network multiply rounding errors until float32 itself
    is 1e-3 from float64, and then the file would be compared with that rather than with the
    network.
    """
    torch.manual_seed(0)
    backbone = trunkline.create_backbone(variant)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            for factor in (module.weight, module.running_var):
                nn.init.uniform_(factor, 0.9, 1.1)  # type: ignore[arg-type]
            for offset in (module.bias, module.running_mean):
                nn.init.uniform_(offset, -0.1, 0.1)  # type: ignore[arg-type]
    return backbone


@pytest.mark.parametrize("variant", trunkline.list_backbones())
def test_every_variant_at_dynamic_sizes(variant: str, tmp_path: Path) -> None:
    backbone = _well_conditioned(variant)
    for number, (kind, name) in enumerate((("onnx", "net.onnx"), ("openvino", "net.xml"))):
        report = export(
            backbone,
            tmp_path / name,
            kind,  # type: ignore[arg-type]  # one of the two
            preprocess=bool(number),
        )
        assert [one.shape for one in report.fidelity] == list(CHECKED)
        for one in report.fidelity:
            assert [level.stride for level in one.levels] == [4, 8, 16, 32]
            assert all(level.max_relative <= MAX_RELATIVE["fp32"] for level in one.levels)
        assert json.loads(report.metadata["trunkline.channels"]) == list(backbone.channels)
        assert report.metadata["trunkline.variant"] == variant
        assert report.num_bytes > 4 * backbone.num_parameters * 0.95
        for file in report.files:
            file.path.unlink()  # 320 MB for the largest
