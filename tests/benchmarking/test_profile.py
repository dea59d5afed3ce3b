"""Profiles of small networks on the engines that have a profiler."""

from __future__ import annotations

import json

import pytest

from trunkline.benchmarking.bench import BenchConfig
from trunkline.benchmarking.profile import NUM_LAYERS, profile_runners
from trunkline.errors import ConfigError, PrecisionError, UnknownVariantError
from trunkline.runtimes import processor

SHAPE = (1, 64, 64)


@pytest.mark.usefixtures("quick_peak")
@pytest.mark.parametrize("name", ["resnet18", "regnet-y-002"])
def test_the_slowest_layers_of_both_engines_are_told_by_their_place(name: str) -> None:
    profiles = profile_runners([name], BenchConfig(shapes=(SHAPE,), rounds=2, threads=1))
    assert [one.runtime for one in profiles] == ["onnxruntime", "openvino"]
    for one in profiles:
        assert (one.backbone, one.shape, one.precision) == (name, SHAPE, "fp32")
        assert len(one.layers) == NUM_LAYERS < one.num_layers
        times = [layer.ms for layer in one.layers]
        assert times == sorted(times, reverse=True)
        assert sum(times) <= one.total_ms * 1.001
        assert sum(one.kinds.values()) == pytest.approx(1)
        convolutions = [layer for layer in one.layers if layer.kind.startswith("Conv")]
        assert convolutions
        for layer in convolutions:
            assert layer.name.startswith(("stem", "stages."))
            assert layer.gflops is not None
            assert layer.peak_share == pytest.approx(layer.gflops / one.peak_gflops)
        assert json.loads(json.dumps(one.to_dict()))["layers"][0]["kind"] == one.layers[0].kind


@pytest.mark.usefixtures("quick_peak")
@pytest.mark.parametrize("name", ["resnet18", "regnet-y-002"])
def test_operations_of_all_convolutions_are_those_of_the_backbone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline.benchmarking.profile.NUM_LAYERS", 1000)
    for one in profile_runners([name], BenchConfig(shapes=((2, 64, 96),), rounds=1, threads=1)):
        told = sum(layer.gflops * layer.ms for layer in one.layers if layer.gflops is not None)
        assert told / one.total_ms / one.peak_gflops == pytest.approx(one.peak_share, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({"runtimes": ("torch",)}, "torch"),
        ({"runtimes": ("openvino",), "against": ("timm",)}, "timm"),
        ({"precisions": ("int8",)}, "int8"),
    ],
)
def test_what_has_no_profile_is_refused(options: dict[str, tuple[str, ...]], given: str) -> None:
    message = rf"--profile got {given}; it works with .*onnxruntime and openvino in fp32 and bf16"
    with pytest.raises(ConfigError, match=message):
        profile_runners(["resnet18"], BenchConfig(**options))  # type: ignore[arg-type]


def test_a_precision_that_an_engine_lacks_and_an_unknown_name_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = BenchConfig(runtimes=("onnxruntime",), precisions=("bf16",))
    with pytest.raises(PrecisionError, match=r"bf16"):
        profile_runners(["resnet18"], config)
    plain = processor.Processor("made up", 1, ("avx2",))
    monkeypatch.setattr("trunkline.benchmarking.profile.processor", lambda: plain)
    config = BenchConfig(runtimes=("openvino",), precisions=("bf16",))
    with pytest.raises(PrecisionError, match=r"made up .*no bf16 arithmetic"):
        profile_runners(["resnet18"], config)


@pytest.mark.usefixtures("quick_peak")
def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(UnknownVariantError, match=r"no variant 'resnet19'"):
        profile_runners(["resnet19"], BenchConfig(threads=1))
