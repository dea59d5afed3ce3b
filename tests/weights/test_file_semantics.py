"""What a file means arrives with its numbers: colours, strides, norms, precision, channels."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from upstream_files import (
    Tensors,
    equal,
    hollow_tensors,
    on_meta,
    pickled,
    run,
    saved,
    state_of,
    upstream_tensors,
)

from trunkline import Backbone, create_backbone
from trunkline.errors import (
    UnknownLayoutError,
    WeightsMismatchError,
)
from trunkline.weights.checkpoint import Checkpoint, file_sha256
from trunkline.weights.loading import Read, load_weights, read_for
from trunkline.weights.sources import Located

pytestmark = pytest.mark.usefixtures("weights_home")


def read(
    backbone: Backbone,
    tensors: Tensors,
    layout: str = "auto",
    metadata: dict[str, str] | None = None,
) -> Read:
    """What ``load_weights`` does with a file that was read, without a file."""
    located = Located(source="given", path=Path("given.pth"))
    checkpoint = Checkpoint(tensors=dict(tensors), format="torch-zip", metadata=metadata or {})
    return read_for(backbone, located, checkpoint, layout)


def test_a_bgr_stem_sees_the_colours_that_it_was_trained_on(tmp_path: Path) -> None:
    tensors = upstream_tensors("pycls", "regnet-x-002")
    path = tmp_path / "RegNetX-200MF.pyth"
    torch.save({"model_state": tensors, "epoch": 99}, path)
    ours = create_backbone("regnet-x-002", weights=path)
    theirs = create_backbone("regnet-x-002")
    unturned = ours.state_dict() | {"stem.conv.weight": tensors["stem.conv.weight"]}
    theirs.load_state_dict(unturned)
    rgb = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    for one, other in zip(run(ours.double(), rgb), run(theirs.double(), rgb.flip(1)), strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.allclose(run(ours, rgb)[0], run(theirs, rgb)[0], atol=1e-2)
    report = ours.load_report
    assert report is not None
    assert report.layout == "pycls"
    assert report.container == "model_state"
    assert report.adapted == ("The stem's input channels were turned from BGR to RGB.",)


def _c2_name(native: str, leaves: Mapping[str, str], stem: str) -> str:
    """Caffe2's name of one of our tensors, written a second time and in another way."""
    *parts, leaf = native.split(".")
    if parts[0] == "stem":
        return "conv1_w" if parts[1] == "conv" else f"{stem}_{leaves[leaf]}"
    stage, block, part, kind = int(parts[1]) + 2, parts[3], parts[4], parts[5]
    branch = {"shortcut": "1", "conv1": "2a", "conv2": "2b", "conv3": "2c"}[part]
    return f"res{stage}_{block}_branch{branch}_" + ("w" if kind == "conv" else leaves[leaf])


_LEAVES = {"weight": "bn_s", "bias": "bn_b", "running_mean": "bn_rm", "running_var": "bn_riv"}


def c2_blobs(state: Tensors, leaves: Mapping[str, str], stem: str) -> dict[str, Tensor]:
    return {
        _c2_name(name, leaves, stem): tensor.flip(1) if name == "stem.conv.weight" else tensor
        for name, tensor in state.items()
        if "num_batches" not in name
    }


def test_msra_files_give_the_numbers_of_the_network_they_were_written_from(
    tmp_path: Path, randomizer: Callable[[nn.Module], None]
) -> None:
    native = create_backbone("resnet50-caffe", return_idx=(0, 1))
    randomizer(native)
    blobs = c2_blobs(native.state_dict(), _LEAVES, "res_conv1")
    path = pickled(tmp_path / "R-50.pkl", {**blobs, "conv1_b": torch.zeros(64)})
    loaded = create_backbone("resnet50-caffe", return_idx=(0, 1), weights=path)
    images = torch.randn(2, 3, 64, 96)
    for one, other in zip(run(native, images), run(loaded, images), strict=True):
        assert torch.equal(one, other)
    assert loaded.load_report is not None
    assert loaded.load_report.layout == "caffe2"
    assert "stem.norm.num_batches_tracked" in loaded.load_report.filled
    plain = create_backbone("resnet50", return_idx=(0, 1))
    plain.load_state_dict(native.state_dict())  # what PyTorch alone would not notice
    assert not torch.allclose(run(plain, images)[1], run(native, images)[1], atol=1e-2)
    before = state_of(plain)
    with pytest.raises(UnknownLayoutError, match=r"looks most like .* resnet50-caffe as Caffe2"):
        load_weights(plain, path)
    assert equal(before, plain.state_dict())


class _Affine(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(channels) + 0.5)
        self.bias = nn.Parameter(torch.rand(channels) - 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def test_fused_norms_compute_scale_and_shift(tmp_path: Path) -> None:
    native = create_backbone("resnet50-caffe", norm=_Affine, return_idx=(0, 1))
    path = pickled(tmp_path / "R-50.pkl", c2_blobs(native.state_dict(), _LEAVES, "res_conv1"))
    loaded = create_backbone("resnet50-caffe", norm="frozen", return_idx=(0, 1), weights=path)
    images = torch.randn(2, 3, 64, 96)
    for one, other in zip(run(native, images), run(loaded, images), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    report = loaded.load_report
    assert report is not None
    assert report.layout == "caffe2-affine"
    assert {name.rpartition(".")[2] for name in report.filled} == {"running_mean", "running_var"}
    with pytest.raises(WeightsMismatchError, match=r"Missing|norm='frozen'"):
        create_backbone("resnet50-caffe", return_idx=(0, 1), weights=path)


@pytest.mark.parametrize("return_idx", [(0,), (0, 1, 2, 3)])
def test_group_norms_arrive_in_group_norms(
    tmp_path: Path, randomizer: Callable[[nn.Module], None], return_idx: tuple[int, ...]
) -> None:
    native = create_backbone("resnet50", norm="group")
    randomizer(native)
    leaves = {"weight": "gn_s", "bias": "gn_b"}
    path = pickled(tmp_path / "R-50-GN.pkl", c2_blobs(native.state_dict(), leaves, "conv1"))
    loaded = create_backbone("resnet50", norm="group", return_idx=return_idx, weights=path)
    images = torch.randn(1, 3, 32, 64)
    expected = [run(native, images)[index] for index in return_idx]
    for one, other in zip(expected, run(loaded, images), strict=True):
        assert torch.equal(one, other)
    assert loaded.load_report is not None
    assert loaded.load_report.layout == "caffe2-group-norm"
    dropped = "in a stage that return_idx does not keep" in loaded.load_report.dropped
    assert dropped == (return_idx == (0,))


def test_what_detectron2_converted_from_torchvision_says_so(tmp_path: Path) -> None:
    tensors = upstream_tensors("detectron2", "resnet50")
    tensors = {name.replace("linear.", "stem.fc."): t for name, t in tensors.items()}
    small = {n: t for n, t in tensors.items() if not n.startswith(("res3", "res4", "res5"))}
    by = {"__author__": "torchvision", "matching_heuristics": True}
    path = pickled(tmp_path / "R-50.pkl", small, **by)
    loaded = create_backbone("resnet50", return_idx=(0,), weights=path)
    assert loaded.load_report is not None
    assert (loaded.load_report.layout, loaded.load_report.adapted) == ("detectron2", ())
    assert torch.equal(loaded.state_dict()["stem.conv.weight"], tensors["stem.conv1.weight"])
    unsaid = pickled(tmp_path / "unsaid.pkl", small)
    with pytest.raises(UnknownLayoutError, match="layout='detectron2'"):
        create_backbone("resnet50", return_idx=(0,), weights=unsaid)
    backbone = create_backbone("resnet50-caffe", return_idx=(0,))
    report = load_weights(backbone, unsaid, "detectron2-msra")
    assert "turned from BGR to RGB" in report.adapted[0]
    turned = tensors["stem.conv1.weight"].flip(1)
    assert torch.equal(backbone.state_dict()["stem.conv.weight"], turned)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_cast_and_reported(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = upstream_tensors("timm-regnet", "regnet-x-002")
    cast = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
    backbone = create_backbone("regnet-x-002", weights=saved(tmp_path / "x.safetensors", cast))
    state = backbone.state_dict()
    assert {t.dtype for t in state.values()} == {torch.float32, torch.int64}
    expected = cast["s1.b1.conv1.conv.weight"].float()
    assert torch.equal(state["stages.0.blocks.0.conv1.conv.weight"], expected)
    assert backbone.load_report is not None
    assert backbone.load_report.adapted == (f"{dtype} was cast to torch.float32.",)


def test_a_network_in_half_precision_stays_so(tmp_path: Path) -> None:
    tensors = upstream_tensors("timm-regnet", "regnet-x-002")
    backbone = create_backbone("regnet-x-002").half()
    report = load_weights(backbone, saved(tmp_path / "x.safetensors", tensors))
    assert report.adapted == ("torch.float32 was cast to torch.float16.",)
    stored = backbone.state_dict()["stem.conv.weight"]
    assert torch.equal(stored, tensors["stem.conv.weight"].half())


@pytest.mark.parametrize("norm", ["batch", "frozen", "sync"])
@pytest.mark.parametrize("counted", [True, False])
def test_batch_counters_may_be_there_or_not(tmp_path: Path, norm: str, counted: bool) -> None:
    tensors = upstream_tensors("timm-regnet", "regnet-x-002")
    counters = [name for name in tensors if name.endswith("num_batches_tracked")]
    if not counted:
        tensors = {name: t for name, t in tensors.items() if name not in counters}
    path = saved(tmp_path / "x.safetensors", tensors)
    backbone = create_backbone("regnet-x-002", norm=norm, weights=path)
    report = backbone.load_report
    assert report is not None
    reason = "frozen norms count no batches"
    dropped = set(report.dropped.get(reason, ()))
    assert dropped == (set(counters) if counted and norm == "frozen" else set())
    assert bool(report.filled) == (not counted and norm != "frozen")
    stored = backbone.state_dict().get("stem.norm.num_batches_tracked")
    if norm == "frozen":
        assert stored is None
    else:
        assert stored is not None
        expected = tensors["stem.bn.num_batches_tracked"] if counted else torch.tensor(0)
        assert torch.equal(stored, expected)


def _as_timm_adapts(weight: Tensor, channels: int) -> Tensor:
    """timm 1.0 models/_manipulate.py adapt_input_conv, in its own arithmetic."""
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    repeat = -(-channels // 3)
    return torch.cat([weight] * repeat, dim=1)[:, :channels] * (3 / float(channels))


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
@pytest.mark.parametrize(
    ("upstream", "variant", "stem"),
    [
        ("timm-regnet", "regnet-x-002", "stem.conv.weight"),
        ("pycls", "regnet-x-002", "stem.conv.weight"),
        ("timm-dla", "dla46-c", "base_layer.0.weight"),
    ],
)
def test_other_input_channels_are_made_as_timm_makes_them(
    upstream: str, variant: str, stem: str, channels: int
) -> None:
    tensors = upstream_tensors(upstream, variant)
    done = read(on_meta(variant, in_channels=channels), tensors).native
    first = "stem.0.conv.weight" if upstream == "timm-dla" else "stem.conv.weight"
    rgb = tensors[stem].flip(1) if upstream == "pycls" else tensors[stem]
    assert torch.equal(done.state[first], _as_timm_adapts(rgb, channels))
    said = {
        1: "added up for one",
        2: "the first two were taken and scaled by 3/2",
    }.get(channels, f"repeated for {channels} and scaled by 3/{channels}")
    assert said in done.adapted[-1]
    assert len(done.adapted) == (2 if upstream == "pycls" else 1)


def test_a_grey_network_adds_up_what_three_equal_channels_would() -> None:
    weight = torch.randn(8, 3, 7, 7, dtype=torch.float64)
    grey = torch.randn(2, 1, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(
        F.conv2d(grey.expand(-1, 3, -1, -1), weight), F.conv2d(grey, _as_timm_adapts(weight, 1))
    )


def test_a_file_of_as_many_channels_is_left_alone() -> None:
    tensors = upstream_tensors("timm-regnet", "regnet-x-002")
    tensors["stem.conv.weight"] = torch.randn(32, 6, 3, 3)
    done = read(on_meta("regnet-x-002", in_channels=6), tensors).native
    assert torch.equal(done.state["stem.conv.weight"], tensors["stem.conv.weight"])
    assert done.adapted == ()


@pytest.mark.parametrize(
    ("upstream", "variant", "rest"),
    [
        ("torchvision-resnet", "resnet18", ("layer3.", "layer4.")),
        ("timm-dla", "dla34", ("level4.", "level5.")),
        (
            "transformers-regnet",
            "regnet-y-002",
            ("regnet.encoder.stages.2", "regnet.encoder.stages.3"),
        ),
    ],
)
def test_a_pruned_backbone_takes_a_whole_file_and_says_what_it_left(
    upstream: str, variant: str, rest: tuple[str, ...]
) -> None:
    tensors = hollow_tensors(upstream, variant)
    understood = read(on_meta(variant, return_idx=(0, 1)), tensors)
    match, prefix = understood.match, understood.checkpoint.prefix
    left = {name for name in tensors if name.startswith(rest)}
    beyond = match.dropped["in a stage that return_idx does not keep"]
    assert {prefix + name for name in beyond} == left
    assert len(match.dropped["classifier, not part of a backbone"]) == 2
    assert len(match.dropped) == 2
    assert {prefix + name.upstream for name in match.found.values()} == set(tensors) - left - {
        name.upstream for name in match.head.values()
    }
    tensors[f"{rest[0]}unheard_of"] = torch.zeros(1)
    with pytest.raises(WeightsMismatchError, match=r"Left over: 1 \(.*unheard_of"):
        read(on_meta(variant, return_idx=(0, 1)), tensors)


# Files and networks do not touch each other.


@pytest.mark.parametrize("kind", ["safetensors", "torch", "pickle"])
def test_training_leaves_the_file_alone_and_the_file_may_go(tmp_path: Path, kind: str) -> None:
    tensors = upstream_tensors("timm-regnet", "regnet-x-002")
    path = tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        saved(path, tensors)
    elif kind == "torch":
        torch.save(tensors, path)
    else:
        pickled(path, tensors)
    digest = file_sha256(path)
    backbone = create_backbone("regnet-x-002", weights=path)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    images = torch.randn(2, 3, 64, 64)
    sum(m.square().mean() for m in backbone(images)).backward()
    optimizer.step()
    assert not torch.equal(backbone.state_dict()["stem.conv.weight"], tensors["stem.conv.weight"])
    assert file_sha256(path) == digest
    again = create_backbone("regnet-x-002", weights=path)
    assert torch.equal(again.state_dict()["stem.conv.weight"], tensors["stem.conv.weight"])
    expected = run(again, images)
    path.unlink()
    for one, other in zip(expected, run(again, images), strict=True):
        assert torch.equal(one, other)


@pytest.mark.skipif(not hasattr(os, "truncate"), reason="needs a file system of POSIX")
def test_a_file_that_is_cut_short_later_does_not_take_the_network_with_it(tmp_path: Path) -> None:
    tensors = upstream_tensors("timm-regnet", "regnet-x-002")
    path = tmp_path / "weights.pth"
    torch.save(tensors, path)
    backbone = create_backbone("regnet-x-002", weights=path)
    os.truncate(path, 0)  # a page of the file that is touched now would kill the process
    loaded = backbone.state_dict()["stages.3.blocks.0.conv1.conv.weight"]
    assert torch.equal(loaded, tensors["s4.b1.conv1.conv.weight"])


def test_parameters_stay_those_that_an_optimizer_holds(tmp_path: Path) -> None:
    tensors = upstream_tensors("timm-regnet", "regnet-x-002")
    backbone = create_backbone("regnet-x-002")
    held = dict(backbone.named_parameters())
    load_weights(backbone, saved(tmp_path / "x.safetensors", tensors))
    assert all(parameter is held[name] for name, parameter in backbone.named_parameters())
    assert torch.equal(held["stem.conv.weight"], tensors["stem.conv.weight"])
