"""Texts that name images: one a line, with a label beside it, as CSV, or as JSON lines.

They are read as people have them: UTF-8 with or without a byte order mark, UTF-16 with one (what
Windows calls Unicode), any line ends; paths in quotes; ``path label`` and ``path<TAB>label``, of
which the label is left out. A text that makes no sense is refused as a whole, with the line.
"""

from __future__ import annotations

import codecs
import csv
import json
import os
from collections.abc import Iterator
from typing import BinaryIO

from trunkline.errors import SourceError
from trunkline.extraction.locations import is_image_name, is_url

ENDINGS = (".txt", ".lst", ".csv", ".tsv", ".jsonl", ".ndjson")
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
COLUMNS = (  # that hold an image's place, the likeliest first
    *("path", "image_path", "img_path", "filepath", "file_path", "filename", "file_name"),
    *("image", "img", "file", "url", "image_url", "img_url", "uri"),
)
_READ_BYTES = _LINE_BYTES = 1 << 16
_MARKS = (  # what a text begins with, and how it is written
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def named_images(file: BinaryIO, location: str, column: str | None = None) -> Iterator[str]:
    """Yield the paths and URLs that a text names, in its order.

    Args:
        file: The text.
        location: Where it is; its ending says what it is.
        column: Of CSV and JSON lines; None finds it by its name.

    Raises:
        SourceError: It is no such text, or has no such column.
    """
    ending = os.path.splitext(location)[1].lower()
    lines = _lines(file, location)
    if ending in (".csv", ".tsv"):
        yield from _of_table(lines, location, column, "\t" if ending == ".tsv" else ",")
    elif ending in (".jsonl", ".ndjson"):
        yield from _of_objects(lines, location, column)
    else:
        yield from (_of_line(line) for line in lines if line.strip())


def _of_line(line: str) -> str:
    """Return the path in a line, without quotes and without what is said of it behind."""
    if is_image_name(line) or is_url(line):
        return line
    for separator in ("\t", ",", " ", ";"):
        parts = line.rpartition(separator) if separator == " " else line.partition(separator)
        path, _, label = parts
        plain = _unquoted(path.strip())
        if label.strip() and (is_image_name(plain) or is_url(plain)):
            return plain
    return _unquoted(line)


def _unquoted(text: str) -> str:
    text_ = text.strip()
    quoted = len(text_) > 2 and text_[0] == text_[-1] and text_[0] in "\"'"
    return text_[1:-1] if quoted else text


def _of_table(
    lines: Iterator[str], location: str, column: str | None, delimiter: str
) -> Iterator[str]:
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        first = next((row for row in rows if any(row)), [])
        names = [name.strip().lower() for name in first]
        if column is not None:
            place = names.index(column.lower()) if column.lower() in names else -1
        else:
            place = next((names.index(one) for one in COLUMNS if one in names), -1)
        if place < 0:
            # A table without a header: its first row is one of an image.
            place = next((n for n, value in enumerate(first) if is_image_name(value)), -1)
            if column is not None or place < 0:
                raise SourceError(
                    f"{location} has no column {column or 'for images'}; its first row is "
                    f"{', '.join(map(repr, first[:10])) or 'empty'}. Give column=NAME (--column)."
                )
            yield first[place].strip()
        for row in rows:
            if not any(row):
                continue
            if len(row) <= place or not row[place].strip():
                raise SourceError(
                    f"{location} has no image in line {rows.line_num}: {str(row)[:80]}; every row "
                    f"needs a path or URL in column {place + 1}."
                )
            yield row[place].strip()
    except csv.Error as error:
        raise SourceError(f"{location} is no CSV: {error} in line {rows.line_num}.") from error


def _of_objects(lines: Iterator[str], location: str, column: str | None) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            held = json.loads(line)
        except ValueError as error:
            raise SourceError(f"{location} has no JSON in line {number}: {error}.") from error
        if isinstance(held, dict):
            wanted = (column,) if column is not None else COLUMNS
            held = next((held[name] for name in wanted if name in held), None)
        if not isinstance(held, str) or not held:
            raise SourceError(
                f"{location} names no image in line {number}: {line.strip()[:80]}; an object needs "
                f"a text under {column or ', '.join(COLUMNS[:3]) + ', …'}. Give column=NAME "
                "(--column)."
            )
        yield held


def _lines(file: BinaryIO, location: str) -> Iterator[str]:
    """Yield the lines, without their ends; fsspec's files know no limit for one of their own."""
    read = file.read(_READ_BYTES)
    mark, encoding = next((one for one in _MARKS if read.startswith(one[0])), (b"", ""))
    if not mark and b"\0" in read[:1000]:
        raise SourceError(
            f"{location} is no text, or one in UTF-16 without a byte order mark; save it as UTF-8."
        )
    decoder = codecs.getincrementaldecoder(encoding)() if encoding not in ("", "utf-8") else None
    read = read.removeprefix(mark)
    rest: bytes = b""
    while read:
        try:
            following = file.read(_READ_BYTES)
            if decoder is None:
                piece = read
            else:
                piece = decoder.decode(read, final=not following).encode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise SourceError(f"{location} is damaged: it is no {encoding}.") from error
        *whole, rest = (rest + piece).split(b"\n")
        if len(rest) > _LINE_BYTES:
            raise SourceError(
                f"{location} has a line of more than {_LINE_BYTES} bytes, which is no path; "
                "it must be a text file with one path or URL per line."
            )
        yield from map(_text, whole)
        read = following
    if rest:
        yield _text(rest)


def _text(line: bytes) -> str:
    # Names of files need not be UTF-8.
    return os.fsdecode(line.removesuffix(b"\r"))
