"""A backbone as a folder or a repository: what goes in comes out, and nothing else is believed."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from loopback import Answer, FileHost, Handler, LoopbackHub, fails
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from upstream_files import upstream_tensors

import trunkline
from trunkline import Backbone, Preprocessing, create_backbone
from trunkline.errors import (
    CheckpointError,
    ConfigError,
    LevelIndexError,
    OfflineError,
    OutputError,
    TrunklineError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from trunkline.weights import catalog
from trunkline.weights.conversion import convert
from trunkline.weights.loading import load_weights
from trunkline.weights.pretrained import from_pretrained, push_to_hub, save_pretrained

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


# There and back.


def test_every_family_comes_back_as_it_was(tmp_path: Path, family: Family) -> None:
    backbone = family.build()
    backbone.preprocessing = PREPROCESSING
    assert save_pretrained(backbone, tmp_path / "net") == tmp_path / "net"
    again = from_pretrained(tmp_path / "net")
    assert type(again) is type(backbone)
    assert again.architecture == backbone.architecture
    assert again.options == backbone.options
    assert again.preprocessing == PREPROCESSING
    assert equal(backbone, again)
    for one, other in zip(maps(backbone), maps(again), strict=True):
        assert torch.equal(one, other)
    assert {path.name for path in (tmp_path / "net").iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }


OPTIONS: list[dict[str, Any]] = [
    {"return_idx": (2, 0)},
    {"return_idx": (-1,), "return_stem": True},
    {"in_channels": 1},
    {"in_channels": 6},
    {"output_stride": 8},
    {"norm": "frozen"},
    {"norm": "group"},
    {"norm": "sync"},
    {"act": "silu"},
    {"drop_path_rate": 0.25, "checkpointing": True},
    {"frozen_stages": 2},
    {"allow_noncommercial": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_survive(
    tmp_path: Path, families: dict[str, Family], options: dict[str, Any]
) -> None:
    backbone = families["resnet-pooled"].build(**options)
    save_pretrained(backbone, tmp_path / "net")
    again = from_pretrained(str(tmp_path / "net"))
    assert again.options == backbone.options
    assert (again.channels, again.strides) == (backbone.channels, backbone.strides)
    assert again.frozen_stages == backbone.frozen_stages
    assert equal(backbone, again)
    channels = options.get("in_channels", 3)
    for one, other in zip(maps(backbone, channels), maps(again, channels), strict=True):
        assert torch.equal(one, other)


def test_a_published_network_keeps_its_name(tmp_path: Path) -> None:
    backbone = create_backbone("regnet-x-002", return_idx=(0,))
    save_pretrained(backbone, tmp_path)
    again = from_pretrained(tmp_path)
    assert again.variant == "regnet-x-002"
    assert len(again.stages) == 1
    assert again.load_report is not None
    assert again.load_report.layout == "trunkline"
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "layout": "trunkline", "variant": "regnet-x-002"}


def test_the_weights_alone_are_an_ordinary_checkpoint(tmp_path: Path) -> None:
    backbone = create_backbone("regnet-x-002")
    backbone.preprocessing = PREPROCESSING
    save_pretrained(backbone, tmp_path)
    other = create_backbone("regnet-x-002")
    report = load_weights(other, tmp_path / "model.safetensors")
    assert report.layout == "trunkline"
    assert equal(backbone, other)
    assert other.preprocessing == PREPROCESSING
    assert convert(tmp_path / "model.safetensors", tmp_path / "x.pth", "timm").variant == (
        "regnet-x-002"
    )


def test_weights_with_the_stride_elsewhere_are_told_apart(tmp_path: Path) -> None:
    save_pretrained(create_backbone("resnet50-caffe", return_idx=(0,)), tmp_path)
    assert from_pretrained(tmp_path).variant == "resnet50-caffe"
    plain = create_backbone("resnet50", return_idx=(0,))
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    with pytest.raises(
        WeightsMismatchError, match=r"holds resnet50-caffe, .*; build resnet50-caffe"
    ):
        load_weights(plain, tmp_path / "model.safetensors")
    assert all(torch.equal(before[n], t) for n, t in plain.state_dict().items())


def test_options_may_be_changed_when_it_is_loaded(
    tmp_path: Path, families: dict[str, Family]
) -> None:
    backbone = families["dla-basic"].build()
    save_pretrained(backbone, tmp_path)
    changed = from_pretrained(tmp_path, return_idx=(1, 0), frozen_stages=1, norm="frozen")
    assert changed.strides == (8, 4)
    assert changed.frozen_stages == 1
    assert len(changed.stages) == 2
    expected = maps(backbone)
    for one, other in zip((expected[1], expected[0]), maps(changed), strict=True):
        torch.testing.assert_close(one, other)
    grey = from_pretrained(tmp_path, in_channels=1)
    weight = backbone.state_dict()["stem.0.conv.weight"]
    assert torch.equal(grey.state_dict()["stem.0.conv.weight"], weight.sum(1, keepdim=True))
    assert from_pretrained(tmp_path).options == backbone.options


def test_what_a_folder_cannot_give_is_an_error(tmp_path: Path, families: dict[str, Family]) -> None:
    save_pretrained(families["dla-basic"].build(return_idx=(1, 0)), tmp_path)
    with pytest.raises(WeightsMismatchError, match=r"Missing: .*stages\.2\."):
        from_pretrained(tmp_path, return_idx=(0, 3))
    with pytest.raises(WeightsMismatchError, match=r"Left over: \d+ \(.*running_mean"):
        from_pretrained(tmp_path, norm="group")
    with pytest.raises(LevelIndexError, match="out of range"):
        from_pretrained(tmp_path, return_idx=(4,))
    with pytest.raises(ConfigError, match="unknown option depth; allowed: act"):
        from_pretrained(tmp_path, depth=3)


def test_saving_again_replaces_the_files(tmp_path: Path, families: dict[str, Family]) -> None:
    first, second = families["regnet-x"].build(seed=1), families["regnet-x"].build(seed=2)
    save_pretrained(first, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    save_pretrained(second, tmp_path)
    assert equal(from_pretrained(tmp_path), second)
    assert not equal(from_pretrained(tmp_path), first)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 4


def test_a_network_may_be_saved_over_the_file_it_was_loaded_from(
    tmp_path: Path, families: dict[str, Family]
) -> None:
    save_pretrained(families["regnet-y"].build(), tmp_path)
    backbone = from_pretrained(tmp_path)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(2)
    save_pretrained(backbone, tmp_path)
    assert equal(from_pretrained(tmp_path), backbone)


def test_channels_last_and_half_precision_are_saved(
    tmp_path: Path, families: dict[str, Family]
) -> None:
    backbone = families["regnet-x"].build().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    save_pretrained(backbone, tmp_path / "last")
    assert equal(from_pretrained(tmp_path / "last"), backbone)
    half = families["regnet-x"].build().half()
    save_pretrained(half, tmp_path / "half")
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert stored["stem.conv.weight"].dtype == torch.float16
    wide = from_pretrained(tmp_path / "half")
    assert wide.load_report is not None
    assert wide.load_report.adapted == ("torch.float16 was cast to torch.float32.",)


# What is written beside the weights.


def test_config_is_plain_and_complete(tmp_path: Path) -> None:
    backbone = create_backbone("dla46-c", return_idx=(1,), in_channels=4)
    save_pretrained(backbone, tmp_path, license="Apache-2.0")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["library"] == "trunkline"
    assert config["version"] == trunkline.__version__
    assert (config["family"], config["variant"]) == ("dla", "dla46-c")
    assert config["options"]["return_idx"] == [1]
    assert config["options"]["in_channels"] == 4
    assert config["architecture"]["channels"] == [64, 64, 128, 256]
    assert (config["preprocessing"], config["license"]) == (None, "Apache-2.0")
    assert config["trained_as"] is None


def test_the_card_says_how_to_use_it(tmp_path: Path) -> None:
    backbone = create_backbone("dla46-c", return_idx=(3, 1))
    backbone.preprocessing = PREPROCESSING
    save_pretrained(backbone, tmp_path, license="BSD-3-Clause")
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlicense: bsd-3-clause\nlibrary_name: trunkline\n")
    assert "# dla46-c" in card
    assert "from_pretrained(" in card
    assert "strides [32, 8], channels [256, 64]" in card
    assert f"{backbone.num_parameters:,}" in card
    assert PREPROCESSING.describe() in card
    assert "- licence: BSD-3-Clause" in card


def test_a_licence_that_the_hub_does_not_know_has_a_name_beside_other(tmp_path: Path) -> None:
    save_pretrained(create_backbone("dla46-c"), tmp_path, license="LicenseRef-SEER")
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlicense: other\nlicense_name: licenseref-seer\n")
    save_pretrained(create_backbone("dla46-c"), tmp_path)
    assert "license" not in (tmp_path / "README.md").read_text()


def test_tag_and_licence_travel_from_folder_to_folder(tmp_path: Path) -> None:
    source = tmp_path / "x.safetensors"
    told = {"tag": "pycls", "license": "MIT", "variant": "regnet-x-002"}
    save_file(upstream_tensors("timm-regnet", "regnet-x-002"), source, told)
    backbone = create_backbone("regnet-x-002", weights=source)
    for step in ("one", "two", "three"):
        save_pretrained(backbone, tmp_path / step)
        config = json.loads((tmp_path / step / "config.json").read_text())
        assert (config["license"], config["trained_as"]) == ("MIT", "pycls")
        backbone = from_pretrained(tmp_path / step)
    assert backbone.load_report is not None
    assert (backbone.load_report.tag, backbone.load_report.license) == ("pycls", "MIT")
    assert catalog.find("regnet-x-002", "pycls").license == "MIT"


# What cannot be saved.


def _own_norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels)


@pytest.mark.parametrize(("option", "value"), [("norm", _own_norm), ("act", nn.ReLU)])
def test_a_callable_cannot_be_saved(
    tmp_path: Path, families: dict[str, Family], option: str, value: object
) -> None:
    options: dict[str, Any] = {option: value}
    backbone = families["regnet-x"].build(**options)
    with pytest.raises(ConfigError, match=f"{option} was given as a callable"):
        save_pretrained(backbone, tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_a_place_that_cannot_be_written(
    tmp_path: Path, families: dict[str, Family], walled: Path
) -> None:
    backbone = families["regnet-x"].build()
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OutputError, match="is a file; give the path of a folder"):
        save_pretrained(backbone, file)
    with pytest.raises(OutputError, match="cannot be written"):
        save_pretrained(backbone, walled / "net")
    assert file.read_text() == ""


# What is not believed.


@pytest.fixture
def folder(tmp_path: Path, families: dict[str, Family]) -> Path:
    return save_pretrained(families["resnet-pooled"].build(), tmp_path / "net")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(WeightsNotFoundError, match=f"holds no {name}; give a folder that save_pre"):
        from_pretrained(folder)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match=r"none holds no config\.json"):
        from_pretrained(tmp_path / "none")


Edit = Callable[[dict[str, Any]], object]
BROKEN: dict[str, tuple[Edit, str]] = {
    "another library": (lambda c: c.update(library="timm"), "is not trunkline's"),
    "no library": (lambda c: c.pop("library"), r"create_backbone\(NAME, weights=PATH or hf"),
    "another family": (lambda c: c.update(family="vit"), "no family 'vit'"),
    "family of another kind": (lambda c: c.update(family=["resnet"]), "unhashable"),
    "no options": (lambda c: c.pop("options"), "is not a config of this version .*'options'"),
    "options of another kind": (lambda c: c.update(options=[1]), "where names and values"),
    "an option of the future": (lambda c: c["options"].update(window=7), "window"),
    "an option of ours alone": (lambda c: c["options"].update(weights="x"), "weights"),
    "a bad option": (lambda c: c["options"].update(output_stride=7), "output_stride must be"),
    "no architecture": (lambda c: c.pop("architecture"), "'architecture'"),
    "architecture of another kind": (lambda c: c.update(architecture=None), "None where names"),
    "a field of the future": (lambda c: c["architecture"].update(window=7), "window"),
    "a bad field": (lambda c: c["architecture"].update(depths=[0]), "depths"),
    "a field of another kind": (lambda c: c["architecture"].update(depths="x"), "depths"),
    "no preprocessing": (lambda c: c.pop("preprocessing"), "'preprocessing'"),
    "bad preprocessing": (lambda c: c.update(preprocessing={"mean": 1}), "preprocessing"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_config_that_is_not_ours_is_refused(folder: Path, case: str) -> None:
    edit, message = BROKEN[case]
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["version"] = "9.8.7"
    edit(config)
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message) as caught:
        from_pretrained(folder)
    assert str(path) in str(caught.value)
    if "library" not in case:
        assert f"trunkline 9.8.7, this is {trunkline.__version__}" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"trunkline"'])
def test_a_config_that_is_no_config_is_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json is (no JSON|not trunkline's)"):
        from_pretrained(folder)


def test_a_config_of_another_version_that_is_understood_is_read(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "version": "9.8.7", "more": [1]}))
    assert from_pretrained(folder).channels


def test_weights_of_another_network_are_refused(
    folder: Path, tmp_path: Path, families: dict[str, Family]
) -> None:
    other = save_pretrained(families["resnet-grouped"].build(), tmp_path / "other")
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(WeightsMismatchError, match="does not fit this network as trunkline names"):
        from_pretrained(folder)


def test_weights_that_are_cut_off_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        from_pretrained(folder)


def test_training_does_not_reach_the_folder(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    backbone = from_pretrained(folder)
    with torch.no_grad():
        for tensor in backbone.state_dict().values():
            tensor.zero_()
    assert (folder / "model.safetensors").read_bytes() == before
    again = from_pretrained(folder)
    assert again.state_dict()["stem.0.conv.weight"].any()
    expected = maps(again)
    (folder / "model.safetensors").unlink()
    for one, other in zip(expected, maps(again), strict=True):
        assert torch.equal(one, other)


# The Hub.


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


def test_every_error_is_one_of_ours(folder: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        content = (folder / name).read_bytes()
        for cut in (0, 1, 9, len(content) // 2):
            (folder / name).write_bytes(content[:cut])
            with pytest.raises(TrunklineError):
                from_pretrained(folder)
        (folder / name).write_bytes(content)
    assert from_pretrained(folder).channels
