"""What is asked for: places that have a file, what is known of it, and where it will lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from trunkline.errors import ConfigError
from trunkline.weights.files import cache, huggingface
from trunkline.weights.files.cache import Claim

_DOUBLE_SUFFIX = ".pth.tar"
_HEX = frozenset("0123456789abcdef")


class Place(Protocol):
    """Where one copy of a checkpoint can be had; a row of the catalog's ``places`` is one."""

    @property
    def url(self) -> str:
        """``https://…``, ``http://…`` or ``hf://owner/repo/file[@revision]``."""

    @property
    def file_name(self) -> str:
        """What the file is called there."""

    @property
    def sha256(self) -> str | None:
        """The hash of this copy, if it is published: 64 hexadecimal digits."""

    @property
    def sha256_prefix(self) -> str | None:
        """The beginning of it, if that is all that is published."""


class Entry(Protocol):
    """A published checkpoint, as far as getting it is concerned; a row of the catalog is one."""

    @property
    def variant(self) -> str:
        """The backbone that it is of."""

    @property
    def tag(self) -> str:
        """Which of that backbone's checkpoints."""

    @property
    def places(self) -> Sequence[Place]:
        """Where it can be had, in the order in which they are asked."""


@dataclass(frozen=True, kw_only=True)
class TypedPlace:
    """A place that somebody typed: nothing is known of it but the address.

    Attributes:
        url: The address.
        file_name: What the file is called; by default, what the address ends with.
    """

    url: str
    file_name: str = ""
    sha256: str | None = None
    sha256_prefix: str | None = None


@dataclass(frozen=True, kw_only=True)
class FetchedFile:
    """A file that was hashed and compared just now.

    Attributes:
        path: Where it lies.
        sha256: Its hash.
        known_by: How it is known that this is the hash that it must have.
        source: The address that it came from, or that it stands for.
        place: The place that it is a copy of; None if mirrors without known hashes leave that open.
    """

    path: Path
    sha256: str
    known_by: str
    source: str
    place: Place | None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One file that a place can mean.

    Attributes:
        place: The place.
        url: The file's address: the place's, completed where that names only a repository.
        file_name: What the file is called there.
        relative: Where it lies in the cache, below ``weights``.
        claims: What is known of its hash.
    """

    place: Place
    url: str
    file_name: str
    relative: Path
    claims: tuple[Claim, ...]

    @property
    def path(self) -> Path:
        """Where it lies in the cache."""
        return cache.weights_home() / self.relative

    @property
    def on_hub(self) -> bool:
        """Whether it is a file of a Hugging Face repository."""
        return self.url.startswith(huggingface.SCHEME)

    @property
    def known_in_full_by(self) -> str | None:
        """How its whole hash is known, or None if it is not."""
        return next((c.known_by for c in self.claims if c.is_full), None)

    def fetched(self, path: Path, sha256: str, known_by: str) -> FetchedFile:
        """Return it as a file that was checked."""
        return FetchedFile(
            path=path, sha256=sha256, known_by=known_by, source=self.url, place=self.place
        )


def candidates_of(place: Place, sha256: str | None = None) -> list[Candidate]:
    """Return the files that a place can mean: one, or the usual ones of a whole repository.

    Args:
        place: The place.
        sha256: The hash that the file must have, if the place does not give one.

    Raises:
        ConfigError: An address or a hash that is none.
    """
    claims = claims_of(place, sha256)
    if not place.url.startswith(huggingface.SCHEME):
        name = _file_name(place)
        relative = cache.relative_place(place.url, name)
        return [
            Candidate(
                place=place,
                url=place.url,
                file_name=name,
                relative=relative,
                claims=claims,
            )
        ]
    return [
        Candidate(
            place=place,
            url=str(address),
            file_name=(address.file or "").rpartition("/")[2],
            relative=cache.relative_place(str(address)),
            claims=claims,
        )
        for address in huggingface.candidates(huggingface.parse(place.url))
    ]


def claims_of(place: Place, sha256: str | None = None) -> tuple[Claim, ...]:
    """Return what is known of a place's file before it is seen."""
    if full := place.sha256 or sha256:
        if len(full) != 64 or set(full.lower()) - _HEX:
            raise ConfigError(f"{full!r} is not a sha256; give its 64 hexadecimal digits, or none.")
        return (Claim(full.lower(), "the catalog" if place.sha256 else "as it was given"),)
    digits = place.sha256_prefix or cache.hash_in_name(_file_name(place))
    return (Claim(digits.lower(), cache.FROM_NAME),) if digits else ()


def _file_name(place: Place) -> str:
    """Return what a place calls its file, without the query that an address may have."""
    path = place.file_name.partition("?")[0] or urlsplit(place.url).path
    return unquote(path).rpartition("/")[2]


def suffix(file_name: str) -> str:
    """Return what a reader knows the format by: ``.safetensors``, ``.pth``, ``.pth.tar``."""
    return _DOUBLE_SUFFIX if file_name.endswith(_DOUBLE_SUFFIX) else Path(file_name).suffix
