"""The classes and functions that a checkpoint's pickle names, and what is done instead.

The real class or function is never imported or called. What makes a tensor or a plain container is
in a table here, letter for letter, and a function of this file notes down what was described. What
runs code by its nature is refused when it is named, whether or not the file goes on to call it
(``refused``). Anything else becomes an ``Inert``: a note of the class and of what was said of it.
"""

from __future__ import annotations

import math
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # what the pickles' writer goes by
from collections.abc import Callable

import torch

from trunkline.errors import CheckpointError, UnsafeCheckpointError
from trunkline.weights.reading.records import (
    STORAGE_DTYPES,
    Array,
    Blob,
    DType,
    Global,
    Inert,
    Storage,
    TypedStorage,
    contiguous,
    is_shape,
    kind_of_tensor,
)
from trunkline.weights.reading.refused import is_refused

ADVICE = (
    "Nothing was run. Ask its publisher for a safetensors file, or convert it yourself where "
    "nothing can be lost: a container without network, secrets or mounts."
)
_LONGEST_KEY = 4096
_LONGEST_TUPLE = 8
_MOST_NESTED = 20_000  # tensors that plain pickle wrote: more than anybody reads
_ENTRY_BYTES = 100  # what an entry of a dictionary costs at most, roughly

_STORAGES = {
    Global(module, name): dtype
    for module in ("torch", "torch.cuda", "torch.storage")
    for name, dtype in STORAGE_DTYPES.items()
}
_TORCH_DTYPES = {
    Global("torch", name): getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex64", "complex128", "bool"),
        # Read to be named: no network takes them without their scales.
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
        *("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64"),
    )
}


def _is_plain(key: object) -> bool:
    if type(key) is str:
        return len(key) <= _LONGEST_KEY
    return type(key) is int and abs(key) < 2**63


class Vocabulary:
    """Carries out what a pickle asks for, within a budget of bytes for copies."""

    def __init__(self, budget: int, *, nested: bool = False) -> None:
        self.budget = budget
        self.nested = nested
        self.num_nested = 0

    def resolve(self, module: str, name: str) -> Global:
        """Return a global as its two names, those of today's Python.

        Raises:
            UnsafeCheckpointError: It is one that runs code.
        """
        # torch.save writes protocol 2, which has the names of Python 2: __builtin__.xrange.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        if module == "numpy.core" or module.startswith("numpy.core."):  # numpy 2 moved its own
            module = module.replace("numpy.core", "numpy._core", 1)
        asked = Global(module, name)
        if asked in _CALLS or asked in _STORAGES or asked in _TORCH_DTYPES:
            return asked
        if kind := kind_of_tensor(asked):
            if name.endswith("Storage"):  # of parts of bytes
                raise UnsafeCheckpointError(f"asks for {_shown(asked)}, {kind}.")
            return asked  # is called for a tensor, which is noted down
        if is_refused(asked):
            raise UnsafeCheckpointError(
                f"asks for {_shown(asked)}, which is neither an array nor a plain container, and "
                f"runs code. {ADVICE}"
            )
        return asked

    def call(self, target: object, arguments: object) -> object:
        """Note down what calling a global would make.

        Raises:
            UnsafeCheckpointError: The target is no class or function.
            CheckpointError: Its arguments are not what its own pickles give it.
        """
        if type(target) is Inert:  # a bound method, a partial: whatever it gives is as inert
            return Inert(target.kind)
        if type(target) is not Global or target in _STORAGES or target in _TORCH_DTYPES:
            what = _shown(target) if type(target) is Global else f"a {type(target).__name__}"
            raise UnsafeCheckpointError(f"calls {what}, which makes no data. {ADVICE}")
        if type(arguments) is not tuple:
            raise CheckpointError(f"is damaged: {_shown(target)} is called without arguments.")
        if target not in _CALLS:
            return Inert(target)
        try:
            return _CALLS[target](self, *arguments)
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CheckpointError(
                f"is damaged: {_shown(target)} has arguments that make no sense."
            ) from error

    def build(self, target: object, state: object) -> None:
        """Give a described object the state that the pickle holds for it.

        Raises:
            UnsafeCheckpointError: It is not one that takes a state.
            CheckpointError: The state is not what its own pickles hold.
        """
        try:
            if type(target) is Array and target.storage is None:
                self._fill(target, state)
            elif type(target) is DType:
                _order(target, state)
            elif type(target) is Inert:
                target.state = state
            elif type(target) not in (dict, Array, list):  # a state dict's is its _metadata
                what = _shown(target) if type(target) is Global else f"a {type(target).__name__}"
                raise UnsafeCheckpointError(f"changes {what}, which is no data. {ADVICE}")
        except (TypeError, ValueError) as error:
            raise CheckpointError("is damaged: the state of an array makes no sense.") from error

    def put(self, target: dict[object, object], key: object, value: object) -> None:
        """Set an entry. Keys that no state dict has are left out with what they hold.

        Hashing is where a small file can hang or crash a process: nested tuples take 2^depth
        steps and a native stack frame each. So nothing but names, small integers and short flat
        tuples of them is a key.
        """
        if type(key) is bytes:
            key = key.decode("latin-1")  # numpy pickles of Python 2, saved again by Python 3
        parts = key if type(key) is tuple and 0 < len(key) <= _LONGEST_TUPLE else (key,)
        if all(_is_plain(part) for part in parts):
            target[key] = value

    def spend(self, nbytes: int) -> None:
        """Count what is copied: a pickle can ask for the same copy without end.

        Raises:
            CheckpointError: More is asked for than the file can need.
        """
        self.budget -= nbytes
        if self.budget < 0:
            raise CheckpointError("asks for more memory than what it holds can need.")

    def _fill(self, array: Array, state: object) -> None:
        """Finish what ``numpy._core.multiarray._reconstruct`` began."""
        *_, shape, dtype, fortran, data = state if type(state) is tuple else ()
        described = self.array(data, dtype, shape, fortran=bool(fortran))
        array.storage, array.dtype = described.storage, described.dtype
        array.foreign = described.foreign
        array.shape, array.stride = described.shape, described.stride
        array.swapped = described.swapped

    def array(self, data: object, dtype: object, shape: object, *, fortran: bool) -> Array:
        """Describe a numpy array whose bytes the pickle holds."""
        if type(dtype) is not DType or type(shape) is not tuple or not is_shape(shape):
            raise ValueError("no dtype, or no shape")
        if dtype.torch is None:  # dates, strings: no weights, and only weights are looked for
            return Array(Storage(0), foreign=True)
        memory = self.memory(data)
        strides = contiguous(shape, fortran=fortran)
        storage = Storage(memory.nbytes, memory)
        array = Array(storage, dtype.torch, shape, strides, swapped=dtype.swapped)
        array.check()
        if math.prod(shape) * dtype.torch.itemsize != memory.nbytes:
            raise CheckpointError(
                f"is damaged: an array of shape {shape} has {memory.nbytes} bytes."
            )
        return array

    def memory(self, data: object) -> memoryview:
        """Return bytes that a pickle holds, in whichever form it holds them, to be viewed."""
        if type(data) is Blob and data.encoding != "utf-8":
            return data.memory
        if type(data) is str:  # a byte string of Python 2
            data = data.encode("latin-1")
        if type(data) is not bytes:
            raise ValueError("no bytes")
        self.spend(len(data))
        return memoryview(bytearray(data))  # torch warns of memory that it may not write to


def _shown(asked: Global) -> str:
    text = str(asked)
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _order(dtype: DType, state: object) -> None:
    order = state[1] if type(state) is tuple else None
    if order not in ("<", ">", "|", "="):
        raise ValueError("no byte order")
    dtype.swapped = order == ">" and dtype.code not in ("b1", "?", "i1", "u1")
    if dtype.swapped and dtype.code.startswith("c"):
        raise CheckpointError("holds big-endian complex numbers, which no network has.")


def _dtype(_: Vocabulary, code: object, *__: object) -> DType:
    if type(code) is bytes:
        code = code.decode("latin-1")
    if type(code) is not str or not re.fullmatch(r"[?a-zA-Z][0-9]{0,9}", code):
        raise ValueError("no dtype")
    return DType(code)


def _scalar(vocabulary: Vocabulary, dtype: object, data: object = b"") -> object:
    array = vocabulary.array(data, dtype, (), fortran=False)
    return None if array.foreign else array.tensor().item()


def _from_buffer(
    vocabulary: Vocabulary,
    data: object,
    dtype: object,
    shape: object,
    order: object,
    axes: object = None,
) -> Array:
    """Describe an array of protocol 5; ``axes`` says how one that is neither C nor F was turned."""
    array = vocabulary.array(data, dtype, shape, fortran=order == "F")
    if order == "K" and type(axes) is tuple:
        if not is_shape(axes) or sorted(axes) != list(range(len(array.shape))):
            raise ValueError("no axes")
        array.shape = tuple(array.shape[axis] for axis in axes)
        array.stride = tuple(array.stride[axis] for axis in axes)
    return array


def _tensor(
    _: Vocabulary,
    typed: object,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    _requires_grad: object = None,
    _hooks: object = None,
    metadata: object = None,
    *_rest: object,
    dtype: torch.dtype | None = None,
) -> Array | Inert:
    """Describe a tensor. The rest is none of a weight's, nor what needs gradients or has hooks."""
    if type(typed) is Inert:
        return typed
    if type(metadata) is dict and metadata.get("neg"):  # its numbers are kept with the other sign
        return Inert(Global("torch", "NegatedView"))
    if type(typed) is not TypedStorage:
        raise ValueError("no storage")
    array = Array(typed.storage, dtype or typed.dtype, shape, stride, offset)
    array.check()
    return array


def _tensor_v3(vocabulary: Vocabulary, *arguments: object) -> Array | Inert:
    asked = arguments[6] if len(arguments) > 6 else None
    if type(asked) is not Global or asked not in _TORCH_DTYPES:
        raise ValueError("no dtype")
    as_v2 = (*arguments[:6], *arguments[7:])  # which have no dtype in front of the metadata
    return _tensor(vocabulary, *as_v2, dtype=_TORCH_DTYPES[asked])  # type: ignore[arg-type]


def _parameter(_: Vocabulary, array: object, *__: object) -> object:
    if type(array) not in (Array, Inert):
        raise ValueError("no tensor")
    return array


def _moved(_: Vocabulary, array: object, *__: object) -> Array:
    """Describe a tensor of another device (TPU, NPU, HPU), which is saved by way of the CPU's."""
    if type(array) is not Array or array.foreign:
        raise ValueError("no tensor")
    # numpy has no bfloat16: then the numbers are wider than they were, and the same.
    return array


def _from_type(
    vocabulary: Vocabulary, function: object, kind: object, arguments: object, _: object
) -> object:
    """Describe a tensor of a class of its own, or with attributes: its numbers, nothing else."""
    if type(kind) is not Global or type(function) is not Global:
        raise ValueError("no class")
    if function not in _REBUILDS:
        return Inert(kind)
    return vocabulary.call(function, arguments)


def _dictionary(vocabulary: Vocabulary, pairs: object = ()) -> dict[object, object]:
    if type(pairs) is dict:
        return pairs
    if type(pairs) not in (list, tuple):
        raise ValueError("no pairs")
    vocabulary.spend(_ENTRY_BYTES * len(pairs))  # type: ignore[arg-type]
    made: dict[object, object] = {}
    for key, value in pairs:  # type: ignore[attr-defined]
        vocabulary.put(made, key, value)
    return made


def _given(_: Vocabulary, value: object = (), *__: object) -> object:
    # Not copied: a set is a list here, for nothing is hashed that a file makes up.
    return value


def _reconstructed(
    vocabulary: Vocabulary, kind: object, _base: object = None, entries: object = None
) -> object:
    """Describe an object of protocol 0 or 1, with the entries of a class that derives from dict."""
    made = vocabulary.call(kind, ())
    if type(made) is Inert and type(entries) is dict:
        made.entries = entries
    return made


def _new(vocabulary: Vocabulary, kind: object, *arguments: object) -> object:
    """Describe an object of protocol 2 in a pickle of protocol 0 or 1."""
    return vocabulary.call(kind, arguments)


def _from_bytes(vocabulary: Vocabulary, data: object) -> object:
    """Read the file within the file that plain ``pickle.dump`` makes of each tensor.

    Raises:
        CheckpointError: It holds another, or there are more than a network has tensors.
    """
    from trunkline.weights.reading.torch_files import read_storage  # which reads by this module

    vocabulary.num_nested += 1
    if vocabulary.nested or vocabulary.num_nested > _MOST_NESTED:
        raise CheckpointError("holds files within files within it, or too many of them.")
    return read_storage(vocabulary.memory(data))


def _encode(vocabulary: Vocabulary, text: object = "", encoding: object = "latin1") -> object:
    """Undo what protocols 0 to 2 do to bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("no encoding of bytes")
    if type(text) is Blob:
        vocabulary.spend(2 * text.memory.nbytes)
        decoded = str(text.memory, text.encoding)
        return Blob(memoryview(bytearray(decoded, "latin-1")), "")
    if type(text) is not str:
        raise ValueError("no text")
    vocabulary.spend(len(text))
    return text.encode("latin-1")


def _byte_string(vocabulary: Vocabulary, data: object = b"", *encoding: object) -> object:
    if type(data) is bytes or (type(data) is Blob and not data.encoding):
        return data
    return _encode(vocabulary, data, *encoding)


def storage_dtype(kind: object) -> torch.dtype:
    """Return the dtype of a storage class that a pickle names.

    Raises:
        CheckpointError: It is not a storage class.
    """
    if type(kind) is not Global or kind not in _STORAGES:
        raise CheckpointError("is damaged: a tensor is kept in something that is no storage.")
    return _STORAGES[kind]


_CALLS: dict[Global, Callable[..., object]] = {
    Global("_codecs", "encode"): _encode,
    Global("builtins", "bytearray"): _byte_string,
    Global("builtins", "bytes"): _byte_string,
    Global("builtins", "frozenset"): _given,
    Global("builtins", "set"): _given,
    Global("collections", "Counter"): _dictionary,
    Global("collections", "OrderedDict"): _dictionary,
    Global("collections", "defaultdict"): lambda *_: {},
    Global("copyreg", "_reconstructor"): _reconstructed,
    Global("copyreg", "__newobj__"): _new,
    Global("copyreg", "__newobj_ex__"): lambda vocabulary, kind, *_: vocabulary.call(kind, ()),
    Global("numpy", "dtype"): _dtype,
    Global("numpy._core.multiarray", "_reconstruct"): lambda *_: Array(),
    Global("numpy._core.multiarray", "scalar"): _scalar,
    Global("numpy._core.numeric", "_frombuffer"): _from_buffer,
    Global("torch", "Size"): _given,
    Global("torch.storage", "_load_from_bytes"): _from_bytes,
    Global("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    Global("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _moved,
    Global("torch._utils", "_rebuild_device_tensor_from_numpy"): _moved,
    Global("torch._utils", "_rebuild_hpu_tensor"): _moved,
    Global("torch._utils", "_rebuild_mlc_tensor"): _moved,
    Global("torch._utils", "_rebuild_ort_tensor"): _moved,
    Global("torch._utils", "_rebuild_xla_tensor"): _moved,
    Global("torch._utils", "_rebuild_parameter"): _parameter,
    Global("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    Global("torch._utils", "_rebuild_tensor"): _tensor,
    Global("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Global("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
}
_REBUILDS = {asked for asked in _CALLS if asked.module == "torch._utils"}
