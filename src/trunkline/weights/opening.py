"""A backbone by whatever names one: a variant, a folder of ``save_pretrained``, a repository."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from trunkline.errors import ConfigError, UnknownVariantError
from trunkline.files import expanded
from trunkline.zoo import canonical_name, create_backbone

if TYPE_CHECKING:
    from trunkline.backbones.backbone import Backbone

_HUB = "hf://"


def is_saved(source: str) -> bool:
    """Say whether a text means a saved backbone rather than the name of a variant.

    ``hf://…`` and the path of a folder do. A bare word that names a variant is the variant, also
    beside a folder that is called so; ``./resnet50`` is the folder.
    """
    if source.startswith(_HUB):
        return True
    if not expanded(source).is_dir():
        return False
    if os.sep in source or "/" in source or source.startswith((".", "~")):
        return True
    try:
        canonical_name(source)
    except UnknownVariantError:
        return True
    return False


def open_backbone(source: str, weights: str = "none", **options: Any) -> Backbone:
    """Build the backbone that a text means, with its weights.

    Args:
        source: A variant, a folder that ``save_pretrained`` wrote, or ``hf://owner/repo``.
        weights: Of a variant, as ``create_backbone`` takes them; ``"none"`` for a random network.
            A saved backbone has its own.
        **options: As for ``create_backbone``. What is not given of a saved backbone is as saved.

    Raises:
        ConfigError: ``weights`` for a saved backbone, or an option outside what is allowed.
        UnknownVariantError: Neither a folder nor a variant.
        WeightsError: Weights that cannot be had or do not fit.
    """
    if is_saved(source):
        from trunkline.weights.pretrained import from_pretrained

        check_no_weights(source, weights)
        return from_pretrained(source, **options)
    return create_backbone(source, weights=None if weights == "none" else weights, **options)


def check_no_weights(source: str, weights: str) -> None:
    """Refuse weights beside a saved backbone, which has its own.

    Raises:
        ConfigError: Some were given.
    """
    if weights != "none":
        raise ConfigError(
            f"{source} is a saved backbone, which has its weights, and weights={weights!r} was "
            "given too; leave the weights out, or name a variant."
        )
