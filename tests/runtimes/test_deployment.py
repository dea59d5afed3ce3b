"""deploy: every engine computes the backbone's maps, or says why it does not."""

from __future__ import annotations

import importlib.metadata
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tests.runtimes.conftest import furthest, own_maps
from torch import nn

import trunkline
from trunkline import Backbone, deploy
from trunkline.errors import (
    ConfigError,
    DeploymentError,
    FidelityError,
    ImageError,
    InputError,
    NotInstalledError,
    PrecisionError,
)
from trunkline.runtimes import deployment
from trunkline.runtimes.graphs import FromPixels, unfolded_network_of
from trunkline.runtimes.processor import EmulationWarning, Processor

if TYPE_CHECKING:
    from tests.conftest import Family

QUICK = ("torch", "onnxruntime", "openvino")  # the compiler of PyTorch takes half a minute
SIZES = [(2, 65, 97), (1, 33, 32), (3, 96, 64)]
OLD = Processor("a processor of 2015", 2, ("avx2",))
NEW = Processor("a processor of 2024", 2, ("amx_bf16", "amx_int8", "avx2"))


def random_images(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).numpy()


@pytest.mark.parametrize("runtime", QUICK)
def test_every_family_at_several_sizes(family: Family, runtime: str) -> None:
    backbone = family.build().eval()
    runner = deploy(backbone, runtime)
    for n, height, width in SIZES:
        images = random_images(n, 3, height, width)
        assert furthest(own_maps(backbone, images), runner(images)) < 1e-5
    assert runner.runtime == runtime
    assert (runner.levels, runner.channels, runner.strides) == (
        *(backbone.levels, backbone.channels, backbone.strides),
    )
    assert max(one.max_relative for one in runner.fidelity) < 1e-5


@pytest.mark.parametrize("runtime", QUICK)
def test_one_shape(one_of_each: Family, runtime: str) -> None:
    backbone = one_of_each.build().eval()
    runner = deploy(backbone, runtime, input_shape=(2, 65, 97))
    images = random_images(2, 3, 65, 97)
    assert runner.input_shape == (2, 65, 97)
    assert furthest(own_maps(backbone, images), runner(images)) < 1e-5


@pytest.mark.parametrize("runtime", QUICK)
@pytest.mark.parametrize("input_shape", [None, (1, 33, 64)])
def test_pictures_are_normalised_inside(
    tiny: Backbone, runtime: str, input_shape: tuple[int, int, int] | None
) -> None:
    runner = deploy(tiny, runtime, input_shape=input_shape, preprocess=True)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 33, 64, 3), np.uint8)
    assert runner.preprocessing is not None
    with torch.inference_mode():
        wanted = FromPixels(tiny, runner.preprocessing)(torch.from_numpy(pixels))
    assert furthest([one.numpy() for one in wanted], runner(pixels)) < 1e-5


def test_the_maps_and_their_order_are_those_of_the_backbone(families: dict[str, Family]) -> None:
    backbone = families["dla-basic"].build(return_idx=(3, 1), return_stem=True).eval()
    images = random_images(1, 3, 64, 64)
    for runtime in QUICK:
        runner = deploy(backbone, runtime)
        assert runner.strides == (2, 32, 8)
        assert furthest(own_maps(backbone, images), runner(images)) < 1e-5


def test_what_the_compiler_of_pytorch_makes(tiny: Backbone, tmp_path: Path) -> None:
    runner = deploy(tiny, "inductor", input_shape=(1, 33, 64))
    images = random_images(1, 3, 33, 64)
    wanted = own_maps(tiny, images)
    assert furthest(wanted, runner(images)) < 1e-5
    loaded = trunkline.load_runner(runner.save(tmp_path / "runner"))
    assert furthest(wanted, loaded(images)) < 1e-5


def test_bf16_is_emulated_by_pytorch_with_a_warning(
    one_of_each: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "processor", lambda: OLD)
    backbone = one_of_each.build().eval()
    with pytest.warns(EmulationWarning, match=r"a processor of 2015 .*no bf16.*emulates"):
        runner = deploy(backbone, "torch", "bf16")
    images = random_images(1, 3, 65, 64)
    wanted, got = own_maps(backbone, images), runner(images)
    assert furthest(wanted, got) > 1e-4  # it is bf16 indeed
    for one, other in zip(wanted, got, strict=True):
        assert other.dtype == np.float32
        assert np.vdot(one, other) / np.linalg.norm(one) / np.linalg.norm(other) > 0.999


@pytest.mark.parametrize(
    ("name", "runtime"), [("regnet-y", "onnxruntime"), ("resnet-pooled", "openvino")]
)
def test_int8(
    families: dict[str, Family], name: str, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every family on both engines is quantized in test_quantization.py; here it is deployed.
    monkeypatch.setattr(deployment, "processor", lambda: NEW)
    backbone = families[name].build().eval()
    photos = sorted(Path("examples").glob("*.jpg"))
    runner = deploy(backbone, runtime, "int8", input_shape=(4, 64, 96), calibration=photos)
    assert runner.precision == "int8"
    assert max(one.max_relative for one in runner.fidelity) > 1e-4  # it is int8 indeed
    assert min(one.cosine for one in runner.fidelity) > 0.99


def test_tensors_in_tensors_out(tiny: Backbone, images: np.ndarray[Any, Any]) -> None:
    runner = deploy(tiny, "onnxruntime")
    arrays = runner(images)
    tensors = runner(torch.from_numpy(images))
    assert all(isinstance(one, torch.Tensor) for one in tensors)
    assert all(isinstance(one, np.ndarray) for one in arrays)
    assert all(np.array_equal(a, t.numpy()) for a, t in zip(arrays, tensors, strict=True))


@pytest.mark.parametrize("runtime", QUICK)
def test_memory_layout_of_the_images_does_not_matter(tiny: Backbone, runtime: str) -> None:
    runner = deploy(tiny, runtime)
    images = torch.from_numpy(random_images(2, 3, 64, 96))
    wanted = runner(images)
    strided = images.to(memory_format=torch.channels_last)
    parted = torch.cat([images, images], dim=3)[..., :96]
    for other in (strided, parted):
        for one, same in zip(wanted, runner(other), strict=True):
            assert torch.equal(one, same)


@pytest.mark.parametrize("runtime", QUICK)
def test_no_images_give_no_maps_of_the_right_shape(tiny: Backbone, runtime: str) -> None:
    maps = deploy(tiny, runtime)(np.empty((0, 3, 65, 64), np.float32))
    assert [one.shape for one in maps] == [
        (0, channels, -(-65 // stride), -(-64 // stride))
        for channels, stride in zip(tiny.channels, tiny.strides, strict=True)
    ]


@pytest.mark.parametrize("runtime", QUICK)
def test_later_calls_do_not_write_to_earlier_maps(tiny: Backbone, runtime: str) -> None:
    runner = deploy(tiny, runtime, input_shape=(1, 64, 64))
    first = runner(random_images(1, 3, 64, 64, seed=1))
    kept = [one.copy() for one in first]
    for seed in range(2, 6):
        runner(random_images(1, 3, 64, 64, seed=seed))
    assert all(np.array_equal(one, same) for one, same in zip(first, kept, strict=True))


@pytest.mark.parametrize("runtime", QUICK)
def test_images_are_not_written_to(tiny: Backbone, runtime: str) -> None:
    runner = deploy(tiny, runtime)
    images = random_images(1, 3, 64, 64)
    kept = images.copy()
    runner(images)
    assert np.array_equal(images, kept)


@pytest.mark.parametrize("runtime", QUICK)
def test_eight_threads_at_once(tiny: Backbone, runtime: str) -> None:
    runner = deploy(tiny, runtime)
    inputs = [random_images(1 + n % 3, 3, 48 + n, 64, seed=n) for n in range(8)]
    wanted = [runner(images) for images in inputs]
    barrier = threading.Barrier(8)

    def work(number: int) -> bool:
        barrier.wait()
        return all(
            np.array_equal(one, same)
            for _ in range(10)
            for one, same in zip(wanted[number], runner(inputs[number]), strict=True)
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_the_backbone_is_left_as_it_was(tiny: Backbone) -> None:
    tiny.train()
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    deploy(tiny, "torch")
    deploy(tiny, "onnxruntime")
    assert tiny.training
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny.state_dict().items())


def test_a_double_precision_backbone_runs_in_fp32(tiny: Backbone) -> None:
    images = random_images(1, 3, 64, 64)
    wanted = own_maps(tiny, images)
    assert furthest(wanted, deploy(tiny.double(), "onnxruntime")(images)) < 1e-5


def test_maps_that_differ_are_refused(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    right = unfolded_network_of

    def wrong(backbone: Backbone, *, preprocess: bool) -> nn.Module:
        network = right(backbone, preprocess=preprocess)
        with torch.no_grad():
            next(iter(network.parameters())).mul_(1.01)
        return network

    monkeypatch.setattr("trunkline.runtimes.deployment.unfolded_network_of", wrong)
    with pytest.raises(
        FidelityError,
        match=r"runtime 'onnxruntime' differs from the backbone at stage0 \(stride 4\): .*"
        r"relative difference ≤ 0\.0001",
    ):
        deploy(tiny, "onnxruntime")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"runtime": "tensorrt"}, ConfigError, r"runtime='tensorrt' is unknown; use one of auto"),
        ({"precision": "fp16"}, ConfigError, r"precision='fp16' is unknown; use one of fp32"),
        ({"input_shape": (1, 3, 64, 64)}, ConfigError, r"input_shape=.* must be \(N, H, W\)"),
        ({"input_shape": (1, 0, 64)}, ConfigError, r"input_shape=.* must be \(N, H, W\)"),
        ({"input_shape": 64}, ConfigError, r"input_shape=64 must be \(N, H, W\)"),
        ({"threads": 0}, ConfigError, r"threads=0 must be a positive integer"),
        ({"threads": True}, ConfigError, r"threads=True must be a positive integer"),
        ({"runtime": "torch", "threads": 7}, ConfigError, r"threads=7 cannot be chosen .*torch"),
        ({"calibration": ["a.jpg"]}, ConfigError, r"calibration images are for precision='int8'"),
        ({"precision": "int8"}, ConfigError, r"precision='int8' needs calibration images"),
        (
            {"precision": "int8", "calibration": "/nowhere"},
            (ImageError, ConfigError, InputError),
            r"/nowhere",
        ),
        (
            {"runtime": "torch", "precision": "int8", "calibration": ["examples/cat.jpg"]},
            PrecisionError,
            r"int8.*torch.*not offered.*use precision='fp32', or runtime=",
        ),
        (
            {"precision": "bf16"},
            PrecisionError,
            r"ONNX Runtime has no bf16 convolutions.*runtime='torch'",
        ),
    ],
)
def test_arguments_outside_what_is_allowed(
    tiny: Backbone, arguments: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        deploy(tiny, **{"runtime": "onnxruntime", **arguments})


def test_bf16_on_openvino_needs_the_processor(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "processor", lambda: OLD)
    with pytest.raises(PrecisionError, match=r"2015.*no bf16 arithmetic.*precision='fp32'"):
        deploy(tiny, "openvino", "bf16")


def test_what_is_no_backbone_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a trunkline backbone is expected, got ReLU"):
        deploy(nn.ReLU(), "torch")  # type: ignore[arg-type]


def test_an_engine_that_is_missing_says_how_to_install_it(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(
        NotInstalledError,
        match=r"'openvino' needs openvino, .* pip install \"trunkline\[openvino\]",
    ):
        deploy(tiny, "openvino")


def test_a_compiler_that_fails_is_told_apart(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", fails)
    with pytest.raises(DeploymentError, match=r"no C\+\+ compiler.*g\+\+.*runtime='torch'"):
        deploy(tiny, "inductor")


def test_a_layer_that_onnx_does_not_know_still_runs_in_pytorch(
    families: dict[str, Family],
) -> None:
    backbone = families["resnet-basic"].build(act=nn.PReLU).eval()
    images = random_images(1, 3, 64, 64)
    assert furthest(own_maps(backbone, images), deploy(backbone, "torch")(images)) < 1e-5
    with pytest.raises(DeploymentError, match=r"PReLU.*runtime='torch'"):
        deploy(backbone, "openvino")


def test_nothing_is_warned_of_in_fp32(tiny: Backbone) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for runtime in QUICK:
            deploy(tiny, runtime)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("input_shape", [None, (4, 65, 97)])
def test_a_batch_dealt_out_to_threads_is_the_same_batch(
    one_of_each: Family, runtime: str, input_shape: tuple[int, int, int] | None
) -> None:
    backbone = one_of_each.build().eval()
    shared = deploy(backbone, runtime, input_shape=input_shape, threads=2)
    for n in (4,) if input_shape else (1, 2, 3, 4):
        images = random_images(n, 3, 65, 97, seed=n)
        assert furthest(own_maps(backbone, images), shared(images)) < 1e-5


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_calls_that_deal_out_batches_do_not_mix_them(tiny: Backbone, runtime: str) -> None:
    runner = deploy(tiny, runtime, threads=2)
    inputs = [random_images(2 + 2 * (n % 2), 3, 48, 64, seed=n) for n in range(4)]
    wanted = [own_maps(tiny, images) for images in inputs]

    def work(number: int) -> float:
        return max(furthest(wanted[number], runner(inputs[number])) for _ in range(10))

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(work, range(4))) < 1e-5
