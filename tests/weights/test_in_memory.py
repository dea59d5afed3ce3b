"""Weights that are in memory: open files, modules, members of torchvision's enums."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from trunkline import Backbone, create_backbone, load_weights
from trunkline.errors import (
    CheckpointError,
    ConfigError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from trunkline.weights import catalog
from trunkline.weights.sources import opened

pytestmark = pytest.mark.usefixtures("weights_home")


@pytest.fixture
def trained(families: dict[str, Any]) -> Backbone:
    backbone: Backbone = families["resnet-basic"].build(seed=1)
    return backbone


@pytest.fixture
def fresh(families: dict[str, Any]) -> Backbone:
    backbone: Backbone = families["resnet-basic"].build(seed=7)
    return backbone


def is_same(one: Backbone, other: Backbone) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def written(backbone: Backbone, kind: str) -> bytes:
    if kind == "safetensors":
        return save(backbone.state_dict())
    stream = io.BytesIO()
    torch.save(
        {"state_dict": backbone.state_dict()},
        stream,
        _use_new_zipfile_serialization=kind == "zip",
    )
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_an_open_file_is_read_from_where_it_stands_and_left_open(
    trained: Backbone, fresh: Backbone, kind: str, tmp_path: Path
) -> None:
    content = written(trained, kind)
    stream = io.BytesIO(b"before" + content)
    stream.seek(6)
    report = load_weights(fresh, stream)
    assert is_same(trained, fresh)
    assert not stream.closed
    assert report.sha256 == hashlib.sha256(content).hexdigest()
    path = tmp_path / "of_somebody.bin"
    path.write_bytes(content)
    with path.open("rb") as file:
        report = load_weights(fresh, file)
        assert not file.closed
    assert str(path) in report.source
    path.write_bytes(b"\0" * len(content))  # saved over, as who trains does
    assert is_same(trained, fresh)


def test_what_is_wrong_with_an_open_file_is_said(trained: Backbone, fresh: Backbone) -> None:
    read = io.BytesIO(written(trained, "zip"))
    read.read()
    with pytest.raises(CheckpointError, match=r"the open BytesIO is empty"):
        load_weights(fresh, read)
    with pytest.raises(ConfigError, match="opened as text; open it with mode 'rb'"):
        load_weights(fresh, io.StringIO("weights"))  # type: ignore[arg-type]
    assert fresh.load_report is None


def test_a_module_stands_for_its_state_dict(trained: Backbone, fresh: Backbone) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = trained
            self.head = nn.Linear(4, 2)

    report = load_weights(fresh, Model())  # type: ignore[arg-type]
    assert is_same(trained, fresh)
    assert report.prefix == "backbone."
    with pytest.raises(WeightsMismatchError, match="no layout of"):
        load_weights(fresh, nn.Linear(2, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [3, None, ["a"]], ids=["number", "none", "list"])
def test_other_things_are_refused_with_what_is_allowed(fresh: Backbone, given: Any) -> None:
    with pytest.raises(ConfigError, match=r"given as .*; allowed: a tag, a path, .* a state dict"):
        load_weights(fresh, given)


@dataclass(frozen=True)
class Published:
    """As torchvision's Weights: an address, and facts that are not needed."""

    url: str
    meta: dict[str, Any] = field(default_factory=dict, hash=False)


def test_a_member_of_torchvisions_enums_is_the_row_of_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = {row.tag: row for row in catalog.entries("resnet50")}
    row = next(row for tag, row in rows.items() if "torchvision" in tag or "imagenet1k" in tag)
    url = next(place.url for place in row.places if "download.pytorch.org" in place.url)
    members = {"IMAGENET1K_V9": Published(url), "OTHER": Published("https://x.invalid/a.pth")}
    functional: Any = Enum
    enum = functional("ResNet50_Weights", members)
    asked: list[str] = []

    def locate(_variant: str, source: str, **_: object) -> Any:
        asked.append(source)
        raise WeightsNotFoundError("no network in a test")

    monkeypatch.setattr("trunkline.weights.sources.locate", locate)
    with pytest.raises(WeightsNotFoundError, match="no network in a test"):
        opened("resnet50", enum.IMAGENET1K_V9)
    assert asked == [row.tag]
    with pytest.raises(WeightsNotFoundError, match=r"ResNet50_Weights\.OTHER is no checkpoint of"):
        opened("resnet50", enum.OTHER)
    with pytest.raises(WeightsNotFoundError, match="of resnet18: it is of resnet50"):
        opened("resnet18", enum.IMAGENET1K_V9)
    with pytest.raises(WeightsNotFoundError, match=r"ResNet50_Weights\.OTHER"):
        create_backbone("resnet50", weights=enum.OTHER)


def within(state: Any, keys: Any) -> Any:
    for key in keys:
        state = {key: state}
    return state


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize(
    ("keys", "at"),
    [
        ((0,), "0"),  # of a fold
        ((("resnet", 3), "folds"), "folds.resnet.3"),
        ([f"n{n}" for n in range(60)], "n59.n58."),
    ],
)
def test_numbers_tuples_and_depth_lead_to_a_network(
    trained: Backbone, fresh: Backbone, tmp_path: Path, keys: Any, at: str, in_file: bool
) -> None:
    given = within(trained.state_dict(), keys)
    if in_file:
        torch.save(given, tmp_path / "run.pth")
    report = load_weights(fresh, tmp_path / "run.pth" if in_file else given)
    assert is_same(trained, fresh)
    assert at in str(report)


@pytest.mark.parametrize("key", [0, ("a", 0)])
def test_a_number_and_its_text_are_not_mixed(
    trained: Backbone, fresh: Backbone, families: dict[str, Any], key: Any
) -> None:
    """``{"0": one, 0: another}``: both are called 0, and what is called so by itself is taken."""
    other = families["resnet-basic"].build(seed=3).state_dict()
    word = "0" if key == 0 else "a.0"
    for given in (
        {word: trained.state_dict(), key: other},
        {key: other, word: trained.state_dict()},
    ):
        load_weights(fresh, given)
        assert is_same(trained, fresh)


@pytest.mark.parametrize("depth", [70, 900])
def test_what_is_deeper_than_is_looked_at_is_said(
    trained: Backbone, fresh: Backbone, depth: int
) -> None:
    given = within(trained.state_dict(), ["n"] * depth)
    with pytest.raises(CheckpointError, match="more than 64 deep: nothing below is looked at"):
        load_weights(fresh, given)


def test_sparse_tensors_in_memory_are_filled(trained: Backbone, fresh: Backbone) -> None:
    state = {
        name: tensor.to_sparse() if tensor.ndim == 4 else tensor
        for name, tensor in trained.state_dict().items()
    }
    load_weights(fresh, state)
    assert is_same(trained, fresh)


def negated(tensor: Tensor) -> Tensor:
    """Return the same numbers as a view that keeps them with the other sign."""
    view = torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
    assert view.is_neg()
    assert torch.equal(view, tensor)
    return view


def test_a_negated_view_is_resolved_in_memory_and_named_in_a_file(
    trained: Backbone, fresh: Backbone, tmp_path: Path
) -> None:
    state = trained.state_dict()
    name = "stages.0.blocks.0.conv1.conv.weight"
    state[name] = negated(state[name])
    load_weights(fresh, state)
    assert is_same(trained, fresh)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(WeightsMismatchError, match=rf"{name} is there as a negated view: save"):
        load_weights(fresh, tmp_path / "x.pth")


def test_long_doubles_are_read(trained: Backbone, fresh: Backbone) -> None:
    state = {key: tensor.numpy() for key, tensor in trained.state_dict().items()}
    load_weights(
        fresh, {k: v.astype(np.longdouble) if v.dtype.kind == "f" else v for k, v in state.items()}
    )
    assert is_same(trained, fresh)


class Pair(Tensor):
    """As a quantizing library's tensors: its numbers are in another one."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Pair:
        made: Pair = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function.overloadpacket is torch.ops.aten.detach:
            return args[0]
        raise NotImplementedError(function)


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (lambda weight: Pair(weight), "holds a Pair, which keeps its numbers in other tensors"),
        (lambda _: nn.UninitializedParameter(), "not initialized; run the network once before"),
    ],
)
def test_tensors_without_numbers_are_said(
    trained: Backbone, fresh: Backbone, other: Any, text: str
) -> None:
    state = trained.state_dict()
    name = "stages.0.blocks.0.conv1.conv.weight"
    state[name] = other(state[name])
    with pytest.raises(CheckpointError, match=text):
        load_weights(fresh, state)


def test_a_prefix_is_taken_as_it_is_written(
    trained: Backbone, fresh: Backbone, families: dict[str, Any]
) -> None:
    """Two networks, one of them below a wrapper's name: the error's own advice has to pick it."""
    other = families["resnet-basic"].build(seed=3)
    given = {
        **trained.state_dict(),
        **{f"module.{name}": tensor for name, tensor in other.state_dict().items()},
    }
    with pytest.raises(WeightsMismatchError, match="prefix='' and prefix='module'"):
        load_weights(fresh, given)
    load_weights(fresh, given, prefix="module")
    assert is_same(other, fresh)
    load_weights(fresh, given, prefix="")
    assert is_same(trained, fresh)


@pytest.mark.parametrize("prefix", [3, ("module",), b"module"])
def test_a_prefix_is_a_text(trained: Backbone, fresh: Backbone, prefix: Any) -> None:
    with pytest.raises(ConfigError, match="is no text; give where the network is"):
        load_weights(fresh, trained.state_dict(), prefix=prefix)


@pytest.mark.parametrize("channels", [1, 4])
def test_half_precision_is_fitted_to_channels_as_single_is(
    trained: Backbone, families: dict[str, Any], channels: int
) -> None:
    half = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in trained.state_dict().items()
    }
    single = {name: t.float() if t.dtype == torch.half else t for name, t in half.items()}
    built = [families["resnet-basic"].build(in_channels=channels) for _ in range(2)]
    load_weights(built[0], half)
    load_weights(built[1], single)
    assert is_same(built[0], built[1])
