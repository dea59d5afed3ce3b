"""What every file of trunkline's own has in common: where they lie, how JSON is read, who wrote it.

Nothing here imports PyTorch.
"""

from __future__ import annotations

import getpass
import hashlib
import hmac
import logging
import os
import secrets
import stat
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from trunkline.errors import ConfigError

_log = logging.getLogger(__name__)

HOME = "TRUNKLINE_HOME"
DOCUMENT_BYTES = 64 << 20  # a manifest has a few thousand bytes, a shard's record a million

_KEY_BYTES = 32

T = TypeVar("T")


class DocumentError(ValueError):
    """JSON that is damaged or not what it should be; callers say which file, and what to do."""


def home() -> Path:
    """Return the root of everything that trunkline keeps: TRUNKLINE_HOME, or the user's cache.

    Containers run as users without a home folder, or with one that cannot be written. What is kept
    then goes into a folder of this user's among the temporary files, which is said once.

    Raises:
        ConfigError: TRUNKLINE_HOME is in the home folder of somebody that nobody knows.
    """
    if named := os.environ.get(HOME):
        return expanded(named)
    try:
        usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "trunkline"
    except RuntimeError as error:
        return _home_elsewhere(f"this user has no home folder ({error})")
    there = next(one for one in (usual, *usual.parents) if one.exists() or one == one.parent)
    # A folder that is there may be read, with what somebody put into it.
    if there != usual and not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        return _home_elsewhere(f"{usual} cannot be made")
    return usual


@cache
def _home_elsewhere(why: str) -> Path:
    """Return a folder that only this user can write to, for as long as temporary files live."""
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    folder = Path(tempfile.gettempdir(), f"trunkline-{user}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        held = folder.lstat()
        if not stat.S_ISDIR(held.st_mode) or held.st_mode & 0o022 or held.st_uid != user:
            raise OSError("it is somebody else's")
    except OSError:  # others may write among temporary files: theirs is not ours
        folder = Path(tempfile.mkdtemp(prefix="trunkline-"))
    _log.warning(
        "%s: what is to be kept, such as downloaded weights, goes to %s; set %s to a folder that "
        "stays.",
        why,
        folder,
        HOME,
    )
    return folder


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path with the home folder written out that it may begin with.

    Raises:
        ConfigError: Nobody knows that home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"nobody knows where {os.fspath(path)!r} is ({error}); write the whole path."
        ) from error


def absolute(path: str | os.PathLike[str]) -> Path:
    """Return a path from the root on; a relative one is that of the working directory.

    Raises:
        ConfigError: The working directory was removed.
    """
    try:
        return Path(path).absolute()
    except FileNotFoundError as error:
        raise ConfigError(
            f"the working directory was removed, so that {os.fspath(path)} cannot be found; change "
            "to another one."
        ) from error


def read_document(path: Path, kind: type[T], *, max_bytes: int = DOCUMENT_BYTES) -> T:
    """Read a JSON file into a dataclass.

    Args:
        path: A regular file; anything else (a pipe would wait for ever) is refused.
        kind: See ``parse_document``.
        max_bytes: Larger files are refused unread.

    Raises:
        DocumentError: It is too large, no regular file, or what ``parse_document`` refuses.
        OSError: It cannot be read.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise DocumentError("it is no regular file")
    if found.st_size > max_bytes:
        raise DocumentError(f"it has {found.st_size} bytes, and {max_bytes} is the most")
    return parse_document(path.read_bytes(), kind)


def parse_document(content: bytes | str, kind: type[T]) -> T:
    """Read JSON into a dataclass, whose annotations are the schema.

    Args:
        content: UTF-8.
        kind: A dataclass, or any type that msgspec knows. Integers are no booleans, lists become
            the tuples that are annotated, ``Annotated[int, msgspec.Meta(ge=1)]`` bounds a number,
            fields that it does not have are passed over.

    Returns:
        The value, checked to the last field that is annotated.

    Raises:
        DocumentError: The text is no JSON, is nested too deeply, or something in it is missing or
            of another kind. The text of the error is one clause and says where.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.MsgspecError as error:
        raise DocumentError(str(error)) from error
    except RecursionError as error:
        raise DocumentError("it is nested too deeply") from error
    except ValueError as error:  # text that is no UTF-8; what __post_init__ of a dataclass refuses
        raise DocumentError(str(error)) from error


def sign(kind: str, text: str) -> str | None:
    """Return what proves later that this user wrote ``text`` on this machine.

    Args:
        kind: What the text is, so that a signature serves for nothing else.
        text: Such as the digest of a manifest.

    Returns:
        An HMAC-SHA256 with the key in ``home()``, which is made when it is first needed; None
        where no key can be kept.
    """
    key = _key(create=True)
    return None if isinstance(key, str) else _hmac(key, kind, text)


def why_untrusted(kind: str, text: str, signature: Any) -> str | None:
    """Say why a text cannot be told to be this user's and this machine's; None where it can.

    Args:
        kind: As given to ``sign``.
        text: That was signed.
        signature: What ``sign`` returned, as it was read from somebody's file.

    Returns:
        A clause for an error.
    """
    if not isinstance(signature, str):
        return "it carries no signature of the machine that wrote it"
    key = _key(create=False)
    if isinstance(key, str):
        return key
    expected = _hmac(key, kind, text)
    if not hmac.compare_digest(expected.encode(), signature.encode()):
        return "it was written on another machine, by another user, or changed since"
    return None


def _hmac(key: bytes, kind: str, text: str) -> str:
    return hmac.new(key, f"{kind}\0{text}".encode(), hashlib.sha256).hexdigest()


def _key(*, create: bool) -> bytes | str:
    """Return this user's key on this machine, or a clause that says why there is none."""
    try:
        path = home() / "key"
    except ConfigError:
        return f"this user has no home folder to keep a key in (set {HOME})"
    try:
        if create and not path.exists():
            _make_key(path)
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            key = file.read(_KEY_BYTES + 1)
    except FileNotFoundError:
        return "this machine has no key yet: nothing that it wrote is known"
    except OSError as error:
        return f"the key {path} cannot be used ({error.strerror or error})"
    if os.name != "nt" and (found.st_mode & 0o077 or found.st_uid != os.geteuid()):
        return f"the key {path} is not this user's alone (chmod 600 it, or remove it)"
    if len(key) != _KEY_BYTES:
        return f"the key {path} is damaged (remove it, and a new one is made)"
    return key


def _make_key(path: Path) -> None:
    """Write a new key whole; of two processes the first one's counts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f".key-{secrets.token_hex(8)}")
    try:
        descriptor = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
        with suppress(FileExistsError):
            os.link(written, path)
    finally:
        with suppress(FileNotFoundError):
            written.unlink()
