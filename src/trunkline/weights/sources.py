"""What ``weights=…`` means: a tag, a repository or an address, a path, or what is in memory."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO, cast

from torch import nn

from trunkline.backbones.options import WeightsLike
from trunkline.errors import CheckpointError, ConfigError, WeightsNotFoundError
from trunkline.files import expanded
from trunkline.weights import hub
from trunkline.weights.catalog import Place, WeightEntry, check_license, entries, find
from trunkline.weights.catalog.entry import spelled
from trunkline.weights.catalog.lookup import DEFAULT
from trunkline.weights.checkpoint import (
    Checkpoint,
    check_file,
    file_sha256,
    held_checkpoint,
    naming,
    read_checkpoint,
)
from trunkline.weights.files.huggingface import SCHEME
from trunkline.weights.files.places import FetchedFile, TypedPlace
from trunkline.weights.layouts import LAYOUTS

_WEB = ("https://", "http://")
SAVED = "model.safetensors"  # in a folder that save_pretrained wrote
_PATHS = ("/", "./", "../", "~")
_SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".pt", ".bin", ".ckpt", ".pyth", ".torch", ".pkl")


@dataclass(frozen=True, kw_only=True)
class Located:
    """A checkpoint file on this machine, checked.

    Attributes:
        source: What was asked for.
        path: The file.
        hashing: Its hash, or what becomes its hash: a local file is hashed while it is searched.
        entry: Its row of the catalog; None for a file that is not of it.
        layout: The layout that must be told, "" where the file's names say enough.
        prefix: Where in the file its row says that the network is, "" for nothing said.
        rows: Of the catalog that have its address as a place, for one that was asked for by that.
    """

    source: str
    path: Path
    hashing: str | Future[str] = ""
    entry: WeightEntry | None = None
    layout: str = ""
    prefix: str = ""
    rows: tuple[WeightEntry, ...] = ()

    @property
    def sha256(self) -> str:
        """The hash in hexadecimal, "" for what is no file.

        Raises:
            CheckpointError: The file can no longer be read.
        """
        return self.hashing if isinstance(self.hashing, str) else self.hashing.result()


def locate(
    variant: str | None,
    source: str | os.PathLike[str],
    *,
    allow_noncommercial: bool = False,
    progress: hub.Progress | None = None,
) -> Located:
    """Return the file that is meant, downloading it if it is not here.

    Args:
        variant: The network that it is for; None for one of one's own, which has no tags.
        source: ``"default"``, a tag, ``hf://owner/repo[/file][@revision]``, ``https://…``, or a
            path. A string that is a file here, or that looks like a path, is one; of a folder it is
            the ``model.safetensors`` that ``save_pretrained`` wrote. A file
            ``VARIANT.safetensors`` in the folder TRUNKLINE_WEIGHTS is that variant's default.
        allow_noncommercial: Agree to licences that forbid commercial use.
        progress: Called while a file arrives.

    Raises:
        WeightsNotFoundError: No such tag, file or repository, or no way to get it.
        LicenseError: A licence that was not agreed to.
        IntegrityError: The file is not the one it should be.
    """
    text = os.fspath(source)
    if text.startswith((SCHEME, *_WEB)):
        rows = _rows_at(text)
        for row in rows:  # the address of a row is no way around its licence
            check_license(row, allow_noncommercial=allow_noncommercial)
        name = "" if text.startswith(SCHEME) else text.rpartition("/")[2]
        found = hub.obtain([TypedPlace(url=text, file_name=name)], progress=progress)
        return Located(source=text, path=found.path, hashing=found.sha256, rows=rows)
    source = file_in(variant, source)
    text = os.fspath(source)
    if not isinstance(source, str) or _is_path(text):
        path = expanded(text)
        return Located(source=text, path=path, hashing=_hashing(path))
    if variant is None or (os.sep in text and not _is_tag(variant, text)):
        raise WeightsNotFoundError(
            f"{text!r} is no file here, and no tag of {variant or 'a network of one’s own'}; give "
            "the path of a file, or weights=None for a random network."
        )
    if text == DEFAULT and (own := hub.find_named([f"{variant}.safetensors"])):
        return Located(source=text, path=own.path, hashing=own.sha256)
    entry = find(variant, text)
    check_license(entry, allow_noncommercial=allow_noncommercial)
    found = hub.obtain(entry.places, name=f"{entry.variant}.{entry.tag}", progress=progress)
    return Located(
        source=text,
        path=found.path,
        hashing=found.sha256,
        entry=entry,
        layout=_told(entry, found),
        prefix=found.place.prefix if isinstance(found.place, Place) else "",
    )


def file_in(variant: str | None, source: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Return the file of weights in a folder that ``save_pretrained`` wrote, else ``source`` as is.

    Args:
        variant: The network that it is for; a tag of it is none of these folders.
        source: As for ``locate``.

    Raises:
        WeightsNotFoundError: A folder without such a file.
    """
    text = os.fspath(source)
    folder = expanded(text)
    if not folder.is_dir() or (variant is not None and _is_tag(variant, text)):
        return source
    if (file := folder / SAVED).is_file():
        return file
    others = sorted(one.name for one in folder.iterdir() if one.name.endswith(_SUFFIXES))
    there = f"it holds {', '.join(others[:10])}" if others else "it holds no checkpoint"
    raise WeightsNotFoundError(
        f"{folder} is a folder without {SAVED}, which save_pretrained writes; {there}. Give the "
        "path of a file."
    )


def opened(
    variant: str | None,
    source: WeightsLike,
    *,
    allow_noncommercial: bool = False,
    progress: hub.Progress | None = None,
) -> tuple[Located, Checkpoint]:
    """Return the checkpoint that is meant, wherever it is, and all that it holds.

    Args:
        variant: As for ``locate``.
        source: What ``locate`` takes; tensors by name, in whatever a training script keeps them, or
            a module that has them; a binary file, read from where it stands and left open; a
            member of torchvision's enums of weights, which means the catalog's row of its address.
        allow_noncommercial: As for ``locate``.
        progress: As for ``locate``.

    Raises:
        ConfigError: Something else, such as a file that was opened as text.
        WeightsError: As ``locate`` and ``read_checkpoint``.
    """
    if isinstance(source, nn.Module):
        source = source.state_dict()
    if isinstance(source, Mapping):
        here = _IN_MEMORY
        with naming(here.path):
            return here, held_checkpoint(source)
    if isinstance(source, Enum):
        source = _tag_of(variant, source)
    if hasattr(source, "read"):
        return _read_open(cast(BinaryIO, source))
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(
            f"weights are given as {type(source).__name__}; allowed: a tag, a path, hf:// or "
            "https://, a state dict, a file opened in binary mode, or a member of torchvision's "
            "enums of weights."
        )
    located = locate(variant, source, allow_noncommercial=allow_noncommercial, progress=progress)
    return located, read_checkpoint(located.path)


_IN_MEMORY = Located(source="a state dict", path=Path("the state dict in memory"))


def _read_open(file: BinaryIO) -> tuple[Located, Checkpoint]:
    """Read what an open file still holds, by way of a file of our own that can be mapped."""
    if isinstance(file, io.TextIOBase):
        raise ConfigError("weights are a file that was opened as text; open it with mode 'rb'.")
    name = getattr(file, "name", None)
    called = str(name) if isinstance(name, str) else f"the open {type(file).__name__}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        with path.open("wb") as copy:
            shutil.copyfileobj(file, copy)
        try:
            checkpoint = read_checkpoint(path, hashed=True)
        except CheckpointError as error:
            raise type(error)(str(error).replace(str(path), called, 1)) from error
        # Views of a file that goes; some systems let none go that is mapped.
        tensors = {key: tensor.clone() for key, tensor in checkpoint.tensors.items()}
    located = Located(source=called, path=Path(called), hashing=checkpoint.sha256)
    return replace(located, source=f"{called}, open"), replace(checkpoint, tensors=tensors)


def _tag_of(variant: str | None, member: Enum) -> str:
    """Return the tag of the catalog's row that a member of torchvision's enums stands for.

    Raises:
        WeightsNotFoundError: No row of the variant has its address.
    """
    address = str(getattr(cast(Any, member.value), "url", member.value))
    named = f"{type(member).__name__}.{member.name}"
    for row in entries(variant) if variant else ():
        if any(place.url == address for place in row.places):
            return row.tag
    elsewhere = sorted({row.variant for row in _rows_at(address)})
    hint = f"it is of {', '.join(elsewhere)}" if elsewhere else "the catalog has no such address"
    raise WeightsNotFoundError(
        f"{named} is no checkpoint of {variant or 'a network of one’s own'}: {hint}. "
        "`trunkline weights list` shows what there is."
    )


def _rows_at(address: str) -> tuple[WeightEntry, ...]:
    """Return the rows of the catalog that have this address, or this repository, as a place."""
    repo = address.partition("@")[0].rstrip("/")
    return tuple(
        row
        for row in entries()
        for place in row.places
        if place.url.partition("@")[0] == repo or place.url.startswith(f"{repo}/")
    )


def _hashing(path: Path) -> Future[str]:
    """Begin to hash a file in a thread, which is a quarter of the time that a load takes.

    Raises:
        WeightsError: There is no such file, or it is none.
    """
    with naming(path):
        check_file(path)
    thread = ThreadPoolExecutor(1, thread_name_prefix="trunkline-hashing")
    begun = thread.submit(file_sha256, path)
    thread.shutdown(wait=False)  # it ends by itself
    return begun


def known_by_hash(located: Located) -> list[WeightEntry]:
    """Return the rows of the catalog whose file has this hash, as far as the catalog knows it.

    Upstreams publish eight digits. That tells files apart that were not made to deceive, and is no
    proof of a licence.
    """
    rows = entries()  # read first: the hash may not be known yet
    sha256 = located.sha256
    return [
        row
        for row in rows
        for place in row.places
        if (sha256 and sha256 == place.sha256)
        or (place.sha256_prefix and sha256.startswith(place.sha256_prefix))
    ]


def _is_path(text: str) -> bool:
    return text.startswith(_PATHS) or text.endswith(_SUFFIXES) or Path(text).is_file()


def _is_tag(variant: str, text: str) -> bool:
    return any(spelled(text) in (row.tag, *row.aliases) for row in entries(variant))


def _told(entry: WeightEntry, found: FetchedFile) -> str:
    """Return the layout of a copy where its names alone would not say what they mean."""
    place = found.place
    layout = place.layout if isinstance(place, Place) else entry.layout
    known = LAYOUTS[layout]
    return layout if known.told or known.norm else ""
