"""What every family promises of the maps that come out, on tiny networks of all of them."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from trunkline import Backbone
from trunkline.backbones.blocks import SqueezeExcitation
from trunkline.backbones.options import resolve_indices
from trunkline.errors import LevelIndexError

if TYPE_CHECKING:
    from tests.conftest import Family

SIZES = [(1, 1), (1, 7), (5, 3), (2, 2), (33, 48), (64, 96), (97, 161)]


def ceil_div(size: int, stride: int) -> int:
    return -(-size // stride)


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


def assert_same(got: list[Tensor], want: list[Tensor], tolerance: float = 0.0) -> None:
    assert len(got) == len(want) > 0
    for one, other in zip(got, want, strict=True):
        assert one.shape == other.shape
        assert relative_error(one, other) <= tolerance


# Levels, sizes, batches


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_declared_levels_match_forward_at_any_size(family: Family, height: int, width: int) -> None:
    backbone = family.build(return_stem=True).eval()
    maps = backbone(torch.randn(2, 3, height, width))
    assert backbone.strides == (2, 4, 8, 16, 32)
    assert len(maps) == len(backbone.channels) == 5
    for one, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
        assert one.shape == (2, channels, ceil_div(height, stride), ceil_div(width, stride))
        assert one.isfinite().all()


@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other(family: Family) -> None:
    backbone = family.build().eval().double()
    images = torch.randn(3, 3, 40, 56, dtype=torch.float64)
    together = backbone(images)
    alone = [backbone(image[None]) for image in images]
    assert_same(together, [torch.cat(maps) for maps in zip(*alone, strict=True)], 1e-12)


@torch.no_grad()
def test_a_batch_of_none_gives_maps_of_none(family: Family) -> None:
    backbone = family.build(return_stem=True).eval()
    maps = backbone(torch.zeros(0, 3, 33, 48))
    assert [tuple(m.shape) for m in maps] == [
        (0, c, ceil_div(33, s), ceil_div(48, s))
        for c, s in zip(backbone.channels, backbone.strides, strict=True)
    ]


def test_levels_name_all_that_the_network_has(family: Family) -> None:
    backbone = family.build(return_idx=(2,))
    assert [level.name for level in backbone.levels] == ["stem", "stage0", "stage1", "stage2"]
    assert [level.stride for level in backbone.levels] == [2, 4, 8, 16]
    assert backbone.levels[0].channels == family.config.stem_channels
    widths = tuple(level.channels for level in backbone.levels[1:])
    assert widths == family.config.stage_channels[:3]
    assert backbone.returned_levels == backbone.levels[3:]
    assert f"channels={backbone.channels}, strides=(16,)" in repr(backbone)


@torch.no_grad()
def test_returned_maps_are_not_written_to_afterwards(family: Family) -> None:
    # An in-place activation at the start of the next stage would change a map already handed out.
    backbone = family.build(return_stem=True).eval()
    seen: list[Tensor] = []
    for part in (backbone.stem, *backbone.stages):
        part.register_forward_hook(lambda _module, _inputs, output: seen.append(output.clone()))
    images = torch.randn(1, 3, 64, 96)
    before = images.clone()
    assert_same(backbone(images), seen)
    assert torch.equal(images, before)


@torch.no_grad()
def test_parameters_and_macs_of_a_network_of_ones_own_are_counted(family: Family) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    backbone = family.build().eval()
    with FlopCounterMode(display=False) as counter:
        backbone(torch.zeros(1, 3, 33, 47))
    assert backbone.macs(33, 47) * 2 == counter.get_total_flops()
    assert backbone.num_parameters == sum(p.numel() for p in backbone.parameters())


def test_counting_macs_moves_nothing(one_of_each: Family) -> None:
    backbone = one_of_each.build().train()
    before = copy.deepcopy(backbone.state_dict())
    assert backbone.macs(64, 64) > 0
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert backbone.training
    assert all(not module._forward_hooks for module in backbone.modules())


# Order and selection


def test_every_choice_of_stages_resolves_to_itself() -> None:
    for length in range(1, 5):
        for chosen in itertools.permutations(range(4), length):
            assert resolve_indices(chosen) == chosen
            assert resolve_indices([index - 4 for index in chosen]) == chosen


@torch.no_grad()
@pytest.mark.parametrize(
    ("return_idx", "stages"),
    [((3, 1), (3, 1)), ([-1], (3,)), ((-3, 0), (1, 0)), (range(1, 3), (1, 2)), ((0,), (0,))],
)
def test_order_is_kept(
    family: Family, return_idx: tuple[int, ...], stages: tuple[int, ...]
) -> None:
    everything = family.build().eval()
    backbone = family.build(return_idx=return_idx).eval()
    state = everything.state_dict()
    backbone.load_state_dict({name: state[name] for name in backbone.state_dict()})
    images = torch.randn(1, 3, 48, 80)
    maps = everything(images)
    assert_same(backbone(images), [maps[stage] for stage in stages])
    assert backbone.strides == tuple(4 * 2**stage for stage in stages)
    assert backbone.channels == tuple(family.config.stage_channels[stage] for stage in stages)


@torch.no_grad()
def test_the_stem_comes_first_whatever_the_order(family: Family) -> None:
    backbone = family.build(return_idx=(2, 0), return_stem=True).eval()
    maps = backbone(torch.randn(1, 3, 32, 64))
    assert backbone.strides == (2, 16, 4)
    assert backbone.channels[0] == family.config.stem_channels
    assert [tuple(m.shape[2:]) for m in maps] == [(16, 32), (2, 4), (8, 16)]


@pytest.mark.parametrize(
    ("return_idx", "message"),
    [
        ((), r"return_idx is empty.*from 0 to 3"),
        ((1, 1), r"\(1, 1\) names a stage twice.*different integers"),
        ((3, -1), r"\(3, -1\) names a stage twice"),
        ((4,), r"holds 4, out of range.*from 0 to 3"),
        ((0, -5), r"holds -5, out of range.*from -4 to -1"),
        ((1.0,), r"holds 1\.0, not an integer"),
        ((True,), r"holds True, not an integer"),
        (("1",), r"holds '1', not an integer"),
        ((None,), r"holds None, not an integer"),
        ("123", r"return_idx='123' is not a sequence"),
        (2, r"return_idx=2 is not a sequence.*such as \(1, 2, 3\)"),
        (None, r"return_idx=None is not a sequence"),
    ],
)
def test_a_wrong_choice_of_stages_is_refused(
    one_of_each: Family, return_idx: object, message: str
) -> None:
    with pytest.raises(LevelIndexError, match=message):
        one_of_each.build(return_idx=return_idx)


# Pruning


@pytest.mark.parametrize("last", [0, 1, 2])
def test_later_stages_are_neither_built_nor_run(family: Family, last: int) -> None:
    everything = family.build()
    backbone = family.build(return_idx=(last,))
    gone = tuple(f"stages.{index}." for index in range(last + 1, 4))
    kept = {name for name in everything.state_dict() if not name.startswith(gone)}
    assert set(backbone.state_dict()) == kept
    assert len(kept) < len(everything.state_dict())
    assert backbone.num_parameters == sum(
        p.numel() for name, p in everything.named_parameters() if name in kept
    )

    ran: list[int] = []
    for index, stage in enumerate(backbone.stages):
        stage.register_forward_hook(lambda *_args, index=index: ran.append(index))
    backbone(torch.randn(2, 3, 64, 64))
    assert ran == list(range(last + 1))


@pytest.mark.parametrize("return_idx", [(0,), (2,), (1, 3)])
def test_no_parameter_goes_unused(family: Family, return_idx: tuple[int, ...]) -> None:
    # What DistributedDataParallel needs: otherwise it waits for gradients that never come.
    backbone = family.build(return_idx=return_idx)
    sum(m.square().mean() for m in backbone(torch.randn(2, 3, 64, 96))).backward()
    without = [name for name, p in backbone.named_parameters() if p.grad is None]
    assert without == []


# output_stride


def subsampled(dilated: Backbone, strided: Backbone, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the maps of both at the positions that both have."""
    dilated.load_state_dict(strided.state_dict())
    pairs = []
    for spread, coarse, ours, theirs in zip(
        dilated(images), strided(images), dilated.strides, strided.strides, strict=True
    ):
        assert spread.shape[2:] == tuple(ceil_div(size, ours) for size in images.shape[2:])
        step = theirs // ours
        pairs.append((spread[..., ::step, ::step], coarse))
    return pairs


@torch.no_grad()
@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("size", [(64, 96), (97, 161), (50, 1), (18, 70)])
def test_dilated_output_contains_the_strided_one(
    family: Family, output_stride: int, size: tuple[int, int]
) -> None:
    strided = family.build().eval().double()
    dilated = family.build(output_stride=output_stride).eval().double()
    assert dilated.strides == tuple(min(stride, output_stride) for stride in (4, 8, 16, 32))
    assert dilated.channels == strided.channels
    for network in (strided, dilated):  # the documented exception; the test below is about it
        for module in network.modules():
            if isinstance(module, SqueezeExcitation):
                module.forward = nn.Identity().forward  # type: ignore[method-assign, assignment]
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    for spread, coarse in subsampled(dilated, strided, images):
        assert relative_error(spread, coarse) <= 1e-12


@torch.no_grad()
def test_squeeze_excitation_is_the_exception_to_that(families: dict[str, Family]) -> None:
    strided = families["regnet-y"].build().eval().double()
    dilated = families["regnet-y"].build(output_stride=16).eval().double()
    images = torch.randn(1, 3, 96, 128, dtype=torch.float64)
    errors = [relative_error(*pair) for pair in subsampled(dilated, strided, images)]
    assert max(errors[:3]) <= 1e-12  # up to stride 16 both are the same network
    assert 1e-4 < errors[3] < 0.2  # it averages over other positions: near, not equal


@torch.no_grad()
def test_group_norm_is_the_other_exception(families: dict[str, Family]) -> None:
    strided = families["resnet-basic"].build(norm="group").eval().double()
    dilated = families["resnet-basic"].build(output_stride=16, norm="group").eval().double()
    images = torch.randn(1, 3, 96, 128, dtype=torch.float64)
    errors = [relative_error(*pair) for pair in subsampled(dilated, strided, images)]
    assert max(errors[:3]) <= 1e-12
    assert errors[3] > 1e-4  # its statistics are those of more positions


@torch.no_grad()
def test_dilation_costs_no_parameters(family: Family) -> None:
    shapes = {name: value.shape for name, value in family.build().state_dict().items()}
    dilated = family.build(output_stride=8)
    assert {name: value.shape for name, value in dilated.state_dict().items()} == shapes
    assert dilated.macs(64, 64) > family.build().macs(64, 64)


# Formats, devices, copies


@torch.no_grad()
def test_channels_last_stays_channels_last(family: Family) -> None:
    backbone = family.build().eval()
    images = torch.randn(2, 3, 64, 96)
    want = backbone(images)
    backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    got = backbone(images.to(memory_format=torch.channels_last))
    assert_same(got, want, 1e-5)
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in got)
    assert not any(m.is_contiguous(memory_format=torch.channels_last) for m in want)


@torch.no_grad()
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)]
)
def test_other_precisions(family: Family, dtype: torch.dtype, tolerance: float) -> None:
    backbone = family.build().eval()
    images = torch.randn(2, 3, 64, 96)
    want = backbone(images)
    got = backbone.to(dtype)(images.to(dtype))
    assert all(m.dtype == dtype for m in got)
    assert_same([m.float() for m in got], want, tolerance)


@torch.no_grad()
def test_autocast_takes_float32_images(one_of_each: Family) -> None:
    backbone = one_of_each.build().eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = backbone(images)
    assert got[-1].isfinite().all()
    assert_same([m.float() for m in got], backbone(images), 0.1)


@torch.no_grad()
def test_meta_device_gives_shapes_without_numbers(family: Family) -> None:
    with torch.device("meta"):
        backbone = family.build().eval()
    maps = backbone(torch.empty(2, 3, 97, 161, device="meta"))
    assert all(m.is_meta for m in maps)
    assert [m.shape[1] for m in maps] == list(backbone.channels)
    assert [tuple(m.shape[2:]) for m in maps] == [(25, 41), (13, 21), (7, 11), (4, 6)]
    assert backbone.num_parameters == family.build().num_parameters


@torch.no_grad()
def test_a_deep_copy_is_equal_and_apart(family: Family) -> None:
    backbone = family.build(return_idx=(3, 0), frozen_stages=1)
    twin = copy.deepcopy(backbone)
    images = torch.randn(2, 3, 64, 64)
    assert_same(twin.eval()(images), backbone.eval()(images))
    for parameter in twin.parameters():
        parameter.zero_()
    assert twin.channels == backbone.channels
    assert twin.frozen_stages == 1
    assert all(p.abs().sum() > 0 for name, p in backbone.named_parameters() if "conv" in name)


@torch.no_grad()
def test_pickle_and_torch_save_of_the_installed_class(family: Family) -> None:
    backbone = family.build(return_idx=(1,), norm="group", act="silu", drop_path_rate=0.1).eval()
    images = torch.randn(1, 3, 40, 40)
    buffer = io.BytesIO()
    torch.save(backbone, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=False)
    pickled = pickle.loads(pickle.dumps(backbone))  # noqa: S301 - of our own making
    for twin in (saved, pickled):
        assert type(twin) is type(backbone)
        assert_same(twin(images), backbone(images))


def test_the_seed_decides_the_weights(family: Family) -> None:
    first, again, other = (family.build(seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    convs = [name for name, value in first.items() if value.ndim == 4]
    assert not any(torch.equal(first[name], other[name]) for name in convs)


def test_the_state_dict_is_the_stem_and_the_stages(family: Family) -> None:
    tops = {name.split(".")[0] for name in family.build().state_dict()}
    assert tops == {"stem", "stages"}
    indices = {n.split(".")[1] for n in family.build().state_dict() if n.startswith("stages")}
    assert indices == {"0", "1", "2", "3"}
