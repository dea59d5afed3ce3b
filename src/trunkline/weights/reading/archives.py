"""The zip archive around a checkpoint: which members it has, and where their bytes lie.

Two readers of one archive must see the same checkpoint. But an archive can be read by the directory
at its end, or from its beginning, member by member; and what stands before, between or behind its
parts belongs to nobody, a second directory for instance. So everything has to add up here: one
directory at the very end, members that follow one another from the first byte on, each called what
the directory calls it. That bounds the work too: no byte belongs to two members.

Source: PKWARE's APPNOTE.TXT 6.3.10, sections 4.3.6 to 4.3.16.
"""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass

from trunkline.errors import CheckpointError

MAX_MEMBERS = 40_000  # one a tensor: a large network with its optimizer has some thousand
_MAX_DIRECTORY_BYTES = 6 << 20

_LOCAL = struct.Struct("<4s2xH10xI4xHH")  # signature, flags, size, bytes of name and extra field
_END = struct.Struct("<4s4xHHIIH")  # signature, members (twice), directory: bytes, start; comment
_LOCATOR = struct.Struct("<4s4xQ4x")  # in a large archive: where its record is
_RECORD = struct.Struct("<4s20xQQQQ")  # of a large archive: as in the end, without a comment
_UNKNOWN = {16: 0xFFFF, 32: 0xFFFFFFFF}  # what a field of so many bits holds in a large archive
_DESCRIPTORS = (0, 12, 16, 20, 24)  # bytes behind a member whose size came after it
_SIZE_COMES_LATER, _UTF_8, _ENCRYPTED = 0x8, 0x800, 0x1
_FAULTS = (  # what zipfile raises for a damaged archive
    zipfile.BadZipFile,
    NotImplementedError,  # a compression or a version that it does not know
    ValueError,
    struct.error,
    OverflowError,
    EOFError,
    OSError,
)


@dataclass(frozen=True)
class Member:
    """One file in an archive.

    Attributes:
        memory: Its bytes as they lie in the archive.
        info: What the directory says of it.
    """

    memory: memoryview
    info: zipfile.ZipInfo

    @property
    def crc(self) -> int | None:
        """The checksum; None where the writer computed none, as torch may be told."""
        return self.info.CRC or None

    def content(self) -> memoryview:
        """Return its bytes.

        Raises:
            CheckpointError: They are compressed or encrypted.
        """
        info = self.info
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise CheckpointError(
                f"is a compressed archive ({_shown(info)}: {info.compress_size} bytes for "
                f"{info.file_size}), which torch.save never writes. Zip it again, uncompressed."
            )
        if info.flag_bits & _ENCRYPTED:
            raise CheckpointError(f"is encrypted ({_shown(info)}). Decrypt it first.")
        return self.memory


def read_archive(data: memoryview) -> dict[str, Member]:
    """Return the members of an archive by name.

    Args:
        data: The whole file.

    Raises:
        CheckpointError: It is cut off or damaged, holds bytes that are no part of it, or far too
            many members.
    """
    directory = _directory(data)
    members: dict[str, Member] = {}
    position = 0
    for info in sorted(_listed(data), key=lambda one: one.header_offset):
        if info.header_offset - position not in _DESCRIPTORS:
            raise _loose(f"{_shown(info)} does not begin where the member before it ends")
        start = info.header_offset + _header_bytes(data, info)
        position = start + info.compress_size
        if position > directory:
            raise CheckpointError(f"is damaged: {_shown(info)} of its archive lies outside it.")
        if info.filename in members:
            raise CheckpointError("is damaged: a part of its archive is there twice.")
        members[info.filename] = Member(data[start:position], info)
    if directory - position not in _DESCRIPTORS:
        raise _loose("its directory does not begin where the last member ends")
    return members


def _directory(data: memoryview) -> int:
    """Return where the directory begins, which must end where the end of the archive begins."""
    position = data.nbytes - _END.size
    if position < 0:
        raise _damaged()
    signature, *end, comment_bytes = _END.unpack(data[position:])
    if signature != b"PK\x05\x06" or comment_bytes:
        if b"PK\x05\x06" in bytes(data[-0x10000 - _END.size :]):
            raise _loose("bytes follow its end")
        raise _damaged()
    located = position - _LOCATOR.size
    if located >= 0 and bytes(data[located : located + 4]) == b"PK\x06\x07":
        _, position = _LOCATOR.unpack(data[located : located + _LOCATOR.size])
        if position + _RECORD.size != located:
            raise _loose("its two ends do not stand side by side")
        signature, *large = _RECORD.unpack(data[position : position + _RECORD.size])
        pairs = zip(end, large, (16, 16, 32, 32), strict=True)
        if signature != b"PK\x06\x06" or any(a not in (b, _UNKNOWN[bits]) for a, b, bits in pairs):
            raise _loose("its two ends differ")
        end = large
    *_, directory_bytes, start = end
    if directory_bytes > _MAX_DIRECTORY_BYTES:
        raise _too_many(f"a directory of {directory_bytes} bytes")
    if start + directory_bytes != position:
        raise _loose("its directory does not end where its end begins")
    return int(start)


def _listed(data: memoryview) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(io.BufferedReader(_Window(data))) as archive:
            found = archive.infolist()
    except _FAULTS as error:
        raise _damaged() from error
    if len(found) > MAX_MEMBERS:
        raise _too_many(f"{len(found)} members")
    return found


def _header_bytes(data: memoryview, info: zipfile.ZipInfo) -> int:
    """Return how long the header in front of a member is, which must tell what the directory does.

    torch pads it, so that tensors begin at multiples of 64 bytes.
    """
    header = bytes(data[info.header_offset : info.header_offset + _LOCAL.size])
    if len(header) < _LOCAL.size or header[:4] != b"PK\x03\x04":
        raise CheckpointError(f"is damaged: {_shown(info)} of its archive lies outside it.")
    flags, size, name_bytes, extra_bytes = _LOCAL.unpack(header)[1:]
    start = info.header_offset + _LOCAL.size
    name = bytes(data[start : start + name_bytes])
    # A size that is not in the header comes behind the content, or in the extra field.
    sized = flags & _SIZE_COMES_LATER or size in (info.compress_size, _UNKNOWN[32])
    encoding = "utf-8" if info.flag_bits & _UTF_8 else "cp437"
    if name != info.orig_filename.encode(encoding) or not sized:
        raise _loose(f"{_shown(info)} is something else to who reads it from the beginning")
    return _LOCAL.size + int(name_bytes) + int(extra_bytes)


def _shown(info: zipfile.ZipInfo) -> str:
    return repr(info.filename[:80])


def _damaged() -> CheckpointError:
    return CheckpointError("is a damaged zip archive, or one that is cut off. Download it again.")


def _loose(what: str) -> CheckpointError:
    return CheckpointError(
        f"is a zip archive that two readers may read differently: {what}. Download it again, or "
        "save it anew."
    )


def _too_many(what: str) -> CheckpointError:
    return CheckpointError(
        f"is an archive with {what}, and {MAX_MEMBERS} members are the most that are read. Save "
        "the state_dict() alone."
    )


class _Window(io.RawIOBase):
    """Memory as a file, without a copy."""

    def __init__(self, data: memoryview) -> None:
        super().__init__()
        self._data = data
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._data.nbytes}
        if base[whence] + offset < 0:
            raise ValueError("before the start")
        self._position = base[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        chunk = self._data[self._position : self._position + len(buffer)]
        buffer[: chunk.nbytes] = chunk
        self._position += chunk.nbytes
        return chunk.nbytes
