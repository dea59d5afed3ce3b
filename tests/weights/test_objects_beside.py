"""Objects of all kinds beside the weights are noted and never made, however they were written."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import itertools
import pathlib
import pickle
import random
import sys
import types
import uuid
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from trunkline import create_backbone, load_weights
from trunkline.errors import WeightsMismatchError
from trunkline.weights.checkpoint import read_checkpoint


@dataclasses.dataclass
class Config:
    """A class of a script that is not here when the file is read."""

    lr: float = 0.1
    layers: list[int] = dataclasses.field(default_factory=lambda: [1, 2])


@dataclasses.dataclass(frozen=True)
class Slotted:
    __slots__ = ("lr",)
    lr: float


class Phase(enum.Enum):
    TRAIN = "train"


class Flags(enum.IntFlag):
    A = 1
    B = 2


class Point(NamedTuple):
    x: int


class Nested:
    class Inner:
        pass


class Names(list[str]):
    """As fastai's ``L``."""


class Tree(dict[str, Any]):
    """As mmengine's ConfigDict, omegaconf's DictConfig and yacs's CfgNode."""


class Wrapped(torch.Tensor):
    """As torchvision's tv_tensors and fastai's TensorImage."""


def collate(batch: list[Any]) -> list[Any]:
    return batch


def _objects() -> dict[str, Any]:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.grad = torch.ones(2)
    optimizer.step()
    named = Names(["a"])
    named.origin = "here"  # type: ignore[attr-defined]
    return {
        "a loss": nn.CrossEntropyLoss(weight=torch.ones(3)),
        "a partial": functools.partial(collate, [1]),
        "a function": collate,
        "a bound method": Config().__eq__,
        "an optimizer": optimizer,
        "a scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3).state_dict(),
        "a whole scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3),
        "a namespace": argparse.Namespace(lr=0.1, milestones=range(3)),
        "a simple namespace": types.SimpleNamespace(lr=0.1),
        "a dataclass": Config(),
        "a class": Config,
        "slots": Slotted(0.1),
        "an enum": Phase.TRAIN,
        "flags": Flags.A | Flags.B,
        "a named tuple": Point(1),
        "a nested class": Nested.Inner(),
        "a list of a class": named,
        "a dictionary of a class": Tree(a=Tree(b=1)),
        "a tensor of a class": torch.ones(2).as_subclass(Wrapped),
        "defaultdict(int)": collections.defaultdict(int, a=1),
        "defaultdict(list)": collections.defaultdict(list, a=[1]),
        "defaultdict(dict)": collections.defaultdict(dict),
        "a deque": collections.deque([1, 2], maxlen=3),
        "a counter": collections.Counter("abc"),
        "a chain map": collections.ChainMap({"a": 1}),
        "types": [
            int,
            str,
            float,
            bool,
            bytes,
            list,
            dict,
            tuple,
            set,
            object,
            complex,
            type(None),
        ],
        "a range": range(3),
        "a slice": slice(1, 2),
        "a complex": 1j,
        "a decimal": decimal.Decimal("1.5"),
        "a fraction": fractions.Fraction(1, 3),
        "a uuid": uuid.UUID(int=3),
        "a date": datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc),
        "a duration": datetime.timedelta(1),
        "paths": [pathlib.PurePosixPath("/data"), pathlib.PureWindowsPath("C:/data")],
        "bytes": b"\x00\xff",
        "a byte array": bytearray(b"\x00\xff"),
        "sets": [{1, "a"}, frozenset({2})],
        "an exception": ValueError("diverged"),
        "not a number": float("nan"),
        "a large number": 10**30,
        "none": None,
        "an ellipsis": ...,
        "numpy's scalars": [np.float64(1), np.int32(2), np.bool_(True), np.str_("a")],
        "numpy's dtype": np.dtype("f4"),
        "a numpy array of objects": np.array([{}, "a"], dtype=object),
        "a structured array": np.zeros(2, dtype=[("a", "f4"), ("b", "i8")]),
        "numpy's generator": np.random.default_rng(0),
        "numpy's old generator": np.random.RandomState(0),
        "python's generator": random.Random(0),  # noqa: S311
        "states of generators": [random.getstate(), torch.get_rng_state()],
        "a device": torch.device("cuda:1"),
        "a dtype": torch.float16,
        "a layout": torch.strided,
        "a size": torch.Size([1, 2]),
        "an activation": nn.functional.relu,
        "a module": nn.Sequential(nn.Linear(2, 2), nn.ReLU()),
    }


OBJECTS = _objects()


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return dict(create_backbone("resnet18", return_idx=(0,)).state_dict())


def check_beside(
    path: Path, state: dict[str, torch.Tensor], it: Any, *, new: bool, protocol: int
) -> None:
    small = {key: tensor for key, tensor in state.items() if tensor.numel() < 100}
    torch.save(
        {
            "hyper_parameters": {"it": it, "in a list": [(it,)]},
            "state_dict": small,
            "it": it,
        },
        path,
        _use_new_zipfile_serialization=new,
        pickle_protocol=protocol,
    )
    tensors = read_checkpoint(path).tensors
    for key, tensor in small.items():
        assert torch.equal(tensors[f"state_dict.{key}"], tensor)


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_beside_the_weights_is_no_matter(
    tmp_path: Path, state: dict[str, torch.Tensor], name: str
) -> None:
    check_beside(tmp_path / "last.ckpt", state, OBJECTS[name], new=True, protocol=2)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_all_objects_at_once_however_they_were_written(
    tmp_path: Path, state: dict[str, torch.Tensor], new: bool, protocol: int
) -> None:
    check_beside(tmp_path / "last.ckpt", state, OBJECTS, new=new, protocol=protocol)


def test_nothing_of_a_class_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, torch.Tensor]
) -> None:
    made = types.ModuleType("a_script_of_somebody")

    class Loud:
        def __setstate__(self, _: object) -> None:
            raise AssertionError("made")

        def __getstate__(self) -> dict[str, int]:
            return {"a": 1}

    Loud.__module__, Loud.__qualname__ = made.__name__, "Loud"
    made.Loud = Loud  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, made.__name__, made)
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": state, "callback": Loud()}, path)
    for _ in range(2):  # whether or not its module is there
        report = load_weights(create_backbone("resnet18", return_idx=(0,)), path)
        assert report.matched == len(state)
        monkeypatch.delitem(sys.modules, made.__name__, raising=False)
        assert made.__name__ not in sys.modules


def test_what_is_left_out_is_named_with_its_class(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({**state, "criterion": Config(), "lr": 0.1}, path)
    report = load_weights(create_backbone("resnet18", return_idx=(0,)), path)
    assert f"left out, for they are no tensors: criterion ({__name__}.Config), lr" in str(report)


def test_a_tensor_that_is_an_object_is_missed_and_said(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / "last.ckpt"
    held = {"model": {**state, "stages.0.blocks.0.conv1.conv.weight": Config()}}
    torch.save(held, path)
    with pytest.raises(
        WeightsMismatchError,
        match=r"Missing: 1 \(stages\.0\.blocks\.0\.conv1\.conv\.weight\)\. .* is there as an "
        rf"object of class {__name__}\.Config, which holds no numbers",
    ):
        load_weights(create_backbone("resnet18", return_idx=(0,)), path)


# What holds a network, and is no state dict.


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = create_backbone("resnet18", return_idx=(0,))
        self.head = nn.Linear(64, 2)
        self.register_buffer("mean", torch.ones(3), persistent=False)


class Learner:
    def __init__(self) -> None:
        self.model = Net()
        self.learner = self  # a cycle
        self.cbs = [Config()]


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", ["module", "in a dictionary", "learner", "average", "parallel"])
def test_of_a_whole_model_the_tensors_are_read(tmp_path: Path, kind: str, new: bool) -> None:
    learner = Learner()
    model = learner.model
    held: Any = {
        "module": model,
        "in a dictionary": {"epoch": 3, "model": model},
        "learner": learner,
        "average": torch.optim.swa_utils.AveragedModel(model),
        "parallel": nn.DataParallel(model),
    }[kind]
    path = tmp_path / "model.pt"
    torch.save(held, path, _use_new_zipfile_serialization=new)
    backbone = create_backbone("resnet18", weights=path, return_idx=(0,))
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(backbone.state_dict()[name], tensor), name
    assert "was not made; its tensors were read" in str(backbone.load_report)


@pytest.mark.parametrize("protocol", range(6))
def test_tensors_that_plain_pickle_wrote(
    tmp_path: Path, state: dict[str, torch.Tensor], protocol: int
) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"net": state}, protocol=protocol))
    backbone = create_backbone("resnet18", weights=path, return_idx=(0,))
    for name, tensor in state.items():
        assert torch.equal(backbone.state_dict()[name], tensor), name


def test_tensors_of_other_devices_are_numbers(tmp_path: Path) -> None:
    class Elsewhere:
        """Pickles as torch pickles a tensor of a TPU or NPU."""

        def __init__(self, how: str) -> None:
            self.how = how

        def __reduce__(self) -> tuple[Any, ...]:
            function = getattr(torch._utils, f"_rebuild_device_tensor_from_{self.how}")
            values = torch.arange(3.0)
            data = values.numpy() if self.how == "numpy" else values
            return function, (data, torch.float32, "xla:0", False)

    path = tmp_path / "model.pth"
    torch.save({how: Elsewhere(how) for how in ("numpy", "cpu_tensor")}, path)
    read = read_checkpoint(path).tensors
    assert all(torch.equal(tensor, torch.arange(3.0)) for tensor in read.values())
    assert list(read) == ["numpy", "cpu_tensor"]


def other_tensors(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Tensors that are no arrays of numbers, made of one that is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what PyTorch calls deprecated or a prototype
        one = torch.ones(len(weight))
        return {
            "sparse": weight.to_sparse(),
            "quantized": torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
            "quantized tensor": torch.quantize_per_channel(weight, one, one * 0, 0, torch.quint8),
            "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            "meta device": weight.to("meta"),
        }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "zipped"),
    [
        *itertools.product(("sparse", "quantized", "quantized tensor", "nested"), (True, False)),
        ("meta device", True),  # torch.save writes none in its legacy format
    ],
)
def test_a_tensor_that_is_no_array_is_refused_only_inside(
    families: dict[str, Any], tmp_path: Path, kind: str, zipped: bool
) -> None:
    """A graph's adjacency is often sparse; it says nothing against the backbone beside it."""
    family = families["resnet-basic"]
    trained, fresh = family.build(seed=1), family.build(seed=2)
    state = trained.state_dict()
    weight = "stages.0.blocks.0.conv1.conv.weight"
    other = other_tensors(state[weight])[kind]
    path = tmp_path / "x.pth"
    torch.save({"model": state, "graph": {"a": other}}, path, _use_new_zipfile_serialization=zipped)
    load_weights(fresh, path)
    assert all(torch.equal(fresh.state_dict()[name], tensor) for name, tensor in state.items())
    torch.save({"model": {**state, weight: other}}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsMismatchError, match=rf"{weight} is there as a.* {kind}"):
        load_weights(family.build(seed=2), path)
