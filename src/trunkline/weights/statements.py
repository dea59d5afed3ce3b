"""What a checkpoint is said to be, and whether that is what the caller asked for.

Our own words are one JSON document in the metadata of a safetensors file, under the key
``trunkline``. They say what the tensors compute, which names and shapes do not always tell, and
where they came from. Others' files may name their architecture, and the catalog knows some by their
address or hash. Whoever contradicts the caller stops the load. But nothing in a file is proven: no
tag and no licence is believed because a file says so.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from trunkline.backbones.backbone import Architecture, Backbone
from trunkline.backbones.layers import ACTS
from trunkline.backbones.options import CUSTOM
from trunkline.errors import (
    CheckpointError,
    ConfigError,
    UnknownVariantError,
    WeightsError,
    WeightsMismatchError,
    legible,
)
from trunkline.files import DocumentError, parse_document, read_document
from trunkline.preprocessing import Preprocessing
from trunkline.weights.checkpoint import Checkpoint
from trunkline.weights.files.huggingface import SCHEME, parse
from trunkline.weights.hub import fetch_hf
from trunkline.weights.layouts import LAYOUTS
from trunkline.weights.layouts.layout import Layout, feature
from trunkline.weights.lookalikes import computes_alike, difference, lookalikes
from trunkline.weights.matching import Match, norm_kind, stage_of
from trunkline.weights.reading.words import NAMES
from trunkline.weights.relatives import called
from trunkline.weights.sources import Located, known_by_hash
from trunkline.zoo import canonical_name, family_config, variant_config

logger = logging.getLogger(__name__)

KEY = "trunkline"
FORMAT = 2
_ANEW = (
    "save the network anew, or leave its words out: "
    "safetensors.torch.save_file(safetensors.torch.load_file(PATH), PATH)"
)
# Of a name; a path or an URL is longer.
_LONGEST_NAME = 64
# transformers' names of activations that are ours too.
_HIDDEN_ACTS = {act.replace("-", "_"): act for act in ACTS} | {
    "swish": "silu",
    "hard_swish": "hardswish",
}
_CONFIG, _CONFIG_BYTES = "config.json", 1 << 20


@dataclass(frozen=True, kw_only=True)
class Statement:
    """Our words about a file.

    Attributes:
        layout: The names in the file, one of ``LAYOUTS``.
        family: Of the network.
        architecture: The fields of the family's config.
        variant: The published name of that, None for a network of one's own.
        act: Name of the activation it was trained with, None where nobody said.
        preprocessing: How it wants its images, in RGB; None where nobody said.
        tag: Of the catalog's checkpoint that the weights come from.
        license: SPDX identifier of the weights' licence.
        source_sha256: Of the file that this one was converted from.
        labels: Of the classifier in it, one name per class; None for no classifier or no names.
        pool: What is before the classifier in it, None where nobody said: the mean.
        format: Of these words.

    Raises:
        ConfigError: Words that contradict each other, or that this version does not know.
    """

    layout: str
    family: str
    architecture: dict[str, Any]
    variant: str | None = None
    act: str | None = None
    preprocessing: Preprocessing | None = None
    tag: str | None = None
    license: str | None = None
    source_sha256: str | None = None
    labels: tuple[str, ...] | None = None
    pool: Literal["avg", "max"] | None = None
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ConfigError(f"no layout {self.layout!r}; allowed: {', '.join(LAYOUTS)}.")
        if self.act not in (None, *ACTS):
            raise ConfigError(f"no activation {self.act!r}; allowed: {', '.join(ACTS)}.")
        check_variant(self.variant, self.config())

    def config(self) -> Architecture:
        """Return the architecture as the family's config."""
        return family_config(self.family, self.architecture)

    @property
    def named(self) -> str:
        """What to call the network in a sentence."""
        return self.variant or f"a {self.family} of one's own"

    @property
    def claims(self) -> dict[str, str]:
        """The tag and the licence, as far as they are said, each in one line."""
        said = {"tag": self.tag, "license": self.license}
        return {key: legible(" ".join(value.split())) for key, value in said.items() if value}

    def metadata(self) -> dict[str, str]:
        """Return what a safetensors file keeps of it; ``format`` there is another library's."""
        words = {key: value for key, value in asdict(self).items() if value is not None}
        return {"format": "pt", KEY: json.dumps(words)}


def check_variant(variant: str | None, architecture: Architecture) -> None:
    """Refuse a name whose config is another one.

    Raises:
        ConfigError: It is, or no variant has that name.
    """
    if variant is None:
        return
    known = named_variant(variant)
    if known is None or variant_config(known) != architecture:
        raise ConfigError(f"the architecture is not that of variant {variant!r}.")


@dataclass(frozen=True)
class _Words:
    format: int


def statement_of(checkpoint: Checkpoint) -> Statement | None:
    """Return our words about a file, None where it has none.

    Raises:
        CheckpointError: They are damaged, or of another version.
    """
    if checkpoint.format != "safetensors":  # the other formats have no place of ours
        return None
    text = checkpoint.metadata.get(KEY)
    if text is None:
        if checkpoint.metadata.get("layout") in LAYOUTS:
            raise CheckpointError(
                f"was written before version 0.1.0, whose words had no format yet; {_ANEW}."
            )
        return None
    try:
        written = parse_document(text, _Words).format
        if written != FORMAT:
            raise CheckpointError(
                f"has words of trunkline of format {written}, and this version reads {FORMAT}; "
                f"read it with that version, or {_ANEW}."
            )
        return parse_document(text, Statement)
    except DocumentError as error:
        raise CheckpointError(
            f"says in its metadata what it is, but not in our words ({error}); {_ANEW}."
        ) from error


def name_given_by_others(metadata: Mapping[str, str]) -> str | None:
    """Return the variant that a training script called its network, where it is one of ours."""
    for key in NAMES:
        if found := named_variant(metadata.get(key, "")):
            return found
    return None


def named_variant(name: str) -> str | None:
    """Return the variant that a name in a file means, None for what is no name of one."""
    if not name or len(name) > _LONGEST_NAME:  # looking for what is similar takes its time
        return None
    try:
        return canonical_name(name)
    except UnknownVariantError:
        return None


def check_words(backbone: Backbone, located: Located, statement: Statement | None) -> None:
    """Refuse a file that is another network's, by its own words or by the catalog.

    Raises:
        WeightsMismatchError: It is; both are named, and how to load it.
    """
    ours = backbone.architecture
    if located.rows and not any(_is(row.variant, ours) for row in located.rows):
        variant = located.rows[0].variant
        raise WeightsMismatchError(
            f"{located.source} is {variant} in the catalog, and {_spoken(backbone)} computes "
            f"something else ({difference(variant_config(variant), ours)}). Nothing was loaded; "
            f"build {variant}."
        )
    if statement is None:
        return
    theirs = statement.config()
    if not computes_alike(theirs, ours):
        how = f"build {statement.variant}" if statement.variant else "build it with that config"
        raise WeightsMismatchError(
            f"{located.path} says that it holds {statement.named}, and {_spoken(backbone)} "
            f"computes something else ({difference(theirs, ours)}). Nothing was loaded; {how}."
        )
    act = backbone.options.act
    if statement.act not in (None, act) and act != CUSTOM:
        raise WeightsMismatchError(
            f"{located.path} says that it was trained with act={statement.act!r}, and this "
            f"backbone has {act!r}. Nothing was loaded; build it with act={statement.act!r}."
        )


def doubts(
    backbone: Backbone, located: Located, checkpoint: Checkpoint, match: Match
) -> tuple[str, ...]:
    """Return what a reader should know of a file that has no words of ours and no tag.

    Raises:
        WeightsMismatchError: It fits another variant as well, and is said or known to be that.
    """
    ours = backbone.architecture
    strange = _check_relatives(backbone, located, checkpoint)
    named = name_given_by_others(checkpoint.metadata)
    if named is not None and _is(named, ours):
        return strange
    alike = {} if match.layout.told else _fits_too(backbone, match)
    said = {}
    if alike:
        fitting = [*alike, *([backbone.variant] if backbone.variant else [])]
        said = said_elsewhere(located, checkpoint, fitting)
    for variant, who in said.items():
        if variant in alike:
            raise WeightsMismatchError(
                f"{located.path} {who} {variant}, and {_spoken(backbone)} computes something else "
                f"of the same names and shapes ({difference(variant_config(variant), ours)}). "
                f"Nothing was loaded; build {variant}. If that is wrong, save its state dict alone."
            )
    other = f"The file calls its network {named}; it was taken for {_spoken(backbone)}."
    known = any(_is(variant, ours) for variant in said)
    both = () if known else _both(backbone, alike)
    return (*([other] if named else ()), *strange, *both)


def _check_relatives(
    backbone: Backbone, located: Located, checkpoint: Checkpoint
) -> tuple[str, ...]:
    """Say or refuse that a file is called a network that is none of ours, and fits all the same.

    Raises:
        WeightsMismatchError: What it is called has our names and shapes, or another activation, and
            its own words or its repository say so.
    """
    config = _config_in_folder(located)
    _check_act(backbone, located, config)
    found = called(located, checkpoint.metadata, config.architecture if config else "")
    if found is None or found.relative.norm == norm_kind(backbone):
        return ()
    twin = named_variant(found.resembled)
    untold = twin is not None and _is(twin, backbone.architecture)
    if found.certain and untold:
        raise WeightsMismatchError(
            f"{located.path}: {found}, which has the names and shapes of {_spoken(backbone)} and "
            "computes something else. Nothing was loaded; no variant here computes that. If the "
            "word is wrong, save its state dict alone, in a folder of its own."
        )
    note = f"{found}; it was taken for {_spoken(backbone)}."
    if untold:
        note += " The two have the same names and shapes, so no tensor tells which it is."
        logger.warning("%s: %s", located.path, note)
    return (note,)


def _check_act(backbone: Backbone, located: Located, config: HubConfig | None) -> None:
    """Refuse another activation than transformers' config says.

    Raises:
        WeightsMismatchError: It says another, and how to build such a network.
    """
    said = _HIDDEN_ACTS.get(config.hidden_act) if config else None
    act = backbone.options.act
    if said is not None and said != act and act != CUSTOM:
        raise WeightsMismatchError(
            f"{located.path}: the config.json beside it says hidden_act {config.hidden_act!r}, "  # type: ignore[union-attr]
            f"and this backbone has act={act!r}, which no tensor tells. Nothing was loaded; build "
            f"it with act={said!r}."
        )


def said_elsewhere(
    located: Located, checkpoint: Checkpoint, fitting: Sequence[str]
) -> dict[str, str]:
    """Return which variants a file is called or known as, beside its names and shapes, and by whom.

    Args:
        located: The file.
        checkpoint: What it holds.
        fitting: Variants that it fits, of which one has to be chosen.
    """
    said: dict[str, str] = {}
    if named := name_given_by_others(checkpoint.metadata):
        said[named] = "calls itself"
    for row in (*located.rows, *known_by_hash(located)):
        said.setdefault(row.variant, "is by its address or hash")
    if located.source.startswith(SCHEME) and (
        named := named_variant(parse(located.source).repo.rpartition("/")[2])
    ):
        said.setdefault(named, "is by its repository's name")
    config = config_beside(located)
    if config is not None:
        if named := named_variant(config.architecture):
            said.setdefault(named, "is by its config.json")
        early = [v for v in fitting if feature(variant_config(v), "stride_in_1x1")]
        late = [v for v in fitting if v not in early]
        if config.model_type == "resnet" and early and late:  # else it tells nothing
            chosen = early if config.downsample_in_bottleneck else late
            said = dict.fromkeys(chosen, "is by its config.json") | said
    return said


@dataclass(frozen=True)
class HubConfig:
    """What other libraries' ``config.json`` says of a network.

    Attributes:
        architecture: timm's name.
        model_type: transformers' family.
        hidden_act: transformers' name of its activation.
        downsample_in_bottleneck: Of transformers' ResNets: the stride is in the first 1×1.
    """

    architecture: str = ""
    model_type: str = ""
    hidden_act: str = ""
    downsample_in_bottleneck: bool = False


def _config_in_folder(located: Located) -> HubConfig | None:
    # Of the Hub it is asked for only where a choice hangs on it: it is one more file to wait for.
    # What came from memory has no folder.
    if located.source.startswith(SCHEME) or not located.path.is_file():
        return None
    return config_beside(located)


def config_beside(located: Located) -> HubConfig | None:
    """Return the config that lies beside a file, in its folder or repository; None without one."""
    try:
        if located.source.startswith(SCHEME):
            address = parse(located.source)
            beside = PurePosixPath(address.file or _CONFIG).with_name(_CONFIG)
            path = fetch_hf(str(replace(address, file=str(beside))))
        elif Path(located.source).expanduser() == located.path:
            path = located.path.with_name(_CONFIG)
        else:
            return None  # a file of the cache, whose neighbours are others'
        return read_document(path, HubConfig, max_bytes=_CONFIG_BYTES)
    except (WeightsError, DocumentError, OSError):
        return None  # then nothing says what the file is, which its reader is told


def _fits_too(backbone: Backbone, match: Match) -> dict[str, Layout]:
    kept = len(backbone.stages)
    held = 1 + max((stage_of(native) for native in match.beyond), default=kept - 1)
    found = lookalikes(backbone.architecture, match.layout, list(match.found), held=held, kept=kept)
    return {one.variant: one.layout for one in found}


def _both(backbone: Backbone, alike: Mapping[str, Layout]) -> Iterator[str]:
    if not alike:
        return
    others = [
        f"{variant} ({difference(variant_config(variant), backbone.architecture)}"
        + (f"; layout={layout.name!r})" if layout.told else ")")
        for variant, layout in alike.items()
    ]
    yield (
        f"These names and shapes are those of another network too, which computes something else: "
        f"{', '.join(others)}. Nothing says which it is; it was taken for {_spoken(backbone)}."
    )


def _is(variant: str, architecture: Architecture) -> bool:
    return computes_alike(variant_config(variant), architecture)


def _spoken(backbone: Backbone) -> str:
    return backbone.variant or "this network"
