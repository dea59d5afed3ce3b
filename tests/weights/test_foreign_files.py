"""A file that does not fit is refused: it is said what it looks like, and nothing is changed."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from upstream_files import (
    Tensors,
    equal,
    hollow_tensors,
    on_meta,
    saved,
    state_of,
    upstream_tensors,
)

from trunkline import Backbone, create_backbone
from trunkline.errors import (
    CheckpointError,
    UnknownLayoutError,
    UnsafeCheckpointError,
    WeightsError,
    WeightsMismatchError,
)
from trunkline.weights.checkpoint import Checkpoint
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
        r"Missing: 85 \(layer1\.0\.bn3\.bias; .* and 75 more\)\. Of another shape: \d+ "
        r"\(layer1\.0\.conv1\.weight is 64×64×3×3, needs 64×64×1×1; .*Nothing was loaded\. "
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
        r"does not fit resnet50d as timm's ResNet names it\. Missing: 27 \(conv1\.0\.weight; .*"
        r"Left over: 21 \(conv1\.weight; .*The file holds resnet50 as torchvision's ResNet",
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
    "no input channel": (
        lambda t: t.update({"stem.conv.weight": torch.ones(32, 0, 3, 3)}),
        "is 32×0×3×3, needs 32×3×3×3",
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
    assert backbone.stated_preprocessing is None
    assert not any(tensor.is_meta for tensor in backbone.state_dict().values())


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
