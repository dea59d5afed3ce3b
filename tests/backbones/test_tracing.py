"""torch.compile, torch.export, torch.fx and torch.jit.trace: every family, and real variants.

Real variants are of every family; other kinds of blocks are traced in tiny networks, because a
tracer needs a second for every dozen of layers. All 62 go through torch.fx and the meta device.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import trunkline
from trunkline import Backbone

if TYPE_CHECKING:
    from tests.conftest import Family

REAL = ["resnet18", "resnet18vd", "dla34", "regnet-y-002"]
# The blocks that these lack: bottlenecks, grouped ones, and those without squeeze-and-excitation.
TINY = ["resnet-bottleneck", "resnet-grouped", "dla-residual", "regnet-x"]
OTHER_SIZES = [(3, 33, 97), (1, 97, 65), (4, 128, 40)]

Traced = Callable[[Tensor], list[Tensor]]


@pytest.fixture(params=[*REAL, *TINY])
def varied(
    request: pytest.FixtureRequest,
    families: dict[str, Family],
    randomizer: Callable[[nn.Module], None],
) -> Backbone:
    if request.param in families:
        return families[request.param].build(return_idx=(0, 1)).eval()
    backbone = trunkline.create_backbone(request.param)
    randomizer(backbone)
    return backbone.eval()


@torch.no_grad()
def assert_agrees(traced: Traced, backbone: Backbone, sizes: list[tuple[int, int, int]]) -> None:
    for batch, height, width in sizes:
        images = torch.randn(batch, 3, height, width)
        got, want = traced(images), backbone(images)
        assert len(got) == len(want) == len(backbone.channels)
        for one, other in zip(got, want, strict=True):
            assert one.shape == other.shape
            assert float((one - other).abs().max()) <= 1e-5 * float(other.abs().max())


def exported(backbone: Backbone) -> Traced:
    dynamic = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    program = torch.export.export(backbone, (torch.randn(2, 3, 64, 96),), dynamic_shapes=dynamic)
    traced: Traced = program.module()
    return traced


def jit_traced(backbone: Backbone) -> Traced:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", r".*`torch\.jit\.trace.*` is deprecated", DeprecationWarning
        )
        warnings.filterwarnings(
            "ignore",
            "Encountering a list at the output of the tracer",
            torch.jit._trace.TracerWarning,
        )
        # Whoever calls this compares the maps, at other sizes; PyTorch need not at this one.
        traced: Traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            backbone, torch.randn(2, 3, 64, 96), check_trace=False
        )
    return traced


# Tiny networks of every family


def test_one_compiled_graph_serves_several_sizes(one_of_each: Family) -> None:
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Traced:
        graphs.append(graph)
        return graph.forward

    backbone = one_of_each.build(return_idx=(1, 0), return_stem=True).eval()
    compiled = torch.compile(backbone, fullgraph=True, dynamic=True, backend=keep)
    assert_agrees(compiled, backbone, [(2, 33, 97), (4, 64, 40)])
    assert len(graphs) == 1


def test_compiled_training_gives_the_same_gradients(one_of_each: Family) -> None:
    torch._dynamo.reset()
    plain = one_of_each.build(return_idx=(1, 0), frozen_stages=0).train()
    twin = copy.deepcopy(plain)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    images = torch.randn(2, 3, 64, 64)
    for network in (plain, compiled):
        sum(m.square().mean() for m in network(images)).backward()
    for (name, one), other in zip(plain.named_parameters(), twin.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None) == name.startswith("stem.")
        if one.grad is not None and other.grad is not None:
            assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-5), name
    for (name, value), again in zip(plain.named_buffers(), twin.buffers(), strict=True):
        assert torch.allclose(value, again, rtol=1e-5), name


def test_compiled_checkpointing(families: dict[str, Family]) -> None:
    torch._dynamo.reset()
    plain = families["resnet-basic"].build(return_idx=(1,)).train()
    twin = families["resnet-basic"].build(return_idx=(1,), checkpointing=True).train()
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    images = torch.randn(2, 3, 64, 64)
    for network in (plain, compiled):
        sum(m.square().mean() for m in network(images)).backward()
    for (name, one), other in zip(plain.named_parameters(), twin.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-5), name
    for (name, value), again in zip(plain.named_buffers(), twin.buffers(), strict=True):
        assert torch.allclose(value, again, rtol=1e-5), name


def test_export_of_a_dilated_network(one_of_each: Family) -> None:
    backbone = one_of_each.build(return_idx=(2,), output_stride=8).eval()
    assert_agrees(exported(backbone), backbone, OTHER_SIZES)


def test_symbolic_trace(family: Family) -> None:
    backbone = family.build(return_stem=True, output_stride=16).eval()
    assert_agrees(torch.fx.symbolic_trace(backbone), backbone, OTHER_SIZES)


def test_jit_trace(one_of_each: Family) -> None:
    backbone = one_of_each.build(return_idx=(2, 0), output_stride=8).eval()
    assert_agrees(jit_traced(backbone), backbone, OTHER_SIZES)


# Real variants, and blocks of every kind


def _no_norm(_channels: int) -> nn.Module:
    return nn.Identity()


def test_compile(varied: Backbone) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(varied, fullgraph=True, dynamic=False, backend="eager")
    assert_agrees(compiled, varied, [(1, 64, 96)])


def test_export(varied: Backbone) -> None:
    assert_agrees(exported(varied), varied, OTHER_SIZES[:2])


def test_fx_and_jit_trace(varied: Backbone) -> None:
    assert_agrees(torch.fx.symbolic_trace(varied), varied, OTHER_SIZES[:1])
    assert_agrees(jit_traced(varied), varied, OTHER_SIZES[:1])


@torch.no_grad()
@pytest.mark.parametrize("name", trunkline.list_backbones())
def test_every_variant_traces_and_runs_without_numbers(name: str) -> None:
    with torch.device("meta"):
        # PyTorch is slow at norms on the meta device, and they change neither shape nor graph.
        backbone = trunkline.create_backbone(name, return_stem=True, norm=_no_norm).eval()
    traced = torch.fx.symbolic_trace(backbone)
    maps = traced(torch.empty(1, 3, 97, 161, device="meta"))
    assert [tuple(m.shape) for m in maps] == [
        (1, channels, -(-97 // stride), -(-161 // stride))
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]
