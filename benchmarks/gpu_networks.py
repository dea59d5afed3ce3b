"""The ways to run a network on a card that benchmarks/gpu.py compares, each a row of WAYS.

All are built by hand from what PyTorch, timm and trunkline offer today; trunkline's ``deploy``
computes on the processor. All hold the same weights and return the maps at strides 4 to 32. Before
the images reach the clock they have the dtype and the layout that the way wants.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from gpu_device import Device, Maps
from torch import Tensor, nn

from trunkline import Backbone, create_backbone, fold
from trunkline.benchmarking.peers import build_peer, find_peer, give_weights

Shape = tuple[int, int]  # images, side
Cell = tuple[str, int, int]  # backbone, images, side
LEARNING_RATE = 1e-3
CACHE = "TORCHINDUCTOR_CACHE_DIR"
POOLED, STEP = "pooled", "step: "  # what is compiled beside the ways


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to run a network.

    Attributes:
        label: Its name on the page.
        library: ``"timm"`` or ``"trunkline"``.
        arithmetic: ``"fp32"``, ``"amp"`` (autocast around fp32) or ``"half"`` (all in 16 bits).
        nhwc: Whether channels come last in memory.
        folded: Whether batch norms are part of the convolutions.
        compiled: Whether ``torch.compile`` makes its kernels.
        frozen: Whether the compiler may count weights as constants, and fold norms by itself.
        graph: Whether it is a CUDA graph.
        only: Backbones that it is measured with; empty for all.
        shapes: Sizes that it is measured at; empty for all.
    """

    label: str
    library: str
    arithmetic: str
    nhwc: bool = False
    folded: bool = False
    compiled: bool = False
    frozen: bool = False
    graph: bool = False
    only: tuple[str, ...] = ()
    shapes: tuple[Shape, ...] = ()

    def takes_part(self, cell: Cell) -> bool:
        """Say whether it is measured in a cell."""
        name, *shape = cell
        return (not self.only or name in self.only) and (
            not self.shapes or tuple(shape) in self.shapes
        )


_BEST: dict[str, Any] = {"arithmetic": "half", "nhwc": True, "graph": True}
_MAIN: dict[str, Any] = {"shapes": ((1, 224), (128, 224))}
_ONE: dict[str, Any] = {"only": ("resnet50",), **_MAIN}
FP32, AMP = "timm fp32", "timm amp"  # what people run; ratios are to them
WAYS = (
    Way(label=FP32, library="timm", arithmetic="fp32"),
    Way(label=AMP, library="timm", arithmetic="amp"),
    Way(label="timm half NHWC graph", library="timm", **_BEST),
    Way(label="timm half NHWC compiled graph", library="timm", compiled=True, **_BEST),
    Way(label="trunkline amp", library="trunkline", arithmetic="amp"),
    Way(label="trunkline folded half NHWC graph", library="trunkline", folded=True, **_BEST),
    Way(
        label="trunkline folded half NHWC compiled graph",
        library="trunkline",
        folded=True,
        compiled=True,
        **_BEST,
    ),
    Way(
        label="trunkline half NHWC compiled graph",
        library="trunkline",
        compiled=True,
        **_BEST,
        **_MAIN,
    ),
    Way(
        label="timm half NCHW compiled graph",
        library="timm",
        compiled=True,
        **{**_BEST, "nhwc": False},
        **_ONE,
    ),
    Way(
        label="trunkline folded half NCHW compiled graph",
        library="trunkline",
        folded=True,
        compiled=True,
        **{**_BEST, "nhwc": False},
        **_ONE,
    ),
    Way(
        label="timm half NHWC frozen graph",
        library="timm",
        compiled=True,
        frozen=True,
        **_BEST,
        only=("resnet50",),
        shapes=((128, 224),),
    ),
)
_NHWC = next(way for way in WAYS if way.arithmetic == "half" and way.nhwc)


def seeded(name: str, device: Device, photos: Tensor) -> Backbone:
    """Build a backbone with random weights whose norms hold the statistics of some photos.

    With norms that change nothing, values grow from block to block as in no trained network, and
    half precision would be judged by that.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = create_backbone(name).to(device.where)
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        backbone.train()(photos.to(device.where))
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    return backbone.eval()


def timm_network(backbone: Backbone) -> nn.Module:
    """Return timm's network with the weights of the backbone, on its device."""
    peer = find_peer("timm", backbone)
    network = build_peer(peer).to(next(backbone.parameters()).device)
    give_weights(peer, network, backbone)
    return network


def has_timm(backbone: Backbone) -> str:
    """Return why timm's network cannot take part, nothing where it can."""
    try:
        find_peer("timm", backbone)
    except Exception as error:  # whatever it says is what the page says
        return str(error)
    return ""


def compiled(device: Device, network: nn.Module, *, frozen: bool = False) -> nn.Module:
    """Compile for one shape; where the processor stands in, only see that it can be traced."""
    backend = "inductor" if device.is_card else "eager"
    options: dict[str, Any] = {"options": {"freezing": True}} if frozen and device.is_card else {}
    compile_ = partial(torch.compile, dynamic=False, fullgraph=True, backend=backend, **options)
    return cast(nn.Module, compile_(network))


def network_of(way: Way, device: Device, backbone: Backbone) -> nn.Module:
    """Return the network of a way, a copy of its own."""
    if way.library == "timm":
        network = timm_network(backbone).eval()
    else:
        network = fold(backbone) if way.folded else copy.deepcopy(backbone)
    network.requires_grad_(False)
    if way.arithmetic == "half":
        network.to(device.half)
    if way.nhwc:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return compiled(device, network, frozen=way.frozen) if way.compiled else network


def images_of(way: Way, device: Device, images: Tensor) -> Tensor:
    """Return the images as a way takes them."""
    dtype = device.half if way.arithmetic == "half" else torch.float32
    layout = torch.channels_last if way.nhwc else torch.contiguous_format
    return images.to(device.where, dtype).contiguous(memory_format=layout)


def prepare(way: Way, device: Device, backbone: Backbone, images: Tensor) -> Callable[[], Maps]:
    """Return what computes the maps of these images once."""
    network = network_of(way, device, backbone)
    taken = images_of(way, device, images)
    mixed = torch.autocast(device.where.type, device.half, enabled=way.arithmetic == "amp")

    def run(taken: Tensor) -> Maps:
        # The compiler's own graphs are made without inference mode, as its manual says.
        with torch.no_grad() if way.compiled else torch.inference_mode(), mixed:
            return list(network(taken))

    called = device.captured(run, taken) if way.graph else run
    return lambda: called(taken)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One way to train: forward, backward and a step of SGD in bf16 autocast."""

    label: str
    library: str
    nhwc: bool = False
    compiled: bool = False


STEPS = (
    Step(label=AMP, library="timm"),
    Step(label="timm amp NHWC compiled", library="timm", nhwc=True, compiled=True),
    Step(label="trunkline amp NHWC", library="trunkline", nhwc=True),
    Step(label="trunkline amp NHWC compiled", library="trunkline", nhwc=True, compiled=True),
)


def prepare_step(
    step: Step, device: Device, backbone: Backbone, images: Tensor
) -> Callable[[], Tensor]:
    """Return what does one training step and returns its loss."""
    network = timm_network(backbone) if step.library == "timm" else copy.deepcopy(backbone)
    network.train()
    layout = torch.channels_last if step.nhwc else torch.contiguous_format
    network.to(memory_format=layout)  # type: ignore[call-overload]
    taken = images.to(device.where).contiguous(memory_format=layout)
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, momentum=0.9)
    called = compiled(device, network) if step.compiled else network

    def run() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.where.type, torch.bfloat16):
            loss = torch.stack([maps.float().square().mean() for maps in called(taken)]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return run


class Pooled(nn.Module):
    """The mean of every map, side by side."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(N, 3, H, W)`` to ``(N, sum of channels)`` in float32."""
        return torch.cat([maps.float().mean((2, 3)) for maps in self.network(images)], 1)


def pooled_network(device: Device, backbone: Backbone) -> nn.Module:
    """Return the fastest network by hand, folded, half, NHWC and compiled, with pooling."""
    network = fold(backbone).to(device.half)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return compiled(device, Pooled(network).eval())


def warm(device: Device, jobs: Sequence[tuple[str, Cell]]) -> list[str]:
    """Compile what the measuring process will compile, into the cache on disk.

    Returns:
        What could not be compiled, and why; whoever measures it will say so too.
    """
    failed = []
    for what, cell in jobs:
        try:
            _compile(device, what, cell)
        except Exception as error:  # the other jobs are worth doing
            failed.append(f"{what}, {cell}: {' '.join(str(error).split())[:200]}")
        device.release()
    return failed


def _compile(device: Device, what: str, cell: Cell) -> None:
    name, batch, side = cell
    ways, steps = {way.label: way for way in WAYS}, {step.label: step for step in STEPS}
    backbone = seeded(name, device, torch.randn(2, 3, 224, 224))
    images = torch.randn(batch, 3, side, side)
    if what in ways:
        taken = images_of(ways[what], device, images)
        with torch.no_grad():
            network_of(ways[what], device, backbone)(taken)
    elif what == POOLED:
        with torch.no_grad():
            pooled_network(device, backbone)(images_of(_NHWC, device, images))
    else:
        prepare_step(steps[what.removeprefix(STEP)], device, backbone, images)()


def warm_in_parallel(script: Path, flags: Sequence[str], workers: int, seconds: float) -> int:
    """Compile in several processes; return how many ended well.

    They share the compiler's cache with this one, which ``CACHE`` in the environment names. A
    compiler's choice among tilings is the least of many runs, and a card computes for one
    process at a time, so that the others do not disturb it.

    Args:
        script: Called with ``--warm NUMBER/WORKERS``.
        flags: What else it is told.
        workers: How many processes.
        seconds: After these they are ended; the rest is compiled when it is measured.
    """
    until = time.monotonic() + seconds
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, str(script), *flags, "--warm", f"{number}/{workers}"],
            env=environment,
        )
        for number in range(workers)
    ]
    good = 0
    for one in running:
        try:
            good += one.wait(max(0.1, until - time.monotonic())) == 0
        except subprocess.TimeoutExpired:
            one.kill()
            one.wait()
    return good
