"""Networks of PyTorch as data: the same network again, and nothing else for whoever writes one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from trunkline import Backbone, Runner, deploy, load_runner
from trunkline.errors import RunnerError
from trunkline.runtimes.network_file import NETWORK, read_network

if TYPE_CHECKING:
    from tests.conftest import Family

pytestmark = pytest.mark.filterwarnings("ignore::trunkline.runtimes.processor.EmulationWarning")


def assert_same_again(runner: Runner, folder: Path) -> None:
    """Save it, load it, and compare bit by bit at sizes that exporters find hard."""
    loaded = load_runner(runner.save(folder))
    drawn = np.random.default_rng(0)
    for n, height, width in ((2, 1, 1), (2, 20, 20), (1, 33, 33), (3, 65, 97)):
        shape = (n, runner.in_channels, height, width)
        images: Any = drawn.standard_normal(shape, np.float32)
        if runner.preprocess:
            images = drawn.integers(0, 256, (n, height, width, 3), np.uint8)
        for one, same in zip(runner(images), loaded(images), strict=True):
            assert np.array_equal(one, same)


def test_every_family_at_any_size(family: Family, tmp_path: Path) -> None:
    assert_same_again(deploy(family.build(), "torch"), tmp_path / "runner")
    assert (tmp_path / "runner" / NETWORK).is_file()


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ({"norm": "group", "act": "silu", "output_stride": 8}, {}),
        ({"norm": "frozen", "return_idx": (2, 0), "return_stem": True, "in_channels": 5}, {}),
        ({"norm": "sync", "frozen_stages": 1, "drop_path_rate": 0.5}, {"preprocess": True}),
        ({}, {"precision": "bf16"}),
        ({}, {"precision": "bf16", "preprocess": True}),
    ],
    ids=str,
)
def test_every_option(
    families: dict[str, Family], tmp_path: Path, options: dict[str, Any], how: dict[str, Any]
) -> None:
    backbone = families["resnet-pooled"].build(**options)
    assert_same_again(deploy(backbone, "torch", **how), tmp_path / "runner")
    assert (tmp_path / "runner" / NETWORK).is_file()


def exchange_a_part(backbone: Backbone) -> None:
    backbone.stages[0] = nn.Sequential(backbone.stages[0], nn.Hardtanh(-1, 1))


def exchange_an_activation(backbone: Backbone) -> None:
    for module in backbone.modules():
        if isinstance(getattr(module, "act", None), nn.ReLU):
            module.act = nn.LeakyReLU(0.2)


def hook(backbone: Backbone) -> None:
    backbone.stem.register_forward_hook(lambda _module, _inputs, output: output * 1.01)


@pytest.mark.parametrize("change", [exchange_a_part, exchange_an_activation, hook])
def test_a_network_that_was_changed_is_not_taken_for_that_of_its_name(
    families: dict[str, Family], tmp_path: Path, change: Callable[[Backbone], None]
) -> None:
    backbone = families["resnet-basic"].build(return_idx=(0,))
    change(backbone)
    assert_same_again(deploy(backbone, "torch"), tmp_path / "runner")
    assert not (tmp_path / "runner" / NETWORK).exists()


@pytest.fixture(scope="module")
def written(families: dict[str, Family], tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """A runner whose folder holds a network of two kinds of numbers."""
    folder = tmp_path_factory.mktemp("written")
    runner = deploy(families["regnet-y"].build(), "torch")
    return load_runner(runner.save(folder / "runner"))


def parts(runner: Runner) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    assert runner.saved is not None
    with safe_open(runner.saved.folder / NETWORK, framework="pt") as file:
        return json.loads(file.metadata()["network"]), {
            name: file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118
        }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 70_000) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
LIKELY = st.sampled_from([0, 1, 10**4, 65_536, 10**12, [60] * 4, [1, 1, 1, 65_536], True, "relu"])


@settings(
    max_examples=80,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_description_is_built_or_refused_in_no_time(
    written: Runner, families: dict[str, Family], tmp_path: Path, data: st.DataObject
) -> None:
    built, state = parts(written)
    family = data.draw(st.sampled_from(["resnet", "dla", "regnet"]))
    if family != "regnet":
        name = {"resnet": "resnet-basic", "dla": "dla-basic"}[family]
        config = families[name].config
        built.update(family=family, architecture={**vars(config)})
    inner = data.draw(st.sampled_from([built, built["architecture"]]))
    inner[data.draw(st.sampled_from(sorted(inner)))] = data.draw(JSON | LIKELY)
    save_file(state, tmp_path / NETWORK, {"network": json.dumps(built)})
    began = time.monotonic()
    try:
        read_network(tmp_path / NETWORK, written.spec)
    except RunnerError as error:
        told = str(error)
        assert "cannot open the network in network.safetensors" in told
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.popitem(), r"Missing key\(s\)"),
        (lambda state: state.update(more=torch.zeros(1)), r"Unexpected key\(s\).*more"),
        (lambda state: state.update({"stem.conv.bias": torch.zeros(9)}), r"size mismatch.*stem"),
        (
            lambda state: state.update({"stem.conv.bias": torch.zeros(8, dtype=torch.int8)}),
            r"stem\.conv\.bias is torch\.int8 where torch\.float32 belongs",
        ),
        (lambda state: state.clear(), r"blocks cannot be made of 0 tensors"),
    ],
)
def test_tensors_that_are_not_those_of_the_network(
    written: Runner, tmp_path: Path, change: Callable[[Any], object], message: str
) -> None:
    built, state = parts(written)
    change(state)
    save_file(state, tmp_path / NETWORK, {"network": json.dumps(built)})
    with pytest.raises(RunnerError, match=message):
        read_network(tmp_path / NETWORK, written.spec)


def test_what_is_no_network(tmp_path: Path, written: Runner) -> None:
    for content in (b"", b"\xff" * 100):
        (tmp_path / NETWORK).write_bytes(content)
        with pytest.raises(RunnerError, match=r"cannot open the network .* deploy the backbone"):
            read_network(tmp_path / NETWORK, written.spec)
    save_file(parts(written)[1], tmp_path / NETWORK)
    with pytest.raises(RunnerError, match=r"cannot open the network"):
        read_network(tmp_path / NETWORK, written.spec)
