"""The members of a tar, from its headers alone: what each is called and where it lies.

The standard library reads the single header (checksum, numbers in octal and in base 256). What
follows from a chain of them is decided here, because files of strangers lie: every step goes
forward, names and attributes have a bound, and a size that cannot be is seen before it is used.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from trunkline.errors import SourceError

HEADER_BYTES = 1 << 20
"""Largest sum of what one member may have in front of it: long names, times, attributes."""

_BLOCK_BYTES = 512
_LARGEST = 1 << 62  # what is larger is written as this: 64 bits hold it, and no file has it
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENDED = (*_PAX, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_WITHOUT_DATA = (
    *(tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE),
    *(tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE),
)
_NUMBER = re.compile(r"-?[0-9]+")
_LENGTH_DIGITS = 8  # of a pax record; no header is longer than seven digits say


class Member(NamedTuple):
    """A regular file in a tar.

    Attributes:
        name: As the tar has it; bytes that are not UTF-8 are lone surrogates.
        start: Its first byte.
        size: Its bytes; ``is_possible`` says whether the tar can hold so many.
    """

    name: str
    start: int
    size: int


def is_possible(size: int, tar_bytes: int) -> bool:
    """Say whether a tar of so many bytes can hold a member of so many; a cut one can be short."""
    return 0 <= size <= tar_bytes


def next_header(member: Member) -> int:
    """Return where the header behind a member begins."""
    return member.start + -(-member.size // _BLOCK_BYTES) * _BLOCK_BYTES


def length_of(file: BinaryIO) -> int:
    """Return how many bytes a file has."""
    size = getattr(file, "size", None)  # files behind URLs and in archives know it
    return size if isinstance(size, int) else file.seek(0, 2)


def members(file: BinaryIO, path: str, offset: int = 0) -> Iterator[Member]:
    """Yield the regular files in a tar.

    Args:
        file: Of the tar; can seek.
        path: What errors call it.
        offset: Where a header begins.

    Yields:
        In their order. One whose size is not ``is_possible``, whatever it is, comes last: what is
        behind it cannot be found.

    Raises:
        SourceError: The tar is compressed, damaged, cut short, or has a member in several pieces.
    """
    length = length_of(file)
    if offset == 0:
        _check_beginning(file, path)
    while (found := _Headers(file, path, length, offset).read()) is not None:
        member, is_regular, offset = found
        if is_regular or not is_possible(member.size, length):
            yield member
        if not is_possible(member.size, length):
            return


def _check_beginning(file: BinaryIO, path: str) -> None:
    file.seek(0)
    beginning = file.read(6)
    if not beginning:
        raise SourceError(f"{path} is an empty file; copy or download it again.")
    if beginning.startswith(_COMPRESSED):
        raise SourceError(
            f"{path} is compressed, and its members cannot be read one by one; "
            "decompress it into a plain .tar."
        )


class _Headers:
    """The headers of one member: its own, and what stands before it to say more."""

    def __init__(self, file: BinaryIO, path: str, length: int, offset: int) -> None:
        self._file, self._path, self._length = file, path, length
        self._offset = offset
        self._room = HEADER_BYTES
        self._said: dict[str, str] = {}
        self._must_follow = False  # a member, because something was said of it

    def read(self) -> tuple[Member, bool, int] | None:
        """Return the member, whether it is a regular file, and where the next one's headers begin.

        None at the end of the tar.
        """
        while (info := self._header()) is not None:
            data = self._offset + _BLOCK_BYTES
            if info.type not in _EXTENDED:
                return self._member(info, data)
            if not is_possible(info.size, self._length):
                return Member(f"byte {self._offset}", data, _bounded(info.size)), False, data
            self._extend(info, data)
        return None

    def _header(self) -> tarfile.TarInfo | None:
        self._file.seek(self._offset)
        block = self._file.read(_BLOCK_BYTES)
        if not block.strip(b"\0") and not self._must_follow:
            return None
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            raise self._damaged("there is no header of a member") from error

    def _member(self, info: tarfile.TarInfo, data: int) -> tuple[Member, bool, int]:
        name = self._said.get("path", info.name)
        if info.type == tarfile.GNUTYPE_SPARSE or any(
            key.startswith("GNU.sparse.") for key in self._said
        ):
            raise SourceError(
                f"{self._path} stores {name} as a sparse file, which is not in one piece; "
                "pack it again without --sparse."
            )
        if info.type in _WITHOUT_DATA:
            return Member(name, data, 0), False, data
        member = Member(name, data, _bounded(self._size(info)))
        if is_possible(member.size, self._length) and data + member.size > self._length:
            raise SourceError(
                f"{self._path} is cut short: {name} has {member.size} bytes from byte {data} on, "
                f"and the tar ends at byte {self._length}. Copy or download it again."
            )
        return member, info.isreg(), next_header(member)

    def _size(self, info: tarfile.TarInfo) -> int:
        said = self._said.get("size")
        if said is None:
            return info.size
        if not _NUMBER.fullmatch(said):
            raise self._damaged(f"a member has the size {said!r}")
        return int(said) if len(said) < 20 else _LARGEST  # no file has more digits

    def _extend(self, info: tarfile.TarInfo, data: int) -> None:
        """Take in what a header says of the member behind it."""
        self._room -= _BLOCK_BYTES + info.size
        if self._room < 0:
            raise SourceError(
                f"{self._path} has more than {HEADER_BYTES} bytes of names and attributes before "
                f"one member, at byte {self._offset}; pack it again without them."
            )
        content = self._file.read(info.size)
        if len(content) < info.size:
            raise self._damaged("the file ends within a name")
        if info.type in _PAX:
            self._said |= self._records(content)
        elif info.type == tarfile.GNUTYPE_LONGNAME:
            self._said["path"] = _text(content.partition(b"\0")[0])
        self._must_follow = info.type != tarfile.XGLTYPE  # which speaks of all members
        self._offset = next_header(Member("", data, info.size))

    def _records(self, content: bytes) -> dict[str, str]:
        """Read ``<length> <key>=<value>`` lines; the length is that of the whole line."""
        said, place = {}, 0
        while content[place : place + 1].strip(b"\0"):
            digits = content[place : place + _LENGTH_DIGITS].partition(b" ")[0]
            length = int(digits) if digits.isdigit() else 0
            record = content[place : place + length]
            key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
            if not (equals and record.endswith(b"\n") and len(record) == length):
                raise self._damaged("what is said of a member cannot be read")
            said[_text(key)] = _text(value)
            place += length
        return said

    def _damaged(self, why: str) -> SourceError:
        return SourceError(
            f"{self._path} is damaged at byte {self._offset}: {why}. Copy or download it again."
        )


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


def _bounded(size: int) -> int:
    return max(-_LARGEST, min(size, _LARGEST))
