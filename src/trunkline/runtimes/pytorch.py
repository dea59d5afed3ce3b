"""PyTorch itself: the folded network, channels last, without gradients.

Everywhere where PyTorch is, with nothing to install or to compile. It uses the threads of the
process (``torch.set_num_threads``), which no single network can choose.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trunkline.backbones.backbone import Backbone
from trunkline.errors import RunnerError
from trunkline.runtimes.engine import Maps, Spec, in_one_line
from trunkline.runtimes.graphs import FromPixels, example_images, network_of

PROGRAM = "program.pt2"


class InBfloat16(nn.Module):
    """A backbone that computes in bfloat16, between images and maps in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.bfloat16()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images to the network's maps."""
        return [one.float() for one in self.network(images.bfloat16())]


def network_for(backbone: Backbone, spec: Spec) -> nn.Module:
    """Return the network that PyTorch's engines run, in the spec's precision."""
    network = network_of(backbone, preprocess=spec.preprocess)
    if spec.precision == "bf16":
        if isinstance(network, FromPixels):  # whose 8-bit values bfloat16 could not tell apart
            network.backbone = InBfloat16(network.backbone)
        else:
            network = InBfloat16(network)
    return network


def channels_last(network: nn.Module) -> nn.Module:
    """Lay out the weights as the fastest convolutions take them, which images need not follow."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def traced(backbone: Backbone, spec: Spec) -> torch.export.ExportedProgram:
    """Return the same as a program, for the spec's shape or for any."""
    axes = (0, 1, 2) if spec.preprocess else (0, 2, 3)
    free = dict.fromkeys(axes, torch.export.Dim.DYNAMIC) if spec.input_shape is None else None
    shape = spec.input_shape or (2, 64, 96)
    images = example_images(backbone, *shape, preprocess=spec.preprocess)
    with torch.no_grad():
        return torch.export.export(network_for(backbone, spec), (images,), dynamic_shapes=(free,))


class TorchEngine:
    """One network.

    Args:
        backbone: What the runner shall compute.
        spec: How.
    """

    name: ClassVar[str] = "torch"
    runs_code: ClassVar[Mapping[str, str]] = {
        PROGRAM: f"expressions in {PROGRAM} run as Python when PyTorch opens it"
    }

    def __init__(self, backbone: Backbone, spec: Spec) -> None:
        self._backbone, self._spec = backbone, spec
        self._network: Any = channels_last(network_for(backbone, spec))

    def run(self, images: NDArray[Any]) -> Maps:
        """Compute the maps; see ``Engine``."""
        return run_network(self._network, images)

    def save(self, folder: Path) -> None:
        """Write the network as a program that needs no trunkline to be run."""
        torch.export.save(traced(self._backbone, self._spec), Path(folder, PROGRAM))

    @classmethod
    def files(cls, _names: Collection[str], *, compiled: bool) -> tuple[str, ...]:
        """Return the files that ``load`` opens."""
        del compiled  # nothing is
        return (PROGRAM,)

    @classmethod
    def load(cls, files: Sequence[Path], _spec: Spec, *, compiled: bool, ours: bool) -> TorchEngine:
        """Open what ``save`` wrote."""
        del compiled, ours
        engine = cls.__new__(cls)
        try:
            engine._network = channels_last(torch.export.load(files[0]).module())
        except Exception as error:  # it raises nearly anything for a program of another version
            raise RunnerError(
                f"PyTorch {torch.__version__} cannot open {PROGRAM}: {in_one_line(error)}; "
                "deploy the backbone again."
            ) from error
        return engine


def run_network(network: Any, images: NDArray[Any]) -> Maps:
    """Run what takes and returns tensors on arrays."""
    with torch.inference_mode():
        maps = cast(list[Tensor], network(torch.from_numpy(images)))
        return [one.contiguous().numpy() for one in maps]
