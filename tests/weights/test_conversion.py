"""convert(): another library's names around the same numbers, and back."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback import FileHost
from record_keys import recorded_keys
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from upstream_files import hollow_tensors, upstream_tensors

from trunkline import create_backbone
from trunkline.errors import (
    ConfigError,
    LicenseError,
    OutputError,
    UnknownLayoutError,
    UnknownVariantError,
    UnsafeCheckpointError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from trunkline.weights import catalog, sources
from trunkline.weights.catalog import Place
from trunkline.weights.checkpoint import file_sha256, read_checkpoint
from trunkline.weights.conversion import convert
from trunkline.weights.layouts import TARGETS
from trunkline.weights.loading import load_weights

pytestmark = pytest.mark.usefixtures("weights_home")
Tensors = Mapping[str, Tensor]


def saved(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def written(path: Path) -> dict[str, Tensor]:
    """The tensors of a file as the upstream itself would see them, its container taken off."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".pkl":
        arrays = pickle.loads(path.read_bytes())["model"]  # noqa: S301 - we wrote it just now
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    content: dict[str, Any] = torch.load(path, weights_only=True)
    for container in ("state_dict", "model_state", "model"):
        if container in content:
            state: dict[str, Tensor] = content[container]
            return state
    return content


def equal(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and torch.equal(one[n], other[n]) for n in one
    )


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
    preprocessing = metadata.pop("preprocessing")
    assert metadata == {
        "format": "pt",
        "variant": "regnet-x-002",
        "layout": "timm-regnet",
        "tag": "pycls",
        "license": "MIT",
        "source_sha256": file_sha256(source),
    }
    assert '"channel_order": "RGB"' in preprocessing
    backbone = create_backbone("regnet-x-002", weights=path)
    assert backbone.preprocessing == row.preprocessing.in_rgb()
    assert backbone.load_report is not None
    assert (backbone.load_report.tag, backbone.load_report.license) == ("pycls", "MIT")
    # The next conversion takes along what the file says of itself.
    again = convert(path, tmp_path / "again.safetensors", "transformers").path
    with safe_open(again, framework="pt") as file:
        assert file.metadata()["preprocessing"] == preprocessing
        assert file.metadata()["license"] == "MIT"
        assert file.metadata()["tag"] == "pycls"


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


# What is refused, and leaves nothing behind.


def refuse(
    source: Path, dst: Path, to: str, error: type[Exception], match: str, **more: Any
) -> None:
    folder = dst.parent
    before = sorted(folder.iterdir()) if folder.is_dir() else None
    content = dst.read_bytes() if dst.is_file() else None
    with pytest.raises(error, match=match):
        convert(source, dst, to, **more)
    assert (sorted(folder.iterdir()) if folder.is_dir() else None) == before
    assert (dst.read_bytes() if dst.is_file() else None) == content


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return saved(tmp_path / "source.safetensors", hollow_tensors("timm-dla", "dla46-c"))


def test_an_unknown_target_is_refused(tmp_path: Path, source: Path) -> None:
    allowed = ", ".join(TARGETS)
    refuse(source, tmp_path / "x.pth", "keras", ConfigError, f"to='keras' .*allowed: {allowed}")


@pytest.mark.parametrize(
    ("name", "to"), [("x.onnx", "timm"), ("x", "timm"), ("x.pkl", "timm"), ("x.tar.gz", "dla")]
)
def test_an_ending_that_is_not_written_is_refused(
    tmp_path: Path, source: Path, name: str, to: str
) -> None:
    refuse(source, tmp_path / name, to, OutputError, f"not written for {to}; use .safetensors")


@pytest.mark.parametrize(
    ("to", "instead"),
    [("torchvision", "timm, rtdetr, dla"), ("pycls", "timm"), ("detectron2", "timm")],
)
def test_a_network_that_the_target_lacks_is_refused(
    tmp_path: Path, source: Path, to: str, instead: str
) -> None:
    message = f"{to} has no dla46-c; it can be written for: trunkline, {instead}"
    refuse(source, tmp_path / "x.pth", to, WeightsMismatchError, message)


def test_what_is_no_checkpoint_of_ours_is_refused(tmp_path: Path) -> None:
    foreign = saved(tmp_path / "f.safetensors", {"visual.conv1.weight": torch.zeros(3)})
    message = "looks like none of our networks"
    refuse(foreign, tmp_path / "x.pth", "timm", UnknownLayoutError, message)
    tensors = hollow_tensors("timm-dla", "dla46-c")
    del tensors["level5.root.bn.bias"]
    part = saved(tmp_path / "p.safetensors", tensors)
    message = r"most like dla46-c as timm's DLA names it \(99% of its tensors, 0 unexplained\)"
    refuse(part, tmp_path / "x.pth", "timm", UnknownLayoutError, message)
    message = r"Missing: 1 \(level5\.root\.bn\.bias\)"
    refuse(part, tmp_path / "x.pth", "timm", WeightsMismatchError, message, variant="dla46-c")


def test_a_wrong_name_is_refused(tmp_path: Path, source: Path) -> None:
    dst = tmp_path / "x.pth"
    message = "The file holds dla46-c as timm's DLA"
    refuse(source, dst, "timm", WeightsMismatchError, message, variant="dla46x-c")
    refuse(source, dst, "timm", UnknownVariantError, "no variant 'dla47'", variant="dla47")
    refuse(source, dst, "timm", ConfigError, "no layout 'x'", variant="dla46-c", layout="x")
    refuse(source, dst, "timm", UnknownLayoutError, "looks most like|whole", layout="pycls")


def test_names_that_do_not_tell_the_stride_have_to_be_helped(tmp_path: Path) -> None:
    with torch.device("meta"):
        state = create_backbone("resnet50-caffe").state_dict()
    tensors = {name: torch.empty_like(tensor, device="cpu") for name, tensor in state.items()}
    unsaid = saved(tmp_path / "unsaid.safetensors", tensors)
    message = "fits resnet50 and resnet50-caffe, .* say variant=NAME"
    refuse(unsaid, tmp_path / "x.pth", "detectron2", UnknownLayoutError, message)
    report = convert(unsaid, tmp_path / "x.pth", "detectron2", variant="resnet50-caffe")
    assert report.written_as == "detectron2-msra"
    said = saved(tmp_path / "said.safetensors", tensors, {"variant": "resnet50-caffe"})
    assert convert(said, tmp_path / "x.pth", "detectron2").variant == "resnet50-caffe"
    message = "says that it holds resnet50-caffe"
    refuse(said, tmp_path / "y.pth", "timm", WeightsMismatchError, message, variant="resnet50")


def test_a_source_that_is_not_there_is_refused(tmp_path: Path) -> None:
    dst = tmp_path / "x.pth"
    refuse(tmp_path / "none.pth", dst, "timm", WeightsNotFoundError, "no file")
    with pytest.raises(WeightsNotFoundError, match="is no file here, and no tag"):
        convert("torchvision-in1k-v1", dst, "timm")


def test_a_place_that_cannot_be_written_is_refused(
    tmp_path: Path, source: Path, walled: Path
) -> None:
    folder = tmp_path / "folder.pth"
    folder.mkdir()
    refuse(source, folder, "timm", OutputError, "is a folder; give the path of a file")
    assert list(folder.iterdir()) == []
    refuse(source, walled / "x.pth", "timm", OutputError, "cannot be written")


def test_an_old_file_survives_a_failed_conversion(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dst = tmp_path / "x.pth"
    dst.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    refuse(source, dst, "timm", OutputError, "No space left on device")
    assert dst.read_text() == "old"


class _Poison:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


def test_a_poisoned_source_is_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / "x.pth"
    torch.save({"state_dict": hollow_tensors("timm-dla", "dla46-c"), "x": _Poison(canary)}, path)
    refuse(path, tmp_path / "y.pth", "timm", UnsafeCheckpointError, "mkdir")
    assert not canary.exists()


def test_what_is_written_is_read_by_the_restricted_reader(tmp_path: Path, source: Path) -> None:
    for name, format_ in (("x.pth", "torch-zip"), ("x.safetensors", "safetensors")):
        path = convert(source, tmp_path / name, "timm").path
        checkpoint = read_checkpoint(path)
        assert (checkpoint.format, checkpoint.container, checkpoint.notes) == (format_, "", ())
