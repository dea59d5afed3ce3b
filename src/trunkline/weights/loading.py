"""Weights into a backbone: every tensor that it needs, of the right shape, or nothing.

What is left over in a file must have a reason (a classifier, a stage that is not kept, a dead
layer); anything else, and anything missing, is an error that lists both, and the backbone stays as
it was. What a file means travels with its numbers: colours in BGR order are turned, so that every
backbone takes RGB; half precision is widened; fixed values that a format leaves out are put in.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from trunkline.backbones.backbone import Backbone
from trunkline.backbones.options import WeightsLike
from trunkline.errors import ConfigError, UnknownLayoutError, WeightsMismatchError, legible
from trunkline.preprocessing import Preprocessing
from trunkline.weights.caffe import MSRA, check_style, is_caffe, said_caffe
from trunkline.weights.channels import mapped_preprocessing
from trunkline.weights.checkpoint import Checkpoint, naming
from trunkline.weights.hub import Progress
from trunkline.weights.identify import candidates
from trunkline.weights.layouts import LAYOUTS
from trunkline.weights.layouts.layout import MAX_POOL
from trunkline.weights.layouts.mmpretrain import MMPRETRAIN_RESNET_CAFFE
from trunkline.weights.matching import BESIDE, Match, check_norm, norm_kind
from trunkline.weights.numbers import check_kinds, quantized, unsound
from trunkline.weights.reading.unwrapping import listed
from trunkline.weights.relatives import called
from trunkline.weights.searching import find
from trunkline.weights.sources import Located, opened
from trunkline.weights.statements import Statement, check_words, doubts, statement_of
from trunkline.weights.translation import Native, to_native
from trunkline.weights.trial import trial

logger = logging.getLogger(__name__)

_HARDLY = 5  # percent of a network's tensors: fewer say nothing


@dataclass(frozen=True)
class LoadReport:
    """What a load did. ``str(report)`` says it in sentences.

    Attributes:
        source: What was asked for.
        path: The file that was read.
        sha256: Of that file.
        tag: The catalog's tag, None for a file that was not asked for by its tag.
        license: Of the weights, where the catalog knows it.
        claims: The tag and the licence that the file gives itself, which nothing proves.
        layout: The layout that the file was recognised as.
        container: Where in the file the tensors were, "" at its top.
        prefix: What was in front of their names there, such as ``"module.backbone."``.
        matched: Number of tensors that were loaded.
        shapes: Of each of them, by our names, as they were loaded.
        adapted: What was changed on the way, in sentences.
        dropped: Reason → names in the file that were left aside.
        filled: Names of the backbone that the file leaves out and that have a fixed value.
        notes: What the reader of the file has to say.
    """

    source: str
    path: Path
    sha256: str
    tag: str | None
    license: str | None
    layout: str
    container: str
    matched: int
    prefix: str = ""
    claims: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    adapted: tuple[str, ...] = ()
    dropped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    filled: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        way = ".".join(filter(None, (self.container, self.prefix.removesuffix("."))))
        where = f" (at {way})" if way else ""
        lines = [f"{self.matched} tensors from {self.path.name}{where}, read as {self.layout}."]
        lines += [*self.adapted, *self.notes]
        for why, names in self.dropped.items():
            groups = Counter(name.partition(".")[0] for name in names)
            shown = listed(f"{part} {count}" for part, count in groups.items())
            which = f" ({shown})" if why == BESIDE else ""
            lines.append(f"{len(names)} left aside: {why}{which}.")
        return legible("\n".join(lines))  # it holds words of the file


@dataclass(frozen=True)
class Read:
    """A checkpoint, found, read, recognised and put under our names.

    Attributes:
        located: Where it came from.
        checkpoint: What the file holds.
        match: How its names were understood.
        native: Its tensors under our names.
        statement: What it says of itself in our words, None for nothing.
        notes: What a reader of its report should know besides, in sentences.
        channel_map: Which of the file's input channels feeds which, None for the rule.
    """

    located: Located
    checkpoint: Checkpoint
    match: Match
    native: Native
    statement: Statement | None = None
    notes: tuple[str, ...] = ()
    channel_map: Sequence[int | None] | None = None

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How its network wants its images, in RGB; None where nobody said."""
        if self.located.entry is not None:
            said: Preprocessing | None = self.located.entry.preprocessing
        else:
            said = self.statement.preprocessing if self.statement else None
            said = MSRA if said is None and is_caffe(self.match) else said
        return mapped_preprocessing(said.in_rgb() if said else None, self.channel_map)

    @property
    def pool(self) -> Literal["avg", "max"] | None:
        """What the file says is before its classifier; None where it says nothing."""
        if self.statement is not None and self.statement.pool is not None:
            return self.statement.pool
        # A state dict of ours has no words, and says it by a tensor.
        marked = self.match.layout.name == "trunkline" and MAX_POOL in self.checkpoint.tensors
        return "max" if marked else None

    def report(self) -> LoadReport:
        """Return what was done, in the words of a report."""
        entry = self.located.entry
        claims = self.statement.claims if self.statement and not entry else {}
        said = ", ".join(f"{key} {value}" for key, value in claims.items())
        claimed = (f"The file says of itself: {said}. Nothing proves it.",) if said else ()
        return LoadReport(
            source=self.located.source,
            path=self.located.path,
            sha256=self.located.sha256,
            tag=entry.tag if entry else None,
            license=entry.license if entry else None,
            claims=claims,
            layout=self.match.layout.name,
            container=self.checkpoint.container,
            prefix=self.checkpoint.prefix,
            matched=len(self.match.found),
            shapes={name: tuple(self.native.state[name].shape) for name in self.match.found},
            adapted=(*self.native.adapted, *self.native.casts),
            dropped=self.match.dropped,
            filled=self.match.filled,
            notes=(*self.checkpoint.notes, *self.notes, *claimed),
        )


def load_weights(
    backbone: Backbone,
    source: WeightsLike,
    layout: str = "auto",
    *,
    prefix: str | None = None,
    channel_map: Sequence[int | None] | None = None,
    check: bool = False,
    allow_noncommercial: bool = False,
    progress: Progress | None = None,
) -> LoadReport:
    """Load a checkpoint into a backbone, strictly.

    Args:
        backbone: Where the weights go; parameters on the meta device are materialised. Its
            ``preprocessing`` becomes the checkpoint's, where that is known.
        source: ``"default"``, a tag of the catalog, ``hf://owner/repo[/file][@revision]``, or the
            path of a file. Or what is in memory: a state dict, whatever a training script put it
            into, a file that was opened in binary mode, a member of torchvision's enums of weights.
        layout: A name of ``trunkline.weights.layouts.LAYOUTS``; ``"auto"`` recognises it.
        prefix: Where in the file the backbone is, such as ``"teacher.backbone."``; None finds it.
        channel_map: For each input channel of the backbone, the channel of the file's stem that
            feeds it, None for none; by default a rule for all pairs of numbers.
        check: Run one image through the loaded network and warn of maps that are not finite, dead
            or exploding.
        allow_noncommercial: Agree to licences that forbid commercial use.
        progress: Called while a file arrives; by default nothing is shown.

    Returns:
        The report; it is also kept as ``backbone.load_report``.

    Raises:
        WeightsNotFoundError: No such tag, file or repository, or no way to get it.
        LicenseError: A licence that was not agreed to.
        IntegrityError: The file is not the one it should be.
        CheckpointError: The file cannot be read, or asks to run code.
        UnknownLayoutError: The names are of no known layout, or of several.
        WeightsMismatchError: Missing, left-over or wrongly shaped tensors; all are listed.
    """
    read = understood(
        backbone,
        source,
        layout,
        prefix=prefix,
        channel_map=channel_map,
        allow_noncommercial=allow_noncommercial,
        progress=progress,
    )
    return adopt(backbone, read, check=check)


def understood(
    backbone: Backbone,
    source: WeightsLike,
    layout: str = "auto",
    *,
    prefix: str | None = None,
    channel_map: Sequence[int | None] | None = None,
    allow_noncommercial: bool = False,
    progress: Progress | None = None,
) -> Read:
    """Find and read what ``load_weights`` loads, for a backbone that is not touched yet."""
    if not isinstance(backbone, Backbone):
        raise ConfigError(
            f"weights are loaded into a backbone, got {type(backbone).__name__}; of a classifier "
            "give its .backbone, or build the whole with load_classifier(NAME, FILE)."
        )
    located, checkpoint = opened(
        backbone.variant, source, allow_noncommercial=allow_noncommercial, progress=progress
    )
    return read_for(backbone, located, checkpoint, layout, prefix=prefix, channel_map=channel_map)


def adopt(backbone: Backbone, read: Read, *, check: bool = False) -> LoadReport:
    """Give a backbone what was read for it: tensors, preprocessing, and the report of it."""
    placed = assign(backbone, read.native.state)
    report = read.report()
    entry = read.located.entry
    if entry is not None and (hint := entry.about_channels(backbone.in_channels)):
        report = replace(report, notes=(*report.notes, hint))
    if said := unsound(placed):  # as they are now: a cast may end in infinity
        logger.warning("%s: %s", read.located.path, " ".join(said))
        report = replace(report, notes=(*report.notes, *said))
    backbone.preprocessing = read.preprocessing
    if check:
        tried = trial(backbone, read.preprocessing)
        if tried.warnings:
            logger.warning("%s: %s", read.located.path, " ".join(tried.warnings))
        report = replace(report, notes=(*report.notes, *tried.warnings, tried.summary))
    backbone.load_report = report
    return report


def read_for(
    backbone: Backbone,
    located: Located,
    checkpoint: Checkpoint,
    layout: str = "auto",
    *,
    prefix: str | None = None,
    channel_map: Sequence[int | None] | None = None,
) -> Read:
    """Understand a file as the weights of a backbone, which is not touched.

    Args:
        backbone: What the file is for; it may be on the meta device.
        located: Where the file came from.
        checkpoint: What it holds.
        layout: A name of ``LAYOUTS``, or ``"auto"``.
        prefix: As for ``load_weights``.
        channel_map: As for ``load_weights``.

    Raises:
        CheckpointError: Its metadata does not make sense.
        UnknownLayoutError: The names are of no known layout, or of several.
        WeightsMismatchError: Missing, left-over or wrongly shaped tensors, all of which are listed;
            or a file that says, or is known, to be another network's.
    """
    with naming(located.path):
        statement = statement_of(checkpoint)
    check_words(backbone, located, statement)
    told = layout
    prefix = prefix if prefix is not None else located.prefix or None
    if layout == "auto":
        layout = located.layout or _said_layout(backbone, checkpoint, statement)
    try:
        if layout in LAYOUTS:
            check_norm(backbone, LAYOUTS[layout])
        checkpoint, match = find(backbone, checkpoint, layout, prefix)
    except WeightsMismatchError as error:
        hint = quantized(checkpoint.tensors) or _said_to_be(located, checkpoint)
        raise _refused(error, backbone, located, checkpoint, hint) from error
    wanted = {name.upstream: checkpoint.tensors[name.upstream] for name in match.found.values()}
    check_kinds(wanted, located.path, checkpoint.tensors)
    try:
        bgr = _is_bgr(match, located)
        native = to_native(backbone, match, checkpoint.tensors, bgr=bgr, channel_map=channel_map)
    except WeightsMismatchError as error:
        raise _refused(error, backbone, located, checkpoint) from error
    notes: tuple[str, ...] = ()
    if located.entry is None and statement is None:
        if told == "auto" or is_caffe(match):
            words = checkpoint.metadata
            notes = check_style(backbone, match, checkpoint.tensors, words, located)
        notes += doubts(backbone, located, checkpoint, match)
    return Read(located, checkpoint, match, native, statement, notes, channel_map)


def _said_layout(backbone: Backbone, checkpoint: Checkpoint, statement: Statement | None) -> str:
    """Return the layout that a file itself names, ``"auto"`` where it names none."""
    if statement is not None:
        return statement.layout
    if said_caffe(checkpoint.metadata) and MMPRETRAIN_RESNET_CAFFE.applies(backbone.architecture):
        return MMPRETRAIN_RESNET_CAFFE.name
    # Its conversion leaves the stride and the colours as they were.
    return "detectron2" if checkpoint.metadata.get("__author__") == "torchvision" else "auto"


def _said_to_be(located: Located, checkpoint: Checkpoint) -> str:
    """Return a sentence where a file that does not fit is called a network that is none of ours."""
    found = called(located, checkpoint.metadata)
    return f"{found}." if found else ""


def _is_bgr(match: Match, located: Located) -> bool:
    """Return whether the file's stem takes blue first: the row knows best, of its own files."""
    entry = located.entry
    if entry is not None and match.layout.name in {place.layout for place in entry.places}:
        return entry.preprocessing is not None and entry.preprocessing.channel_order == "BGR"
    return match.layout.bgr


def _refused(
    error: WeightsMismatchError,
    backbone: Backbone,
    located: Located,
    checkpoint: Checkpoint,
    hint: str = "",
) -> WeightsMismatchError:
    """Return an error with the file's name in front, and what it looks like behind."""
    nothing = "" if isinstance(error, UnknownLayoutError) else "Nothing was loaded. "
    # What is said of a place in the file is of more use than that no published network is there.
    looks = _looks_like(backbone, checkpoint)
    looks = looks or ("The file looks like none of our networks." if not nothing else "")
    return type(error)(f"{located.path}: {error} {nothing}{looks} {hint}".rstrip())


def _looks_like(backbone: Backbone, checkpoint: Checkpoint) -> str:
    """Say which network a file holds, for whoever gave it to another one."""
    found = candidates(checkpoint.tensors)
    if not found or found[0].percent < _HARDLY:
        return ""
    best = found[0]
    alike = [c for c in found if (c.share, c.unexplained) == (best.share, best.unexplained)]
    # Names that do not tell the stride are those of two networks.
    source = best.layout.title.partition(",")[0]
    variants = dict.fromkeys(c.variant for c in alike if c.layout.title.startswith(source))
    how = "holds" if best.share == 1 else f"looks most like ({best.percent}% of its tensors)"
    at = best.place.prefix.removesuffix(".")
    where = f", at {at!r}" if at else ""
    said = f"The file {how} {' or '.join(variants)} as {source} names it{where}."
    theirs, ours = best.layout.norm or "batch", norm_kind(backbone)
    if theirs != ours and (best.layout.norm or ours == "group"):
        said += (
            f" It fits {theirs} norms only, and this backbone has {ours} norms: build it with "
            f"norm={theirs!r}."
        )
    return said


def assign(backbone: Backbone, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put tensors in place, on the device and in the dtype of what was there.

    A backbone on the meta device gets tensors of its own; one that exists keeps its parameters,
    since an optimizer may hold them.

    Returns:
        What was put there.
    """
    present = backbone.state_dict()
    on_meta = any(tensor.is_meta for tensor in present.values())
    placed = {}
    for name, old in present.items():
        device = torch.get_default_device() if old.is_meta else old.device
        tensor = _own(state[name]) if on_meta else state[name]
        placed[name] = tensor.to(device, old.dtype)
    backbone.load_state_dict(placed, assign=on_meta)
    return placed


def _own(tensor: Tensor) -> Tensor:
    """Return a contiguous copy in memory of its own.

    Tensors of a file are views of it, and whoever trains may save over that file, which would take
    the ground from under them. NumPy copies in this thread; PyTorch would start its pool, which on
    a busy machine takes ten times as long for what is only memory.
    """
    copied = torch.empty(tensor.shape, dtype=tensor.dtype)
    source = tensor.contiguous().reshape(-1).view(torch.uint8)
    np.copyto(copied.reshape(-1).view(torch.uint8).numpy(), source.numpy())
    return copied
