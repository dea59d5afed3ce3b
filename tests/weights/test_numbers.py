"""Codes are not taken for numbers, and numbers that are none are said."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from trunkline import Backbone, create_backbone, load_weights
from trunkline.errors import UnsafeCheckpointError, WeightsMismatchError
from trunkline.heads.classifier import load_classifier
from trunkline.weights.checkpoint import read_checkpoint
from trunkline.weights.conversion import convert
from trunkline.weights.numbers import FLOATS, unsound

if TYPE_CHECKING:
    from tests.conftest import Family

pytestmark = pytest.mark.usefixtures("weights_home")

CODES = {
    **dict.fromkeys(
        ("int8", "uint8", "int16", "int32", "int64", "uint16", "uint32", "uint64"),
        "Integers are what quantizing leaves: nothing without their scales",
    ),
    **dict.fromkeys(
        ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
        "So narrow floats have scales beside them",
    ),
    "bool": "Booleans are a mask",
    "complex64": "Complex numbers are spectra",
    "complex128": "Complex numbers are spectra",
}


@pytest.fixture
def backbone(families: dict[str, Family]) -> Backbone:
    return families["resnet-basic"].build(seed=1)


def as_codes(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype is torch.bool or dtype.is_complex or dtype.is_floating_point:
        return tensor.to(dtype)
    return (tensor * 40).round().clamp(0, 120).to(dtype)


def saved(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    else:
        torch.save(dict(tensors), path)
    return path


def refused(backbone: Backbone, path: Path, match: str) -> str:
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with pytest.raises(WeightsMismatchError, match=match) as caught:
        load_weights(backbone, path)
    assert str(path) in str(caught.value)
    assert "Nothing was loaded." in str(caught.value)
    assert all(torch.equal(before[n], t) for n, t in backbone.state_dict().items())
    assert backbone.load_report is None
    return str(caught.value)


UNSAFE = ("complex128", "float8_e4m3fnuz", "float8_e5m2fnuz")  # which safetensors does not have


@pytest.mark.parametrize(
    ("name", "suffix"),
    [*((n, ".pth") for n in CODES), *((n, ".safetensors") for n in CODES if n not in UNSAFE)],
)
def test_codes_are_not_taken_for_numbers(
    backbone: Backbone, tmp_path: Path, name: str, suffix: str
) -> None:
    dtype = getattr(torch, name)
    state = backbone.state_dict()
    codes = {n: as_codes(t, dtype) if t.is_floating_point() else t for n, t in state.items()}
    path = saved(tmp_path / f"x{suffix}", codes)
    count = sum(t.is_floating_point() for t in state.values())
    message = rf"No floating-point numbers: {count} \(.* is {name}; .* and {count - 10} more\)\. "
    said = refused(backbone, path, message + CODES[name])
    assert "Load what it was made from, or write the numbers themselves" in said


@pytest.mark.parametrize(
    "part", ["stem.conv.weight", "stem.norm.running_var", "stages.3.blocks.0.conv2.conv.weight"]
)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_single_tensor_of_codes_is_enough(
    families: dict[str, Family], tmp_path: Path, part: str, channels: int
) -> None:
    """Whatever else would be done to it: a stem is added up, repeated or turned."""
    state = families["resnet-basic"].build(seed=1).state_dict()
    for dtype in (torch.float8_e4m3fn, torch.int8, torch.complex64):
        path = saved(tmp_path / "x.pth", {**state, part: as_codes(state[part], dtype)})
        other = families["resnet-basic"].build(seed=2, in_channels=channels)
        refused(other, path, rf"No floating-point numbers: 1 \({part} is ")


@pytest.mark.parametrize("scale", ["_scale", ".scale", "_scale_inv", "_zero_point", ".absmax"])
def test_the_scales_of_a_quantized_file_are_named(
    backbone: Backbone, tmp_path: Path, scale: str
) -> None:
    state = backbone.state_dict()
    weight = "stages.0.blocks.0.conv1.conv.weight"
    codes = {**state, weight: as_codes(state[weight], torch.int8)}
    path = saved(tmp_path / "x.safetensors", {**codes, f"{weight}{scale}": torch.ones(1)})
    message = rf"Left over: 1 \({weight}{scale}\).* It holds int8: a quantized file\? Beside them:"
    refused(backbone, path, message)


def test_quantized_tensors_of_torch_are_called_what_they_are(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed = torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)
        torch.save({"conv1.weight": packed}, tmp_path / "x.pth")
    with pytest.raises(UnsafeCheckpointError, match=r"a quantized tensor: .*dequantize\(\)"):
        read_checkpoint(tmp_path / "x.pth")
    torch.save({"conv1.weight": torch.eye(3).to_sparse()}, tmp_path / "x.pth")
    with pytest.raises(UnsafeCheckpointError, match=r"a sparse tensor: .*to_dense\(\)"):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_what_people_train_in_stays_as_it_is(
    backbone: Backbone, families: dict[str, Family], tmp_path: Path, dtype: torch.dtype
) -> None:
    state = backbone.state_dict()
    cast = {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}
    other = families["resnet-basic"].build(seed=2)
    report = load_weights(other, saved(tmp_path / "x.safetensors", cast))
    assert report.adapted == (
        () if dtype is torch.float32 else (f"{dtype} was cast to torch.float32.",)
    )
    assert not any("NOT FINITE" in note for note in report.notes)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, cast[name].to(state[name].dtype))


# Counters of batches.


@pytest.mark.parametrize(
    ("counter", "expected"),
    [
        (torch.tensor(7), 7),
        (torch.tensor(7, dtype=torch.int32), 7),
        (torch.tensor(7, dtype=torch.uint8), 7),
        (torch.tensor(7.0).half(), 7),
        (torch.tensor(1e6).half(), 0),  # infinite
        (torch.tensor(float("nan")), 0),
        (torch.tensor(True), 0),
        (torch.tensor(1j), 0),
    ],
    ids=str,
)
def test_counters_of_batches_are_integers_whatever_the_file_makes_of_them(
    backbone: Backbone, tmp_path: Path, counter: Tensor, expected: int
) -> None:
    name = "stem.norm.num_batches_tracked"
    path = saved(tmp_path / "x.pth", {**backbone.state_dict(), name: counter})
    report = load_weights(backbone, path)
    stored = backbone.state_dict()[name]
    assert (stored.dtype, int(stored)) == (torch.int64, expected)
    assert ("Counters of batches that are no numbers" in str(report)) == (expected == 0)


# Numbers that are none.

Edit = Callable[[Tensor], object]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_numbers_that_are_not_finite_are_said(
    families: dict[str, Family],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    value: float,
    dtype: torch.dtype,
) -> None:
    state = families["resnet-basic"].build(seed=1).to(dtype).state_dict()
    name = "stages.2.blocks.0.conv1.conv.weight"
    state[name][1, 2, 0, 1] = value
    path = saved(tmp_path / "x.safetensors", state)
    for other in (
        families["resnet-basic"].build(seed=2),
        families["resnet-basic"].create(weights=path),
        families["resnet-basic"].build(seed=2).to(dtype),
        families["resnet-basic"].build(seed=2).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    ):
        with caplog.at_level(logging.WARNING):
            report = other.load_report or load_weights(other, path)
        assert report.notes[-1] == "NOT FINITE (NaN or infinite), so the maps are not either: " + (
            f"1 ({name})."
        )
        assert f"{path}: NOT FINITE" in caplog.text


def test_a_cast_that_ends_in_infinity_is_said(backbone: Backbone, tmp_path: Path) -> None:
    state = {
        n: t.double() if t.is_floating_point() else t for n, t in backbone.state_dict().items()
    }
    state["stem.conv.weight"][0] = 1e300
    report = load_weights(backbone, saved(tmp_path / "x.safetensors", state))
    assert "NOT FINITE" in str(report)
    assert "(stem.conv.weight)" in str(report)
    assert torch.isinf(backbone.state_dict()["stem.conv.weight"]).any()


def test_large_numbers_are_not_taken_for_infinite_ones(backbone: Backbone) -> None:
    state = backbone.state_dict()
    for value in (3e38, -3e38):
        state["stem.conv.weight"].fill_(value)  # their sum is infinite
        assert unsound(state) == ()
    assert unsound({"x": torch.full((9,), 6e4).half(), "empty": torch.zeros(0)}) == ()


def test_negative_variances_are_said(backbone: Backbone, tmp_path: Path) -> None:
    state = backbone.state_dict()
    state["stem.norm.running_var"][1] = -1e-9
    state["stem.norm.running_mean"][1] = -1.0  # as it may be
    report = load_weights(backbone, saved(tmp_path / "x.safetensors", state))
    assert report.notes == ("Negative variances, whose root is NaN: 1 (stem.norm.running_var).",)


# Classifiers and conversions.


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    torch.manual_seed(0)
    state: dict[str, Any] = create_backbone("dla46-c").state_dict()
    return {**state, "classifier.weight": torch.randn(10, 256), "classifier.bias": torch.randn(10)}


def test_a_classifier_of_codes_is_refused_where_it_is_wanted(
    whole: dict[str, Tensor], tmp_path: Path
) -> None:
    codes = {**whole, "classifier.weight": whole["classifier.weight"].to(torch.int8)}
    path = saved(tmp_path / "x.safetensors", codes)
    with pytest.raises(WeightsMismatchError, match=r"numbers: 1 \(classifier\.weight is int8\)"):
        load_classifier("dla46-c", path)
    with pytest.raises(WeightsMismatchError, match=r"numbers: 1 \(classifier\.weight is int8\)"):
        convert(path, tmp_path / "y.pth", "timm")
    assert not (tmp_path / "y.pth").exists()
    assert create_backbone("dla46-c", weights=path).load_report is not None  # leaves it aside


def test_a_classifier_or_a_conversion_that_is_not_finite_says_so(
    whole: dict[str, Tensor], tmp_path: Path
) -> None:
    bias = whole["classifier.bias"].clone()
    bias[3] = float("nan")
    path = saved(tmp_path / "x.safetensors", {**whole, "classifier.bias": bias})
    report = load_classifier("dla46-c", path).backbone.load_report
    assert report is not None
    assert report.notes[-1].startswith("NOT FINITE (NaN or infinite)")
    assert report.notes[-1].endswith("1 (linear.bias).")
    assert "1 (classifier.bias)." in convert(path, tmp_path / "y.pth", "timm").notes[-1]


def test_a_backbone_that_was_broken_is_said_beside_its_classifier(
    whole: dict[str, Tensor], tmp_path: Path
) -> None:
    broken = {**whole, "stem.0.norm.bias": torch.full((16,), float("inf"))}
    classifier = load_classifier("dla46-c", saved(tmp_path / "x.safetensors", broken))
    assert classifier.backbone.load_report is not None
    assert "1 (stem.0.norm.bias)." in classifier.backbone.load_report.notes[-1]
