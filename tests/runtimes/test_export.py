"""Exported files: opened by their own engines, compared with the backbone, and whole or not there.

What is refused, and what is left behind by failures, is in ``test_export_refusals.py``; what a file
says of itself in ``test_export_metadata.py``.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import trunkline
from trunkline import Backbone
from trunkline.preprocessing import IMAGENET, Preprocessing
from trunkline.runtimes import export_formats
from trunkline.runtimes.export import CHECKED, ExportReport, export
from trunkline.runtimes.onnx_writer import OPSETS
from trunkline.runtimes.provenance import state_digest
from trunkline.runtimes.signal_stack import signal_stack_kept
from trunkline.weights.checkpoint import file_sha256

if TYPE_CHECKING:
    from tests.conftest import Family

onnx: Any = pytest.importorskip("onnx")
onnxruntime: Any = pytest.importorskip("onnxruntime")
openvino: Any = pytest.importorskip("openvino")

Format = Literal["onnx", "openvino", "torch-export", "torchscript"]
SUFFIXES: dict[Format, str] = {
    "onnx": ".onnx",
    "openvino": ".xml",
    "torch-export": ".pt2",
    "torchscript": ".pt",
}
BGR = Preprocessing(
    resize=None,
    crop=None,
    interpolation="bilinear",
    mean=(103.5, 116.3, 123.7),
    std=(57.4, 57.1, 58.4),
    value_range="0..255",
    channel_order="BGR",
)
Run = Callable[[NDArray[Any]], list[NDArray[np.float32]]]


def open_onnx(path: Path) -> Run:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"image": images})


def open_openvino(path: Path) -> Run:
    with signal_stack_kept():
        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: [np.array(one) for one in compiled(images).values()]


def open_program(path: Path) -> Run:
    module = torch.export.load(path).module()
    return lambda images: [one.detach().numpy() for one in module(torch.from_numpy(images))]


def open_script(path: Path) -> Run:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit\.")
        module = torch.jit.load(path)  # type: ignore[no-untyped-call]
    return lambda images: [one.detach().numpy() for one in module(torch.from_numpy(images))]


OPENERS: dict[Format, Callable[[Path], Run]] = {
    "onnx": open_onnx,
    "openvino": open_openvino,
    "torch-export": open_program,
    "torchscript": open_script,
}


def images_of(backbone: Backbone, n: int, h: int, w: int) -> NDArray[np.float32]:
    generator = np.random.default_rng(7)
    return generator.standard_normal((n, backbone.in_channels, h, w), dtype=np.float32)


def pixels_of(n: int, h: int, w: int) -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (n, h, w, 3), dtype=np.uint8)


def normalised(pixels: NDArray[np.uint8], how: Preprocessing = IMAGENET) -> NDArray[np.float32]:
    """Normalise by hand, in float64."""
    values = pixels.astype(np.float64)
    values = values[..., ::-1] if how.channel_order == "BGR" else values
    values = values / 255 if how.value_range == "0..1" else values
    values = (values - how.mean) / how.std
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2), np.float32)


def assert_agrees(run: Run, given: NDArray[Any], backbone: Backbone, wanted: Any = None) -> None:
    """Compare maps with those of the backbone for the same images, normalised if need be."""
    with torch.no_grad():
        reference = backbone.eval()(torch.from_numpy(given if wanted is None else wanted))
    got = run(given)
    assert [one.shape for one in got] == [tuple(one.shape) for one in reference]
    for one, other in zip(got, reference, strict=True):
        assert one.dtype == np.float32
        assert np.abs(one - other.numpy()).max() <= 2e-5 * np.abs(other.numpy()).max()


def exported(
    backbone: Backbone, folder: Path, kind: Format = "onnx", **options: Any
) -> ExportReport:
    return export(backbone, folder / f"net{SUFFIXES[kind]}", kind, **options)


# OpenVINO's file is made of the same graph: the graph of every family is run by OpenVINO in
# test_onnx_writer.py, and files of one of each family below.
def test_every_family_gives_the_same_maps(family: Family, tmp_path: Path) -> None:
    backbone = family.build()
    report = exported(backbone, tmp_path)
    assert_agrees(open_onnx(report.path), images_of(backbone, 2, 33, 71), backbone)


@pytest.mark.parametrize("kind", ["onnx", "openvino", "torchscript"])
def test_one_of_each_family_normalises_pictures(
    one_of_each: Family, kind: Format, tmp_path: Path
) -> None:
    assert_normalises(one_of_each.build(), kind, tmp_path)


def test_torch_export_normalises_pictures(families: dict[str, Family], tmp_path: Path) -> None:
    backbone = families["dla-basic"].build(return_idx=(1, 0))  # seconds, and more for all four
    assert_normalises(backbone, "torch-export", tmp_path)


def assert_normalises(backbone: Backbone, kind: Format, folder: Path) -> None:
    run = OPENERS[kind](exported(backbone, folder, kind, preprocess=True).path)
    for size in ((1, 40, 71), (1, 1, 1), (2, 20, 1)):
        pixels = pixels_of(*size)
        assert_agrees(run, pixels, backbone, normalised(pixels))


def test_dla34_at_odd_sizes(tmp_path: Path, randomizer: Callable[[Any], None]) -> None:
    backbone = trunkline.create_backbone("dla34")
    randomizer(backbone)
    report = exported(backbone, tmp_path)
    run = open_onnx(report.path)
    for size in ((1, 75, 101), (2, 1, 65)):
        assert_agrees(run, images_of(backbone, *size), backbone)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_order_stem_and_channels(kind: Format, families: dict[str, Family], tmp_path: Path) -> None:
    backbone = families["dla-basic"].build(return_idx=(3, 1), return_stem=True, in_channels=5)
    report = exported(backbone, tmp_path, kind)
    assert report.output_names == ("stride_2", "stride_32", "stride_8")
    assert_agrees(OPENERS[kind](report.path), images_of(backbone, 1, 64, 96), backbone)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
@pytest.mark.parametrize(
    "options",
    [
        {"output_stride": 8},
        {"norm": "group", "act": "gelu"},
        {"norm": "frozen", "act": "silu"},
    ],
    ids=str,
)
def test_options_of_a_backbone(
    kind: Format, options: dict[str, Any], families: dict[str, Family], tmp_path: Path
) -> None:
    backbone = families["resnet-pooled"].build(**options)
    report = exported(backbone, tmp_path, kind)
    if "output_stride" in options:
        assert report.output_names[1:] == (
            "stage1_stride_8",
            "stage2_stride_8",
            "stage3_stride_8",
        )
    assert_agrees(OPENERS[kind](report.path), images_of(backbone, 2, 50, 81), backbone)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_normalisation_of_pictures_in_another_order(
    kind: Format, families: dict[str, Family], tmp_path: Path
) -> None:
    backbone = families["resnet-basic"].build(return_idx=(0,))
    backbone.preprocessing = BGR
    report = exported(backbone, tmp_path, kind, preprocess=True)
    pixels = pixels_of(1, 64, 96)
    assert_agrees(OPENERS[kind](report.path), pixels, backbone, normalised(pixels, BGR))
    assert json.loads(report.metadata["trunkline.preprocessing"]) == BGR.to_dict()


def test_report(families: dict[str, Family], tmp_path: Path) -> None:
    backbone = families["regnet-y"].build()
    report = exported(backbone, tmp_path, "openvino", opset=17)
    assert (report.format, report.precision, report.opset) == ("openvino", "fp32", 17)
    assert (report.input_name, report.dynamic) == ("image", ("batch", "height", "width"))
    assert report.output_names == ("stride_4", "stride_8", "stride_16", "stride_32")
    assert [file.path.name for file in report.files] == ["net.xml", "net.bin"]
    for file in report.files:
        assert file.num_bytes == file.path.stat().st_size > 0
        assert file.sha256 == file_sha256(file.path)
    assert report.num_bytes == sum(file.num_bytes for file in report.files)
    assert [one.shape for one in report.fidelity] == list(CHECKED)
    for one in report.fidelity:
        assert [level.stride for level in one.levels] == [4, 8, 16, 32]
        assert all(level.max_relative <= 1e-4 for level in one.levels)
    assert json.loads(json.dumps(report.to_dict()))["files"][1]["path"].endswith("net.bin")
    assert "net.xml (openvino, fp32, " in str(report)
    assert "at 1x225x161, 3x97x129: relative difference at most " in str(report)


@pytest.mark.parametrize("kind", ["onnx", "openvino", "torch-export"])
@pytest.mark.parametrize(
    ("dynamic", "checked"),
    [
        ((), [(2, 64, 96)] * 2),
        (("batch",), [(1, 64, 96), (3, 64, 96)]),
        (("width", "height"), [(2, 225, 161), (2, 97, 129)]),
    ],
)
def test_axes_that_are_not_dynamic_are_fixed(
    kind: Format,
    dynamic: tuple[str, ...],
    checked: list[tuple[int, int, int]],
    families: dict[str, Family],
    tmp_path: Path,
) -> None:
    backbone = families["resnet-basic"].build(return_idx=(0, 3))
    report = exported(backbone, tmp_path, kind, dynamic=dynamic, input_shape=(2, 64, 96))
    assert [one.shape for one in report.fidelity] == checked
    run = OPENERS[kind](report.path)
    assert_agrees(run, images_of(backbone, 2, 64, 96), backbone)
    wrong = (5, 64, 96) if "batch" not in dynamic else (2, 65, 96)
    with pytest.raises(Exception, match=r"(?i)dimension|shape|guard"):
        run(images_of(backbone, *wrong))


def test_sizes_in_an_onnx_file(families: dict[str, Family], tmp_path: Path) -> None:
    backbone = families["resnet-basic"].build(return_idx=(0, 3))
    report = exported(backbone, tmp_path, dynamic=("batch",), input_shape=(1, 65, 96))
    graph = onnx.load(report.path).graph
    found = {
        value.name: [one.dim_param or one.dim_value for one in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert found == {
        "image": ["batch", 3, 65, 96],
        "stride_4": ["batch", 8, 17, 24],
        "stride_32": ["batch", 64, 3, 3],
    }


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset(opset: int, families: dict[str, Family], tmp_path: Path) -> None:
    backbone = families["regnet-y"].build(return_idx=(1,))
    assert exported(backbone, tmp_path, opset=opset).opset == opset
    assert [one.version for one in onnx.load(tmp_path / "net.onnx").opset_import] == [opset]
    if opset in (OPSETS[0], OPSETS[-1]):
        assert exported(backbone, tmp_path, "openvino", opset=opset).opset == opset


def test_openvino_weights_are_not_halved(families: dict[str, Family], tmp_path: Path) -> None:
    backbone = families["resnet-basic"].build()
    exported(backbone, tmp_path, "openvino")
    graph = openvino.Core().read_model(tmp_path / "net.xml")
    kinds = {
        one.get_element_type().get_type_name() for op in graph.get_ops() for one in op.outputs()
    }
    assert "f16" not in kinds
    assert graph.inputs[0].get_names() == {"image"}
    assert [one.get_any_name() for one in graph.outputs] == [
        *("stride_4", "stride_8", "stride_16", "stride_32")
    ]
    assert str(graph.get_parameters()[0].get_layout()) == "[N,C,H,W]"


def test_weights_beyond_one_message_go_to_a_file_beside(
    families: dict[str, Family], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_formats, "MESSAGE_BYTES", 1000)
    backbone = families["resnet-basic"].build()
    report = exported(backbone, tmp_path)
    assert [file.path.name for file in report.files] == ["net.onnx", "net.onnx.data"]
    assert report.files[1].num_bytes > 10 * report.files[0].num_bytes > 0
    elsewhere = tmp_path.rename(tmp_path.with_name("elsewhere"))
    assert_agrees(open_onnx(elsewhere / "net.onnx"), images_of(backbone, 1, 40, 50), backbone)


@pytest.mark.parametrize("preprocess", [False, True], ids=["tensors", "pictures"])
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_int8(kind: Format, preprocess: bool, families: dict[str, Family], tmp_path: Path) -> None:
    backbone = families["resnet-basic"].build(return_idx=(1, 3))
    photos: Any = pixels_of(6, 64, 96) if preprocess else images_of(backbone, 6, 64, 96)
    report = exported(
        backbone,
        tmp_path,
        kind,
        precision="int8",
        calibration=photos,
        preprocess=preprocess,
        dynamic=("batch", "width"),
        input_shape=(1, 48, 96),
    )
    assert report.precision == report.metadata["trunkline.precision"] == "int8"
    assert [one.shape for one in report.fidelity] == [(1, 48, 161), (3, 48, 129)]
    assert all(level.cosine >= 0.99 for one in report.fidelity for level in one.levels)
    assert any(level.max_relative > 1e-4 for one in report.fidelity for level in one.levels)
    run = OPENERS[kind](report.path)
    assert [
        one.shape[2:] for one in run(photos[:2, :48] if preprocess else photos[:2, :, :48])
    ] == [
        (6, 12),
        (2, 3),
    ]
    if kind == "onnx":
        assert "QuantizeLinear" in {node.op_type for node in onnx.load(report.path).graph.node}
    else:
        ops = openvino.Core().read_model(report.path).get_ops()
        assert "FakeQuantize" in {op.get_type_name() for op in ops}


def test_a_backbone_is_left_as_it_is(families: dict[str, Family], tmp_path: Path) -> None:
    backbone = (
        families["resnet-basic"]
        .build(return_idx=(1,), frozen_stages=0, drop_path_rate=0.2)
        .double()
        .train()
    )
    digest, modes = state_digest(backbone), [one.training for one in backbone.modules()]
    drawn = torch.get_rng_state()
    wanted = [one.requires_grad for one in backbone.parameters()]
    for kind in SUFFIXES:
        exported(backbone, tmp_path, kind)
    assert state_digest(backbone) == digest
    assert [one.training for one in backbone.modules()] == modes
    assert [one.requires_grad for one in backbone.parameters()] == wanted
    assert all(one.grad is None for one in backbone.parameters())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        *("net.bin", "net.onnx", "net.pt", "net.pt2", "net.xml")
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes_are_widened_before_anything_is_folded(
    dtype: torch.dtype, families: dict[str, Family], tmp_path: Path
) -> None:
    backbone = families["resnet-basic"].build().to(dtype)
    report = exported(backbone, tmp_path)
    images = images_of(backbone, 1, 40, 50)
    assert_agrees(open_onnx(report.path), images, backbone.float())
