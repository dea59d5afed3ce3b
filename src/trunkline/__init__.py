"""Convolutional backbones with one exact contract: ResNet, DLA and RegNet."""

from trunkline.backbones.backbone import Backbone, Level
from trunkline.backbones.dla import DLANet
from trunkline.backbones.regnet import RegNet
from trunkline.backbones.resnet import ResNet
from trunkline.errors import TrunklineError
from trunkline.zoo import BackboneInfo, create_backbone, info, list_backbones

__version__ = "0.1.0"

__all__ = [
    "Backbone",
    "BackboneInfo",
    "DLANet",
    "Level",
    "RegNet",
    "ResNet",
    "TrunklineError",
    "create_backbone",
    "info",
    "list_backbones",
]
