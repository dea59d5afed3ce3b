"""A folder that an inference server starts from: Triton or OpenVINO Model Server.

Sources: Triton's model_config.proto and its pages on model repositories and configuration,
https://docs.nvidia.com/deeplearning/triton-inference-server; OpenVINO Model Server's pages on model
repositories, starting and parameters, https://docs.openvino.ai.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from typing_extensions import Unpack

from trunkline.backbones.backbone import Backbone
from trunkline.backbones.levels import output_names
from trunkline.errors import ConfigError, OutputError, TrunklineError
from trunkline.heads.classifier import Classifier, as_network
from trunkline.outputs import written_whole
from trunkline.runtimes.export import ExportReport, export
from trunkline.runtimes.export_config import (
    ExportConfig,
    ExportOptions,
    FormatName,
    config_of,
)
from trunkline.runtimes.folding import check_backbone
from trunkline.runtimes.graphs import INPUT_NAME

ServerName = Literal["triton", "ovms"]
SERVERS: dict[str, tuple[FormatName, str]] = {
    "triton": ("onnx", "model.onnx"),
    "ovms": ("openvino", "model.xml"),
}
"""Server → the format that it gets, and the file's name."""

DEFAULT_BATCH = 8
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_QUEUE_DELAY = 2000  # microseconds that a request waits for others, a fraction of its computation


@dataclass(frozen=True)
class RepositoryReport:
    """What was written, and how a server starts from it.

    Attributes:
        repo: The model repository.
        name: Of the model in it.
        version: Of the model, its folder's name.
        server: ``"triton"`` or ``"ovms"``.
        config: The server's configuration: of this model for Triton, of all for the other.
        start: The command that starts the server on this repository.
        export: What the model file is, and how well it agrees with the backbone.
    """

    repo: Path
    name: str
    version: int
    server: str
    config: Path
    start: str
    export: ExportReport

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            "repo": str(self.repo),
            "name": self.name,
            "version": self.version,
            "server": self.server,
            "config": str(self.config),
            "start": self.start,
            "export": self.export.to_dict(),
        }


def write_repository(
    backbone: Backbone | Classifier,
    repo: str | os.PathLike[str],
    name: str,
    server: ServerName = "triton",
    *,
    version: int = 1,
    max_batch_size: int | None = None,
    **options: Unpack[ExportOptions],
) -> RepositoryReport:
    """Write a backbone into a model repository, together with the server's configuration.

    Triton gets ``NAME/VERSION/model.onnx`` and ``NAME/config.pbtxt`` with dynamic batching and
    warm-up, OpenVINO Model Server ``NAME/VERSION/model.xml`` with ``model.bin`` and an entry in
    ``config.json``. All of it is there in the end, or nothing. Other models and versions stay,
    and so do the settings of a model that gets another version: they are the user's to tune.

    Args:
        backbone: Any of the three families, with numbers.
        repo: The repository, a folder; made if it does not exist.
        name: Of the model: letters, digits, ``.``, ``_`` and ``-``.
        server: ``"triton"`` or ``"ovms"``.
        version: From 1 on; servers serve the highest. It must be free.
        max_batch_size: Images that Triton computes together, from 1 on; 8 unless given.
        **options: See ``ExportConfig``. ``input_shape`` is also the size of Triton's warm-up.

    Returns:
        What was written, and how a server starts from it.

    Raises:
        ConfigError: A name, server, version or option outside what is allowed.
        OutputError: The version exists, the model there has other inputs or outputs or is another
            server's, or the place cannot be written.
        DeploymentError: As for ``export``.

    Example:
        >>> from trunkline import create_backbone
        >>> backbone = create_backbone("resnet18")
        >>> report = write_repository(backbone, "models", "resnet18")  # doctest: +SKIP
        >>> report.start  # doctest: +SKIP
        'tritonserver --model-repository=models'
    """
    backbone = as_network(backbone)
    check_backbone(backbone)
    _check(name, server, version)
    format_name, file_name = SERVERS[server]
    config = config_of(format_name, options)
    folder = Path(repo)
    settings: _Triton | _Ovms
    if server == "triton":
        described = triton_config(backbone, config, name, max_batch_size)
        settings = _Triton(folder, name, described, max_batch_size)
    else:
        settings = _Ovms(folder, name, _ovms_entry(name, max_batch_size))
    _check_free(folder / name, version)
    settings.check()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".trunkline-", dir=folder) as aside:
            model = Path(aside, name)
            report = export(backbone, model / str(version) / file_name, format_name, **options)
            settings.place(model, version)
    except TrunklineError:
        raise
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written: {error.strerror or error}; choose another place."
        ) from error
    return RepositoryReport(
        repo=folder,
        name=name,
        version=version,
        server=server,
        config=settings.path,
        start=settings.start,
        export=_moved(report, folder / name / str(version)),
    )


def _check(name: str, server: str, version: int) -> None:
    if server not in SERVERS:
        raise ConfigError(f"server={server!r} is unknown; use one of {', '.join(SERVERS)}.")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"name={name!r} must begin with a letter or a digit and hold only those, "
            "'.', '_' and '-': it is a folder's name and a part of the server's addresses."
        )
    if type(version) is not int or version < 1:
        raise ConfigError(f"version={version!r} must be an integer from 1 on.")


def _check_free(model: Path, version: int) -> None:
    if (model / str(version)).exists():
        taken = [int(one.name) for one in model.iterdir() if one.name.isdecimal()]
        raise OutputError(
            f"{model / str(version)} exists, and a version that is served is not replaced; "
            f"version={max(taken) + 1} is free."
        )


def _moved(report: ExportReport, folder: Path) -> ExportReport:
    files = tuple(replace(file, path=folder / file.path.name) for file in report.files)
    return replace(report, path=folder / report.path.name, files=files)


def _put(model: Path, target: Path, version: int) -> Path:
    """Move a model, or its one version where the model is there; return what was moved."""
    if not target.exists():
        return model.rename(target)
    return (model / str(version)).rename(target / str(version))


def triton_config(
    backbone: Backbone, config: ExportConfig, name: str, max_batch_size: int | None
) -> tuple[str, str]:
    """Return Triton's configuration of a model, as protobuf text.

    Args:
        backbone: What is served.
        config: How it was exported.
        name: Of the model.
        max_batch_size: Images that are computed together, from 1 on; None for 8.

    Returns:
        What the clients see (name, inputs, outputs), and what the server does with it.

    Raises:
        ConfigError: A batch of fixed size, or a ``max_batch_size`` that is no size.
    """
    batch = DEFAULT_BATCH if max_batch_size is None else max_batch_size
    if type(batch) is not int or batch < 1:
        raise ConfigError(f"max_batch_size={batch!r} must be an integer from 1 on.")
    if "batch" not in config.dynamic:
        raise ConfigError(
            f"Triton puts requests together into batches, and dynamic={config.dynamic!r} fixes "
            "their size; add 'batch' to it."
        )
    _, height, width = config.sized(-1, -1, -1)
    dtype = "TYPE_UINT8" if config.preprocess else "TYPE_FP32"
    layout = "FORMAT_NHWC" if config.preprocess else "FORMAT_NCHW"

    def dims(h: int, w: int) -> list[int]:
        c = backbone.in_channels
        return [h, w, c] if config.preprocess else [c, h, w]

    tensors = [f"data_type: {dtype} format: {layout} dims: {dims(height, width)}"]
    for level in backbone.returned_levels:
        sides = [
            n if n < 0 else math.ceil(n / level.stride) for n in (height, width) if level.stride
        ]
        tensors.append(f"data_type: TYPE_FP32 dims: {[level.channels, *sides]}")
    names = (INPUT_NAME, *output_names(backbone.returned_levels))
    kinds = ("input", *("output" for _ in backbone.returned_levels))
    interface = [f'name: "{name}"', 'backend: "onnxruntime"'] + [
        f'{kind} {{ name: "{tensor}" {rest} }}'
        for kind, tensor, rest in zip(kinds, names, tensors, strict=True)
    ]
    warm = f"data_type: {dtype} dims: {dims(*config.input_shape[1:])} zero_data: true"
    return "\n".join(interface) + "\n", _triton_settings(batch, warm)


def _triton_settings(batch: int, warm: str) -> str:
    """Return how the server runs a model: on the processor, in batches, warmed up."""
    lines = [
        f"max_batch_size: {batch}",
        "version_policy { latest { num_versions: 1 } }",
        "instance_group [ { count: 1 kind: KIND_CPU } ]",
    ]
    if preferred := sorted({size for size in (batch // 2, batch) if size > 1}):
        lines.append(
            f"dynamic_batching {{ preferred_batch_size: {preferred} "
            f"max_queue_delay_microseconds: {_QUEUE_DELAY} }}"
        )
    for size in sorted({1, batch}):
        lines.append(
            f'model_warmup {{ name: "batch of {size}" batch_size: {size} '
            f'inputs {{ key: "{INPUT_NAME}" value {{ {warm} }} }} }}'
        )
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Triton:
    """Where Triton's configuration of one model is: in the model's own folder."""

    repo: Path
    name: str
    text: tuple[str, str]
    max_batch_size: int | None

    @property
    def path(self) -> Path:
        return self.repo / self.name / "config.pbtxt"

    @property
    def start(self) -> str:
        return shlex.join(["tritonserver", f"--model-repository={self.repo}"])

    def check(self) -> None:
        """Refuse a model that is there and is another one."""
        if not self.path.parent.exists():
            return
        existing = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        if "".join(self.text[0].split()) not in "".join(existing.split()):
            raise OutputError(
                f"{self.path.parent} holds a model whose config.pbtxt does not have the name, "
                "input and outputs of this one; give another name, or export with the "
                "levels, dynamic axes, sizes and preprocess of that one."
            )
        if self.max_batch_size is not None:
            raise ConfigError(
                f"max_batch_size={self.max_batch_size} would change {self.path}, which stays as it "
                "is when a version is added; leave it out, or edit that file."
            )

    def place(self, model: Path, version: int) -> None:
        """Move a model into the repository; a configuration that is there stays."""
        (model / self.path.name).write_text("".join(self.text), encoding="utf-8")
        _put(model, self.path.parent, version)


def _ovms_entry(name: str, max_batch_size: int | None) -> dict[str, Any]:
    if max_batch_size is not None:
        raise ConfigError(
            f"max_batch_size={max_batch_size!r} is for server='triton': OpenVINO Model Server "
            "computes each request as it comes; leave it out."
        )
    return {
        "name": name,
        "base_path": name,  # relative to config.json, so that the folder can be mounted anywhere
        "target_device": "CPU",
        # Some processors would compute in bfloat16 otherwise, and that was not compared.
        "plugin_config": {"INFERENCE_PRECISION_HINT": "f32"},
    }


@dataclass(frozen=True)
class _Ovms:
    """Where OpenVINO Model Server's configuration is: one file for all models."""

    repo: Path
    name: str
    entry: dict[str, Any]

    @property
    def path(self) -> Path:
        return self.repo / "config.json"

    @property
    def start(self) -> str:
        return shlex.join(
            ["ovms", "--config_path", str(self.path), "--port", "9000", "--rest_port", "8000"]
        )

    def check(self) -> None:
        """Refuse a configuration that is damaged, or that has this name for another model."""
        served = [one["base_path"] for one in self._entries() if one["name"] == self.name]
        if (self.repo / self.name).exists() != (served == [self.entry["base_path"]]) or (
            len(served) > 1
        ):
            raise OutputError(
                f"{self.repo / self.name} and the entry {self.name!r} of {self.path} do not belong "
                f"together (base_path {', '.join(map(str, served)) or 'none'}); give another name, "
                "or remove what is left of the model there."
            )

    def _document(self) -> dict[str, Any]:
        if not self.path.exists():
            return {"model_config_list": []}
        try:
            document: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            for one in document["model_config_list"]:
                one["config"]["name"], one["config"]["base_path"]
        except (ValueError, LookupError, TypeError) as error:
            raise OutputError(
                f"{self.path} is not a configuration of OpenVINO Model Server (a model_config_list "
                "of entries with name and base_path); mend it, or choose another folder."
            ) from error
        return document

    def _entries(self) -> list[dict[str, Any]]:
        return [one["config"] for one in self._document()["model_config_list"]]

    def place(self, model: Path, version: int) -> None:
        """Move a model into the repository, then announce it; an entry that is there stays."""
        placed = _put(model, self.repo / self.name, version)
        document = self._document()
        if any(one["config"]["name"] == self.name for one in document["model_config_list"]):
            return
        document["model_config_list"].append({"config": self.entry})
        try:
            with written_whole(self.path) as written:
                written.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        except OutputError:
            shutil.rmtree(placed)
            raise
