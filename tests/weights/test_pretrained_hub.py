"""Backbones in repositories of the Hub: read from them, and pushed to them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from loopback import Answer, FileHost, Handler, LoopbackHub, fails
from torch import Tensor, nn

from trunkline import Backbone, Preprocessing
from trunkline.errors import (
    CheckpointError,
    ConfigError,
    OfflineError,
    OutputError,
    WeightsNotFoundError,
)
from trunkline.heads.pretrained import push_to_hub
from trunkline.weights.pretrained import from_pretrained, save_pretrained

if TYPE_CHECKING:
    from tests.conftest import Family

pytestmark = pytest.mark.usefixtures("weights_home")


PREPROCESSING = Preprocessing(
    resize=232,
    crop=(224, 224),
    interpolation="bicubic",
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    value_range="0..1",
    channel_order="RGB",
)


def equal(one: Backbone, other: Backbone) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def maps(backbone: Backbone, channels: int = 3) -> list[Tensor]:
    torch.manual_seed(0)
    with torch.inference_mode():
        found: list[Tensor] = backbone.eval()(torch.randn(1, channels, 64, 96))
    return found


@pytest.fixture
def folder(tmp_path: Path, families: dict[str, Family]) -> Path:
    return save_pretrained(families["resnet-pooled"].build(), tmp_path / "net")


def _own_norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels)


def put(hub: LoopbackHub, folder: Path, repo: str, revision: str = "main") -> None:
    for path in folder.iterdir():
        large = path.suffix == ".safetensors"
        hub.add_file(repo, path.name, path.read_bytes(), revision=revision, large=large)


@pytest.mark.parametrize("revision", ["main", "v2"])
def test_a_repository_is_read(loopback_hub: LoopbackHub, folder: Path, revision: str) -> None:
    put(loopback_hub, folder, "me/net", revision)
    address = "hf://me/net" if revision == "main" else f"hf://me/net@{revision}"
    backbone = from_pretrained(address, return_idx=(1,))
    whole = from_pretrained(folder)
    assert torch.equal(maps(backbone)[0], maps(whole)[1])
    asked = len(loopback_hub.requests)
    assert from_pretrained(address).channels == whole.channels
    assert len(loopback_hub.requests) == asked


def test_a_repository_that_is_not_ours(loopback_hub: LoopbackHub) -> None:
    config = json.dumps({"model_type": "resnet", "depths": [3, 4, 6, 3]}).encode()
    loopback_hub.add_file("microsoft/resnet-50", "config.json", config, large=False)
    loopback_hub.add_file("microsoft/resnet-50", "model.safetensors", b"x" * 100)
    with pytest.raises(CheckpointError, match=r"is not trunkline's\. Another library's checkpoint"):
        from_pretrained("hf://microsoft/resnet-50")
    with pytest.raises(WeightsNotFoundError, match="404"):
        from_pretrained("hf://nobody/nothing")
    with pytest.raises(ConfigError, match="is no address on the Hub"):
        from_pretrained("hf://nobody")


def _without_file(answer: Callable[[Handler], None]) -> Answer:
    return lambda handler, _: answer(handler)


class HubThatTakes(FileHost):
    """The parts of the Hub's API that an upload uses; keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[str, Any] = {}
        self.committed: dict[str, bytes] = {}
        for path, answer in (
            ("/api/repos/create", self._create),
            ("/api/validate-yaml", self._validate),
            ("/api/models/me/net/preupload/main", self._preupload),
            ("/api/models/me/net/commit/main", self._commit),
        ):
            self.script[path] = [_without_file(answer)] * 9

    def _reply(self, handler: Handler, content: object) -> None:
        handler.reply(200, json.dumps(content).encode(), Content_Type="application/json")

    def _body(self, handler: Handler) -> bytes:
        if handler.headers.get("Transfer-Encoding") != "chunked":
            return handler.rfile.read(int(handler.headers["Content-Length"]))
        body = b""
        while size := int(handler.rfile.readline(), 16):
            body += handler.rfile.read(size)
            handler.rfile.readline()
        handler.rfile.readline()
        return body

    def _create(self, handler: Handler) -> None:
        self.sent["create"] = json.loads(self._body(handler))
        self.sent["authorization"] = handler.headers.get("Authorization")
        self._reply(handler, {"url": f"{self.origin}/me/net", "id": "me/net"})

    def _validate(self, handler: Handler) -> None:
        self.sent["card"] = json.loads(self._body(handler))["content"]
        self._reply(handler, {"errors": [], "warnings": []})

    def _preupload(self, handler: Handler) -> None:
        files = json.loads(self._body(handler))["files"]
        modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
        self._reply(handler, {"files": modes})

    def _commit(self, handler: Handler) -> None:
        for line in self._body(handler).splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                value = entry["value"]
                self.committed[value["path"]] = base64.b64decode(value["content"])
        commit = "0" * 40
        url = f"{self.origin}/me/net/commit/{commit}"
        self._reply(handler, {"success": True, "commitUrl": url, "commitOid": commit})


@pytest.fixture
def hub_that_takes(weights_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubThatTakes]:  # noqa: ARG001
    monkeypatch.setattr(Handler, "do_POST", Handler.do_GET, raising=False)
    hub = HubThatTakes()
    monkeypatch.setenv("HF_ENDPOINT", hub.origin)
    yield hub
    hub.close()


def test_what_is_pushed_comes_back(
    hub_that_takes: HubThatTakes, tmp_path: Path, families: dict[str, Family]
) -> None:
    backbone = families["regnet-y"].build(return_idx=(2, 0))
    backbone.preprocessing = PREPROCESSING
    url = push_to_hub(backbone, "me/net", license="MIT", private=True, token="hf_mine")  # noqa: S106
    assert url == f"{hub_that_takes.origin}/me/net/commit/{'0' * 40}"
    sent = hub_that_takes.sent
    assert (sent["create"]["name"], sent["create"]["organization"]) == ("net", "me")
    assert "private" in (sent["create"].get("visibility"), *sent["create"])
    assert sent["authorization"] == "Bearer hf_mine"
    assert set(hub_that_takes.committed) == {"config.json", "model.safetensors", "README.md"}
    assert sent["card"].startswith("---\nlicense: mit\n")
    for name, content in hub_that_takes.committed.items():
        (tmp_path / name).write_bytes(content)
    again = from_pretrained(tmp_path)
    assert again.options == backbone.options
    assert again.preprocessing == PREPROCESSING
    assert equal(backbone, again)


def test_a_hub_that_refuses(hub_that_takes: HubThatTakes, families: dict[str, Family]) -> None:
    backbone = families["regnet-y"].build()
    hub_that_takes.script["/api/repos/create"] = [fails(403)] * 9
    with pytest.raises(
        OutputError, match=r"me/net could not be written on the Hub: .*hf auth login"
    ):
        push_to_hub(backbone, "me/net", token="hf_mine")  # noqa: S106
    assert hub_that_takes.committed == {}


def test_a_hub_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, families: dict[str, Family]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OutputError, match="me/net could not be written on the Hub"):
        push_to_hub(families["regnet-y"].build(), "me/net", token="hf_mine")  # noqa: S106


def test_a_name_that_the_hub_does_not_allow(
    hub_that_takes: HubThatTakes, families: dict[str, Family]
) -> None:
    with pytest.raises(OutputError, match="me//net"):
        push_to_hub(families["regnet-y"].build(), "me//net", token="hf_mine")  # noqa: S106
    assert hub_that_takes.committed == {}


@pytest.mark.usefixtures("no_sockets")
def test_nothing_is_pushed_while_the_network_is_switched_off(
    monkeypatch: pytest.MonkeyPatch, families: dict[str, Family]
) -> None:
    monkeypatch.setenv("TRUNKLINE_OFFLINE", "1")
    with pytest.raises(OfflineError, match="the network is switched off"):
        push_to_hub(families["regnet-y"].build(), "me/net")


def test_a_callable_is_refused_before_the_hub_is_asked(
    hub_that_takes: HubThatTakes, families: dict[str, Family]
) -> None:
    with pytest.raises(ConfigError, match="norm was given as a callable"):
        push_to_hub(families["regnet-y"].build(norm=_own_norm), "me/net", token="hf_mine")  # noqa: S106
    assert hub_that_takes.requests == []
