"""Names → configs: how a family finds its variants, and what to say of a name that it lacks."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from trunkline.backbones.upstream_names import check_checkpoint, parted
from trunkline.errors import ConfigError, UnknownVariantError

T = TypeVar("T")
_BUILDERS = (
    ("dla", "DLANet", "DLANet(dla={name!r})"),
    ("regnet", "RegNet", "RegNet(variant={name!r})"),
    ("resnext", "ResNet", "ResNet(depth={name!r})"),
    ("wide-resnet", "ResNet", "ResNet(depth={name!r})"),
    ("presnet", "ResNet", "ResNet(depth={name!r})"),
    ("resnet", "ResNet", "ResNet(depth={name!r})"),
)


def normalize_name(name: str) -> str:
    """Return ``name`` as variants are looked up: lower case, hyphens, without a hub's owner."""
    return name.strip().lower().replace("_", "-").rpartition("/")[2]


def resolve_variant(name: object, variants: Mapping[str, T], aliases: Mapping[str, str]) -> str:
    """Return the variant that ``name`` means.

    Args:
        name: A variant or an alias; ``_`` and ``-`` are the same, so are capitals.
        variants: All variants by name.
        aliases: Other names, normalised, with the variant that each stands for.

    Raises:
        UnknownVariantError: No such name; the closest ones are in the text.
    """
    if not isinstance(name, str):
        raise UnknownVariantError(
            f"a variant is named by a string, not {type(name).__name__}; see `trunkline list`."
        )
    if name.startswith("hf://") or (os.path.isdir(name) and os.path.basename(name) != name):
        raise UnknownVariantError(
            f"{name!r} is an address or a folder, not the name of a variant; "
            "trunkline.from_pretrained builds what save_pretrained wrote there, and "
            "create_backbone(NAME, weights=...) loads other weights into a variant."
        )
    wanted = normalize_name(name)
    wanted = aliases.get(wanted, wanted)
    if wanted in variants:
        return wanted
    if os.path.isfile(name):
        raise UnknownVariantError(
            f"{name!r} is a file, not the name of a variant; name the network and give the file as "
            "its weights: resnet50 --weights FILE, create_backbone(NAME, weights=FILE)."
        )
    close = difflib.get_close_matches(wanted, [*variants, *aliases], n=6, cutoff=0.5)
    names = list(dict.fromkeys(aliases.get(match, match) for match in close))[:3]
    hint = f"closest: {', '.join(names)}" if names else f"for example: {', '.join([*variants][:3])}"
    raise UnknownVariantError(f"no variant {name!r}; {hint}. `trunkline list` shows all.")


def is_architecture(value: object) -> bool:
    """Return whether ``value`` is a family's config, by what it can do.

    Not by its class: a family's file that is run from its own folder defines that a second time.
    """
    return hasattr(value, "build_stem") and hasattr(value, "build_stage")


def resolve_config(
    wanted: Any, variants: Mapping[str, T], aliases: Mapping[str, str], owner: str
) -> T:
    """Return the config that is wanted: itself, or a variant's by name.

    Args:
        wanted: A config, or a name.
        variants: Those of the family, by name.
        aliases: Other names, normalised, with the variant that each stands for.
        owner: The class that is asked, for errors.

    Raises:
        UnknownVariantError: Neither a config nor the name of a variant.
        ConfigError: The config of another family.
    """
    if is_architecture(wanted):
        family, own = wanted.family, _family_of(variants)
        if family != own:
            raise ConfigError(
                f"{owner} builds a {own}, and {type(wanted).__name__} describes a {family}; "
                "trunkline.zoo.build_backbone(config) takes the config of any family."
            )
        return cast(T, wanted)
    if isinstance(wanted, str) and (call := right_class(normalize_name(wanted), owner)):
        raise UnknownVariantError(
            f"{wanted!r} is no variant of {owner}; {call} builds it, and so does "
            f"create_backbone({wanted!r})."
        )
    return variants[resolve_variant(wanted, variants, aliases)]


def _family_of(variants: Mapping[str, Any]) -> str:
    return str(next(iter(variants.values())).family)


def name_of(config: object, variants: Mapping[str, object]) -> str | None:
    """Return the variant whose config this is, None if there is none."""
    return next((name for name, known in variants.items() if known == config), None)


def right_class(name: str, asked: str) -> str | None:
    """Return the call that builds a name, where that is another class than the one asked.

    Args:
        name: A variant, normalised.
        asked: The class that was given the name.
    """
    for beginning, owner, call in _BUILDERS:
        if name.startswith(beginning):
            return None if owner == asked else call.format(name=name)
    return None


class VariantNames:
    """All variants of some families, by every name that they have; needs no PyTorch.

    Args:
        families: Variant → its family, in the order in which they are listed.
        aliases: Other names, normalised → the variant.
    """

    def __init__(self, families: Mapping[str, str], aliases: Mapping[str, str]) -> None:
        self.families = families
        self.aliases = aliases

    def canonical(self, name: str) -> str:
        """Return the variant that ``name`` means.

        Raises:
            UnknownVariantError: No such name; the closest ones are in the text.
        """
        try:
            return resolve_variant(name, self.families, self.aliases)
        except UnknownVariantError:
            asked = parted(normalize_name(name)) if isinstance(name, str) else None
            if asked is None or not self._has(asked.network):
                raise
        check_checkpoint(name, asked.checkpoint)
        return resolve_variant(asked.network, self.families, self.aliases)

    def checkpoint(self, name: str) -> str | None:
        """Return the checkpoint that a name says beside its variant, None for that alone."""
        plain = normalize_name(name)
        if self._has(plain) or (asked := parted(plain)) is None or not self._has(asked.network):
            return None
        return asked.checkpoint

    def weights(self, name: str, weights: str) -> str:
        """Return ``weights``, or for ``"default"`` the checkpoint that the name says."""
        return (self.checkpoint(name) or weights) if weights == "default" else weights

    def listed(self, family: str | None = None) -> list[str]:
        """Return the variants of a family, None for all.

        Raises:
            ConfigError: No such family.
        """
        known = dict.fromkeys(self.families.values())
        if family is not None and family not in known:
            raise ConfigError(f"no family {family!r}; allowed: {', '.join(known)}.")
        return [name for name, of in self.families.items() if family in (None, of)]

    def _has(self, plain: str) -> bool:
        return self.aliases.get(plain, plain) in self.families
