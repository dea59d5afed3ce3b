"""Sources and images behind http://, from hosts that behave and from hosts that do not."""

from __future__ import annotations

import gzip
import io
import re
import socket
import tarfile
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import requests
from loopback import FileHost, Handler, cuts, fails, moved
from pyarrow import parquet

from trunkline.errors import ImageError, SourceError
from trunkline.extraction import walking, web
from trunkline.extraction.locations import split_glob
from trunkline.extraction.reading import close_files, read_bytes
from trunkline.extraction.records import Item
from trunkline.extraction.sources import Source, list_items, source_of

Answer = Callable[[Handler, bytes], None]
LIST = Source(kind="list", location="/photos.txt")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileHost]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    found = FileHost()
    yield found
    close_files()
    web._session.cache_clear()
    found.close()


class Always(list[Answer]):
    """A script of one answer that is never used up."""

    def pop(self, _: Any = -1) -> Answer:
        return self[0]


def always(host: FileHost, path: str, body: bytes, answer: Answer) -> str:
    url = host.add(path, body)
    host.script[path] = Always([answer])
    return url


def serves_parts(handler: Handler, body: bytes) -> None:
    found = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
    if found is None:
        handler.reply(200, body)
        return
    start, end = int(found[1]), min(int(found[2]) + 1, len(body))
    if start >= len(body):
        handler.reply(416, b"no such part")
    else:
        reach = f"bytes {start}-{end - 1}/{len(body)}"
        handler.reply(206, body[start:end], Content_Range=reach)


def without_end(status: int, **headers: str) -> Answer:
    """Send zeros until nobody listens."""

    def answer(handler: Handler, _: bytes) -> None:
        handler.head(status, Connection="close", **headers)
        try:
            while not handler.host.over.is_set():
                handler.wfile.write(bytes(1 << 16))
        except OSError:
            pass  # the client has hung up, which is what it should
        handler.close_connection = True

    return answer


def packed_as(encoding: str, content: bytes) -> Answer:
    return lambda handler, _: handler.reply(200, content, Content_Encoding=encoding)


def read(url: str, max_bytes: int = 1000) -> bytes:
    return read_bytes(LIST, Item("x", url), max_bytes=max_bytes)


def test_file_is_read_as_it_is_and_asked_for_whole_and_unpacked(host: FileHost) -> None:
    assert read(host.add("/a b/é.jpg", b"content")) == b"content"
    assert read(f"{host.origin}/a b/é.jpg", max_bytes=7) == b"content"
    _, _, headers = host.requests[0]
    assert headers["Accept-Encoding"] == "identity"
    assert "Range" not in headers


@pytest.mark.parametrize("announced", [None, 1001, 2000, 50_000_000])
def test_file_that_is_too_large_or_has_no_end_is_cut_off(
    host: FileHost, announced: int | None
) -> None:
    length = {} if announced is None else {"Content_Length": str(announced)}
    with pytest.raises(
        ImageError, match=f"it has {announced} bytes, and at most 1000|more than the"
    ):
        read(host.add("/x.jpg", b"", without_end(200, **length)))


BOMB = gzip.compress(bytes(64 << 20), mtime=0)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "x-gzip", "GZip"])
def test_what_becomes_too_large_when_it_is_unpacked_takes_no_memory(
    host: FileHost, encoding: str
) -> None:
    body = zlib.compress(bytes(64 << 20)) if encoding == "deflate" else BOMB
    url = host.add("/x.jpg", b"", packed_as(encoding, body))
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="more than the 100000 bytes"):
            read(url, max_bytes=100_000)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_what_is_packed_unasked_is_unpacked(host: FileHost) -> None:
    content = bytes(range(256)) * 3000
    for encoding, body in (
        ("gzip", gzip.compress(content, mtime=0)),
        ("deflate", zlib.compress(content)),
    ):
        url = host.add("/x.jpg", b"", packed_as(encoding, body))
        assert read(url, max_bytes=1 << 20) == content


@pytest.mark.parametrize(
    ("encoding", "body", "message"),
    [
        ("br", b"x", "sends it compressed as br, which was not asked for"),
        ("gzip, gzip", b"x", "sends it compressed as gzip, gzip"),
        ("gzip", b"no gzip", "sends what cannot be decompressed"),
        ("gzip", gzip.compress(b"x" * 999, mtime=0)[:-9], "it is cut off"),
    ],
)
def test_what_cannot_be_unpacked_is_an_image_error(
    host: FileHost, encoding: str, body: bytes, message: str
) -> None:
    with pytest.raises(ImageError, match=message):
        read(host.add("/x.jpg", b"", packed_as(encoding, body)))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (fails(404), "cannot be read: HTTP 404 Not Found"),
        (fails(503), "cannot be read: HTTP 503"),
        (fails(206), "cannot be read: HTTP 206"),
        (fails(304), "cannot be read: HTTP 304"),
        (cuts(3), "cannot be read: it is cut off"),
        (lambda handler, _: handler.reply(200, b""), "is empty; copy or download it again"),
        (lambda handler, _: handler.wfile.write(b"no HTTP at all\r\n\r\n"), "no connection to"),
    ],
)
def test_host_that_does_not_give_the_file_is_told(
    host: FileHost, answer: Answer, message: str
) -> None:
    with pytest.raises(ImageError, match=message):
        read(always(host, "/x.jpg", b"content", answer))


def test_redirects_are_followed_to_the_web_alone(host: FileHost, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"local")
    host.add("/there/x.jpg", b"content")
    for target in (f"{host.origin}/there/x.jpg", "/there/x.jpg", "there/x.jpg"):
        assert read(host.add("/x.jpg", b"", moved(target))) == b"content"
    for target in (
        *(f"file://{tmp_path}/x.jpg", "ftp://127.0.0.1/x.jpg", "data:,x", "memory://x.jpg"),
        *("//[::1", "http://[::1"),
    ):
        with pytest.raises(ImageError, match=r"refused: its host redirects|Invalid IPv6 URL"):
            read(host.add("/x.jpg", b"", moved(target)))
    with pytest.raises(ImageError, match="redirects more than 10 times"):
        read(always(host, "/x.jpg", b"", moved("/x.jpg")))


def test_redirect_away_from_https_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = requests.Response()
    answer.status_code, answer.url = 302, "https://a.example/x.jpg"
    answer.headers["Location"], answer.raw = "http://a.example/x.jpg", io.BytesIO()
    monkeypatch.setattr(web, "_sent", lambda *_: answer)
    with pytest.raises(ImageError, match=r"refused: its host redirects from https.* to http:"):
        read("https://a.example/x.jpg")


def test_body_of_a_redirect_is_not_read(host: FileHost) -> None:
    host.add("/y.jpg", b"content")
    assert read(host.add("/x.jpg", b"", without_end(302, Location="/y.jpg"))) == b"content"


def test_connection_that_was_closed_meanwhile_is_opened_again(host: FileHost) -> None:
    def once(handler: Handler, body: bytes) -> None:
        handler.reply(200, body)
        handler.close_connection = True  # though nothing said so

    url = always(host, "/x.jpg", b"content", once)
    assert [read(url) for _ in range(5)] == [b"content"] * 5


def test_cookies_of_hosts_are_not_kept(host: FileHost) -> None:
    answer: Answer = lambda handler, body: handler.reply(200, body, Set_Cookie="a=b")  # noqa: E731
    url = always(host, "/x.jpg", b"content", answer)
    read(url)
    read(url)
    assert all("Cookie" not in headers for _, _, headers in host.requests)


def test_address_of_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6

    class Quiet(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.path.encode())

        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.setenv("no_proxy", "*")
    try:
        server = Server(("::1", 0), Quiet)
    except OSError:
        pytest.skip("this machine has no IPv6")
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        origin = f"http://[::1]:{server.server_port}"
        assert read(f"{origin}/a::b.jpg") == b"/a::b.jpg"
        (item,) = list_items(source_of(f"{origin}/list.txt"))
        assert item == Item("/list.txt", "/list.txt")  # what this host answers
        assert source_of(f"{origin}/x[0].tar").kind == "tar"
        assert split_glob(f"{origin}/p/*.jpg") == (f"{origin}/p", ["*.jpg"])
    finally:
        server.shutdown()
        server.server_close()


# --- sources -----------------------------------------------------------------------------------


def packed(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def contents(source: Source) -> dict[str, bytes]:
    return {item.key: read_bytes(source, item) for item in list_items(source)}


def test_tar_and_parquet_are_read_in_parts(
    host: FileHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "_BLOCK_BYTES", 3000)
    images = {f"{number}.jpg": bytes([number]) * (300 * number) for number in range(1, 9)}
    url = always(host, "/x.tar", packed(images), serves_parts)
    assert contents(source_of(url)) == {f"x.tar/{key}": value for key, value in images.items()}
    parquet.write_table(pa.table({"image": list(images.values())}), tmp_path / "x.parquet")
    table = (tmp_path / "x.parquet").read_bytes()
    url = always(host, "/x.parquet", table, serves_parts)
    assert list(contents(source_of(url)).values()) == list(images.values())
    asked = [headers["Range"] for *_, headers in host.requests if "Range" in headers]
    assert len(asked) > 10
    assert all(re.fullmatch(r"bytes=\d+-\d+", one) for one in asked)


def test_tar_in_a_zip_behind_a_url(host: FileHost) -> None:
    import zipfile

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/x.tar", packed({"y.jpg": b"content"}))
    url = always(host, "/all.zip", file.getvalue(), serves_parts)
    assert contents(source_of(f"zip://a::{url}")) == {"x.tar/y.jpg": b"content"}


def test_host_without_parts_serves_lists_but_no_tars(host: FileHost) -> None:
    host.add("/p/a.jpg", b"one")
    lines = "".join(f"a.jpg?{number}\n" for number in range(20_000))
    source = source_of(host.add("/p/list.txt", lines.encode()))
    items = list(list_items(source))
    assert len(items) == 20_000
    assert read_bytes(source, items[-1]) == b"one"
    with pytest.raises(SourceError, match=r"x\.tar cannot be read as a tar: its host does not ser"):
        list(list_items(source_of(host.add("/x.tar", packed({"y.jpg": b"x" * 2000})))))
    tar = Source(kind="tar", location=f"{host.origin}/x.tar")
    with pytest.raises(ImageError, match="its host does not serve parts of files"):
        read_bytes(tar, Item("y.jpg", tar.location, 512, 2000))


@pytest.mark.parametrize("reach", ["bytes 0-9/2048", "bytes 512-999/*", "bytes 512-999", ""])
def test_host_that_serves_other_parts_is_refused(host: FileHost, reach: str) -> None:
    answer: Answer = lambda handler, _: handler.reply(206, b"x" * 9, Content_Range=reach)  # noqa: E731
    tar = Source(kind="tar", location=always(host, "/x.tar", b"", answer))
    with pytest.raises(
        ImageError, match=r"serves (other parts .* asked for|parts .* saying which)"
    ):
        read_bytes(tar, Item("y.jpg", tar.location, 512, 9))


def test_part_without_end_is_cut_off(host: FileHost) -> None:
    answer = without_end(206, Content_Range="bytes 512-520/99999")
    tar = Source(kind="tar", location=host.add("/x.tar", b"", answer))
    assert read_bytes(tar, Item("y.jpg", tar.location, 512, 9)) == bytes(9)


def test_file_that_changes_while_it_is_listed_is_refused(
    host: FileHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "_BLOCK_BYTES", 700)
    sizes = iter(range(5000, 9000))

    def growing(handler: Handler, body: bytes) -> None:
        start = int(handler.headers["Range"][6:].partition("-")[0])
        reach = f"bytes {start}-{start + 699}/{next(sizes)}"
        handler.reply(206, body[start : start + 700], Content_Range=reach)

    body = packed({f"{number}.jpg": b"x" * 900 for number in range(3)})
    with pytest.raises(SourceError, match="it changed while it was read"):
        list(list_items(source_of(always(host, "/x.tar", body, growing))))


PAGE = b"""<html><a href="../">up</a> <A HREF = 'b%20c.jpg'>b</A> <a href="/p/a.jpg">a</a>
<a href="sub/deep/z.jpg">z</a> <a href="?C=N;O=D">sort</a> <a href="#top">top</a>
<a href="ftp://elsewhere/x.jpg">e</a> <a href="http://[::1">broken</a> <a href="/q/y.jpg">q</a>
<a href="d&amp;e.jpg">d</a> <a href="a.jpg">a again</a></html>"""


def test_page_of_a_host_is_a_folder(host: FileHost, monkeypatch: pytest.MonkeyPatch) -> None:
    page: Answer = lambda handler, body: handler.reply(200, body, Content_Type="text/html")  # noqa: E731
    always(host, "/p/", PAGE, page)
    always(host, "/p/sub/", b'<a href="y.jpg">y</a>', page)
    for name in ("a.jpg", "b c.jpg", "d&e.jpg", "sub/y.jpg"):
        host.add(f"/p/{name}", name.encode())
    source = source_of(f"{host.origin}/p")
    assert contents(source) == {
        "a.jpg": b"a.jpg",
        "b%20c.jpg": b"b c.jpg",
        "d&e.jpg": b"d&e.jpg",
        "sub/y.jpg": b"sub/y.jpg",
    }
    assert list(contents(source_of(f"{host.origin}/p/*.jpg"))) == ["a.jpg", "b%20c.jpg", "d&e.jpg"]
    with pytest.raises(SourceError, match="is neither a folder nor of a known kind"):
        source_of(f"{host.origin}/none")
    monkeypatch.setattr(web, "_PAGE_BYTES", 99)
    with pytest.raises(SourceError, match="its page is longer than 99 bytes; give a list instead"):
        list(list_items(source))


def test_folders_without_end_are_refused(host: FileHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walking, "_DEEPEST", 5)
    page = b'<a href="again/">deeper</a>'
    for depth in range(9):
        host.script["/p/" + "again/" * depth] = Always(
            [lambda handler, _: handler.reply(200, page, Content_Type="text/html")]
        )
    with pytest.raises(SourceError, match="is the 5th folder in another, as if there were no"):
        list(list_items(source_of(f"{host.origin}/p")))
