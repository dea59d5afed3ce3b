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

from torch import Tensor

from trunkline.backbones.backbone import Architecture


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


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The names of one upstream.

    Attributes:
        name: How it is asked for, such as ``"timm-resnet"``.
        title: How it is spoken of in a sentence.
        applies: Whether this upstream has such a network.
        rules: The table for one network.
        dropped: Upstream names without a place here, as (pattern, reason).
    """

    name: str
    title: str
    applies: Callable[[Architecture], bool]
    rules: Callable[[Architecture], Sequence[Rule]]
    dropped: tuple[tuple[str, str], ...] = ()

    def names(self, architecture: Architecture, native: Iterable[str]) -> dict[str, Name]:
        """Return the upstream's name of every native name.

        Args:
            architecture: Of the network whose names they are.
            native: Names of a backbone's state dict, ``classifier.weight`` and ``.bias`` too.

        Raises:
            LookupError: A name that no rule, or more than one, speaks of. Our own mistake, which
                the tests of a layout rule out.
        """
        table = [(_matcher(rule.native), rule) for rule in self.rules(architecture)]
        names = {}
        for name in native:
            found = [(match, rule) for regex, rule in table if (match := regex.fullmatch(name))]
            if len(found) != 1:
                raise LookupError(f"{len(found)} rules of {self.name} speak of {name}")
            match, rule = found[0]
            names[name] = Name(_filled(rule.upstream, match), rule.change)
        if len({entry.upstream for entry in names.values()}) != len(names):
            raise LookupError(f"{self.name} gives one name to two tensors")
        return names


def _matcher(template: str) -> re.Pattern[str]:
    pattern = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
    pattern = re.sub(r"{(\w+)}", r"(?P<\1>\\d+)", pattern)
    return re.compile(pattern.replace(r"\*", "(?P<rest>.+)"))


def _filled(template: str, match: re.Match[str]) -> str:
    def fill(placeholder: re.Match[str]) -> str:
        name, shift = placeholder[1], placeholder[2]
        return str(int(match[name]) + int(shift or 0))

    filled = re.sub(r"{(\w+)([+-]\d+)?}", fill, template)
    return filled.replace("*", match["rest"]) if filled.endswith("*") else filled


def modules(*pairs: tuple[str, str], change: Change | None = None) -> list[Rule]:
    """Return rules for whole modules: ``("stem.conv", "conv1")`` speaks of all they hold."""
    return [Rule(f"{native}.*", f"{upstream}.*", change) for native, upstream in pairs]
