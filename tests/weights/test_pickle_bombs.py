"""Small pickles that would take all time or memory, and damaged ones, end in a clear error."""

from __future__ import annotations

import io
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from trunkline.errors import CheckpointError
from trunkline.weights.checkpoint import read_checkpoint
from trunkline.weights.reading.unpickling import MAX_OPCODES, Unpickler


def load(data: bytes) -> Any:
    return Unpickler(memoryview(bytearray(data))).load()


def _in_time(data: bytes, match: str, error: type[CheckpointError] = CheckpointError) -> None:
    start = time.perf_counter()
    with pytest.raises(error, match=match):
        load(data)
    assert time.perf_counter() - start < 20


def test_keys_that_take_for_ever_to_hash_are_left_out() -> None:
    doubled = b"".join(b"h%c" % i * 2 + b"\x86q%c0" % (i + 1) for i in range(60))
    assert load(b"\x80\x02})q\x000" + doubled + b"h\x3cK\x01s.") == {}


def test_keys_nested_deeper_than_the_stack_are_left_out() -> None:
    assert load(b"\x80\x02})" + b"\x85" * 150_000 + b"K\x01s.") == {}


def test_sets_are_not_hashed() -> None:
    deep = b"\x80\x04\x8f()" + b"\x85" * 150_000 + b"\x90."
    assert len(load(deep)) == 1


def test_deep_lists_are_freed_again() -> None:
    assert type(load(b"\x80\x02" + b"]" * 150_000 + b"a" * 149_999 + b".")) is list


def test_a_pickle_without_end_is_refused() -> None:
    _in_time(b"\x80\x02" + b"N0" * MAX_OPCODES, f"over {MAX_OPCODES} instructions")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\x80\x02\x8b\xff\xff\xff\x7f", "integer of 2147483647 bytes"),
        (b"\x80\x02\x8b\xff\xff\xff\xff", "integer of 4294967295 bytes"),
        (b"L" + b"9" * 100_000 + b"L\n.", "number of 100001 digits"),
        (b"I" + b"9" * 100_000 + b"\n.", "number of 100000 digits"),
        (b"F" + b"9" * 100_000 + b"\n.", "number of 100000 digits"),
        (b"\x80\x04\x8e" + b"\xff" * 8 + b".", "18446744073709551615 bytes are missing"),
        (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x0f.", "bytes are missing"),
        (b"\x80\x05\x96\x00\x00\x00\x00\x01\x00\x00\x00.", "4294967296 bytes are missing"),
        (b"\x80\x02X\xff\xff\xff\x7fa.", "2147483647 bytes are missing at byte 7"),
        (b"\x80\x02j\xff\xff\xff\xff.", "makes no sense"),
        (b"\x80\x04\x95" + b"\xff" * 8, "cut off"),
        (b"Vabc", "a line of its pickle has no end"),
        (b"S'abc'", "a line of its pickle has no end"),
        (b"S'a\\q'\n.", "makes no sense"),
        (b"Sabc\n.", "makes no sense"),
        (b".", "makes no sense"),
        (b"t.", "makes no sense"),
        (b"\x85.", "makes no sense"),
        (b"K\x01K\x02a.", "appends to a int"),
        (b"K\x01K\x02K\x03s.", "sets entries of a int"),
        (b"}(K\x01u.", "sets entries of a dict"),
        (b"\xff.", "byte 0 is no instruction of a pickle"),
        (b"\x80\x04NN\x93.", "names something that is no name"),
        (b"cno name\nat all\n.", "names something that is no name"),
        (b"cnumpy\ndtype\nNR.", "called without arguments"),
        (b"cnumpy\ndtype\n)R.", "arguments that make no sense"),
        (b"c_codecs\nencode\n(Va\nVrot13\ntR.", "arguments that make no sense"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))tR.", "arguments that make no sense"),
        (b"ccopyreg\n_reconstructor\n(ccopyreg\n_reconstructor\ntR.", "make no sense"),
        (b"ccollections\nOrderedDict\n(]]atR.", "arguments that make no sense"),
    ],
)
def test_damage_is_a_clear_error(data: bytes, match: str) -> None:
    _in_time(data, match)


def test_the_same_copy_again_and_again_is_refused() -> None:
    text = b"X\x00\x00\x01\x00" + b"a" * 65_536
    data = b"\x80\x02](c_codecs\nencode\nq\x01" + text + b"q\x02\x85q\x03"
    _in_time(data + b"h\x01h\x03R" * 5_000 + b"e.", "more memory than what it holds can need")


def test_the_same_dictionary_again_and_again_is_refused() -> None:
    pairs = b"](" + b"K\x01K\x02\x86" * 10_000 + b"e\x85q\x03"
    data = b"\x80\x02](ccollections\nOrderedDict\nq\x01" + pairs
    _in_time(data + b"h\x01h\x03R" * 5_000 + b"e.", "more memory than what it holds can need")


def test_a_shape_of_huge_numbers_is_refused() -> None:
    huge = b"\x8b\x00\x02\x00\x00" + b"\x7f" * 512 + b"q\x07"
    shape = b"(" + huge + b"h\x07" * 100_000 + b"t"
    dtype = b"cnumpy\ndtype\n(X\x02\x00\x00\x00f4tR"
    data = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R(" + shape + dtype + b"\x89C\x00tb."
    _in_time(data, "the state of an array makes no sense")


def test_a_tensor_that_is_a_view_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "expanded.pth"
    torch.save({"weight": torch.ones(1).expand(10**6, 10**6)}, path)
    with pytest.raises(CheckpointError, match="claims more than the 1 elements that are stored"):
        read_checkpoint(path)


def test_many_names_for_the_same_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "views.pth"
    one = torch.ones(10_000)
    torch.save({str(index): one for index in range(20)}, path)
    with pytest.raises(CheckpointError, match="the same numbers again and again"):
        read_checkpoint(path)


def test_tied_tensors_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "tied.pth"
    one = torch.arange(12.0)
    torch.save({"a": one, "b": one, "c": one.view(3, 4).t(), "d": one[4:]}, path)
    tensors = read_checkpoint(path).tensors
    assert torch.equal(tensors["c"], one.view(3, 4).t())
    assert torch.equal(tensors["d"], one[4:])
    assert tensors["a"].data_ptr() == tensors["b"].data_ptr()


def test_several_pickles_follow_one_another() -> None:
    file = io.BytesIO()
    for value in (1, "two", [3]):
        pickle.dump(value, file, protocol=2)
    unpickler = Unpickler(memoryview(bytearray(file.getvalue())))
    assert [unpickler.load() for _ in range(3)] == [1, "two", [3]]
    assert unpickler.position == file.tell()
