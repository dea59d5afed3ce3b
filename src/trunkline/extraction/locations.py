"""Paths and URLs: which of them are on this machine, how they are written down, how opened.

A location is a text: a local path, or a URL that fsspec knows (``s3://…``, ``zip://…::s3://…``).
It must be valid UTF-8 to be kept in a table, which a file name on Linux need not be; such a path
is written as a ``file://`` URL with percent signs, which is a path again when it is opened.

Nothing here imports PyTorch; fsspec is imported when the first URL is opened.
"""

from __future__ import annotations

import os
import re
import stat
from functools import lru_cache
from typing import Any, BinaryIO, cast
from urllib.parse import quote, unquote_to_bytes

from trunkline.errors import SourceError
from trunkline.images import image_suffixes
from trunkline.runtimes.optional import require

OPEN_ARCHIVES = 8
"""Archives behind URLs (``zip://…::s3://…``) that a process keeps open."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*(://|::)")
_FILE = "file://"
_GLOB, _WEB_GLOB = re.compile(r"[*?\[]"), re.compile(r"[*\[]")


def is_image_name(name: str) -> bool:
    """Say whether a file's name ends as images do, in capital or small letters."""
    return os.path.splitext(name)[1].lower() in image_suffixes()


def is_hidden(name: str) -> bool:
    """Say whether a name begins with a dot, as what programs keep for themselves does."""
    return name.startswith(".") and name not in (".", "..")


def is_url(location: str) -> bool:
    """Say whether a text is a URL, ``file://`` ones included, rather than a local path."""
    return _SCHEME.match(location) is not None


def local_path(location: str) -> str | None:
    """Return the path on this machine that a location names, None if it names none.

    ``file://`` URLs are local; their percent signs are undone, as RFC 8089 has it.
    """
    if not is_url(location):
        return location
    if not location.lower().startswith(_FILE) or "::" in location:
        return None
    path = location[len(_FILE) :].removeprefix("localhost")
    if os.name == "nt":
        path = path.lstrip("/")
    return os.fsdecode(unquote_to_bytes(path))


def is_utf8(text: str) -> bool:
    """Say whether a text can be written as UTF-8: a name of other bytes has lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def written_path(path: str) -> str:
    """Return a local path as a text that is UTF-8: as it is, or as a ``file://`` URL."""
    return path if is_utf8(path) else _FILE + quote(os.fsencode(path))


def written_key(key: str) -> str:
    """Return a relative name as a text that is UTF-8.

    Where it is not already, its bytes are written with percent signs behind ``./``; no other key
    begins like that, so that two names never become one.
    """
    return key if is_utf8(key) else "./" + quote(os.fsencode(key))


def joined(folder: str, relative: str) -> str:
    """Return the location of something inside a folder; neither is checked to exist.

    In a chain (``zip://inside::s3://bucket/a.zip``) the first URL with a path grows.
    """
    head, tail = _split_chain(folder)
    return f"{_with_slash(head)}{relative}{tail}"


def resolved(folder: str, location: str) -> str:
    """Return a location that is written relative to a folder; URLs and absolute paths stay."""
    return location if is_url(location) or os.path.isabs(location) else joined(folder, location)


def split_name(location: str) -> tuple[str, str]:
    """Return the folder that holds a location, and the location's name in it."""
    head, tail = _split_chain(location)
    folder, _, name = head.rpartition("/")
    return (folder if folder and not folder.endswith(":/") else folder + "/") + tail, name


def name_of(location: str) -> str:
    """Return the last name of a location: what its kind is seen by."""
    name = split_name(location)[1]
    return name.partition("?")[0] if _is_web(location) else name


def _is_web(location: str) -> bool:
    """Say whether a question mark would begin a query."""
    return location.lower().startswith(("http://", "https://"))


def _with_slash(head: str) -> str:
    return head if head.endswith("://") else head.rstrip("/") + "/"


def relative_name(folder: str, location: str) -> str | None:
    """Return how ``joined`` went from the folder to the location, None if it did not."""
    (head, tail), (inner, inner_tail) = _split_chain(folder), _split_chain(location)
    start = _with_slash(head)
    return inner[len(start) :] if tail == inner_tail and inner.startswith(start) else None


def filesystem_of(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path in it.

    Raises:
        NotInstalledError: fsspec is not installed.
        SourceError: No such scheme, or its library is missing.
    """
    head, tail = _split_chain(url)
    scheme, separator, _ = head.partition("://")
    if not tail or "::" in scheme:
        return _connected(url)
    filesystem = _archive(f"{scheme}{separator}{tail}")
    return filesystem, filesystem._strip_protocol(head)


@lru_cache(maxsize=OPEN_ARCHIVES)
def _archive(url: str) -> Any:
    """Open what files are inside of; fsspec would do so again for every file."""
    return _connected(url)[0]


def _connected(url: str) -> tuple[Any, str]:
    fsspec = require("fsspec", "reading from a URL")
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise SourceError(
            f"{url} needs a library that is not installed: {error}. Install it with pip."
        ) from error
    except Exception as error:  # drivers raise their own: credentials, hosts, addresses
        raise SourceError(
            f"{url} cannot be opened: {error}. Give a local path, or a URL that fsspec knows."
        ) from error
    return found


def open_location(location: str) -> BinaryIO:
    """Open a file for reading, wherever it is.

    Raises:
        OSError: A local path that is missing, not readable or not a regular file.
        SourceError: As ``filesystem_of``.
        Exception: Whatever the driver of a URL raises.
    """
    path = local_path(location)
    if path is not None:
        return open_regular(path)
    filesystem, inside = filesystem_of(location)
    return cast(BinaryIO, filesystem.open(inside, "rb"))


def open_regular(path: str, buffering: int = -1) -> BinaryIO:
    """Open a regular file; anything else is an error at once, where a pipe would wait.

    Raises:
        OSError: It is missing, not readable or not a regular file.
    """
    _refuse_special(os.stat(path).st_mode)  # even opening some devices does something
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _binary_flag())
    try:
        _refuse_special(os.fstat(descriptor).st_mode)  # a pipe may have taken the file's place
        return os.fdopen(descriptor, "rb", buffering)
    except BaseException:
        os.close(descriptor)
        raise


def is_pattern(location: str) -> bool:
    """Say whether a location is a glob or has a brace range, rather than being one place."""
    return "{" in location or bool(split_glob(location)[1])


def split_glob(location: str) -> tuple[str, list[str]]:
    """Return the folder that a glob starts from, and the names of its pattern; none if no glob."""
    head, tail = _split_chain(location)
    special = _WEB_GLOB if _is_web(head) else _GLOB
    names = head.split("/")
    first = next((index for index, name in enumerate(names) if special.search(name)), None)
    if first is None:
        return location, []
    folder = "/".join(names[:first])
    return (folder if folder and not folder.endswith(":/") else folder + "/") + tail, names[first:]


def _binary_flag() -> int:
    return getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def _refuse_special(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(None, "it is a folder")
    if not stat.S_ISREG(mode):
        raise OSError(None, "it is a pipe or a device, not a regular file")


def _split_chain(location: str) -> tuple[str, str]:
    """Return the part that holds the path, with what is before it, and what is behind it."""
    if not is_url(location):
        return location, ""
    pieces = location.split("::")
    index = next((i for i, piece in enumerate(pieces) if "://" in piece), 0)
    behind = pieces[index + 1 :]
    return "::".join(pieces[: index + 1]), "".join(f"::{piece}" for piece in behind)
