"""Freezing, checkpointing, drop path and optimizer groups, alike in every family."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trunkline import Backbone
from trunkline.backbones.blocks import Checkpointed, ResidualBlock
from trunkline.errors import ConfigError

if TYPE_CHECKING:
    from tests.conftest import Family


def loss_of(backbone: nn.Module, images: Tensor) -> Tensor:
    return sum((m.square().mean() for m in backbone(images)), torch.zeros(()))


def step(backbone: nn.Module, *, seed: int = 0) -> None:
    """Train for one step, with weight decay, so that whatever can move does."""
    trained = [p for p in backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=0.1)
    generator = torch.Generator().manual_seed(seed)
    loss_of(backbone, torch.randn(2, 3, 64, 64, generator=generator)).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def parts(backbone: Backbone) -> Iterator[tuple[str, nn.Module]]:
    yield "stem", backbone.stem
    for index, stage in enumerate(backbone.stages):
        yield f"stages.{index}", stage


# Freezing


@pytest.mark.parametrize("frozen", [-1, 0, 1, 2, 4])
def test_frozen_stages_stay_through_a_training_step(family: Family, frozen: int) -> None:
    backbone = family.build(frozen_stages=frozen)
    still = tuple(f"{name}." for name, _ in list(parts(backbone))[: frozen + 1])
    before = copy.deepcopy(backbone.state_dict())
    if frozen == 4:
        assert not any(p.requires_grad for p in backbone.parameters())
        loss_of(backbone, torch.randn(2, 3, 64, 64))
        assert moved(before, backbone.state_dict()) == set()
        return
    backbone.train()
    step(backbone)
    changed = moved(before, backbone.state_dict())
    assert not [name for name in changed if still and name.startswith(still)]
    # The rest moves as a whole: parameters, statistics and batch counters.
    assert changed == {name for name in before if not (still and name.startswith(still))}


def test_frozen_stages_survive_train_of_the_module_around(one_of_each: Family) -> None:
    backbone = one_of_each.build(frozen_stages=2)
    model = nn.Sequential(backbone).eval().train()
    assert model.training
    assert [part.training for _, part in parts(backbone)] == [False, False, False, True, True]
    for _, part in list(parts(backbone))[:3]:
        assert not any(module.training for module in part.modules())
        assert not any(p.requires_grad for p in part.parameters())
    assert all(p.requires_grad for p in backbone.stages[2].parameters())
    model.eval()
    assert not any(module.training for module in model.modules())


def test_frozen_norms_use_their_statistics_while_the_rest_trains(one_of_each: Family) -> None:
    backbone = one_of_each.build(frozen_stages=1, return_idx=(0,), return_stem=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        training = backbone.train()(images)
        evaluating = backbone.eval()(images)
    assert all(torch.equal(one, two) for one, two in zip(training, evaluating, strict=True))


def test_freeze_thaws_what_an_earlier_call_froze(one_of_each: Family) -> None:
    backbone = one_of_each.build(frozen_stages=3)
    backbone.freeze(1)
    assert backbone.frozen_stages == 1
    assert [p.training for _, p in parts(backbone)] == [False, False, True, True, True]
    grads = [{q.requires_grad for q in p.parameters()} for _, p in parts(backbone)]
    assert grads == [{False}, {False}, {True}, {True}, {True}]
    backbone.freeze(-1)
    assert all(p.requires_grad for p in backbone.parameters())
    assert all(module.training for module in backbone.modules())


def test_freeze_leaves_alone_what_the_caller_froze_himself(one_of_each: Family) -> None:
    backbone = one_of_each.build()
    backbone.stages[3].requires_grad_(False)
    backbone.freeze(1)
    backbone.freeze(0)
    assert not any(p.requires_grad for p in backbone.stages[3].parameters())


def test_freeze_in_eval_mode_stays_in_eval_mode(one_of_each: Family) -> None:
    backbone = one_of_each.build().eval()
    backbone.freeze(2)
    backbone.freeze(-1)
    assert not any(module.training for module in backbone.modules())


@pytest.mark.parametrize("frozen", [7, 5, -2, 1.0, True, "all", None])
def test_frozen_stages_out_of_range_are_refused(one_of_each: Family, frozen: object) -> None:
    message = r"frozen_stages must be an integer from -1 \(none\) over 0 \(the stem\) to 4 .*, got "
    with pytest.raises(ConfigError, match=message):
        one_of_each.build(frozen_stages=frozen)
    backbone = one_of_each.build(frozen_stages=1)
    with pytest.raises(ConfigError, match=message):
        backbone.freeze(frozen)  # type: ignore[arg-type]
    assert backbone.frozen_stages == 1


def test_frozen_stages_count_only_what_pruning_left(one_of_each: Family) -> None:
    assert one_of_each.build(return_idx=(1,), frozen_stages=2).frozen_stages == 2
    with pytest.raises(ConfigError, match=r"to 2 .*all 2 stages that return_idx keeps.*got 3"):
        one_of_each.build(return_idx=(1,), frozen_stages=3)


# Checkpointing


def trained_twin(
    family: Family, *, checkpointing: bool, norm: str = "batch", drop_path_rate: float = 0.0
) -> Backbone:
    backbone = family.build(
        checkpointing=checkpointing, norm=norm, drop_path_rate=drop_path_rate
    ).double()
    images = torch.randn(4, 3, 64, 48, dtype=torch.float64)
    torch.manual_seed(3)  # of the paths that are dropped
    loss_of(backbone, images).backward()  # type: ignore[no-untyped-call]
    return backbone


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_checkpointing_changes_no_gradient_and_no_statistic(
    family: Family, norm: str, drop_path_rate: float
) -> None:
    plain, checkpointed = (
        trained_twin(family, checkpointing=on, norm=norm, drop_path_rate=drop_path_rate)
        for on in (False, True)
    )
    for (name, one), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        scale = float(one.grad.abs().max())
        assert float((one.grad - other.grad).abs().max()) <= 1e-10 * scale + 1e-14, name
    # The second pass over a batch must not count as a second batch.
    assert moved(plain.state_dict(), checkpointed.state_dict()) == set()
    counters = [v for n, v in checkpointed.state_dict().items() if n.endswith("batches_tracked")]
    assert {int(counter) for counter in counters} == ({1} if norm == "batch" else set())


def test_checkpointing_holds_statistics_only_while_it_replays(one_of_each: Family) -> None:
    backbone = trained_twin(one_of_each, checkpointing=True)
    norms = [m for m in backbone.modules() if isinstance(m, _BatchNorm)]
    assert {norm.momentum for norm in norms} == {0.1}
    before = copy.deepcopy(backbone.state_dict())
    loss_of(backbone, torch.randn(2, 3, 64, 48, dtype=torch.float64)).backward()  # type: ignore[no-untyped-call]
    statistics = {n for n in before if n.endswith(("running_mean", "running_var", "tracked"))}
    assert moved(before, backbone.state_dict()) == statistics


def test_checkpointing_keeps_less_and_computes_blocks_twice(family: Family) -> None:
    def run(checkpointing: bool) -> tuple[int, int]:
        backbone = family.build(checkpointing=checkpointing)
        kept, blocks = 0, 0

        def keep(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        def count(*_args: object) -> None:
            nonlocal blocks
            blocks += 1

        for module in backbone.modules():
            if isinstance(module, ResidualBlock):
                last = [m for m in module.modules() if isinstance(m, nn.Conv2d)][-1]
                last.register_forward_hook(count)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = loss_of(backbone, torch.randn(2, 3, 64, 64))
        loss.backward()  # type: ignore[no-untyped-call]
        return kept, blocks

    (plain_kept, plain_blocks), (kept, blocks) = run(False), run(True)
    assert kept < 0.75 * plain_kept
    assert plain_blocks == sum(family.config.stage_depths)
    assert blocks == 2 * plain_blocks


def test_checkpointing_is_off_without_gradients(one_of_each: Family) -> None:
    plain = one_of_each.build().eval()
    backbone = one_of_each.build(checkpointing=True).eval()
    assert any(m.checkpointing for m in backbone.modules() if isinstance(m, Checkpointed))
    images = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        for one, other in zip(plain(images), backbone(images), strict=True):
            assert torch.equal(one, other)


# Drop path


def rates(backbone: Backbone) -> list[float]:
    return [m.drop_path_rate for m in backbone.modules() if isinstance(m, ResidualBlock)]


def test_drop_path_rises_linearly_over_the_whole_depth(family: Family) -> None:
    backbone = family.build(drop_path_rate=0.6)
    depth = sum(family.config.stage_depths)
    assert rates(backbone) == pytest.approx([0.6 * block / (depth - 1) for block in range(depth)])


def test_drop_path_of_a_block_does_not_depend_on_pruning(family: Family) -> None:
    everything = rates(family.build(drop_path_rate=0.3))
    pruned = rates(family.build(drop_path_rate=0.3, return_idx=(1,)))
    assert len(pruned) == sum(family.config.stage_depths[:2])
    assert pruned == everything[: len(pruned)]


@torch.no_grad()
def test_drop_path_only_in_training(family: Family) -> None:
    backbone = family.build(drop_path_rate=0.9, norm="frozen")
    plain = family.build(norm="frozen")
    images = torch.randn(8, 3, 32, 32)
    want = plain(images)[-1]
    assert torch.equal(backbone.eval()(images)[-1], want)
    assert not torch.equal(backbone.train()(images)[-1], want)


@torch.no_grad()
def test_nothing_is_dropped_inside_frozen_stages(family: Family) -> None:
    backbone = family.build(drop_path_rate=0.9, frozen_stages=3).train()
    images = torch.randn(32, 3, 64, 64)
    first, second = (backbone(images) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(first[:3], second[:3], strict=True))
    assert not torch.equal(first[3], second[3])


# Optimizer groups


def test_param_groups_hold_every_trained_parameter_once(family: Family) -> None:
    backbone = family.build()
    groups = backbone.param_groups(lr=0.1, weight_decay=0.05, layer_decay=0.5)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in backbone.parameters())
    decayed = {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]}
    convs = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    assert decayed == {id(conv.weight) for conv in convs}
    assert {group["weight_decay"] for group in groups} == {0.05, 0.0}


def test_param_groups_learn_slower_towards_the_stem(family: Family) -> None:
    groups = family.build().param_groups(lr=0.8, weight_decay=0.1, layer_decay=0.5)
    assert {group["name"]: group["lr"] for group in groups} == pytest.approx(
        {
            f"{name}.{kind}": lr
            for name, lr in zip(
                ("stem", "stage0", "stage1", "stage2", "stage3"),
                (0.05, 0.1, 0.2, 0.4, 0.8),
                strict=True,
            )
            for kind in ("decay", "no_decay")
        }
    )
    assert [g["name"] for g in groups][0::2] == [
        "stem.decay", "stage0.decay", "stage1.decay", "stage2.decay", "stage3.decay"
    ]  # fmt: skip


def test_param_groups_of_a_pruned_network_start_at_its_own_last_stage(
    one_of_each: Family,
) -> None:
    groups = one_of_each.build(return_idx=(1,)).param_groups(1.0, 0.1, layer_decay=0.5)
    assert {g["name"]: g["lr"] for g in groups if g["weight_decay"]} == {
        "stem.decay": 0.25, "stage0.decay": 0.5, "stage1.decay": 1.0
    }  # fmt: skip


def test_param_groups_leave_out_what_is_frozen(one_of_each: Family) -> None:
    groups = one_of_each.build(frozen_stages=2).param_groups(lr=0.1, weight_decay=0.1)
    names = [group["name"] for group in groups]
    assert names == ["stage2.decay", "stage2.no_decay", "stage3.decay", "stage3.no_decay"]
    assert one_of_each.build(frozen_stages=4).param_groups(lr=0.1, weight_decay=0.1) == []


def test_param_groups_drive_an_optimizer(one_of_each: Family) -> None:
    backbone = one_of_each.build(frozen_stages=0)
    optimizer = torch.optim.AdamW(backbone.param_groups(lr=0.01, weight_decay=0.1, layer_decay=0.9))
    before = copy.deepcopy(dict(backbone.named_parameters()))
    loss_of(backbone, torch.randn(2, 3, 64, 64)).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    still = {n for n, p in backbone.named_parameters() if torch.equal(p, before[n])}
    assert still == {n for n in before if n.startswith("stem.")}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": -0.1}, r"lr and weight_decay must not be negative, got -0\.1 and 0\.1"),
        ({"weight_decay": -1.0}, r"must not be negative, got 0\.1 and -1\.0"),
        ({"layer_decay": 0.0}, r"layer_decay must be above 0 and at most 1, got 0\.0"),
        ({"layer_decay": 1.5}, r"layer_decay must be above 0 and at most 1, got 1\.5"),
    ],
)
def test_param_groups_refuse_what_would_not_train(
    one_of_each: Family, wrong: dict[str, Any], message: str
) -> None:
    backbone = one_of_each.build()
    with pytest.raises(ConfigError, match=message):
        backbone.param_groups(**{"lr": 0.1, "weight_decay": 0.1, **wrong})
