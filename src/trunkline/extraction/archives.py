"""Images inside tars and Parquet files: which files those are, and where in them each image is.

Of a tar only the headers are read; of a Parquet file only the columns of keys and paths. What is
read later is found by its place: the first byte and the length, or the number of the row.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from trunkline.errors import SourceError
from trunkline.extraction.locations import (
    is_hidden,
    is_image_name,
    is_pattern,
    joined,
    local_path,
    name_of,
    open_location,
    relative_name,
    resolved,
    split_glob,
    split_name,
    written_key,
    written_path,
)
from trunkline.extraction.records import Item
from trunkline.extraction.walking import Pattern, walk
from trunkline.runtimes.optional import require

MAX_PARTS = 1_000_000
"""Files that one source may have; their names are held in memory."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_BATCH_ROWS = 8192
_BLOCK_BYTES = 512  # of a tar
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd

# Names that columns of images go by. Bytes come first: they need no other file.
_BYTES_NAMES = ("image", "img", "bytes", "image_bytes", "content", "jpg", "jpeg", "png", "webp")
_PATH_NAMES = (
    *("image", "img", "path", "image_path", "img_path", "file", "filepath", "file_path"),
    *("filename", "file_name", "url", "image_url", "uri"),
)


def parts_of(location: str, suffix: str) -> list[tuple[str, str]]:
    """List the files of a tar or Parquet source, in order.

    Args:
        location: One file, a folder of them, a glob, or a brace range.
        suffix: What their names end in, in a folder.

    Returns:
        For each its name, relative to what all have in common by the location, and its location;
        both are valid UTF-8.

    Raises:
        SourceError: There are none, there are too many, or a local file of a range is missing.
    """
    path = local_path(location)
    if path is not None and os.path.isdir(path):
        found = _matching(location, [f"*{suffix}"])
    elif (path is not None and os.path.lexists(path)) or not is_pattern(location):
        if path is None and not name_of(location).lower().endswith(suffix):
            found = _matching(location, [f"*{suffix}"])
        else:
            found = [(split_name(location)[1], location)]
    else:
        found = _expanded(location)
    if not found:
        raise SourceError(f"{location} matches no {suffix} file; check the path.")
    return [(written_key(name), _checked(where)) for name, where in found]


def _expanded(location: str) -> list[tuple[str, str]]:
    root = split_name(_BRACES.split(location, maxsplit=1)[0] + "x")[0]
    root = min(root, split_glob(location)[0], key=len)
    found: list[tuple[str, str]] = []
    for one in _unbraced(location):
        folder, names = split_glob(one)
        if names:
            found += [
                (relative_name(root, where) or name, where)
                for name, where in _matching(folder, names)
            ]
        else:
            found.append((relative_name(root, one) or split_name(one)[1], one))
        if len(found) > MAX_PARTS:
            raise SourceError(
                f"{location} is more than {MAX_PARTS} files; give fewer, larger ones at a time."
            )
    return found


def _unbraced(text: str) -> Iterator[str]:
    """Yield what braces stand for: ``{a,b}``, or ``{08..11}`` with as many digits as written."""
    match = _BRACES.search(text)
    if match is None:
        yield text
        return
    reach = _RANGE.fullmatch(match[1])
    if reach is None:
        choices: Iterator[str] = iter(match[1].split(","))
    else:
        first, last = int(reach[1]), int(reach[2])
        padded = any(end.startswith("0") and end != "0" for end in reach.groups())
        digits = max(map(len, reach.groups())) if padded else 0
        step = 1 if last >= first else -1
        choices = (str(number).zfill(digits) for number in range(first, last + step, step))
    for choice in choices:
        yield from _unbraced(text[: match.start()] + choice + text[match.end() :])


def _matching(folder: str, names: list[str]) -> list[tuple[str, str]]:
    found = ["/".join(path) for path in walk(folder, Pattern(names))]
    return [(name, joined(folder, name)) for name in found]


def _checked(location: str) -> str:
    path = local_path(location)
    if path is None:
        return location
    if not os.path.isfile(path):
        raise SourceError(
            f"{path} does not exist, or is not a regular file; "
            "check the path, or give a range of what is there."
        )
    return written_path(path)


@contextmanager
def _reading(location: str, kind: str) -> Iterator[BinaryIO]:
    """Open a file, and turn whatever is wrong with it into a ``SourceError``."""
    try:
        with open_location(location) as file:
            yield file
    except (SourceError, GeneratorExit):
        raise
    except Exception as error:  # drivers and damaged files raise nearly anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SourceError(
            f"{location} cannot be read as a {kind}: {reason}. Copy or download it again."
        ) from error


def list_tar(location: str, after: Item | None) -> Iterator[Item]:
    """Yield the images in tars, in the members' order.

    Members count by the ending of their names; hidden ones, links and folders do not.

    Args:
        location: See ``parts_of``.
        after: Continue behind this one, at once: no header before it is read again.

    Raises:
        SourceError: A tar is missing, compressed, damaged or cut short.
    """
    parts = parts_of(location, ".tar")
    offset = 0
    if after is not None:
        paths = [path for _, path in parts]
        if after.path not in paths:
            raise SourceError(
                f"{after.path} is no longer among the tars of {location}, and the listing has to "
                "continue in it; put it back, or extract into a new place."
            )
        parts = parts[paths.index(after.path) :]
        offset = (after.start or 0) + -(-(after.size or 0) // _BLOCK_BYTES) * _BLOCK_BYTES
    for name, path in parts:
        with _reading(path, "tar") as file:
            for member in _members(file, path, offset):
                inside = member.name.removeprefix("./")
                if is_image_name(inside) and not any(map(is_hidden, inside.split("/"))):
                    key = written_key(f"{name}/{inside}")
                    yield Item(key, path, member.offset_data, member.size)
        offset = 0


def _members(file: BinaryIO, path: str, offset: int) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files in a tar from a byte on."""
    if offset == 0 and file.read(6).startswith(_COMPRESSED):
        raise SourceError(
            f"{path} is compressed, and its members cannot be read one by one; "
            "decompress it into a plain .tar."
        )
    file.seek(offset)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would remember them all
            if member.issparse():
                raise SourceError(
                    f"{path} stores {member.name} as a sparse file, which is not in one piece; "
                    "pack it again without --sparse."
                )
            if member.isreg():
                yield member
        # tarfile takes a damaged header for the end.
        file.seek(tar.offset)
        if file.read(_BLOCK_BYTES).strip(b"\0"):
            raise SourceError(
                f"{path} is damaged at byte {tar.offset}: there is no header of a member. "
                "Copy or download it again."
            )


def pick_column(location: str, column: str | None, key_column: str | None) -> str:
    """Find where a Parquet file has its images, by the schema of the first file.

    Raises:
        SourceError: There is no such column, or several could be meant; the text lists all.
    """
    parquet = require("pyarrow.parquet", "reading images from Parquet")
    _, path = parts_of(location, ".parquet")[0]
    with _reading(path, "Parquet file") as file:
        schema = parquet.ParquetFile(file).schema_arrow
    listed = ", ".join(f"{one.name} ({one.type})" for one in schema)
    if key_column is not None and key_column not in schema.names:
        raise SourceError(f"{path} has no column {key_column!r} for keys; it has {listed}.")
    if column is not None:
        if column not in schema.names or not (
            _is_bytes(schema, column) or _is_text(schema, column)
        ):
            raise SourceError(
                f"{path} has no column {column!r} of bytes, paths or URLs; it has {listed}."
            )
        return column
    inline = [one for one in schema.names if _is_bytes(schema, one) and one.lower() in _BYTES_NAMES]
    paths = [one for one in schema.names if _is_text(schema, one) and one.lower() in _PATH_NAMES]
    candidates: list[str] = inline or paths
    if len(candidates) != 1:
        raise SourceError(
            f"{path} does not show which column has the images; name it by column=. "
            f"It has {listed}."
        )
    return candidates[0]


def _is_bytes(schema: Any, column: str) -> bool:
    """Say whether a column is bytes, or the pair of bytes and path of Hugging Face's datasets."""
    types = require("pyarrow", "reading images from Parquet").types
    kind = schema.field(column).type
    if types.is_struct(kind):
        return "bytes" in {kind.field(index).name for index in range(kind.num_fields)}
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or str(kind) == "binary_view"
    )


def _is_text(schema: Any, column: str) -> bool:
    types = require("pyarrow", "reading images from Parquet").types
    kind = schema.field(column).type
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or str(kind) == "string_view")


def list_table(location: str, column: str, key_column: str | None, first: int) -> Iterator[Item]:
    """Yield the rows of Parquet files as images, in order.

    Args:
        location: See ``parts_of``.
        column: Of bytes, or of paths and URLs; relative paths are relative to the Parquet file.
        key_column: Of the keys; None takes the path, or ``<file>/<row>`` for bytes.
        first: Leave out so many rows.

    Yields:
        Rows with bytes or without an image say which row they are, the others only the path.

    Raises:
        SourceError: A file is damaged or lacks a column, or a key is null.
    """
    parquet = require("pyarrow.parquet", "reading images from Parquet")
    for name, path in parts_of(location, ".parquet"):
        with _reading(path, "Parquet file") as file:
            opened = parquet.ParquetFile(file)
            rows = opened.metadata.num_rows
            if first >= rows:
                first -= rows
                continue
            for wanted in (column, *([] if key_column is None else [key_column])):
                if wanted not in opened.schema_arrow.names:
                    raise SourceError(
                        f"{path} has no column {wanted!r}, which the files before it have."
                    )
            inline = _is_bytes(opened.schema_arrow, column)
            values = _values(opened, None if inline else column, key_column, first)
            folder = split_name(path)[0]
            for row, (text, key) in enumerate(values, first):
                if key_column is not None and key is None:
                    raise SourceError(f"{path} has a null key in column {key_column!r}, row {row}.")
                if text:
                    yield Item(str(key) if key_column else text, resolved(folder, text))
                else:
                    yield Item(str(key) if key_column else f"{name}/{row}", path, row)
            first = 0


def _values(
    opened: Any, column: str | None, key_column: str | None, first: int
) -> Iterator[tuple[Any, Any]]:
    """Yield each row's text and key from one on, None for a column that is not asked for."""
    columns = [one for one in (column, key_column) if one is not None]
    if not columns:
        yield from ((None, None) for _ in range(opened.metadata.num_rows - first))
        return
    groups, skipped = list(range(opened.metadata.num_row_groups)), first
    while skipped >= (rows := opened.metadata.row_group(groups[0]).num_rows):
        skipped -= rows
        del groups[0]
    for batch in opened.iter_batches(_BATCH_ROWS, row_groups=groups, columns=columns):
        whole = {one: batch.column(one).to_pylist()[skipped:] for one in set(columns)}
        skipped = max(skipped - batch.num_rows, 0)
        nothing = [None] * len(next(iter(whole.values())))
        pairs = (whole.get(one, nothing) if one else nothing for one in (column, key_column))
        yield from zip(*pairs, strict=True)
