"""TRUNKLINE_WEIGHTS: a folder of weights that is looked in first, for machines without network.

::

    TRUNKLINE_WEIGHTS
    ├── resnet50.torchvision-in1k-v1.pth              VARIANT.TAG, as `weights pull --to` writes it
    ├── resnet50-0676ba61.pth                         the publisher's name, if it has its hash in it
    ├── hf/timm/dla34.in1k/main/model.safetensors     any file's place in the cache
    └── SHA256SUMS                                    what `sha256sum -c` reads
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trunkline.errors import IntegrityError, OutputError
from trunkline.files import DOCUMENT_BYTES, expanded
from trunkline.outputs import sha256_of
from trunkline.weights.files import cache, download
from trunkline.weights.files.cache import Claim
from trunkline.weights.files.places import Candidate, FetchedFile, suffix

logger = logging.getLogger(__name__)

VARIABLE = "TRUNKLINE_WEIGHTS"
SUMS = "SHA256SUMS"

_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)")


def hand_folder() -> Path | None:
    """Return the folder that TRUNKLINE_WEIGHTS names, if it is set.

    Raises:
        ConfigError: It begins with the home of a user who has none.
    """
    named = os.environ.get(VARIABLE)
    return expanded(named) if named else None


def find(candidates: Sequence[Candidate], name: str | None) -> FetchedFile | None:
    """Look for any of the candidates in the folder.

    Args:
        candidates: Files that will do, the best first.
        name: ``VARIANT.TAG``, if it is a checkpoint of the catalog.

    Raises:
        IntegrityError: It is there, with another hash.
    """
    folder = hand_folder()
    if folder is None:
        return None
    for relative, meant in names(candidates, name).items():
        if cache.is_there(folder / relative):
            return _checked(folder, relative, meant)
    return None


def find_named(names: Sequence[str]) -> FetchedFile | None:
    """Look for a file of the user's own in the folder, such as ``resnet50.safetensors``.

    Raises:
        IntegrityError: It is there, with another hash than SHA256SUMS says.
    """
    folder = hand_folder()
    if folder is None:
        return None
    found = next((name for name in names if cache.is_there(folder / name)), None)
    return _checked(folder, found, ()) if found else None


def names(candidates: Sequence[Candidate], name: str | None) -> dict[str, list[Candidate]]:
    """Return each name that a file may have in the folder, with the candidates that it may be.

    A publisher's name counts only with its hash in it: R-50.pkl is several files' name, and the
    wrong one would load.
    """
    names: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        if name:
            names.setdefault(f"{name}{suffix(candidate.file_name)}", []).append(candidate)
    for candidate in candidates:
        if any(claim.digits[:8] in candidate.file_name for claim in candidate.claims):
            names.setdefault(candidate.file_name, []).append(candidate)
        names.setdefault(candidate.relative.as_posix(), []).append(candidate)
    return names


def _checked(folder: Path, relative: str, meant: Sequence[Candidate]) -> FetchedFile:
    """Hash a file in the folder and compare it with its list and with what is known of it."""
    path = folder / relative
    sha256 = cache.hashed(path)
    listed = read_sums(folder).get(relative)
    if listed is not None and listed != sha256:
        meant_so = f"If a change was meant, remove its line from {folder / SUMS}."
        raise cache.mismatch(path, Claim(listed, SUMS), sha256, meant_so)
    broken = [cache.broken_claim(sha256, candidate.claims) for candidate in meant]
    fitting = [one for one, claim in zip(meant, broken, strict=True) if claim is None]
    if broken and not fitting:  # mirrors may have hashes of their own; it must be one of them
        raise cache.mismatch(path, next(filter(None, broken)), sha256, "")
    if listed is None and not any(candidate.claims for candidate in fitting):
        cache.refuse_at_first_sight(path)
    known_by = next((by for one in fitting if (by := one.known_in_full_by)), None)
    if listed is None and known_by is None:
        try:
            add_sum(folder, relative, sha256)
        except OSError as error:  # a folder that is mounted read-only must still serve
            logger.warning("cannot record the hash of %s: %s", path, error)
    known_by = known_by or (SUMS if listed else cache.FIRST_SEEN)
    if len(fitting) == 1:
        return fitting[0].fetched(path, sha256, known_by)
    return FetchedFile(path=path, sha256=sha256, known_by=known_by, source=str(path), place=None)


def copy_out(found: FetchedFile, folder: Path, name: str) -> FetchedFile:
    """Copy a checked file into a folder as ``NAME.<suffix>`` and list it in SHA256SUMS.

    Raises:
        OutputError: The folder cannot be written to.
    """
    target = folder / f"{name}{suffix(found.path.name) or suffix(found.source)}"
    part = cache.part_of(target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (target.is_file() and sha256_of(target) == found.sha256):
            download.check_room(folder, found.path.stat().st_size)
            part.unlink(missing_ok=True)  # never through a link
            shutil.copyfile(found.path, part)
            download.settle(part, target)
        add_sum(folder, target.name, found.sha256)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}. Choose another folder."
        ) from error
    finally:
        if folder.is_dir():
            part.unlink(missing_ok=True)
    return replace(found, path=target)


def read_sums(folder: Path) -> dict[str, str]:
    """Read a folder's SHA256SUMS: file name to hash.

    Raises:
        IntegrityError: A line is not one of ``sha256sum``'s.
    """
    try:
        text = _text(folder / SUMS)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise IntegrityError(
            f"{folder / SUMS} cannot be read: {error}. Write it anew: sha256sum FILES > {SUMS}."
        ) from error
    sums = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise IntegrityError(
                f"{folder / SUMS}, line {number}, is not `HASH  FILE` as sha256sum writes it: "
                f"{line[:80]!r}. Write it anew: sha256sum FILES > {SUMS}."
            )
        sums[found[2]] = found[1].lower()
    return sums


def _text(path: Path) -> str:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no regular file")
    if found.st_size > DOCUMENT_BYTES:
        raise ValueError(f"it has {found.st_size} bytes, and {DOCUMENT_BYTES} are the most")
    return path.read_text(encoding="utf-8")


def add_sum(folder: Path, name: str, sha256: str) -> None:
    """Add a file's hash to a folder's SHA256SUMS, or replace it there.

    Raises:
        OSError: The folder cannot be written to.
        IntegrityError: SHA256SUMS cannot be read.
    """
    with cache.one_process(f"{SUMS} of {folder.resolve()}"):
        sums = read_sums(folder)
        if sums.get(name) == sha256:
            return
        sums[name] = sha256
        text = "".join(f"{digest}  {file}\n" for file, digest in sorted(sums.items()))
        cache.write_atomically(folder / SUMS, text)
