"""Model repositories: what servers read, checked against what their documentation says.

What is refused is in ``test_serving_refusals.py``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch

from trunkline import Backbone
from trunkline.errors import ConfigError
from trunkline.runtimes.serving import RepositoryReport, write_repository
from trunkline.runtimes.signal_stack import signal_stack_kept

if TYPE_CHECKING:
    from tests.conftest import Family

onnxruntime: Any = pytest.importorskip("onnxruntime")
openvino: Any = pytest.importorskip("openvino")

Server = Literal["triton", "ovms"]

# Triton's model_config.proto, as far as a classic model can use it: field → its type; a list is a
# repeated field, a set an enumeration, a dict a message.
_TYPES = {f"TYPE_{name}" for name in ("BOOL", "UINT8", "INT8", "INT32", "INT64", "FP16", "FP32")}
_FORMATS = {"FORMAT_NONE", "FORMAT_NHWC", "FORMAT_NCHW"}
SCHEMA: dict[str, Any] = {
    "name": str,
    "platform": str,
    "backend": str,
    "version_policy": {"latest": {"num_versions": int}, "all": {}, "specific": {"versions": [int]}},
    "max_batch_size": int,
    "input": [{"name": str, "data_type": _TYPES, "format": _FORMATS, "dims": [int]}],
    "output": [{"name": str, "data_type": _TYPES, "dims": [int]}],
    "instance_group": [
        {"count": int, "kind": {"KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"}, "gpus": [int]}
    ],
    "dynamic_batching": {"preferred_batch_size": [int], "max_queue_delay_microseconds": int},
    "default_model_filename": str,
    "model_warmup": [
        {
            "name": str,
            "batch_size": int,
            "inputs": [
                {
                    "key": str,
                    "value": {
                        "data_type": _TYPES,
                        "dims": [int],
                        "zero_data": bool,
                        "random_data": bool,
                    },
                }
            ],
            "count": int,
        }
    ],
}
_TOKEN = re.compile(r'"[^"\\]*"|[{}\[\]:,]|[-\w]+')


def parse(text: str, schema: dict[str, Any] = SCHEMA) -> dict[str, Any]:
    """Read protobuf text: every field must be in the schema, of its type, and set once unless
    repeated."""
    tokens = _TOKEN.findall(text)
    assert "".join(tokens) == re.sub(r"\s+(?=(?:[^\"]*\"[^\"]*\")*[^\"]*$)", "", text)
    message = _message(tokens, schema)
    assert not tokens
    return message


def _message(tokens: list[str], schema: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {}
    while tokens and tokens[0] != "}":
        name = tokens.pop(0)
        assert name in schema, name
        kind = schema[name]
        if tokens[0] == ":":
            tokens.pop(0)
        if isinstance(kind, list):
            message.setdefault(name, []).extend(_values(tokens, kind[0]))
        else:
            assert name not in message, f"{name} twice"
            message[name] = _value(tokens, kind)
    return message


def _values(tokens: list[str], kind: Any) -> list[Any]:
    if tokens[0] != "[":
        return [_value(tokens, kind)]
    tokens.pop(0)
    values = [_value(tokens, kind)]
    while tokens[0] == ",":
        tokens.pop(0)
        values.append(_value(tokens, kind))
    assert tokens.pop(0) == "]"
    return values


def _value(tokens: list[str], kind: Any) -> Any:
    word = tokens.pop(0)
    if isinstance(kind, dict):
        assert word == "{"
        message = _message(tokens, kind)
        assert tokens.pop(0) == "}"
        return message
    if isinstance(kind, set):
        assert word in kind, word
        return word
    if kind is str:
        assert word[0] == word[-1] == '"'
        return word[1:-1]
    if kind is bool:
        return {"true": True, "false": False}[word]
    return int(word)


@pytest.mark.parametrize(
    "text", ['nome: "x"', 'name: "x" name: "y"', "max_batch_size: eight", "input { dims: 3 ", "}"]
)
def test_the_parser_refuses_what_triton_would(text: str) -> None:
    with pytest.raises((AssertionError, ValueError, IndexError)):
        parse(text)


@pytest.fixture
def tiny(families: dict[str, Family]) -> Backbone:
    return families["resnet-basic"].build(return_idx=(2, 0)).eval()


def names(folder: Path) -> list[str]:
    return sorted(str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file())


def maps_of(backbone: Backbone, images: Any) -> list[Any]:
    with torch.no_grad():
        return [one.numpy() for one in backbone(torch.from_numpy(images))]


def test_triton_repository(tiny: Backbone, tmp_path: Path) -> None:
    report = write_repository(tiny, tmp_path / "new" / "repo", "net-1.a", max_batch_size=16)
    assert names(report.repo) == ["net-1.a/1/model.onnx", "net-1.a/config.pbtxt"]
    assert report.config == report.repo / "net-1.a" / "config.pbtxt"
    config = parse(report.config.read_text())
    assert config == {
        "name": "net-1.a",  # must be the folder's
        "backend": "onnxruntime",
        "max_batch_size": 16,
        "input": [
            {
                "name": "image",
                "data_type": "TYPE_FP32",
                "format": "FORMAT_NCHW",
                "dims": [3, -1, -1],  # the batch is not among them
            }
        ],
        "output": [
            {"name": "stride_16", "data_type": "TYPE_FP32", "dims": [32, -1, -1]},
            {"name": "stride_4", "data_type": "TYPE_FP32", "dims": [8, -1, -1]},
        ],
        "version_policy": {"latest": {"num_versions": 1}},
        "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
        "dynamic_batching": {
            "preferred_batch_size": [8, 16],
            "max_queue_delay_microseconds": 2000,
        },
        "model_warmup": [
            {
                "name": f"batch of {size}",
                "batch_size": size,
                "inputs": [
                    {
                        "key": "image",
                        "value": {
                            "data_type": "TYPE_FP32",
                            "dims": [3, 224, 224],
                            "zero_data": True,
                        },
                    }
                ],
            }
            for size in (1, 16)
        ],
    }
    assert report.start == f"tritonserver --model-repository={report.repo}"


@pytest.mark.parametrize("preprocess", [False, True])
@pytest.mark.parametrize("dynamic", [("batch",), ("batch", "width"), ("batch", "height", "width")])
def test_triton_config_is_that_of_the_graph(
    preprocess: bool, dynamic: tuple[str, ...], tiny: Backbone, tmp_path: Path
) -> None:
    report = write_repository(
        tiny, tmp_path, "net", preprocess=preprocess, dynamic=dynamic, input_shape=(1, 65, 98)
    )
    config = parse(report.config.read_text())
    session = onnxruntime.InferenceSession(report.export.path)
    kinds = {"tensor(float)": "TYPE_FP32", "tensor(uint8)": "TYPE_UINT8"}
    for side, found in (("input", session.get_inputs()), ("output", session.get_outputs())):
        assert [(one["name"], one["data_type"], one["dims"]) for one in config[side]] == [
            (one.name, kinds[one.type], [n if isinstance(n, int) else -1 for n in one.shape[1:]])
            for one in found
        ]
        assert all(isinstance(one.shape[0], str) for one in found)  # any number of images
    for warm in config["model_warmup"]:
        assert len(warm["inputs"][0]["value"]["dims"]) == 3
        shape = (warm["batch_size"], *warm["inputs"][0]["value"]["dims"])
        zeros = np.zeros(shape, np.uint8 if preprocess else np.float32)
        assert len(session.run(None, {"image": zeros})) == 2


def test_triton_without_batching(tiny: Backbone, tmp_path: Path) -> None:
    config = parse(write_repository(tiny, tmp_path, "net", max_batch_size=1).config.read_text())
    assert config["max_batch_size"] == 1
    assert "dynamic_batching" not in config
    assert [one["batch_size"] for one in config["model_warmup"]] == [1]


def test_another_version_keeps_the_users_settings(tiny: Backbone, tmp_path: Path) -> None:
    report = write_repository(tiny, tmp_path, "net")
    tuned = report.config.read_text().replace("count: 1", "count: 4").replace("\n", "\n\n# mine\n")
    tuned = "".join(line for line in tuned.splitlines(keepends=True) if "mine" not in line)
    report.config.write_text(tuned)
    again = write_repository(tiny, tmp_path, "net", version=12)
    assert names(tmp_path) == ["net/1/model.onnx", "net/12/model.onnx", "net/config.pbtxt"]
    assert report.config.read_text() == tuned
    assert again.export.path == tmp_path / "net" / "12" / "model.onnx"
    with pytest.raises(ConfigError, match=r"max_batch_size=4 would change .*; leave it out, or"):
        write_repository(tiny, tmp_path, "net", version=13, max_batch_size=4)


def served_config(report: RepositoryReport) -> list[dict[str, Any]]:
    """Check config.json against what the server's schema allows and requires of a model."""
    document = json.loads(report.config.read_text())
    assert set(document) == {"model_config_list"}
    found = []
    for one in document["model_config_list"]:
        assert set(one) == {"config"}
        config = one["config"]
        assert {"name", "base_path"} <= set(config)
        allowed = {"name": str, "base_path": str, "target_device": str, "plugin_config": dict}
        assert all(isinstance(value, allowed[key]) for key, value in config.items())
        found.append(config)
    return found


def test_ovms_repository_in_the_real_runtime(tiny: Backbone, tmp_path: Path) -> None:
    for name, preprocess in (("plain", False), ("pictures", True)):
        report = write_repository(tiny, tmp_path, name, "ovms", preprocess=preprocess)
    assert names(tmp_path) == [
        "config.json",
        *("pictures/1/model.bin", "pictures/1/model.xml"),
        *("plain/1/model.bin", "plain/1/model.xml"),
    ]
    assert report.start == (
        f"ovms --config_path {tmp_path / 'config.json'} --port 9000 --rest_port 8000"
    )
    served = served_config(report)
    assert [one["name"] for one in served] == ["plain", "pictures"]
    random = np.random.default_rng(3)
    pixels = random.integers(0, 256, (2, 50, 71, 3), dtype=np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    tensors = ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    wanted = maps_of(tiny, tensors)
    for one, images in zip(served, (tensors, pixels), strict=True):
        version = max((tmp_path / one["base_path"]).iterdir(), key=lambda path: int(path.name))
        with signal_stack_kept():
            compiled = openvino.Core().compile_model(
                version / "model.xml", one["target_device"], one["plugin_config"]
            )
        got = compiled({"image": images})
        for name, other in zip(("stride_16", "stride_4"), wanted, strict=True):
            assert np.abs(got[name] - other).max() <= 2e-5 * np.abs(other).max()


def test_ovms_keeps_other_models_and_settings(tiny: Backbone, tmp_path: Path) -> None:
    report = write_repository(tiny, tmp_path, "net", "ovms")
    document = json.loads(report.config.read_text())
    document["model_config_list"][0]["config"]["nireq"] = 4
    document["model_config_list"].append({"config": {"name": "bert", "base_path": "/other"}})
    report.config.write_text(json.dumps(document))
    write_repository(tiny, tmp_path, "net", "ovms", version=2)
    assert json.loads(report.config.read_text()) == document
    write_repository(tiny, tmp_path, "net2", "ovms")
    after = json.loads(report.config.read_text())["model_config_list"]
    assert after[:2] == document["model_config_list"]
    assert after[2]["config"]["base_path"] == "net2"


@pytest.mark.parametrize("server", ["triton", "ovms"])
def test_report(server: Server, tiny: Backbone, tmp_path: Path) -> None:
    report = write_repository(tiny, tmp_path / "a b", "net", server, version=3)
    assert (report.name, report.version, report.server) == ("net", 3, server)
    assert all(file.path.is_file() for file in report.export.files)
    assert report.export.path == report.export.files[0].path
    assert f"'{'--model-repository=' if server == 'triton' else ''}{tmp_path}/a b" in report.start
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["export"]["fidelity"][0]["shape"] == [1, 225, 161]
    assert Path(plain["config"]).is_file()
