"""One plain URL to one file: begun once, continued only where it is the same file, never short.

What a host says of lengths is compared with what comes: ``Content-Length``, and of each further
piece where ``Content-Range`` says that it begins and ends and how long the whole is. A body that
ends early is continued or begun anew, and is an error in the end. A host that says nothing of
lengths proves nothing: what came is then judged by its hash or its content (``recognition``).
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from trunkline.errors import OutputError
from trunkline.files import DocumentError, read_document
from trunkline.outputs import sha256_of
from trunkline.weights.files import hosts, patience
from trunkline.weights.files.hosts import Answer, Question
from trunkline.weights.files.patience import Deadline, PlaceError
from trunkline.weights.files.recognition import page_in

_NO_ROOM = frozenset(
    {errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS}
)
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


class Progress(Protocol):
    """Called while a file arrives."""

    def __call__(self, name: str, done_bytes: int, total_bytes: int | None) -> None:
        """Tell how much of a file is there; the total is None where the host did not say."""


Report = Callable[[int, "int | None"], None]
"""``Progress`` of one file: bytes that are there, bytes in all."""


@dataclass(frozen=True, kw_only=True)
class _Notes:
    """What is noted beside the beginning of a file.

    Attributes:
        etag: The host's strong tag of it; None if it gave none.
        total: How long the whole file is; None if the host did not say.
        sha256: Of what was there when the last attempt ended; None while one runs, or was killed.
    """

    etag: str | None
    total: int | None
    sha256: str | None = None


def download(
    question: Question, part: Path, report: Report | None = None, *, proven: bool = False
) -> tuple[Mapping[str, str], ...]:
    """Complete ``part`` from a URL, beginning where an earlier run was cut off.

    A beginning is only continued if it is what was noted when it was left, and if the host confirms
    by a strong ETag that it still is of the same file; else it is thrown away. Last-Modified proves
    nothing: it has a resolution of a second. What arrived before a failure is kept for the next run
    under the same condition.

    Args:
        question: The URL.
        part: Where the file grows.
        report: Called while it does.
        proven: The caller compares the result with a hash, so a beginning needs no proof.

    Returns:
        The headers of all answers that led to the file.

    Raises:
        PlaceError: The host does not give the file.
        OutputError: The disk does not take it.
    """
    deadline = Deadline()
    try:
        with disk_errors(part.parent):
            return hosts.persist(
                lambda: _attempt(question, part, report, deadline, proven=proven), deadline
            )
    except PlaceError:
        if _beginning(part, proven=proven) is None:
            discard(part)
        raise
    except OutputError:
        discard(part)  # half a file on a full disk helps nobody
        raise


def discard(part: Path) -> None:
    """Remove an unfinished file and what is known of it."""
    part.unlink(missing_ok=True)
    _notes(part).unlink(missing_ok=True)


def disk_error(folder: Path, error: OSError) -> OutputError:
    """Say that files cannot be written to a folder, and what helps."""
    return OutputError(
        f"cannot write weights into {folder}: {error.strerror or error}. Make room or rights there,"
        " or set TRUNKLINE_HOME to another folder."
    )


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the system says of a disk into an error that says what helps.

    Raises:
        OutputError: The disk refused.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise disk_error(folder, error) from error


def check_room(folder: Path, needed_bytes: int) -> None:
    """Refuse a file that cannot fit before its first byte is asked for.

    Raises:
        OutputError: Fewer bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise disk_error(
            folder, OSError(errno.ENOSPC, f"{needed_bytes} bytes are needed, {free} are free")
        )


def settle(part: Path, final: Path) -> None:
    """Put a finished file in its place so that others see all of it or nothing.

    Raises:
        OSError: The disk refuses.
    """
    descriptor = os.open(part, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(part, final)
    _notes(part).unlink(missing_ok=True)
    if os.name == "posix":  # Windows cannot open folders; its rename is journaled
        descriptor = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _attempt(
    question: Question, part: Path, report: Report | None, deadline: Deadline, *, proven: bool
) -> tuple[Mapping[str, str], ...]:
    """Ask once for what is missing and write it behind what is there."""
    begun = _beginning(part, proven=proven)
    headers = {}
    if begun is not None:
        headers["Range"] = f"bytes={part.stat().st_size}-"
        if begun.etag:
            headers["If-Range"] = begun.etag
    with hosts.asked(question, deadline, headers) as answer:
        span = _span(answer, part, begun)
        limit, told = patience.PATIENCE.max_bytes, max(span.notes.total or 0, span.end or 0)
        if told > limit:
            raise PlaceError(f"refused: {told} bytes, more than {limit}")
        pieces = answer.pieces()
        first = next(pieces, b"")
        if span.start == 0:
            _refuse_page(first)  # before it costs the beginning that is here
            discard(part)  # before anything is noted: never new notes on old bytes
        _note(part, span.notes)  # without a hash from here on: a killed process leaves none
        try:
            _write(itertools.chain([first], pieces), part, span, report)
        except BaseException:
            if not proven and part.exists():
                _note(part, replace(span.notes, sha256=sha256_of(part)))
            raise
        return answer.told


@dataclass(frozen=True, kw_only=True)
class _Span:
    """Where in the file a body begins and ends (None: nobody says), and what is known of both."""

    start: int
    end: int | None
    notes: _Notes


def _span(answer: Answer, part: Path, begun: _Notes | None) -> _Span:
    etag = _strong_tag(answer.headers)
    if answer.status == 200:
        return _Span(start=0, end=answer.length, notes=_Notes(etag=etag, total=answer.length))
    reach = _RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
    if answer.status == 206 and begun is not None and reach is not None:
        first, end = int(reach[1]), int(reach[2]) + 1
        total = begun.total if reach[3] == "*" else int(reach[3])
        fits = first == part.stat().st_size and answer.length in (None, end - first)
        fits = fits and begun.total in (None, total) and first < end <= (total or end)
        # Some hosts serve ranges but ignore If-Range: look whether it is still the same file.
        if fits and etag == begun.etag:
            return _Span(start=first, end=end, notes=_Notes(etag=etag, total=total))
    discard(part)
    raise PlaceError("the beginning of the file that is here does not fit", transient=True)


def _write(pieces: Iterable[bytes], part: Path, span: _Span, report: Report | None) -> None:
    """Write a body, and compare its length with what the host says of it and of the file."""
    total, limit = span.notes.total, patience.PATIENCE.max_bytes
    check_room(part.parent, (total or span.start) - span.start)
    done = span.start
    with open(part, "ab" if span.start else "wb") as file:
        for piece in pieces:
            done += len(piece)
            if done > (limit if span.end is None else span.end):
                file.close()
                part.unlink()
                raise PlaceError(f"refused: more than the {span.end or limit} bytes it may have")
            file.write(piece)
            if report is not None and piece:
                report(done, total)
    for expected in (span.end, total):
        if expected is not None and done < expected:
            raise PlaceError(f"cut off at {done} of {expected} bytes", transient=True)


def _refuse_page(first: bytes) -> None:
    if page := page_in(first):
        login = "; is there a login in between?" if "HTML" in page else ""
        raise PlaceError(f"answered with {page}, not with a file{login}")


def _strong_tag(headers: Mapping[str, str]) -> str | None:
    """Return what tells this version of a file from another; a weak tag may stay."""
    etag = headers.get("ETag", "")
    return etag if re.fullmatch(r'"[\x21\x23-\x7e]{1,1000}"', etag) else None


def _notes(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _note(part: Path, notes: _Notes) -> None:
    _notes(part).unlink(missing_ok=True)  # never through a link
    _notes(part).write_text(json.dumps(asdict(notes)), encoding="utf-8")


def _beginning(part: Path, *, proven: bool) -> _Notes | None:
    """Return what was noted of the beginning that is here, if it can be continued."""
    try:
        if not stat.S_ISREG(part.lstat().st_mode) or not part.stat().st_size:
            return None
        noted = read_document(_notes(part), _Notes)
        kept = proven or (noted.etag and noted.sha256 == sha256_of(part))
    except (OSError, DocumentError):  # none, or cut off itself: then nothing is continued
        return None
    return noted if kept else None
