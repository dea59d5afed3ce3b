"""Archives that two readers may read as two checkpoints, made from a sound one in every way."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trunkline.errors import CheckpointError
from trunkline.weights.checkpoint import read_checkpoint

END, LOCATOR, RECORD = b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06"
LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"


def checkpoint(value: float = 1.0) -> bytes:
    """What torch writes: sizes behind the members, padding in front, a record of large archives."""
    file = io.BytesIO()
    torch.save({"weight": torch.full((4,), value), "bias": torch.zeros(2)}, file)
    return file.getvalue()


def rewritten(data: bytes) -> bytes:
    """The same from another writer: sizes in front, no record of large archives."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    return file.getvalue()


def shifted(data: bytes, at: int, by: int) -> bytearray:
    """Correct all offsets of an archive behind ``at``, into which ``by`` bytes are to come."""
    changed = bytearray(data)
    place = data.find(CENTRAL)
    while place >= 0:
        (offset,) = struct.unpack_from("<I", changed, place + 42)
        if offset >= at:
            struct.pack_into("<I", changed, place + 42, offset + by)
        place = data.find(CENTRAL, place + 4)
    (start,) = struct.unpack_from("<I", changed, len(data) - 6)
    struct.pack_into("<I", changed, len(data) - 6, start + by)
    return changed


def inserted(data: bytes, at: int, extra: bytes) -> bytes:
    changed = shifted(data, at, len(extra))
    changed[at:at] = extra
    return bytes(changed)


def patched(data: bytes, at: int, form: str, value: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, at, value)
    return bytes(changed)


def second_local(data: bytes) -> int:
    return data.index(LOCAL, 4)


# From what torch wrote, and from the same of another writer.
CASES: dict[str, tuple[Callable[[bytes, bytes], bytes], str]] = {
    "a byte behind": (lambda t, _: t + b"\0", "bytes follow its end"),
    "an end behind": (lambda _, z: z + z[-22:], "its directory does not end where its end begins"),
    "much behind": (lambda _, z: z + bytes(60_000), "bytes follow its end"),
    "far too much behind": (lambda _, z: z + bytes(200_000), "damaged zip archive, or one that is"),
    "a comment": (lambda _, z: z[:-2] + b"\x04\0note", "bytes follow its end"),
    "another checkpoint behind": (
        lambda t, _: t + checkpoint(2.0),
        "its two ends do not stand side by side",
    ),
    "another archive behind": (
        lambda _, z: z + rewritten(checkpoint(2.0)),
        "its directory does not end where its end begins",
    ),
    "another archive in front": (
        lambda _, z: inserted(z, 0, rewritten(checkpoint(2.0))),
        "'archive/data.pkl' does not begin where the member before it ends",
    ),
    "a hidden member": (
        lambda _, z: inserted(z, second_local(z), z[: second_local(z)]),
        "does not begin where the member before it ends",
    ),
    "a byte between": (
        lambda _, z: inserted(z, second_local(z), b"\0"),
        "does not begin where the member before it ends",
    ),
    "a member before the directory": (
        lambda _, z: inserted(z, z.index(CENTRAL), z[: second_local(z)]),
        "its directory does not begin where the last member ends",
    ),
    "another name in front": (
        lambda _, z: z[:30] + z[30:46].replace(b"data.pkl", b"evil.pkl") + z[46:],
        "'archive/data.pkl' is something else to who reads it from the beginning",
    ),
    "another size in front": (
        lambda _, z: patched(z, 18, "<I", 3),
        "is something else to who reads it from the beginning",
    ),
    "two members in one place": (
        lambda _, z: patched(z, z.index(CENTRAL, z.index(CENTRAL) + 4) + 42, "<I", 0),
        "does not begin where the member before it ends",
    ),
    "two sizes of the directory": (
        lambda t, _: patched(t, len(t) - 10, "<I", 46),
        "its two ends differ",
    ),
    "two counts": (lambda t, _: patched(t, len(t) - 12, "<H", 1), "its two ends differ"),
    "no record": (lambda t, _: t.replace(RECORD, b"PK\x06\x00"), "its two ends differ"),
    "a record elsewhere": (
        lambda t, _: patched(t, t.index(LOCATOR) + 8, "<Q", 5),
        "its two ends do not stand side by side",
    ),
    "an endless directory": (
        lambda _, z: patched(z, len(z) - 10, "<I", 7 << 20),
        "an archive with a directory of 7340032 bytes, and 40000 members are the most",
    ),
    "a directory that starts elsewhere": (
        lambda _, z: patched(z, len(z) - 6, "<I", 1),
        "its directory does not end where its end begins",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_archive_that_two_readers_read_differently_is_refused(tmp_path: Path, case: str) -> None:
    change, message = CASES[case]
    sound = checkpoint()
    path = tmp_path / "model.pth"
    for same in (sound, rewritten(sound)):
        path.write_bytes(same)
        assert read_checkpoint(path).tensors["weight"].tolist() == [1, 1, 1, 1]
    path.write_bytes(change(sound, rewritten(sound)))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def test_the_order_of_a_directory_does_not_matter(tmp_path: Path) -> None:
    data = rewritten(checkpoint())
    start = data.index(CENTRAL)
    rows = [CENTRAL + row for row in data[start:-22].split(CENTRAL)[1:]]
    path = tmp_path / "model.pth"
    path.write_bytes(data[:start] + b"".join(reversed(rows)) + data[-22:])
    assert read_checkpoint(path).tensors["weight"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("writer", ["torch", "zipfile"])
def test_whatever_byte_of_a_directory_changes_the_numbers_stay_or_it_is_refused(
    tmp_path: Path, writer: str
) -> None:
    data = checkpoint() if writer == "torch" else rewritten(checkpoint())
    path = tmp_path / "model.pth"
    refused = 0
    for at in range(data.index(CENTRAL), len(data)):
        for bit in (0, 6):
            path.write_bytes(patched(data, at, "B", data[at] ^ 1 << bit))
            try:
                tensors = read_checkpoint(path).tensors
            except CheckpointError:
                refused += 1
                continue
            assert tensors["weight"].tolist() == [1, 1, 1, 1], (at, bit)
            assert tensors["bias"].tolist() == [0, 0], (at, bit)
    assert refused > 300


def test_an_archive_of_endlessly_many_members_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pth"
    monkeypatch.setattr("trunkline.weights.reading.archives.MAX_MEMBERS", 3)
    path.write_bytes(checkpoint())
    with pytest.raises(CheckpointError, match=r"an archive with \d members, and 3 members are the"):
        read_checkpoint(path)
