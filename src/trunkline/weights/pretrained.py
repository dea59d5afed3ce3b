"""A backbone as a folder, or as a repository on the Hub: weights, config and a card.

::

    folder/
    ├── config.json          family, architecture, options, preprocessing, licence, version
    ├── model.safetensors    our own names
    └── README.md            a model card
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import msgspec
from safetensors.torch import save
from torch import Tensor

import trunkline
from trunkline.backbones.backbone import Architecture, Backbone
from trunkline.backbones.options import CUSTOM, LOADING, BackboneOptions
from trunkline.backbones.words import check_words
from trunkline.errors import (
    CheckpointError,
    ConfigError,
    OfflineError,
    OutputError,
    WeightsNotFoundError,
)
from trunkline.files import DocumentError, expanded, parse_document, read_document
from trunkline.outputs import written_whole
from trunkline.preprocessing import Preprocessing
from trunkline.weights import hub
from trunkline.weights.files import cache, huggingface
from trunkline.weights.sources import SAVED
from trunkline.weights.statements import FORMAT, Statement, check_variant
from trunkline.zoo import build_backbone, family_config

CONFIG, WEIGHTS, CARD = "config.json", SAVED, "README.md"
SNIPPET = """backbone = trunkline.from_pretrained("PATH, or hf://OWNER/REPOSITORY")  # in eval mode
maps = backbone(images)  # images: (N, CHANNELS, H, W)
"""  # of the card


def save_pretrained(
    backbone: Backbone,
    folder: str | os.PathLike[str],
    *,
    license: str | None = None,  # noqa: A002
) -> Path:
    """Write a backbone into a folder that ``from_pretrained`` reads.

    Args:
        backbone: What to save; its options and its ``preprocessing`` are saved with it.
        folder: Made if it is not there; the three files in it are replaced.
        license: An SPDX identifier for the card; by default that of the weights it was loaded
            from, where the catalog knows it.

    Returns:
        The folder.

    Raises:
        ConfigError: A norm or an activation that was given as a callable, which no file can hold.
        OutputError: The folder cannot be written to.
    """
    statement = statement_for(backbone, license)
    state = {name: tensor.contiguous() for name, tensor in backbone.state_dict().items()}
    return write_folder(
        folder,
        state,
        statement,
        config_for(backbone, statement),
        card_for(backbone, statement, license),
    )


def write_folder(
    folder: str | os.PathLike[str],
    state: dict[str, Tensor],
    statement: Statement,
    config: dict[str, Any],
    card: str,
) -> Path:
    """Write the three files of a folder, each whole or not at all.

    Raises:
        OutputError: The folder cannot be written to.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; give the path of a folder.")
    with written_whole(folder / WEIGHTS) as path:
        path.write_bytes(save(state, statement.metadata()))
    with written_whole(folder / CONFIG) as path:
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    with written_whole(folder / CARD) as path:
        path.write_text(card, encoding="utf-8")
    return folder


def statement_for(backbone: Backbone, license_: str | None) -> Statement:
    """Return our words about a backbone.

    Raises:
        ConfigError: A norm or an activation that was given as a callable.
    """
    for name in ("norm", "act"):
        if getattr(backbone.options, name) == CUSTOM:
            raise ConfigError(
                f"{name} was given as a callable, which a folder cannot hold; build the backbone "
                "with one of the named ones, or save its state_dict() yourself."
            )
    report = backbone.load_report
    claims = report.claims if report else {}
    return Statement(
        layout="trunkline",
        family=backbone.architecture.family,
        architecture=asdict(backbone.architecture),  # type: ignore[call-overload]
        variant=backbone.variant,
        act=str(backbone.options.act),
        preprocessing=backbone.stated_preprocessing,
        tag=report.tag or claims.get("tag") if report else None,
        license=license_ or (report.license or claims.get("license") if report else None),
    )


def config_for(backbone: Backbone, statement: Statement) -> dict[str, Any]:
    """Return what ``config.json`` says."""
    options = asdict(backbone.options)
    for word in LOADING:  # of the file that was read: the next is another one
        del options[word]
    return {
        "library": "trunkline",
        "format": FORMAT,
        "version": trunkline.__version__,
        "family": statement.family,
        "variant": statement.variant,
        "architecture": _plain(statement.architecture),
        "options": _plain(options),
        "preprocessing": statement.preprocessing and statement.preprocessing.to_dict(),
        "license": statement.license,
        "trained_as": statement.tag,
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def card_for(backbone: Backbone, statement: Statement, license_: str | None) -> str:
    """Return the model card, which the Hub reads: its head has a licence that somebody vouches for.

    That is the caller, or the catalog for weights that were asked for by their tag.
    """
    name = backbone.variant or f"a {statement.family}"
    report = backbone.load_report
    vouched = license_ or (report.license if report else None)
    rows = "\n".join(
        f"| {level.name} | {level.stride} | {level.channels} |" for level in backbone.levels
    )
    front = ["library_name: trunkline", "tags: [backbone, feature-extraction]"]
    if name_of_license := (vouched or "").lower():
        # The Hub knows SPDX's identifiers; others have a name beside "other".
        known = not name_of_license.startswith("licenseref-")
        named = f"license: {name_of_license}" if known else f"license_name: {name_of_license}"
        front[:0] = [named] if known else ["license: other", named]
    stated = backbone.stated_preprocessing
    prepared = stated.describe() if stated else "not recorded"
    header = "\n".join(front)
    said = ", as their file says" if report and report.claims else ""
    return f"""---
{header}
---

# {name}

A convolutional backbone: images in, feature maps out.

```python
import trunkline

{SNIPPET.replace("CHANNELS", str(backbone.in_channels))}```

| level | stride | channels |
|---|--:|--:|
{rows}

- returned: strides {list(backbone.strides)}, channels {list(backbone.channels)}
- parameters: {backbone.num_parameters:,}
- images: {prepared}
- weights: {statement.tag or "not of the catalog"}{"" if report and report.tag else said}
- licence: {statement.license or "not stated"}{"" if vouched else said}
"""


def from_pretrained(source: str | os.PathLike[str], **options: Any) -> Backbone:
    """Build the backbone that ``save_pretrained`` wrote.

    Args:
        source: The folder, or ``hf://owner/repo[@revision]``.
        **options: Options to change, such as ``return_idx`` or ``frozen_stages``.

    Returns:
        The backbone, with its weights and its preprocessing.

    Raises:
        WeightsNotFoundError: No such folder or repository, or no config in it.
        CheckpointError: The config is not ours, or of a form that this version does not know.
        WeightsError: The weights cannot be had or do not fit.
        ConfigError: An option outside what is allowed.
    """
    check_words(options)
    config_path, weights_path = files_of(os.fspath(source))
    architecture, saved, preprocessing = read_config(config_path)
    chosen = {field.name: getattr(saved, field.name) for field in fields(saved)} | options
    backbone = build_backbone(architecture, weights=weights_path, **chosen)
    backbone.preprocessing = preprocessing
    return backbone


def files_of(source: str, *, progress: hub.Progress | None = None) -> tuple[Path, Path]:
    """Return the config and the weights of a folder or repository, fetched if need be.

    Args:
        source: The folder, or ``hf://owner/repo[@revision]``.
        progress: Called while a file arrives.

    Raises:
        WeightsNotFoundError: No such folder or repository, or a file is missing in it.
    """
    return file_of(source, CONFIG, progress), file_of(source, WEIGHTS, progress)


def file_of(source: str, name: str, progress: hub.Progress | None = None) -> Path:
    """Return one file of a folder or repository, fetched if need be; see ``files_of``."""
    if source.startswith(huggingface.SCHEME):
        huggingface.parse(source)  # refuses what is no such address
        address, at, revision = source.removeprefix(huggingface.SCHEME).partition("@")
        base = f"{huggingface.SCHEME}{address.rstrip('/')}"
        return hub.fetch_hf(f"{base}/{name}{at}{revision}", progress=progress)
    folder = expanded(source)
    if not (folder / name).is_file():
        raise WeightsNotFoundError(
            f"{folder} holds no {name}; give a folder that save_pretrained wrote, or "
            "hf://owner/repo."
        )
    return folder / name


class _Options(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What ``BackboneOptions`` is in a file."""

    return_idx: tuple[int, ...]
    return_stem: bool
    in_channels: int
    output_stride: int
    norm: str
    act: str
    drop_path_rate: float
    frozen_stages: int
    checkpointing: bool


@dataclass(frozen=True, kw_only=True)
class _Config:
    """What this version needs of ``config.json``."""

    family: str
    variant: str | None
    architecture: dict[str, Any]
    options: _Options
    preprocessing: Preprocessing | None


@dataclass(frozen=True, kw_only=True)
class _Writer:
    library: str = ""
    format: int = 0
    version: str = "unknown"


def read_config(path: Path) -> tuple[Architecture, BackboneOptions, Preprocessing | None]:
    """Read what a network is built from.

    Raises:
        CheckpointError: It is not ours, or of a form that this version does not know.
    """
    try:
        content = bytes(read_document(path, msgspec.Raw))
        writer = parse_document(content, _Writer)
    except (OSError, DocumentError) as error:
        raise CheckpointError(f"{path} is no config ({error}); write the folder anew.") from error
    if writer.library != "trunkline":
        raise CheckpointError(
            f"{path} is not trunkline's. Another library's checkpoint loads with "
            "create_backbone(NAME, weights=PATH or hf://…)."
        )
    try:
        if writer.format != FORMAT:
            raise DocumentError(f"its format is {writer.format}, and {FORMAT} is read")
        written = parse_document(content, _Config)
        architecture = family_config(written.family, written.architecture)
        check_variant(written.variant, architecture)
        options = BackboneOptions(**msgspec.structs.asdict(written.options))
    except (DocumentError, ConfigError) as error:
        raise CheckpointError(
            f"{path} is not a config of this version ({error}); it was written by trunkline "
            f"{writer.version}, this is {trunkline.__version__}."
        ) from error
    return architecture, options, written.preprocessing


def upload(repo: str, write: Callable[[str], object], private: bool, token: str | None) -> str:
    """Upload what ``write`` puts into a folder, and return the address of the commit.

    Raises:
        OutputError: The Hub refused it, or cannot be reached.
        OfflineError: The network is switched off.
    """
    if cache.is_offline():
        raise OfflineError(
            f"{repo} cannot be written on the Hub: the network is switched off. Unset "
            "TRUNKLINE_OFFLINE and HF_HUB_OFFLINE; save_pretrained writes the same files."
        )
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    with tempfile.TemporaryDirectory() as folder:
        write(folder)
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo, folder_path=folder, commit_message="Upload a trunkline backbone"
            )
        except Exception as error:  # the class depends on the HTTP library that the Hub's uses
            reason = " ".join(str(error).split()).rstrip(".")
            raise OutputError(
                f"{repo} could not be written on the Hub: {reason}. Log in with `hf auth login`, "
                "or pass token=…; save_pretrained writes the same files into a folder."
            ) from error
    return str(commit.commit_url)
