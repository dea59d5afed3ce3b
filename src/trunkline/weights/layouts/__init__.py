"""One name table per upstream, read in both directions."""

from __future__ import annotations

from trunkline.backbones.backbone import Architecture
from trunkline.errors import ConfigError
from trunkline.weights.layouts.detectron2 import (
    CAFFE2,
    CAFFE2_AFFINE,
    CAFFE2_GROUP_NORM,
    DETECTRON2,
    DETECTRON2_MSRA,
)
from trunkline.weights.layouts.layout import Layout
from trunkline.weights.layouts.mmpretrain import (
    MMPRETRAIN_REGNET,
    MMPRETRAIN_RESNET,
    MMPRETRAIN_RESNET_CAFFE,
    MMPRETRAIN_RESNET_DEEP_STEM,
    MMSEGMENTATION_RESNET_DEEP_STEM,
)
from trunkline.weights.layouts.native import TRUNKLINE
from trunkline.weights.layouts.pycls import PYCLS, VISSL
from trunkline.weights.layouts.rtdetr import RTDETR_DLA, RTDETR_RESNET
from trunkline.weights.layouts.timm import (
    DLA,
    TIMM_DLA,
    TIMM_REGNET,
    TIMM_RESNET,
    TIMM_RESNET_GROUP_NORM,
)
from trunkline.weights.layouts.torchvision import TORCHVISION_REGNET, TORCHVISION_RESNET
from trunkline.weights.layouts.transformers import (
    TRANSFORMERS_REGNET,
    TRANSFORMERS_RESNET,
    TRANSFORMERS_RESNET_1X1,
    TRANSFORMERS_RTDETR,
)

# Where two upstreams name a network alike, the first is the one that is spoken of.
LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        TRUNKLINE,
        TORCHVISION_RESNET,
        TORCHVISION_REGNET,
        TIMM_RESNET,
        TIMM_RESNET_GROUP_NORM,
        TIMM_DLA,
        TIMM_REGNET,
        DLA,
        TRANSFORMERS_RESNET,
        TRANSFORMERS_RESNET_1X1,
        TRANSFORMERS_REGNET,
        TRANSFORMERS_RTDETR,
        PYCLS,
        VISSL,
        MMPRETRAIN_RESNET,
        MMPRETRAIN_RESNET_CAFFE,
        MMPRETRAIN_RESNET_DEEP_STEM,
        MMPRETRAIN_REGNET,
        MMSEGMENTATION_RESNET_DEEP_STEM,
        RTDETR_RESNET,
        RTDETR_DLA,
        DETECTRON2,
        DETECTRON2_MSRA,
        CAFFE2,
        CAFFE2_AFFINE,
        CAFFE2_GROUP_NORM,
    )
}


# What `convert(to=…)` calls an upstream, and its layouts.
TARGETS: dict[str, tuple[Layout, ...]] = {
    "trunkline": (TRUNKLINE,),
    "timm": (TIMM_RESNET, TIMM_DLA, TIMM_REGNET),
    "torchvision": (TORCHVISION_RESNET, TORCHVISION_REGNET),
    "transformers": (
        TRANSFORMERS_RESNET,
        TRANSFORMERS_RESNET_1X1,
        TRANSFORMERS_REGNET,
        TRANSFORMERS_RTDETR,
    ),
    "detectron2": (DETECTRON2, DETECTRON2_MSRA),
    "mmpretrain": (
        MMPRETRAIN_RESNET,
        MMPRETRAIN_RESNET_CAFFE,
        MMPRETRAIN_RESNET_DEEP_STEM,
        MMPRETRAIN_REGNET,
    ),
    "pycls": (PYCLS,),
    "rtdetr": (RTDETR_RESNET, RTDETR_DLA),
    "dla": (DLA,),
}


def get_layout(name: str) -> Layout:
    """Return a layout by name.

    Raises:
        ConfigError: No such layout.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"no layout {name!r}; allowed: auto, {', '.join(LAYOUTS)}.")
    return LAYOUTS[name]


def layouts_for(architecture: Architecture) -> list[Layout]:
    """Return the layouts of all upstreams that have such a network."""
    return [layout for layout in LAYOUTS.values() if layout.applies(architecture)]
