"""Peak resident memory of a process that makes a network ready and runs it once.

Memory belongs to a process, so every figure is one of its own: an interpreter that loads a saved
runner, or builds a network as a library's user would, and computes the maps of one batch. Nothing
is subtracted: libraries count. Run as a program, this file is that process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trunkline.errors import DeploymentError

_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


def peak_memory(job: Mapping[str, Any]) -> int:
    """Return the peak resident memory of a process that does ``job``, in bytes.

    Args:
        job: ``shape`` (N, C, H, W), ``threads``, and one of ``saved`` (the folder of a saved
            runner), ``variant`` (trunkline's backbone, eagerly) or ``peer`` (the fields of a
            ``Peer``).

    Raises:
        DeploymentError: The process failed; its last line is in the text.
    """
    command = [sys.executable, "-m", "trunkline.benchmarking.memory", json.dumps(dict(job))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise DeploymentError(
            f"the process that measures memory failed: {said[-1]}; "
            "leave the measurement out with --no-memory to see the other figures."
        )
    return int(done.stdout.strip().splitlines()[-1])


def resident_peak() -> int:
    """Return the peak resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # The kernel's own high-water mark of this program. getrusage would hand down that of the
        # process that started it.
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        mark = next((line for line in lines if line.startswith("VmHWM:")), None)
        if mark is not None:
            return int(mark.split()[1]) * 1024
    if sys.platform == "win32":
        from trunkline.runtimes.optional import require

        psutil = require("psutil", "measuring memory")
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES


def _ready(job: Mapping[str, Any]) -> Callable[[Any], object]:
    """Load or build what the job asks for; what it does not need is not imported."""
    if "saved" in job:
        from trunkline.runtimes.saving import load_runner

        return load_runner(job["saved"], trust=True)  # whoever started this process wrote it
    import torch

    torch.set_num_threads(job["threads"])
    if "peer" in job:
        from trunkline.benchmarking.peers import Peer, build_peer, maps_of

        network = build_peer(Peer(**job["peer"]))
        return lambda images: maps_of(network, torch.from_numpy(images))
    from trunkline.weights.opening import open_backbone

    backbone = open_backbone(job["variant"]).eval()

    def run(images: Any) -> object:
        with torch.inference_mode():
            return backbone(torch.from_numpy(images))

    return run


def main() -> None:
    """Do the job on the command line and write the peak, in bytes."""
    job = json.loads(sys.argv[1])
    images = np.zeros(job["shape"], np.float32)
    run = _ready(job)
    run(images)
    sys.stdout.write(f"{resident_peak()}\n")


if __name__ == "__main__":
    main()
