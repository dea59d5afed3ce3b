"""How long the pages of a Parquet column become, by the headers that the pages themselves have.

pyarrow takes memory for a page by its own header, and the sums in the file's metadata may say
anything. The headers are Thrift's compact protocol, of which only lengths are needed here.
"""

from __future__ import annotations

from collections.abc import Iterator

_BOOLEANS, _NUMBERS = (1, 2), (4, 5, 6)  # kinds of fields: without a body; one varint
_BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 3, 7, 8, 9, 10, 11, 12
_UNPACKED, _PACKED = 2, 3  # the fields of a page's header that say its lengths
_DEEPEST = 16  # structs in one another; a page's header has three
_LONGEST = 10  # bytes of a varint
_MOST = 100_000  # pages; of a chunk that is worth looking at, 200 bytes each


def page_lengths(chunk: bytes) -> Iterator[tuple[int, int]]:
    """Yield of each page of a column chunk how long it becomes, and how long it is.

    Args:
        chunk: All its bytes.

    Raises:
        ValueError: A header cannot be read.
    """
    reader = _Reader(chunk)
    for _ in range(_MOST):
        if reader.place >= len(chunk):
            return
        fields = reader.struct(0)
        lengths = [fields.get(one, -1) for one in (_UNPACKED, _PACKED)]
        if not all(0 <= length < 2**31 for length in lengths):
            raise ValueError("a page does not say how long it is")
        unpacked, packed = lengths
        yield unpacked, packed
        reader.place += packed
    raise ValueError(f"it has more than {_MOST} pages")


class _Reader:
    """Reads values of Thrift's compact protocol, or passes over them."""

    def __init__(self, content: bytes) -> None:
        self._content, self.place = content, 0

    def struct(self, depth: int) -> dict[int, int]:
        """Return the value of each field that is a number."""
        if depth > _DEEPEST:
            raise ValueError("a page's header is nested too deeply")
        fields: dict[int, int] = {}
        field = 0
        while head := self._byte():
            kind, step = head & 15, head >> 4
            field = field + step if step else self._number()
            if field in fields:
                raise ValueError("a page's header says something twice")
            value = self._value(kind, depth)
            if value is not None:
                fields[field] = value
        return fields

    def _value(self, kind: int, depth: int) -> int | None:
        """Pass over a value; return it where it is a number."""
        if kind in _NUMBERS:
            return self._number()
        if kind == _BINARY:
            length = self._varint()
            self.place += length
        elif kind == _DOUBLE:
            self.place += 8
        elif kind == _BYTE:
            self.place += 1
        elif kind == _STRUCT:
            self.struct(depth + 1)
        elif kind not in _BOOLEANS:
            # Lists, sets and maps: no page's header has one, and a list of lists costs time.
            raise ValueError("a page's header holds what none has")
        return None

    def _number(self) -> int:
        coded = self._varint()
        return (coded >> 1) ^ -(coded & 1)

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 7 * _LONGEST, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a page's header holds a number without end")

    def _byte(self) -> int:
        if self.place >= len(self._content):
            raise ValueError("a page's header is cut off")
        self.place += 1
        return self._content[self.place - 1]
