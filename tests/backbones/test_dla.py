"""DLA: which maps a root joins, and that the list of nodes is the tree of the paper."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

import trunkline
from trunkline.backbones.blocks import Sampling
from trunkline.backbones.dla import DLAConfig, Node, Root, Stage, _joined
from trunkline.backbones.layers import Layers

if TYPE_CHECKING:
    from tests.conftest import Family

PLAIN = Layers(norm=lambda _channels: nn.Identity(), act=nn.ReLU)


def vector(*channels: float) -> Tensor:
    return torch.tensor(channels, dtype=torch.float32).reshape(1, -1, 1, 1)


def set_weight(conv: object, values: list[list[float]]) -> None:
    assert isinstance(conv, nn.Conv2d)
    with torch.no_grad():
        conv.weight.zero_()
        middle = conv.kernel_size[0] // 2
        conv.weight[:, :, middle, middle] = torch.tensor(values)


def joined_width(node: nn.Module) -> int:
    conv = node.get_submodule("root.proj.conv")
    assert isinstance(conv, nn.Conv2d)
    return conv.in_channels


def tree(depth: int, leaves: Iterator[int], joined: list[int], found: dict[int, list[int]]) -> int:
    """Walk the paper's figure 3(f): a tree is two trees, and what is on its left goes into it."""
    if depth == 1:
        leaf = next(leaves)
        found[leaf] = joined
        return leaf
    left = tree(depth - 1, leaves, [], found)
    return tree(depth - 1, leaves, [*joined, left], found)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 6])
def test_joined_nodes_are_those_of_the_tree(depth: int) -> None:
    found: dict[int, list[int]] = {}
    tree(depth, iter(range(1, 2**depth)), [], found)
    assert list(found) == list(range(1, 2 ** (depth - 1) + 1))
    assert {number: _joined(number) for number in found} == found


@pytest.mark.parametrize(
    ("number", "joined"), [(1, []), (2, [1]), (3, []), (4, [2, 3]), (6, [5]), (8, [4, 6, 7])]
)
def test_joined_nodes_as_documented(number: int, joined: list[int]) -> None:
    assert _joined(number) == joined


def test_root_is_act_of_a_1x1_over_all_maps() -> None:
    root = Root(3, 1, residual=False, layers=PLAIN)
    set_weight(root.proj.conv, [[1, 10, 100]])
    assert root(vector(1), vector(2), vector(3)).item() == 321
    assert root(vector(1), vector(2), vector(-3)).item() == 0


def test_residual_root_adds_the_newest_map_before_the_activation() -> None:
    root = Root(2, 1, residual=True, layers=PLAIN)
    set_weight(root.proj.conv, [[1, 10]])
    newest, older = vector(5), vector(-1)
    assert root(newest, older).item() == 0  # 5 - 10 + 5
    assert root(newest, vector(1)).item() == 20
    assert (newest.item(), older.item()) == (5, -1)


def test_node_is_two_blocks_and_a_root() -> None:
    config = DLAConfig(depths=(1,) * 4, channels=(1,) * 4, bottleneck=False)
    node = Node(config, 1, 1, 1, Sampling(stride=1), PLAIN)
    assert node.project is None
    for block, factor in ((node.block1, 2.0), (node.block2, 3.0)):
        set_weight(block.get_submodule("conv1.conv"), [[1.0]])
        set_weight(block.get_submodule("conv2.conv"), [[factor]])
    set_weight(node.root.proj.conv, [[1, 100, 10000]])
    # first = 7 + 2·1; second = 9 + 3·9; the root joins second, first, what is handed in
    assert node(vector(1), vector(7), [vector(5)]).item() == 36 + 900 + 50000


def test_node_that_widens_projects_what_was_pooled() -> None:
    config = DLAConfig(depths=(1,) * 4, channels=(2,) * 4, bottleneck=False)
    node = Node(config, 1, 2, 0, Sampling(stride=2), PLAIN).eval()
    assert node.project is not None
    set_weight(node.project.conv, [[1.0], [10.0]])
    for block in (node.block1, node.block2):
        set_weight(block.get_submodule("conv1.conv"), [[0.0]])
        set_weight(block.get_submodule("conv2.conv"), [[0.0]])
    set_weight(node.root.proj.conv, [[1, 0, 0, 0], [0, 0, 0, 1]])
    got = node(torch.ones(1, 1, 4, 4), torch.full((1, 1, 2, 2), 3.0), [])
    assert torch.equal(got, vector(3, 30).expand(1, 2, 2, 2))


def test_stage_joins_its_pooled_input_into_the_last_root_only() -> None:
    config = DLAConfig(depths=(1, 3, 1, 1), channels=(2, 4, 8, 8), bottleneck=False)
    stage = config.build_stage(1, 2, Sampling(stride=2), PLAIN)
    assert isinstance(stage, Stage)
    widths = [joined_width(node) for node in stage.nodes]
    assert widths == [8, 12, 8, 8 + 2 + 8]  # own two maps; + node 1; none; + input, nodes 2 and 3
    first = config.build_stage(0, 32, Sampling(stride=2), PLAIN)
    assert isinstance(first, Stage)
    assert [joined_width(node) for node in first.nodes] == [4]


def recursive(stage: Stage, depth: int, x: Tensor) -> Tensor:
    """Run a stage as the paper draws it, with the nodes as leaves."""
    nodes = iter(stage.nodes)
    pooled = stage.pool(x)

    def run(depth: int, x: Tensor, shortcut: Tensor, joined: list[Tensor]) -> Tensor:
        if depth == 1:
            result: Tensor = next(nodes)(x, shortcut, joined)
            return result
        left = run(depth - 1, x, shortcut, [])
        return run(depth - 1, left, left, [*joined, left])

    return run(depth, x, pooled, [pooled] if stage.joins_input else [])


@torch.no_grad()
@pytest.mark.parametrize("name", ["dla-basic", "dla-bottleneck", "dla-residual"])
def test_list_of_nodes_computes_the_tree(families: dict[str, Family], name: str) -> None:
    config = families[name].config
    assert isinstance(config, DLAConfig)
    backbone = families[name].build(return_stem=True).eval()
    maps = backbone(torch.randn(1, 3, 64, 96))
    for stage, depth, below, above in zip(
        backbone.stages, config.depths, maps[:-1], maps[1:], strict=True
    ):
        assert isinstance(stage, Stage)
        assert torch.equal(recursive(stage, depth, below), above)


@pytest.mark.parametrize(("name", "mids"), [
    ("dla46-c", [32, 32, 64, 128]),
    ("dla46x-c", [64, 64, 128, 256]),
    ("dla60", [64, 128, 256, 512]),
    ("dla102x2", [256, 512, 1024, 2048]),
])  # fmt: skip
def test_bottleneck_widths(name: str, mids: list[int]) -> None:
    with torch.device("meta"):
        backbone = trunkline.create_backbone(name)
    found = [{n.block2.conv2.conv.out_channels for n in stage.nodes} for stage in backbone.stages]  # type: ignore[union-attr]
    assert found == [{mid} for mid in mids]


def test_projections_whose_result_nobody_uses_are_not_built() -> None:
    # The reference owns one for every tree deeper than 1; dla46-c keeps its width into stage 1.
    with torch.device("meta"):
        backbone = trunkline.create_backbone("dla46-c")
    projected = [
        [node.project is not None for node in stage.nodes]  # type: ignore[union-attr]
        for stage in backbone.stages
    ]
    assert projected == [[True], [False, False], [True, False], [True]]


def test_two_cardinalities_live_in_one_process() -> None:
    # In the original code building dla102x2 changes every dla60x built afterwards.
    with torch.device("meta"):
        before = trunkline.create_backbone("dla60x").num_parameters
        trunkline.create_backbone("dla102x2")
        assert trunkline.create_backbone("dla60x").num_parameters == before
