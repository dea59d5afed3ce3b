"""The containers and prefixes of every upstream are taken off, and what was left out is told."""

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
from trunkline.weights.checkpoint import Checkpoint, read_checkpoint


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


# Containers.


@pytest.mark.parametrize(
    ("container", "held"),
    [
        ("state_dict", {"state_dict": "weights", "epoch": 3, "arch": "dla34", "best_prec1": 76.1}),
        ("state_dict", {"state_dict": "weights", "best_prec1": torch.tensor(76.1)}),
        ("model", {"model": "weights", "optimizer": {"state": {}}, "args": argparse.Namespace()}),
        ("model_state", {"model_state": "weights", "cfg": "MODEL:\n  TYPE: regnet\n"}),
        ("model_state_dict", {"model_state_dict": "weights"}),
        ("net", {"net": "weights", "acc": np.float64(0.7)}),
        ("network", {"network": "weights"}),
        ("weights", {"weights": "weights"}),
        ("model.state_dict", {"model": {"state_dict": "weights", "epoch": 1}}),
        ("ema.module", {"ema": {"module": "weights", "updates": 10}}),
    ],
)
def test_containers(
    written: Callable[[object], Checkpoint],
    state: Tensors,
    container: str,
    held: dict[str, Any],
) -> None:
    checkpoint = written(_with_weights(held, state))
    assert_same(checkpoint, state)
    assert checkpoint.container == container


def _with_weights(held: object, state: Tensors) -> object:
    if isinstance(held, dict):
        return {key: _with_weights(value, state) for key, value in held.items()}
    return state if isinstance(held, str) and held == "weights" else held


@pytest.mark.parametrize(
    ("held", "average", "plain"),
    [
        ({"state_dict_ema": 2, "state_dict": 1}, "state_dict_ema", "state_dict"),
        ({"model_ema": 2, "model": 1}, "model_ema", "model"),
        ({"ema": {"module": 2, "updates": 5}, "model": 1}, "ema.module", "model"),
    ],
)
def test_averaged_weights_are_preferred_and_said_so(
    tmp_path: Path, held: dict[str, Any], average: str, plain: str
) -> None:
    path = tmp_path / "model.pth"

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(inner) for key, inner in value.items()}
        return {"fc.weight": torch.full((1,), float(value))} if value in (1, 2) else value

    torch.save(filled(held), path)
    checkpoint = read_checkpoint(path)
    assert (checkpoint.container, checkpoint.tensors["fc.weight"].item()) == (average, 2)
    assert checkpoint.notes == (
        f"EMA weights ({average.split('.')[0]}) were preferred over {plain}",
    )
    checkpoint = read_checkpoint(path, prefer_ema=False)
    assert (checkpoint.container, checkpoint.tensors["fc.weight"].item()) == (plain, 1)
    assert checkpoint.notes == ()


def test_only_averaged_weights_are_taken_and_said_so(tmp_path: Path, state: Tensors) -> None:
    path = tmp_path / "rtdetr.pth"
    torch.save({"ema": {"module": state}}, path)
    checkpoint = read_checkpoint(path, prefer_ema=False)
    assert checkpoint.container == "ema.module"
    assert "EMA weights (ema): the file has no others" in checkpoint.notes


@pytest.mark.parametrize(
    ("errors", "container"),
    [
        ({"test_err": 20.0, "ema_err": 19.5}, "ema_state"),
        ({"test_err": 20.0, "ema_err": 20.0}, "model_state"),
        ({"test_err": np.float64(20.0)}, "model_state"),
        ({"ema_err": 21.0}, "ema_state"),
        ({}, "model_state"),
    ],
)
def test_of_pycls_the_better_weights_are_taken(
    tmp_path: Path, errors: dict[str, Any], container: str
) -> None:
    path = tmp_path / "regnet.pyth"
    held = {
        "epoch": 99,
        "model_state": {"head.fc.bias": torch.ones(1)},
        "ema_state": {"head.fc.bias": torch.ones(1)},
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.ones(1)}}},
        "cfg": "MODEL: {}",
    }
    torch.save(held | errors, path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.container == container
    assert f"{container} was taken, as pycls does" in checkpoint.notes[0]
    assert read_checkpoint(path, prefer_ema=False).container == "model_state"


def test_vissl_trunk_and_heads(written: Callable[[object], Checkpoint]) -> None:
    trunk = {"_feature_blocks.conv1.stem.0.weight": torch.ones(2)}
    heads = {"0.clf.0.weight": torch.zeros(2)}
    held = {
        "phase_idx": 1,
        "classy_state_dict": {"base_model": {"model": {"trunk": trunk, "heads": heads}}},
    }
    checkpoint = written(held)
    assert_same(
        checkpoint,
        {"conv1.stem.0.weight": torch.ones(2), "heads.0.clf.0.weight": torch.zeros(2)},
    )
    assert checkpoint.container == "classy_state_dict.base_model.model.trunk"
    assert checkpoint.prefix == "_feature_blocks."


def test_mmpretrain_files(written: Callable[[object], Checkpoint]) -> None:
    held = {
        "meta": {"cfg": "model = dict()", "epoch": 100, "hook_msgs": {}},
        "state_dict": OrderedDict(
            {"backbone.conv1.weight": torch.ones(2), "head.fc.bias": torch.ones(3)}
        ),
        "message_hub": {"log_scalars": {}, "loss": np.float64(1.0)},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
    }
    checkpoint = written(held)
    assert list(checkpoint.tensors) == ["conv1.weight", "head.fc.bias"]
    assert (checkpoint.container, checkpoint.prefix) == ("state_dict", "backbone.")


def test_entries_that_are_no_tensors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"fc.bias": torch.ones(1), "epoch": 3, "names": ["cat"], 5: torch.ones(1)}, path)
    checkpoint = read_checkpoint(path)
    assert list(checkpoint.tensors) == ["fc.bias"]
    assert checkpoint.notes == ("left out, for they are no tensors: 5, epoch, names",)
    assert checkpoint.metadata == {"epoch": "3"}


def test_unusual_dtypes_are_told(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"a": torch.ones(1).half(), "b": torch.ones(1).half(), "c": torch.ones(1)}, path)
    assert read_checkpoint(path).notes == ("float16 kept: 2 tensors",)


def test_a_container_that_holds_itself_ends(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    held: dict[str, Any] = {}
    held |= {"model": held, "ema": {"module": held, "model": held}, "state_dict": held}
    path.write_bytes(pickle.dumps(held))
    with pytest.raises(CheckpointError, match=r"holds no tensors .* Its keys: ema, model, state"):
        read_checkpoint(path)


# Prefixes.


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "_orig_mod.", "model.", "backbone.", "resnet.", "regnet."),
        *("_feature_blocks.", "backbone.model.", "module._orig_mod.", "module.backbone."),
        *("backbone.bottom_up.", "backbone.body."),
    ],
)
def test_prefixes_that_all_names_share(tmp_path: Path, state: Tensors, prefix: str) -> None:
    path = tmp_path / "model.pth"
    torch.save(prefixed(state, prefix), path)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint, state)
    assert checkpoint.prefix == prefix
    assert checkpoint.notes == ("float64 kept: 1 tensors", "float16 kept: 1 tensors")


@pytest.mark.parametrize("prefix", ["backbone.", "resnet.", "regnet.", "backbone.model."])
@pytest.mark.parametrize("head", ["head.fc.", "classifier.1.", "fc.", "head.", "heads.0.clf.0."])
def test_a_classifier_keeps_its_name(
    tmp_path: Path, state: Tensors, prefix: str, head: str
) -> None:
    path = tmp_path / "model.pth"
    classifier = {f"{head}weight": torch.ones(2, 2), f"{head}bias": torch.ones(2)}
    torch.save(prefixed(prefixed(state, prefix) | classifier, "module."), path)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint, state | classifier)
    assert checkpoint.prefix == f"module.{prefix}"


@pytest.mark.parametrize("prefix", ["module.", "model.", "resnet."])
def test_a_prefix_that_only_some_names_have_stays(
    tmp_path: Path, state: Tensors, prefix: str
) -> None:
    path = tmp_path / "model.pth"
    held = prefixed(state, prefix) | {"other.weight": torch.ones(1)}
    torch.save(held, path)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint, held)
    assert checkpoint.prefix == ""


@pytest.mark.parametrize(
    ("prefix", "others"),
    [
        ("backbone.", {"neck.conv.weight": 1, "bbox_head.fc.weight": 1, "bbox_head.fc.bias": 1}),
        ("backbone.model.", {"encoder.a": 1, "decoder.b": 1, "decoder.c": 1}),
        ("backbone.bottom_up.", {"backbone.fpn_lateral2.weight": 1, "roi_heads.a": 1}),
        ("backbone.body.", {"backbone.fpn.a": 1, "head.classification_head.weight": 1}),
    ],
)
def test_of_a_detector_only_the_backbone_is_taken(
    tmp_path: Path, state: Tensors, prefix: str, others: dict[str, int]
) -> None:
    path = tmp_path / "detector.pth"
    held = prefixed(state, prefix) | {name: torch.ones(1) for name in others}
    torch.save({"model": prefixed(held, "module.")}, path)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint, state)
    assert checkpoint.prefix == f"module.{prefix}"
    assert "others were left aside" in checkpoint.notes[0]


def test_what_was_left_aside_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "detector.pth"
    names = ("backbone.conv1.weight", "neck.a", "neck.b", "bbox_head.c")
    torch.save({name: torch.ones(1) for name in names}, path)
    assert read_checkpoint(path).notes == (
        "only the 1 tensors under backbone. were taken, 3 others were left aside "
        "(bbox_head 1, neck 2)",
    )


def test_counters_of_averaged_models_do_not_hide_the_prefix(tmp_path: Path) -> None:
    path = tmp_path / "swa.pth"
    torch.save({"n_averaged": torch.tensor(3), "module.fc.bias": torch.ones(1)}, path)
    checkpoint = read_checkpoint(path)
    assert list(checkpoint.tensors) == ["fc.bias"]
    assert checkpoint.notes == ("left out, for they are the state of training: n_averaged",)


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    held = {"backbone.fc.weight": torch.ones(1), "fc.weight": torch.zeros(1)}
    torch.save(held | {"backbone.conv1.weight": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"without 'backbone\.' two tensors .* fc\.weight"):
        read_checkpoint(path)
