"""The two formats of ``torch.save``: a zip archive, and before PyTorch 1.6 a row of pickles.

Both hold one pickle that describes tensors, and the storages that it refers to. The pickle goes
through ``unpickling``, the storages stay in the mapped file. The rules of
``torch.load(weights_only=True)`` hold here and some more: no tensor subclasses, sparse or quantized
tensors; no compressed archive members, which ``torch.save`` never writes and which can grow a
thousandfold; nothing after the end; checksums are compared.

Source: ``torch/serialization.py`` of PyTorch 2.13, ``_save`` and ``_legacy_save``.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from trunkline.errors import CheckpointError
from trunkline.weights.reading.archives import Member, read_archive
from trunkline.weights.reading.records import Global, Storage, TypedStorage
from trunkline.weights.reading.unpickling import Unpickler
from trunkline.weights.reading.vocabulary import storage_dtype

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


def read_zip(data: memoryview) -> object:
    """Read what ``torch.save`` of PyTorch 1.6 or later wrote.

    Args:
        data: The whole file.

    Returns:
        What was saved, with an ``Array`` for each tensor.

    Raises:
        UnsafeCheckpointError: The pickle asks for more than arrays and plain containers.
        CheckpointError: It is damaged, compressed, or another kind of archive.
    """
    members = read_archive(data)
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"is a zip archive, but no checkpoint: {_kind(members)}.")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in members:
        raise CheckpointError(
            "is a TorchScript program, not a checkpoint. Where it can be trusted, load it with "
            "torch.jit.load and save its state_dict() with safetensors."
        )
    order = members.get(f"{folder}byteorder")
    if order is not None and bytes(order.content()) != b"little":
        raise CheckpointError("was saved on a big-endian machine. Save it again on another one.")
    described = members[pickles[0]].content()
    if members[pickles[0]].crc not in (None, zlib.crc32(described)):
        raise CheckpointError("is damaged: a checksum does not match. Download it again.")
    return Unpickler(described).load(_Members(members, folder))


def read_legacy(data: memoryview, position: int) -> object:
    """Read what ``torch.save`` wrote before PyTorch 1.6.

    Args:
        data: The whole file.
        position: Behind the first pickle, which is ``LEGACY_MAGIC``.

    Returns:
        What was saved, with an ``Array`` for each tensor.

    Raises:
        UnsafeCheckpointError: A pickle asks for more than arrays and plain containers.
        CheckpointError: It is damaged or of an unknown version.
    """
    return _read_row(data, Unpickler(data, position))


def read_storage(data: memoryview) -> object:
    """Read the file that ``pickle.dump`` makes of a tensor's storage within its own.

    Args:
        data: All of that file.

    Raises:
        CheckpointError: It is damaged, or none.
    """
    unpickler = Unpickler(data, nested=True)
    if unpickler.load() != LEGACY_MAGIC:
        raise CheckpointError("is damaged: it has bytes for a storage that are none.")
    return _read_row(data, unpickler)


def _read_row(data: memoryview, unpickler: Unpickler) -> object:
    storages = _Row(data)
    if unpickler.load() != _LEGACY_PROTOCOL:
        raise CheckpointError("is of an unknown version of torch's old format.")
    system = unpickler.load()
    if type(system) is not dict or system.get("little_endian") is not True:
        raise CheckpointError("was saved on a big-endian machine. Save it again on another one.")
    described = unpickler.load(storages)
    keys = unpickler.load()
    storages.place(unpickler.position, keys)
    return described


class _Members:
    """Finds the storages that a pickle refers to among the members of an archive."""

    def __init__(self, members: Mapping[str, Member], folder: str) -> None:
        self._members, self._folder = members, folder
        self._found: dict[str, Storage] = {}

    def __call__(self, identity: object) -> object:
        if (module := _module(identity)) is not None:
            return module
        kind, key, count, _ = _identity(identity)
        dtype = storage_dtype(kind)
        if key not in self._found:
            member = self._members.get(f"{self._folder}data/{key}")
            if member is None:
                raise CheckpointError(f"is damaged: its storage {key[:80]!r} is missing.")
            content = member.content()
            self._found[key] = Storage(content.nbytes, content, crc=member.crc)
        held = self._found[key]
        if count * dtype.itemsize > held.nbytes:
            raise CheckpointError(
                f"is damaged: storage {key[:80]!r} claims {count} elements of {dtype} in "
                f"{held.nbytes} bytes."
            )
        return TypedStorage(held, dtype)


class _Row:
    """Notes the storages that a legacy pickle refers to; their bytes come behind it."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._noted: dict[str, tuple[Storage, int]] = {}  # and how wide its elements are

    def __call__(self, identity: object) -> object:
        if (module := _module(identity)) is not None:
            return module
        kind, key, count, view = _identity(identity)
        dtype = storage_dtype(kind)
        nbytes = count * dtype.itemsize
        held, _ = self._noted.setdefault(key, (Storage(nbytes), dtype.itemsize))
        if held.nbytes != nbytes or nbytes > self._data.nbytes:
            raise CheckpointError(
                f"is damaged: storage {key[:80]!r} claims {count} elements of {dtype}."
            )
        return TypedStorage(_view(held, dtype.itemsize, view), dtype)

    def place(self, position: int, keys: object) -> None:
        """Say where the bytes of each storage lie: one after another, each behind its length."""
        data = self._data
        for key in keys if type(keys) is list else ():
            held, width = self._noted.get(key, (None, 0)) if type(key) is str else (None, 0)
            if held is None or held.memory is not None:
                raise CheckpointError("is damaged: its list of storages makes no sense.")
            end = position + 8 + held.nbytes
            if end > data.nbytes:
                raise CheckpointError(
                    f"is cut off: {end} bytes or more belong to it, {data.nbytes} are there. "
                    "Download it again."
                )
            if int.from_bytes(data[position : position + 8], "little") * width != held.nbytes:
                raise CheckpointError(f"is damaged: storage {key[:80]!r} has another length.")
            held.memory = data[position + 8 : end]
            position = end
        if position != data.nbytes:
            raise CheckpointError(
                f"is damaged: {data.nbytes - position} bytes follow its end. Download it again."
            )


def _identity(identity: object) -> tuple[object, str, int, object]:
    """Take apart how a pickle refers to a storage; where that was (CPU, GPU) does not matter."""
    if type(identity) is not tuple or len(identity) not in (5, 6):
        raise CheckpointError("is damaged: it refers to a storage in an unknown way.")
    tag, kind, key, _, count = identity[:5]
    if tag != "storage":
        raise CheckpointError("is damaged: it refers to something that is no storage.")
    if type(key) is not str or type(count) is not int or not 0 <= count < 2**48:
        raise CheckpointError("is damaged: it refers to a storage in an unknown way.")
    return kind, key, count, identity[5] if len(identity) == 6 else None


def _module(identity: object) -> Global | None:
    """Return the class that a whole module's pickle refers to, with its source beside it."""
    if type(identity) is not tuple or len(identity) != 4 or identity[0] != "module":
        return None
    return identity[1] if type(identity[1]) is Global else None


def _view(held: Storage, width: int, metadata: object) -> Storage:
    """Cut a storage out of another one, as PyTorch before 0.4 saved them."""
    if metadata is None:
        return held
    _, offset, count = metadata if type(metadata) is tuple else (None, -1, -1)
    if type(offset) is not int or type(count) is not int or offset < 0 or count < 0:
        raise ValueError("no view of a storage")
    if (offset + count) * width > held.nbytes:
        raise CheckpointError("is damaged: a part of a storage lies outside it.")
    return Storage(count * width, parent=held, start=offset * width)


def _kind(members: Mapping[str, Member]) -> str:
    if not members:
        return "it is empty"
    if all(name.endswith(".npy") for name in members):
        return (
            "it holds numpy's .npy files. Read it with numpy.load(allow_pickle=False) and save "
            "it with safetensors.numpy.save_file"
        )
    shown = ", ".join(repr(name[:80]) for name in sorted(members)[:5])
    return f"it has no NAME/data.pkl among its {len(members)} members ({shown})"
