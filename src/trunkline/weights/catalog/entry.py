"""What one row of the catalog says: a checkpoint that somebody published, and where it is had.

A row is data. Whoever downloads, reads or renames its file asks the row what to expect.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from trunkline.errors import ConfigError
from trunkline.preprocessing import Preprocessing, is_positive_int

LicenseClass = Literal["permissive", "share-alike", "noncommercial", "unknown"]
Task = Literal["supervised", "semi-supervised", "self-supervised", "satellite", "medical", "robust"]


class License(NamedTuple):
    """A licence as people know it, and what it asks in one word."""

    title: str
    kind: LicenseClass


LICENSES: dict[str, License] = {
    "Apache-2.0": License("Apache License 2.0", "permissive"),
    "BSD-3-Clause": License("BSD 3-Clause License", "permissive"),
    "MIT": License("MIT License", "permissive"),
    "CC0-1.0": License("Creative Commons Zero 1.0", "permissive"),
    "CC-BY-4.0": License("Creative Commons Attribution 4.0", "permissive"),
    "LicenseRef-CC-BY": License("Creative Commons Attribution, version not said", "permissive"),
    "ODC-By-1.0": License("Open Data Commons Attribution 1.0", "permissive"),
    "CC-BY-SA-3.0": License("Creative Commons Attribution-ShareAlike 3.0", "share-alike"),
    "CC-BY-NC-4.0": License("Creative Commons Attribution-NonCommercial 4.0", "noncommercial"),
    "LicenseRef-SEER": License("SEER License Agreement of Meta", "noncommercial"),
    "LicenseRef-OpenRAIL": License("OpenRAIL, which restricts uses; no version named", "unknown"),
    "unknown": License("no licence named by the upstream", "unknown"),
}
"""By SPDX identifier; ``LicenseRef-`` is SPDX's own prefix for what it does not list."""

SOURCES = (
    *("torchvision", "timm", "transformers", "dla", "pycls", "rtdetr", "detectron2"),
    *("mmpretrain", "vissl", "fair", "lightly", "pass", "torchgeo", "torchxrayvision"),
    *("places365", "texture-vs-shape", "robust"),
)
"""The upstreams, in the order in which their rows are listed."""

TASKS: dict[str, str] = {
    "supervised": "classes of photographs",
    "semi-supervised": "few labels, or weak ones, and many pictures",
    "self-supervised": "photographs without labels",
    "satellite": "satellite pictures, most of them of other bands than colours",
    "medical": "medical pictures",
    "robust": "photographs, perturbed by an adversary",
}
"""What a checkpoint was trained for: the words of ``task``."""

METRICS = {
    "classifier": "the classifier that the checkpoint was trained with",
    "linear": "a linear classifier on frozen features, which the file may lack",
}
"""Whose accuracy ``top1`` and ``top5`` are."""

REQUIREMENTS = {
    "stride-in-1x1": "a network with the stride in the first 1×1 of each bottleneck (…-caffe)",
    "frozen-norm": "norm='frozen': the file's norms are fused and have no statistics",
    "group-norm": "norm='group': the file holds group norms",
}
"""What a file needs of the network, beyond the shapes that its layout can check."""

_HUB = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)/(?P<file>[^@]+?)(?:@(?P<revision>.+))?")
_WEB = re.compile(r"https?://[^/\s]+/\S*[^/\s]")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(r"[0-9a-f]{8,63}")
_TAG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def spelled(name: str) -> str:
    """Return a name as tags are compared: capitals do not matter, and ``_`` is ``-``."""
    return name.strip().lower().replace("_", "-")


class HubFile(NamedTuple):
    """A file on the Hugging Face Hub; revision None is the main branch."""

    repo: str
    file: str
    revision: str | None


@dataclass(frozen=True, kw_only=True)
class Bands:
    """Channels that are no 8-bit RGB: what they are, in order, and how upstream scaled them.

    A ``Preprocessing`` speaks of 8-bit RGB. These numbers are for whoever reads the pictures.

    Attributes:
        names: One per channel, in the order of the stem's.
        unit: What a value is before ``mean`` and ``std``.
        mean: Subtracted, one number per channel; None where upstream publishes none.
        std: Divided by, as ``mean``.
        resize: N makes a picture N×N first; None leaves its size alone.
        crop: Side of the centre crop after that; None keeps everything.
        note: What else is done.

    Raises:
        ConfigError: A field is outside what is said above.
    """

    names: tuple[str, ...]
    unit: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: int | None = None
    crop: int | None = None
    note: str = ""

    def __post_init__(self) -> None:
        channels = len(self.names)
        if not channels or not self.unit:
            raise ConfigError("bands need names and a unit.")
        if (self.mean is None) != (self.std is None):
            raise ConfigError(f"bands {', '.join(self.names)}: mean and std go together.")
        for field in ("mean", "std"):
            values = getattr(self, field)
            if values is not None and len(values) != channels:
                raise ConfigError(
                    f"bands {', '.join(self.names)}: {field} has {len(values)} numbers; "
                    f"give {channels}, one per band."
                )
        if self.std is not None and min(self.std) <= 0:
            raise ConfigError(f"bands {', '.join(self.names)}: std={self.std} must be positive.")

    def describe(self) -> str:
        """Return one line for people: what happens to a picture, in order."""
        steps = [f"{len(self.names)} bands ({', '.join(self.names)})", self.unit]
        if self.resize is not None:
            steps.append(f"resized to {self.resize}x{self.resize}")
        if self.crop is not None:
            steps.append(f"centre crop {self.crop}x{self.crop}")
        if self.mean is None:
            steps.append("no mean and std published")
        return "; ".join([*steps, self.note] if self.note else steps)


@dataclass(frozen=True, kw_only=True)
class Place:
    """One place that a checkpoint is had from.

    Places of one row hold the same weights, not the same bytes: a host that saved a file anew has
    a hash of its own, and at times the names of another upstream.

    Attributes:
        url: ``https://…``, ``hf://owner/repo/file`` or ``hf://owner/repo/file@revision``.
        layout: The names in the file, as ``trunkline.weights.layouts`` calls them.
        file_name: What the upstream calls the file.
        sha256: Of the whole file, where it is known.
        sha256_prefix: Its beginning, where the upstream puts that into the file's name.
        prefix: Where in the file the network is, as ``load_weights`` takes it, where the file
            holds more than one; "" for what is found by itself.

    Raises:
        ConfigError: A field is outside what is said above.
    """

    url: str
    layout: str
    file_name: str = ""
    sha256: str | None = None
    sha256_prefix: str | None = None
    prefix: str = ""

    def __post_init__(self) -> None:
        if not (self.hub or _WEB.fullmatch(self.url)):
            raise ConfigError(
                f"place {self.url!r} is no address; write https://HOST/FILE or "
                "hf://OWNER/REPO/FILE[@REVISION]."
            )
        if not self.file_name:
            path = self.hub.file if self.hub else self.url
            object.__setattr__(self, "file_name", path.rsplit("/", 1)[-1])
        for value, pattern, allowed in (
            (self.sha256, _SHA256, "64"),
            (self.sha256_prefix, _PREFIX, "8 to 63"),
        ):
            if value is not None and not pattern.fullmatch(value):
                raise ConfigError(
                    f"place {self.url!r}: {value!r} is no hash; write {allowed} digits of 0-9a-f."
                )

    @property
    def hub(self) -> HubFile | None:
        """The file on the Hub, or None for a plain URL."""
        found = _HUB.fullmatch(self.url)
        return HubFile(found["repo"], found["file"], found["revision"]) if found else None


@dataclass(frozen=True, kw_only=True)
class WeightEntry:
    """One published checkpoint of one variant.

    Attributes:
        variant: The backbone that it fits, by its own name.
        tag: Its name among the checkpoints of the variant: lower case, hyphens.
        source: The upstream, one of ``SOURCES``.
        upstream_name: What the upstream calls it.
        places: Where it is had, in the order to try.
        license: One of ``LICENSES``.
        layout: The names in the file of the first place.
        preprocessing: What the network expects of its pictures; None where they are no 8-bit RGB.
        bands: What its channels are, where they are no 8-bit RGB; None otherwise.
        task: What it was trained for, one of ``TASKS``.
        trained_on: The data set that it was trained on, where that is not ``classes_dataset``.
        num_classes: Outputs of the classifier in the file; None where it has none, or where that
            is not recorded.
        classes_dataset: What the classes are those of, such as ``"imagenet-1k"``; None without.
        top1: Accuracy in percent on the validation set, as published.
        top5: As ``top1``.
        metric: Whose accuracy that is, one of ``METRICS``.
        metric_size: Pixels of the square input at which ``top1`` and ``top5`` were measured.
        num_params: Learned values of what was published, its classifier and its dead layers too.
        size_bytes: Of the first place's file. Upstreams publish it rounded: good for a progress
            bar, not as a check.
        requires: What the file needs of the network, from ``REQUIREMENTS``.
        assumed: Fields of ``preprocessing`` that the upstream does not publish.
        notes: What else a user should know.
        facts_source: Where all of this was read.

    Raises:
        ConfigError: A field is outside what is said above.
    """

    variant: str
    tag: str
    source: str
    upstream_name: str
    places: tuple[Place, ...]
    license: str
    layout: str
    preprocessing: Preprocessing | None = None
    bands: Bands | None = None
    task: Task = "supervised"
    trained_on: str | None = None
    num_classes: int | None = None
    classes_dataset: str | None = None
    top1: float | None = None
    top5: float | None = None
    metric: str = "classifier"
    metric_size: int | None = None
    num_params: int | None = None
    size_bytes: int | None = None
    requires: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    notes: str = ""
    facts_source: str = ""

    def __post_init__(self) -> None:
        known = {field.name for field in dataclasses.fields(Preprocessing)}
        self._check_choice("source", {self.source}, SOURCES)
        self._check_choice("license", {self.license}, LICENSES)
        self._check_choice("task", {self.task}, TASKS)
        self._check_choice("metric", {self.metric}, METRICS)
        self._check_choice("requires", set(self.requires), REQUIREMENTS)
        self._check_choice("assumed", set(self.assumed), known)
        if not _TAG.fullmatch(self.tag) or self.tag == "default":
            raise self._error("a tag is lower case with single hyphens, and not 'default'")
        if not self.places or self.places[0].layout != self.layout:
            raise self._error("it needs a place, and the first one has the layout of the row")
        if (self.preprocessing is None) == (self.bands is None):
            raise self._error("it needs preprocessing, or bands where pictures are no 8-bit RGB")
        if (self.num_classes is None) != (self.classes_dataset is None):
            raise self._error("num_classes and classes_dataset go together")
        if (self.top1 is None) != (self.metric_size is None):
            raise self._error("top1 and metric_size go together")
        for field in ("num_classes", "metric_size", "num_params", "size_bytes"):
            value = getattr(self, field)
            if value is not None and not is_positive_int(value):
                raise self._error(f"{field} must be a positive integer, got {value!r}")
        for field in ("top1", "top5"):
            value = getattr(self, field)
            if value is not None and not (isinstance(value, int | float) and 0 < value <= 100):
                raise self._error(f"{field} is a percentage, got {value!r}")

    def _check_choice(self, field: str, given: set[str], allowed: Any) -> None:
        if unknown := given - set(allowed):
            raise self._error(
                f"{field} {', '.join(sorted(map(repr, unknown)))} is unknown; "
                f"allowed: {', '.join(sorted(allowed))}"
            )

    def _error(self, problem: str) -> ConfigError:
        return ConfigError(f"catalog row {self.variant} {self.tag!r}: {problem}.")

    @property
    def channels(self) -> int:
        """Input channels of the file's stem."""
        return 3 if self.bands is None else len(self.bands.names)

    @property
    def dataset(self) -> str | None:
        """What it was trained on, where that is recorded."""
        return self.trained_on or self.classes_dataset

    @property
    def license_class(self) -> LicenseClass:
        """What the licence asks, in one word."""
        return LICENSES[self.license].kind

    @property
    def file_name(self) -> str:
        """What the first place calls the file."""
        return self.places[0].file_name

    @property
    def sha256(self) -> str | None:
        """Of the first place's file, where it is known. Other places may have other hashes."""
        return self.places[0].sha256

    @property
    def sha256_prefix(self) -> str | None:
        """The beginning of the first place's hash, where it is known."""
        return self.places[0].sha256_prefix

    @property
    def aliases(self) -> frozenset[str]:
        """What else it may be asked for by, normalised: the upstream's own spellings."""
        names = {self.upstream_name}
        if self.source in ("torchvision", "timm"):  # these write NAME.TAG
            names.add(self.upstream_name.partition(".")[2])
        if self.source == "timm":
            names.add(f"timm/{self.upstream_name}")
        return frozenset(spelled(name) for name in names if name)

    def about_channels(self, channels: int) -> str:
        """Return a sentence for a network that takes another number of channels, else ``""``."""
        if channels == self.channels:
            return ""
        names = "" if self.bands is None else f" ({', '.join(self.bands.names)})"
        return (
            f"{self.tag} was trained on {self.channels} channels{names}, and this network takes "
            f"{channels}: in_channels={self.channels} loads the stem as it is."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, and the class of the licence, as plain values that JSON can hold."""
        plain = dataclasses.asdict(self)
        plain["license_class"] = self.license_class
        plain["channels"] = self.channels
        plain["dataset"] = self.dataset
        plain["preprocessing"] = self.preprocessing.to_dict() if self.preprocessing else None
        return {key: list(v) if isinstance(v, tuple) else v for key, v in plain.items()}
