"""What the processor of this machine can do, and which precisions make sense on it.

Engines differ in what they do about a precision that the processor lacks: OpenVINO computes in
fp32 without a word, PyTorch emulates, ONNX Runtime refuses. Here that is said beforehand. No
PyTorch is needed: a deployed runner asks as well.
"""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from trunkline.errors import ConfigError, PrecisionError
from trunkline.runtimes.fidelity import PRECISIONS

# Engine → the precisions that it offers; whether the processor has them is another question.
OFFERED = {
    "torch": ("fp32", "bf16"),
    "inductor": ("fp32", "bf16"),
    "onnxruntime": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
}
_NOT_OFFERED = {
    "bf16": "ONNX Runtime has no bf16 convolutions for processors",
    "int8": "int8 is not offered by the engines of PyTorch",
}

# Names as Linux spells them. On Arm asimd is the vector unit, asimddp and i8mm are for int8.
BF16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")
INT8_FLAGS = ("amx_int8", "asimddp", "avx512_vnni", "avx_vnni", "i8mm")
FLAGS = tuple(sorted((*BF16_FLAGS, *INT8_FLAGS, "asimd", "avx2", "avx512f", "neon")))

# The same on macOS, as `sysctl` spells them.
_SYSCTL_FLAGS = {
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.avx512vnni": "avx512_vnni",
}


class EmulationWarning(UserWarning):
    """A precision that works here, but for which the processor has no instructions."""


@dataclass(frozen=True)
class Processor:
    """What was found out about the processor.

    Attributes:
        name: As the system tells it, for people.
        cores: That this process may use, at least one: affinity and the quota of its container.
        flags: Those of ``FLAGS`` that it has, sorted; empty where the system does not tell.
    """

    name: str
    cores: int
    flags: tuple[str, ...]

    @property
    def has_bf16(self) -> bool:
        """Whether it multiplies bf16 numbers by itself."""
        return not set(BF16_FLAGS).isdisjoint(self.flags)

    @property
    def has_int8_dot(self) -> bool:
        """Whether it multiplies and adds int8 numbers in one instruction."""
        return not set(INT8_FLAGS).isdisjoint(self.flags)

    def describe(self) -> str:
        """Return one line for people: name, cores and flags."""
        known = ", ".join(self.flags) or "no instruction set that is known here"
        return f"{self.name} ({self.cores} {'core' if self.cores == 1 else 'cores'}; {known})"


def processor() -> Processor:
    """Find out about the processor of this machine.

    Returns:
        What Linux and macOS tell. Elsewhere (Windows) only the name and the cores are known, and
        the processor counts as one that has neither bf16 nor int8 dot products.
    """
    name, flags = "", _known(())
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        name, flags = read_cpuinfo(cpuinfo.read_text(encoding="utf-8", errors="replace"))
    elif sys.platform == "darwin":
        name, flags = read_sysctl(_sysctl())
    return Processor(name or platform.processor() or platform.machine(), _cores(), flags)


def read_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the name and the known flags that a Linux ``/proc/cpuinfo`` gives.

    Of several processors only what all of them have counts, since threads move between them. On
    Arm there is no name.
    """
    name = re.search(r"^model name\s*:[ \t]*(.*\S)", text, re.MULTILINE)
    lists = re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    common = set.intersection(*(set(listed.split()) for listed in lists)) if lists else set()
    return name[1] if name else "", _known(common)


def read_sysctl(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the name and the known flags that macOS' ``sysctl`` prints."""
    values = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    found = {flag for key, flag in _SYSCTL_FLAGS.items() if values.get(key, "").strip() == "1"}
    return values.get("machdep.cpu.brand_string", "").strip(), _known(found)


def check_precision(
    precision: str, runtime: str, processor: Processor, *, quietly: bool = False
) -> None:
    """Refuse a precision that an engine cannot give here, and warn where it gains nothing.

    Args:
        precision: One of ``PRECISIONS``.
        runtime: One of the keys of ``OFFERED``.
        processor: Where it is to run.
        quietly: Only refuse.

    Raises:
        ConfigError: An unknown precision or engine.
        PrecisionError: The engine does not offer it, or not on this processor.

    Warns:
        EmulationWarning: It works, without instructions of the processor for it.
    """
    for what, given, allowed in (
        ("precision", precision, PRECISIONS),
        ("runtime", runtime, tuple(OFFERED)),
    ):
        if given not in allowed:
            raise ConfigError(f"{what}={given!r} is unknown; use one of {', '.join(allowed)}.")
    given = f"precision={precision!r} on {runtime}"
    if precision not in OFFERED[runtime]:
        others = [repr(name) for name, offered in OFFERED.items() if precision in offered]
        raise PrecisionError(
            f"{given}: {_NOT_OFFERED[precision]}; use precision='fp32', or "
            f"runtime={' or '.join(others)}."
        )
    if precision == "bf16" and not processor.has_bf16:
        lacks = f"{processor.describe()} has no bf16 arithmetic ({', '.join(BF16_FLAGS)})"
        if runtime == "openvino":
            raise PrecisionError(
                f"{given}: {lacks}, and OpenVINO would compute in fp32 without saying so; "
                "use precision='fp32'."
            )
        _warn(
            quietly,
            f"{given}: {lacks}, so PyTorch emulates it, slower than fp32; the maps are those of "
            "bf16. Use precision='fp32' unless you rehearse for another machine.",
        )
    if precision == "int8" and not processor.has_int8_dot:
        _warn(
            quietly,
            f"{given}: {processor.describe()} has no int8 dot products ({', '.join(INT8_FLAGS)}), "
            "so int8 gains less than elsewhere, see docs/precision.md; "
            "measure both, and use precision='fp32' where it is as fast.",
        )


def _warn(quietly: bool, text: str) -> None:
    # The line to show is that of who called `deploy`: _warn, check_precision, deploy, the caller.
    if not quietly:
        warnings.warn(text, EmulationWarning, stacklevel=4)


def _known(found: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(FLAGS).intersection(found)))


def _sysctl() -> str:
    keys = ("machdep.cpu.brand_string", *_SYSCTL_FLAGS)
    # -i: keys that this kind of Mac lacks are left out, and are no error.
    command = ["/usr/sbin/sysctl", "-i", *keys]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603


def _cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    groups = Path("/proc/self/cgroup")
    if not groups.exists():
        return allowed
    quota = container_quota(groups.read_text(encoding="utf-8"), Path("/sys/fs/cgroup"))
    # Rounded up: of 1.5 cores two threads get all, one thread gets 1.
    return math.ceil(min(allowed, quota))


def container_quota(groups: str, root: Path) -> float:
    """Return how many cores' time the control groups of a process grant; infinity for no limit.

    Args:
        groups: Text of ``/proc/self/cgroup``, lines ``number:controllers:path``.
        root: Where control groups are mounted, ``/sys/fs/cgroup``.
    """
    return min((math.inf, *map(_quota, control_groups(groups, root, "cpu"))))


def control_groups(groups: str, root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the control groups that a process is in, from the inside outwards.

    Args:
        groups: Text of ``/proc/self/cgroup``, lines ``number:controllers:path``.
        root: Where control groups are mounted, ``/sys/fs/cgroup``.
        controller: "cpu" or "memory". Which of the files of either version are there is to be
            looked at.
    """
    for line in groups.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":  # version 2: one tree for all controllers
            mounted = root
        elif controller in controllers.split(","):  # version 1: a tree of its own
            mounted = root / controllers
        else:
            continue
        # Inside a container the path may be the host's, and the files are at the top.
        inner = mounted / path.lstrip("/")
        yield from (folder for folder in (inner, *inner.parents) if _within(folder, mounted))


def _within(folder: Path, mounted: Path) -> bool:
    return folder == mounted or mounted in folder.parents


def _quota(folder: Path) -> float:
    """Return the limit that one control group sets, in cores."""
    if (folder / "cpu.max").is_file():
        quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        return math.inf if quota == "max" else int(quota) / int(period)
    names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    if all((folder / name).is_file() for name in names):
        limit, each = (int((folder / name).read_text(encoding="ascii")) for name in names)
        return math.inf if limit < 0 else limit / each
    return math.inf
