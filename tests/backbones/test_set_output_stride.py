"""The stride of a network that is built already: as if it had been built so."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from trunkline.errors import ConfigError
from trunkline.runtimes.folding import fold

if TYPE_CHECKING:
    from tests.conftest import Family

CHANGES = list(itertools.permutations((8, 16, 32), 2))


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_maps_are_those_of_a_network_that_was_built_so(
    family: Family, before: int, after: int
) -> None:
    backbone = family.build(output_stride=before, return_stem=True).eval()
    wanted = family.build(output_stride=after, return_stem=True, seed=1).eval()
    wanted.load_state_dict(backbone.state_dict())
    images = torch.randn(2, 3, 75, 101)
    old = backbone(images)
    parameters = list(backbone.parameters())
    backbone.set_output_stride(after)
    assert backbone.levels == wanted.levels
    assert backbone.strides == wanted.strides
    assert backbone.options == wanted.options
    assert all(a is b for a, b in zip(backbone.parameters(), parameters, strict=True))
    for got, expected in zip(backbone(images), wanted(images), strict=True):
        assert torch.equal(got, expected)
    backbone.set_output_stride(before)
    for got, expected in zip(backbone(images), old, strict=True):
        assert torch.equal(got, expected)


def test_what_was_pruned_frozen_and_ordered_stays(one_of_each: Family) -> None:
    backbone = one_of_each.build(return_idx=(2, 1), frozen_stages=2, norm="frozen", act="silu")
    backbone.train()
    modes = {name: module.training for name, module in backbone.named_modules()}
    backbone.set_output_stride(8)
    assert backbone.strides == (8, 8)
    assert {name: module.training for name, module in backbone.named_modules()} == modes
    assert backbone.frozen_stages == 2
    assert len(backbone.stages) == 3
    assert backbone.macs(64, 64) == one_of_each.build(return_idx=(2, 1), output_stride=8).macs(
        64, 64
    )


def test_it_can_be_traced_exported_and_trained_afterwards(one_of_each: Family) -> None:
    backbone = one_of_each.build(return_idx=(1, 3), norm=nn.BatchNorm2d).eval()
    images = torch.randn(2, 3, 96, 64)
    torch.fx.symbolic_trace(backbone)  # an older trace must not be in the way
    backbone.set_output_stride(16)
    expected = backbone(images)
    for traced in (
        torch.fx.symbolic_trace(backbone),
        torch.export.export(backbone, (images,)).module(),
    ):
        for got, wanted in zip(traced(images), expected, strict=True):
            torch.testing.assert_close(got, wanted)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    backbone.train()
    loss: torch.Tensor = sum((m.square().mean() for m in backbone(images)), torch.zeros(()))
    loss.backward()  # type: ignore[no-untyped-call]
    backbone.set_output_stride(32)
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in backbone.parameters())


def test_a_folded_network_keeps_its_biases(families: dict[str, Family]) -> None:
    backbone = families["resnet-pooled"].build().eval()
    wanted = families["resnet-pooled"].build(output_stride=16).eval()
    images = torch.randn(1, 3, 64, 96)
    folded = fold(backbone)
    folded.set_output_stride(16)
    for got, expected in zip(folded(images), wanted(images), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [4, 64, 16.0, True, "16", None])
def test_other_strides_are_refused(one_of_each: Family, stride: object) -> None:
    backbone = one_of_each.build()
    with pytest.raises(ConfigError, match="output_stride must be 8, 16 or 32, got "):
        backbone.set_output_stride(stride)  # type: ignore[arg-type]
    assert backbone.strides == (4, 8, 16, 32)


def test_layers_that_were_replaced_are_named_and_nothing_changes(
    families: dict[str, Family],
) -> None:
    backbone = families["resnet-pooled"].build().eval()
    images = torch.randn(1, 3, 64, 64)
    backbone.get_submodule("stages.3.blocks.0.conv2").conv = nn.Identity()
    old = backbone(images)
    message = (
        r"stages\.3\.blocks\.0\.conv2\.conv is not the convolution that it was built as, it is a "
        r"Identity now; call set_output_stride before"
    )
    with pytest.raises(ConfigError, match=message):
        backbone.set_output_stride(8)
    assert backbone.strides == (4, 8, 16, 32)
    assert all(torch.equal(a, b) for a, b in zip(backbone(images), old, strict=True))
    backbone = families["dla-basic"].build()
    backbone.stages[2].pool = nn.Conv2d(16, 16, 2, 2)
    with pytest.raises(ConfigError, match=r"stages\.2\.pool is not the pool .* is a Conv2d now"):
        backbone.set_output_stride(8)
    del backbone.stages[2].pool
    with pytest.raises(ConfigError, match=r"stages\.2\.pool is not the pool .* it is gone now"):
        backbone.set_output_stride(8)
