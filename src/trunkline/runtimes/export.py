"""A backbone as a file that other programs run, checked against the backbone before it is kept."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from typing_extensions import Unpack

from trunkline.backbones.backbone import Backbone
from trunkline.backbones.levels import output_names
from trunkline.errors import ConfigError, OutputError
from trunkline.heads.classifier import Classifier, as_network
from trunkline.outputs import sha256_of
from trunkline.runtimes.calibration import calibration_batches
from trunkline.runtimes.export_config import (
    FORMATS,
    ExportConfig,
    ExportOptions,
    FormatName,
    config_of,
)
from trunkline.runtimes.export_files import written_together
from trunkline.runtimes.export_formats import EXPORTERS, Batches, Maps
from trunkline.runtimes.export_metadata import metadata_of
from trunkline.runtimes.fidelity import LevelFidelity, check_fidelity, compare_maps
from trunkline.runtimes.graphs import INPUT_NAME, example_images, unfolded_network_of

CHECKED = ((1, 225, 161), (3, 97, 129))
"""(N, H, W) at which a file is compared with the backbone, where its axes are free."""


@dataclass(frozen=True)
class ExportedFile:
    """One file of an export: where it is, its sha256 in hexadecimal, its size in bytes."""

    path: Path
    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class ShapeFidelity:
    """How far the maps of one (N, H, W) are from the backbone's own, level by level."""

    shape: tuple[int, int, int]
    levels: tuple[LevelFidelity, ...]


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how well it agrees with the backbone.

    Attributes:
        path: The file to open.
        files: That file first, then those it needs beside it.
        format: ``"onnx"``, ``"openvino"``, ``"torch-export"`` or ``"torchscript"``.
        precision: ``"fp32"`` or ``"int8"``.
        opset: Of ONNX's operators, None for PyTorch's formats.
        input_name: Of the graph's input.
        output_names: In the order of the backbone's maps.
        dynamic: The axes that take any size.
        fidelity: Measured on the written file, one entry per shape.
        metadata: What the file says of itself.
    """

    path: Path
    files: tuple[ExportedFile, ...]
    format: str
    precision: str
    opset: int | None
    input_name: str
    output_names: tuple[str, ...]
    dynamic: tuple[str, ...]
    fidelity: tuple[ShapeFidelity, ...]
    metadata: Mapping[str, str]

    @property
    def num_bytes(self) -> int:
        """Of all files together."""
        return sum(file.num_bytes for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        plain = asdict(self)
        plain["path"] = str(self.path)
        plain["files"] = [{**file, "path": str(file["path"])} for file in plain["files"]]
        return plain

    def __str__(self) -> str:
        levels = [level for shape in self.fidelity for level in shape.levels]
        shapes = ", ".join("x".join(map(str, one.shape)) for one in self.fidelity)
        return (
            f"{self.path} ({self.format}, {self.precision}, {self.num_bytes:,} bytes); "
            f"at {shapes}: relative difference at most {max(v.max_relative for v in levels):.1e}, "
            f"cosine at least {min(v.cosine for v in levels):.6f}."
        )


def export(
    backbone: Backbone | Classifier,
    path: str | os.PathLike[str],
    format: FormatName | None = None,  # noqa: A002  the word that every exporter uses
    **options: Unpack[ExportOptions],
) -> ExportReport:
    """Write a backbone as a file that runs without trunkline.

    Batch norms are folded into convolutions. The written file is opened again by its own engine
    and compared with the unfolded backbone at two shapes; only then does it replace what was at
    ``path``.

    Args:
        backbone: Any of the three families, on any device, with numbers. It is left as it is. Of a
            classifier the output is ``logits`` ``(N, num_classes)``, and the file has its labels.
        path: Where to: ``.onnx``; ``.xml`` for OpenVINO, whose weights go to a ``.bin`` beside it;
            ``.pt2`` for torch-export; ``.pt`` for TorchScript. An old file is replaced.
        format: ``"onnx"``, ``"openvino"``, ``"torch-export"`` or ``"torchscript"``; None goes by
            the ending of ``path``.
        **options: See ``ExportConfig``: ``opset``, ``dynamic``, ``input_shape``, ``preprocess``,
            ``precision``, ``calibration``.

    Returns:
        What was written, and the agreement per shape and level. The file's input is ``image``:
        float32 ``(N, in_channels, H, W)``, or uint8 ``(N, H, W, 3)`` RGB with ``preprocess``. Its
        outputs are float32 ``(N, C, H/s, W/s)``, rounded up, named ``stride_4`` … ``stride_32``;
        PyTorch's formats return them as a list in the same order.

    Raises:
        ConfigError: Not a backbone with numbers, or an option outside what is allowed.
        PrecisionError: A precision that the format cannot hold.
        NotInstalledError: The library of the format, or of its check, is missing.
        DeploymentError: A layer of one's own that the format cannot hold, or a graph that its
            engine refuses.
        FidelityError: The written file computes other maps; it is not kept.
        ImageError: A calibration photo that cannot be read.
        OutputError: A folder is in the way, the disk is full, the place cannot be written.

    Example:
        >>> from trunkline import create_backbone, export
        >>> report = export(create_backbone("resnet18"), "resnet18.onnx")  # doctest: +SKIP
        >>> report.output_names  # doctest: +SKIP
        ('stride_4', 'stride_8', 'stride_16', 'stride_32')
    """
    backbone = as_network(backbone)
    config = config_of(format or format_of_path(path), options)
    target = _checked_path(path, config)
    reference = unfolded_network_of(backbone, preprocess=config.preprocess)
    metadata = metadata_of(backbone, config)
    batches = _calibration(backbone, config)
    exporter = EXPORTERS[config.format]
    graph = exporter.make(backbone, config, metadata, batches)
    with written_together(target) as written:
        exporter.write(graph, written)
        del graph  # as large as the file, and not needed for what follows
        maps = exporter.load(written, output_names(backbone.returned_levels))
        fidelity = _check(maps, reference, backbone, config, batches)
        del maps  # an open file cannot be moved everywhere
        others = sorted(one for one in written.parent.iterdir() if one != written)
        files = tuple(
            ExportedFile(target.with_name(one.name), sha256_of(one), one.stat().st_size)
            for one in (written, *others)
        )
    return ExportReport(
        path=target,
        files=files,
        format=config.format,
        precision=config.precision,
        opset=config.opset if config.kind.has_opset else None,
        input_name=INPUT_NAME,
        output_names=output_names(backbone.returned_levels),
        dynamic=tuple(config.dynamic),
        fidelity=fidelity,
        metadata=metadata,
    )


def format_of_path(path: str | os.PathLike[str]) -> FormatName:
    """Return the format that a path's ending stands for.

    Raises:
        ConfigError: It stands for none.
    """
    ending = Path(path).suffix.lower()
    for name, one in FORMATS.items():
        if one.suffix == ending:
            return cast(FormatName, name)
    known = ", ".join(f"{one.suffix} ({name})" for name, one in FORMATS.items())
    raise ConfigError(f"path={os.fspath(path)!r} has an ending of no format; use one of {known}.")


def _checked_path(path: str | os.PathLike[str], config: ExportConfig) -> Path:
    target = Path(path)
    wanted = config.kind.suffix
    if target.suffix != wanted:
        other = next((name for name, one in FORMATS.items() if one.suffix == target.suffix), None)
        raise ConfigError(
            f"path={str(target)!r} must end in {wanted} for format={config.format!r}; rename it"
            + (f", or use format={other!r}." if other else ".")
        )
    if target.is_dir():
        raise OutputError(f"{target} is a folder; give the path of a file.")
    return target


def _calibration(backbone: Backbone, config: ExportConfig) -> Batches:
    """Return the photos that int8 is fitted to, nothing for other precisions."""
    if config.precision != "int8":
        return ()
    _, height, width = config.sized(-1, -1, -1)
    fixed = None if -1 in (height, width) else (1, height, width)
    return calibration_batches(
        config.calibration, backbone, preprocess=config.preprocess, input_shape=fixed
    )


def _check(
    maps: Maps, reference: nn.Module, backbone: Backbone, config: ExportConfig, batches: Batches
) -> tuple[ShapeFidelity, ...]:
    """Compare what a written file computes with what the backbone does."""
    fidelity = []
    for number, size in enumerate(CHECKED):
        n, h, w = config.sized(*size)
        images = (
            _crops(batches, (n, h, w), first=number * n, nhwc=config.preprocess)
            if batches
            else example_images(
                backbone, n, h, w, preprocess=config.preprocess, seed=number + 1
            ).numpy()
        )
        with torch.inference_mode():
            wanted = [one.numpy() for one in reference(torch.from_numpy(images))]
        levels = compare_maps(backbone.returned_levels, wanted, maps(images))
        check_fidelity(levels, config.precision, f"the {config.format} file at {n}x{h}x{w}")
        fidelity.append(ShapeFidelity((n, h, w), levels))
    return tuple(fidelity)


def _crops(batches: Batches, size: tuple[int, int, int], *, first: int, nhwc: bool) -> NDArray[Any]:
    """Return n calibration photos cut to (h, w), repeated where there are too few or too small.

    int8 is fitted to photos and promises nothing about noise.
    """
    n, h, w = size
    rows, columns = (0, 1) if nhwc else (1, 2)
    photos = [photo for batch in batches[: first + n] for photo in batch]
    chosen = (photos[(first + i) % len(photos)] for i in range(n))
    return np.stack(
        [
            photo.take(range(h), rows, mode="wrap").take(range(w), columns, mode="wrap")
            for photo in chosen
        ]
    )
