"""Paths and URLs: which of them are on this machine, how they are written down, how opened.

A location is a text: a local path, a URL of one of ``PROTOCOLS``, or a chain, which is a file in an
archive that is at a location: ``zip://inside/a.jpg::s3://bucket/all.zip``. Chains are taken apart
here and never by fsspec, so that no link of one can be of a protocol that is not allowed.

A location must be valid UTF-8 to be kept in a table, which a file name on Linux need not be; such a
path is written as a ``file://`` URL with percent signs, which is a path again when it is opened.

Nothing here imports PyTorch; fsspec is imported when the first URL that needs it is opened.
"""

from __future__ import annotations

import os
import re
import stat
from functools import lru_cache
from typing import Any, BinaryIO, cast
from urllib.parse import quote, unquote_to_bytes

from trunkline.errors import SourceError, TrunklineError
from trunkline.extraction.archive_files import ARCHIVES, Archive
from trunkline.extraction.web import SCHEMES, Web
from trunkline.files import absolute
from trunkline.images import image_suffixes
from trunkline.runtimes.optional import require

OPEN_ARCHIVES = 8
"""Archives behind URLs (``zip://…::s3://…``) that a process keeps open."""

PROTOCOLS = (
    *("file", "http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "hdfs", "sftp", "ssh"),
    *("hf", "memory"),
)
"""Of URLs that are read, ``zip`` and ``tar`` in front of them apart; they fetch, and no more."""

_DEEPEST = 4  # archives in one another
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+._\-]*)(://|::)")
_FILE = "file://"
_GLOB, _WEB_GLOB = re.compile(r"[*?\[]"), re.compile(r"[*\[]")
_IN_PATH = 3  # pieces of a web address before its path; a host may be [::1]
_WHY_NOT = {
    **dict.fromkeys(("reference",), "it reads other files that a file of instructions names"),
    **dict.fromkeys(("dir", "generic", "asynclocal", "async_wrapper"), "it stands for another one"),
    **dict.fromkeys(
        ("simplecache", "filecache", "blockcache", "cached"), "it writes copies to this machine"
    ),
    **dict.fromkeys(("git", "github", "gist", "dvc", "lakefs"), "it interprets a repository"),
    **dict.fromkeys(("dask", "jupyter", "jlab", "pyscript"), "it works through another program"),
    "libarchive": "it interprets whatever an archive may be",
    "data": "it holds its content itself",
}


def is_image_name(name: str) -> bool:
    """Say whether a file's name ends as images do, in capital or small letters."""
    return os.path.splitext(name)[1].lower() in image_suffixes()


def ending_of(name: str) -> str:
    """Return the ending of a file's name in small letters, by which it is counted."""
    ending = os.path.splitext(name)[1].lower()
    return ending if 1 < len(ending) <= 12 and ending.isprintable() else "no known ending"


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
    if not location.lower().startswith(_FILE):
        return None
    path = location[len(_FILE) :].removeprefix("localhost")
    if os.name == "nt":
        path = path.lstrip("/")
    return os.fsdecode(unquote_to_bytes(os.fsencode(path)))


def is_here(location: str) -> bool:
    """Say whether a file, or the archive that holds it, is a local file."""
    return local_path(_links(location)[-1]) is not None


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
    """Return a location that is written relative to a folder; URLs and absolute paths stay.

    Of a chain the last link is what may be relative.
    """
    *links, last = _links(location)
    stays = is_url(last) or os.path.isabs(last)
    return "::".join([*links, last if stays else joined(folder, last)])


def anchored(location: str) -> str:
    """Return a location that means the same in any working directory.

    Raises:
        ConfigError: It is relative, and the working directory was removed.
    """
    *links, last = _links(location)
    path = local_path(last)
    if path is not None:
        path = os.path.normpath(absolute(path))
        last = path.replace(os.sep, "/") if os.name == "nt" else path
    return "::".join([*links, last])


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
    """Return what reads a URL, with the methods of fsspec's file systems, and the path in it.

    Raises:
        NotInstalledError: fsspec is not installed.
        SourceError: A protocol that is not allowed, or whose library is missing; no such archive.
    """
    head, tail = _split_chain(url)
    if tail:
        if len(_links(url)) > _DEEPEST + 1:
            raise SourceError(
                f"{url} is more than {_DEEPEST} archives in one another; unpack some of them."
            )
        kind, _, inside = head.partition("://")
        return _archive(kind.lower(), tail.removeprefix("::")), inside
    scheme = url.partition("://")[0].lower()
    if scheme in SCHEMES:
        return Web(), url
    _check_protocol(url)
    return _connected(scheme, url)


def _check_protocol(url: str) -> None:
    found = _SCHEME.match(url)
    scheme = found[1].lower() if found else ""
    if scheme in ARCHIVES:
        raise SourceError(
            f"{url} does not say which archive it is in; write {scheme}://a.jpg::s3://b/all.{scheme}."
        )
    if scheme not in PROTOCOLS or (found and found[2] == "::"):
        reason = _WHY_NOT.get(scheme, "only what fetches files, and interprets nothing, is read")
        raise SourceError(
            f"{url} cannot be opened: the protocol {scheme!r} is not allowed ({reason}). Give a "
            f"local path, a URL of one of {', '.join(PROTOCOLS)}, or zip://… or tar://… in front "
            "of one, such as zip://a.jpg::s3://b/all.zip."
        )


@lru_cache(maxsize=OPEN_ARCHIVES)
def _archive(kind: str, location: str) -> Archive:
    """Open what files are inside of, once for all of them."""
    try:
        file = open_location(location)
        try:
            return Archive(kind, file, location)
        except BaseException:
            file.close()
            raise
    except TrunklineError:
        raise
    except Exception as error:  # drivers and damaged archives raise nearly anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SourceError(
            f"{location} cannot be read as a {kind}: {reason}. Copy or download it again."
        ) from error


def _connected(scheme: str, url: str) -> tuple[Any, str]:
    fsspec = require("fsspec", "reading from a URL")
    try:
        # What fsspec.core.url_to_fs does with one link; that would look for more of them in a name.
        driver = fsspec.get_filesystem_class(scheme)
        url = scheme + url[len(scheme) :]  # in small letters
        return driver(**driver._get_kwargs_from_urls(url)), driver._strip_protocol(url)
    except ImportError as error:
        raise SourceError(
            f"{url} needs a library that is not installed: {error}. Install it with pip."
        ) from error
    except Exception as error:  # drivers raise their own: credentials, hosts, addresses
        raise SourceError(
            f"{url} cannot be opened: {error}. Check the address, or give a local path."
        ) from error


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
    special, start = (_WEB_GLOB, _IN_PATH) if _is_web(head) else (_GLOB, 0)
    names = head.split("/")
    first = next((n for n, name in enumerate(names) if n >= start and special.search(name)), None)
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
    """Return the part that holds the path, and ``::`` with the archive that it is in, if any."""
    found = _SCHEME.match(location)
    if found is None or found[1].lower() not in ARCHIVES:
        return location, ""
    head, separator, behind = location.partition("::")
    return head if "://" in head else f"{head}://", separator + behind


def _links(location: str) -> list[str]:
    """Return a file, the archive that it is in, the one that this is in, and so on.

    Of a chain that is too deep the last is what is left of it.
    """
    links = [location]
    while len(links) <= _DEEPEST + 1:
        head, tail = _split_chain(links[-1])
        if not tail:
            break
        links[-1:] = [head, tail.removeprefix("::")]
    return links
