"""One question to a host: patient, but neither for ever nor with whatever it answers.

requests does the talking. Reasons: it honours proxies, certificate bundles and netrc from the
environment, is typed, and is what pooch itself downloads with. What it lacks is here:

* **An end.** Its timeouts bound the wait for a single byte, so a host that sends one now and then
  is listened to for ever. Here a watch (``patience``) ends what is too slow.
* **Redirects that are looked at.** requests reads the body of each one, whatever its size, and
  raises what its parser raises. Here no body is read, each address is checked, and a password or a
  token is only ever sent to the host that it was meant for.
* **The bytes that were asked for.** A compressed answer has neither the length nor the ranges of
  the file, and 2 MB of it can become 2 GB: it is refused.
"""

from __future__ import annotations

import email.utils
import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, TypeVar

from trunkline.weights.files import addresses, patience
from trunkline.weights.files.patience import Deadline, PlaceError, Watch

if TYPE_CHECKING:
    import requests
    from requests.auth import AuthBase

logger = logging.getLogger(__name__)

T = TypeVar("T")

PIECE_BYTES = 1 << 16  # what a cut-off connection loses at most

_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 10
_DIGITS = re.compile(r"[0-9]{1,18}")  # a file of more bytes does not exist
_PLAIN = ("", "identity")


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked for.

    Attributes:
        url: An address that ``addresses.split`` takes.
        token: Sent to the host of ``url`` and to no other; None for none.
        explain: Says in a clause what a host means by a status and its headers; "" for nothing.
    """

    url: str
    token: str | None = None
    explain: Callable[[int, Mapping[str, str]], str] = lambda _status, _headers: ""


class Answer:
    """What a host answered, before its body is read.

    Attributes:
        status: Of HTTP.
        headers: Of the last answer, with names in any case.
        told: The headers of every answer on the way, the redirects' first.
        length: Bytes of the body; None where the host does not say.
    """

    def __init__(
        self, response: requests.Response, told: tuple[Mapping[str, str], ...], watch: Watch
    ) -> None:
        self._response, self._watch = response, watch
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self.told = told
        self.length = _length(self.headers)

    def pieces(self) -> Iterator[bytes]:
        """Yield the body in pieces of at most ``PIECE_BYTES``.

        Raises:
            PlaceError: It comes too slowly.
        """
        moved = 0
        for piece in self._read():
            moved += len(piece)
            if moved >= PIECE_BYTES:  # a chunk may have one byte: such a piece is no progress
                moved = 0
                self._watch.moved()
            self._watch.check()
            yield piece
        self._watch.check()  # a connection that was shut down looks like the end of a body

    def _read(self) -> Iterator[bytes]:
        try:
            yield from self._response.iter_content(PIECE_BYTES)
        except ValueError as error:  # http.client's, of a chunk with a negative length
            raise PlaceError("cut off", transient=True) from error


@contextmanager
def asked(
    question: Question, deadline: Deadline, headers: Mapping[str, str] | None = None
) -> Iterator[Answer]:
    """Ask once, follow redirects, and give the answer of a host that has what was asked for.

    Raises:
        PlaceError: The host does not have it, cannot be reached, or misbehaves; in the block too,
            while the body is read.
    """
    with Watch(deadline) as watch, _plain_errors(watch), _session(watch) as session:
        told: list[Mapping[str, str]] = []
        url = question.url
        for _ in range(_MOST_REDIRECTS + 1):
            watch.moved()
            with _sent(session, url, question, headers or {}) as response:
                told.append(response.headers)
                location = response.headers.get("Location")
                if response.status_code not in _REDIRECTS or location is None:
                    _check_head(response, question)
                    yield Answer(response, tuple(told), watch)
                    return
            url = _landing(url, location)
        raise PlaceError(f"refused: it redirects more than {_MOST_REDIRECTS} times")


def persist(action: Callable[[], T], deadline: Deadline) -> T:
    """Run an action again while it fails for reasons that pass, waiting longer each time.

    Raises:
        PlaceError: The last failure.
    """
    for number in range(1, patience.PATIENCE.attempts + 1):
        try:
            return action()
        except PlaceError as error:
            if not error.transient:
                raise
            few = error.unreachable and number >= patience.PATIENCE.unreachable_attempts
            if few or number == patience.PATIENCE.attempts:
                raise PlaceError(
                    f"{error} ({number} attempts)", unreachable=error.unreachable
                ) from error
            seconds = _pause(number, error)
            if seconds > deadline.left():
                raise PlaceError(f"{error} ({number} attempts, {patience.in_all()})") from error
            logger.info("attempt %d: %s; again in %.1f s", number, error, seconds)
            time.sleep(seconds)
    raise AssertionError("at least one attempt is made")


def _session(watch: Watch) -> requests.Session:
    import requests  # when something is downloaded: importing trunkline must stay cheap

    import trunkline

    class Session(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> None:
            """Leave every redirect, and its body, to us."""

    class Adapter(requests.adapters.HTTPAdapter):
        def get_connection_with_tls_context(self, *values: Any, **named: Any) -> Any:
            pool: Any = super().get_connection_with_tls_context(*values, **named)

            class Watched(pool.ConnectionCls):  # type: ignore[misc]
                def _tunnel(self) -> None:  # what is said to a proxy before TLS begins
                    watch.add(self.sock)
                    super()._tunnel()
                    watch.check()

                def connect(self) -> None:
                    super().connect()
                    watch.add(self.sock)

            pool.ConnectionCls = Watched
            return pool

    session = Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, Adapter())
    session.headers["User-Agent"] = f"trunkline/{trunkline.__version__}"
    session.headers["Accept-Encoding"] = "identity"
    return session


def _sent(
    session: requests.Session, url: str, question: Question, headers: Mapping[str, str]
) -> requests.Response:
    """Send one request, with what only the host that was asked may see."""
    own = addresses.origin(url) == addresses.origin(question.url)
    return session.get(
        url,
        headers=dict(headers),
        auth=_credentials(question) if own else None,  # None: what netrc has of this host
        stream=True,
        timeout=(patience.PATIENCE.connect_seconds, patience.PATIENCE.read_seconds),
    )


def _credentials(question: Question) -> AuthBase | tuple[str, str] | None:
    from requests.auth import AuthBase
    from requests.utils import get_auth_from_url

    if question.token is None:
        named = get_auth_from_url(question.url)
        return named if any(named) else None

    class Bearer(AuthBase):
        def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
            r.headers["Authorization"] = f"Bearer {question.token}"
            return r

    return Bearer()


def _landing(url: str, location: str) -> str:
    try:
        return addresses.landing(url, location)
    except ValueError as error:
        raise PlaceError(f"refused: {error}") from error


def _check_head(response: requests.Response, question: Question) -> None:
    status, headers = response.status_code, response.headers
    if status not in (200, 206, 416):  # of ranges the caller knows more
        reason = f"HTTP {status} {response.reason or ''}".rstrip()
        if meaning := question.explain(status, headers):
            reason = f"HTTP {status}: {meaning}"
        wait_seconds = _retry_after(headers.get("Retry-After"))
        raise PlaceError(reason, transient=status in _TRANSIENT, wait_seconds=wait_seconds)
    encoding = headers.get("Content-Encoding", "").strip().lower()
    if encoding not in _PLAIN:
        raise PlaceError(
            f"refused: sent as {encoding[:40]!r}, although the plain file was asked for"
        )


def _length(headers: Mapping[str, str]) -> int | None:
    """Return how many bytes a body has, if its head says so."""
    if "chunked" in headers.get("Transfer-Encoding", "").lower():
        return None  # then each chunk says so, and the last one that it is the last
    told = headers.get("Content-Length")
    if told is None:
        return None
    values = {value.strip() for value in told.split(",")}
    if len(values) != 1 or not _DIGITS.fullmatch(value := values.pop()):
        raise PlaceError(f"refused: its length makes no sense ({told[:40]!r})")
    return int(value)


@contextmanager
def _plain_errors(watch: Watch) -> Iterator[None]:
    """Turn what the libraries below raise into why the host gave nothing."""
    import requests
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (requests.RequestException, HTTPError, HTTPException, UnicodeError) as error:
        watch.check()
        raise _explained(error) from error


def _explained(error: Exception) -> PlaceError:
    """Say in a few words what went wrong below HTTP; never with the address, which has secrets."""
    import requests

    reason = getattr(error.args[0] if error.args else None, "reason", None)
    if unreachable := _unreachable(error):
        return unreachable
    if isinstance(error, requests.exceptions.SSLError):
        return PlaceError(f"its certificate was not accepted ({reason or 'TLS failed'})")
    if isinstance(error, requests.Timeout):
        return PlaceError("timed out", transient=True)
    if isinstance(error, (requests.exceptions.ChunkedEncodingError, requests.ConnectionError)):
        if "timed out" in str(error):  # while reading the body, requests calls it a lost connection
            return PlaceError("timed out", transient=True)
        cut = isinstance(error, requests.exceptions.ChunkedEncodingError)
        return PlaceError("cut off" if cut else "no connection", transient=True)
    return PlaceError(f"the request failed ({type(error).__name__})")


def _unreachable(error: Exception) -> PlaceError | None:
    """Say why nobody answered; None where somebody did."""
    import requests
    from urllib3 import exceptions

    if isinstance(error, requests.exceptions.ProxyError):
        return PlaceError(
            "the proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names cannot be reached, or "
            "refuses",
            transient=True,
            unreachable=True,
        )
    if isinstance(error, requests.exceptions.ConnectTimeout):
        waited = f"{patience.PATIENCE.connect_seconds:g} s"
        return PlaceError(f"nobody answered within {waited} (timed out)", unreachable=True)
    below = getattr(error.args[0] if error.args else None, "reason", None)
    if isinstance(below, getattr(exceptions, "NameResolutionError", ())):
        return PlaceError(
            "its name has no address here (DNS): no connection", transient=True, unreachable=True
        )
    if isinstance(below, exceptions.NewConnectionError):
        refused = "refused" in str(below).lower()
        why = "no connection: it was refused" if refused else "no connection"
        return PlaceError(why, transient=True, unreachable=True)
    return None


def _pause(number: int, error: PlaceError) -> float:
    bounds = patience.PATIENCE
    if error.wait_seconds is not None:
        if error.wait_seconds > bounds.retry_after_limit_seconds:
            raise PlaceError(f"{error}, asks to wait {error.wait_seconds:.0f} s") from error
        return error.wait_seconds
    seconds = min(bounds.backoff_seconds * 2.0 ** (number - 1), bounds.backoff_limit_seconds)
    return seconds * random.uniform(0.5, 1.0)  # noqa: S311 - spreads a crowd, hides nothing


def _retry_after(value: str | None) -> float | None:
    """Read Retry-After: seconds or a date."""
    if not value:
        return None
    if re.fullmatch(r"\s*[0-9]+\s*", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, OSError):  # no date, or none that is on a clock
        return None
