"""Tars, zips, Parquet files and addresses that lie, and what must become of each of them.

    python tools/hostile_sources.py --count 2000 --seed 0

A case is a number of a seed: always the same bytes, for one version of what writes them. It is
listed and every image of it is read, which must end within ``SLOW_SECONDS`` and ``MOST_BYTES`` of
memory, in images, in failed images, or in a ``SourceError``; anything else is wrong, and the exit
code is 1 then. ``tests/extraction/test_hostile_sources.py`` runs a sample.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import resource
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from trunkline.errors import ImageError, SourceError
from trunkline.extraction.reading import close_files, read_bytes
from trunkline.extraction.sources import list_items, source_of

SLOW_SECONDS = 5.0
HANG_SECONDS = 60  # after which the whole process is ended, with a trace of where it stood
MOST_BYTES = 1 << 30
MAX_BYTES = 1 << 20  # of one image

Random = np.random.Generator

_NUMBERS = (0, 1, 511, 512, 513, 4096, 2**31 - 1, 2**31, 2**33, 2**62, 2**63, 2**64, 2**87)
_FIELDS = {"mode": (100, 8), "size": (124, 12), "mtime": (136, 12), "device": (329, 8)}
_TYPES = b"\x000123456789gxXLKSDMVN\xff"


def tar(random: Random) -> bytes:
    """Return a tar, one to three things of which are not true."""
    kinds = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=_one(random, kinds)) as packed:
        for number in range(random.integers(1, 5)):
            name = f"{'d' * int(random.integers(1, 150))}/{number}.jpg"
            info = tarfile.TarInfo(name if random.random() < 0.5 else name[-5:])
            image = random.bytes(int(random.integers(0, 1500)))
            info.size = len(image)
            if random.random() < 0.3:
                info.pax_headers = {"size": str(_number(random)), "comment": "é" * 9}
            packed.addfile(info, io.BytesIO(image))
    content = bytearray(file.getvalue())
    for _ in range(random.integers(1, 4)):
        if len(content) >= 512:
            content = _one(random, _TAR_LIES)(content, random)
    return bytes(content)


def _lie_in_a_field(content: bytearray, random: Random) -> bytearray:
    header = _header(content, random)
    start, width = _one(random, list(_FIELDS.values()))
    number = _number(random)
    written = f"{abs(number):o}".encode()[-width + 1 :].ljust(width, b"\0")
    if number < 0 or random.random() < 0.5:  # base 256
        written = (number % 256**width).to_bytes(width, "big")
        written = (b"\xff" if number < 0 else b"\x80") + written[1:]
    content[header + start : header + start + width] = written
    return _with_checksum(content, header)


def _lie_of_the_type(content: bytearray, random: Random) -> bytearray:
    header = _header(content, random)
    content[header + 156] = _one(random, _TYPES)
    return _with_checksum(content, header)


def _say_more(content: bytearray, random: Random) -> bytearray:
    """Put headers that speak of the next member in front of one."""
    place = _header(content, random)
    more = b""
    for _ in range(int(2 ** random.integers(0, 8))):
        info = tarfile.TarInfo("more")
        info.type = _one(random, (b"x", b"g", b"L", b"K", b"X"))
        key = _one(random, ("size", "path", "GNU.sparse.map", "GNU.sparse.size", "hdrcharset"))
        value = _one(
            random, (str(_number(random)), "9" * 5000, "a" * 70_000, "", "1,2", "\n", "::")
        )
        record = f" {key}={value}\n".encode()
        said = str(len(record) + 5).encode() + record if random.random() < 0.8 else random.bytes(99)
        info.size = _number(random) if random.random() < 0.1 else len(said)
        more += info.tobuf(tarfile.GNU_FORMAT) + said.ljust(-(-len(said) // 512) * 512, b"\0")
    return content[:place] + more + content[place:]


def _flip(content: bytearray, random: Random) -> bytearray:
    for place in random.integers(0, len(content), random.integers(1, 9)):
        content[place] ^= 1 << int(random.integers(8))
    if random.random() < 0.5:
        return _with_checksum(content, _header(content, random))
    return content


def _cut(content: bytearray, random: Random) -> bytearray:
    return content[: int(random.integers(1, len(content) + 1))]


def _with_checksum(content: bytearray, header: int) -> bytearray:
    block = content[header : header + 512]
    if len(block) == 512:
        block[148:156] = b" " * 8
        block[148:156] = f"{sum(block):06o}\0 ".encode()
        content[header : header + 512] = block
    return content


def _header(content: bytearray, random: Random) -> int:
    """Return where a block begins that looks like a header."""
    places = [
        p for p in range(0, len(content) - 511, 512) if content[p + 257 : p + 262] == b"ustar"
    ]
    return int(_one(random, places or [0]))


_TAR_LIES = (_lie_in_a_field, _lie_of_the_type, _say_more, _flip, _cut)


def zipped(random: Random) -> bytes:
    """Return a zip whose directory lies, whose members are bombs, or whose names are no paths."""
    file = io.BytesIO()
    compression = _one(random, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(file, "w", compression, compresslevel=9) as packed:
        for number in range(random.integers(1, 5)):
            folder = _one(random, ("", "a/", "../", "/", "a//b/", "a/" * 300, "::", "x::http://h/"))
            long = "n" * _one(random, (1, 1, 1, 5000))
            size = _one(random, (0, 9, 5000, 4 << 20))
            packed.writestr(f"{folder}{long}{number}.jpg", bytes(size))
    content = bytearray(file.getvalue())
    for _ in range(random.integers(0, 3)):
        content = _one(random, (_flip_only, _cut, _write_number))(content, random)
    return bytes(content)


def table(random: Random) -> bytes:
    """Return a Parquet file of images or paths: repeated names, bombs, lies in its numbers."""
    rows = int(_one(random, (1, 5, 2000)))
    big = int(_one(random, (1, 1000, 4 << 20)))
    columns: dict[str, Any] = {
        "bytes": pa.array([bytes(big)] * rows if rows * big < 64 << 20 else [b"x"] * rows),
        "paths": pa.array([f"{number}.jpg" for number in range(rows)]),
        "long": pa.array(["x" * min(big, 100_000)] * min(rows, 5) + [None] * max(0, rows - 5)),
        "pair": pa.array([{"bytes": b"x", "path": "y", "more": [1] * 9}] * rows),
        "key": pa.array(range(rows)),
        "nested": pa.array([[[number]] for number in range(rows)]),
        "fixed": pa.array([bytes(8)] * rows, pa.binary(8)),
    }
    kinds = list(columns)
    names = [_one(random, ("image", "image", "path", "key", "image.bytes", "")) for _ in range(3)]
    arrays = [columns[_one(random, kinds)] for _ in names]
    file = io.BytesIO()
    parquet.write_table(
        pa.table(arrays, names=names),
        file,
        compression=_one(random, ("zstd", "gzip", "none")),
        use_dictionary=bool(random.integers(2)),
        row_group_size=int(_one(random, (1, 100, 10_000))),
        dictionary_pagesize_limit=_one(random, (1 << 20, 1 << 30)),
    )
    content = bytearray(file.getvalue())
    for _ in range(random.integers(0, 3)):
        content = _one(random, (_flip_only, _write_number, _damage_footer))(content, random)
    return bytes(content)


def _damage_footer(content: bytearray, random: Random) -> bytearray:
    """Change bytes of the metadata, which all numbers of the file stand in."""
    length = int.from_bytes(content[-8:-4], "little")
    start = max(0, len(content) - 8 - length)
    for place in random.integers(start, len(content) - 8, random.integers(1, 4)):
        content[place] = random.integers(256)
    return content


def _flip_only(content: bytearray, random: Random) -> bytearray:
    for place in random.integers(0, len(content), random.integers(1, 9)):
        content[place] ^= 1 << int(random.integers(8))
    return content


def _write_number(content: bytearray, random: Random) -> bytearray:
    width = int(2 ** random.integers(0, 4))
    start = int(random.integers(len(content)))
    content[start : start + width] = (_number(random) % 256**width).to_bytes(width, "little")
    return content


def _number(random: Random) -> int:
    number = int(_one(random, _NUMBERS))
    return -number if random.random() < 0.4 else number


def _one(random: Random, choices: Any) -> Any:
    return choices[int(random.integers(len(choices)))]


_LINKS = (
    *("http://[::1", "http://[::1]:80/x.jpg", "http://127.0.0.1:99999/", "https://"),
    *("http://127.0.0.1:1/x.jpg", "http://user:pass@127.0.0.1:1/", "http://x..y/", "s3://"),
    *("reference://", "simplecache", "filecache://x", "github://o:r@/", "data:,x", "file:///none"),
    *("zip", "tar://a.tar", "zip://a.jpg", "memory://none", "dir://", "git://", "ZIP://", "x"),
    *("\ud800", "file://~nobody/x", "~nobody/x", "smb://h/x", "dask://", "jupyter://", "a::", "::"),
    *("/none.zip", "local://"),
)
_ODD = ("\0", "\x1b", "%", "{0..9}", "*", "\udcff", "é", " ", "::")
_ENDINGS = ("", ".tar", ".parquet", ".txt", "/x.jpg", "{1..99999999999}", "[", "?")


def address(random: Random) -> str:
    """Return a location: links of any protocol in any order, with odd characters in between."""
    links = [_one(random, _LINKS) for _ in range(random.integers(1, 5))]
    text = "::".join(links)
    for _ in range(random.integers(0, 3)):
        place = int(random.integers(len(text) + 1))
        text = text[:place] + _one(random, _ODD) + text[place:] + _one(random, _ENDINGS)
    return text


def problem_of(location: str) -> str | None:
    """List a source and read all of it; return what happened that must not, None if nothing."""
    started, before = time.perf_counter(), _peak_bytes()
    listed = 0
    try:
        source = source_of(location, column=None)
        for item in list_items(source):
            listed += 1
            if listed > 100_000:
                return "a listing without end"
            try:
                if len(read_bytes(source, item, max_bytes=MAX_BYTES)) > MAX_BYTES:
                    return f"{item} is larger than it may be"
            except ImageError:
                continue
    except SourceError:
        pass
    except Exception as error:  # the very thing that is looked for
        return f"after {listed} images: {error!r}"
    finally:
        close_files()
    seconds, grown = time.perf_counter() - started, _peak_bytes() - before
    if seconds > SLOW_SECONDS:
        return f"took {seconds:.1f} s"
    return f"took {grown >> 20} MiB" if grown > MOST_BYTES else None


def _peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _in_file(make: Callable[[Random], bytes], name: str) -> Callable[[Random, Path], str]:
    def written(random: Random, folder: Path) -> str:
        path = folder / name
        path.write_bytes(make(random))
        return f"zip://::{path}" if name.endswith(".zip") else str(path)

    return written


KINDS: dict[str, Callable[[Random, Path], str]] = {
    "tar": _in_file(tar, "x.tar"),
    "tar in a chain": lambda random, folder: f"tar://::{_in_file(tar, 'x.tar')(random, folder)}",
    "zip": _in_file(zipped, "x.zip"),
    "Parquet": _in_file(table, "x.parquet"),
    "address": lambda random, _: address(random),
}


def run(numbers: range, seed: int) -> Iterator[tuple[str, int, str | None]]:
    """Yield kind, number and problem of the cases with these numbers; kinds take turns."""
    kinds = list(KINDS)
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            kind = kinds[number % len(kinds)]
            location = KINDS[kind](np.random.default_rng([seed, number]), Path(folder))
            yield kind, number, problem_of(location)


def main() -> int:
    """Try as many cases as asked for, and say what became of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    given = parser.parse_args()
    started, tried, wrong = time.perf_counter(), Counter[str](), 0
    for kind, number, problem in run(range(given.first, given.first + given.count), given.seed):
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        tried[kind] += 1
        if problem is not None:
            wrong += 1
            print(f"case {number} ({kind}): {problem}", flush=True)
    counts = ", ".join(f"{count} {kind}" for kind, count in tried.items())
    seconds = time.perf_counter() - started
    print(f"seed {given.seed}: {counts}; {wrong} wrong; {seconds:.0f} s, {_peak_bytes() >> 20} MiB")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
