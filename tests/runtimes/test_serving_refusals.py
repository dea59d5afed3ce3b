"""What a model repository refuses, and that nothing half-written is left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from torch import nn

from trunkline import Backbone
from trunkline.errors import ConfigError, FidelityError, OutputError, PrecisionError
from trunkline.runtimes import export as export_module
from trunkline.runtimes import serving
from trunkline.runtimes.serving import write_repository

if TYPE_CHECKING:
    from tests.conftest import Family

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

Server = Literal["triton", "ovms"]


@pytest.fixture
def tiny(families: dict[str, Family]) -> Backbone:
    return families["resnet-basic"].build(return_idx=(2, 0))


def names(folder: Path) -> list[str]:
    return sorted(str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file())


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        (("net", "kserve"), {}, ConfigError, "server='kserve' is unknown; use one of triton, ovms"),
        (("../net",), {}, ConfigError, r"name='\.\./net' must begin with a letter or a digit"),
        (("",), {}, ConfigError, "name='' must"),
        ((7,), {}, ConfigError, "name=7 must"),
        (("net",), {"version": 0}, ConfigError, "version=0 must be an integer from 1 on"),
        (("net",), {"version": True}, ConfigError, "version=True must"),
        (("net",), {"max_batch_size": 0}, ConfigError, "max_batch_size=0 must be an integer"),
        (("net", "ovms"), {"max_batch_size": 4}, ConfigError, "=4 is for server='triton'"),
        (("net",), {"dynamic": ()}, ConfigError, r"dynamic=\(\) fixes their size; add 'batch'"),
        (("net",), {"opset": 3}, ConfigError, "opset=3 cannot be written"),
        (("net", "ovms"), {"precision": "bf16"}, PrecisionError, "'bf16' is not written"),
        (("net",), {"format": "onnx"}, ConfigError, "unknown option format; allowed: calib"),
    ],
)
def test_what_is_refused(
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    error: type[Exception],
    text: str,
    tiny: Backbone,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=text):
        write_repository(tiny, tmp_path / "repo", *arguments, **options)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_backbone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="backbone is expected, got Linear"):
        write_repository(nn.Linear(3, 3), tmp_path / "repo", "net")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("server", ["triton", "ovms"])
def test_a_version_that_exists(server: Server, tiny: Backbone, tmp_path: Path) -> None:
    write_repository(tiny, tmp_path, "net", server)
    write_repository(tiny, tmp_path, "net", server, version=4)
    before = names(tmp_path)
    with pytest.raises(OutputError, match=r"net/1 exists, .* is not replaced; version=5 is free"):
        write_repository(tiny, tmp_path, "net", server)
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    "options", [{"preprocess": True}, {"dynamic": ("batch",), "input_shape": (1, 64, 64)}], ids=str
)
def test_a_version_with_another_interface(
    options: dict[str, Any], tiny: Backbone, tmp_path: Path
) -> None:
    write_repository(tiny, tmp_path, "net")
    with pytest.raises(OutputError, match=r"does not have the name, input .* give another name"):
        write_repository(tiny, tmp_path, "net", version=2, **options)
    assert names(tmp_path) == ["net/1/model.onnx", "net/config.pbtxt"]


def test_a_folder_of_something_else(tiny: Backbone, tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    with pytest.raises(OutputError, match=r"holds a model whose config\.pbtxt does not have"):
        write_repository(tiny, tmp_path, "net")
    with pytest.raises(OutputError, match=r"net and the entry 'net' .* \(base_path none\)"):
        write_repository(tiny, tmp_path, "net", "ovms")
    elsewhere = {"model_config_list": [{"config": {"name": "net", "base_path": "/else"}}]}
    (tmp_path / "config.json").write_text(json.dumps(elsewhere))
    with pytest.raises(OutputError, match=r"\(base_path /else\); give another name"):
        write_repository(tiny, tmp_path, "net", "ovms")
    assert names(tmp_path) == ["config.json"]


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"model_config_list": [{"config": {"name": "a"}}]}', "\udcff"]
)
def test_a_damaged_configuration(text: str, tiny: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(OutputError, match=r"config\.json is not a configuration .* mend it, or"):
        write_repository(tiny, tmp_path, "net", "ovms")
    assert names(tmp_path) == ["config.json"]


def test_a_file_where_the_repository_should_be(tiny: Backbone, tmp_path: Path) -> None:
    (tmp_path / "repo").write_text("old")
    with pytest.raises(OutputError, match=r"repo cannot be written: .* choose another place"):
        write_repository(tiny, tmp_path / "repo", "net")
    assert names(tmp_path) == ["repo"]


@pytest.mark.parametrize("server", ["triton", "ovms"])
def test_a_model_that_fails_leaves_nothing(
    server: Server, tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise FidelityError("other maps")

    monkeypatch.setattr(export_module, "check_fidelity", refuse)
    with pytest.raises(FidelityError, match="other maps"):
        write_repository(tiny, tmp_path, "net", server)
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_that_cannot_be_written_leaves_no_model(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_repository(tiny, tmp_path, "one", "ovms")
    before = names(tmp_path), (tmp_path / "config.json").read_text()

    def full(_path: Path) -> None:
        raise OutputError("No space left on device")

    monkeypatch.setattr(serving, "written_whole", full)
    with pytest.raises(OutputError, match="No space left"):
        write_repository(tiny, tmp_path, "two", "ovms")
    assert (names(tmp_path), (tmp_path / "config.json").read_text()) == before
