"""An empty home for weights, hosts that serve them, and what is left behind.

``file_host`` is a plain web server, ``loopback_hub`` a Hugging Face endpoint that HF_ENDPOINT
names. Both stop by themselves. ``weights_home`` alone is enough for tests that need no host.
"""

from __future__ import annotations

import dataclasses
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import WRITERS, Tensors
from loopback import FileHost, LoopbackHub

from trunkline.weights.checkpoint import Checkpoint, read_checkpoint
from trunkline.weights.files import patience as limits

FAST = dataclasses.replace(
    limits.PATIENCE,
    attempts=3,
    backoff_seconds=0.01,
    connect_seconds=2.0,
    read_seconds=2.0,
    lock_seconds=30.0,
)


@pytest.fixture
def weights_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty TRUNKLINE_HOME, nobody's settings, and a client that gives up within moments."""
    for name in (
        *("TRUNKLINE_WEIGHTS", "TRUNKLINE_OFFLINE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN"),
        *("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"),
    ):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "trunkline-home"
    monkeypatch.setenv("TRUNKLINE_HOME", str(home))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(limits, "PATIENCE", FAST)
    return home


@pytest.fixture
def file_host(weights_home: Path) -> Iterator[FileHost]:  # noqa: ARG001 - for its effect
    """A web server on 127.0.0.1."""
    host = FileHost()
    yield host
    host.close()


@pytest.fixture
def loopback_hub(weights_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:  # noqa: ARG001
    """A Hugging Face endpoint on 127.0.0.1, which HF_ENDPOINT names."""
    hub = LoopbackHub()
    monkeypatch.setenv("HF_ENDPOINT", hub.origin)
    yield hub
    hub.close()


@pytest.fixture
def cached_files(weights_home: Path) -> Callable[[], list[str]]:
    """Lists what the cache would serve."""

    def find() -> list[str]:
        names = [path.relative_to(weights_home) for path in weights_home.rglob("*.*")]
        return sorted(
            name.as_posix()
            for name in names
            if (weights_home / name).is_file() and not any(p.startswith(".") for p in name.parts)
        )

    return find


@pytest.fixture
def half_files(weights_home: Path) -> Callable[[], list[str]]:
    """Lists what lies in the cache besides files, their records and locks."""

    def find() -> list[str]:
        hidden = [path for path in weights_home.rglob(".*") if path.name != ".locks"]
        hidden = [path for path in hidden if ".locks" not in path.parts]
        return [str(path) for path in hidden if not path.name.endswith(".sha256.json")]

    return find


@pytest.fixture
def patience(weights_home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:  # noqa: ARG001
    """Changes how long a host is borne with."""

    def change(**values: Any) -> None:
        new = dataclasses.replace(limits.PATIENCE, **values)
        monkeypatch.setattr(limits, "PATIENCE", new)

    return change


@pytest.fixture
def flip() -> Callable[[Path], None]:
    """Changes one bit of a file."""

    def change(path: Path) -> None:
        body = bytearray(path.read_bytes())
        body[777] ^= 1
        path.write_bytes(body)

    return change


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every socket an error."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


@pytest.fixture
def walled(tmp_path: Path) -> Path:
    """A folder that nobody can write to, root neither: it lies in a file."""
    wall = tmp_path / "wall"
    wall.write_text("")
    return wall / "inside"


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with room for 1000 bytes."""
    room = shutil.disk_usage(Path.cwd())._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)


@pytest.fixture
def state() -> Tensors:
    """Names and dtypes that a backbone has, and shapes that are easy to get wrong."""
    generator = torch.Generator().manual_seed(0)
    return {
        "conv1.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "bn1.weight": torch.rand(4, generator=generator),
        "bn1.running_mean": torch.rand(4, generator=generator).double(),
        "bn1.num_batches_tracked": torch.tensor(7),
        "layer1.0.conv1.weight": torch.randn(5, 4, generator=generator).t(),
        "layer1.0.half": torch.randn(3, generator=generator).half(),
        "layer1.0.empty": torch.zeros(0, 3),
    }


@pytest.fixture(params=WRITERS)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[object], Checkpoint]:
    """Write with each of torch's two formats in turn, and read."""
    path = tmp_path / "checkpoint.pth"

    def write_and_read(held: object, **options: Any) -> Checkpoint:
        WRITERS[request.param](held, path)
        checkpoint = read_checkpoint(path, **options)
        assert checkpoint.format == request.param
        return checkpoint

    return write_and_read
