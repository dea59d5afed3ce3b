"""The shared blocks with weights set by hand, against results computed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from trunkline.backbones.blocks import (
    BasicBlock,
    Bottleneck,
    ConvNormAct,
    DilatedAvgPool2d,
    DilatedMaxPool2d,
    Sampling,
    SqueezeExcitation,
    avg_pool_half,
    drop_path,
    max_pool_half,
    projection,
)
from trunkline.backbones.layers import ACTS, Conv2d, FrozenBatchNorm2d, Layers, make_act, make_norm

INF = float("inf")
PLAIN = Layers(norm=lambda _channels: nn.Identity(), act=nn.ReLU)
STRIDE_1 = Sampling(stride=1)
STRIDE_2 = Sampling(stride=2)


def image(rows: Sequence[Sequence[float]]) -> Tensor:
    """Return one picture of one channel."""
    return torch.tensor([[rows]], dtype=torch.float32)


def set_weight(conv: nn.Conv2d, values: object) -> None:
    with torch.no_grad():
        conv.weight.copy_(torch.tensor(values, dtype=torch.float32).reshape(conv.weight.shape))


def only_centre(conv: nn.Conv2d, values: Sequence[Sequence[float]]) -> None:
    """Make a 3×3 convolution a 1×1: output × input of its centre, zero around it."""
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[:, :, 1, 1] = torch.tensor(values)


PICTURE = image([[1, 2, 3], [4, 5, 6], [7, 8, 9]])


# ConvNormAct


def test_conv_norm_act_is_act_of_norm_of_conv() -> None:
    module = ConvNormAct(1, 1, 3, Layers(norm=nn.BatchNorm2d, act=nn.ReLU)).eval()
    set_weight(module.conv, [0, 0, 0, 0, 1, 1, 0, 0, 0])  # a pixel and its right neighbour
    with torch.no_grad():
        module.norm.running_mean.fill_(9)  # type: ignore[operator]
        module.norm.running_var.fill_(4 - 1e-5)  # type: ignore[operator]
        module.norm.weight.fill_(2)  # type: ignore[operator]
        module.norm.bias.fill_(1)  # type: ignore[operator]
        # sums 3 5 3 | 9 11 6 | 15 17 9; then (s - 9) / 2 · 2 + 1 = s - 8; then ReLU
        got = module(PICTURE)
    torch.testing.assert_close(got, image([[0, 0, 0], [1, 3, 0], [7, 9, 1]]))


def test_conv_norm_act_takes_every_second_pixel_from_the_first_on() -> None:
    module = ConvNormAct(1, 1, 3, PLAIN, stride=2)
    set_weight(module.conv, [0, 0, 0, 0, 1, 0, 0, 0, 0])
    assert torch.equal(module(PICTURE), image([[1, 3], [7, 9]]))
    assert module.conv.bias is None


def test_conv_norm_act_dilates_and_pads_with_zeros() -> None:
    module = ConvNormAct(1, 1, 3, PLAIN, dilation=2)
    set_weight(module.conv, [1, 1, 1, 1, 1, 1, 1, 1, 1])
    # In each direction only pixels 2 apart are seen: the corners see each other.
    assert torch.equal(module(PICTURE), image([[20, 10, 20], [10, 5, 10], [20, 10, 20]]))


def test_conv_norm_act_without_activation_keeps_what_is_negative() -> None:
    module = ConvNormAct(1, 1, 1, PLAIN, act=False)
    set_weight(module.conv, [-1])
    assert torch.equal(module(PICTURE), -PICTURE)
    assert module.act is None


# Residual blocks


def test_basic_block_is_act_of_input_plus_two_convolutions() -> None:
    block = BasicBlock(1, 1, STRIDE_1, PLAIN)
    only_centre(block.conv1.conv, [[1.0]])
    only_centre(block.conv2.conv, [[-2.0]])
    x = image([[3, -1, 2]])
    # f: 3 0 2 → -6 0 -4; x + f: -3 -1 -2 → all cut; with +2 instead: 9 -1 6
    assert torch.equal(block(x), image([[0, 0, 0]]))
    only_centre(block.conv2.conv, [[2.0]])
    assert torch.equal(block(x), image([[9, 0, 6]]))


def test_basic_block_strides_in_its_first_convolution_and_its_shortcut() -> None:
    shortcut = projection(1, 1, PLAIN, stride=2)
    block = BasicBlock(1, 1, STRIDE_2, PLAIN, shortcut=shortcut)
    only_centre(block.conv1.conv, [[1.0]])
    set_weight(block.conv2.conv, [0, 0, 0, 0, 1, 1, 0, 0, 0])  # at stride 2: 1+3, 3 | 7+9, 9
    set_weight(shortcut.conv, [10])  # type: ignore[arg-type]
    assert torch.equal(block(PICTURE), image([[14, 33], [86, 99]]))


def test_a_shortcut_that_is_handed_in_replaces_the_block_s_own() -> None:
    block = BasicBlock(1, 1, STRIDE_1, PLAIN)
    only_centre(block.conv1.conv, [[1.0]])
    only_centre(block.conv2.conv, [[1.0]])
    assert torch.equal(block(PICTURE, torch.full_like(PICTURE, 100)), PICTURE + 100)


def test_bottleneck_is_act_of_input_plus_three_convolutions() -> None:
    block = Bottleneck(1, 2, 1, STRIDE_1, PLAIN)
    set_weight(block.conv1.conv, [1, -1])
    only_centre(block.conv2.conv, [[1, 0], [1, 3]])
    set_weight(block.conv3.conv, [1, 10])
    x = image([[2, -1]])
    # 2: (2, 0) → (2, 2) → 22; -1: (0, 1) → (0, 3) → 30
    assert torch.equal(block(x), image([[24, 29]]))
    assert block.se is None


def test_bottleneck_in_groups_keeps_channels_apart() -> None:
    block = Bottleneck(4, 4, 4, STRIDE_1, PLAIN, groups=2)
    assert block.conv2.conv.weight.shape == (4, 2, 3, 3)
    identity = torch.eye(4)
    set_weight(block.conv1.conv, identity.tolist())
    only_centre(block.conv2.conv, [[1, 2], [3, 4], [5, 6], [7, 8]])
    set_weight(block.conv3.conv, identity.tolist())
    x = torch.tensor([1.0, 10, 100, 1000]).reshape(1, 4, 1, 1)
    # group one of 1, 10: 21, 43; group two of 100, 1000: 6500, 8700
    assert block(x).flatten().tolist() == [22, 53, 6600, 9700]


def test_bottleneck_strides_in_its_3x3() -> None:
    block = Bottleneck(1, 1, 1, STRIDE_2, PLAIN, shortcut=projection(1, 1, PLAIN, stride=2))
    assert (block.conv1.conv.stride, block.conv2.conv.stride) == ((1, 1), (2, 2))
    set_weight(block.conv1.conv, [1])
    set_weight(block.conv2.conv, [1, 1, 1, 1, 1, 1, 1, 1, 1])  # sums of neighbourhoods
    set_weight(block.conv3.conv, [1])
    set_weight(block.shortcut.conv, [0])  # type: ignore[union-attr, arg-type]
    assert torch.equal(block(PICTURE), image([[12, 16], [24, 28]]))


def test_bottleneck_gates_after_its_3x3() -> None:
    block = Bottleneck(1, 1, 1, STRIDE_1, PLAIN, squeezed=1)
    assert block.se is not None
    set_weight(block.conv1.conv, [1])
    only_centre(block.conv2.conv, [[2.0]])
    set_weight(block.conv3.conv, [1])
    set_weight(block.se.reduce, [0])
    set_weight(block.se.expand, [0])  # the gate is sigmoid(0) = 1/2
    assert torch.equal(block(PICTURE), PICTURE + PICTURE * 2 / 2)


def test_squeeze_excitation_gates_every_channel_by_the_mean_of_all() -> None:
    module = SqueezeExcitation(2, 1, PLAIN)
    set_weight(module.reduce, [1, 1])
    set_weight(module.expand, [0.5, -0.5])
    with torch.no_grad():
        module.reduce.bias.fill_(-1)  # type: ignore[union-attr]
        module.expand.bias.copy_(torch.tensor([0.0, 1.0]))  # type: ignore[union-attr]
    x = torch.tensor([[[[1.0, 3.0]], [[4.0, 6.0]]]])  # means 2 and 5 → 7 - 1 = 6 → 3 and -3 + 1
    gates = [1 / (1 + math.exp(-3)), 1 / (1 + math.exp(2))]
    want = torch.tensor([[[[1.0, 3.0]], [[4.0, 6.0]]]]) * torch.tensor(gates).reshape(1, 2, 1, 1)
    torch.testing.assert_close(module(x), want)
    # The activation between the two cuts what is negative: only the bias of expand is left.
    torch.testing.assert_close(
        module(-x), -x * torch.tensor([0.5, 1 / (1 + math.exp(-1))]).reshape(1, 2, 1, 1)
    )


def test_projection_is_a_1x1_convolution_with_a_stride() -> None:
    shortcut = projection(1, 2, PLAIN, stride=2)
    set_weight(shortcut.conv, [1, -1])  # type: ignore[arg-type]
    want = torch.tensor([[[[1.0, 3], [7, 9]], [[-1, -3], [-7, -9]]]])
    assert torch.equal(shortcut(PICTURE), want)
    assert list(dict(shortcut.named_children())) == ["conv", "norm"]


def test_projection_with_a_pool_averages_what_there_is() -> None:
    shortcut = projection(1, 1, PLAIN, pool=avg_pool_half(STRIDE_2))
    set_weight(shortcut.conv, [2])  # type: ignore[arg-type]
    # 2×2 means: 1 2 4 5 → 3; 3 6 → 4.5; 7 8 → 7.5; 9 → 9
    assert torch.equal(shortcut(PICTURE), image([[6, 9], [15, 18]]))


@pytest.mark.parametrize("handed_in", [False, True])
def test_blocks_write_to_nothing_that_they_are_given(handed_in: bool) -> None:
    inputs = [torch.randn(1, 4, 3, 3) for _ in range(2 if handed_in else 1)]
    before = [tensor.clone() for tensor in inputs]
    for block in (
        BasicBlock(4, 4, STRIDE_1, PLAIN),
        Bottleneck(4, 4, 4, STRIDE_1, PLAIN, squeezed=2),
    ):
        block(*inputs)
        assert all(torch.equal(one, two) for one, two in zip(inputs, before, strict=True))


# Pools


def test_max_pool_rounds_up() -> None:
    assert torch.equal(max_pool_half(STRIDE_2)(PICTURE), image([[5, 6], [8, 9]]))
    assert torch.equal(max_pool_half(STRIDE_2)(-PICTURE), image([[-1, -3], [-7, -9]]))


@pytest.mark.parametrize("dilation", [1, 2])
def test_dilated_max_pool(dilation: int) -> None:
    # The greater neighbour to the right and below, where there is one; border pixels stay.
    want = {
        1: [[5, 6, 6], [8, 9, 9], [8, 9, 9]],
        2: [[9, 8, 9], [6, 5, 6], [9, 8, 9]],
    }[dilation]
    assert torch.equal(DilatedMaxPool2d(dilation)(PICTURE), image(want))


def test_dilated_max_pool_does_not_take_its_border_for_zero() -> None:
    assert torch.equal(DilatedMaxPool2d(2)(image([[-5.0]])), image([[-5.0]]))


def test_dilated_average_pool_divides_by_what_there_is() -> None:
    got = DilatedAvgPool2d(1)(PICTURE)
    assert torch.equal(got, image([[3, 4, 4.5], [6, 7, 7.5], [7.5, 8.5, 9]]))
    # two apart: all corners for the first, 2 and 8 for its right neighbour, itself for the last
    got = DilatedAvgPool2d(2)(PICTURE)
    assert torch.equal(got, image([[5, 5, 6], [5, 5, 6], [8, 8, 9]]))


@pytest.mark.parametrize(
    ("make", "strided"), [(max_pool_half, nn.MaxPool2d), (avg_pool_half, nn.AvgPool2d)]
)
@pytest.mark.parametrize("size", [(6, 8), (7, 5), (1, 2)])
def test_dilated_pools_contain_the_strided_ones(
    make: Callable[[Sampling], nn.Module], strided: type[nn.Module], size: tuple[int, int]
) -> None:
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    assert isinstance(make(STRIDE_2), strided)
    spread = make(Sampling(stride=1, first_dilation=1, dilation=2))(images)
    assert spread.shape == images.shape
    torch.testing.assert_close(spread[..., ::2, ::2], make(STRIDE_2)(images))


def test_what_follows_the_first_block_is_spread_by_the_new_dilation() -> None:
    assert STRIDE_2.rest == STRIDE_1
    assert Sampling(stride=1, first_dilation=2, dilation=4).rest == Sampling(
        stride=1, first_dilation=4, dilation=4
    )


# Drop path


def test_drop_path_zeroes_whole_images_and_scales_the_others() -> None:
    x = torch.ones(4000, 2, 1, 3)
    dropped = drop_path(x, 0.25, training=True)
    per_image = dropped.flatten(1)
    assert sorted(set(per_image.flatten().tolist())) == pytest.approx([0.0, 1 / 0.75])
    assert torch.equal(per_image.amin(1), per_image.amax(1))
    assert float((per_image[:, 0] == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.05)


def test_drop_path_does_nothing_in_eval_mode_or_at_rate_zero() -> None:
    x = torch.ones(8, 1, 1, 1)
    assert drop_path(x, 0.9, training=False) is x
    assert drop_path(x, 0.0, training=True) is x


def test_drop_path_drops_the_branch_and_never_the_shortcut() -> None:
    block = BasicBlock(1, 1, STRIDE_1, PLAIN)
    block.drop_path_rate = 0.5
    only_centre(block.conv1.conv, [[1.0]])
    only_centre(block.conv2.conv, [[1.0]])
    values = block(torch.ones(64, 1, 1, 1)).flatten().tolist()
    assert set(values) == {1.0, 3.0}  # x, or x + 2·f(x)


# Norms, activations, initialisation


def test_frozen_batch_norm_computes_by_hand() -> None:
    norm = FrozenBatchNorm2d(2, eps=0.0)
    state = {"weight": [2, 1], "bias": [1, 0], "running_mean": [3, 1], "running_var": [4, 0.25]}
    norm.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    x = torch.tensor([5.0, 2.0]).reshape(1, 2, 1, 1)
    assert norm.train()(x).flatten().tolist() == [3.0, 2.0]
    assert list(norm.parameters()) == []
    assert sorted(norm.state_dict()) == ["bias", "running_mean", "running_var", "weight"]


def test_frozen_batch_norm_equals_batch_norm_in_eval_mode(
    randomizer: Callable[[nn.Module], None],
) -> None:
    batch = nn.BatchNorm2d(5)
    randomizer(batch)
    state = batch.state_dict()
    frozen = FrozenBatchNorm2d(5)
    frozen.load_state_dict(state)  # with its batch counter, which is left aside
    assert "num_batches_tracked" in state  # and stays in the caller's dict
    x = torch.randn(3, 5, 4, 2)
    assert torch.equal(frozen.train()(x), batch.eval()(x))
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())


def test_frozen_batch_norm_still_refuses_what_does_not_fit() -> None:
    frozen = FrozenBatchNorm2d(2)
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "gamma"'):
        frozen.load_state_dict({**frozen.state_dict(), "gamma": torch.ones(2)})
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "weight"'):
        frozen.load_state_dict({"bias": torch.ones(2)}, strict=True)


@pytest.mark.parametrize(
    ("channels", "groups"), [(64, 32), (24, 8), (88, 8), (2016, 32), (168, 8), (784, 16), (7, 1)]
)
def test_group_norm_groups_divide_every_width(channels: int, groups: int) -> None:
    norm = make_norm("group")(channels)
    assert isinstance(norm, nn.GroupNorm)
    assert (norm.num_groups, norm.num_channels) == (groups, channels)


def test_every_named_activation_can_be_made_twice() -> None:
    for name in ACTS:
        first, second = make_act(name)(), make_act(name)()
        assert first is not second
        assert first(torch.zeros(2)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("conv", "fan_out"),
    [
        (lambda: Conv2d(64, 128, 3, bias=False), 9 * 128),
        (lambda: Conv2d(128, 64, 3, groups=4, bias=False), 9 * 64 / 4),
        (lambda: Conv2d(256, 256, 1), 256),
    ],
)
def test_convolutions_start_normal_in_their_fan_out(
    conv: Callable[[], Conv2d], fan_out: float
) -> None:
    torch.manual_seed(0)
    made = conv()
    weight = made.weight.detach()
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / fan_out), rel=0.02)
    assert abs(float(weight.mean())) < 0.02 * float(weight.std())
    # 95.4 % of a normal distribution lies within two deviations, 100 % of a uniform one
    assert float((weight.abs() < 2 * weight.std()).float().mean()) == pytest.approx(0.954, abs=0.01)
    assert made.bias is None or not made.bias.any()
    torch.manual_seed(0)
    assert torch.equal(conv().weight, made.weight)
