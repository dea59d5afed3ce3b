"""Every tensor of a file is there, by the keys that lead to it, and the rest is told."""

from __future__ import annotations

import argparse
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import Tensors, assert_same

from trunkline.errors import CheckpointError
from trunkline.weights.checkpoint import Checkpoint, held_checkpoint, read_checkpoint


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("container", "held"),
    [
        ("", "weights"),
        ("state_dict", {"state_dict": "weights", "epoch": 3, "arch": "dla34", "best_prec1": 76.1}),
        ("model", {"model": "weights", "optimizer": {"state": {}}, "args": argparse.Namespace()}),
        ("model_state", {"model_state": "weights", "cfg": "MODEL:\n  TYPE: regnet\n"}),
        ("net", {"net": "weights", "acc": np.float64(0.7)}),
        ("model.state_dict", {"model": {"state_dict": "weights", "epoch": 1}}),
        ("ema.module", {"ema": {"module": "weights", "updates": 10}}),
        ("anything.at.all", {"anything": {"at": {"all": "weights"}}}),
        ("models.1", {"models": [{"lr": 0.1}, "weights"]}),
        ("1", ({"lr": 0.1}, "weights")),
    ],
)
def test_containers(
    written: Callable[[object], Checkpoint],
    state: Tensors,
    container: str,
    held: dict[str, Any],
) -> None:
    checkpoint = written(_with_weights(held, state))
    assert_same(checkpoint, prefixed(state, f"{container}." if container else ""))
    assert checkpoint.containers == (f"{container}." if container else "",)


def _with_weights(held: object, state: Tensors) -> object:
    if isinstance(held, dict):
        return {key: _with_weights(value, state) for key, value in held.items()}
    if isinstance(held, list | tuple):
        return type(held)(_with_weights(value, state) for value in held)
    return state if isinstance(held, str) and held == "weights" else held


def test_several_containers_are_all_there(written: Callable[[object], Checkpoint]) -> None:
    held = {
        "student": {"module.conv.weight": torch.ones(2)},
        "teacher": OrderedDict({"conv.weight": torch.zeros(2)}),
        "center": torch.ones(1),
        "epoch": 3,
    }
    checkpoint = written(held)
    assert list(checkpoint.tensors) == [
        "center",
        "student.module.conv.weight",
        "teacher.conv.weight",
    ]
    assert checkpoint.containers == ("", "student.", "teacher.")
    assert checkpoint.others == {"": ("epoch",)}


@pytest.mark.parametrize(
    "key", ["optimizer", "optimizer_states", "optim", "lr_schedulers", "scaler", "amp", "Optimizer"]
)
def test_the_state_of_training_is_no_network(
    written: Callable[[object], Checkpoint], key: str
) -> None:
    # Momentum has the names and the shapes of the weights.
    held = {"model": {"fc.weight": torch.ones(2)}, key: {"exp_avg": {"fc.weight": torch.ones(2)}}}
    assert list(written(held).tensors) == ["model.fc.weight"]


def test_entries_that_are_no_tensors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"fc.bias": torch.ones(1), "epoch": 3, "names": ["cat"], 5: torch.ones(1)}, path)
    checkpoint = read_checkpoint(path)
    assert list(checkpoint.tensors) == ["fc.bias"]
    assert checkpoint.others == {"": ("epoch", "names", "5")}
    assert checkpoint.metadata == {"epoch": "3"}


def test_a_container_that_holds_itself_ends(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    held: dict[str, Any] = {}
    held |= {"model": held, "ema": {"module": held, "model": held}, "state_dict": held}
    path.write_bytes(pickle.dumps(held))
    with pytest.raises(CheckpointError, match=r"holds no tensors .* Its keys: ema, model, state"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"memory holds no tensors .* Its keys: ema, model"):
        held_in_memory(held)


def held_in_memory(held: dict[str, Any]) -> Checkpoint:
    try:
        return held_checkpoint(held)
    except CheckpointError as error:
        raise CheckpointError(f"memory {error}") from error


def test_a_container_that_is_there_twice_is_read_once(tmp_path: Path) -> None:
    state = {"fc.weight": torch.ones(2)}
    path = tmp_path / "model.pth"
    torch.save({"model": state, "state_dict": state}, path)
    assert list(read_checkpoint(path).tensors) == ["model.fc.weight"]


def test_nests_beyond_reason_are_not_followed(tmp_path: Path) -> None:
    held: dict[str, Any] = {"fc.weight": torch.ones(2)}
    for _ in range(70):
        held = {"a": held}
    torch.save(held, tmp_path / "deep.pth")
    with pytest.raises(CheckpointError, match=r"holds dictionaries within .* 64 deep.*Save the"):
        read_checkpoint(tmp_path / "deep.pth")


# What is in memory.


def test_tensors_in_memory_are_plain_ones() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    held = {
        "model": {"a": parameter, "b": np.arange(3.0, dtype="f4"), "c": np.array(["x"])},
        "epoch": 3,
        "arch": "resnet18",
        "ema": [{"a": torch.zeros(2)}],
    }
    checkpoint = held_checkpoint(held)
    assert list(checkpoint.tensors) == ["model.a", "model.b", "ema.0.a"]
    assert all(type(tensor) is torch.Tensor for tensor in checkpoint.tensors.values())
    assert not checkpoint.tensors["model.a"].requires_grad
    assert checkpoint.metadata == {"epoch": "3", "arch": "resnet18"}
    assert (checkpoint.format, checkpoint.others["model."]) == ("memory", ("c",))


def test_tensors_without_numbers_are_refused() -> None:
    with pytest.raises(CheckpointError, match="holds tensors on the meta device, which have no n"):
        held_checkpoint({"fc.weight": torch.ones(2, device="meta")})
