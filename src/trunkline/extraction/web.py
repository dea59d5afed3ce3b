"""Files behind http:// and https://, and never more of one than was asked for.

requests does the talking, as it does for weights: it honours proxies, certificates and netrc of the
environment. fsspec's driver is not used: it takes an answer whole, however long it is or becomes
when it is decompressed, and its addresses cannot be those of IPv6.
"""

from __future__ import annotations

import html
import io
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import urljoin

if TYPE_CHECKING:
    import requests

SCHEMES = ("http", "https")

_CONNECT_SECONDS, _READ_SECONDS = 10.0, 30.0  # to connect; without a single byte
_MOST_REDIRECTS = 10
_CHUNK_BYTES = 1 << 16
_BLOCK_BYTES = 1 << 22  # of a file that is read in parts, for a tar's headers
_PAGE_BYTES = 16 << 20  # of a page that lists the files of a folder
_WHOLE, _PART, _BEHIND_END = 200, 206, 416
_GONE = (404, 410)
_REACH = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})")
_LINK = re.compile(r"""href\s{0,9}=\s{0,9}["']([^"'<>?#]{1,4096})""", re.IGNORECASE)


class Web:
    """The web, with the methods of fsspec's file systems that trunkline uses.

    What goes wrong is an ``OSError`` whose text says it; nothing there is a ``FileNotFoundError``.
    """

    def isdir(self, url: str) -> bool:
        """Say whether a page lists files below this address."""
        try:
            return bool(self.ls(url))
        except FileNotFoundError:
            return False

    def ls(self, url: str, *, detail: bool = True) -> list[dict[str, Any]]:
        """Return what a page links to directly below its own address, as fsspec does."""
        del detail  # always
        folder = url.rstrip("/") + "/"
        with _asked(folder) as answer:
            if not answer.headers.get("Content-Type", "text/html").startswith("text/html"):
                return []
            content = _taken(_body(answer), _PAGE_BYTES + 1)
            base = answer.url.partition("?")[0].rstrip("/") + "/"
        if len(content) > _PAGE_BYTES:
            raise OSError(f"its page is longer than {_PAGE_BYTES} bytes; give a list instead")
        names: dict[str, str] = {}
        for found in _LINK.finditer(content.decode(errors="replace")):
            address = _joined(base, html.unescape(found[1]))
            below = address.removeprefix(base) if address.startswith(base) else ""
            name, slash, _ = below.partition("/")
            if name and names.get(name) != "directory":
                names[name] = "directory" if slash else "file"
        return [{"name": folder + name, "type": kind} for name, kind in names.items()]

    def invalidate_cache(self, url: str) -> None:
        """Do nothing: there is none."""

    def open(self, url: str, mode: str = "rb") -> BinaryIO:
        """Open a file for reading; where its host serves no parts, only from beginning to end."""
        del mode
        return cast(BinaryIO, io.BufferedReader(_WebFile(url), _BLOCK_BYTES))

    def cat_file(self, url: str, start: int, end: int) -> bytes:
        """Read a part of a file, or less where it ends earlier.

        The part from 0 on is read from the whole file, which every host serves; one that is
        announced to be longer than the part is not read at all.
        """
        if start > 0:
            return _part(url, start, end)[0]
        with _asked(url) as answer:
            announced = answer.headers.get("Content-Length", "")
            if announced.isdecimal() and len(announced) < 20 and int(announced) > end:
                raise OSError(f"it has {announced} bytes, and at most {end - 1} are read")
            return _taken(_body(answer), end)


class _WebFile(io.RawIOBase):
    """A file, read in parts; where its host serves none, as one stream."""

    def __init__(self, url: str) -> None:
        self._url, self._position = url, 0
        self._beginning, self._size = b"", 0
        self._opened = _asked(url, (0, _BLOCK_BYTES))
        answer = self._opened.__enter__()
        self._stream = _body(answer) if answer.status_code == _WHOLE else None
        self._rest = b""  # of what the stream gave
        if answer.status_code == _PART:
            self._beginning = _taken(_body(answer), _BLOCK_BYTES)
            self._size = _reach(answer)[1]
        if self._stream is None:
            self._opened.__exit__(None, None, None)

    def close(self) -> None:
        if not self.closed and self._stream is not None:
            self._opened.__exit__(None, None, None)
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        if self._stream is not None:
            wanted = {0: offset, 1: self._position + offset}.get(whence, -1)
            if wanted != self._position:
                raise OSError("its host does not serve parts of files")
            return wanted
        self._position = max(0, (0, self._position, self._size)[whence] + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        with _explained():
            content = self._streamed(len(view)) if self._stream else self._ranged(len(view))
        view[: len(content)] = content
        self._position += len(content)
        return len(content)

    def _streamed(self, wanted: int) -> bytes:
        self._rest = self._rest or next(cast("Iterator[bytes]", self._stream), b"")
        content, self._rest = self._rest[:wanted], self._rest[wanted:]
        return content

    def _ranged(self, wanted: int) -> bytes:
        start, end = self._position, min(self._position + wanted, self._size)
        if start >= end:
            return b""
        if start < len(self._beginning):
            return self._beginning[start:end]
        content, size = _part(self._url, start, end)
        if size != self._size:
            raise OSError("it changed while it was read")
        return content


def _part(url: str, start: int, end: int) -> tuple[bytes, int]:
    """Return a part of a file, and how long the file is."""
    with _asked(url, (start, end)) as answer:
        if answer.status_code == _BEHIND_END:
            return b"", 0
        if answer.status_code != _PART:
            raise OSError("its host does not serve parts of files")
        first, size = _reach(answer)
        if first != start:
            raise OSError("its host serves other parts of files than it is asked for")
        return _taken(_body(answer), end - start), size


def _reach(answer: requests.Response) -> tuple[int, int]:
    """Return where a part begins, and how long the whole file is."""
    found = _REACH.fullmatch(answer.headers.get("Content-Range", ""))
    if found is None or "Content-Encoding" in answer.headers:
        raise OSError("its host serves parts of files without saying which")
    return int(found[1]), int(found[2])


@contextmanager
def _asked(url: str, reach: tuple[int, int] | None = None) -> Iterator[requests.Response]:
    """Ask for a file or a part of it, and follow where that is said to be."""
    headers = {} if reach is None else {"Range": f"bytes={reach[0]}-{reach[1] - 1}"}
    with _explained():
        for _ in range(_MOST_REDIRECTS):
            answer = _sent(url, headers)
            with answer:
                target = _redirect_of(answer)
                if target is None:
                    _check_status(answer, in_parts=reach is not None)
                    yield answer
                    return
            landing = _joined(url, target)
            scheme = _scheme(landing)
            if scheme not in SCHEMES or (_scheme(url) == "https" and scheme != "https"):
                raise OSError(f"refused: its host redirects from {url} to {landing or target}")
            url = landing
        raise OSError(f"its host redirects more than {_MOST_REDIRECTS} times")


def _joined(base: str, link: str) -> str:
    """Return where a link leads to, an empty text where it is no address."""
    try:
        return urljoin(base, link)
    except ValueError:
        return ""


def _scheme(url: str) -> str:
    return url.partition(":")[0].lower()


def _sent(url: str, headers: dict[str, str]) -> requests.Response:
    """Send one request, and once more where a connection that was kept open has been closed."""
    import requests

    ask = partial(
        _session(os.getpid()).get,
        url,
        headers=headers,
        timeout=(_CONNECT_SECONDS, _READ_SECONDS),
        stream=True,
        allow_redirects=False,
    )
    try:
        return ask()
    except requests.Timeout:
        raise
    except requests.ConnectionError:
        return ask()


def _redirect_of(answer: requests.Response) -> str | None:
    import requests

    return requests.Session.get_redirect_target(_session(os.getpid()), answer)


@lru_cache(maxsize=1)
def _session(process: int) -> requests.Session:  # noqa: ARG001 - connections cannot be inherited
    import requests

    import trunkline

    class Session(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> None:
            """See none, as where there is one requests reads all of the body, however long."""

    session = Session()
    session.headers["User-Agent"] = f"trunkline/{trunkline.__version__}"
    session.headers["Accept-Encoding"] = "identity"  # images are compressed already
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    return session


def _check_status(answer: requests.Response, *, in_parts: bool) -> None:
    if answer.status_code == _WHOLE or (in_parts and answer.status_code in (_PART, _BEHIND_END)):
        return
    text = f"HTTP {answer.status_code} {answer.reason or ''}".rstrip()
    raise FileNotFoundError(text) if answer.status_code in _GONE else OSError(text)


def _body(answer: requests.Response) -> Iterator[bytes]:
    """Yield what an answer holds in small pieces, also where its host compressed it unasked."""
    chunks = answer.raw.stream(_CHUNK_BYTES, decode_content=False)
    encoding = answer.headers.get("Content-Encoding", "identity").lower()
    if encoding in ("identity", ""):
        return chunks  # type: ignore[no-any-return]  # urllib3's, as requests passes it on
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise OSError(f"its host sends it compressed as {encoding}, which was not asked for")
    return _inflated(chunks)


def _inflated(chunks: Iterator[bytes]) -> Iterator[bytes]:
    inflate = zlib.decompressobj(wbits=47)  # gzip or zlib, by its first bytes
    try:
        for chunk in chunks:
            while chunk:
                yield inflate.decompress(chunk, _CHUNK_BYTES)
                chunk = inflate.unconsumed_tail
    except zlib.error as error:
        raise OSError(f"its host sends what cannot be decompressed ({error})") from error
    if not inflate.eof:
        raise OSError("it is cut off")


def _taken(chunks: Iterator[bytes], limit: int) -> bytes:
    """Return what comes first, at most so many bytes."""
    content = io.BytesIO()
    for chunk in chunks:
        content.write(chunk[: limit - content.tell()])
        if content.tell() >= limit:
            break
    return content.getvalue()


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what requests and urllib3 raise into an ``OSError`` of a few words."""
    import requests
    import urllib3

    try:
        yield
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        raise OSError(_reason(error)) from error


def _reason(error: Exception) -> str:
    import requests

    text = str(error)
    if isinstance(error, requests.Timeout) or "timed out" in text:
        return "its host did not answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return f"the certificate of its host was not accepted ({text})"
    if "IncompleteRead" in text:
        return "it is cut off"
    if isinstance(error, requests.ConnectionError):
        return f"no connection to its host ({text})"
    return text or type(error).__name__
