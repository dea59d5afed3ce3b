"""A whole benchmark of a small network: what the report says. Nothing timed is asserted."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from trunkline import create_backbone, create_classifier
from trunkline.benchmarking import bench as module
from trunkline.benchmarking import peak
from trunkline.benchmarking.bench import BenchConfig, bench, seeded_backbone, torch_threads
from trunkline.benchmarking.contestants import eager
from trunkline.errors import ConfigError, PrecisionError, UnknownVariantError
from trunkline.runtimes.graphs import example_images

SHAPE = (2, 64, 32)


@pytest.mark.usefixtures("quick_peak")
def test_report_of_the_backbone_and_a_runner() -> None:
    config = BenchConfig(shapes=(SHAPE,), runtimes=("eager", "onnxruntime"), rounds=2, threads=1)
    told: list[str] = []
    report = bench(["resnet18"], config, progress=told.append)
    assert told == ["resnet18 at 2x64x32", "the convolution peak"]
    assert [row.runner for row in report.rows] == ["eager", "onnxruntime fp32"]
    first, second = report.rows
    assert (first.ratio, first.fidelity, first.max_relative, first.min_cosine) == (
        1.0,
        (),
        None,
        None,
    )
    assert [level.stride for level in second.fidelity] == [4, 8, 16, 32]
    assert second.max_relative is not None
    assert second.max_relative <= 1e-4
    operations = 2 * 2 * create_backbone("resnet18").macs(64, 32)
    for row in report.rows:
        assert (row.backbone, row.shape, row.rounds, row.precision) == (
            "resnet18",
            SHAPE,
            2,
            "fp32",
        )
        assert 0 < row.p5_ms <= row.median_ms <= row.p95_ms
        assert row.images_per_s == pytest.approx(2 / row.median_ms * 1e3)
        assert row.gflops == pytest.approx(operations / row.median_ms / 1e6)
        assert row.peak_share is not None
        assert math.isfinite(row.peak_share)
        assert row.peak_share > 0
        assert row.peak_memory_bytes is not None
        assert row.peak_memory_bytes > 50 * 2**20
    assert [one.precision for one in report.peaks] == ["fp32"]
    assert {"trunkline", "torch", "onnxruntime"} <= report.versions.keys()
    assert json.loads(json.dumps(report.to_dict()))["rows"][1]["fidelity"][0]["stride"] == 4


@pytest.mark.usefixtures("quick_peak")
def test_without_memory_no_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_job: Any) -> int:
        raise AssertionError("a process was started")

    monkeypatch.setattr(module, "peak_memory", never)
    config = BenchConfig(shapes=(SHAPE,), runtimes=("eager",), rounds=1, threads=1, memory=False)
    assert bench(["resnet18"], config).rows[0].peak_memory_bytes is None


@pytest.mark.usefixtures("quick_peak")
def test_every_backbone_meets_every_shape() -> None:
    config = BenchConfig(
        shapes=((1, 32, 32), (1, 33, 35)), runtimes=("eager",), rounds=1, threads=1, memory=False
    )
    rows = bench(["dla46-c", "regnet-x-002"], config).rows
    assert [(row.backbone, row.shape) for row in rows] == [
        (name, shape) for name in ("dla46-c", "regnet-x-002") for shape in config.shapes
    ]


def test_random_weights_are_the_same_in_every_run_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = (seeded_backbone("resnet18", "none") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert not first.training
    for mine, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_threads_are_given_back_after_an_error() -> None:
    def fail() -> None:
        with torch_threads(before + 1):
            assert torch.get_num_threads() == before + 1
            raise RuntimeError("in between")

    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="in between"):
        fail()
    assert torch.get_num_threads() == before


def test_the_eager_contestant_returns_the_backbone_s_maps() -> None:
    backbone = seeded_backbone("resnet18", "none")
    images = example_images(backbone, 1, 32, 32, preprocess=False)
    with torch.inference_mode():
        wanted = backbone(images)
    maps = eager(backbone, images).maps()
    assert all((mine == other.numpy()).all() for mine, other in zip(maps, wanted, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtimes": ("tensorrt",)}, r"no runtime 'tensorrt'; allowed: eager, auto, torch, "),
        ({"precisions": ("fp16",)}, r"no precision 'fp16'; allowed: fp32, bf16, int8"),
        ({"runtimes": ("eager", "eager")}, r"a runtime is named twice: eager, eager; name each"),
        ({"against": ("timm", "timm")}, r"a peer is named twice: timm, timm; name each once"),
        ({"shapes": ((1, 0, 32),)}, r"shapes=.*must be \(N, H, W\), integers from 1 on"),
        ({"shapes": ()}, r"shapes=\(\) must be"),
        ({"rounds": 0}, r"rounds must be 1 or more, got 0; 15 is the default"),
        ({"threads": 0}, r"threads must be 1 or more, got 0; None takes all"),
    ],
)
def test_options_outside_what_is_allowed_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BenchConfig(**options)


def test_a_mistake_is_told_before_the_search_for_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> peak.Peak:
        raise AssertionError("the convolution peak was searched for")

    monkeypatch.setattr(module, "measure_peak", never)
    config = BenchConfig(shapes=(SHAPE,), threads=1, against=("keras",))
    with pytest.raises(ConfigError, match="no peer 'keras'"):
        bench(["resnet18"], config)
    config = BenchConfig(
        shapes=(SHAPE,), threads=1, runtimes=("onnxruntime",), precisions=("bf16",)
    )
    with pytest.raises(PrecisionError, match=r"'bf16' on onnxruntime"):
        bench(["resnet18"], config)


@pytest.mark.usefixtures("quick_peak")
def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no backbone to measure; .*`trunkline list`"):
        bench([])
    with pytest.raises(UnknownVariantError, match=r"no variant 'resnet19'"):
        bench(["resnet19"], BenchConfig(threads=1))
    with pytest.raises(ConfigError, match=r"nothing to time; give a runtime or a peer"):
        bench(["resnet18"], BenchConfig(shapes=(SHAPE,), runtimes=(), threads=1))


@pytest.mark.usefixtures("quick_peak")
def test_a_classifier_is_measured_with_its_head() -> None:
    classifier = create_classifier("resnet18", labels=["cat", "dog"]).eval()
    config = BenchConfig(shapes=((1, 32, 32),), runtimes=("eager", "torch"), rounds=2, threads=1)
    eager, deployed = bench([classifier], config).rows
    assert [level.level for level in deployed.fidelity] == ["logits"]
    assert eager.backbone == "resnet18"
