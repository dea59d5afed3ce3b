"""Convolutional backbones with one exact contract: ResNet, DLA and RegNet."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trunkline.backbones.backbone import Backbone
    from trunkline.backbones.dla import DLANet
    from trunkline.backbones.levels import Level
    from trunkline.backbones.regnet import RegNet
    from trunkline.backbones.resnet import ResNet
    from trunkline.benchmarking.bench import bench
    from trunkline.errors import TrunklineError
    from trunkline.extraction.extracting import extract
    from trunkline.extraction.features import FeatureMap, features, save_features
    from trunkline.extraction.reader import FeatureStore, open_features
    from trunkline.extraction.reports import ExtractReport
    from trunkline.facts import BackboneInfo
    from trunkline.heads.classifier import (
        Classifier,
        classify,
        create_classifier,
        load_classifier,
    )
    from trunkline.heads.pretrained import from_pretrained, push_to_hub, save_pretrained
    from trunkline.preprocessing import Preprocessing
    from trunkline.runtimes.deployment import deploy
    from trunkline.runtimes.export import export
    from trunkline.runtimes.folding import fold
    from trunkline.runtimes.runner import Runner
    from trunkline.runtimes.saving import load_runner
    from trunkline.weights.conversion import convert
    from trunkline.weights.loading import LoadReport, load_weights
    from trunkline.zoo import create_backbone, info, list_backbones

__version__ = "0.1.0"

# Where each public name lives. They are imported when they are first asked for, so that
# `trunkline --help` does not wait for PyTorch, nor a program that only builds networks for Pillow.
_HOMES = {
    "Backbone": "trunkline.backbones.backbone",
    "BackboneInfo": "trunkline.facts",
    "Classifier": "trunkline.heads.classifier",
    "DLANet": "trunkline.backbones.dla",
    "ExtractReport": "trunkline.extraction.reports",
    "FeatureMap": "trunkline.extraction.features",
    "FeatureStore": "trunkline.extraction.reader",
    "Level": "trunkline.backbones.levels",
    "LoadReport": "trunkline.weights.loading",
    "Preprocessing": "trunkline.preprocessing",
    "RegNet": "trunkline.backbones.regnet",
    "ResNet": "trunkline.backbones.resnet",
    "Runner": "trunkline.runtimes.runner",
    "TrunklineError": "trunkline.errors",
    "bench": "trunkline.benchmarking.bench",
    "classify": "trunkline.heads.classifier",
    "convert": "trunkline.weights.conversion",
    "create_backbone": "trunkline.zoo",
    "create_classifier": "trunkline.heads.classifier",
    "deploy": "trunkline.runtimes.deployment",
    "export": "trunkline.runtimes.export",
    "extract": "trunkline.extraction.extracting",
    "features": "trunkline.extraction.features",
    "fold": "trunkline.runtimes.folding",
    "from_pretrained": "trunkline.heads.pretrained",
    "info": "trunkline.zoo",
    "list_backbones": "trunkline.zoo",
    "load_classifier": "trunkline.heads.classifier",
    "load_runner": "trunkline.runtimes.saving",
    "load_weights": "trunkline.weights.loading",
    "open_features": "trunkline.extraction.reader",
    "push_to_hub": "trunkline.heads.pretrained",
    "save_features": "trunkline.extraction.features",
    "save_pretrained": "trunkline.heads.pretrained",
}

__all__ = [
    "Backbone",
    "BackboneInfo",
    "Classifier",
    "DLANet",
    "ExtractReport",
    "FeatureMap",
    "FeatureStore",
    "Level",
    "LoadReport",
    "Preprocessing",
    "RegNet",
    "ResNet",
    "Runner",
    "TrunklineError",
    "bench",
    "classify",
    "convert",
    "create_backbone",
    "create_classifier",
    "deploy",
    "export",
    "extract",
    "features",
    "fold",
    "from_pretrained",
    "info",
    "list_backbones",
    "load_classifier",
    "load_runner",
    "load_weights",
    "open_features",
    "push_to_hub",
    "save_features",
    "save_pretrained",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'trunkline' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
