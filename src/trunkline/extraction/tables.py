"""Parquet files of images or of their paths: which column, which rows, without trusting the file.

A few thousand bytes of Parquet can stand for gigabytes: a page is compressed, one value may be
repeated for every row, and a number says how many rows there are. What a file claims is compared
with its length before anything is read; images are read one at a time, and texts are measured
before they are spelled out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator
from itertools import accumulate
from typing import Any, BinaryIO

from trunkline.errors import ImageError, SourceError
from trunkline.extraction.pages import page_lengths
from trunkline.extraction.tars import length_of
from trunkline.images import MAX_BYTES
from trunkline.runtimes.optional import require

TEXT_BYTES = 1 << 16
"""Longest path or key."""

_BATCH_ROWS = 8192
_BATCH_BYTES = 64 << 20  # of the texts of a batch: 8192 bytes each, where 4096 are a long path
_BUFFER_BYTES = 1 << 20
_SMALL_BYTES = 256 << 20  # of a column or a page, which may be packed as densely as it likes
_DENSEST = 100  # how many times as long as its packed form a larger one may be
_LARGEST_PAGE = 1 << 31  # that a header can say
_EXPANSION = {"UNCOMPRESSED": 1, "SNAPPY": 64, "LZ4": 256, "LZ4_RAW": 256, "GZIP": 1040}  # at most
_PURPOSE = "reading images from Parquet"

# Names that columns of images go by. Bytes come first: they need no other file.
_BYTES_NAMES = ("image", "img", "bytes", "image_bytes", "content", "jpg", "jpeg", "png", "webp")
_PATH_NAMES = (
    *("image", "img", "path", "image_path", "img_path", "file", "filepath", "file_path"),
    *("filename", "file_name", "url", "image_url", "uri"),
)


def pick_column(file: BinaryIO, path: str, column: str | None, key_column: str | None) -> str:
    """Find where a Parquet file has its images, by its schema.

    Raises:
        SourceError: There is no such column, or several could be meant; the text lists all.
    """
    schema = require("pyarrow.parquet", _PURPOSE).ParquetFile(file).schema_arrow
    listed = ", ".join(f"{one.name} ({one.type})" for one in schema)
    for wanted in (column, key_column):
        if wanted is not None and schema.names.count(wanted) > 1:
            raise SourceError(
                f"{path} has several columns called {wanted!r}: {listed}. "
                "Write it again with names that differ."
            )
    if key_column is not None and not _is_key(_type(schema, key_column)):
        raise SourceError(f"{path} has no column {key_column!r} for keys; it has {listed}.")
    if column is not None:
        kind = _type(schema, column)
        if not (_is_bytes(kind) or _is_text(kind)):
            raise SourceError(
                f"{path} has no column {column!r} of bytes, paths or URLs; it has {listed}."
            )
        return column
    inline = [one for one in schema if _is_bytes(one.type) and one.name.lower() in _BYTES_NAMES]
    paths = [one for one in schema if _is_text(one.type) and one.name.lower() in _PATH_NAMES]
    candidates = inline or paths
    if len(candidates) != 1:
        raise SourceError(
            f"{path} does not show which column has the images; name it by column=. "
            f"It has {listed}."
        )
    return str(candidates[0].name)


def list_rows(
    file: BinaryIO, path: str, column: str, key_column: str | None, first: int
) -> tuple[int, Iterator[tuple[Any, Any]]]:
    """Return how many rows a file has, and text and key of each from one row on.

    Args:
        file: Of the table.
        path: What errors call it.
        column: Of images; the texts are None where it holds bytes.
        key_column: Of keys, which are None without it.
        first: Leave out so many rows.

    Raises:
        SourceError: It lacks a column, claims what cannot be, or later holds a text that is none.
    """
    plain = require("pyarrow.parquet", _PURPOSE).ParquetFile(file)
    rows, schema = sum(_rows_of_groups(plain.metadata, file, path)), plain.schema_arrow
    for wanted in (column, *([] if key_column is None else [key_column])):
        if schema.names.count(wanted) != 1:
            how_many = "several columns" if wanted in schema.names else "no column"
            raise SourceError(f"{path} has {how_many} {wanted!r}, which the files before it have.")
    if not (_is_bytes(_type(schema, column)) or _is_text(_type(schema, column))):
        raise SourceError(
            f"{path} has {_type(schema, column)} in column {column!r}, where the files before it "
            "have bytes, paths or URLs."
        )
    texts = None if _is_bytes(_type(schema, column)) else column
    columns = {one for one in (texts, key_column) if one is not None}
    if first >= rows or not columns:
        return rows, ((None, None) for _ in range(first, rows))
    measured = [one for one in columns if _is_measured(_type(schema, one))]
    opened = _opened(file, metadata=plain.metadata, read_dictionary=measured)
    return rows, _values(opened, file, path, (texts, key_column), first)


def _values(
    opened: Any, file: BinaryIO, path: str, wanted: tuple[str | None, str | None], first: int
) -> Iterator[tuple[Any, Any]]:
    """Yield each row's text and key from one on, None for a column that is not wanted."""
    columns, skipped = list({one for one in wanted if one is not None}), first
    for group in range(opened.metadata.num_row_groups):
        if skipped >= (rows := opened.metadata.row_group(group).num_rows):
            skipped -= rows
            continue
        _check_density(opened.metadata, group, columns, file, path)
        for batch in opened.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns):
            whole = {one: _spelled(batch.column(one), one, path)[skipped:] for one in columns}
            skipped = max(skipped - batch.num_rows, 0)
            nothing = [None] * len(whole[columns[0]])
            pairs = (whole.get(one, nothing) if one else nothing for one in wanted)
            yield from zip(*pairs, strict=True)


def _spelled(values: Any, column: str, path: str) -> list[Any]:
    """Return a column as Python values, unless its texts are longer than paths and keys are."""
    if not (_types().is_dictionary(values.type) and _is_measured(values.type)):
        return values.to_pylist()  # type: ignore[no-any-return]  # pyarrow has no types
    compute = require("pyarrow.compute", _PURPOSE)
    lengths = compute.binary_length(values.dictionary).take(values.indices)
    longest, together = compute.max(lengths).as_py() or 0, compute.sum(lengths).as_py() or 0
    if longest > TEXT_BYTES or together > _BATCH_BYTES:
        raise SourceError(
            f"{path} holds texts of {longest} bytes in column {column!r}; a path or a key has at "
            f"most {TEXT_BYTES}, and {len(values)} of them {_BATCH_BYTES}."
        )
    return values.dictionary_decode().to_pylist()  # type: ignore[no-any-return]


class ImageColumn:
    """A column of images, read in rising order and one row at a time.

    A row group may be larger than memory, so it is never held whole; going back in it reads it
    again from its start.

    Args:
        file: Of the table; belongs to this object from now on.
        path: What errors call it.
        column: Of bytes, of the pair of bytes and path that Hugging Face's datasets write, or of
            texts.

    Raises:
        SourceError: It lacks the column, or claims what cannot be.
    """

    def __init__(self, file: BinaryIO, path: str, column: str) -> None:
        self._file, self._path = file, path
        try:
            self._parquet = _opened(file)
            metadata, schema = self._parquet.metadata, self._parquet.schema_arrow
            groups = _rows_of_groups(metadata, file, path)
            if schema.names.count(column) != 1:
                raise SourceError(f"{path} has no column {column!r} any more, or several.")
            self._leaves = _leaves(column, _type(schema, column))
        except BaseException:
            file.close()
            raise
        self._column = column
        self._starts = [0, *accumulate(groups)]  # rows before each group, and all
        self._group, self._next = -1, 0  # row of the group that comes next
        self._batches: Iterator[Any] = iter(())
        self._batch: Any = None

    def value(self, row: int) -> Any:
        """Return what the column holds in a row, as a Python value.

        Raises:
            ImageError: There is no such row.
            SourceError: Its row group claims what cannot be.
        """
        if not 0 <= row < self._starts[-1]:
            raise ImageError(
                f"{self._path} has {self._starts[-1]} rows, not a row {row}; it has changed."
            )
        group = bisect_right(self._starts, row) - 1
        offset = row - self._starts[group]
        if group != self._group or offset < self._next - 1:
            _check_density(self._parquet.metadata, group, self._leaves, self._file, self._path)
            self._group, self._next, self._batch = group, 0, None
            self._batches = self._parquet.iter_batches(
                1, row_groups=[group], columns=self._leaves, use_threads=False
            )
        while self._next <= offset:
            self._batch = next(self._batches, None)
            if self._batch is None:
                raise ImageError(f"{self._path} ends before row {row}; copy or download it again.")
            self._next += 1
        return self._batch.column(self._column)[0].as_py()

    def close(self) -> None:
        """Close the file."""
        self._parquet.close()
        self._file.close()


def _opened(file: BinaryIO, **options: Any) -> Any:
    parquet = require("pyarrow.parquet", _PURPOSE)
    return parquet.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES, **options)


def _rows_of_groups(metadata: Any, file: BinaryIO, path: str) -> list[int]:
    """Return the rows of each row group; a row that has less than a byte is no image's."""
    groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    if min(groups, default=0) < 0 or not sum(groups) == metadata.num_rows <= length_of(file):
        raise SourceError(
            f"{path} claims {metadata.num_rows} rows in {length_of(file)} bytes, which cannot be "
            "as many images; copy or download it again."
        )
    return groups


def _check_density(
    metadata: Any, group: int, leaves: Collection[str], file: BinaryIO, path: str
) -> None:
    """Refuse columns of a row group that a few bytes stand for gigabytes of."""
    columns = (metadata.row_group(group).column(index) for index in range(metadata.num_columns))
    for chunk in columns:
        if chunk.path_in_schema in leaves:
            packed = min(chunk.total_compressed_size, length_of(file))
            unpacked = max(chunk.total_uncompressed_size, _longest_page(chunk, packed, file, path))
            if unpacked > max(_SMALL_BYTES, _DENSEST * packed):
                raise SourceError(
                    f"{path} holds {unpacked} bytes of column {chunk.path_in_schema!r} in {packed} "
                    "packed ones; write it again in smaller row groups."
                )


def _longest_page(chunk: Any, packed: int, file: BinaryIO, path: str) -> int:
    """Return how long a page of a column says that it becomes, 0 where none can be too long."""
    least = _EXPANSION.get(chunk.compression, _LARGEST_PAGE)
    if packed * _DENSEST >= _LARGEST_PAGE or packed * least <= _SMALL_BYTES or least <= _DENSEST:
        return 0
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < start:
        start = chunk.dictionary_page_offset
    file.seek(start)
    try:
        return max((unpacked for unpacked, _ in page_lengths(file.read(packed))), default=0)
    except ValueError as error:
        raise SourceError(
            f"{path} is damaged in column {chunk.path_in_schema!r}: {error}. "
            "Copy or download it again."
        ) from error


def _types() -> Any:
    return require("pyarrow", _PURPOSE).types


def _type(schema: Any, column: str) -> Any:
    """Return the type of the first column of that name, None without one."""
    return next((one.type for one in schema if one.name == column), None)


def _leaves(column: str, kind: Any) -> list[str]:
    """Return what is read of a column: of a pair no more than the two, whatever else it has."""
    if not _types().is_struct(kind):
        return [column]
    names = {kind.field(index).name for index in range(kind.num_fields)}
    return [f"{column}.{name}" for name in ("bytes", "path") if name in names]


def _is_bytes(kind: Any) -> bool:
    """Say whether a type is bytes, or the pair of bytes and path of Hugging Face's datasets."""
    if kind is None:
        return False
    if _types().is_struct(kind):
        return "bytes" in {kind.field(index).name for index in range(kind.num_fields)}
    if _types().is_fixed_size_binary(kind):
        return bool(kind.byte_width <= MAX_BYTES)
    return _is_binary(kind)


def _is_binary(kind: Any) -> bool:
    types = _types()
    return types.is_binary(kind) or types.is_large_binary(kind) or str(kind) == "binary_view"


def _is_text(kind: Any) -> bool:
    types = _types()
    if kind is not None and types.is_dictionary(kind):
        kind = kind.value_type
    return kind is not None and bool(
        types.is_string(kind) or types.is_large_string(kind) or str(kind) == "string_view"
    )


def _is_measured(kind: Any) -> bool:
    """Say whether values may be of any length; such a column is read as a dictionary of them."""
    inner = kind.value_type if _types().is_dictionary(kind) else kind
    return _is_text(kind) or _is_binary(inner)


def _is_key(kind: Any) -> bool:
    """Say whether one value is one short key."""
    if kind is None or _types().is_nested(kind):
        return False
    return not _types().is_fixed_size_binary(kind) or kind.byte_width <= TEXT_BYTES
