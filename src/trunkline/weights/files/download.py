"""One plain URL to one file: patient with hosts, strict with bytes.

requests does the talking. Reasons: it honours proxies, certificate bundles and netrc from the
environment, follows redirects without taking credentials to another host, is typed, and is what
pooch itself downloads with. pooch would add a registry and a hash check, which the cache does here
at every load, but it has no resume, no Retry-After, no timeout for a host that goes quiet and no
lock between processes. The client inside huggingface_hub has been renamed twice (requests, httpx,
httpx2), so nothing may be built on it.
"""

from __future__ import annotations

import email.utils
import errno
import json
import logging
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar
from urllib.parse import urljoin, urlsplit

from trunkline.errors import OutputError

if TYPE_CHECKING:
    import requests

logger = logging.getLogger(__name__)

T = TypeVar("T")

_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_CHUNK_BYTES = 1 << 16  # what a cut-off connection loses at most
_NO_ROOM = frozenset(
    {errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS}
)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to bear with a host before the next one is asked."""

    attempts: int = 5
    backoff_seconds: float = 1.0  # before the second attempt; doubled before each further one
    backoff_limit_seconds: float = 30.0
    retry_after_limit_seconds: float = 120.0  # a host that asks for more is given up
    connect_seconds: float = 10.0
    read_seconds: float = 30.0  # without a single byte
    lock_seconds: float = 3600.0  # for another process that downloads the same file
    max_bytes: int = 64 << 30  # no published backbone comes near; an endless body must end


PATIENCE = Patience()


class Progress(Protocol):
    """Called while a file arrives."""

    def __call__(self, name: str, done_bytes: int, total_bytes: int | None) -> None:
        """Tell how much of a file is there; the total is None where the host did not say."""


Report = Callable[[int, "int | None"], None]
"""``Progress`` of one file: bytes that are there, bytes in all."""


class PlaceError(Exception):
    """Why one place did not give a file. Collected by the caller, never shown as it is."""

    def __init__(
        self, reason: str, *, transient: bool = False, wait_seconds: float | None = None
    ) -> None:
        super().__init__(reason)
        self.transient = transient
        self.wait_seconds = wait_seconds


def download(url: str, part: Path, report: Report | None = None) -> None:
    """Complete ``part`` from a URL, beginning where an earlier run was cut off.

    A beginning is only ever continued if the host confirms, by ETag or Last-Modified, that it is
    still the same file; else it is thrown away. What arrived before a failure is kept for the next
    run under the same condition.

    Raises:
        PlaceError: The host does not give the file.
        OutputError: The disk does not take it.
    """
    try:
        with disk_errors(part.parent), _session() as session:
            persist(lambda: _attempt(session, url, part, report))
    except PlaceError:
        if _validator(part) is None:
            discard(part)
        raise
    except OutputError:
        discard(part)  # half a file on a full disk helps nobody
        raise


def discard(part: Path) -> None:
    """Remove an unfinished file and what is known of it."""
    part.unlink(missing_ok=True)
    _notes(part).unlink(missing_ok=True)


def persist(action: Callable[[], T]) -> T:
    """Run an action again while it fails for reasons that pass, waiting longer each time.

    Raises:
        PlaceError: The last failure.
    """
    for number in range(1, PATIENCE.attempts + 1):
        try:
            return action()
        except PlaceError as error:
            if not error.transient:
                raise
            if number == PATIENCE.attempts:
                raise PlaceError(f"{error} ({number} attempts)") from error
            seconds = _pause(number, error)
            logger.info("attempt %d: %s; again in %.1f s", number, error, seconds)
            time.sleep(seconds)
    raise AssertionError("at least one attempt is made")


def status_error(status: int, reason: str, retry_after: str | None) -> PlaceError:
    """Return the failure of an HTTP status: whether it passes, and when to ask again."""
    wait_seconds = _retry_after(retry_after)
    return PlaceError(reason, transient=status in _TRANSIENT, wait_seconds=wait_seconds)


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


def is_disk_error(error: OSError) -> bool:
    """Tell a disk that refuses from a network that fails: libraries raise OSError for both."""
    return isinstance(error, OutputError) or error.errno in _NO_ROOM


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


def shown(url: str) -> str:
    """Return a URL without what must not be logged: passwords and signed queries."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _session() -> requests.Session:
    import requests  # when something is downloaded: importing trunkline must stay cheap

    import trunkline

    class Session(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> str | None:
            target = super().get_redirect_target(resp)
            if target is not None and urlsplit(resp.url).scheme == "https":
                landing = urljoin(resp.url, target)
                if urlsplit(landing).scheme != "https":
                    resp.close()
                    raise PlaceError(f"refused: redirects from https to {shown(landing)}")
            return target

    session = Session()
    session.headers["User-Agent"] = f"trunkline/{trunkline.__version__}"
    # A compressed body has neither the length nor the byte ranges of the file.
    session.headers["Accept-Encoding"] = "identity"
    return session


def _attempt(session: requests.Session, url: str, part: Path, report: Report | None) -> None:
    """Ask once for what is missing and write it behind what is there."""
    import requests

    validator = _validator(part)
    offset = part.stat().st_size if validator and part.is_file() else 0
    headers = {"Range": f"bytes={offset}-", "If-Range": validator} if offset and validator else {}
    timeout = (PATIENCE.connect_seconds, PATIENCE.read_seconds)
    try:
        with session.get(url, headers=headers, stream=True, timeout=timeout) as response:
            _write(response, part, offset, report)
    except requests.RequestException as error:
        raise _explained(error) from error


def _write(response: requests.Response, part: Path, offset: int, report: Report | None) -> None:
    start = _start(response, part, offset)
    total = _total(response, start)
    if total is not None and total > PATIENCE.max_bytes:
        raise PlaceError(f"refused: {total} bytes, more than {PATIENCE.max_bytes}")
    if start == 0:
        discard(part)  # first the bytes, then what is noted of them: never new notes on old bytes
        _note(part, response)
    check_room(part.parent, (total or start) - start)
    limit = PATIENCE.max_bytes if total is None else total
    done = start
    with open(part, "ab" if start else "wb") as file:
        for chunk in response.iter_content(_CHUNK_BYTES):
            done += len(chunk)
            if done > limit:
                file.close()
                discard(part)
                raise PlaceError(f"refused: more than the {limit} bytes that it may have")
            file.write(chunk)
            if report is not None:
                report(done, total)
    if total is not None and done < total:
        raise PlaceError(f"cut off at {done} of {total} bytes", transient=True)


def _start(response: requests.Response, part: Path, offset: int) -> int:
    """Return the position in the file at which this answer's body begins."""
    status = response.status_code
    if status == 206 and offset:
        begins = re.match(rf"bytes {offset}-", response.headers.get("Content-Range", ""))
        # Some hosts serve ranges but ignore If-Range: look whether it is still the same file.
        if begins and _validator_of(response) == _validator(part):
            return offset
    if status == 416 or status == 206:
        discard(part)
        raise PlaceError("the beginning of the file that is here does not fit", transient=True)
    if status != 200:
        reason = f"HTTP {status} {response.reason or ''}".rstrip()
        raise status_error(status, reason, response.headers.get("Retry-After"))
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise PlaceError("answered with a web page, not a file; is there a login in between?")
    return 0


def _total(response: requests.Response, start: int) -> int | None:
    length = response.headers.get("Content-Length", "")
    if "Content-Encoding" in response.headers or not length.isdecimal():
        return None
    return start + int(length)


def _explained(error: requests.RequestException) -> PlaceError:
    """Say in a few words what went wrong below HTTP."""
    import requests

    if isinstance(error, requests.exceptions.SSLError):
        return PlaceError(f"its certificate was not accepted ({error})")
    if isinstance(error, requests.Timeout):
        return PlaceError("timed out", transient=True)
    if isinstance(error, (requests.exceptions.ChunkedEncodingError, requests.ConnectionError)):
        if "timed out" in str(error):  # while reading the body, requests calls it a lost connection
            return PlaceError("timed out", transient=True)
        cut = "IncompleteRead" in str(error)
        return PlaceError("cut off" if cut else "no connection", transient=True)
    return PlaceError(f"{type(error).__name__}: {error}")


def _pause(number: int, error: PlaceError) -> float:
    if error.wait_seconds is not None:
        if error.wait_seconds > PATIENCE.retry_after_limit_seconds:
            raise PlaceError(f"{error}, asks to wait {error.wait_seconds:.0f} s") from error
        return error.wait_seconds
    seconds = min(PATIENCE.backoff_seconds * 2.0 ** (number - 1), PATIENCE.backoff_limit_seconds)
    return seconds * random.uniform(0.5, 1.0)  # noqa: S311 - spreads a crowd, hides nothing


def _retry_after(value: str | None) -> float | None:
    """Read Retry-After: seconds or a date."""
    if not value:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _notes(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _note(part: Path, response: requests.Response) -> None:
    validator = _validator_of(response)
    if validator is not None:
        _notes(part).write_text(json.dumps({"validator": validator}), encoding="utf-8")


def _validator_of(response: requests.Response) -> str | None:
    """Return what tells this version of a file from another, if the host says so reliably."""
    if "Content-Encoding" in response.headers:
        return None
    etag = response.headers.get("ETag")
    if etag and not etag.startswith("W/"):  # a weak tag may stay while bytes change
        return etag
    return response.headers.get("Last-Modified")


def _validator(part: Path) -> str | None:
    try:
        noted = json.loads(_notes(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or cut off itself: then nothing is continued
        return None
    validator = noted.get("validator") if isinstance(noted, dict) else None
    return validator if isinstance(validator, str) else None


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
