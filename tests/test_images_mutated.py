"""Mutated photos: a picture or an ImageError, nothing else. A sample of under five seconds.

``python tools/mutate_images.py`` decodes all 10 000.
"""

from __future__ import annotations

import contextlib
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import mutate_images
import pytest
from mutate_images import mutation, photos, run

from trunkline import decoders
from trunkline.errors import ImageError
from trunkline.images import decode_image, decode_photo

SAMPLE = range(880)
FORMATS = {"JPEG", "PNG", "WebP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF"}


def test_mutated_photos_give_a_picture_or_an_image_error() -> None:
    tallies = run(SAMPLE, seed=21)  # another seed than the command's default: other cases
    assert [line for tally in tallies.values() for line in tally.wrong] == []
    assert set(tallies) == FORMATS
    assert sum(tally.decoded + tally.refused for tally in tallies.values()) == len(SAMPLE)
    for tally in tallies.values():  # both ways are taken, so that neither is left untested
        assert tally.decoded >= 5
        assert tally.refused >= 10


def test_the_photos_that_are_mutated_are_sound_and_of_every_format() -> None:
    assert {name.split()[0] for name in photos()} == FORMATS
    for name, content in photos().items():
        photo = decode_photo(content, mutate_images.SMALL, decode="fast")
        assert sorted((photo.width, photo.height)) == [40, 48], name
        assert photo.factor == (2 if name.split()[0] == "JPEG" else 1), name


def test_a_case_is_always_the_same_bytes() -> None:
    assert [mutation(3, number) for number in range(40)] == [mutation(3, n) for n in range(40)]
    assert mutation(3, 5) != mutation(4, 5)
    changed = sum(photos()[name] != content for name, content in (mutation(0, n) for n in SAMPLE))
    assert changed > 0.95 * len(SAMPLE)


def test_what_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders.remarks, "ignored", contextlib.nullcontext)
    warned = [line for tally in run(SAMPLE[:440], seed=21).values() for line in tally.wrong]
    assert any("warned UserWarning(" in line for line in warned)
    monkeypatch.undo()

    def raising(*_args: Any, **_options: Any) -> None:
        raise RuntimeError("a decoder that nobody caught")

    monkeypatch.setattr(mutate_images, "decode_photo", raising)
    assert "RuntimeError('a decoder that" in run(range(1), seed=0)["JPEG"].wrong[0]


def test_the_command_prints_counts_and_its_verdict() -> None:
    done = subprocess.run(
        [sys.executable, mutate_images.__file__, "--count", "44", "--first", "100"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["format", "decoded", "refused", "wrong", "slowest"]
    assert {line.split()[0] for line in lines[1:-1]} == FORMATS
    assert "44 mutations, seed 0, Pillow " in lines[-1]
    assert " 0 wrong; " in lines[-1]


def tiff_with_broken_exif(tmp_path: Path) -> bytes:
    """A sound TIFF one of whose entries says that it is longer than the file."""
    content = bytearray(photos()["TIFF"])
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    for place in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", content, place) == (271,):  # the camera's maker
            struct.pack_into("<I", content, place + 4, 2**30)
    assert bytes(content) != photos()["TIFF"]
    (tmp_path / "photo.tiff").write_bytes(content)
    return bytes(content)


def test_remarks_on_broken_metadata_are_not_passed_on(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with contextlib.suppress(ImageError):
            decode_image(tiff_with_broken_exif(tmp_path))
    assert [str(one.message) for one in seen] == []
