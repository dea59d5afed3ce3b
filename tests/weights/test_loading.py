"""Weights into tiny networks: everything that is needed, of the right shape, or nothing.

What upstreams call things is tested beside their layouts; here the names are the backbone's own.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import trunkline
from trunkline import Backbone, DLANet, ResNet
from trunkline.errors import ConfigError, WeightsError, WeightsMismatchError, WeightsNotFoundError
from trunkline.weights.loading import load_weights
from trunkline.weights.matching import listed

if TYPE_CHECKING:
    from tests.conftest import Family


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No store, no cache and no network but what a test sets up."""
    monkeypatch.delenv("TRUNKLINE_WEIGHTS", raising=False)
    monkeypatch.setenv("TRUNKLINE_OFFLINE", "1")
    monkeypatch.setenv("TRUNKLINE_HOME", str(tmp_path / "home"))


def saved(tmp_path: Path, tensors: dict[str, Tensor], name: str = "file.safetensors") -> Path:
    path = tmp_path / name
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path


def snapshot(backbone: Backbone) -> dict[str, Tensor]:
    return copy.deepcopy(backbone.state_dict())


def assert_same_state(got: Backbone, want: dict[str, Tensor]) -> None:
    for name, value in got.state_dict().items():
        assert torch.equal(value, want[name]), name


@torch.no_grad()
def assert_same_maps(got: Backbone, want: Backbone) -> None:
    images = torch.randn(2, 3, 40, 56)
    for one, other in zip(got.eval()(images), want.eval()(images), strict=True):
        assert torch.equal(one, other)


# What fits


def test_built_with_weights_is_the_network_that_was_saved(family: Family, tmp_path: Path) -> None:
    source = family.build(seed=1)
    path = saved(tmp_path, source.state_dict())
    for weights in (path, str(path)):
        backbone = family.create(weights=weights)
        assert not any(t.is_meta for t in (*backbone.parameters(), *backbone.buffers()))
        assert all(p.requires_grad for p in backbone.parameters())
        assert backbone.training
        assert_same_state(backbone, source.state_dict())
        assert_same_maps(backbone, source)


def test_an_existing_network_keeps_its_parameters_and_its_optimizer(
    one_of_each: Family, tmp_path: Path
) -> None:
    source = one_of_each.build(seed=1)
    backbone = one_of_each.build(seed=2)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    parameters = list(backbone.parameters())
    load_weights(backbone, saved(tmp_path, source.state_dict()))
    assert_same_state(backbone, source.state_dict())
    assert all(one is other for one, other in zip(backbone.parameters(), parameters, strict=True))
    before = snapshot(backbone)
    backbone(torch.randn(2, 3, 32, 32))[-1].mean().backward()
    optimizer.step()
    assert any(not torch.equal(p, before[name]) for name, p in backbone.named_parameters())


def test_stages_that_are_not_kept_may_be_in_the_file(one_of_each: Family, tmp_path: Path) -> None:
    source = one_of_each.build(seed=1)
    backbone = one_of_each.build(seed=2, return_idx=(1,))
    load_weights(backbone, saved(tmp_path, source.state_dict()))
    assert_same_state(backbone, source.state_dict())


def test_batch_counters_may_be_absent(one_of_each: Family, tmp_path: Path) -> None:
    state = one_of_each.build(seed=1).state_dict()
    kept = {name: v for name, v in state.items() if not name.endswith("num_batches_tracked")}
    assert len(kept) < len(state)
    backbone = one_of_each.build(seed=2)
    for name, buffer in backbone.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.fill_(7)
    load_weights(backbone, saved(tmp_path, kept))
    assert_same_state(backbone, state)  # fresh counters are zero


def test_half_precision_files_are_widened(one_of_each: Family, tmp_path: Path) -> None:
    state = one_of_each.build(seed=1).state_dict()
    halves = {n: v.half() if v.is_floating_point() else v for n, v in state.items()}
    path = saved(tmp_path, halves)
    existing = one_of_each.build(seed=2)
    load_weights(existing, path)
    built = one_of_each.create(weights=path)
    for backbone in (existing, built):
        assert {p.dtype for p in backbone.parameters()} == {torch.float32}
        assert_same_state(
            backbone, {n: v.float() if v.is_floating_point() else v for n, v in halves.items()}
        )


def test_the_network_s_own_precision_stays(one_of_each: Family, tmp_path: Path) -> None:
    state = one_of_each.build(seed=1).state_dict()
    backbone = one_of_each.build(seed=2).double()
    load_weights(backbone, saved(tmp_path, state))
    assert {p.dtype for p in backbone.parameters()} == {torch.float64}
    assert all(torch.equal(p.float(), state[name]) for name, p in backbone.named_parameters())


def test_frozen_norms_take_the_file_of_batch_norms(one_of_each: Family, tmp_path: Path) -> None:
    source = one_of_each.build(seed=1)
    backbone = one_of_each.build(seed=2, norm="frozen")
    load_weights(backbone, saved(tmp_path, source.state_dict()))
    assert_same_maps(backbone, source)


def test_group_norms_take_their_own_file_without_words(one_of_each: Family, tmp_path: Path) -> None:
    source = one_of_each.build(seed=1, norm="group")
    backbone = one_of_each.build(seed=2, norm="group")
    report = load_weights(backbone, saved(tmp_path, source.state_dict()))
    assert report.layout == "trunkline"
    assert_same_state(backbone, source.state_dict())


def test_frozen_stages_and_mode_survive_loading(one_of_each: Family, tmp_path: Path) -> None:
    source = one_of_each.build(seed=1)
    backbone = one_of_each.build(seed=2, frozen_stages=2)
    load_weights(backbone, saved(tmp_path, source.state_dict()))
    assert backbone.training
    assert not backbone.stem.training
    assert not any(p.requires_grad for p in backbone.stages[1].parameters())
    assert all(p.requires_grad for p in backbone.stages[2].parameters())


# What does not


def a_weight_of(state: dict[str, Tensor]) -> str:
    return [name for name in state if name.startswith("stages.3") and state[name].ndim == 4][-1]


@pytest.mark.parametrize("fault", ["missing", "left over", "shape", "both"])
def test_files_that_do_not_fit_are_refused_and_nothing_changes(
    one_of_each: Family, tmp_path: Path, fault: str
) -> None:
    state = dict(one_of_each.build(seed=1).state_dict())
    weight = a_weight_of(state)
    bias = weight.replace("conv.weight", "norm.bias")
    assert bias in state
    parts = []
    if fault in ("missing", "both"):
        del state[weight]
        parts.append(rf"Missing: 1 \({weight}\)")
    if fault in ("left over", "both"):
        state["stages.3.extra.weight"] = torch.zeros(2)
        parts.append(r"Left over: 1 \(stages\.3\.extra\.weight\)")
    if fault == "shape":
        state[bias] = torch.zeros(3)
        parts.append(rf"Of another shape: 1 \({bias} is .*3.*, needs ")
    backbone = one_of_each.build(seed=2)
    before = snapshot(backbone)
    path = saved(tmp_path, state)
    with pytest.raises(WeightsMismatchError, match=".*".join(parts)) as refused:
        load_weights(backbone, path)
    assert str(path) in str(refused.value)
    assert "othing was loaded" in str(refused.value)
    assert_same_state(backbone, before)


def test_long_lists_are_counted_and_cut_at_ten(one_of_each: Family, tmp_path: Path) -> None:
    source = one_of_each.build(seed=1)
    norms = sorted(n for n in source.state_dict() if n.endswith("norm.bias"))
    state = {name: value for name, value in source.state_dict().items() if name not in norms}
    assert len(norms) > 10
    with pytest.raises(
        WeightsMismatchError, match=rf"Missing: {len(norms)} \(.*and \d+ more\)"
    ) as e:
        load_weights(source, saved(tmp_path, state))
    assert sum(name in str(e.value) for name in norms) == 10


@pytest.mark.parametrize(("count", "more"), [(9, ""), (10, ""), (11, " and 1 more")])
def test_ten_names_are_listed_in_full(count: int, more: str) -> None:
    names = [f"{number:02}" for number in range(count)]
    assert listed("Missing", names) == [f"Missing: {count} ({'; '.join(names[:10])}{more})."]
    assert listed("Missing", []) == []


def test_the_weights_of_another_network_are_refused(
    families: dict[str, Family], tmp_path: Path
) -> None:
    path = saved(tmp_path, families["regnet-x"].build().state_dict())
    backbone = families["resnet-basic"].build()
    before = snapshot(backbone)
    with pytest.raises(WeightsMismatchError, match=r"file\.safetensors"):
        load_weights(backbone, path)
    assert_same_state(backbone, before)


def test_a_pruned_file_does_not_fill_a_whole_network(one_of_each: Family, tmp_path: Path) -> None:
    path = saved(tmp_path, one_of_each.build(return_idx=(2,)).state_dict())
    with pytest.raises(WeightsMismatchError, match=r"Missing: \d+ \(stages\.3\."):
        load_weights(one_of_each.build(), path)


@pytest.mark.parametrize(
    "content", [b"", b"not weights at all", bytes(64)], ids=["empty", "text", "zeros"]
)
def test_files_that_are_no_checkpoint_are_refused(
    one_of_each: Family, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    backbone = one_of_each.build()
    before = snapshot(backbone)
    with pytest.raises(WeightsError, match=r"file\.safetensors"):
        load_weights(backbone, path)
    assert_same_state(backbone, before)


def test_a_missing_file_is_refused(one_of_each: Family, tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match=r"no file .*absent\.safetensors"):
        load_weights(one_of_each.build(), tmp_path / "absent.safetensors")


# The default weights


def test_pretrained_takes_the_file_named_after_the_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = trunkline.create_backbone("dla46-c")
    saved(tmp_path, source.state_dict(), "dla46-c.safetensors")
    monkeypatch.setenv("TRUNKLINE_WEIGHTS", str(tmp_path))
    for backbone in (
        DLANet(dla="dla46", pretrained=True),
        trunkline.create_backbone("DLA46_C", weights="default"),
    ):
        assert_same_state(backbone, source.state_dict())


@pytest.mark.parametrize("name", ["resnet18", "dla46-c", "regnet-y-002"])
def test_pretrained_without_weights_is_an_error_not_a_random_network(name: str) -> None:
    with pytest.raises(WeightsNotFoundError, match=name):
        trunkline.create_backbone(name, weights="default")
    with pytest.raises(WeightsNotFoundError):
        ResNet(depth=18, pretrained=True)


def test_a_network_of_ones_own_has_no_default_weights(one_of_each: Family) -> None:
    with pytest.raises(WeightsNotFoundError, match=r"weights=None|or none"):
        one_of_each.build(pretrained=True)


def test_pretrained_and_weights_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pretrained=True asks for the default weights, but"):
        ResNet(depth=18, pretrained=True, weights=tmp_path / "file.safetensors")
