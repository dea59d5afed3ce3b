"""The pickle machine builds plain data and arrays, as they were written."""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
import pickle
import struct
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trunkline.errors import CheckpointError
from trunkline.weights.reading.records import Array, Blob, Global, Inert
from trunkline.weights.reading.unpickling import Unpickler


def _short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def load(data: bytes) -> Any:
    return Unpickler(memoryview(bytearray(data))).load()


# Plain data comes through whole, in every protocol.

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(-(2**62), 2**62), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(PLAIN, st.integers(0, 5))
def test_plain_data_is_read_as_it_was_written(value: Any, protocol: int) -> None:
    assert load(pickle.dumps(value, protocol=protocol)) == value


@pytest.mark.parametrize("protocol", range(6))
def test_other_plain_containers_are_kept_as_lists_and_dictionaries(protocol: int) -> None:
    value = {
        "set": {1},
        "frozen": frozenset([2]),
        "ordered": collections.OrderedDict(a=1),
        "counter": collections.Counter("a"),
        "default": collections.defaultdict(list, a=[1]),
        "bytearray": bytearray(b"ab"),
        "size": torch.Size([1, 2]),
    }
    read = load(pickle.dumps(value, protocol=protocol))
    assert list(read.pop("frozen")) == [2]
    assert read == {
        "set": [1],
        "ordered": {"a": 1},
        "counter": {"a": 1},
        "default": {"a": [1]},
        "bytearray": b"ab",
        "size": (1, 2),
    }


@pytest.mark.parametrize("protocol", range(6))
def test_numpy_scalars_become_numbers(protocol: int) -> None:
    value = {"f8": np.float64(0.25), "i8": np.int64(-3), "b1": np.bool_(True), "f2": np.float16(2)}
    read = load(pickle.dumps(value, protocol=protocol))
    assert read == {"f8": 0.25, "i8": -3, "b1": True, "f2": 2.0}


@pytest.mark.parametrize("protocol", range(6))
def test_known_metadata_is_inert(monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
    held = {
        "namespace": argparse.Namespace(lr=0.1, nested=argparse.Namespace(a=[1])),
        "time": datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc),
        "path": pathlib.PurePosixPath("/data/imagenet"),
        "device": torch.device("cpu"),
        "history": _foreign(monkeypatch, "mmengine.logging.history_buffer", "HistoryBuffer"),
        "config": _foreign(monkeypatch, "yacs.config", "CfgNode", dict),
        "complex": 1j,
    }
    data = pickle.dumps(held, protocol=protocol)
    monkeypatch.undo()
    read = load(data)
    assert list(read) == list(held)
    assert {type(value) for value in read.values()} == {Inert}
    assert str(read["config"].kind) == "yacs.config.CfgNode"
    assert read["config"].contents()["key"] == "value"
    assert read["namespace"].contents()["lr"] == 0.1


def _foreign(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str, base: type = object
) -> object:
    """Make an object of a class of a module that is there only while it is written."""
    kind = type(name, (base,), {"__module__": module, "__qualname__": name})
    made = types.ModuleType(module)
    setattr(made, name, kind)
    for depth in range(module.count(".")):
        parent = ".".join(module.split(".")[: depth + 1])
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, module, made)
    instance = kind()
    instance.log = np.ones(3)
    if base is dict:
        instance["key"] = "value"
    return instance


def test_an_unknown_class_is_inert_and_what_it_holds_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = _foreign(monkeypatch, "somewhere.training", "Config")
    data = pickle.dumps(held)
    monkeypatch.undo()
    read = load(data)
    assert (type(read), read.kind) == (Inert, Global("somewhere.training", "Config"))
    assert torch.equal(read.contents()["log"].tensor(), torch.ones(3, dtype=torch.float64))


def test_globals_are_names_and_not_objects() -> None:
    assert load(b"cnumpy\nndarray\n.") == Global("numpy", "ndarray")
    assert load(b"ctorch\nfloat32\n.") == Global("torch", "float32")


@pytest.mark.parametrize("protocol", range(6))
def test_long_strings_stay_in_the_file(protocol: int) -> None:
    data = memoryview(bytearray(pickle.dumps({"cfg": "x" * 100_000}, protocol=max(protocol, 1))))
    read: Any = Unpickler(data).load()
    assert type(read["cfg"]) is Blob
    assert read["cfg"].memory.obj is data.obj


# Numpy arrays.

DTYPES = ["?", "i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<f2", "<f4", "<f8", "<c8", ">f4"]


@pytest.mark.parametrize("dtype", [*DTYPES, ">i8"])
@pytest.mark.parametrize("protocol", range(6))
def test_numpy_arrays_are_read_bit_for_bit(dtype: str, protocol: int) -> None:
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    arrays = {
        "c": values,
        "fortran": np.asfortranarray(values),
        "turned": values.transpose(1, 0, 2),
        "scalar": np.array(values[1, 1, 1]),
        "empty": values[:0],
        "large": np.resize(values, (200, 300)),
        "read-only": np.frombuffer(values.tobytes(), values.dtype),
    }
    read = load(pickle.dumps(arrays, protocol=protocol))
    for name, array in arrays.items():
        tensor = read[name].tensor()
        native = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("="))
        assert tuple(tensor.shape) == array.shape, name
        assert torch.equal(tensor, torch.from_numpy(native).reshape(array.shape)), name


@pytest.mark.parametrize("protocol", range(6))
def test_numpy_1_wrote_another_module_name(protocol: int) -> None:
    data = pickle.dumps(np.arange(3.0), protocol=protocol)
    for part in ("multiarray", "numeric"):
        new, old = f"numpy._core.{part}", f"numpy.core.{part}"
        data = data.replace(_short(new), _short(old)).replace(new.encode(), old.encode())
    assert b"_core" not in data
    assert load(data).tensor().tolist() == [0, 1, 2]


def python2_pickle(name: bytes, raw: bytes) -> bytes:
    """A dictionary with one array (2, 3) of f4, as Python 2 pickles it with protocol 2."""
    data = b"T" + struct.pack("<I", len(raw)) + raw
    return (
        b"\x80\x02}q\x00U" + bytes([len(name)]) + name + b"q\x01cnumpy.core.multiarray\n"
        b"_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87Rq\x04(K\x01K\x02K\x03\x86"
        b"cnumpy\ndtype\nq\x05U\x02f4K\x00K\x01\x87Rq\x06(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89" + data + b"tbs."
    )


def test_python_2_wrote_bytes_as_text() -> None:
    values = np.array([[1, 2, -3], [0.5, 255, 1e30]], dtype="<f4")
    read = load(python2_pickle(b"conv1_w", values.tobytes()))
    assert torch.equal(read["conv1_w"].tensor(), torch.from_numpy(values))


def test_names_that_are_bytes_are_decoded() -> None:
    assert load(pickle.dumps({b"conv1_w": 1})) == {"conv1_w": 1}


def test_arrays_of_text_and_dates_are_no_tensors() -> None:
    read = load(pickle.dumps([np.array(["a", "b"]), np.array(["2020-01-01"], dtype="M8[D]")]))
    assert all(type(value) is Array and value.foreign for value in read)


def test_an_array_of_objects_is_no_tensor() -> None:
    read = load(pickle.dumps(np.array([{}, None], dtype=object)))
    assert (type(read), read.foreign) == (Array, True)


def test_an_array_with_too_few_bytes_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"claims more than the 5 elements"):
        load(python2_pickle(b"a", b"\0" * 20))
    with pytest.raises(CheckpointError, match=r"shape \(2, 3\) has 28 bytes"):
        load(python2_pickle(b"a", b"\0" * 28))


def test_big_endian_complex_numbers_are_refused() -> None:
    with pytest.raises(CheckpointError, match="holds big-endian complex numbers"):
        load(pickle.dumps(np.ones(2, ">c8")))


def test_arrays_without_a_dtype_or_bytes_are_damage() -> None:
    data = python2_pickle(b"a", b"\0" * 24)
    for part, other in ((b"cnumpy\ndtype\n", b"cnumpy\nndarray\n"), (b"U\x01<", b"U\x01?")):
        with pytest.raises(CheckpointError):
            load(data.replace(part, other))
