"""convert(): another library's names around the same numbers, and back."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loopback import FileHost
from record_keys import recorded_keys
from safetensors import safe_open
from torch import Tensor
from upstream_files import Tensors, equal, hollow_tensors, saved, upstream_tensors, written

from trunkline import create_backbone
from trunkline.errors import (
    LicenseError,
    UnknownLayoutError,
    WeightsMismatchError,
)
from trunkline.weights import catalog, sources
from trunkline.weights.catalog import Place
from trunkline.weights.checkpoint import file_sha256
from trunkline.weights.conversion import convert
from trunkline.weights.loading import load_weights

pytestmark = pytest.mark.usefixtures("weights_home")


def shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


# Source list, variant, its target's name; target, ending, the target's list if there is one.
WAYS = [
    ("torchvision-resnet", "resnet18", "torchvision", "timm", ".safetensors", "timm-resnet"),
    (
        "torchvision-resnet",
        "resnet18",
        "torchvision",
        "transformers",
        ".bin",
        "transformers-resnet",
    ),
    ("torchvision-resnet", "resnet18", "torchvision", "mmpretrain", ".pth", "mmpretrain-resnet"),
    ("torchvision-resnet", "resnet18", "torchvision", "pycls", ".pyth", ""),
    ("torchvision-resnet", "resnet18", "torchvision", "detectron2", ".pkl", ""),
    ("torchvision-resnet", "resnet18", "torchvision", "trunkline", ".safetensors", ""),
    ("timm-resnet", "resnet18d", "timm", "mmpretrain", ".pt", "mmpretrain-resnet-deep-stem"),
    ("timm-resnet", "resnet18d", "timm", "trunkline", ".pth", ""),
    ("rtdetr-resnet", "resnet18vd", "rtdetr", "transformers", ".pth", "transformers-rtdetr"),
    ("rtdetr-resnet", "resnet18vd", "rtdetr", "trunkline", ".safetensors", ""),
    ("timm-dla", "dla46-c", "timm", "dla", ".pth", "dla"),
    ("timm-dla", "dla46-c", "timm", "trunkline", ".safetensors", ""),
    ("rtdetr-dla", "dla34", "rtdetr", "trunkline", ".bin", ""),
    ("timm-regnet", "regnet-x-002", "timm", "pycls", ".pyth", "pycls"),
    ("timm-regnet", "regnet-x-002", "timm", "transformers", ".safetensors", "transformers-regnet"),
    ("timm-regnet", "regnet-x-002", "timm", "torchvision", ".pth", ""),
    ("timm-regnet", "regnet-x-002", "timm", "mmpretrain", ".pth", ""),
    ("timm-regnet", "regnet-x-002", "timm", "trunkline", ".pth", ""),
    ("pycls", "regnet-y-002", "pycls", "timm", ".safetensors", "timm-regnet"),
    ("pycls", "regnet-y-002", "pycls", "transformers", ".bin", "transformers-regnet"),
    ("pycls", "regnet-y-002", "pycls", "trunkline", ".safetensors", ""),
]


@pytest.mark.parametrize(("upstream", "variant", "own", "to", "suffix", "list_"), WAYS)
def test_there_and_back_again(
    tmp_path: Path, upstream: str, variant: str, own: str, to: str, suffix: str, list_: str
) -> None:
    tensors = upstream_tensors(upstream, variant)
    source = saved(tmp_path / "source.safetensors", tensors)
    report = convert(source, tmp_path / f"there{suffix}", to)
    classifier = upstream not in ("rtdetr-resnet", "rtdetr-dla")
    assert (report.variant, report.classifier) == (variant, classifier)
    assert report.path == tmp_path / f"there{suffix}"
    there = written(report.path)
    assert len(there) == report.num_tensors
    if list_:
        assert shapes(there) == recorded_keys(list_)[variant]
    layout = "detectron2" if to == "detectron2" else "auto"
    back = convert(report.path, tmp_path / "back.safetensors", own, variant=variant, layout=layout)
    assert equal(written(back.path), tensors)


def test_the_same_numbers_come_out_of_every_form(tmp_path: Path) -> None:
    source = saved(tmp_path / "s.safetensors", upstream_tensors("timm-regnet", "regnet-x-002"))
    native = create_backbone("regnet-x-002", weights=source)
    for to in ("timm", "torchvision", "transformers", "mmpretrain", "pycls", "trunkline"):
        path = convert(source, tmp_path / f"{to}.pth", to, variant="regnet-x-002").path
        other = create_backbone("regnet-x-002", weights=path)
        assert equal(native.state_dict(), other.state_dict()), to


def test_msra_files_become_detectron2s_own(tmp_path: Path) -> None:
    tensors = upstream_tensors("detectron2-c2", "resnet50-caffe")
    source = tmp_path / "R-50.pkl"
    source.write_bytes(pickle.dumps({n: t.numpy() for n, t in tensors.items()}, protocol=2))
    report = convert(source, tmp_path / "out" / "R-50.pkl", "detectron2")
    assert (report.variant, report.read_as) == ("resnet50-caffe", "caffe2")
    assert report.written_as == "detectron2-msra"
    assert report.notes[0] == "The stem's input channels were turned from BGR to RGB."
    assert "The stem takes BGR, as that library's networks do." in report.notes
    assert "Read it back with layout='detectron2-msra': detectron2's names" in report.notes[-1]
    there = written(report.path)
    known = recorded_keys("detectron2")["resnet50-caffe"]
    counted = {name: shape for name, shape in known.items() if "num_batches" not in name}
    assert shapes({n: t for n, t in there.items() if "num_batches" not in n}) == counted
    assert torch.equal(there["stem.conv1.weight"], tensors["conv1_w"])
    assert torch.equal(there["linear.weight"], tensors["fc1000_w"])
    content = pickle.loads(report.path.read_bytes())  # noqa: S301 - we wrote it just now
    assert content["matching_heuristics"] is True
    backbone = create_backbone("resnet50-caffe", return_idx=(0,))
    assert load_weights(backbone, report.path, "detectron2-msra").layout == "detectron2-msra"
    with pytest.raises(UnknownLayoutError, match="layout='detectron2'"):
        load_weights(backbone, report.path)


def test_safetensors_say_which_layout_they_are_in(tmp_path: Path) -> None:
    tensors = hollow_tensors("torchvision-resnet", "resnet18")
    source = saved(tmp_path / "s.safetensors", tensors)
    report = convert(source, tmp_path / "x.safetensors", "detectron2")
    assert report.notes == ()
    backbone = create_backbone("resnet18", return_idx=(0,), weights=report.path)
    assert backbone.load_report is not None
    assert backbone.load_report.layout == "detectron2"
    assert convert(report.path, tmp_path / "y.safetensors", "timm").read_as == "detectron2"


def test_fused_norms_are_recognised_and_written_as_norms_with_fixed_statistics(
    tmp_path: Path,
) -> None:
    tensors = upstream_tensors("detectron2-c2", "resnet50-caffe")
    fused = {n: t.numpy() for n, t in tensors.items() if "_running_" not in n}
    source = tmp_path / "R-50.pkl"
    source.write_bytes(pickle.dumps({"blobs": fused}, protocol=2))
    report = convert(source, tmp_path / "x.safetensors", "trunkline")
    assert (report.variant, report.read_as) == ("resnet50-caffe", "caffe2-affine")
    there = written(report.path)
    assert torch.equal(there["stem.norm.weight"], tensors["res_conv1_bn_gamma"])
    assert torch.equal(there["stem.norm.running_mean"], torch.zeros(64))
    torch.testing.assert_close(there["stem.norm.running_var"], torch.full((64,), 1 - 1e-5))


def test_group_norms_are_not_written_where_batch_norms_belong(tmp_path: Path) -> None:
    blobs = {}
    for name, tensor in hollow_tensors("detectron2-c2", "resnet50-caffe").items():
        if "_running_" not in name:
            name = name.replace("res_conv1_bn", "conv1_gn").replace("_bn_", "_gn_")
            name = name.replace("_gamma", "_s").replace("_beta", "_b")
            blobs[name] = tensor
    source = saved(tmp_path / "gn.safetensors", blobs)
    with pytest.raises(WeightsMismatchError, match="group norms, and timm's resnet50 has batch"):
        convert(source, tmp_path / "x.pth", "timm")
    report = convert(source, tmp_path / "x.pth", "detectron2")
    assert "stem.conv1.norm.weight" in written(report.path)
    assert not any("running" in name for name in written(report.path))


# Containers, metadata, classifiers.


@pytest.mark.parametrize(
    ("to", "suffix", "container"),
    [
        ("timm", ".pth", set()),
        ("transformers", ".bin", set()),
        ("mmpretrain", ".pth", {"state_dict", "meta"}),
        ("pycls", ".pyth", {"model_state"}),
    ],
)
def test_files_have_the_upstreams_own_container(
    tmp_path: Path, to: str, suffix: str, container: set[str]
) -> None:
    source = saved(tmp_path / "s.safetensors", upstream_tensors("timm-regnet", "regnet-x-002"))
    content = torch.load(convert(source, tmp_path / f"x{suffix}", to).path, weights_only=True)
    assert set(content) == container or (not container and "head.fc.weight" not in container)
    assert all(isinstance(v, Tensor) for v in content.values()) == (not container)


def test_metadata_says_what_it_is_and_where_it_came_from(
    tmp_path: Path, file_host: FileHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = catalog.find("regnet-x-002", "pycls")
    source = tmp_path / "x.pyth"
    torch.save({"model_state": upstream_tensors("pycls", "regnet-x-002")}, source)
    url = file_host.add("/x.pyth", source.read_bytes())
    moved = replace(row, places=(Place(url=url, layout=row.layout),))
    monkeypatch.setattr(sources, "find", lambda *_: moved)
    path = convert("pycls", tmp_path / "x.safetensors", "timm", variant="regnet_x_002").path
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    words = json.loads(metadata.pop("trunkline"))
    assert metadata == {"format": "pt"}
    preprocessing, architecture = words.pop("preprocessing"), words.pop("architecture")
    assert words == {
        "format": 2,
        "family": "regnet",
        "variant": "regnet-x-002",
        "layout": "timm-regnet",
        "tag": "pycls",
        "license": "MIT",
        "source_sha256": file_sha256(source),
    }
    assert (preprocessing["channel_order"], architecture["depth"]) == ("RGB", 13)
    backbone = create_backbone("regnet-x-002", weights=path)
    assert row.preprocessing is not None
    assert backbone.preprocessing == row.preprocessing.in_rgb()
    assert backbone.load_report is not None
    assert (backbone.load_report.tag, backbone.load_report.license) == (None, None)
    assert backbone.load_report.claims == {"tag": "pycls", "license": "MIT"}
    # The next conversion takes along what the file says of itself.
    again = convert(path, tmp_path / "again.safetensors", "transformers").path
    with safe_open(again, framework="pt") as file:
        more = json.loads(file.metadata()["trunkline"])
    assert more["preprocessing"] == preprocessing
    assert (more["license"], more["tag"]) == ("MIT", "pycls")


def test_a_licence_has_to_be_agreed_to(tmp_path: Path) -> None:
    tag = "timm-fb-ssl-yfcc100m-ft-in1k"
    with pytest.raises(LicenseError, match=r"CC-BY-NC-4\.0"):
        convert(tag, tmp_path / "x.pth", "timm", variant="resnet18")
    assert not (tmp_path / "x.pth").exists()


def test_a_classifier_that_the_target_has_no_place_for_is_left_out_and_reported(
    tmp_path: Path,
) -> None:
    source = saved(tmp_path / "s.safetensors", hollow_tensors("dla", "dla34"))
    report = convert(source, tmp_path / "x.pth", "rtdetr")
    assert not report.classifier
    assert report.notes == ("RT-DETR's DLA has no classifier; that of the file was left out.",)
    assert shapes(written(report.path)) == recorded_keys("rtdetr-dla")["dla34"]
    assert str(report).startswith(f"{report.path}: dla34, 222 tensors without a classifier, read")


def test_the_name_that_the_target_has_is_taken_where_two_fit(tmp_path: Path) -> None:
    source = saved(tmp_path / "s.safetensors", hollow_tensors("timm-resnet", "resnet50d"))
    report = convert(source, tmp_path / "x.pth", "rtdetr")
    assert report.variant == "resnet50vd"
    assert shapes(written(report.path)) == recorded_keys("rtdetr-resnet")["resnet50vd"]


def test_the_original_dla_gets_its_dead_projections(tmp_path: Path) -> None:
    source = saved(tmp_path / "s.safetensors", upstream_tensors("dla", "dla46-c"))
    report = convert(source, tmp_path / "x.pth", "dla")
    there = written(report.path)
    assert shapes(there) == recorded_keys("dla")["dla46-c"]
    assert not there["level4.project.0.weight"].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = upstream_tensors("timm-regnet", "regnet-x-002")
    half = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
    report = convert(saved(tmp_path / "s.safetensors", half), tmp_path / "x.pth", "torchvision")
    there = written(report.path)
    assert {t.dtype for t in there.values()} == {dtype, torch.int64}
    assert report.notes == ()


def test_numpy_gets_bfloat16_widened(tmp_path: Path) -> None:
    tensors = hollow_tensors("torchvision-resnet", "resnet18")
    half = {n: t.bfloat16() if t.is_floating_point() else t for n, t in tensors.items()}
    report = convert(saved(tmp_path / "s.safetensors", half), tmp_path / "x.pkl", "detectron2")
    assert {t.dtype for t in written(report.path).values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_networks_of_other_input_channels(tmp_path: Path, channels: int) -> None:
    tensors = upstream_tensors("timm-regnet", "regnet-x-002")
    tensors["stem.conv.weight"] = torch.randn(32, channels, 3, 3)
    source = saved(tmp_path / "s.safetensors", tensors)
    report = convert(source, tmp_path / "x.pyth", "pycls")
    assert report.variant == "regnet-x-002"
    assert torch.equal(written(report.path)["stem.conv.weight"], tensors["stem.conv.weight"])
    back = convert(report.path, tmp_path / "back.safetensors", "timm")
    assert equal(written(back.path), tensors)


def test_a_file_may_be_rewritten_in_its_place(tmp_path: Path) -> None:
    tensors = upstream_tensors("timm-regnet", "regnet-x-002")
    path = saved(tmp_path / "x.safetensors", tensors)
    convert(path, path, "pycls")
    assert "s1.b1.f.a.weight" in written(path)
    convert(path, path, "timm")
    assert equal(written(path), tensors)


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    source = saved(tmp_path / "s.safetensors", hollow_tensors("timm-dla", "dla46-c"))
    assert convert(str(source), str(tmp_path / "a/b/x.pth"), "timm").path.is_file()
