"""Networks of other libraries that are no variant here, though their names look like ours.

Some have the very names and shapes of one of ours and compute something else: what differs has no
tensor. Who loads such a file is told by nothing but what it is called. Others have tensors of their
own, which a strict load finds; of those a name helps to say what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from trunkline.errors import legible
from trunkline.weights.files.huggingface import SCHEME, parse
from trunkline.weights.reading.words import NAMES
from trunkline.weights.sources import Located
from trunkline.zoo import list_backbones

_LONGEST = 64
_DEPTH = r"\d{2,3}[a-z]{0,2}"
_RESNET = r"(?:res(?:net|next))"
_SIZES = r"(?:_(?:\d{1,2}s)?\d{1,3}(?:x\d{1,3}d|[ws]))*"  # such as _32x4d or _26w_4s


@dataclass(frozen=True)
class Relative:
    """A kind of network that is told from ours by its name.

    Attributes:
        pattern: What its names are like: lower case, ``_`` for ``-``.
        differs: How it differs from the network that it resembles, in a clause.
        infix: What stands in its name and not in that of the network whose names and shapes it has;
            "" for one with tensors of its own.
        norm: The ``norm`` that makes the difference here too, "" where nothing does.
    """

    pattern: str
    differs: str
    infix: str = ""
    norm: str = ""

    @property
    def untold(self) -> bool:
        """Whether its names and shapes are those of a network that may be ours."""
        return bool(self.infix)


RELATIVES = (
    Relative(rf"{_RESNET}aa{_DEPTH}{_SIZES}", "average pools in front of its strides", "aa"),
    Relative(rf"{_RESNET}blur{_DEPTH}{_SIZES}", "blur pools in front of its strides", "blur"),
    Relative(r"regnetv_?\d{3}", "norms in front of convolutions, SiLU in place of ReLU"),
    Relative(r"regnety_?\d{3}s?_s?gn", "group norms, SiLU in place of ReLU"),
    Relative(rf"{_RESNET}{_DEPTH}(?:_32x4d)?_gn_ws", "weights standardised, group norms"),
    Relative(rf"{_RESNET}{_DEPTH}(?:_32x4d)?_gn", "group norms", norm="group"),
    Relative(rf"(?:legacy_)?se{_RESNET}(?:aa|t)?{_DEPTH}{_SIZES}", "squeeze-and-excitation"),
    Relative(rf"(?:eca|ge|gc|sk|cot|bot|lambda|halo){_RESNET}(?:aa)?{_DEPTH}{_SIZES}", "attention"),
    Relative(rf"cs3?p{_RESNET}{_DEPTH}", "cross-stage parts"),
    Relative(rf"resnest\d{{2,3}}[a-z]?{_SIZES}", "split attention"),
    Relative(rf"res2ne(?:t|xt)\d{{2,3}}d?{_SIZES}", "several scales in a block"),
    Relative(r"dla\d{2,3}x?_res2ne(?:t|xt)", "several scales in a block"),
    Relative(r"resnetrs\d{2,3}", "squeeze-and-excitation, another stem"),
    Relative(rf"(?:resnetv2_{_DEPTH}|preact_?resnet_?\d{{2,3}})", "norms in front of convolutions"),
    Relative(r"(?:resnetv2_\d{2,3}x\d_bit\w*|bit_(?:m|s)_r\d{2,3}x\d|resnet\d{2,3}x\d_bit\w*)",
             "norms in front of convolutions, weights standardised"),
    Relative(r"(?:nf|skip)_?(?:resnet|regnet)_?\w{2,8}", "no norms"),
    Relative(rf"{_RESNET}{_DEPTH}_ibn(?:_[ab])?", "instance norms beside batch norms"),
    Relative(r"resnet\d{2,3}(?:x\d{1,2})?_clip\w*", "a stem and an attention pool of CLIP's"),
    Relative(r"xresnet\d{2,3}", "fastai's stem and shortcuts"),
    Relative(r"tresnet_[a-z]{1,2}", "blur pools, and a stem without a convolution"),
    Relative(r"regnetz_?\w{1,6}", "inverted bottlenecks"),
)  # fmt: skip


@dataclass(frozen=True)
class Called:
    """That a file is called one of these, and by whom.

    Attributes:
        name: What it is called.
        who: Who says so, with a verb.
        relative: The kind that it is of.
        certain: It was said of the network, not only in the name of a file.
    """

    name: str
    who: str
    relative: Relative
    certain: bool

    @property
    def resembled(self) -> str:
        """The network that has its names and shapes, "" where there is none."""
        plain = _plain(self.name.rpartition("/")[2].partition(".")[0])
        return plain.replace(self.relative.infix, "", 1) if self.relative.untold else ""

    def __str__(self) -> str:
        return f"{self.who} {self.name} ({self.relative.differs})"


def called(located: Located, metadata: Mapping[str, str], architecture: str = "") -> Called | None:
    """Return the relative of ours that a file is said to be, the surest word first; else None.

    Args:
        located: Where it came from.
        metadata: What it says beside its tensors.
        architecture: What the ``config.json`` beside it says.
    """
    return next(_said(located, metadata, architecture), None)


def _said(located: Located, metadata: Mapping[str, str], architecture: str) -> Iterator[Called]:
    for key in NAMES:
        yield from _as(metadata.get(key, ""), "The file calls its network", certain=True)
    yield from _as(architecture, "The config.json beside the file says", certain=True)
    if located.source.startswith(SCHEME):
        repo = parse(located.source).repo
        yield from _as(repo, "The repository is called", certain=True)
        yield from _within(repo.rpartition("/")[2], "The repository's name holds")
    yield from _within(located.path.name, "The file's name holds")


# Words that need no pattern to be told from a relative's: a look before forty patterns.
_PARTS_OF_OURS = {"regnetx", "regnety"}
_SUSPICIOUS = {"gn", "gns", "sgn", "ws", "ibn", "clip", "nf", "skip", "preact", "legacy"}


def _may_be(plain: str) -> bool:
    """Return whether a word of a name is neither nothing nor one of our variants' names."""
    ours = _PARTS_OF_OURS.union(*(variant.split("-") for variant in list_backbones()))
    return any(
        word in _SUSPICIOUS
        or (any(root in word for root in ("res", "reg", "dla", "bit")) and word not in ours)
        for word in re.split(r"[^a-z0-9]+", plain)
    )


def _as(name: str, who: str, *, certain: bool) -> Iterator[Called]:
    """Find a name that is that of a relative, whatever owner and tag stand around it."""
    plain = _plain(name.rpartition("/")[2].partition(".")[0])
    if len(plain) <= _LONGEST and _may_be(plain):
        for relative in RELATIVES:
            if re.fullmatch(relative.pattern, plain):
                yield Called(legible(name), who, relative, certain)


def _within(name: str, who: str) -> Iterator[Called]:
    """Find a relative among the words of a name, unless one of our variants is one of them too."""
    plain = _plain(name)[:_LONGEST]
    if not _may_be(plain):
        return
    for relative in RELATIVES:
        found = re.search(rf"(?<![a-z0-9])(?:{relative.pattern})(?![a-z0-9])", plain)
        if found is None:
            continue
        rest = plain[: found.start()] + " " + plain[found.end() :]
        if not any(re.search(rf"(?<![a-z0-9]){v}(?![a-z0-9])", rest) for v in _ours()):
            yield Called(found[0], who, relative, certain=False)


def _ours() -> list[str]:
    return [_plain(variant) for variant in list_backbones()]


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_")
