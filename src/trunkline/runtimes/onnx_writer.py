"""A backbone as an ONNX graph: the one form that ONNX Runtime, OpenVINO and servers all read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trunkline.backbones.backbone import Backbone
from trunkline.runtimes.graphs import AXES


def onnx_model(
    backbone: Backbone,
    *,
    input_shape: tuple[int, int, int] = (1, 224, 224),
    dynamic: Sequence[str] = AXES,
    preprocess: bool = False,
    opset: int = 18,
) -> Any:
    """Return the folded backbone as an ``onnx.ModelProto``.

    Args:
        backbone: Any of the three families.
        input_shape: (N, H, W) of the axes that are not dynamic.
        dynamic: Which of ``AXES`` may take any size.
        preprocess: Take ``(N, H, W, 3)`` uint8 RGB and normalise inside.
        opset: Version of ONNX's operators.

    Returns:
        A model with the input ``image`` and one output per returned level, see ``output_names``.
    """
    raise NotImplementedError
