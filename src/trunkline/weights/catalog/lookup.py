"""The catalog as a whole: read once, when first asked, and looked up by variant and tag."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from trunkline import facts
from trunkline.backbones.upstream_names import parted
from trunkline.errors import (
    ConfigError,
    LicenseError,
    UnknownVariantError,
    WeightsNotFoundError,
)
from trunkline.preprocessing import Preprocessing
from trunkline.weights.catalog.entry import (
    LICENSES,
    SOURCES,
    TASKS,
    Bands,
    Place,
    WeightEntry,
    spelled,
)

DEFAULT = "default"
_WEIGHTS = "_Weights"  # how torchvision's enums end
_BEST = ("IMAGENET1K_V2", "IMAGENET1K_SWAG_E2E_V1", "IMAGENET1K_V1")  # its DEFAULT, where it has it
_CLASSES = tuple(dict.fromkeys(one.kind for one in LICENSES.values()))
_FREE = ("permissive", "share-alike")  # need no agreement
_FILE_FIELDS = ("source", "about", "preprocessing", "facts_source", "rows")
# The reader fills these in: the first from the file's head, the second from the row.
_ROW_FIELDS = {field.name for field in dataclasses.fields(WeightEntry)} - {"source"}
_BAND_FIELDS = {field.name for field in dataclasses.fields(Bands)}
_PLACE_FIELDS = {field.name for field in dataclasses.fields(Place)}


class Default(NamedTuple):
    """Which checkpoint a variant gets unless told otherwise (None: no one), and why."""

    tag: str | None
    why: str


def entries(
    variant: str | None = None,
    *,
    source: str | None = None,
    license: str | None = None,  # noqa: A002 - what users call it; Python's own is a banner
    task: str | None = None,
    channels: int | None = None,
    dataset: str | None = None,
    family: str | None = None,
) -> list[WeightEntry]:
    """Return rows of the catalog, by variant in the zoo's order, then by upstream.

    Args:
        variant: Only this backbone's, by any of its names; None for all.
        source: Only this upstream's, one of ``SOURCES``; None for all.
        license: A class ("permissive", "share-alike", "noncommercial", "unknown"), an SPDX
            identifier such as "MIT", "commercial" for what needs no agreement, or "any" or None
            for all.
        task: Only what was trained for this, one of ``TASKS``.
        channels: Only what takes this number of input channels.
        dataset: Only what was trained on this, such as "imagenet-1k".
        family: Only of "resnet", "dla" or "regnet".

    Raises:
        UnknownVariantError: No such backbone.
        ConfigError: No such upstream, licence, task, number of channels, data set or family.

    Example:
        >>> from trunkline.weights import catalog
        >>> [row.tag for row in catalog.entries("dla34", license="permissive")]
        ['timm-in1k', 'ucbdrive', 'rtdetr']
    """
    if source is not None and source not in SOURCES:
        raise ConfigError(f"no upstream {source!r}; allowed: {', '.join(SOURCES)}.")
    licenses = _licenses(license)
    rows = _all() if variant is None else _rows()[facts.names().canonical(variant)]
    rows = tuple(r for r in rows if source in (None, r.source) and r.license in licenses)
    for field, wanted, allowed in (
        ("task", task, TASKS),
        ("channels", channels, sorted({row.channels for row in _all()})),
        ("dataset", dataset, sorted({row.dataset for row in _all() if row.dataset})),
    ):
        if wanted is not None:
            if wanted not in allowed:
                said = ", ".join(map(str, allowed))
                raise ConfigError(f"no {field} {wanted!r} in the catalog; allowed: {said}.")
            rows = tuple(row for row in rows if getattr(row, field) == wanted)
    if family is not None:
        names = set(facts.names().listed(family))
        rows = tuple(row for row in rows if row.variant in names)
    return list(rows)


def by_accuracy(rows: Sequence[WeightEntry]) -> list[WeightEntry]:
    """Return rows with the best ``top1`` first; those without one follow in their own order.

    Accuracies of a classifier and of a linear one on frozen features are not of the same kind:
    filter by ``task`` before you compare.
    """
    return sorted(rows, key=lambda row: -(row.top1 or 0.0))


def find(variant: str, tag: str = DEFAULT) -> WeightEntry:
    """Return one row.

    Args:
        variant: A backbone, by any of its names.
        tag: A tag of it, ``"default"``, or what the upstream calls the checkpoint where only one
            is called so: ``"IMAGENET1K_V1"``, ``"a1_in1k"``, ``"facebook/regnet-y-040"``; also
            ``"ResNet50_Weights.IMAGENET1K_V1"`` and timm's former ``"tv_resnet50"``.

    Raises:
        UnknownVariantError: No such backbone.
        WeightsNotFoundError: No such tag, or no default; what there is, is in the text.

    Example:
        >>> from trunkline.weights import catalog
        >>> catalog.find("resnet50", "IMAGENET1K_V2").tag
        'torchvision-in1k-v2'
    """
    name = facts.names().canonical(variant)
    rows = entries(name)
    tag = facts.names().weights(variant, tag)
    if tag == DEFAULT:
        pinned, why = default(name)
        if pinned is None:
            raise WeightsNotFoundError(f"{name} has no default weights: {why}. {_instead(rows)}")
        tag = pinned
    wanted = spelled(tag)
    found = [row for row in rows if row.tag == wanted]
    found = found or [row for row in rows if wanted in row.aliases]
    if not found and (other := _said_otherwise(name, tag)) is not None:
        found = [row for row in rows if other in (row.tag, *row.aliases)]
    if len(found) == 1:
        return found[0]
    if found:
        raise WeightsNotFoundError(
            f"{tag!r} is the name of several weights of {name}; say which by its tag: "
            f"{', '.join(row.tag for row in found)}."
        )
    raise WeightsNotFoundError(f"no weights {tag!r} of {name}. {_closest(name, wanted, rows)}")


def tag_of_enum(member: Enum | str, variant: str) -> str:
    """Return the tag of a member of torchvision's enums of weights.

    Args:
        member: Such as ``ResNet50_Weights.IMAGENET1K_V2``, or how that is written:
            ``"ResNet50_Weights.IMAGENET1K_V2"``, ``"IMAGENET1K_V2"``.
        variant: The backbone that it is for, by any of its names.

    Raises:
        UnknownVariantError: No such backbone.
        WeightsNotFoundError: An enum of something else or of another network, or no such weights.

    Example:
        >>> from trunkline.weights.catalog.lookup import tag_of_enum
        >>> tag_of_enum("ResNet50_Weights.DEFAULT", "resnet50")
        'torchvision-in1k-v2'
    """
    said = f"{type(member).__name__}.{member.name}" if isinstance(member, Enum) else member
    name = facts.names().canonical(variant)
    network, _, version = said.rpartition(".")
    if isinstance(member, Enum) and not network.endswith(_WEIGHTS):
        raise WeightsNotFoundError(
            f"{said} is no member of torchvision's enums of weights, such as "
            "ResNet50_Weights.IMAGENET1K_V2; give one of these, or a tag."
        )
    if network:
        theirs = _variant_of_enum(network)
        if theirs != name:
            other = f"weights of {theirs}" if theirs else "weights of no network here"
            raise WeightsNotFoundError(f"{said} are {other}, and this is {name}.")
    rows = [row for row in entries(name) if row.source == "torchvision"]
    found = {row.upstream_name.partition(".")[2]: row.tag for row in rows}
    if version == "DEFAULT":
        version = next((one for one in _BEST if one in found), version)
    if version not in found:
        said_there = ", ".join(one for one in found if one) or "none"
        raise WeightsNotFoundError(
            f"torchvision has no {version} of {name} in the catalog; there are: {said_there}."
        )
    return found[version]


def _variant_of_enum(name: str) -> str | None:
    try:
        return facts.names().canonical(name.removesuffix(_WEIGHTS))
    except UnknownVariantError:
        return None


def _said_otherwise(variant: str, tag: str) -> str | None:
    """Return the tag or alias that is meant by torchvision's enums or timm's former names."""
    network, _, _ = tag.rpartition(".")
    if network.endswith(_WEIGHTS):
        return tag_of_enum(tag, variant)
    asked = parted(spelled(tag).rpartition("/")[2])
    if asked is None:
        return None
    try:
        is_it = facts.names().canonical(asked.network) == variant
    except UnknownVariantError:
        return None
    return asked.checkpoint if is_it else None


def default(variant: str) -> Default:
    """Return which checkpoint a variant gets by default, and why that one or none.

    Raises:
        UnknownVariantError: No such backbone.
    """
    name = facts.names().canonical(variant)
    return _defaults().get(name, Default(None, "none has been chosen"))


def default_tag(variant: str) -> str | None:
    """Return the tag that ``"default"`` stands for, or None where there is no default.

    Raises:
        UnknownVariantError: No such backbone.
    """
    return default(variant).tag


def check_license(entry: WeightEntry, *, allow_noncommercial: bool = False) -> None:
    """Refuse weights whose licence forbids commercial use, or is not known, unless that is agreed.

    Args:
        entry: The row.
        allow_noncommercial: The user has agreed.

    Raises:
        LicenseError: It has to be agreed to; the licence is named.
    """
    if allow_noncommercial or entry.license_class in _FREE:
        return
    title = LICENSES[entry.license].title
    what = f"{entry.variant} {entry.tag} comes with a licence for non-commercial use only"
    if entry.license_class == "unknown":
        what = f"nothing is known to allow commercial use of {entry.variant} {entry.tag}"
    raise LicenseError(
        f"{what}: {title} ({entry.license}). If that suits what you do, say "
        "allow_noncommercial=True, or --allow-noncommercial on the command line; `trunkline "
        f"weights list {entry.variant} --license permissive` shows what needs no such agreement."
    )


def _licenses(wanted: str | None) -> set[str]:
    if wanted is None or wanted.lower() == "any":
        return set(LICENSES)
    low = wanted.lower()
    if low == "commercial":
        return {spdx for spdx, one in LICENSES.items() if one.kind in _FREE}
    found = {
        spdx
        for spdx, one in LICENSES.items()
        if low in (spdx.lower(), spdx.lower().removeprefix("licenseref-"), one.kind)
    }
    if not found:
        allowed = dict.fromkeys(("any", "commercial", *_CLASSES, *LICENSES))
        raise ConfigError(f"no licence {wanted!r}; allowed: {', '.join(allowed)}.")
    return found


def _instead(rows: Sequence[WeightEntry]) -> str:
    if not rows:
        return "Give weights=PATH for a file of your own, or weights=None for a random network."
    tags = ", ".join(f"{row.tag} ({row.license})" for row in rows)
    return f"Choose one by its tag: {tags}."


def _closest(name: str, wanted: str, rows: Sequence[WeightEntry]) -> str:
    if not rows:
        return f"The catalog has none of {name}. {_instead(rows)}"
    # The same pictures, another place of the stride: resnet50's neighbour is resnet50-caffe.
    others = [row.variant for row in _all() if row.tag == wanted]
    near = next((other for other in others if other.startswith(f"{name}-")), None)
    if near is not None:
        return f"They are weights of {near}, another network: build that one."
    tags = [row.tag for row in rows]
    close = difflib.get_close_matches(wanted, tags, n=3, cutoff=0.4)
    hint = f"Closest: {', '.join(close)}" if close else f"For example: {', '.join(tags[:3])}"
    return f"{hint}. `trunkline weights list {name}` shows all."


def _all() -> tuple[WeightEntry, ...]:
    return tuple(itertools.chain.from_iterable(_rows().values()))


@cache
def _rows() -> dict[str, tuple[WeightEntry, ...]]:
    """Read every file: the rows of each variant, in the zoo's order and that of ``SOURCES``."""
    rows: dict[str, list[WeightEntry]] = {name: [] for name in facts.names().listed()}
    for source in SOURCES:
        for row in parse(f"{source}.json", _read(f"{source}.json")):
            if row.variant not in rows:
                raise ConfigError(f"{source}.json: no backbone {row.variant!r}; see zoo.py.")
            if any(row.tag == other.tag for other in rows[row.variant]):
                raise ConfigError(f"{source}.json: {row.variant} has {row.tag!r} twice.")
            rows[row.variant].append(row)
    return {name: tuple(found) for name, found in rows.items()}


@cache
def _defaults() -> dict[str, Default]:
    content = _read("defaults.json")
    _check_fields("defaults.json", content, {"about", "choices"}, {"about", "choices"})
    pinned = {}
    for choice in content["choices"]:
        _check_fields("defaults.json", choice, {"tag", "why", "variants"}, {"why", "variants"})
        for variant in choice["variants"]:
            if variant in pinned:
                raise ConfigError(f"defaults.json: {variant} is there twice; keep one.")
            pinned[variant] = Default(choice.get("tag"), choice["why"])
    return pinned


def parse(name: str, content: Mapping[str, Any]) -> list[WeightEntry]:
    """Return the rows of one file of the catalog, checked field by field.

    Args:
        name: The file's name, for messages.
        content: What the file holds.

    Raises:
        ConfigError: A field is missing, unknown, or has a value that is not allowed.
    """
    _check_fields(name, content, {*_FILE_FIELDS, "bands"}, set(_FILE_FIELDS))
    known = {key: Preprocessing.from_dict(one) for key, one in content["preprocessing"].items()}
    bands = {key: _bands(f"{name}, bands {key}", b) for key, b in content.get("bands", {}).items()}
    rows = []
    for fields in content["rows"]:
        where = f"{name}, row {fields.get('variant')} {fields.get('tag')!r}"
        required = {"variant", "tag", "upstream_name", "places", "license", "layout"}
        kind = "bands" if "bands" in fields else "preprocessing"
        _check_fields(where, fields, _ROW_FIELDS, required | {kind})
        values: dict[str, Any] = {"facts_source": content["facts_source"], **fields}
        for key in ("requires", "assumed"):
            values[key] = tuple(fields.get(key, ()))
        values["places"] = tuple(_place(where, fields["layout"], p) for p in fields["places"])
        for key, defined in (("preprocessing", known), ("bands", bands)):
            if key in fields:
                values[key] = _defined(where, key, fields[key], defined)
        rows.append(WeightEntry(source=content["source"], **values))
    return rows


def _defined(where: str, kind: str, key: str, defined: Mapping[str, Any]) -> Any:
    if key not in defined:
        raise ConfigError(
            f"{where}: no {kind} {key!r}; the file defines {', '.join(sorted(defined))}."
        )
    return defined[key]


def _bands(where: str, fields: Mapping[str, Any]) -> Bands:
    _check_fields(where, fields, _BAND_FIELDS, {"names", "unit"})
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return Bands(**values)


def _place(where: str, layout: str, fields: Mapping[str, Any]) -> Place:
    _check_fields(where, fields, _PLACE_FIELDS, {"url"})
    values: dict[str, Any] = {"layout": layout, **fields}
    return Place(**values)


def _check_fields(
    where: str, fields: Mapping[str, Any], allowed: set[str], required: set[str]
) -> None:
    unknown, missing = sorted(set(fields) - allowed), sorted(required - set(fields))
    if unknown or missing:
        raise ConfigError(
            f"{where}: unknown fields {unknown}, missing fields {missing}; "
            f"allowed: {', '.join(sorted(allowed))}."
        )


def _read(name: str) -> dict[str, Any]:
    text = resources.files(__package__ or "").joinpath(name).read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content
