"""Whose a file is that somebody is writing: the owner's lock tells whether there still is one.

A process that writes aside into a folder has a file of its own there, ``TOKEN.owner``, which it
keeps locked for as long as it lives; the names of what it writes end with ``~TOKEN-NUMBER``. A lock
of the operating system goes away with its process, however that ends, and it means the same in
every container, where numbers of processes and names of hosts repeat. So what nobody has locked is
nobody's, and whoever comes by may remove it.

Locks reach as far as the file system lets them. What another machine wrote, or this one before it
was started, is taken for abandoned only if it also has not been touched for a day. Where there are
no locks at all, names end with ``~unlocked-TOKEN-NUMBER``, and what has them is left alone.
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import re
import secrets
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

SUFFIX = ".owner"

_FILE = re.compile(r".+~(?P<token>[0-9a-f]{16})-\d+|(?P<owner>[0-9a-f]{16})\.owner")
_FOREIGN_SECONDS = 24 * 3600.0
_FAR = 1 << 20
_TAKEN = {errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK}

_log = logging.getLogger(__name__)


@dataclass
class _Owner:
    """This process as the owner of what it writes into one folder.

    Attributes:
        token: In the names of its files.
        descriptor: Of the locked file; None where nothing can be locked.
        users: How many blocks of ``owning`` are being executed.
        named: Files so far.
        names: Of those that are not done with.
    """

    token: str
    descriptor: int | None
    users: int = 0
    named: int = 0
    names: set[str] = field(default_factory=set)


_owned: dict[Path, _Owner] = {}
_guard = threading.RLock()


@contextmanager
def owning(folder: Path) -> Iterator[None]:
    """Be the owner of what is written into a folder, until the block ends.

    Args:
        folder: Made if it is missing.

    Raises:
        OSError: It cannot be written to.
    """
    with _guard:
        owner = _owner(folder)
        owner.users += 1
    try:
        yield
    finally:
        with _guard:
            owner.users -= 1
            _give_up_if_done(folder, owner)


def owned_name(folder: Path, name: str) -> str:
    """Return a name for a file of this process, which no other file has.

    Args:
        folder: Where it will be. This process is its owner at least until ``done_with``.
        name: Of the finished file.

    Raises:
        OSError: The folder cannot be written to.
    """
    with _guard:
        owner = _owner(folder)
        owner.named += 1
        if owner.descriptor is not None:
            try:
                os.utime(_path(folder, owner.token))
            except FileNotFoundError:  # somebody has removed the folder, and made it again
                os.close(owner.descriptor)
                again = _new_owner(folder)
                owner.token, owner.descriptor = again.token, again.descriptor
        owner.names.add(given := f"{name}~{owner.token}-{owner.named}")
        return given


def done_with(path: Path) -> None:
    """Say that a file is there no more under a name from ``owned_name``; any other is passed over.

    Args:
        path: In the folder that the name was given for.
    """
    with _guard:
        owner = _owned.get(path.parent)
        if owner is not None and path.name in owner.names:
            owner.names.remove(path.name)
            _give_up_if_done(path.parent, owner)


def remove_abandoned(folder: Path, remove: Callable[[Path], None]) -> None:
    """Remove the files of owners that are gone.

    Args:
        folder: That exists.
        remove: Does it, of files and of folders.

    Raises:
        OSError: The folder cannot be listed. What cannot be removed stays, and is logged.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if match := _FILE.fullmatch(path.name):
            found[match["token"] or match["owner"]].append(path)
    for token, paths in found.items():
        owner = _path(folder, token)
        try:
            descriptor = _taken(owner)
        except OSError:  # another user's, or nothing can be locked here: leave it
            continue
        if descriptor is None:
            continue
        try:
            for path in paths:
                if path != owner:
                    remove(path)
            _remove_owner(owner, descriptor)
        except OSError as error:
            os.close(descriptor)
            _log.warning("%s has files of a run that has ended: %s", folder, error)


def _owner(folder: Path) -> _Owner:
    if folder not in _owned:
        folder.mkdir(parents=True, exist_ok=True)
        _owned[folder] = _new_owner(folder)
    return _owned[folder]


def _new_owner(folder: Path) -> _Owner:
    while True:
        token = secrets.token_hex(8)
        path = _path(folder, token)
        descriptor = _made(path)
        try:
            if _lock(descriptor):
                return _Owner(token, descriptor)
        except OSError as error:
            os.close(descriptor)
            path.unlink()
            _log.warning(
                "%s is on a file system without locks (%s): what a run leaves there when it is "
                "killed is not removed by the next one.",
                folder,
                error,
            )
            return _Owner(f"unlocked-{token}", None)
        os.close(descriptor)  # somebody saw it before it was locked, and is removing it


def _give_up_if_done(folder: Path, owner: _Owner) -> None:
    if not owner.users and not owner.names and _owned.get(folder) is owner:
        _give_up(folder)


def _give_up(folder: Path) -> None:
    owner = _owned.pop(folder)
    if owner.descriptor is not None:
        with suppress(OSError):  # gone with its folder, or a disk that cannot be written any more
            _remove_owner(_path(folder, owner.token), owner.descriptor)


@atexit.register
def _give_up_all() -> None:
    with _guard:
        for folder in list(_owned):
            _give_up(folder)


def _path(folder: Path, token: str) -> Path:
    return folder / f"{token}{SUFFIX}"


def _made(owner: Path) -> int:
    descriptor = os.open(owner, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    os.write(descriptor, _machine())
    return descriptor


def _taken(owner: Path) -> int | None:
    """Lock the file of an owner that is gone; return None if it may be at work.

    Raises:
        OSError: It cannot be opened, or nothing can be locked there.
    """
    try:
        descriptor = os.open(owner, os.O_RDWR)
    except FileNotFoundError:  # it was removed before the files that belong to it
        descriptor = _made(owner)
    try:
        if not _is_foreign(descriptor) and _lock(descriptor):
            return descriptor
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _remove_owner(owner: Path, descriptor: int) -> None:
    """Remove an owner's file before it is unlocked; Windows removes no file that is open."""
    if os.name != "nt":
        owner.unlink(missing_ok=True)
    os.close(descriptor)
    if os.name == "nt":
        owner.unlink(missing_ok=True)


def _is_foreign(descriptor: int) -> bool:
    """Say whether an owner's lock may be one that cannot be seen from here."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    is_near = os.read(descriptor, 64) == _machine()
    return not is_near and time.time() - os.fstat(descriptor).st_mtime < _FOREIGN_SECONDS


@cache
def _machine() -> bytes:
    """Return what all containers of a machine have in common, until it is started again."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    except OSError:
        return b"unknown"


def _lock(descriptor: int) -> bool:
    """Lock a file; return False if another has locked it, or removed it meanwhile.

    Raises:
        OSError: Nothing can be locked there.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, _FAR, os.SEEK_SET)  # what is locked there cannot be read
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return os.fstat(descriptor).st_nlink > 0


def _after_fork() -> None:
    """Let the child be another owner; the locks are its parent's, which has them open as well."""
    global _guard
    _guard = threading.RLock()  # a thread may hold the other that is not in the child
    for owner in _owned.values():
        if owner.descriptor is not None:
            os.close(owner.descriptor)
    _owned.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
