"""Getting weight files: in the right place, from the right mirror, and never a wrong one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from loopback import FileHost, fails, whole_checkpoint

from trunkline import files
from trunkline.errors import (
    ConfigError,
    IntegrityError,
    OfflineError,
    WeightsNotFoundError,
)
from trunkline.weights import hub
from trunkline.weights.catalog import Place
from trunkline.weights.files import cache
from trunkline.weights.files.places import TypedPlace

pytestmark = pytest.mark.usefixtures("weights_home")

BODY = whole_checkpoint(1 << 20)
SHA256 = hashlib.sha256(BODY).hexdigest()
REPLACED = whole_checkpoint(256)
NAMED = f"/models/tiny-{SHA256[:8]}.pth"


def place(url: str, **known: str) -> Place:
    return Place(url=url, layout="trunkline", **known)


# Places on disk.


def test_files_of_one_name_do_not_collide() -> None:
    urls = [
        "https://a.org/R-50.pkl",
        "https://b.org/R-50.pkl",
        "https://b.org/MSRA/R-50.pkl",
        "http://b.org/R-50.pkl",
        "https://b.org:8443/R-50.pkl",
        "https://b.org/R-50.pkl?id=1",
        "https://b.org/R-50.pkl?id=2",
        "https://hf/o/r/main/R-50.pkl",
        "hf://o/r/R-50.pkl",
        "hf://o/r/R-50.pkl@v1",
        "hf://o/r/R-50.pkl@refs/pr/1",
        "hf://o/s/R-50.pkl",
    ]
    places = [cache.relative_place(url) for url in urls]
    assert len(set(places)) == len(urls)
    assert all(path.name == "R-50.pkl" for path in places)


@pytest.mark.parametrize(
    "url",
    ["https://h/../../x.pth", "https://h/%2e%2e/%2e%2e/x.pth", "https://h/a%2f..%2f..%2fx.pth"],
)
def test_no_address_leads_out_of_the_cache(weights_home: Path, url: str) -> None:
    root = weights_home / "weights"
    assert root.resolve() in (root / cache.relative_place(url)).resolve().parents


def test_no_name_is_one_of_the_caches_own() -> None:
    relative = cache.relative_place("https://h.org/.locks/.x.pth.sha256.json")
    assert not any(part.startswith(".") for part in relative.parts)


def test_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TRUNKLINE_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.home() == tmp_path / "trunkline"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert files.home() == Path("~/.cache/trunkline").expanduser()
    monkeypatch.setenv("TRUNKLINE_HOME", "~/elsewhere")
    assert files.home() == Path("~/elsewhere").expanduser()


# What vouches for a file.


def test_a_name_with_a_wrong_hash_is_never_used(
    file_host: FileHost, half_files: Callable[[], list[str]], cached_files: Callable[[], list[str]]
) -> None:
    url = file_host.add("/models/tiny-deadbeef.pth", BODY)
    with pytest.raises(IntegrityError, match=r"must begin with deadbeef \(the hash in its name\)"):
        hub.fetch_url(url)
    assert cached_files() == half_files() == []
    assert hub.fetch_url(url, sha256=SHA256).read_bytes() == BODY  # who knows better may say so


def test_a_query_is_no_part_of_a_name(file_host: FileHost) -> None:
    url = file_host.add("/models/tiny-deadbeef.pth", BODY) + "?download=1"
    with pytest.raises(IntegrityError, match="must begin with deadbeef"):
        hub.fetch_url(url)
    path = hub.fetch_url(file_host.add("/y.pth", BODY) + "?download=1")
    assert path.name == "y.pth"
    other = place(f"{file_host.origin}/y.pth?download=1")  # the catalog's class keeps the query
    assert hub.fetch([other]) == path


@pytest.mark.parametrize(
    ("name", "digits"),
    [
        ("resnet50-0676ba61.pth", "0676ba61"),
        ("resnet50_8xb32_in1k_20210831-ea4938fa.pth", "ea4938fa"),
        ("x-0676ba61.pth.tar", "0676ba61"),
        ("resnet50-20220101.pth", None),
        ("R-50.pkl", None),
        ("model.safetensors", None),
    ],
)
def test_hashes_in_names(name: str, digits: str | None) -> None:
    assert cache.hash_in_name(name) == digits


def test_a_wrong_full_hash_is_never_used(
    file_host: FileHost, cached_files: Callable[[], list[str]]
) -> None:
    url = file_host.add("/x.pth", BODY)
    with pytest.raises(IntegrityError, match=rf"must be {'0' * 64} \(as it was given\).*{SHA256}"):
        hub.fetch_url(url, sha256="0" * 64)
    assert cached_files() == []


@pytest.mark.parametrize("sha256", ["abc", "x" * 64])
def test_a_hash_that_is_none_is_refused(sha256: str) -> None:
    with pytest.raises(ConfigError, match="is not a sha256; give its 64 hexadecimal digits"):
        hub.fetch_url("https://h/x.pth", sha256=sha256)


def test_the_first_sight_is_recorded_and_checked(
    file_host: FileHost, flip: Callable[[Path], None]
) -> None:
    path = hub.fetch_url(file_host.add("/x.pth", BODY))
    record = json.loads(cache.record_file(path).read_text())
    assert record["sha256"] == SHA256
    assert record["known_by"] == cache.FIRST_SEEN
    flip(path)
    with pytest.raises(IntegrityError, match="recorded when it was first seen") as caught:
        hub.fetch_url(f"{file_host.origin}/x.pth")
    for word in (str(path), SHA256, "trunkline weights verify", "Delete it and pull it again"):
        assert word in str(caught.value)
    assert file_host.count("/x.pth") == 1


@pytest.mark.parametrize("known", [{}, {"sha256_prefix": SHA256[:8]}, {"sha256": SHA256}])
def test_a_flipped_byte_in_the_cache_is_refused(
    file_host: FileHost, known: dict[str, str], flip: Callable[[Path], None]
) -> None:
    here = place(file_host.add("/x.pth", BODY), **known)
    path = hub.fetch([here])
    flip(path)
    with pytest.raises(IntegrityError, match="is not the file that it must be, and was not used"):
        hub.fetch([here])
    path.unlink()
    assert hub.fetch([here]).read_bytes() == BODY


def test_another_file_than_at_first_sight_is_refused(
    file_host: FileHost, cached_files: Callable[[], list[str]]
) -> None:
    url = file_host.add("/x.pth", BODY)
    path = hub.fetch_url(url)
    path.unlink()
    file_host.add("/x.pth", REPLACED)
    with pytest.raises(IntegrityError, match=r"If a change was meant, delete .*sha256.json"):
        hub.fetch_url(url)
    assert cached_files() == []
    cache.record_file(path).unlink()
    assert hub.fetch_url(url).read_bytes() == REPLACED


def test_the_catalogs_hash_outweighs_an_old_record(file_host: FileHost) -> None:
    url = file_host.add("/x.pth", BODY)
    path = hub.fetch_url(url)
    cache.write_atomically(
        cache.record_file(path), json.dumps({**RECORD, "sha256": "0" * 64}) + "\n"
    )
    found = hub.obtain([place(url, sha256=SHA256)])
    assert (found.sha256, found.known_by) == (SHA256, "the catalog")
    assert json.loads(cache.record_file(path).read_text())["sha256"] == SHA256


RECORD = {"sha256": SHA256, "size": 1, "source": "s", "known_by": cache.FIRST_SEEN}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sha256": 1}', "\x00"])
def test_an_unreadable_record_is_said(file_host: FileHost, text: str) -> None:
    path = hub.fetch_url(file_host.add("/x.pth", BODY))
    cache.record_file(path).write_text(text)
    with pytest.raises(IntegrityError, match=r"the record of x.pth's hash, cannot be read"):
        hub.fetch_url(f"{file_host.origin}/x.pth")


# Mirrors.


def test_a_mirror_takes_over(file_host: FileHost) -> None:
    bad = file_host.add("/bad/x.pth", b"wrong bytes")
    good = file_host.add("/good/x.pth", BODY)
    places = [
        place(f"{file_host.origin}/gone/x.pth", sha256=SHA256),
        place(bad, sha256=SHA256),
        place(good, sha256=SHA256),
    ]
    found = hub.obtain(places)
    assert found.path.read_bytes() == BODY
    assert (found.source, found.place) == (good, places[2])
    asked = len(file_host.requests)
    assert hub.obtain(places) == found
    assert len(file_host.requests) == asked


def test_mirrors_may_have_hashes_of_their_own(file_host: FileHost) -> None:
    other = b"the same weights, saved anew"
    places = [
        place(f"{file_host.origin}/gone.pth", sha256_prefix=SHA256[:8]),
        place(
            file_host.add("/other.pth", other),
            sha256_prefix=hashlib.sha256(other).hexdigest()[:10],
        ),
    ]
    assert hub.fetch(places).read_bytes() == other


def test_every_place_and_its_reason_is_listed(
    file_host: FileHost, half_files: Callable[[], list[str]]
) -> None:
    places = [
        place(f"{file_host.origin}/gone.pth"),
        place(file_host.add("/busy.pth", BODY, *[fails(503)] * 3)),
        place(file_host.add("/wrong.pth", b"wrong"), sha256=SHA256),
    ]
    with pytest.raises(WeightsNotFoundError, match="3 places were tried") as caught:
        hub.fetch(places, name="dla34.timm-in1k")
    text = str(caught.value)
    assert text.startswith("the weights dla34.timm-in1k cannot be had")
    assert f"{places[0].url}: HTTP 404 Not Found." in text
    assert f"{places[1].url}: HTTP 503 Service Unavailable (3 attempts)." in text
    assert f"{places[2].url}: its sha256 must be {SHA256} (the catalog), but is" in text
    assert "or as dla34.timm-in1k.pth in a folder that TRUNKLINE_WEIGHTS names" in text
    assert half_files() == []


def test_no_place_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"there is no place to get a.b from"):
        hub.fetch([], name="a.b")


# Offline.


@pytest.mark.parametrize("variable", ["TRUNKLINE_OFFLINE", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize("url", ["https://127.0.0.1/x.pth", "hf://o/r/model.bin", "hf://o/r"])
@pytest.mark.usefixtures("no_sockets")
def test_offline_opens_no_socket(
    weights_home: Path, monkeypatch: pytest.MonkeyPatch, variable: str, url: str
) -> None:
    monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("TRUNKLINE_WEIGHTS", str(weights_home / "by-hand"))
    with pytest.raises(OfflineError, match="the network is switched off") as caught:
        hub.fetch([TypedPlace(url=url)], name="dla34.x")
    text = str(caught.value)
    assert str(weights_home / "weights") in text
    assert f"Looked for {weights_home / 'by-hand' / 'dla34.x'}" in text
    assert "By hand: download http" in text  # an address that a browser takes


def test_offline_serves_what_is_here(
    file_host: FileHost, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    url = file_host.add(NAMED, BODY)
    path = hub.fetch_url(url)
    monkeypatch.setenv("TRUNKLINE_OFFLINE", "yes")
    request.getfixturevalue("no_sockets")
    assert hub.fetch_url(url) == path


@pytest.mark.parametrize("value", ["", "0", "no", "false"])
def test_offline_is_not_everything(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TRUNKLINE_OFFLINE", value)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert not cache.is_offline()
