"""A backbone or a classifier as a folder, or as a repository on the Hub.

A classifier's folder is a backbone's with two tensors more, ``classifier.weight`` and
``classifier.bias``, and a few words: ``config.json`` says ``"kind": "classifier"``, how many
classes and their names, and so does the metadata of ``model.safetensors``, which is enough by
itself.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trunkline.backbones.backbone import Backbone
from trunkline.backbones.words import check_words
from trunkline.errors import CheckpointError, ConfigError
from trunkline.files import DocumentError, read_document
from trunkline.heads.held import create_head, report_with_head
from trunkline.heads.network import Classifier, Pool
from trunkline.weights import pretrained
from trunkline.weights.layouts.layout import CLASSIFIER
from trunkline.weights.loading import understood

_SNIPPET = """classifier = trunkline.from_pretrained("PATH, or hf://OWNER/REPOSITORY")
print(trunkline.classify("photo.jpg", classifier))
"""


@dataclass(frozen=True, kw_only=True)
class _Head:
    num_classes: int
    pool: Pool
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class _Kind:
    kind: str = "backbone"
    classifier: _Head | None = None


def save_pretrained(
    model: Backbone | Classifier,
    folder: str | os.PathLike[str],
    *,
    license: str | None = None,  # noqa: A002
) -> Path:
    """Write a backbone or a classifier into a folder that ``from_pretrained`` reads.

    Args:
        model: What to save; options and preprocessing of the backbone and the classifier's labels
            are saved with it.
        folder: Made if it is not there; the three files in it are replaced.
        license: An SPDX identifier for the card; by default that of the weights it was loaded
            from, where the catalog knows it.

    Returns:
        The folder.

    Raises:
        ConfigError: Neither a backbone nor a classifier, or one with a norm or an activation that
            was given as a callable, which no file can hold.
        OutputError: The folder cannot be written to.
    """
    if not isinstance(model, Classifier):
        if not isinstance(model, Backbone):
            raise ConfigError(
                f"a backbone or a classifier is expected, got {type(model).__name__}; "
                "of a wrapper (an average, DataParallel, a compiled module) give the network in "
                "it: its .module or ._orig_mod."
            )
        return pretrained.save_pretrained(model, folder, license=license)
    backbone, head = model.backbone, model.head
    statement = pretrained.statement_for(backbone, license)
    statement = replace(statement, labels=model.labels, pool=head.pool)
    config = pretrained.config_for(backbone, statement) | {
        "kind": "classifier",
        "classifier": {
            "num_classes": model.num_classes,
            "pool": head.pool,
            "labels": None if model.labels is None else list(model.labels),
        },
    }
    state = dict(backbone.state_dict())
    state |= {CLASSIFIER + name: tensor for name, tensor in head.linear.state_dict().items()}
    card = pretrained.card_for(backbone, statement, license)
    return pretrained.write_folder(
        folder,
        {name: tensor.contiguous() for name, tensor in state.items()},
        statement,
        config,
        card.replace(
            "A convolutional backbone: images in, feature maps out.", _about(model)
        ).replace(pretrained.SNIPPET.replace("CHANNELS", str(backbone.in_channels)), _SNIPPET),
    )


def _about(model: Classifier) -> str:
    named = ", ".join((model.labels or ())[:10])
    more = ", …" if len(model.labels or ()) > 10 else ""
    return (
        f"A classifier of {model.num_classes} classes"
        + (f" ({named}{more})" if named else "")
        + ". `from_pretrained` gives it back; `trunkline classify PHOTO --backbone PATH` runs it."
    )


def from_pretrained(source: str | os.PathLike[str], **options: Any) -> Any:
    """Build the backbone or the classifier that ``save_pretrained`` wrote.

    Args:
        source: The folder, or ``hf://owner/repo[@revision]``.
        **options: Options of the backbone to change, such as ``return_idx`` or ``frozen_stages``.

    Returns:
        What was saved, with its weights and its preprocessing: a ``Backbone`` or a ``Classifier``,
        in eval mode, to be used as it was saved; ``train()`` goes on with training.

    Raises:
        WeightsNotFoundError: No such folder or repository, or no config in it.
        CheckpointError: The config is not ours, or of a form that this version does not know.
        WeightsError: The weights cannot be had or do not fit.
        ConfigError: An option outside what is allowed.
    """
    check_words(options)
    config_path, weights_path = pretrained.files_of(os.fspath(source))
    try:
        kind = read_document(config_path, _Kind)
    except (OSError, DocumentError) as error:
        raise CheckpointError(
            f"{config_path} is no config ({error}); write the folder anew."
        ) from error
    backbone = pretrained.from_pretrained(source, **options)
    if kind.kind != "classifier" or kind.classifier is None:
        return backbone.eval()
    said = kind.classifier
    read = understood(backbone, weights_path)
    head = create_head(backbone, read, said.pool)
    if head.linear.out_features != said.num_classes:
        raise CheckpointError(
            f"{config_path} says {said.num_classes} classes, and the weights have "
            f"{head.linear.out_features}; write the folder anew."
        )
    backbone.load_report = report_with_head(read.report(), head, read)
    return Classifier(backbone, head, said.labels).eval()


def push_to_hub(
    model: Backbone | Classifier,
    repo: str,
    *,
    license: str | None = None,  # noqa: A002
    private: bool = False,
    token: str | None = None,
) -> str:
    """Save a backbone or a classifier and upload it to the Hugging Face Hub.

    Args:
        model: What to upload.
        repo: ``owner/name``; made if it is not there.
        license: As for ``save_pretrained``.
        private: Make a new repository private.
        token: Of the Hub; by default the one that ``hf auth login`` stored.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: As ``save_pretrained``.
        OutputError: The Hub refused it, or cannot be reached.
        OfflineError: The network is switched off.
    """
    return pretrained.upload(
        repo, lambda folder: save_pretrained(model, folder, license=license), private, token
    )
