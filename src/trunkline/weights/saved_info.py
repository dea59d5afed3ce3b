"""What ``trunkline info`` tells of a folder of ``save_pretrained``; no weights are read for it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from trunkline.backbones.levels import Level
from trunkline.errors import CheckpointError
from trunkline.files import DocumentError, read_document
from trunkline.preprocessing import Preprocessing
from trunkline.weights import hub
from trunkline.weights.pretrained import CONFIG, file_of, read_config
from trunkline.zoo import build_backbone


@dataclass(frozen=True, kw_only=True)
class SavedInfo:
    """What is known of a saved network while its weights are still on the disk, or on the Hub.

    Attributes:
        source: The folder, or ``hf://owner/repo``.
        variant: What it is a variant of, None for a network of one's own.
        family: ``"resnet"``, ``"dla"`` or ``"regnet"``.
        num_parameters: Learned values, without a classifier.
        macs: Multiply-accumulates of the convolutions for one image of 224x224.
        in_channels: Of its images.
        levels: All maps it has, the stem's first.
        returned_strides: Of the maps that it returns unless told otherwise, in that order.
        num_classes: Of its classifier, None for a backbone alone.
        preprocessing: How its images are prepared, None where that is not recorded.
        license: As it was saved, None where that is not stated.
        trained_as: The tag of the catalog that its weights were once loaded by, None for others.
    """

    source: str
    variant: str | None
    family: str
    num_parameters: int
    macs: int
    in_channels: int
    levels: tuple[Level, ...]
    returned_strides: tuple[int, ...]
    num_classes: int | None
    preprocessing: Preprocessing | None
    license: str | None
    trained_as: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        stated = self.preprocessing
        return {**asdict(self), "preprocessing": None if stated is None else stated.to_dict()}


@dataclass(frozen=True, kw_only=True)
class _Head:
    num_classes: int


@dataclass(frozen=True, kw_only=True)
class _Said:
    """What people want to know of ``config.json``, and no network needs."""

    license: str | None = None
    trained_as: str | None = None
    classifier: _Head | None = None


def saved_info(
    source: str | os.PathLike[str], *, progress: hub.Progress | None = None
) -> SavedInfo:
    """Return what is known of a saved backbone or classifier, by its config alone.

    Args:
        source: The folder, or ``hf://owner/repo[@revision]``.
        progress: Called while the config arrives.

    Raises:
        WeightsNotFoundError: No such folder or repository, or no config in it.
        CheckpointError: The config is not ours, or of a form that this version does not know.
    """
    text = os.fspath(source)
    path = file_of(text, CONFIG, progress)
    architecture, saved, preprocessing = read_config(path)
    try:
        said = read_document(path, _Said)
    except (OSError, DocumentError) as error:
        raise CheckpointError(f"{path} is no config ({error}); write the folder anew.") from error
    with torch.device("meta"):
        backbone = build_backbone(
            architecture, **{field.name: getattr(saved, field.name) for field in fields(saved)}
        )
    return SavedInfo(
        source=text,
        variant=backbone.variant,
        family=architecture.family,
        num_parameters=backbone.num_parameters,
        macs=backbone.macs(),
        in_channels=backbone.in_channels,
        levels=backbone.levels,
        returned_strides=backbone.strides,
        num_classes=said.classifier.num_classes if said.classifier else None,
        preprocessing=preprocessing,
        license=said.license,
        trained_as=said.trained_as,
    )
