"""A pickle machine that can only build data.

Python's own unpickler calls what a file names. This one has no call in it: it reads the same
opcodes, but on its stack there are only numbers, strings, lists, dictionaries and the notes of
``records``; what a file names is looked up in the tables of ``vocabulary``, and a note if it is
not there. So a file cannot reach an object that could run code, nor change one of ours.

It is bounded in time by a number of opcodes in all pickles of a file, and in memory by never making
anything larger than the part of the file that holds it. ``torch.load(weights_only=True)`` is
neither, so it is not used: a file of 1 kB in which a tuple of tuples is the key of a dictionary
keeps it busy for ever, and one that is nested deeper overflows its stack and takes the process
along (seen with PyTorch 2.13).

Source: the opcodes are those of Python's ``pickletools``, protocols 0 to 5.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from trunkline.errors import CheckpointError, UnsafeCheckpointError
from trunkline.weights.reading.records import Blob, Global, Inert
from trunkline.weights.reading.vocabulary import ADVICE, Vocabulary

MAX_OPCODES = 1_000_000  # a checkpoint with its optimizer has some hundred thousand
_MAX_NESTED_OPCODES = 500  # of one storage within it: its class, its key and its length
_MAX_DIGITS = 512
_MAX_LONG_BYTES = 512
_INLINE_BYTES = 64 * 1024  # longer strings stay in the file
_SLACK_BYTES = 1 << 20

_ESCAPES = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"\\": b"\\", b"'": b"'", b'"': b'"'}
_NAME = re.compile(r"\w+(\.\w+)*")

PersistentLoad = Callable[[object], object]


class Unpickler:
    """Reads one pickle after another from memory.

    Args:
        data: The memory to read from, which byte strings stay views of.
        position: Where the first pickle starts; after ``load`` where it ended.
        nested: They are within another one, and describe one storage.
    """

    def __init__(self, data: memoryview, position: int = 0, *, nested: bool = False) -> None:
        self.position = position
        self._data = data
        self._most = _MAX_NESTED_OPCODES if nested else MAX_OPCODES
        self._vocabulary = Vocabulary(4 * data.nbytes + _SLACK_BYTES, nested=nested)
        self._globals: dict[tuple[str, str], Global] = {}
        self._opcodes = 0

    def load(self, persistent_load: PersistentLoad | None = None) -> object:
        """Return what the next pickle describes.

        Args:
            persistent_load: Gives what a persistent id stands for, None if there must be none.

        Raises:
            UnsafeCheckpointError: It asks for more than arrays and plain containers.
            CheckpointError: It is cut off, damaged, or too long to be a checkpoint.
        """
        self._persistent_load = persistent_load
        self._stack: list[object] = []
        self._marked: list[list[object]] = []
        self._memo: dict[int, object] = {}
        try:
            while True:
                opcode = self._take(1)[0]
                if opcode == 0x2E:  # STOP
                    return self._stack.pop()
                self._opcodes += 1
                if self._opcodes > self._most:
                    raise CheckpointError(f"holds a pickle of over {self._most} instructions.")
                handler = _HANDLERS.get(opcode)
                if handler is None:
                    raise CheckpointError(
                        f"is no checkpoint, or damaged: byte {self.position - 1} is no instruction "
                        "of a pickle."
                    )
                handler(self)
        except (IndexError, KeyError, ValueError, struct.error) as error:
            raise CheckpointError(
                f"is damaged: its pickle makes no sense at byte {self.position}."
            ) from error

    def _take(self, count: int) -> memoryview:
        if count < 0 or count > self._data.nbytes - self.position:
            raise CheckpointError(
                f"is cut off or damaged: {count} bytes are missing at byte {self.position} of "
                f"{self._data.nbytes}. Download it again."
            )
        self.position += count
        return self._data[self.position - count : self.position]

    def _number(self, form: str) -> int:
        number: int = struct.unpack(form, self._take(struct.calcsize(form)))[0]
        return number

    def _line(self) -> bytes:
        width = 256
        while True:
            chunk = bytes(self._data[self.position : self.position + width])
            if (end := chunk.find(b"\n")) >= 0:
                self.position += end + 1
                return chunk[:end]
            if len(chunk) < width:
                raise CheckpointError("is cut off or damaged: a line of its pickle has no end.")
            width *= 8

    def _digits(self) -> str:
        line = self._line()
        if len(line) > _MAX_DIGITS:
            raise CheckpointError(f"is damaged: it holds a number of {len(line)} digits.")
        return line.decode("ascii")

    def _items(self) -> list[object]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    # Numbers and strings.

    def _int(self) -> None:
        text = self._digits()
        self._push({"00": False, "01": True}[text] if text in ("00", "01") else int(text))

    def _long_text(self) -> None:
        self._push(int(self._digits().rstrip("L")))

    def _long(self, form: str) -> None:
        count = self._number(form)
        if count > _MAX_LONG_BYTES:
            raise CheckpointError(f"is damaged: it holds an integer of {count} bytes.")
        self._push(int.from_bytes(self._take(count), "little", signed=True))

    def _text(self, form: str, encoding: str) -> None:
        memory = self._take(self._number(form))
        if memory.nbytes > _INLINE_BYTES:
            self._push(Blob(memory, encoding))
        elif encoding:
            errors = "surrogatepass" if encoding == "utf-8" else "strict"
            self._push(str(memory, encoding, errors))
        else:
            self._push(bytes(memory))

    def _quoted(self) -> None:
        line = self._line().strip()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise ValueError("not quoted")
        # codecs.escape_decode would warn of what Python 2 never writes; here that is damage.
        plain = re.sub(rb"\\(x[0-9a-fA-F]{2}|.)", _unescape, line[1:-1], flags=re.DOTALL)
        self._push(plain.decode("latin-1"))

    # Containers.

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _mark(self) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._items()

    def _tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise IndexError
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _list(self) -> None:
        items = self._items()
        self._push(items)

    def _tuple_of_items(self) -> None:
        items = self._items()
        self._push(tuple(items))

    def _dict(self) -> None:
        items = self._items()
        self._push({})
        self._set(items)

    def _append(self, items: list[object]) -> None:
        target = self._stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is not Inert:
            raise CheckpointError(f"is damaged: it appends to a {type(target).__name__}.")

    def _append_one(self) -> None:
        value = self._stack.pop()
        self._append([value])

    def _set(self, items: list[object]) -> None:
        target = self._stack[-1]
        if len(items) % 2 or type(target) not in (dict, Inert):
            raise CheckpointError(f"is damaged: it sets entries of a {type(target).__name__}.")
        if type(target) is Inert:  # a class that derives from dict
            target.entries = {} if target.entries is None else target.entries
            target = target.entries
        if type(target) is dict:
            for key, value in zip(items[::2], items[1::2], strict=True):
                self._vocabulary.put(target, key, value)

    def _set_one(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    # Memo.

    def _put(self, index: int) -> None:
        if index < 0:
            raise ValueError("negative index")
        self._memo[index] = self._stack[-1]

    # What Python's own machine would look up, call and change.

    def _global_lines(self) -> Global:
        module, name = self._line().decode("utf-8"), self._line().decode("utf-8")
        return self._resolve(module, name)

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._push(self._resolve(module, name))

    def _resolve(self, module: object, name: object) -> Global:
        # Text that is not a pickle at all may start with a c; then this is no name.
        if not type(module) is type(name) is str:
            raise CheckpointError("is damaged: its pickle names something that is no name.")
        if (module, name) not in self._globals:
            if not (_is_name(module) and _is_name(name)):
                raise CheckpointError("is damaged: its pickle names something that is no name.")
            self._globals[module, name] = self._vocabulary.resolve(module, name)
        return self._globals[module, name]

    def _call(self) -> None:
        arguments, target = self._stack.pop(), self._stack.pop()
        self._push(self._vocabulary.call(target, arguments))

    def _call_with_keywords(self) -> None:
        self._stack.pop()  # keywords: only inert classes have any
        self._call()

    def _inst(self) -> None:
        target = self._global_lines()
        arguments = self._items()
        self._push(self._vocabulary.call(target, tuple(arguments)))

    def _obj(self) -> None:
        target, *arguments = self._items()
        self._push(self._vocabulary.call(target, tuple(arguments)))

    def _build(self) -> None:
        state = self._stack.pop()
        self._vocabulary.build(self._stack[-1], state)

    def _persistent(self) -> None:
        identity = self._stack.pop()
        if self._persistent_load is None:
            self._refuse("an object outside the file (a persistent id)")
        else:
            self._push(self._persistent_load(identity))

    def _refuse(self, what: str) -> None:
        raise UnsafeCheckpointError(f"asks for {what}. {ADVICE}")


def _is_name(text: str) -> bool:
    return len(text) <= 1000 and bool(_NAME.fullmatch(text))


def _unescape(match: re.Match[bytes]) -> bytes:
    escape = match[1]
    return bytes.fromhex(escape[1:].decode()) if len(escape) == 3 else _ESCAPES[escape]


_HANDLERS: dict[int, Callable[[Unpickler], object]] = {
    ord(code): handler
    for code, handler in {
        "\x80": lambda u: u._take(1),  # PROTO
        "\x95": lambda u: u._take(8),  # FRAME: for readers of streams
        "N": lambda u: u._push(None),
        "\x88": lambda u: u._push(True),
        "\x89": lambda u: u._push(False),
        "I": Unpickler._int,
        "J": lambda u: u._push(u._number("<i")),
        "K": lambda u: u._push(u._number("<B")),
        "M": lambda u: u._push(u._number("<H")),
        "L": Unpickler._long_text,
        "\x8a": lambda u: u._long("<B"),
        "\x8b": lambda u: u._long("<I"),
        "F": lambda u: u._push(float(u._digits())),
        "G": lambda u: u._push(struct.unpack(">d", u._take(8))[0]),
        "S": Unpickler._quoted,
        "T": lambda u: u._text("<I", "latin-1"),
        "U": lambda u: u._text("<B", "latin-1"),
        "V": lambda u: u._push(u._line().decode("raw-unicode-escape")),
        "X": lambda u: u._text("<I", "utf-8"),
        "\x8c": lambda u: u._text("<B", "utf-8"),
        "\x8d": lambda u: u._text("<Q", "utf-8"),
        "B": lambda u: u._text("<I", ""),
        "C": lambda u: u._text("<B", ""),
        "\x8e": lambda u: u._text("<Q", ""),
        "\x96": lambda u: u._text("<Q", ""),  # BYTEARRAY8
        "\x98": lambda _: None,  # READONLY_BUFFER
        "(": Unpickler._mark,
        "0": Unpickler._pop,
        "1": lambda u: u._items(),
        "2": lambda u: u._push(u._stack[-1]),
        ")": lambda u: u._push(()),
        "t": Unpickler._tuple_of_items,
        "\x85": lambda u: u._tuple(1),
        "\x86": lambda u: u._tuple(2),
        "\x87": lambda u: u._tuple(3),
        "]": lambda u: u._push([]),
        "l": Unpickler._list,
        "a": Unpickler._append_one,
        "e": lambda u: u._append(u._items()),
        "}": lambda u: u._push({}),
        "d": Unpickler._dict,
        "s": Unpickler._set_one,
        "u": lambda u: u._set(u._items()),
        "\x8f": lambda u: u._push([]),  # EMPTY_SET
        "\x90": lambda u: u._append(u._items()),  # ADDITEMS
        "\x91": Unpickler._tuple_of_items,  # FROZENSET
        "p": lambda u: u._put(int(u._digits())),
        "q": lambda u: u._put(u._number("<B")),
        "r": lambda u: u._put(u._number("<I")),
        "\x94": lambda u: u._put(len(u._memo)),
        "g": lambda u: u._push(u._memo[int(u._digits())]),
        "h": lambda u: u._push(u._memo[u._number("<B")]),
        "j": lambda u: u._push(u._memo[u._number("<I")]),
        "c": lambda u: u._push(u._global_lines()),
        "\x93": Unpickler._stack_global,
        "R": Unpickler._call,
        "\x81": Unpickler._call,  # NEWOBJ
        "\x92": Unpickler._call_with_keywords,  # NEWOBJ_EX
        "i": Unpickler._inst,
        "o": Unpickler._obj,
        "b": Unpickler._build,
        "Q": Unpickler._persistent,
        "P": lambda u: u._refuse("an object outside the file (a persistent id)"),
        "\x82": lambda u: u._refuse("an extension of the pickle registry"),
        "\x83": lambda u: u._refuse("an extension of the pickle registry"),
        "\x84": lambda u: u._refuse("an extension of the pickle registry"),
        "\x97": lambda u: u._refuse("a buffer outside the file"),
    }.items()
}
