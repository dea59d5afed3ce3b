"""The files inside a zip or a tar that is itself behind a URL, or in another archive.

fsspec has file systems for both. They are not for archives of strangers: they follow a tar whose
sizes lead back for ever, take a name of thousands of folders apart into gigabytes, and look through
all members once for every folder. What is here has the methods of theirs that trunkline uses.
"""

from __future__ import annotations

import io
import threading
import weakref
import zipfile
from typing import Any, BinaryIO, cast

from trunkline.errors import SourceError
from trunkline.extraction.tars import Member, is_possible, length_of, members

ARCHIVES = ("zip", "tar")

MOST_FOLDERS = 200_000
"""In one archive: a kilobyte of memory each, where a name of the archive has a few bytes for it."""

_NAME_BYTES, _NAME_DEPTH = 4096, 100  # a path of Linux has no more; folders in one another
# The library decompresses other kinds without a limit: a few bytes may become gigabytes at once.
_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_Inside = zipfile.ZipInfo | Member


class Archive:
    """The files in one archive, with a directory by folder.

    Args:
        kind: One of ``ARCHIVES``.
        file: The archive; belongs to this object from now on.
        where: What errors call it.

    Raises:
        SourceError: A tar is damaged, or a member has a name that cannot be a path.
        zipfile.BadZipFile: It is no zip.
    """

    def __init__(self, kind: str, file: BinaryIO, where: str) -> None:
        self._file, self._where = file, where
        weakref.finalize(self, file.close)  # what is opened in it keeps the archive alive
        self._lock = threading.Lock()  # a tar has one position, whoever reads
        self._zip: zipfile.ZipFile | None = None
        self._files: dict[str, dict[str, _Inside]] = {"": {}}  # folder → name → where it is
        self._folders: dict[str, set[str]] = {"": set()}
        if kind == "zip":
            self._zip = zipfile.ZipFile(file)
            for info in self._zip.infolist():
                self._add(info.filename, None if info.is_dir() else info)
        else:
            length = length_of(file)
            for member in members(file, where):
                if not is_possible(member.size, length):
                    raise SourceError(
                        f"{where} has {member.name} of {member.size} bytes by its header, which "
                        "cannot be; copy or download it again."
                    )
                self._add(member.name, member)

    def _add(self, name: str, inside: _Inside | None) -> None:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if len(name) > _NAME_BYTES or len(parts) > _NAME_DEPTH or "::" in name:
            raise SourceError(
                f"{self._where} has a member called {name}, which cannot be a path: one has at "
                f"most {_NAME_BYTES} characters and {_NAME_DEPTH} folders, and no '::', which "
                "separates archives in a URL. Pack it again with other names."
            )
        *folders, last = parts or [""]
        if inside is None and last:
            folders.append(last)
        path = ""
        for folder in folders:
            self._folders[path].add(folder)
            path = f"{path}/{folder}".lstrip("/")
            self._folders.setdefault(path, set())
            self._files.setdefault(path, {})
        if len(self._folders) > MOST_FOLDERS:
            raise SourceError(
                f"{self._where} has more than {MOST_FOLDERS} folders; pack it again with fewer."
            )
        if inside is not None:
            self._files[path][last] = inside

    def isdir(self, path: str) -> bool:
        """Say whether there is a folder of that name."""
        return _clean(path) in self._folders

    def ls(self, path: str, *, detail: bool = True) -> list[dict[str, Any]]:
        """Return what is in a folder, as fsspec does."""
        del detail  # always
        folder = _clean(path)
        if folder not in self._folders:
            raise FileNotFoundError(f"{self._where} has no folder {path!r}")
        begin = f"{folder}/" if folder else ""
        return [
            *({"name": begin + name, "type": "directory"} for name in self._folders[folder]),
            *({"name": begin + name, "type": "file"} for name in self._files[folder]),
        ]

    def invalidate_cache(self, path: str) -> None:
        """Do nothing: the directory is what an archive is opened for."""

    def open(self, path: str, mode: str = "rb") -> BinaryIO:
        """Open a file in it for reading; its ``size`` is known."""
        del mode
        folder, _, name = _clean(path).rpartition("/")
        inside = self._files.get(folder, {}).get(name)
        if inside is None:
            raise FileNotFoundError(f"{self._where} has no file {path!r}")
        if isinstance(inside, Member):
            return cast(BinaryIO, _Piece(self, self._file, inside, self._lock))
        if inside.compress_type not in _BOUNDED:
            raise OSError("a zip must be packed with deflate, or without compression")
        assert self._zip is not None  # noqa: S101 - only a zip has ZipInfo
        opened = self._zip.open(inside)
        opened.size = inside.file_size  # type: ignore[attr-defined]  # or its end must be read
        opened.archive = self  # type: ignore[attr-defined]
        return cast(BinaryIO, opened)

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        """Read a part of a file in it, or less where it ends earlier."""
        with self.open(path) as file:
            file.seek(start)
            return file.read(end - start)


class _Piece(io.RawIOBase):
    """A file in a tar, as a file of its own; several may be open."""

    def __init__(
        self, archive: Archive, file: BinaryIO, member: Member, lock: threading.Lock
    ) -> None:
        self._archive = archive
        self._file, self._member, self._lock = file, member, lock
        self.size = member.size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        begin = (0, self._position, self.size)[whence]
        self._position = max(0, begin + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        wanted = min(len(view), max(0, self.size - self._position))
        with self._lock:
            self._file.seek(self._member.start + self._position)
            content = self._file.read(wanted)
        view[: len(content)] = content
        self._position += len(content)
        return len(content)


def _clean(path: str) -> str:
    return "/".join(part for part in path.split("/") if part not in ("", "."))
