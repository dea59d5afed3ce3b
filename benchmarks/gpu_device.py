"""Where benchmarks/gpu.py measures: a card with its events and graphs, or the processor instead.

The processor stands in so that everything but speed can be tried without a card: there are no
graphs then, a monotonic clock replaces the events, and nothing is compiled.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import math
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

import trunkline
from trunkline.backbones.levels import Level
from trunkline.runtimes.fidelity import LevelFidelity
from trunkline.runtimes.processor import processor

Maps = Sequence[Tensor]
TURN_S = 0.004  # a turn runs so often that it takes about this long …
MOST_REPEATS = 20  # … and at most this often
WARM_UP = 3  # runs before anything is timed or captured: kernels are made and chosen
LIBRARIES = ("torch", "triton", "timm", "torchvision", "numpy", "pillow")
_CARD = ("name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw")


@dataclass(frozen=True, eq=False)
class Replay:
    """A recorded run, called with its images.

    Attributes:
        graph: What was recorded.
        held: The images that it reads.
        maps: What it writes.
        run: What was recorded; a graph knows weights by their addresses and keeps none alive.
    """

    graph: torch.cuda.CUDAGraph
    held: Tensor
    maps: Maps
    run: Callable[[Tensor], Maps]

    def __call__(self, images: Tensor) -> Maps:
        """Copy the images to where the graph reads them, and run it."""
        self.held.copy_(images)
        self.graph.replay()
        return self.maps


@dataclass(frozen=True)
class Device:
    """What a benchmark runs on.

    Attributes:
        where: The device of the tensors.
    """

    where: torch.device

    @property
    def is_card(self) -> bool:
        """Whether there are events, graphs and a compiler for it."""
        return self.where.type == "cuda"

    @property
    def half(self) -> torch.dtype:
        """Sixteen bits that the device computes with; processors have bf16 at best."""
        return torch.float16 if self.is_card else torch.bfloat16

    def wait(self) -> None:
        """Return once all that was asked of the device is done."""
        if self.is_card:
            torch.cuda.synchronize(self.where)

    def seconds(self, run: Callable[[], object], repeats: int) -> float:
        """Time one run, as the mean of some in a row, by the device's own clock."""
        self.wait()
        if not self.is_card:
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            return (time.perf_counter() - start) / repeats
        first, last = (_made(torch.cuda.Event, enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(repeats):
            run()
        last.record()
        self.wait()
        return float(first.elapsed_time(last)) / 1e3 / repeats

    def captured(self, run: Callable[[Tensor], Maps], images: Tensor) -> Callable[[Tensor], Maps]:
        """Record a run as a CUDA graph; every replay first copies its images into the graph's.

        The maps that come back are the graph's own: the next replay overwrites them. No other
        thread may use the card meanwhile.
        """
        if not self.is_card:
            return run
        held = images.clone()
        aside = own_stream(self.where)
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                run(held)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            maps = run(held)

        return Replay(graph, held, maps, run)

    def clocks(self) -> dict[str, str]:
        """Return what the driver says of the card at this moment; nothing without a card."""
        tool = shutil.which("nvidia-smi")
        if not self.is_card or tool is None:
            return {}
        facts = torch.cuda.get_device_properties(self.where)
        command = [tool, f"--query-gpu={','.join(_CARD)}", "--format=csv,noheader", "-i"]
        told = subprocess.run(
            [*command, f"GPU-{facts.uuid}"], capture_output=True, text=True, check=False
        )
        values = [value.strip() for value in told.stdout.strip().split(",")]
        return dict(zip(_CARD, values, strict=True)) if len(values) == len(_CARD) else {}

    def release(self) -> None:
        """Give back what the last contestants held: graphs, maps, compiled code."""
        torch.compiler.reset()
        gc.collect()
        if self.is_card:
            torch.cuda.empty_cache()

    def setting(self) -> dict[str, Any]:
        """Return where and with what a run was made."""
        told = self.clocks()
        if self.is_card:
            facts = torch.cuda.get_device_properties(self.where)
            told |= {
                "compute capability": f"{facts.major}.{facts.minor}",
                "memory": f"{facts.total_memory / 2**30:.0f} GiB",
                "CUDA": str(torch.version.cuda),
                "cuDNN": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
            }
        return {
            "date": datetime.date.today().isoformat(),
            "device": told.pop("name", str(self.where)),
            **told,
            "processor": processor().describe(),
            "Python": platform.python_version(),
            "versions": {"trunkline": trunkline.__version__, **_versions()},
        }


def own_stream(where: torch.device) -> torch.cuda.Stream:
    """Return a new stream of a card."""
    stream: torch.cuda.Stream = _made(torch.cuda.Stream, where)
    return stream


def _made(kind: Any, *args: Any, **options: Any) -> Any:
    return kind(*args, **options)  # PyTorch's constructors have no types


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):  # what is not there took no part
            found[name] = version(name)
    return found


@contextlib.contextmanager
def measuring_flags() -> Iterator[None]:
    """Let fp32 be fp32 and cuDNN look for its fastest kernels, and restore the caller's choice."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark)
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = False, False, True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


def take_turns(
    device: Device, runs: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Time every run once a round, in turns: A B C, C B A, and so on.

    A turn begins with a run outside the clock, so that clocks are up and caches hold what they
    hold for somebody who calls again and again. Short runs are repeated within a turn.

    Returns:
        Seconds of one run, by name, one per round.
    """
    repeats = {}
    for name, run in runs.items():
        for _ in range(WARM_UP):
            run()
        repeats[name] = min(MOST_REPEATS, math.ceil(TURN_S / device.seconds(run, 1)))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            runs[name]()
            seconds[name].append(device.seconds(runs[name], repeats[name]))
    return seconds


def compare(levels: Sequence[Level], wanted: Maps, got: Maps) -> list[LevelFidelity]:
    """Compare maps level by level, in float64, on the device where they are."""
    found = []
    for level, one, other in zip(levels, wanted, got, strict=True):
        a, b = one.double().flatten(), other.double().flatten()
        norms = float(a.norm() * b.norm())
        found.append(
            LevelFidelity(
                level=level.name,
                stride=level.stride,
                max_relative=float((a - b).abs().max() / a.abs().max()),
                cosine=float(a @ b) / norms,
            )
        )
    return found
