"""Every variant as an ONNX and as an OpenVINO file with dynamic sizes, against the backbone.

Run by ``make parity``: a quarter of an hour; ``make test`` exports tiny networks.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peers import state_for

import trunkline
from trunkline import Backbone
from trunkline.runtimes.export import CHECKED, export
from trunkline.runtimes.fidelity import MAX_RELATIVE

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("variant", trunkline.list_backbones())
def test_every_variant_at_dynamic_sizes(variant: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        backbone: Backbone = trunkline.create_backbone(variant)
    backbone.load_state_dict(state_for(backbone.double()), assign=True)
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
