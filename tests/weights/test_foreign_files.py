"""Other libraries' files in our networks: what they mean arrives, and what does not fit is refused.

A file that is refused leaves the network as it was, and the error says what the file looks like.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loopback import FileHost
from safetensors.torch import save_file
from torch import Tensor, nn
from upstream_files import hollow_tensors, upstream_tensors

from trunkline import Backbone, Preprocessing, create_backbone
from trunkline.errors import (
    CheckpointError,
    LicenseError,
    UnknownLayoutError,
    UnsafeCheckpointError,
    WeightsError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from trunkline.weights import catalog, sources
from trunkline.weights.catalog import Place
from trunkline.weights.checkpoint import Checkpoint, file_sha256
from trunkline.weights.loading import LoadReport, Read, load_weights, read_for
from trunkline.weights.sources import Located

pytestmark = pytest.mark.usefixtures("weights_home")
Tensors = Mapping[str, Tensor]


def on_meta(variant: str, **options: Any) -> Backbone:
    with torch.device("meta"):
        return create_backbone(variant, **options)


def read(
    backbone: Backbone,
    tensors: Tensors,
    layout: str = "auto",
    metadata: dict[str, str] | None = None,
) -> Read:
    """What ``load_weights`` does with a file that was read, without a file."""
    located = Located(source="given", path=Path("given.pth"), sha256="")
    checkpoint = Checkpoint(tensors=dict(tensors), format="torch-zip", metadata=metadata or {})
    return read_for(backbone, located, checkpoint, layout)


def saved(path: Path, tensors: Tensors) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def pickled(path: Path, tensors: Tensors, **beside: Any) -> Path:
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    path.write_bytes(pickle.dumps({**beside, "model": arrays} if beside else arrays, protocol=2))
    return path


def state_of(backbone: Backbone) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in backbone.state_dict().items()}


def equal(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def run(backbone: Backbone, images: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        maps: list[Tensor] = backbone.eval()(images)
    return maps


def fused(tensors: Tensors) -> dict[str, Tensor]:
    """The same names as before 2018: batch norms without statistics."""
    return {name: t for name, t in tensors.items() if "_running_" not in name}


def group_normed(tensors: Tensors) -> dict[str, Tensor]:
    renames = [("res_conv1_bn", "conv1_gn"), ("_bn_", "_gn_"), ("_gamma", "_s"), ("_beta", "_b")]
    renamed = {}
    for name, tensor in fused(tensors).items():
        for old, new in renames:
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


# Files that do not fit.

MSRA = "detectron2-c2", "resnet50-caffe"
WRONG: dict[str, tuple[str, dict[str, Any], Callable[[], Tensors], str]] = {
    "smaller": (
        "resnet50",
        {},
        lambda: hollow_tensors("torchvision-resnet", "resnet34"),
        r"given\.pth: the file does not fit resnet50 as torchvision's ResNet names it\. "
        r"Missing: 85 \(layer1\.0\.bn3\.bias; .* and 75 more\)\. Nothing was loaded\. "
        r"The file holds resnet34 as torchvision's ResNet names it\.",
    ),
    "larger": (
        "resnet18",
        {},
        lambda: hollow_tensors("transformers-resnet", "resnet34"),
        r"Left over: 96 .* The file holds resnet34 as transformers' ResNet names it\.",
    ),
    "wider": (
        "resnet50",
        {},
        lambda: hollow_tensors("torchvision-resnet", "wide-resnet50-2"),
        r"Of another shape: 176 \(layer1\.0\.bn1\.bias is 128, needs 64; .*"
        r"layer1\.0\.conv1\.weight is 128×64×1×1, needs 64×64×1×1; .*"
        r"The file holds wide-resnet50-2 as",
    ),
    "other widths": (
        "regnet-x-004",
        {},
        lambda: hollow_tensors("torchvision-regnet", "regnet-x-004-tv"),
        r"is 400×160×1×1, needs 384×160×1×1.*The file holds regnet-x-004-tv as torchvision's",
    ),
    "other stem": (
        "resnet50d",
        {},
        lambda: hollow_tensors("torchvision-resnet", "resnet50"),
        r"no layout of resnet50d has names such as bn1\.bias, .*The file holds resnet50 as",
    ),
    "stride in the 1x1": (
        "resnet50",
        {},
        lambda: hollow_tensors(*MSRA),
        "no layout of resnet50 has names .*The file holds resnet50-caffe as Caffe2's ResNet names",
    ),
    "one projection less": (
        "resnet18vd",
        {},
        lambda: hollow_tensors("timm-resnet", "resnet18d"),
        "no layout of resnet18vd has names .*The file holds resnet18d as timm's ResNet names it",
    ),
    "two names of one network": (
        "resnet18",
        {},
        lambda: hollow_tensors("timm-resnet", "resnet50d"),
        "The file holds resnet50d or resnet50vd as timm's ResNet names it",
    ),
    "no statistics": (
        "resnet50-caffe",
        {},
        lambda: fused(hollow_tensors(*MSRA)),
        "Missing: 106 .*The file holds resnet50-caffe as Caffe2's ResNet with fused norms names "
        "it. "
        "It fits frozen norms only, and this backbone has batch norms: build it with norm='frozen'",
    ),
    "group norms": (
        "resnet50",
        {},
        lambda: group_normed(hollow_tensors(*MSRA)),
        "The file holds resnet50 as Caffe2's ResNet with group norm names it. It fits group norms "
        "only, and this backbone has batch norms: build it with norm='group'",
    ),
    "batch norms": (
        "resnet18",
        {"norm": "group"},
        lambda: hollow_tensors("torchvision-resnet", "resnet18"),
        "The file holds resnet18 as torchvision's ResNet names it. It fits batch norms only, and "
        "this backbone has group norms: build it with norm='batch'",
    ),
    "another library": (
        "resnet50",
        {},
        lambda: {"visual.proj": torch.zeros(4, 4), "logit_scale": torch.zeros(1)},
        r"no layout of resnet50 has names such as logit_scale, visual\.proj\. The file looks like "
        "none of our networks",
    ),
    "empty": ("dla34", {}, dict, r"such as \(the file holds no tensor\)"),
    "ambiguous": (
        "resnet50",
        {},
        lambda: hollow_tensors("detectron2", "resnet50"),
        r"layout='detectron2' \(stride in the 3×3, RGB\) or 'detectron2-msra' \(in the first 1×1, "
        r"BGR\)\. The file holds resnet50 or resnet50-caffe as detectron2 names it",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_does_not_fit_says_what_it_looks_like(case: str) -> None:
    variant, options, tensors, message = WRONG[case]
    unknown = "no layout" in message or case in ("empty", "ambiguous")
    expected = UnknownLayoutError if unknown else WeightsMismatchError
    with pytest.raises(expected, match=message):
        read(on_meta(variant, **options), tensors())


Edit = Callable[[dict[str, Tensor]], Any]
EDITS: dict[str, tuple[Edit, str]] = {
    "a layer missing": (
        lambda t: t.pop("s2.b1.conv1.conv.weight"),
        r"Missing: 1 \(s2\.b1\.conv1\.conv\.weight\)\. Nothing was loaded\. The file looks most "
        r"like \(99% of its tensors\) regnet-x-002 as timm's RegNet names it\.",
    ),
    "a statistic missing": (
        lambda t: t.pop("s2.b1.conv1.bn.running_var"),
        r"Missing: 1 \(s2\.b1\.conv1\.bn\.running_var\)",
    ),
    "one too many": (
        lambda t: t.update({"s2.b1.extra": torch.ones(1)}),
        r"Left over: 1 \(s2\.b1\.extra\)",
    ),
    "a bias too many": (
        lambda t: t.update({"s1.b1.conv1.conv.bias": torch.ones(24)}),
        r"Left over: 1 \(s1\.b1\.conv1\.conv\.bias\)",
    ),
    "both": (
        lambda t: t.update({"s2.b9.conv1.conv.weight": t.pop("s2.b1.conv1.conv.weight")}),
        r"Missing: 1 \(s2\.b1\.conv1.*Left over: 1 \(s2\.b9\.conv1",
    ),
    "another shape": (
        lambda t: t.update({"s1.b1.conv1.conv.weight": torch.ones(24, 24, 1, 1)}),
        r"Of another shape: 1 \(s1\.b1\.conv1\.conv\.weight is 24×24×1×1, needs 24×32×1×1\)",
    ),
    "transposed": (
        lambda t: t.update({"s1.b1.conv1.conv.weight": torch.ones(32, 24, 1, 1)}),
        "is 32×24×1×1, needs 24×32×1×1",
    ),
    "a scalar for a vector": (
        lambda t: t.update({"s1.b1.conv1.bn.weight": torch.tensor(1.0)}),
        "is a scalar, needs 24",
    ),
    "two input channels": (
        lambda t: t.update({"stem.conv.weight": torch.ones(32, 2, 3, 3)}),
        "is 32×2×3×3, needs 32×3×3×3",
    ),
    "a flat stem": (
        lambda t: t.update({"stem.conv.weight": torch.ones(864)}),
        "is 864, needs 32×3×3×3",
    ),
}


@pytest.mark.parametrize("case", EDITS)
def test_a_file_with_a_fault_changes_nothing(tmp_path: Path, case: str) -> None:
    edit, message = EDITS[case]
    tensors = upstream_tensors("timm-regnet", "regnet-x-002")
    edit(tensors)
    path = saved(tmp_path / "faulty.safetensors", tensors)
    backbone = create_backbone("regnet-x-002")
    before = state_of(backbone)
    with pytest.raises(WeightsMismatchError, match=message) as caught:
        load_weights(backbone, path)
    assert str(path) in str(caught.value)
    assert equal(before, backbone.state_dict())
    assert backbone.load_report is None
    assert backbone.preprocessing is None
    assert not any(tensor.is_meta for tensor in backbone.state_dict().values())


def test_our_own_file_of_a_network_with_the_stride_elsewhere_is_refused() -> None:
    state = on_meta("resnet50").state_dict()
    tensors = {name: torch.empty_like(tensor, device="cpu") for name, tensor in state.items()}
    for theirs, ours in (("resnet50-caffe", "resnet50"), ("resnet50", "resnet50-caffe")):
        with pytest.raises(WeightsMismatchError, match=f"holds {theirs}, .* build {theirs}"):
            read(on_meta(ours), tensors, metadata={"variant": theirs})
        assert read(on_meta(theirs), tensors, metadata={"variant": theirs})


@pytest.mark.parametrize("layout", ["torchvision-resnet", "caffe2", "detectron2"])
def test_a_layout_of_another_stride_cannot_be_asked_for(layout: str) -> None:
    ours = "resnet50" if layout == "caffe2" else "resnet50-caffe"
    tensors = hollow_tensors("torchvision-resnet", "resnet50")
    with pytest.raises(
        WeightsMismatchError, match=f"has no {ours}; layouts that have it: trunkline"
    ):
        read(on_meta(ours), tensors, layout)


def test_norms_that_a_layout_needs_are_asked_for_before_names_are_compared() -> None:
    for layout, norm, variant in (
        ("caffe2-affine", "frozen", "resnet50-caffe"),
        ("caffe2-group-norm", "group", "resnet50"),
    ):
        with pytest.raises(WeightsMismatchError, match=f"fits {norm} norms only.*norm='{norm}'"):
            read(on_meta(variant), {}, layout)


# What a file means arrives with it.


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
    said = (
        "added up for one"
        if channels == 1
        else f"repeated for {channels} and scaled by 3/{channels}"
    )
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
    match = read(on_meta(variant, return_idx=(0, 1)), tensors).match
    left = {name for name in tensors if name.startswith(rest)}
    assert set(match.dropped["in a stage that return_idx does not keep"]) == left
    assert len(match.dropped["classifier, not part of a backbone"]) == 2
    assert len(match.dropped) == 2
    assert {name.upstream for name in match.found.values()} == set(tensors) - left - {
        name.upstream for name in match.head.values()
    }
    tensors[f"{rest[0]}unheard_of"] = torch.zeros(1)
    with pytest.raises(WeightsMismatchError, match=r"Left over: 1 \(.*unheard_of"):
        read(on_meta(variant, return_idx=(0, 1)), tensors)


# The report, and what the catalog adds.


def test_the_report_says_what_was_done(tmp_path: Path) -> None:
    tensors = {
        n: t.half() for n, t in upstream_tensors("dla", "dla46-c").items() if "num_b" not in n
    }
    path = tmp_path / "dla46_c-2bfd52c3.pth"
    torch.save({"state_dict": {f"module.{n}": t for n, t in tensors.items()}, "epoch": 3}, path)
    backbone = create_backbone("dla46-c", return_idx=(0,), in_channels=1)
    report = load_weights(backbone, path)
    assert backbone.load_report is report
    assert (report.source, report.path, report.sha256) == (str(path), path, file_sha256(path))
    assert (report.tag, report.license, report.layout) == (None, None, "timm-dla")
    assert report.container == "state_dict"
    assert report.matched == len(backbone.state_dict()) - len(report.filled)
    assert {name.rpartition(".")[2] for name in report.filled} == {"num_batches_tracked"}
    said = str(report)
    assert said.startswith(f"{report.matched} tensors from {path.name}, read as timm-dla.\n")
    assert "torch.float16 was cast to torch.float32." in said
    assert "The stem's three input channels were added up for one." in said
    assert "2 left aside: classifier, not part of a backbone." in said
    assert "5 left aside: the original computes this projection and throws the result away." in said
    assert re.search(r"\d+ left aside: in a stage that return_idx does not keep\.", said)


def served(
    monkeypatch: pytest.MonkeyPatch, host: FileHost, variant: str, tag: str, path: Path
) -> None:
    """Let the catalog's row lead to a file of our own host."""
    row = catalog.find(variant, tag)
    url = host.add(f"/{path.name}", path.read_bytes())
    moved = replace(row, places=(Place(url=url, layout=row.layout),))
    monkeypatch.setattr(sources, "find", lambda *_: moved)


def test_preprocessing_of_a_bgr_row_is_turned_with_its_stem(
    tmp_path: Path, file_host: FileHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = catalog.find("regnet-x-002", "pycls")
    assert row.preprocessing.channel_order == "BGR"
    tensors = upstream_tensors("pycls", "regnet-x-002")
    path = tmp_path / "RegNetX-200MF.pyth"
    torch.save({"model_state": tensors}, path)
    served(monkeypatch, file_host, "regnet-x-002", "pycls", path)
    backbone = create_backbone("regnet-x-002", weights="pycls")
    given = backbone.preprocessing
    assert given is not None
    assert given.channel_order == "RGB"
    assert given.mean == row.preprocessing.mean[::-1] != row.preprocessing.mean
    assert given.std == row.preprocessing.std[::-1]
    assert torch.equal(
        backbone.state_dict()["stem.conv.weight"], tensors["stem.conv.weight"].flip(1)
    )
    report = backbone.load_report
    assert report is not None
    assert (report.source, report.tag, report.license) == ("pycls", "pycls", "MIT")
    assert report.sha256 == file_sha256(path)


def test_a_bgr_row_does_not_turn_a_file_that_is_rgb_already(
    tmp_path: Path, file_host: FileHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody converted the row's file and put it in its place."""
    tensors = upstream_tensors("timm-regnet", "regnet-x-002")
    path = saved(tmp_path / "converted.safetensors", tensors)
    served(monkeypatch, file_host, "regnet-x-002", "pycls", path)
    backbone = create_backbone("regnet-x-002", weights="pycls")
    assert torch.equal(backbone.state_dict()["stem.conv.weight"], tensors["stem.conv.weight"])


def test_preprocessing_of_an_rgb_row_is_the_rows(
    tmp_path: Path, file_host: FileHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "x.safetensors", upstream_tensors("timm-dla", "dla46-c"))
    served(monkeypatch, file_host, "dla46-c", "timm-in1k", path)
    backbone = create_backbone("dla46-c", weights="default")
    assert backbone.preprocessing == catalog.find("dla46-c").preprocessing
    assert backbone.load_report is not None
    assert backbone.load_report.tag == "timm-in1k"


def test_a_row_says_which_layout_names_alone_would_not_tell(
    tmp_path: Path, file_host: FileHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = upstream_tensors("detectron2", "resnet50")
    small = {n: t for n, t in tensors.items() if not n.startswith(("res3", "res4", "res5"))}
    path = pickled(tmp_path / "R-50.pkl", small)
    served(monkeypatch, file_host, "resnet50", "detectron2-torchvision", path)
    backbone = create_backbone("resnet50", return_idx=(0,), weights="detectron2-torchvision")
    assert backbone.load_report is not None
    assert backbone.load_report.layout == "detectron2"


@pytest.mark.usefixtures("no_sockets")
def test_a_folder_of_weights_gives_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    path = saved(
        folder / "regnet-x-002.safetensors", upstream_tensors("timm-regnet", "regnet-x-002")
    )
    monkeypatch.setenv("TRUNKLINE_WEIGHTS", str(folder))
    backbone = create_backbone("regnet-x-002", weights="default")
    assert backbone.load_report is not None
    assert backbone.load_report.path == path
    assert backbone.load_report.tag is None


def test_a_licence_has_to_be_agreed_to(
    tmp_path: Path, file_host: FileHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = "timm-fb-ssl-yfcc100m-ft-in1k"
    path = saved(tmp_path / "x.safetensors", hollow_tensors("timm-resnet", "resnet18"))
    served(monkeypatch, file_host, "resnet18", tag, path)
    with pytest.raises(LicenseError, match=r"CC-BY-NC-4\.0.*allow_noncommercial=True"):
        create_backbone("resnet18", weights=tag)
    assert not file_host.requests
    backbone = create_backbone("resnet18", weights=tag, allow_noncommercial=True)
    assert backbone.load_report is not None
    assert backbone.load_report.license == "CC-BY-NC-4.0"


@pytest.mark.parametrize(
    ("variant", "weights"),
    [("resnet18", "nonsense"), ("resnet18", "some/where"), ("resnet18", Path("not-here"))],
)
def test_weights_that_are_nowhere(variant: str, weights: str | Path) -> None:
    with pytest.raises(WeightsNotFoundError):
        create_backbone(variant, weights=weights)


def test_metadata_in_other_words_than_ours_is_refused(tmp_path: Path) -> None:
    tensors = upstream_tensors("timm-regnet", "regnet-x-002")
    for stored in ("{", "[]", '{"resize": 1}', "null"):
        path = tmp_path / "x.safetensors"
        save_file(tensors, path, {"preprocessing": stored})
        backbone = create_backbone("regnet-x-002")
        before = state_of(backbone)
        with pytest.raises(CheckpointError, match="how its images are prepared, but not in our"):
            load_weights(backbone, path)
        assert equal(before, backbone.state_dict())


def test_preprocessing_is_forgotten_with_the_weights_it_belonged_to(tmp_path: Path) -> None:
    backbone = create_backbone("regnet-x-002")
    backbone.preprocessing = Preprocessing(
        resize=256,
        crop=(224, 224),
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        value_range="0..1",
        channel_order="RGB",
    )
    load_weights(
        backbone, saved(tmp_path / "x.safetensors", upstream_tensors("timm-regnet", "regnet-x-002"))
    )
    assert backbone.preprocessing is None


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


class _Poison:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("name", ["x.pth", "x.pkl", "x.safetensors", "x.pyth"])
def test_no_way_of_loading_runs_code(tmp_path: Path, name: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / name
    held = {"state_dict": upstream_tensors("timm-dla", "dla46-c"), "hook": _Poison(canary)}
    if name.endswith(".pkl"):
        path.write_bytes(pickle.dumps({"model": {}, "hook": _Poison(canary)}))
    else:
        torch.save(held, path)
    backbone = create_backbone("dla46-c")
    before = state_of(backbone)
    expected = CheckpointError if name.endswith(".safetensors") else UnsafeCheckpointError
    for attempt in (
        lambda: load_weights(backbone, path),
        lambda: create_backbone("dla46-c", weights=path),
        lambda: create_backbone("dla46-c", weights=str(path)),
    ):
        with pytest.raises(expected):
            attempt()
    assert not canary.exists()
    assert equal(before, backbone.state_dict())


def test_every_refusal_is_one_of_ours(tmp_path: Path) -> None:
    for content in (b"", b"{}", b"\x80\x04}.", b"PK\x03\x04", os.urandom(999)):
        path = tmp_path / "x.pth"
        path.write_bytes(content)
        with pytest.raises(WeightsError):
            create_backbone("dla46-c", weights=path)


def test_a_report_is_plain_data() -> None:
    report = LoadReport(
        source="s",
        path=Path("f.pth"),
        sha256="0",
        tag=None,
        license=None,
        layout="dla",
        container="",
        matched=3,
    )
    assert str(report) == "3 tensors from f.pth, read as dla."
