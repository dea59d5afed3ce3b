"""Addresses: which are taken, where their files lie, where redirects may lead, who sees secrets."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from loopback import FileHost, Handler, LoopbackHub, moved, whole_checkpoint

from trunkline import create_backbone, files, from_pretrained
from trunkline.errors import ConfigError, WeightsNotFoundError
from trunkline.weights import hub
from trunkline.weights.catalog import Place
from trunkline.weights.files import addresses, cache, folder

pytestmark = pytest.mark.usefixtures("weights_home")

BODY = whole_checkpoint(1000)

_ANY_WORDS = "is not an address"  # brackets are refused in words that differ between Pythons

MALFORMED = {
    "http://h:0/x": "its port is none of 1 to 65535",
    "http://h:65536/x": "its port is none of 1 to 65535",
    "http://h:-1/x": "its port is none of 1 to 65535",
    "http://h:x/x": "its port is none of 1 to 65535",
    "http://h:٣/x": "its port is none of 1 to 65535",
    f"http://h:{'9' * 5000}/x": "its port is none of 1 to 65535",
    "http://[::1]:0/x": "its port is none of 1 to 65535",
    "http://[::1/x": _ANY_WORDS,
    "http://[zz]/x": _ANY_WORDS,
    "http://[1.2.3.4]/x": _ANY_WORDS,
    "http://[::1]0/x": _ANY_WORDS,
    "http://a[::1]/x": _ANY_WORDS,
    "http://[]/x": _ANY_WORDS,
    "http://[::1]:80]/x": "its port is none of 1 to 65535",
    "http://::1/x": _ANY_WORDS,
    "http://a b/x": "its host has spaces or backslashes",
    "http://a.org\\@b.org/x": "its host has spaces or backslashes",
    "http://a..b/x": "its host is no name and no number",
    f"http://{'a' * 64}.org/x": "its host is no name and no number",
    "http://-a.org/x": "its host is no name and no number",
    "http://h%00/x": "its host is no name and no number",
    "http://*/x": "its host is no name and no number",
    "http:///x": "no host is named",
    "http://:80/x": "no host is named",
    "http://h/x\ny": "spaces around it or control characters",
    " http://h/x": "spaces around it or control characters",
    "http://h/\0": "spaces around it or control characters",
    "http://h/\udcff": "surrogates not allowed",
    f"https://h/{'x' * 9000}": "it has 9010 characters, and 8192 are the most",
    "ftp://h/x": "another scheme",
    "data:text/plain,x": "another scheme",
}


@pytest.mark.parametrize(("url", "fault"), MALFORMED.items(), ids=range(len(MALFORMED)))
@pytest.mark.usefixtures("no_sockets")
def test_a_malformed_address_is_refused_before_anybody_is_asked(url: str, fault: str) -> None:
    with pytest.raises(ConfigError, match="is not an address to get weights from") as caught:
        hub.fetch_url(url)
    assert fault in str(caught.value)


def test_what_is_refused_is_shown_without_its_secrets() -> None:
    with pytest.raises(ConfigError, match=r"'http://h:0/x'") as caught:
        hub.fetch_url("http://ann:secret@h:0/x?signature=secret#secret")
    assert "secret" not in str(caught.value)


PLACES = {  # computed with sha256sum, by hand
    "https://b.org/R-50.pkl": "b.org/R-50.pkl",
    "https://b.org/R-50.pkl?id=1": "b.org/q=d9fc91d45c096b5e/R-50.pkl",
    "https://b.org/a/R-50.pkl?id=2": "b.org/a/q=25d0c83ec3d0bc18/R-50.pkl",
    "https://b.org/?id=1": "b.org/q=d9fc91d45c096b5e/e3b0c44298fc1c14-",
    "https://b.org/R-50.pkl#id=1": "b.org/R-50.pkl",
    "https://b.org/a%20b.pth": "b.org/608cec338b49f6a9-a_b.pth",
    "https://b.org/a//b.pth": "b.org/a/e3b0c44298fc1c14-/b.pth",
    "https://b.org/../b.pth": "b.org/5ec1f7e700f37c3d-__/b.pth",
    "https://b.org/.hidden": "b.org/1692419006a88aab-_hidden",
    "https://B.org:443/b.pth": "b.org/b.pth",
    "https://ann:secret@b.org/b.pth": "b.org/b.pth",
    "https://b.org:8443/b.pth": "b.org+https+8443/b.pth",
    "http://b.org/b.pth": "b.org+80/b.pth",
    "http://b.org:443/b.pth": "b.org+443/b.pth",
    "https://[::1]/b.pth": "eff8e7ca506627fe-__1/b.pth",
    "http://[::1]:8080/b.pth": "eff8e7ca506627fe-__1+8080/b.pth",
    "https://hf/b.pth": "hf+https+443/b.pth",
    "hf://o/r/b.bin@refs/pr/1": "hf/o/r/da766fe49863bbae-refs_pr_1/b.bin",
}


@pytest.mark.parametrize(("url", "place"), PLACES.items())
def test_every_address_has_its_own_place(url: str, place: str) -> None:
    assert cache.relative_place(url).as_posix() == place


@pytest.mark.parametrize(
    ("url", "name", "place"),
    [
        ("https://b.org/get?id=1", "R-50.pkl", "b.org/q=d9fc91d45c096b5e/get/R-50.pkl"),
        ("https://b.org/R-50.pkl?id=1", "R-50.pkl", "b.org/q=d9fc91d45c096b5e/R-50.pkl"),
        ("https://b.org/a%20b.pth", "a b.pth", "b.org/608cec338b49f6a9-a_b.pth"),
        ("https://b.org/", "R-50.pkl", "b.org/e3b0c44298fc1c14-/R-50.pkl"),
        ("https://b.org/x", "..", "b.org/x/5ec1f7e700f37c3d-__"),
    ],
)
def test_a_file_that_is_called_otherwise_keeps_its_name(url: str, name: str, place: str) -> None:
    assert cache.relative_place(url, name).as_posix() == place


def test_an_address_on_ipv6_is_asked(file_host: FileHost) -> None:
    if not file_host.also_on_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    file_host.add("/x.pth", BODY)
    port = urlsplit(file_host.origin).port
    assert hub.fetch_url(f"http://[::1]:{port}/x.pth").read_bytes() == BODY


_PATHS = st.lists(
    st.sampled_from(
        ["a", "A", "b.pth", "", ".", "..", "%2e", "%2F", "a%20b", "a+b", ".x", "q=", "é"]
    )
    | st.text("ab.%/=-+~;:@", max_size=8)
    | st.sampled_from(
        ["q=d9fc91d45c096b5e", "e3b0c44298fc1c14-", "5ec1f7e700f37c3d-__", "x" * 200]
    ),
    min_size=1,
    max_size=6,
).map("/".join)
_URLS = st.builds(
    lambda origin, path, query: f"{origin}/{path}{query}",
    st.sampled_from(["https://h", "http://h", "https://h:80", "http://h:443", "https://hf"]),
    _PATHS,
    st.sampled_from(["", "?id=1", "?id=2", "?"]),
)


@given(st.lists(_URLS, min_size=2, max_size=8))
def test_no_two_addresses_share_a_place_and_none_leads_out(urls: list[str]) -> None:
    found: dict[Path, tuple[object, ...]] = {}
    for url in urls:
        parts = urlsplit(url)
        asked = (addresses.origin(url), parts.path, parts.query)
        place = cache.relative_place(url)
        assert found.setdefault(place, asked) == asked
        assert len(str(place)) < 1300
        assert not any(part.startswith(".") or len(part) > 255 for part in place.parts)


def test_a_path_of_a_thousand_folders_has_a_place_that_a_disk_takes(file_host: FileHost) -> None:
    url = file_host.add("/a" * 3000 + "/x.pth", BODY)
    assert hub.fetch_url(url).read_bytes() == BODY
    other = cache.relative_place("https://h" + "/a" * 3001 + "/x.pth")
    assert other != cache.relative_place("https://h" + "/a" * 3000 + "/x.pth")


@pytest.mark.parametrize(
    "address", ["hf://o/a--b", "hf://o/a..b", "hf://o/r.git", "hf://-o/r", "hf://o/r\n", "hf://o/é"]
)
@pytest.mark.usefixtures("no_sockets")
def test_names_that_the_hub_does_not_allow_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="is no address on the Hub"):
        hub.fetch_hf(address)


@pytest.mark.parametrize("endpoint", ["nowhere", "http://h:99999", "ftp://h", "http://[::1"])
@pytest.mark.usefixtures("no_sockets")
def test_an_endpoint_that_is_no_address_is_named(
    monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    for address in ("hf://o/r", "hf://o/r/model.safetensors"):
        with pytest.raises(ConfigError, match=r"HF_ENDPOINT is '.*', which is no address"):
            hub.fetch_hf(address)


@pytest.mark.parametrize("variable", ["TRUNKLINE_HOME", "TRUNKLINE_WEIGHTS"])
@pytest.mark.usefixtures("no_sockets")
def test_a_home_that_nobody_has_is_said(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "~nobody-at-all/x")
    with pytest.raises(ConfigError, match=r"no home folder|nobody knows where"):
        hub.fetch_url("https://127.0.0.1/x.pth")
    with pytest.raises(ConfigError, match=r"no home folder|nobody knows where"):
        folder.hand_folder() if variable == "TRUNKLINE_WEIGHTS" else files.home()


@pytest.mark.parametrize(
    "load",
    [
        lambda path: create_backbone("resnet18", weights=path),
        lambda path: create_backbone("resnet18", weights=Path(path)),
        from_pretrained,
    ],
)
def test_a_path_into_the_home_of_nobody_is_said(load: Callable[[str], object]) -> None:
    with pytest.raises(ConfigError, match=r"nobody knows where '~nobody-at-all/x\.pth' is"):
        load("~nobody-at-all/x.pth")


# Redirects.


LOCATIONS = [url.encode() for url in MALFORMED if url.isprintable() and url.strip() == url]
LOCATIONS += [
    b"file:///etc/passwd",
    b"http://\xff\xfe/x",
    b"//[::1",
    b"http://h\\:80@h:0/",
    b"//:0",
]
LOCATIONS.remove(b"http:///x")  # beside another http:// address it is one of the same host


@pytest.mark.parametrize("to", LOCATIONS, ids=range(len(LOCATIONS)))
def test_a_redirect_to_a_malformed_address_is_refused_and_the_mirror_asked(
    file_host: FileHost, to: bytes
) -> None:
    def answer(handler: Handler, _: bytes) -> None:
        head = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: %s\r\n\r\n"
        handler.wfile.write(head % to)

    bad = file_host.add("/x.pth", b"", answer, answer)
    with pytest.raises(
        WeightsNotFoundError, match=r"x\.pth: refused: redirects to what is no addr"
    ):
        hub.fetch_url(bad)
    mirrors = [bad, file_host.add("/good.pth", BODY)]
    assert hub.fetch([Place(url=url, layout="trunkline") for url in mirrors]).read_bytes() == BODY


def test_redirects_in_circles_end(file_host: FileHost) -> None:
    for to in ("", "/x.pth", "?again"):
        url = file_host.add("/x.pth", b"", *[moved(to or "#")] * 40)
        with pytest.raises(WeightsNotFoundError, match="refused: it redirects more than 10 times"):
            hub.fetch_url(url)
        assert len(file_host.script["/x.pth"]) == 29


def _answers(monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    def send(_: Any, request: requests.PreparedRequest, **__: Any) -> requests.Response:
        response = requests.Response()
        response.status_code, response.url = 302, str(request.url)
        response.headers["Location"] = location
        response.request, response.raw = request, io.BytesIO()
        return response

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)


@pytest.mark.parametrize("to", ["http://127.0.0.1:1/x", "ftp://127.0.0.1/x", "file:///etc/x"])
def test_a_redirect_away_from_https_is_refused(monkeypatch: pytest.MonkeyPatch, to: str) -> None:
    _answers(monkeypatch, f"{to}?signature=secret")
    with pytest.raises(WeightsNotFoundError, match=f"refused: redirects from https to {to}") as e:
        hub.fetch_url("https://127.0.0.1/x.pth")
    assert "secret" not in str(e.value)


OWN = (
    *("127.0.0.1", "127.1", "0x7f.1", "2130706433", "localhost", "a.localhost.", "[::1]", "[::]"),
    *("0.0.0.0", "0", "[::ffff:127.0.0.1]", "169.254.169.254", "[fe80::1]"),  # noqa: S104 - no bind
)
ELSEWHERE = ("10.0.0.1", "192.168.0.9", "h.org", "localhost.org", "8.8.8.8", "[2001:db8::1]")


@pytest.mark.parametrize("host", OWN)
def test_a_redirect_from_elsewhere_into_this_machine_is_refused(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    _answers(monkeypatch, f"https://{host}/latest/meta-data")
    with pytest.raises(WeightsNotFoundError, match="an address of this machine or its link"):
        hub.fetch_url("https://mirror.h.org/x.pth")


@pytest.mark.parametrize("host", ELSEWHERE)
def test_a_redirect_to_another_host_is_followed(host: str) -> None:
    target = f"https://{host}/x"
    assert addresses.landing("https://mirror.h.org/x.pth", target) == target


# Secrets.


def test_a_password_is_for_the_host_that_was_asked(file_host: FileHost) -> None:
    elsewhere = file_host.origin.replace("127.0.0.1", "localhost")
    file_host.add("/end", BODY)
    file_host.add("/same", b"", moved(f"{elsewhere}/end"))
    file_host.add("/x.pth", b"", moved("/same"))
    asked = file_host.origin.replace("//", "//ann:secret@") + "/x.pth"
    assert hub.fetch_url(asked).read_bytes() == BODY
    sent = {path: headers.get("Authorization") for _, path, headers in file_host.requests}
    basic = "Basic YW5uOnNlY3JldA=="
    assert sent == {"/x.pth": basic, "/same": basic, "/end": None}


def test_a_token_is_for_the_hub_and_not_for_its_storage(
    loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_for_a_test")
    loopback_hub.storage = loopback_hub.origin.replace("127.0.0.1", "localhost")
    loopback_hub.add_file("o/r", "model.safetensors", BODY)
    assert hub.fetch_hf("hf://o/r").read_bytes() == BODY
    sent = [(path.split("/")[1], h.get("Authorization")) for _, path, h in loopback_hub.requests]
    assert sent == [
        ("api", "Bearer hf_for_a_test"),
        ("o", "Bearer hf_for_a_test"),
        ("storage", None),
    ]


def test_a_certificate_that_is_not_accepted_is_said_without_secrets(
    monkeypatch: pytest.MonkeyPatch, file_host: FileHost
) -> None:
    monkeypatch.setattr(requests.adapters.HTTPAdapter, "max_retries", 0, raising=False)
    port = urlsplit(file_host.origin).port
    with pytest.raises(WeightsNotFoundError, match="its certificate was not accepted") as caught:
        hub.fetch_url(f"https://127.0.0.1:{port}/x.pth?signature=secret")
    assert "secret" not in str(caught.value)


def test_every_cause_is_told_without_secrets(
    file_host: FileHost, cached_files: Callable[[], list[str]]
) -> None:
    def nonsense(handler: Handler, _: bytes) -> None:
        handler.wfile.write(b"HTTP/9.9 what\r\n\r\n")
        handler.close_connection = True

    url = file_host.add("/x.pth", BODY, *[nonsense] * 9).replace("//", "//ann:secret@")
    with pytest.raises(WeightsNotFoundError, match=r"/x\.pth: ") as caught:
        hub.fetch_url(f"{url}?signature=secret")
    assert "secret" not in str(caught.value)
    assert cached_files() == []
