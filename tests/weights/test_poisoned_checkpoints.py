"""A file that asks for code is refused by every reader, and nothing of it runs."""

from __future__ import annotations

import argparse
import collections
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trunkline.errors import CheckpointError, UnsafeCheckpointError
from trunkline.weights.checkpoint import read_checkpoint
from trunkline.weights.reading.records import Global, Inert
from trunkline.weights.reading.unpickling import Unpickler


def load(data: bytes) -> Any:
    return Unpickler(memoryview(bytearray(data))).load()


# Poison: each reader, each place, each opcode. The canary is a file that the poison would create.


class Poison:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


Calls = dict[str, Callable[[Path], Poison]]
CALLS: Calls = {
    "os.system": lambda canary: Poison(os.system, f"touch {canary}"),
    "builtins.eval": lambda canary: Poison(eval, f"open({str(canary)!r}, 'w').close()"),
    "builtins.exec": lambda canary: Poison(exec, f"open({str(canary)!r}, 'w').close()"),
    "subprocess.Popen": lambda canary: Poison(subprocess.Popen, ["touch", str(canary)]),
    "builtins.open": lambda canary: Poison(open, str(canary), "w"),
    "os.mkdir": lambda canary: Poison(os.mkdir, str(canary)),
    "torch.load": lambda canary: Poison(torch.load, str(canary)),
}

PLACES: dict[str, Callable[[Any], Any]] = {
    "alone": lambda poison: poison,
    "value": lambda poison: {"weight": torch.ones(2), "more": poison},
    "list": lambda poison: {"weight": torch.ones(2), "more": [[[poison]]]},
    "ordered": lambda poison: collections.OrderedDict(weight=torch.ones(2), more=poison),
    "metadata": lambda poison: {"state_dict": {"weight": torch.ones(2)}, "meta": {"a": poison}},
    "namespace": lambda poison: {"weight": torch.ones(2), "args": argparse.Namespace(a=poison)},
}


def test_the_poison_works(canary: Path) -> None:
    payload = pickle.dumps(CALLS["os.system"](canary))
    pickle.loads(payload)  # noqa: S301 (shows that the canary would tell)
    assert canary.exists()


@pytest.mark.parametrize("writer", ["zip", "legacy", 0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("call", ["os.system", "builtins.eval"])
def test_poison_is_refused_in_every_reader(
    tmp_path: Path, canary: Path, call: str, place: str, writer: str | int
) -> None:
    path = tmp_path / "poisoned.pth"
    held = PLACES[place](CALLS[call](canary))
    if isinstance(writer, int):
        if isinstance(held, dict):
            held.pop("weight", None)
            held.pop("state_dict", None)
        path.write_bytes(pickle.dumps(held, protocol=writer))
    else:
        torch.save(held, path, _use_new_zipfile_serialization=writer == "zip")
    with pytest.raises(UnsafeCheckpointError, match=r"asks for '(posix\.system|builtins\.eval)'"):
        read_checkpoint(path)
    assert not canary.exists()


@pytest.mark.parametrize("call", CALLS)
def test_every_known_way_out_is_refused(canary: Path, call: str) -> None:
    for protocol in range(6):
        with pytest.raises(UnsafeCheckpointError, match="Nothing was run"):
            load(pickle.dumps({"a": [CALLS[call](canary)]}, protocol=protocol))
    assert not canary.exists()


def test_the_error_says_what_to_do() -> None:
    with pytest.raises(UnsafeCheckpointError, match="safetensors file, or convert it yourself"):
        load(b"cos\nsystem\n.")


def _short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


OPCODES: dict[str, bytes] = {
    "GLOBAL": b"cposix\nsystem\n(S'COMMAND'\ntR.",
    "GLOBAL of Python 2": b"c__builtin__\neval\n(S'COMMAND'\ntR.",
    "STACK_GLOBAL": b"\x80\x04" + _short("posix") + _short("system") + b"\x93.",
    "INST": b"(S'COMMAND'\niposix\nsystem\n.",
    "OBJ": b"(cposix\nsystem\nS'COMMAND'\no.",
    "NEWOBJ": b"\x80\x02csubprocess\nPopen\n(S'COMMAND'\nt\x81.",
    "NEWOBJ_EX": b"\x80\x04csubprocess\nPopen\n(S'COMMAND'\nt}\x92.",
    "BUILD with __setstate__": (
        b"\x80\x02cargparse\nNamespace\n)\x81}(X\x0c\x00\x00\x00__setstate__cos\nsystem\nubS'C'\nb."
    ),
    "BUILD of a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}b.",
    "BUILD of slots": b"\x80\x02ccollections\nOrderedDict\nN}X\x01\x00\x00\x00aNs\x86b.",
    "REDUCE of text": b"\x80\x02X\x01\x00\x00\x00a)R.",
    "REDUCE of a dtype": b"\x80\x02ctorch\nfloat32\n)R.",
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT2": b"\x80\x02\x83\x01\x00.",
    "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "PERSID": b"(P1\nt.",
    "BINPERSID": b"\x80\x02K\x01Q.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
}


@pytest.mark.parametrize("name", OPCODES)
def test_every_opcode_that_could_run_something_is_refused(
    tmp_path: Path, canary: Path, name: str
) -> None:
    payload = OPCODES[name].replace(b"COMMAND", f"touch {canary}".encode())
    path = tmp_path / "poisoned.pkl"
    path.write_bytes(payload)
    with pytest.raises(UnsafeCheckpointError):
        read_checkpoint(path)
    archive = tmp_path / "poisoned.pth"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", payload)
    if "PERSID" not in name:  # there they refer to storages, and this is none
        with pytest.raises(UnsafeCheckpointError):
            read_checkpoint(archive)
    with pytest.raises(CheckpointError):
        read_checkpoint(archive)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("numpy.core.multiarray", "_reconstruct.__globals__"),
        ("numpy._core.multiarray", "_reconstruct.__class__"),
        ("numpy.core", "multiarray._reconstruct"),
        ("numpy", "load"),
        ("numpy", "core.multiarray._reconstruct"),
        ("numpy.f2py.diagnose", "run_command"),
        ("torch", "nn.os.system"),
        ("torch", "FloatStorage.__init__"),
        ("torch", "hub"),
        ("torch._utils", "_import_dotted_name"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch.jit._script", "unpackage_script_module"),
        ("builtins", "dict.__class__"),
        ("builtins", "__import__"),
        ("collections", "OrderedDict.__subclasses__"),
        ("collections", "namedtuple"),
        ("copyreg", "add_extension"),
        ("operator", "attrgetter"),
        ("pickle", "loads"),
        ("_pickle", "loads"),
        ("runpy", "_run_code"),
        ("webbrowser", "open"),
        ("typing", "get_type_hints"),
    ],
)
def test_names_that_run_code_are_refused(module: str, name: str) -> None:
    for data in (
        f"c{module}\n{name}\n.".encode(),
        b"\x80\x04" + _short(module) + _short(name) + b"\x93.",
    ):
        with pytest.raises(UnsafeCheckpointError, match="neither an array nor a plain container"):
            load(data)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *(("argparse", "ArgumentParser"), ("pathlib", "Path.unlink"), ("functools", "partial")),
        *(("torch._utils", "_rebuild_wrapper_subclass"), ("builtins", "getattr")),
        *(("this_module_is_nowhere", "Class"), ("lib2to4.pytree", "Node"), ("turtledemo", "Main")),
    ],
)
def test_what_is_no_tensor_is_a_note_that_nobody_calls(module: str, name: str) -> None:
    before = set(sys.modules)
    for called in (b"(tR", b")\x81", b"(tRK\x01K\x02\x86b", b"(tR(tR"):
        read = load(f"c{module}\n{name}\n".encode() + called + b".")
        assert (type(read), read.kind) == (Inert, Global(module, name))
    assert set(sys.modules) == before  # not imported either


def test_a_module_that_a_file_names_is_not_imported() -> None:
    for module in ("antigravity", "this"):
        with pytest.raises(UnsafeCheckpointError, match=module):
            load(f"c{module}\nsomething\n.".encode())
        assert module not in sys.modules


def test_poison_in_the_hooks_and_the_metadata_of_a_tensor(canary: Path, tmp_path: Path) -> None:
    for attribute in ("_backward_hooks", "note"):
        tensor = torch.ones(2, requires_grad=True)
        poison = CALLS["os.system"](canary)
        value: Any = collections.OrderedDict(hook=poison) if attribute.startswith("_") else poison
        if attribute == "note":
            tensor = torch.nn.Parameter(tensor)
        setattr(tensor, attribute, value)
        for new in (True, False):
            path = tmp_path / "poisoned.pth"
            described = _saved(tensor, value)
            torch.save({"weight": described}, path, _use_new_zipfile_serialization=new)
            with pytest.raises(UnsafeCheckpointError, match=r"posix\.system"):
                read_checkpoint(path)
    assert not canary.exists()


class _Hooked:
    """Pickles as torch pickles a tensor, but keeps the hooks that torch would leave out."""

    def __init__(self, tensor: torch.Tensor, hooks: Any) -> None:
        self.storage = tensor.detach().untyped_storage()
        self.typed = tensor.detach()
        self.hooks = hooks

    def __reduce__(self) -> tuple[Any, ...]:
        storage = torch.storage.TypedStorage(  # type: ignore[no-untyped-call]
            wrap_storage=self.storage, dtype=torch.float32, _internal=True
        )
        return (
            torch._utils._rebuild_tensor_v2,
            (storage, 0, (2,), (1,), False, self.hooks),
        )


def _saved(tensor: torch.Tensor, hooks: Any) -> _Hooked:
    return _Hooked(tensor, hooks)
