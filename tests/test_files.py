"""Documents of strangers, and the signature that tells this machine's files from theirs."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trunkline import files
from trunkline.errors import ConfigError
from trunkline.files import (
    DocumentError,
    absolute,
    home,
    parse_document,
    read_document,
    sign,
    why_untrusted,
)


@dataclass(frozen=True, kw_only=True)
class Inner:
    name: str
    stride: Annotated[int, msgspec.Meta(ge=1, le=64)]


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: tuple[Inner, ...]
    files: dict[str, str]
    free: dict[str, Any]


GOOD = {"inner": [{"name": "a", "stride": 4}], "files": {"x": "y"}, "free": {"b": [1, None]}}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_HOME", str(tmp_path / "home"))


def test_a_document_becomes_its_dataclass() -> None:
    found = parse_document(json.dumps(GOOD), Outer)
    assert found == Outer(
        inner=(Inner(name="a", stride=4),), files={"x": "y"}, free={"b": [1, None]}
    )


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "truncated"),
        ("[]", "Expected `object`"),
        ('{"inner": 1}', r"Expected `array`, got `int` - at `\$.inner`"),
        ('{"inner": [], "files": {}}', "missing required field `free`"),
        ('{"inner": [{"name": "a", "stride": true}]}', r"at `\$.inner\[0\].stride`"),
        ('{"inner": [{"name": "a", "stride": 1000000}]}', "<= 64"),
        ('{"inner": [], "files": {"a": 1}}', "Expected `str`"),
        ('{"inner": [], "files": {}, "free": {"a": NaN}}', "malformed"),
        ('{"inner": [], "files": {}, "free": {"a": ' + "[" * 100_000 + "}}", "nested too deeply"),
        ('{"inner": [], "files": {}, "free": {"a": ' + "9" * 5_000 + "}}", "out of range"),
        (b'{"inner": "\xff\xfe"}', "inner"),
    ],
)
def test_what_is_not_that_document_is_refused(text: str | bytes, match: str) -> None:
    with pytest.raises(DocumentError, match=match):
        parse_document(text, Outer)


@settings(deadline=None)
@given(JSON, st.sampled_from(["inner", "files", "free", ""]))
def test_no_structure_raises_anything_else(value: object, place: str) -> None:
    document: object = {**GOOD, place: value} if place else value
    try:
        found = parse_document(json.dumps(document), Outer)
    except DocumentError:
        return
    assert isinstance(found, Outer)


def test_a_pipe_and_a_huge_file_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DocumentError, match="no regular file"):
        read_document(tmp_path / "pipe", Outer)
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DocumentError, match="1099511627776 bytes, and 67108864 is the most"):
        read_document(tmp_path / "huge", Outer)


def test_a_home_of_nobody_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_HOME", "~nobody-of-this-name/x")
    with pytest.raises(ConfigError, match=r"nobody knows where '~nobody-of-this-name/x' is"):
        home()
    assert sign("kind", "text") is None
    assert "no home folder" in str(why_untrusted("kind", "text", "0" * 64))


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody's settings; where temporary files go."""
    for name in ("TRUNKLINE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    files._home_elsewhere.cache_clear()
    return tmp_path / "tmp"


def _unknown(_: Path) -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_a_user_without_a_home_keeps_things_among_temporary_files(
    homeless: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Path, "expanduser", _unknown)
    assert home() == homeless / f"trunkline-{os.getuid()}" == home()
    assert home().stat().st_mode & 0o777 == 0o700
    (said,) = caplog.messages
    assert "this user has no home folder" in said
    assert "set TRUNKLINE_HOME to a folder that stays" in said
    assert why_untrusted("kind", "text", sign("kind", "text")) is None


def test_a_folder_of_somebody_else_among_temporary_files_is_not_taken(
    homeless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "expanduser", _unknown)
    theirs = homeless / f"trunkline-{os.getuid()}"
    theirs.mkdir()
    theirs.chmod(0o777)
    assert home() != theirs
    assert home().stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.getuid() == 0, reason="the superuser may write everywhere")
def test_a_home_that_cannot_be_written_is_no_home(
    homeless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "user").mkdir(mode=0o500)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    assert home().parent == homeless


def test_what_was_signed_here_is_known_again() -> None:
    signature = sign("kind", "text")
    assert why_untrusted("kind", "text", signature) is None


@pytest.mark.parametrize("signature", [None, "", 3, "é", "0" * 64])
def test_another_signature_is_not(signature: object) -> None:
    sign("kind", "text")
    reason = why_untrusted("kind", "text", signature)
    assert reason is not None
    assert ("no signature" in reason) is not isinstance(signature, str)


def test_a_signature_serves_for_one_kind_and_one_text() -> None:
    signature = sign("kind", "text")
    assert why_untrusted("other", "text", signature) is not None
    assert why_untrusted("kind", "texts", signature) is not None


def test_another_machine_does_not_know_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signature = sign("kind", "text")
    monkeypatch.setenv("TRUNKLINE_HOME", str(tmp_path / "elsewhere"))
    assert "no key yet" in str(why_untrusted("kind", "text", signature))
    assert not (tmp_path / "elsewhere").exists()  # looking makes nothing
    sign("kind", "text")
    assert "another machine" in str(why_untrusted("kind", "text", signature))


def test_the_key_is_the_user_s_alone(tmp_path: Path) -> None:
    signature = sign("kind", "text")
    key = tmp_path / "home" / "key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in key.parent.iterdir()] == ["key"]
    key.chmod(0o644)
    assert "chmod 600" in str(why_untrusted("kind", "text", signature))
    assert sign("kind", "text") is None
    key.chmod(0o600)
    key.write_bytes(b"short")
    assert "damaged" in str(why_untrusted("kind", "text", signature))


def test_a_home_that_cannot_be_written_signs_nothing(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    assert sign("kind", "text") is None
    assert "cannot be used" in str(why_untrusted("kind", "text", "0" * 64))


@pytest.mark.skipif(os.name == "nt", reason="a working directory there cannot be removed")
def test_a_working_directory_that_was_removed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    assert absolute("a/../b") == gone / "a" / ".." / "b"
    gone.rmdir()
    with pytest.raises(ConfigError, match=r"was removed, so that f\.parquet cannot be found"):
        absolute("f.parquet")
    assert absolute(tmp_path / "f.parquet") == tmp_path / "f.parquet"
