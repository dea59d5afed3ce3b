"""Convolutional backbones with one exact contract: ResNet, DLA and RegNet."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trunkline.backbones.backbone import Backbone, Level
    from trunkline.backbones.dla import DLANet
    from trunkline.backbones.regnet import RegNet
    from trunkline.backbones.resnet import ResNet
    from trunkline.errors import TrunklineError
    from trunkline.extraction.features import FeatureMap, features, save_features
    from trunkline.preprocessing import Preprocessing
    from trunkline.zoo import BackboneInfo, create_backbone, info, list_backbones

__version__ = "0.1.0"

# Where each public name lives. They are imported when they are first asked for, so that
# `trunkline --help` does not wait for PyTorch, nor a program that only builds networks for Pillow.
_HOMES = {
    "Backbone": "trunkline.backbones.backbone",
    "BackboneInfo": "trunkline.zoo",
    "DLANet": "trunkline.backbones.dla",
    "FeatureMap": "trunkline.extraction.features",
    "Level": "trunkline.backbones.backbone",
    "Preprocessing": "trunkline.preprocessing",
    "RegNet": "trunkline.backbones.regnet",
    "ResNet": "trunkline.backbones.resnet",
    "TrunklineError": "trunkline.errors",
    "create_backbone": "trunkline.zoo",
    "features": "trunkline.extraction.features",
    "info": "trunkline.zoo",
    "list_backbones": "trunkline.zoo",
    "save_features": "trunkline.extraction.features",
}

__all__ = [
    "Backbone",
    "BackboneInfo",
    "DLANet",
    "FeatureMap",
    "Level",
    "Preprocessing",
    "RegNet",
    "ResNet",
    "TrunklineError",
    "create_backbone",
    "features",
    "info",
    "list_backbones",
    "save_features",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'trunkline' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
