"""Freezing in mid-training: what an optimizer holds stays what the network has."""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from trunkline import Backbone

if TYPE_CHECKING:
    from tests.conftest import Family


def optimizer_of(backbone: Backbone) -> torch.optim.Optimizer:
    return torch.optim.AdamW(backbone.param_groups(lr=1e-3, weight_decay=0.1, layer_decay=0.8))


def step(backbone: Backbone, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    loss: Tensor = sum((m.square().mean() for m in backbone(images)), torch.zeros(()))
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
def test_freezing_replaces_no_parameter_and_no_buffer(one_of_each: Family, norm: str) -> None:
    backbone = one_of_each.build(norm=norm)
    names = dict(backbone.named_parameters()) | dict(backbone.named_buffers())
    for frozen in (2, 4, 0, 3, -1):
        backbone.freeze(frozen)
        now = dict(backbone.named_parameters()) | dict(backbone.named_buffers())
        assert list(now) == list(names)
        assert all(now[name] is names[name] for name in names)


@pytest.mark.parametrize(("first", "then"), list(itertools.permutations((-1, 1, 3), 2)))
def test_a_run_that_froze_in_the_middle_is_resumed_bit_for_bit(
    one_of_each: Family, first: int, then: int
) -> None:
    backbone = one_of_each.build(frozen_stages=-1)
    optimizer = optimizer_of(backbone)  # of everything, so that thawing needs no other one
    backbone.train().freeze(first)
    step(backbone, optimizer, 0)
    backbone.freeze(then)
    step(backbone, optimizer, 1)
    saved: dict[str, Any] = copy.deepcopy(
        {"network": backbone.state_dict(), "optimizer": optimizer.state_dict()}
    )
    step(backbone, optimizer, 2)

    resumed = one_of_each.build(seed=5, frozen_stages=-1)
    resumed.load_state_dict(saved["network"])
    again = optimizer_of(resumed)
    resumed.train().freeze(then)
    again.load_state_dict(saved["optimizer"])
    step(resumed, again, 2)
    ours, theirs = backbone.state_dict(), resumed.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_frozen_members_of_an_optimizer_do_not_move(one_of_each: Family) -> None:
    backbone = one_of_each.build()
    optimizer = optimizer_of(backbone)
    backbone.train()
    step(backbone, optimizer, 0)
    backbone.freeze(2)
    before = copy.deepcopy(backbone.state_dict())
    step(backbone, optimizer, 1)
    moved = {n for n, value in backbone.state_dict().items() if not torch.equal(value, before[n])}
    assert {name.split(".")[0:2][-1] for name in moved} == {"2", "3"}
    assert all(name.startswith("stages.") for name in moved)


def test_groups_with_frozen_members_are_those_of_the_thawed_network(one_of_each: Family) -> None:
    backbone = one_of_each.build()
    words: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1}
    before = backbone.param_groups(**words, frozen=True)
    backbone.freeze(2)
    after = backbone.param_groups(**words, frozen=True)
    assert [g["name"] for g in after] == [g["name"] for g in before]
    for one, other in zip(after, before, strict=True):
        assert all(a is b for a, b in zip(one["params"], other["params"], strict=True))
    trained = [g["name"] for g in backbone.param_groups(**words)]
    assert trained == [g["name"] for g in before if g["name"].startswith(("stage2", "stage3"))]
    backbone.freeze(-1)
    torch.optim.SGD(backbone.param_groups(**words)).load_state_dict(
        torch.optim.SGD(after).state_dict()
    )


def test_a_module_around_the_network_keeps_the_same_parameters(one_of_each: Family) -> None:
    backbone = one_of_each.build()
    model = nn.Sequential(backbone)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    backbone.freeze(3)
    backbone.freeze(-1)
    assert [id(p) for p in model.parameters()] == held
