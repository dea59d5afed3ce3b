"""What a layout is: the names that one upstream gives to the tensors of a network.

A layout is a table of rules, each our own name beside the upstream's. It is read in both
directions: the rules say what every native name is called upstream, and that dictionary inverted
says where a file's tensors belong.

Templates: ``{s}`` stands for a number, ``{s+1}`` on the upstream's side for that number plus one,
and a final ``*`` for the rest of the name (``weight``, ``running_mean``, …).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor

from trunkline.backbones.backbone import Architecture

BATCH_COUNTER = "num_batches_tracked"  # of batch norm; no part of what it computes
CLASSIFIER = "classifier."
# In a state dict of a classifier of ours: it takes the maximum over H and W, not the mean.
MAX_POOL = "head.max_pool"
CLASSIFIER_LEFT = "classifier, not part of a backbone"  # why it is not loaded into one


@dataclass(frozen=True)
class Change:
    """How values differ between our tensor and the upstream's; each side undoes the other."""

    why: str
    to_native: Callable[[Tensor], Tensor]
    to_upstream: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Rule:
    """One row of a layout: what a native name is called upstream."""

    native: str
    upstream: str
    change: Change | None = None


@dataclass(frozen=True)
class Name:
    """The upstream's name of one tensor, and how its values differ, if they do."""

    upstream: str
    change: Change | None = None


@dataclass(frozen=True)
class Drop:
    """Upstream names (a pattern for the whole name) without a place here, and why."""

    pattern: str
    reason: str


@dataclass(frozen=True)
class Fill:
    """Native names (a pattern) that the upstream leaves out because their value is fixed."""

    pattern: str
    value: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The names of one upstream.

    Attributes:
        name: How it is asked for, such as ``"timm-resnet"``.
        title: How it is spoken of in a sentence.
        applies: Whether this upstream has such a network.
        rules: The table for one network.
        prefix: What full files put in front of every name but the classifier's; files without it
            are read as well.
        bgr: The stem's input channels are blue, green, red.
        counts_batches: Its batch norms count batches in the state dict.
        respell: Other spellings in its files, as (pattern, replacement).
        drops: Names in its files that have no place here.
        fills: Native names that its files leave out.
        norm: ``"frozen"`` or ``"group"`` where its files fit such norms only.
        fused: Its files' norms are fused, and where the numbers show that it need not be told.
        told: Why it must be asked for by name, "" where its names say enough.
    """

    name: str
    title: str
    applies: Callable[[Architecture], bool]
    rules: Callable[[Architecture], Sequence[Rule]]
    prefix: str = ""
    bgr: bool = False
    counts_batches: bool = True
    respell: tuple[tuple[str, str], ...] = ()
    drops: tuple[Drop, ...] = ()
    fills: tuple[Fill, ...] = ()
    norm: str = ""
    fused: bool = False
    told: str = ""

    def names(self, architecture: Architecture, native: Iterable[str]) -> dict[str, Name]:
        """Return the upstream's names, without its prefix, of all native names that it has.

        Args:
            architecture: Of the network whose names they are.
            native: Names of a backbone's state dict, ``classifier.weight`` and ``.bias`` too.

        Raises:
            LookupError: A name that no rule, or more than one, speaks of. Our own mistake, which
                the tests of a layout rule out.
        """
        table = self._names_of(architecture)
        names = {name: table[name] for name in native if not self._left_out(name)}
        if len({entry.upstream for entry in names.values()}) != len(names):
            raise LookupError(f"{self.name} gives one name to two tensors")
        return names

    @lru_cache(maxsize=512)  # noqa: B019 - layouts live as long as the process
    def _names_of(self, architecture: Architecture) -> _Table:
        return _table(self.name, tuple(self.rules(architecture)))

    def _left_out(self, native: str) -> bool:
        if native.endswith(BATCH_COUNTER):
            return not self.counts_batches
        return any(re.fullmatch(fill.pattern, native) for fill in self.fills)

    def written(self, native: str, upstream: str) -> str:
        """Return the name that a full file has, the prefix in its place."""
        return upstream if native.startswith(CLASSIFIER) else self.prefix + upstream

    def respelled(self, upstream: str) -> str:
        """Return a file's name as the rules spell it, without the prefix."""
        name = upstream.removeprefix(self.prefix)
        for pattern, replacement in self.respell:
            name = re.sub(pattern, replacement, name)
        return name

    def drop_reason(self, upstream: str) -> str | None:
        """Return why a name in a file has no place here, None where no rule says so."""
        return next((d.reason for d in self.drops if re.fullmatch(d.pattern, upstream)), None)

    def fill_for(self, native: str, like: Tensor) -> Tensor:
        """Return the fixed value of a native name that files leave out.

        Raises:
            LookupError: No rule has one; our own mistake, since a match would not be complete.
        """
        if native.endswith(BATCH_COUNTER):
            return torch.zeros((), dtype=torch.int64)
        for fill in self.fills:
            if re.fullmatch(fill.pattern, native):
                return torch.full(tuple(like.shape), fill.value, dtype=like.dtype)
        raise LookupError(f"{self.name} has no value for {native}")


class _Table(dict[str, Name]):
    """The upstream's names of one set of rules, each made when it is first asked for.

    Recognising a file asks many layouts for the names of many variants, whose names are the same.
    """

    def __init__(self, layout: str, rules: Sequence[Rule]) -> None:
        super().__init__()
        self._layout = layout
        self._rules = [(*_matcher(rule.native), rule) for rule in rules]

    def __missing__(self, native: str) -> Name:
        found = [
            (match, rule)
            for start, regex, rule in self._rules
            if native.startswith(start) and (match := regex.fullmatch(native))
        ]
        if len(found) != 1:
            raise LookupError(f"{len(found)} rules of {self._layout} speak of {native}")
        match, rule = found[0]
        self[native] = Name(_filled(rule.upstream, match), rule.change)
        return self[native]


_table = lru_cache(maxsize=256)(_Table)  # all that our variants have; rules are few and small


@cache  # the regex module keeps 512 patterns, and a DLA alone has a hundred
def _matcher(template: str) -> tuple[str, re.Pattern[str]]:
    """Return what a name must start with, which rules most rows out, and the whole pattern."""
    pattern = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
    pattern = re.sub(r"{(\w+)}", r"(?P<\1>\\d+)", pattern)
    pattern = pattern.replace(r"\*", "(?P<rest>.+)")
    return re.split(r"[{*]", template)[0], re.compile(pattern)


def _filled(template: str, match: re.Match[str]) -> str:
    def fill(placeholder: re.Match[str]) -> str:
        name, shift = placeholder[1], placeholder[2]
        return str(int(match[name]) + int(shift or 0))

    filled = re.sub(r"{(\w+)([+-]\d+)?}", fill, template)
    return filled.replace("*", match["rest"]) if filled.endswith("*") else filled


def modules(*pairs: tuple[str, str]) -> list[Rule]:
    """Return rules for whole modules: ``("stem.conv", "conv1")`` speaks of all they hold."""
    return [Rule(f"{native}.*", f"{upstream}.*") for native, upstream in pairs]


def feature(architecture: Architecture, name: str) -> object:
    """Return a field of a family's config, None where the family has no such field."""
    return getattr(architecture, name, None)


def has_no_extra_projection(architecture: Architecture) -> bool:
    """Return whether all shortcuts are where timm and mmpretrain have them.

    vd projects the first shortcut of stage 0 as well. Bottlenecks do so anyway; 18 and 34 do not.
    """
    return not feature(architecture, "project_first") or bool(feature(architecture, "bottleneck"))


def is_plain_resnet(architecture: Architecture) -> bool:
    """Return whether it is a ResNet with a 7×7 stem and strided shortcuts, stride in the 3×3."""
    return (
        architecture.family == "resnet"
        and len(architecture.stem_widths) == 1  # type: ignore[attr-defined]
        and not feature(architecture, "pooled_shortcut")
        and not feature(architecture, "project_first")
        and not feature(architecture, "stride_in_1x1")
    )
