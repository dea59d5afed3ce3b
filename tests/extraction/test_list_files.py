"""Lists as people have them are read, or refused as a whole with the line."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import trunkline
from trunkline.cli.root import app
from trunkline.errors import ConfigError, SourceError
from trunkline.extraction.sources import Source, list_items, source_of

PLAIN = "a.jpg\r\nfolder b/b c.jpg\r\nd.PNG\r\n"
NAMES = ["a.jpg", "folder b/b c.jpg", "d.PNG"]

TEXTS: dict[str, tuple[str, bytes]] = {
    "plain": ("l.txt", PLAIN.encode()),
    "no end": ("l.txt", PLAIN.rstrip().encode()),
    "UTF-8 with a mark": ("l.txt", PLAIN.encode("utf-8-sig")),
    "UTF-16": ("l.txt", PLAIN.encode("utf-16")),
    "UTF-16, big end first": ("l.lst", b"\xfe\xff" + PLAIN.encode("utf-16-be")),
    "UTF-32": ("l.txt", PLAIN.encode("utf-32")),
    "quotes": ("l.txt", b'"a.jpg"\n\'folder b/b c.jpg\'\n"d.PNG"\n'),
    "labels": ("l.txt", b"a.jpg 0\nfolder b/b c.jpg 12\nd.PNG 3\n"),
    "tabs": ("l.txt", b"a.jpg\tcat\nfolder b/b c.jpg\tgrey cat\nd.PNG\t\t7\n"),
    "commas": ("l.txt", b'a.jpg,0\n"folder b/b c.jpg",1\nd.PNG, 2\n'),
    "CSV": ("l.csv", b'label,image\n0,a.jpg\n1,"folder b/b c.jpg"\n\n2,d.PNG\n'),
    "CSV of Windows": (
        "l.csv",
        "Path,Label\na.jpg,0\nfolder b/b c.jpg,1\nd.PNG,2\n".encode("utf-16"),
    ),
    "CSV without a header": ("l.csv", b"a.jpg,0\nfolder b/b c.jpg,1\nd.PNG,2\n"),
    "TSV": ("l.tsv", b"filename\tlabel\na.jpg\t0\nfolder b/b c.jpg\t1\nd.PNG\t2\n"),
    "JSON lines": (
        "l.jsonl",
        b"".join(json.dumps({"id": 1, "image": name}).encode() + b"\n" for name in NAMES),
    ),
    "texts in JSON lines": ("l.ndjson", b"".join(json.dumps(n).encode() + b"\n" for n in NAMES)),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_list_is_read(
    tmp_path: Path, kind: str, assert_continues_anywhere: Callable[[Source], None]
) -> None:
    name, content = TEXTS[kind]
    path = tmp_path / name
    path.write_bytes(content)
    source = source_of(path)
    assert source.kind == "list"
    assert [item.key for item in list_items(source)] == NAMES
    assert [item.path for item in list_items(source)] == [f"{tmp_path}/{name}" for name in NAMES]
    assert_continues_anywhere(source)


def test_paths_that_look_odd_stay_what_they_are(tmp_path: Path) -> None:
    lines = ["a b .jpg ", "no ending", "x/one.bin", "s3://bucket/a b.jpg", "caf\xe9, bar.jpg", "'"]
    path = tmp_path / "l.txt"
    path.write_text("\n".join(lines))
    assert [item.key for item in list_items(source_of(path))] == lines


def test_a_column_may_be_said(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text("image,mask\na.jpg,b.jpg\n")
    assert [one.key for one in list_items(source_of(path, column="mask"))] == ["b.jpg"]
    lines = tmp_path / "l.jsonl"
    lines.write_text('{"image": "a.jpg", "mask": "b.jpg"}\n')
    assert [one.key for one in list_items(source_of(lines, column="mask"))] == ["b.jpg"]
    (tmp_path / "l.txt").write_text("a.jpg\n")
    with pytest.raises(ConfigError, match=r"only Parquet files have columns \(CSV and JSON lines"):
        source_of(tmp_path / "l.txt", column="mask")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "l.txt",
            PLAIN.encode("utf-16-le"),
            r"one in UTF-16 without a byte order mark; save it as",
        ),
        ("l.txt", b"\x89PNG\0\0", r"l\.txt is no text"),
        ("l.txt", b"\xff\xfea", r"l\.txt is damaged: it is no utf-16-le"),
        (
            "l.csv",
            b"id,label\n1,2\n",
            r"no column for images; its first row is 'id', 'label'\. Give",
        ),
        (
            "l.csv",
            b"image,label\na.jpg,1\n,2\n",
            r"no image in line 3: \['', '2'\]; every row needs",
        ),
        ("l.csv", b'image\n"a\n', r"l\.csv is no CSV: unexpected end of data in line"),
        ("l.jsonl", b'{"image": "a.jpg"}\n{"image": \n', r"has no JSON in line 2"),
        (
            "l.jsonl",
            b'{"id": 3}\n',
            r"names no image in line 1: .*needs a text under path, image_pat",
        ),
        ("l.jsonl", b"[1]\n", r"names no image in line 1"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused_as_a_whole(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SourceError, match=said):
        list(list_items(source_of(path)))


def test_a_name_that_stands_twice_is_a_failed_row(tmp_path: Path, photos: Path) -> None:
    picture = (photos / "b.jpg").read_bytes()
    with tarfile.open(tmp_path / "p.tar", "w") as file:
        for name in ("a.jpg", "b.jpg", "a.jpg"):
            member = tarfile.TarInfo(name)
            member.size = len(picture)
            file.addfile(member, io.BytesIO(picture))
    backbone = trunkline.create_backbone("resnet18", return_idx=(0,))
    report = trunkline.extract(
        tmp_path / "p.tar", tmp_path / "f.parquet", backbone, runtime="torch"
    )
    assert (report.images, report.failed) == (3, 1)
    (failed,) = trunkline.open_features(tmp_path / "f.parquet").failures().to_pylist()
    assert failed["key"].endswith("a.jpg (again: 2)")
    assert "stands in" in failed["error"]
    assert "more than once" in failed["error"]


def test_a_run_of_which_every_image_failed_ends_with_an_error(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("a.jpg\nb.jpg\n")
    done = CliRunner().invoke(
        app,
        [
            *("extract", str(tmp_path / "l.txt"), str(tmp_path / "f.parquet")),
            *("--backbone", "resnet18", "--levels", "0", "--runtime", "torch"),
        ],
    )
    assert done.exit_code == 1
    assert "all 2 images failed; 2 times: " in done.stderr
    assert "No such file" in done.stderr
