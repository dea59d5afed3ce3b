"""Getting weight files: from a folder, the cache, the Hub or any host, and never a wrong one.

``obtain`` looks in this order: the folder that TRUNKLINE_WEIGHTS names, the cache, the Hub's own
cache, then the places of a checkpoint one after the other. Whatever it returns was hashed just now
and compared with all that is known of it: the catalog's sha256, the beginning of one in the file's
name, the Hub's record, or what was noted when the file was first seen. A file of which nothing is
known is a whole checkpoint when it is first seen, or it is refused.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from trunkline.errors import (
    CheckpointError,
    ConfigError,
    IntegrityError,
    OfflineError,
    WeightsError,
    WeightsNotFoundError,
)
from trunkline.outputs import sha256_of
from trunkline.weights.files import cache, download, folder, huggingface
from trunkline.weights.files.addresses import shown
from trunkline.weights.files.cache import Claim
from trunkline.weights.files.download import Progress, Report
from trunkline.weights.files.folder import find_named
from trunkline.weights.files.hosts import Question
from trunkline.weights.files.patience import PlaceError
from trunkline.weights.files.places import (
    Candidate,
    Entry,
    FetchedFile,
    Place,
    TypedPlace,
    candidates_of,
    suffix,
)
from trunkline.weights.files.recognition import looks_like, why_no_checkpoint
from trunkline.weights.files.verification import FileCheck, verify

__all__ = [
    "Entry",
    "FetchedFile",
    "FileCheck",
    "Place",
    "Progress",
    "TypedPlace",
    "fetch",
    "fetch_hf",
    "fetch_url",
    "find_named",
    "obtain",
    "pull",
    "verify",
]

logger = logging.getLogger(__name__)


def fetch(
    places: Sequence[Place],
    *,
    sha256: str | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Return a checked file of a checkpoint, downloading it if it is not here.

    Args:
        places: Where copies can be had, in the order in which they are asked.
        sha256: The hash that the file must have, for places that do not give their own.
        name: ``VARIANT.TAG``: what the file is called in the folder TRUNKLINE_WEIGHTS, and in
            messages.
        progress: Called while the file arrives; by default nothing is shown.

    Raises:
        WeightsNotFoundError: No place gave it. All are listed, and why.
        OfflineError: It is not here, and the network is switched off.
        IntegrityError: A file that is here, or every copy that came, has another hash.
        CheckpointError: Nothing is known of a file that is here, or of every copy that came, and it
            is no whole checkpoint.
        OutputError: The disk does not take it.
        ConfigError: No places, or an address or a hash that is none.
    """
    return obtain(places, sha256=sha256, name=name, progress=progress).path


def fetch_url(url: str, *, sha256: str | None = None, progress: Progress | None = None) -> Path:
    """Return a checked file from an ``https://`` or ``http://`` address; errors as ``fetch``.

    Args:
        url: The address. A hash in the file's name, torch.hub's way, must be kept:
            ``resnet50-0676ba61.pth``.
        sha256: The hash that the file must have; it outweighs the name's.
        progress: Called while the file arrives.
    """
    cache.relative_place(url)  # refuses what is no such address, a path for instance
    return fetch([TypedPlace(url=url)], sha256=sha256, progress=progress)


def fetch_hf(address: str, *, sha256: str | None = None, progress: Progress | None = None) -> Path:
    """Return a checked file from the Hub; errors as ``fetch``.

    Args:
        address: ``hf://owner/repo/file`` or ``hf://owner/repo``, which means model.safetensors or,
            if the repository has none, pytorch_model.bin; ``@revision`` may stand behind either.
        sha256: The hash that the file must have.
        progress: Called while the file arrives.
    """
    huggingface.parse(address)  # refuses what is no such address
    return fetch([TypedPlace(url=address)], sha256=sha256, progress=progress)


def obtain(
    places: Sequence[Place],
    *,
    sha256: str | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> FetchedFile:
    """Do what ``fetch`` does, and tell the file's hash, how it is known, and of which place."""
    by_place = [candidates_of(place, sha256) for place in places]
    candidates = [candidate for group in by_place for candidate in group]
    if not candidates:
        raise ConfigError(f"there is no place to get {name or 'the weights'} from; give one.")
    if found := folder.find(candidates, name) or _in_cache(candidates):
        return found
    if cache.is_offline():
        raise OfflineError(_offline_text(candidates, name))
    with cache.one_process(" or ".join(shown(one.url) for one in candidates)):
        # The process that was waited for may have brought it, from whichever mirror.
        return _in_cache(candidates) or _from_first(by_place, name, progress)


def pull(
    entries: Iterable[Entry],
    *,
    to: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> list[FetchedFile]:
    """Bring checkpoints into the cache, or into a folder for a machine without network.

    Licences are the caller's affair: see ``trunkline.weights.catalog.check_license``.

    Args:
        entries: Rows of the catalog.
        to: A folder. It gets ``VARIANT.TAG.<suffix>`` files and a SHA256SUMS that ``sha256sum -c``
            reads; carried elsewhere and named by TRUNKLINE_WEIGHTS, it serves all of them.
        progress: Called while a file arrives.

    Returns:
        One file for each entry, in the same order.

    Raises:
        WeightsError: As ``fetch``. What came before stays, and is not downloaded again.
        OutputError: The folder cannot be written to.
    """
    pulled = []
    for entry in entries:
        name = f"{entry.variant}.{entry.tag}"
        found = obtain(entry.places, name=name, progress=progress)
        pulled.append(found if to is None else folder.copy_out(found, Path(to), name))
    return pulled


class _RefusedFileError(PlaceError):
    """A place gave a file that was not kept."""

    error: type[WeightsError]


class _WrongFileError(_RefusedFileError):
    """It has another hash than it must have."""

    error = IntegrityError


class _NoCheckpointError(_RefusedFileError):
    """Nothing is known of it, and it is no whole checkpoint."""

    error = CheckpointError


def _in_cache(candidates: Iterable[Candidate]) -> FetchedFile | None:
    candidates = list(candidates)
    for one in candidates:
        if cache.is_there(one.path):
            record = cache.check(one.path, one.claims, one.url)
            return one.fetched(one.path, record.sha256, one.known_in_full_by or record.known_by)
    hub = (_in_hub_cache(one) for one in candidates if one.on_hub)
    return next((found for found in hub if found), None)


def _in_hub_cache(candidate: Candidate) -> FetchedFile | None:
    located = huggingface.in_hub_cache(huggingface.parse(candidate.url))
    if located is None:
        return None
    path, named = located
    try:
        sha256 = sha256_of(path)
    except OSError as error:
        logger.warning("%s cannot be read, and was not used: %s", path, error)
        return None
    # Another library's file: if it is not what it must be, it is left alone, not complained about.
    if cache.broken_claim(sha256, [Claim(named, cache.HUB_RECORD), *candidate.claims]):
        logger.warning("%s is not the file that it must be, and was not used", path)
        return None
    return candidate.fetched(path, sha256, candidate.known_in_full_by or cache.HUB_RECORD)


def _from_first(
    by_place: Sequence[Sequence[Candidate]], name: str | None, progress: Progress | None
) -> FetchedFile:
    """Ask the places in turn; the first right file is the answer."""
    failures: list[tuple[str, PlaceError]] = []
    for group in by_place:
        asked = shown(group[0].place.url)
        try:
            one = _chosen(group)
            report = functools.partial(progress, name or one.file_name) if progress else None
            return _download(one, report)
        except PlaceError as error:
            logger.info("%s: %s", asked, error)
            failures.append((asked, error))
    text = _failure_text([one for group in by_place for one in group], name, failures)
    kinds = {
        error.error if isinstance(error, _RefusedFileError) else WeightsNotFoundError
        for _, error in failures
    }
    raise kinds.pop()(text) if len(kinds) == 1 else WeightsNotFoundError(text)


def _chosen(group: Sequence[Candidate]) -> Candidate:
    """Return the one file that is meant; of a whole repository, the Hub has to be asked."""
    if len(group) == 1:
        return group[0]
    chosen = str(huggingface.choose_file(huggingface.parse(group[0].place.url)))
    return next(candidate for candidate in group if candidate.url == chosen)


def _download(candidate: Candidate, report: Report | None) -> FetchedFile:
    """Bring one file into the cache, once, whoever else asks for it meanwhile."""
    path, part = candidate.path, cache.part_of(candidate.path)
    with cache.one_process(candidate.relative.as_posix()):
        if found := _in_cache([candidate]):
            return found
        with download.disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            return _fetched(candidate, part, report)


def _fetched(candidate: Candidate, part: Path, report: Report | None) -> FetchedFile:
    """Ask a host for a file; a second time if what came may be none of the host's doing.

    That is a beginning that a crash has spoiled, and a body without a length that was cut off.
    """
    hub_file = huggingface.parse(candidate.url) if candidate.on_hub else None
    question = huggingface.question(hub_file) if hub_file else Question(url=candidate.url)
    for last in (False, True):
        continued = part.exists()
        told = download.download(question, part, report, proven=bool(candidate.claims))
        try:
            claims = candidate.claims
            if hub_file and (sha256 := huggingface.confirmed_hash(told, part)):
                claims = (*claims, Claim(sha256, cache.HUB_RECORD))
            return _accept(candidate, part, claims)
        except PlaceError:
            download.discard(part)
            if last or not (continued or "Content-Length" not in told[-1]):
                raise
    raise AssertionError("the second time is the last")


def _accept(candidate: Candidate, file: Path, claims: Sequence[Claim]) -> FetchedFile:
    """Put a file that has just arrived into its place, if it is what it must be."""
    path = candidate.path
    sha256 = sha256_of(file)
    noted = cache.read_record(path)
    if noted is not None and candidate.known_in_full_by is None:
        claims = [*claims, Claim(noted.sha256, noted.known_by)]
    if broken := cache.broken_claim(sha256, claims):
        found = looks_like(file)
        what = f", and it is {found}" if found else ""
        again = "" if noted is None else f". {cache.accept_change(path)}"
        raise _WrongFileError(f"{cache.difference(broken, sha256)}{what}; it was deleted{again}")
    if not claims and (fault := why_no_checkpoint(file, candidate.file_name)):
        raise _NoCheckpointError(
            f"{fault}; it was deleted. What has no known hash is only kept if it is a whole "
            "checkpoint that can be read; whoever knows the file may give its sha256"
        )
    download.settle(file, path)
    record = cache.note(path, sha256, claims, candidate.url)
    logger.info("%s is now %s", shown(candidate.url), path)
    return candidate.fetched(path, sha256, record.known_by)


def _failure_text(
    candidates: Sequence[Candidate], name: str | None, failures: Sequence[tuple[str, PlaceError]]
) -> str:
    tried = "\n".join(f"  {url}: {error}." for url, error in failures)
    places = "one place was" if len(failures) == 1 else f"{len(failures)} places were"
    unreachable = all(error.unreachable for _, error in failures)
    offline = f"Where there is no network, set {cache.OFFLINE[0]}=1. " if unreachable else ""
    return (
        f"{_label(candidates, name)} cannot be had; {places} tried.\n{tried}\n"
        f"{offline}{_by_hand(candidates, name)}"
    )


def _offline_text(candidates: Sequence[Candidate], name: str | None) -> str:
    looked = [str(one.path) for one in candidates]
    if by_hand := folder.hand_folder():
        looked = [str(by_hand / one) for one in folder.names(candidates, name)] + looked
    return (
        f"{_label(candidates, name)} is not on this machine, and the network is switched off "
        f"({' or '.join(cache.OFFLINE)} is set). Looked for {', '.join(looked)}. "
        f"{_by_hand(candidates, name)}"
    )


def _label(candidates: Sequence[Candidate], name: str | None) -> str:
    return f"the weights {name}" if name else shown(candidates[0].place.url)


def _by_hand(candidates: Sequence[Candidate], name: str | None) -> str:
    first = candidates[0]
    url = huggingface.web_address(huggingface.parse(first.url)) if first.on_hub else first.url
    text = f"By hand: download {shown(url)} elsewhere and save it as {first.path}"
    other = f"{name}{suffix(first.file_name)}" if name else first.relative.as_posix()
    where = folder.hand_folder() or f"a folder that {folder.VARIABLE} names"
    return f"{text}, or as {other} in {where}."
