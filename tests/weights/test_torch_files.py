"""Archives and legacy files of torch that are damaged, claim too much, or are bombs."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import Tensors, assert_same, save_legacy

from trunkline.errors import CheckpointError
from trunkline.weights.checkpoint import read_checkpoint


def _rewritten(path: Path, **options: Any) -> None:
    """Write an archive again with Python's zipfile."""
    with zipfile.ZipFile(path) as file:
        members = {info.filename: file.read(info) for info in file.infolist()}
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, content in members.items():
            file.writestr(name, content)


def test_an_archive_from_another_writer(tmp_path: Path, state: Tensors) -> None:
    path = tmp_path / "model.pth"
    torch.save(state, path)
    _rewritten(path)
    assert_same(read_checkpoint(path), state)


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    torch.save({"weight": torch.zeros(10**6)}, path)
    _rewritten(path, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 20_000
    with pytest.raises(CheckpointError, match=r"compressed archive .* Zip it again, uncompressed"):
        read_checkpoint(path)


def _patched(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) >= 1
    path.write_bytes(content.replace(old, new))


def test_a_flipped_bit_in_a_tensor_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    values = torch.arange(1000.0)
    torch.save({"weight": values}, path)
    _patched(path, values.numpy().tobytes(), (values + 1).numpy().tobytes())
    with pytest.raises(CheckpointError, match="checksum of a tensor does not match"):
        read_checkpoint(path)


def test_a_flipped_bit_in_the_pickle_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"weight": torch.ones(3)}, path)
    _patched(path, b"\x06\x00\x00\x00weight", b"\x06\x00\x00\x00wEight")
    with pytest.raises(CheckpointError, match="a checksum does not match"):
        read_checkpoint(path)


def test_files_without_checksums_are_read(tmp_path: Path, state: Tensors) -> None:
    path = tmp_path / "model.pth"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_checkpoint(path), state)


def _archive(path: Path, pickled: bytes, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", pickled)
        for name, content in members.items():
            file.writestr(f"a/{name.replace('__', '/')}", content)


def _tensor_pickle(count: int, shape: int, stride: int, offset: int = 0, key: str = "0") -> bytes:
    def number(value: int) -> bytes:
        return b"\x8a\x08" + struct.pack("<q", value)

    return (
        b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"
        b"ctorch\nFloatStorage\nX\x01\x00\x00\x00" + key.encode() + b"X\x03\x00\x00\x00cpu"
        + number(count) + b"tQ" + number(offset) + number(shape) + b"\x85" + number(stride)
        + b"\x85\x89ccollections\nOrderedDict\n)RtRs."
    )  # fmt: skip


@pytest.mark.parametrize(
    ("pickled", "match"),
    [
        (_tensor_pickle(10**12, 10**12, 1), "claims 1000000000000 elements of torch.float32 in 16"),
        (_tensor_pickle(2**62, 4, 1), "refers to a storage in an unknown way"),
        (_tensor_pickle(-1, 4, 1), "refers to a storage in an unknown way"),
        (_tensor_pickle(4, 10**12, 1), "shape .1000000000000,. claims more than the 4 elements"),
        (_tensor_pickle(4, 10**12, 0), "claims more than the 4 elements"),
        (_tensor_pickle(4, 4, 2), "claims more than the 4 elements"),
        (_tensor_pickle(4, 4, 1, offset=1), "claims more than the 4 elements"),
        (_tensor_pickle(4, 4, 1, offset=-1), "shape of a tensor makes no sense"),
        (_tensor_pickle(4, 4, -1), "shape of a tensor makes no sense"),
        (_tensor_pickle(4, -4, 1), "shape of a tensor makes no sense"),
        (_tensor_pickle(4, 2**60, 1), "shape of a tensor makes no sense"),
        (_tensor_pickle(4, 4, 1, key="1"), "storage '1' is missing"),
    ],
)
def test_tensors_that_claim_what_is_not_there(tmp_path: Path, pickled: bytes, match: str) -> None:
    path = tmp_path / "model.pth"
    _archive(path, _tensor_pickle(4, 4, 1), data__0=b"\0" * 16)
    assert read_checkpoint(path).tensors["a"].tolist() == [0, 0, 0, 0]
    _archive(path, pickled, data__0=b"\0" * 16)
    with pytest.raises(CheckpointError, match=match):
        read_checkpoint(path)


def test_other_damage_to_archives(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    good = _tensor_pickle(4, 4, 1)
    _archive(path, good, data__0=b"\0" * 16, byteorder=b"big")
    with pytest.raises(CheckpointError, match="big-endian machine"):
        read_checkpoint(path)
    _archive(path, good.replace(b"storage", b"m\0dules"), data__0=b"\0" * 16)
    with pytest.raises(CheckpointError, match="refers to something that is no storage"):
        read_checkpoint(path)
    _archive(path, good.replace(b"FloatStorage", b"float32"), data__0=b"\0" * 16)
    with pytest.raises(CheckpointError, match="kept in something that is no storage"):
        read_checkpoint(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", good)
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("a/data.pkl", good)
    with pytest.raises(CheckpointError, match="a part of its archive is there twice"):
        read_checkpoint(path)


def test_damage_to_legacy_files(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    values = torch.arange(100.0)
    save_legacy({"weight": values}, path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0\0")
    with pytest.raises(CheckpointError, match="2 bytes follow its end"):
        read_checkpoint(path)
    path.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=r"is cut off: \d+ bytes or more belong to it"):
        read_checkpoint(path)
    path.write_bytes(
        whole.replace(struct.pack("<q", 100) + b"\0\0", struct.pack("<q", 99) + b"\0\0")
    )
    with pytest.raises(CheckpointError, match="has another length"):
        read_checkpoint(path)


def test_storages_that_a_legacy_file_does_not_list(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    save_legacy({"weight": torch.arange(4.0)}, path)
    whole = path.read_bytes()
    keys = whole.rindex(b"\x80\x02]")
    for listed in ([1], ["nothing"], ["nothing"] * 2):
        path.write_bytes(whole[:keys] + pickle.dumps(listed, protocol=2) + whole[-24:])
        with pytest.raises(CheckpointError, match="its list of storages makes no sense"):
            read_checkpoint(path)
    path.write_bytes(whole[:keys] + pickle.dumps([], protocol=2))
    with pytest.raises(CheckpointError, match="the numbers of a tensor are not in it"):
        read_checkpoint(path)


def test_a_legacy_storage_larger_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    save_legacy({"weight": torch.arange(100.0)}, path)
    whole = path.read_bytes()
    assert whole.count(b"K\x64N") == 1  # the number of elements, and no view
    huge = b"\x8a\x06" + (10**12).to_bytes(6, "little") + b"N"
    path.write_bytes(whole.replace(b"K\x64N", huge))
    with pytest.raises(CheckpointError, match=r"claims 1000000000000 elements of torch\.float32"):
        read_checkpoint(path)


def test_a_member_that_lies_outside_the_archive(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    _archive(path, _tensor_pickle(4, 4, 1), data__0=b"\0" * 16)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x03\x04", 4)] = 0  # the header in front of data/0
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="'a/data/0' of its archive lies outside it"):
        read_checkpoint(path)


def test_an_encrypted_archive(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    _archive(path, _tensor_pickle(4, 4, 1), data__0=b"\0" * 16)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is encrypted \('a/data\.pkl'\)\. Decrypt it"):
        read_checkpoint(path)
