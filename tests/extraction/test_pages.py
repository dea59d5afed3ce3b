"""Lengths of Parquet's pages by their own headers, whatever the metadata say."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from trunkline.errors import ImageError, SourceError
from trunkline.extraction import pages, tables
from trunkline.extraction.pages import page_lengths
from trunkline.extraction.reading import read_bytes
from trunkline.extraction.sources import list_items, source_of


def chunk_of(content: bytes) -> tuple[bytes, Any]:
    """The bytes of the first column, and what the metadata say of it."""
    column = parquet.read_metadata(io.BytesIO(content)).row_group(0).column(0)
    start = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
    return content[start : start + column.total_compressed_size], column


def written(values: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.table({"image": values}), file, **options)
    return file.getvalue()


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "lz4", "brotli"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_lengths_are_those_that_the_writer_summed_up(
    version: str, compression: str, dictionary: bool
) -> None:
    random = np.random.default_rng(0)
    values = pa.array([random.bytes(9) * int(random.integers(1, 99)) for _ in range(500)] + [None])
    chunk, column = chunk_of(
        written(
            values,
            data_page_version=version,
            compression=compression,
            use_dictionary=dictionary,
            data_page_size=2000,
            write_batch_size=50,
            write_page_checksum=True,
            write_statistics=True,
        )
    )
    lengths = list(page_lengths(chunk))
    assert len(lengths) > 1
    headers = len(chunk) - sum(packed for _, packed in lengths)
    assert sum(unpacked for unpacked, _ in lengths) + headers == column.total_uncompressed_size


def varint(number: int, width: int = 0) -> bytes:
    """Zigzag; a width fills it up with what means nothing."""
    digits: list[int] = []
    rest = number << 1
    while rest or len(digits) < max(1, width):
        digits.append(rest & 127)
        rest >>= 7
    return bytes([*(digit | 128 for digit in digits[:-1]), digits[-1]])


def lying(content: bytes) -> bytes:
    """The same file, whose metadata say that its first column becomes 1000 bytes."""
    said = varint(chunk_of(content)[1].total_uncompressed_size)
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    assert said in content[footer:]
    return content[:footer] + content[footer:].replace(said, varint(1000, len(said)))


@pytest.mark.parametrize("kind", ["bytes", "texts"])
@pytest.mark.parametrize("compression", ["gzip", "zstd", "brotli", "lz4"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_page_that_becomes_large_is_refused_whatever_the_metadata_say(
    tmp_path: Path, kind: str, compression: str, dictionary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_SMALL_BYTES", 50_000)
    value: Any = bytes(1_000_000) if kind == "bytes" else "x" * 1_000_000
    content = written(
        pa.array([value]),
        compression=compression,
        use_dictionary=dictionary,
        dictionary_pagesize_limit=1 << 30,
        write_statistics=False,
    )
    path = tmp_path / "x.parquet"
    path.write_bytes(lying(content))
    assert parquet.read_metadata(path).row_group(0).column(0).total_uncompressed_size == 1000
    source = source_of(path)
    refused = ImageError if kind == "bytes" else SourceError
    with pytest.raises(refused, match=r"holds 10\d+ bytes of column 'image' in \d+ packed ones"):
        [read_bytes(source, item) for item in list_items(source)]
    monkeypatch.setattr(tables, "_SMALL_BYTES", 2_000_000)
    with suppress(SourceError):  # that a text of a million bytes is no path
        assert [read_bytes(source, item) for item in list_items(source)] == [value]


HEADER = b"\x15\x00\x15" + varint(9) + b"\x15" + varint(3)  # kind 0, 9 bytes packed in 3


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (b"\x15\x00\x00", "does not say how long it is"),
        (HEADER + b"\x00", None),
        (HEADER, "is cut off"),
        (b"\x15\x00\x15" + varint(2**31) + b"\x15\x06\x00", "does not say how long it is"),
        (b"\x15\x00\x15" + varint(2**40) + b"\x15\x06\x00", "does not say how long it is"),
        (b"\x15\x00\x15\x01\x15\x06\x00", "does not say how long it is"),
        (HEADER + b"\x05\x04\x02\x00", "says something twice"),
        (HEADER + b"\x1c" * 20, "is nested too deeply"),
        (HEADER + b"\x19\x15", "holds what none has"),
        (HEADER + b"\x15" + b"\xff" * 11, "holds a number without end"),
        (HEADER + b"\x18\x85\x80\x80\x80\x08", "is cut off"),
        (b"\x15\x00\x15\x12\x15\x00\x00" * 21, "it has more than 20 pages"),
    ],
)
def test_header_that_cannot_be_is_refused(
    chunk: bytes, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_MOST", 20)
    if message is None:
        assert list(page_lengths(chunk + b"abc")) == [(9, 3)]
        return
    with pytest.raises(ValueError, match=message):
        list(page_lengths(chunk))


def test_any_bytes_end() -> None:
    for number in range(3000):
        random = np.random.default_rng([9, number])
        chunk = HEADER * int(random.integers(2)) + random.bytes(int(random.integers(0, 60)))
        with suppress(ValueError):
            assert len(list(pages.page_lengths(chunk))) <= len(chunk)
