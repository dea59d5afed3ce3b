"""What a card computes at best in a convolution, and where the time of a network goes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from gpu_device import WARM_UP, Device
from torch import Tensor, nn

from trunkline.benchmarking.peak import ConvShape

# What these networks are made of, at large batches and more channels than most layers have.
SHAPES = (
    ConvShape(128, 256, 56, 1),
    ConvShape(128, 512, 28, 1),
    ConvShape(128, 1024, 14, 1),
    ConvShape(128, 1024, 28, 1),
    ConvShape(128, 2048, 14, 1),
    ConvShape(128, 64, 56, 3),
    ConvShape(128, 128, 28, 3),
    ConvShape(128, 256, 28, 3),
    ConvShape(128, 256, 14, 3),
    ConvShape(128, 512, 28, 3),
    ConvShape(128, 512, 14, 3),
    ConvShape(128, 1024, 14, 3),
)
TINY_SHAPES = (ConvShape(1, 8, 8, 1), ConvShape(1, 8, 8, 3))
_ROUNDS, _REPEATS = 5, 4
_COPIED_BYTES, _MATRIX = 2**30, 8192
_TINY_BYTES, _TINY_MATRIX = 2**16, 64
_KINDS = (  # part of a kernel's name → what it does; the first that fits
    ("pool", "pooling"),
    ("triton", "fused by the compiler (bias, ReLU, addition, casts)"),
    ("nchwtonhwc", "change of layout"),
    ("nhwctonchw", "change of layout"),
    ("conv", "convolution"),
    ("fprop", "convolution"),
    ("gemm", "convolution"),
    ("cutlass", "convolution"),
    ("xmma", "convolution"),
    ("cudnn", "convolution"),
    ("elementwise", "element by element"),
)


@dataclass(frozen=True)
class CardPeak:
    """The fastest convolution of a card in half precision, and its other limits.

    Attributes:
        shape: Which convolution.
        run: Computes the chain once.
        tflops: Of every shape that was tried, by its name.
        bytes_per_s: Of a large copy, read and written.
        matmul_tflops: Of a large product of matrices, for comparison.
    """

    shape: ConvShape
    run: Callable[[], object]
    tflops: dict[str, float]
    bytes_per_s: float
    matmul_tflops: float

    @property
    def best(self) -> float:
        """10¹² operations per second of the fastest."""
        return max(self.tflops.values())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            "convolution": str(self.shape),
            "tflops": self.best,
            "tried": self.tflops,
            "bytes_per_s": self.bytes_per_s,
            "matmul_tflops": self.matmul_tflops,
        }


def median_seconds(device: Device, run: Callable[[], object]) -> float:
    """Time something alone, after a warm-up."""
    for _ in range(WARM_UP):
        run()
    return statistics.median(device.seconds(run, _REPEATS) for _ in range(_ROUNDS))


def card_peak(device: Device, *, tiny: bool) -> CardPeak:
    """Find the fastest convolution, half precision and NHWC, in chains like a network's."""
    found: dict[ConvShape, tuple[float, Callable[[], object]]] = {}
    for shape in TINY_SHAPES if tiny else SHAPES:
        run = _chain(device, shape)
        found[shape] = (shape.operations / median_seconds(device, run) / 1e12, run)
    best = max(found, key=lambda shape: found[shape][0])
    one = torch.empty(
        _TINY_BYTES if tiny else _COPIED_BYTES, dtype=torch.uint8, device=device.where
    )
    other, side = torch.empty_like(one), _TINY_MATRIX if tiny else _MATRIX
    a, b = (torch.randn(side, side, device=device.where).to(device.half) for _ in range(2))
    return CardPeak(
        shape=best,
        run=found[best][1],
        tflops={str(shape): speed for shape, (speed, _) in found.items()},
        bytes_per_s=2 * one.numel() / median_seconds(device, lambda: other.copy_(one)),
        matmul_tflops=2 * side**3 / median_seconds(device, lambda: a @ b) / 1e12,
    )


def _chain(device: Device, shape: ConvShape) -> Callable[[], object]:
    maps = (shape.batch, shape.channels, shape.size, shape.size)
    kernel = (shape.channels, shape.channels, shape.kernel, shape.kernel)
    images = _random(device, maps)
    spread = (shape.channels * shape.kernel**2) ** -0.5  # values neither grow nor fade
    weights = [_random(device, kernel) * spread for _ in range(shape.depth)]

    def run() -> Tensor:
        x = images
        with torch.inference_mode():
            for weight in weights:
                x = torch.conv2d(x, weight, padding=shape.kernel // 2)
        return x

    return run


def _random(device: Device, shape: Sequence[int]) -> Tensor:
    values = torch.randn(tuple(shape), device=device.where).to(device.half)
    return values.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Layer:
    """A convolution of a network, as often as it occurs.

    Attributes:
        first: Where it occurs first.
        count: How often.
        convolution: In words.
        ms: Of all of them, each timed by itself without its bias.
        operations: Of all of them.
        moved_bytes: Inputs, weights and outputs of all of them, once each.
    """

    first: str
    count: int
    convolution: str
    ms: float
    operations: int
    moved_bytes: int


def layers(device: Device, folded: nn.Module, images: Tensor) -> list[dict[str, Any]]:
    """Time every distinct convolution of a folded network in half precision by itself.

    Args:
        device: Where the network is.
        folded: In half precision, NHWC.
        images: What it computes, likewise.
    """
    seen: dict[tuple[Any, ...], tuple[str, nn.Conv2d, int]] = {}
    names = {module: name for name, module in folded.named_modules()}

    def note(conv: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)  # noqa: S101 (hooks are on these only)
        key = (tuple(inputs[0].shape), tuple(conv.weight.shape), conv.stride, conv.groups)
        first, kept, count = seen.get(key, (names[conv], conv, 0))
        seen[key] = (first, kept, count + 1)

    convolutions = [module for module in folded.modules() if isinstance(module, nn.Conv2d)]
    hooks = [conv.register_forward_hook(note) for conv in convolutions]
    with torch.inference_mode():
        folded(images)
    for hook in hooks:
        hook.remove()
    found = [
        _layer(device, first, conv, count, key[0]) for key, (first, conv, count) in seen.items()
    ]
    return [asdict(one) for one in sorted(found, key=lambda one: -one.ms)]


def _layer(
    device: Device, first: str, conv: nn.Conv2d, count: int, shape: tuple[int, ...]
) -> Layer:
    taken = _random(device, shape)

    def run() -> Tensor:
        with torch.inference_mode():
            return torch.conv2d(
                taken, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups
            )

    made = run()
    batch, channels, height, width = shape
    size = f"{batch}×{channels}×" + (f"{height}²" if height == width else f"{height}×{width}")
    kernel = "×".join(str(side) for side in conv.kernel_size)
    grouped = f" in {conv.groups} groups" if conv.groups > 1 else ""
    stride = f", stride {conv.stride[0]}" if conv.stride[0] > 1 else ""
    positions = made.shape[0] * made.shape[2] * made.shape[3]
    return Layer(
        first=first.removesuffix(".conv"),
        count=count,
        convolution=f"{kernel} of {size} to {conv.out_channels}{stride}{grouped}",
        ms=count * median_seconds(device, run) * 1e3,
        operations=count * 2 * conv.weight.numel() * positions,
        moved_bytes=count * 2 * (taken.numel() + conv.weight.numel() + made.numel()),
    )


def kernels(device: Device, run: Callable[[], object], most: int = 12) -> dict[str, Any]:
    """Return the kernels of a run as PyTorch's profiler sees them, by kind and the longest."""
    from torch.profiler import ProfilerActivity, profile

    for _ in range(WARM_UP):
        run()
    device.wait()
    activity = ProfilerActivity.CUDA if device.is_card else ProfilerActivity.CPU
    with profile(activities=[activity]) as taken:
        for _ in range(_ROUNDS):
            run()
        device.wait()
    field = "self_device_time_total" if device.is_card else "self_cpu_time_total"
    ms = {event.key: float(getattr(event, field)) / 1e3 / _ROUNDS for event in taken.key_averages()}
    kinds: dict[str, float] = {}
    for name, one in ms.items():
        kinds[_kind(name)] = kinds.get(_kind(name), 0.0) + one
    longest = sorted(ms, key=lambda name: -ms[name])[:most]
    return {
        "kinds": dict(sorted(kinds.items(), key=lambda pair: -pair[1])),
        "longest": [{"name": name, "kind": _kind(name), "ms": ms[name]} for name in longest],
    }


def _kind(name: str) -> str:
    small = name.lower()
    return next((kind for part, kind in _KINDS if part in small), "other")
