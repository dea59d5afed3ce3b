"""PyTorch itself: the folded network, channels last, without gradients.

Everywhere where PyTorch is, with nothing to install or to compile. It uses the threads of the
process (``torch.set_num_threads``), which no single network can choose.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trunkline.backbones.backbone import Backbone
from trunkline.backbones.options import CUSTOM
from trunkline.errors import DeploymentError, FidelityError, RunnerError
from trunkline.runtimes.engine import Maps, Spec, in_one_line
from trunkline.runtimes.fidelity import check_fidelity, compare_maps
from trunkline.runtimes.graphs import example_images, network_of
from trunkline.runtimes.network_file import NETWORK, in_precision, read_network, write_network
from trunkline.runtimes.programs import exported, open_program, write_program

PROGRAM = "program.pt2"

_log = logging.getLogger(__name__)

_PROBES = ((1, 1, 1), (2, 33, 65))  # (N, H, W) that a saved network is compared at
_thread = threading.local()


def network_for(backbone: Backbone, spec: Spec) -> nn.Module:
    """Return the network that PyTorch's engines run, in the spec's precision."""
    return in_precision(network_of(backbone, preprocess=spec.preprocess), spec)


def channels_last(network: nn.Module) -> nn.Module:
    """Lay out the weights as the fastest convolutions take them, which images need not follow."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def traced(backbone: Backbone, spec: Spec) -> torch.export.ExportedProgram:
    """Return the same as a program, for the spec's shape or for any."""
    axes = (0, 1, 2) if spec.preprocess else (0, 2, 3)
    free = dict.fromkeys(axes, torch.export.Dim.DYNAMIC) if spec.input_shape is None else {}
    shape = spec.input_shape or (2, 64, 96)
    images = example_images(backbone, *shape, preprocess=spec.preprocess)
    return exported(network_for(backbone, spec), images, free)


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
        """Write the network as data; one that our code does not build, as a program.

        Raises:
            DeploymentError: The program does not compute what the network does.
        """
        described = Path(folder, NETWORK)
        if self._is_kept_as_data(described):
            return
        described.unlink(missing_ok=True)
        _log.info("the network has parts of its own, and is saved as a program")
        write_program(traced(self._backbone, self._spec), Path(folder, PROGRAM))
        self._check_again(Path(folder, PROGRAM))

    def _is_kept_as_data(self, file: Path) -> bool:
        """Write the network, and say whether what comes back is the same."""
        if CUSTOM in (self._backbone.options.norm, self._backbone.options.act):
            return False
        try:
            write_network(self._network, self._backbone, file)
            again = read_network(file, self._spec)
            if str(again) != str(self._network):
                return False
            self._compare(channels_last(again))
        except (TypeError, RunnerError, FidelityError):  # other families, parts that were exchanged
            return False
        return True

    def _check_again(self, file: Path) -> None:
        try:
            self._compare(channels_last(open_program(file)))
        except (AssertionError, RuntimeError, FidelityError) as error:
            raise DeploymentError(
                f"PyTorch {torch.__version__} cannot save this network: its program fails or "
                f"differs ({in_one_line(error)}); use layers that trunkline names, a fixed "
                "input_shape, or a later PyTorch."
            ) from error

    def _compare(self, again: nn.Module) -> None:
        """Make sure that two networks give the same maps, at the smallest sizes too."""
        spec = self._spec
        for shape in _PROBES if spec.input_shape is None else (spec.input_shape,):
            images = example_images(self._backbone, *shape, preprocess=spec.preprocess).numpy()
            try:
                wanted = run_network(self._network, images)
            except ValueError:  # of a norm over one number, which PyTorch refuses
                continue
            report = compare_maps(spec.returned_levels, wanted, run_network(again, images))
            check_fidelity(report, spec.precision, "the saved network")

    @classmethod
    def files(cls, names: Collection[str], *, compiled: bool) -> tuple[str, ...]:
        """Return the files that ``load`` opens."""
        del compiled  # nothing is
        return (NETWORK,) if NETWORK in names else (PROGRAM,)

    @classmethod
    def load(cls, files: Sequence[Path], spec: Spec, *, compiled: bool, ours: bool) -> TorchEngine:
        """Open what ``save`` wrote."""
        del compiled, ours
        engine = cls.__new__(cls)
        (file,) = files
        if file.name == NETWORK:
            engine._network = channels_last(read_network(file, spec))
            return engine
        try:
            engine._network = channels_last(open_program(file))
        except Exception as error:  # it raises nearly anything for a program of another version
            raise RunnerError(
                f"PyTorch {torch.__version__} cannot open {PROGRAM}: {in_one_line(error)}; "
                "deploy the backbone again."
            ) from error
        return engine


def run_network(network: Any, images: NDArray[Any]) -> Maps:
    """Run what takes and returns tensors on arrays.

    oneDNN, which computes, refuses all further work of a thread in which it once got no memory for
    its own code. So after an error another thread works for the one that met it.
    """
    substitute: ThreadPoolExecutor | None = getattr(_thread, "substitute", None)
    try:
        if substitute is None:
            return _run(network, images)
        return substitute.submit(_run, network, images).result()
    except RuntimeError:
        _thread.substitute = ThreadPoolExecutor(1, thread_name_prefix="trunkline-torch")
        raise


def _run(network: Any, images: NDArray[Any]) -> Maps:
    with torch.inference_mode():
        maps = cast(list[Tensor], network(torch.from_numpy(images)))
        return [one.contiguous().numpy() for one in maps]
