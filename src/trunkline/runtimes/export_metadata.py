"""What an exported file says of itself: plain text by name, the same in every format."""

from __future__ import annotations

import json

import trunkline
from trunkline.backbones.backbone import Backbone
from trunkline.backbones.levels import output_names
from trunkline.preprocessing import IMAGENET
from trunkline.runtimes.export_config import ExportConfig
from trunkline.runtimes.graphs import AXES, INPUT_NAME
from trunkline.runtimes.provenance import provenance_of

PREFIX = "trunkline."


def metadata_of(backbone: Backbone, config: ExportConfig) -> dict[str, str]:
    """Return what a file says of the network in it.

    Args:
        backbone: What was exported.
        config: How.

    Returns:
        Text by key; what is no text is JSON. Nothing in it names this machine or a path on it.
        ``docs/export.md`` describes every key.
    """
    levels = backbone.returned_levels
    preprocessing = backbone.stated_preprocessing or (IMAGENET if config.preprocess else None)
    facts: dict[str, object] = {
        "version": trunkline.__version__,
        "variant": backbone.variant or "",
        "precision": config.precision,
        "input": {
            "name": INPUT_NAME,
            "dtype": "uint8" if config.preprocess else "float32",
            "layout": "NHWC" if config.preprocess else "NCHW",
            "channels": backbone.in_channels,
            "sizes": dict(zip(AXES, config.sized(-1, -1, -1), strict=True)),
        },
        "outputs": output_names(levels),
        "levels": [level.name for level in levels],
        "strides": [level.stride for level in levels],
        "channels": [level.channels for level in levels],
        **({"labels": labels} if (labels := getattr(backbone, "labels", None)) else {}),
        "preprocessing": preprocessing and preprocessing.to_dict(),
        **provenance_of(backbone),
    }
    return {
        PREFIX + key: value if isinstance(value, str) else json.dumps(value)
        for key, value in facts.items()
    }
