"""Hosts on 127.0.0.1 that serve weight files well, or badly in every way that hosts do.

Tests have them as the fixtures ``file_host`` and ``loopback_hub``; scripts can start them as well:

    hub = LoopbackHub()
    os.environ["HF_ENDPOINT"] = hub.origin
    address = hub.add_file("timm/dla34.in1k", "model.safetensors", content)
    hub.close()
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

Answer = Callable[["Handler", bytes], None]
"""What a host does instead of serving the file well; gets the file."""


class Handler(BaseHTTPRequestHandler):
    """One request, answered as the host's script says."""

    protocol_version = "HTTP/1.1"
    host: FileHost

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer with the script's next entry for this path, else serve the file."""
        path = unquote(self.path.partition("?")[0])
        answer = self.host.note(self.command, path, dict(self.headers))
        body = self.host.files.get(path)
        if answer is not None:
            answer(self, body or b"")
        elif body is None:
            self.reply(404, b"nothing here")
        else:
            self.serve(body)

    do_HEAD = do_GET  # noqa: N815 - http.server's own name

    def serve(self, body: bytes, **headers: str) -> None:
        """Serve a file as good hosts do: with its length, an ETag and byte ranges."""
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        headers = {"ETag": etag, "Accept-Ranges": "bytes", **headers}
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not found or self.headers.get("If-Range", etag) != etag:
            self.reply(200, body, **headers)
        elif (start := int(found[1])) >= len(body):
            self.reply(416, b"", **{"Content-Range": f"bytes */{len(body)}"})
        else:
            reach = f"bytes {start}-{len(body) - 1}/{len(body)}"
            self.reply(206, body[start:], **{**headers, "Content-Range": reach})

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        """Send a whole answer."""
        self.head(status, **{"Content-Length": str(len(body)), **headers})
        if self.command != "HEAD":
            self.wfile.write(body)

    def head(self, status: int, **headers: str) -> None:
        """Send the first part of an answer; ``Content_Type`` becomes ``Content-Type``, "" none."""
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Say nothing: clients that hang up, or are killed, are what is tested."""


class _Server6(_Server):
    address_family = socket.AF_INET6


class FileHost:
    """A web server on 127.0.0.1 that notes what it is asked and misbehaves on demand."""

    def __init__(self) -> None:
        self._handler = type("BoundHandler", (Handler,), {"host": self})
        self._server = _Server(("127.0.0.1", 0), self._handler)
        self._served: list[tuple[_Server, threading.Thread]] = []
        self._lock = threading.Lock()
        self.files: dict[str, bytes] = {}
        self.script: dict[str, list[Answer]] = defaultdict(list)
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.over = threading.Event()
        self._serve(self._server)

    @property
    def origin(self) -> str:
        """``http://127.0.0.1:PORT``."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def also_on_ipv6(self) -> bool:
        """Serve ``http://[::1]:PORT`` too, and tell whether this machine can."""
        try:
            self._serve(_Server6(("::1", self._server.server_port), self._handler))
        except OSError:
            return False
        return True

    def _serve(self, server: _Server) -> None:
        thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._served.append((server, thread))
        thread.start()

    def add(self, path: str, body: bytes, *answers: Answer) -> str:
        """Serve a file, after the given answers have been given once each; return its URL."""
        self.files[path] = body
        self.script[path] = list(answers)
        return self.origin + path

    def note(self, method: str, path: str, headers: dict[str, str]) -> Answer | None:
        """Remember a request; return what the script says to it."""
        with self._lock:
            self.requests.append((method, path, headers))
            answers = self.script[path]
            return answers.pop(0) if answers else None

    def count(self, path: str, method: str = "GET") -> int:
        """Return how often a path was asked for."""
        return sum((method, path) == request[:2] for request in self.requests)

    def close(self) -> None:
        """Stop serving, and let go of whoever is kept waiting."""
        self.over.set()
        for server, thread in self._served:
            server.shutdown()
            server.server_close()
            thread.join()


class LoopbackHub(FileHost):
    """A Hugging Face endpoint: files by revision, and the list of a repository's files."""

    def __init__(self) -> None:
        super().__init__()
        self.storage = ""  # another origin for large files; the same one if empty
        self.listed: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))

    def add_file(
        self,
        repo: str,
        file: str,
        content: bytes,
        *answers: Answer,
        revision: str = "main",
        large: bool = True,
    ) -> str:
        """Put a file into a repository; return its ``hf://`` address.

        Args:
            repo: ``owner/name``.
            file: Its path there.
            content: What it holds.
            answers: What is answered before the file is served; for a large one, by its storage.
            revision: The branch that it is on.
            large: Whether the Hub keeps it by its sha256, as it does with weights.
        """
        commit = hashlib.sha1(f"{repo} {revision}".encode(), usedforsecurity=False).hexdigest()
        blob = b"blob %d\0" % len(content) + content  # what git hashes
        git = hashlib.sha1(blob, usedforsecurity=False).hexdigest()
        etag = hashlib.sha256(content).hexdigest() if large else git
        told = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        storage = f"/storage/{etag}/{file}"

        def move(handler: Handler, _: bytes) -> None:
            to = (self.storage or self.origin) + storage
            handler.reply(302, b"", Location=to, **told, **{"X-Linked-ETag": f'"{etag}"'})

        def serve(handler: Handler, _: bytes) -> None:
            if pending:
                pending.pop(0)(handler, content)
            else:
                handler.serve(content, **told)

        pending = list(answers)
        if large:  # the Hub keeps it elsewhere, and says on the way what it is
            self.files[storage] = content
            self.script[storage] = _Always(serve)
        for name in (revision, commit):
            path = f"/{repo}/resolve/{name}/{file}"
            self.files[path] = content
            self.script[path] = _Always(move if large else serve)
            self.listed[repo][name].append(file)
            self._list(repo, name, commit)
        suffix = "" if revision == "main" else f"@{revision}"
        return f"hf://{repo}/{file}{suffix}"

    def gets(self, file: str) -> int:
        """Return how often a file was downloaded."""
        return sum(
            path.endswith(f"/{file}") and "/resolve/" in path for _, path, _ in self.requests
        )

    def _list(self, repo: str, revision: str, commit: str) -> None:
        siblings = [{"rfilename": file} for file in self.listed[repo][revision]]
        about = {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "tags": []}

        def serve(handler: Handler, _: bytes) -> None:
            handler.reply(200, json.dumps(about).encode(), Content_Type="application/json")

        self.script[f"/api/models/{repo}/revision/{revision}"] = _Always(serve)
        if revision == "main":
            self.script[f"/api/models/{repo}"] = _Always(serve)


class _Always(list[Answer]):
    """A script of one entry that is never used up."""

    def __init__(self, answer: Answer) -> None:
        super().__init__([answer])

    def pop(self, _: Any = -1) -> Answer:
        return self[0]


def whole_checkpoint(size: int) -> bytes:
    """Return a safetensors file of so many bytes, a multiple of four from 128 on."""
    count = (size - 128) // 4
    about = {"w": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}
    header = json.dumps(about).encode().ljust(120)
    return struct.pack(f"<Q120s{count}f", 120, header, *(i % 509 for i in range(count)))


def fails(status: int, **headers: str) -> Answer:
    """Answer with a status, and with headers such as ``Retry_After="1"``."""
    return lambda handler, _: handler.reply(status, b"no", **headers)


def cuts(at: int, **extra: str) -> Answer:
    """Promise the whole file, send its beginning, hang up."""

    def answer(handler: Handler, body: bytes) -> None:
        usual = {"Content-Length": str(len(body)), "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}
        handler.head(200, **{**usual, **extra})
        handler.wfile.write(body[:at])
        handler.close_connection = True

    return answer


def ranged(**headers: str) -> Answer:
    """Send what a range asks for, whatever its conditions; with headers that replace the usual."""

    def answer(handler: Handler, body: bytes) -> None:
        if "Range" not in handler.headers:
            handler.serve(body)
            return
        start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        reach = f"bytes {start}-{len(body) - 1}/{len(body)}"
        usual = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "Content-Range": reach}
        handler.reply(206, body[start:], **{**usual, **headers})

    return answer


def stalls(at: int = 0) -> Answer:
    """Send the beginning, then nothing until the test is over."""

    def answer(handler: Handler, body: bytes) -> None:
        if at:
            handler.head(200, Content_Length=str(len(body)), ETag='"stalled"')
            handler.wfile.write(body[:at])
            handler.wfile.flush()
        handler.host.over.wait(20)
        handler.close_connection = True

    return answer


def moved(to: str) -> Answer:
    """Redirect."""
    return lambda handler, _: handler.reply(302, b"", Location=to)


def drips(promised: int = 1 << 30, seconds: float = 0.02) -> Answer:
    """Promise a large file, and send a byte of it now and then until the test is over."""

    def answer(handler: Handler, _: bytes) -> None:
        handler.close_connection = True
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
        start, end = (int(found[1]), int(found[2])) if found else (0, promised - 1)
        reach = {"Content-Range": f"bytes {start}-{end}/{promised}"} if found else {}
        length = {"Content-Length": str(end + 1 - start)}
        handler.head(206 if found else 200, Accept_Ranges="bytes", **reach, **length)
        while handler.command == "GET" and not handler.host.over.wait(seconds):
            handler.wfile.write(b"x")

    return answer


def always(answer: Answer) -> list[Answer]:
    """Return a script that gives one answer to every request."""
    return _Always(answer)
