"""What several test files share: tiny networks of every family, and the recorded facts."""

from __future__ import annotations

import gc
import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trunkline import Backbone, DLANet, RegNet, ResNet
from trunkline.backbones.dla import DLAConfig
from trunkline.backbones.regnet import RegNetConfig
from trunkline.backbones.resnet import ResNetConfig

torch.set_num_threads(1)  # pytest-xdist gives every core a process already
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as shells start what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Listing the comparisons with peers builds networks; without peers none of them can run.
collect_ignore = [] if find_spec("timm") else ["parity"]

Config = ResNetConfig | DLAConfig | RegNetConfig


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Give every norm statistics and an affine map that a wrong one would not reproduce."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            is_norm = hasattr(module, "running_mean") or isinstance(module, nn.GroupNorm)
            if not is_norm:
                continue
            for name, low, high in (
                ("weight", 0.5, 1.5),
                ("bias", -0.5, 0.5),
                ("running_mean", -0.5, 0.5),
                ("running_var", 0.5, 2.0),
            ):
                tensor = getattr(module, name, None)
                if tensor is not None:
                    drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                    tensor.copy_(low + (high - low) * drawn)


@dataclass(frozen=True)
class Family:
    """One way to build a stem and four stages, at a size that runs in milliseconds."""

    name: str
    config: Config

    def create(self, **options: Any) -> Backbone:
        """Build it as a user does, with all four stages unless told otherwise."""
        options.setdefault("return_idx", (0, 1, 2, 3))
        if isinstance(self.config, ResNetConfig):
            return ResNet(self.config, **options)
        if isinstance(self.config, DLAConfig):
            return DLANet(self.config, return_index=options.pop("return_idx"), **options)
        return RegNet(self.config, **options)

    def build(self, *, seed: int = 0, **options: Any) -> Backbone:
        """Build it with seeded weights and norms that are not the identity."""
        torch.manual_seed(seed)
        backbone = self.create(**options)
        if not next(iter(backbone.parameters())).is_meta:
            randomize(backbone, seed)
        return backbone


def _regnet(*, squeeze: bool) -> RegNetConfig:
    # Quantized widths 8, 16, 32, 64; groups of 6 move them to 6, 18, 30, 66.
    return RegNetConfig(
        depth=8,
        initial_width=8,
        width_slope=6.0,
        width_multiplier=2.0,
        group_width=6,
        squeeze=squeeze,
        stem_width=8,
    )


FAMILIES = (
    Family("resnet-basic", ResNetConfig(depths=(1, 2, 1, 1), bottleneck=False, width=8)),
    Family(
        "resnet-bottleneck",
        ResNetConfig(depths=(2, 1, 2, 1), bottleneck=True, width=8, stem_widths=(8,)),
    ),
    Family(
        "resnet-caffe",
        ResNetConfig(depths=(1, 1, 2, 1), bottleneck=True, width=8, stride_in_1x1=True),
    ),
    Family(
        "resnet-pooled",
        ResNetConfig(
            depths=(1, 1, 2, 1),
            bottleneck=False,
            width=8,
            stem_widths=(4, 4, 8),
            pooled_shortcut=True,
            project_first=True,
        ),
    ),
    Family(
        "resnet-grouped",
        ResNetConfig(
            depths=(1, 2, 1, 1),
            bottleneck=True,
            width=8,
            groups=4,
            width_per_group=16,
            stem_widths=(4, 4, 8),
            pooled_shortcut=True,
        ),
    ),
    Family(
        "dla-basic",
        DLAConfig(depths=(1, 2, 3, 1), channels=(8, 16, 16, 24), bottleneck=False, stem_channels=8),
    ),
    Family(
        "dla-bottleneck",
        DLAConfig(depths=(1, 2, 2, 1), channels=(8, 8, 16, 24), bottleneck=True, stem_channels=8),
    ),
    Family(
        "dla-residual",
        DLAConfig(
            depths=(2, 1, 3, 1),
            channels=(32, 32, 64, 64),
            bottleneck=True,
            cardinality=4,
            residual_root=True,
            stem_channels=8,
        ),
    ),
    Family("regnet-x", _regnet(squeeze=False)),
    Family("regnet-y", _regnet(squeeze=True)),
)


def pytest_collection_finish() -> None:
    """Spare the collector what lives to the end: PyTorch, the engines and thousands of tests.

    Walking through them again and again took a tenth of the time of tracing and quantizing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    """Every family in turn."""
    chosen: Family = request.param
    return chosen


@pytest.fixture(
    params=[f for f in FAMILIES if f.name in ("resnet-pooled", "dla-basic", "regnet-y")],
    ids=lambda family: family.name,
)
def one_of_each(request: pytest.FixtureRequest) -> Family:
    """One network of each family in turn, for what is written once for all of them."""
    chosen: Family = request.param
    return chosen


@pytest.fixture(scope="session")
def families() -> dict[str, Family]:
    """All tiny networks by name."""
    return {family.name: family for family in FAMILIES}


@pytest.fixture
def randomizer() -> Callable[[nn.Module], None]:
    """``randomize``, for networks that a test builds itself."""
    return randomize


@pytest.fixture(scope="session")
def facts() -> dict[str, Any]:
    """What is recorded of every variant and of every upstream name."""
    path = Path(__file__).parent / "data" / "architectures.json"
    recorded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return recorded


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same numbers for a test alone, among others, and on any worker.

    Only of devices in use: ``torch.manual_seed`` keeps a stack trace for each that may yet start.
    """
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(0)
