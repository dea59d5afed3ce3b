"""How much memory a network needs for an image, found out with a small one.

Linux ends a process that uses more than there is, and OpenVINO that is refused memory may break or
return what it had before. So an image is not even tried if its need is not there. What a network
holds at its peak grows with the pixels, by 100 bytes each (regnet-x-002) to 550 (regnet-y-080 on
OpenVINO), whatever their number; engines keep it for the next image, or give it back.
"""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.backbones.levels import Level

_FLOAT = 4
_MOST = 6  # times the bytes of all maps together: no network of ours needs more
_USUAL = 4  # times, where nothing can be measured
_SPARE = 1.5  # ONNX Runtime takes memory in larger and larger pieces
_PROBE_PIXELS = 1 << 21

_STATM, _STATUS = Path("/proc/self/statm"), Path("/proc/self/status")
_CLEAR, _CLEAR_PEAK = Path("/proc/self/clear_refs"), "5"


def black_photos(*shape: int) -> NDArray[Any]:
    """Return black pixels (N, H, W, 3) uint8 of a shape (N, H, W)."""
    return np.zeros((*shape, 3), np.uint8)


class Needs:
    """What one network needs, in a process of Linux.

    Args:
        compute: What is called with pixels (1, H, W, C).
        levels: All maps that the network has.
        empty: Makes such pixels.
    """

    def __init__(
        self,
        compute: Callable[[NDArray[Any]], Any],
        levels: Sequence[Level],
        empty: Callable[..., NDArray[Any]] = black_photos,
    ) -> None:
        self._compute = compute
        self._empty = empty
        pixel = empty(1, 1, 1)  # bytes of one, as it is and as the network takes it
        taken = pixel.nbytes + _FLOAT * pixel.size
        self._least = taken + sum(_FLOAT * one.channels / one.stride**2 for one in levels)
        self._before = 0  # bytes of this process when it was measured
        self._per_pixel: float | None = None

    def of(self, height: int, width: int, free: int) -> int:
        """Return how many bytes an image needs beyond what the process has, or 0 for few.

        Args:
            height: Of the image.
            width: Of the image.
            free: Bytes that there are. A need of less than half of them is not looked at.
        """
        pixels = height * width
        if pixels <= self.harmless(free):
            return 0
        if self._per_pixel is None:
            self._per_pixel = self._measured(free)
        return max(0, self._before + int(self._per_pixel * pixels) - _resident())

    def harmless(self, free: int) -> int:
        """Return how many pixels surely need less than half of what is free."""
        return int(free / 2 / (_MOST * self._least))

    def _measured(self, free: int) -> float:
        """Return the bytes that a pixel needs, some to spare."""
        _give_back()
        self._before = _resident()
        side = max(1, math.isqrt(min(_PROBE_PIXELS, self.harmless(free))))
        try:
            _CLEAR.write_text(_CLEAR_PEAK, encoding="ascii")
        except OSError:  # not every container lets a process do that
            return _USUAL * self._least
        self._compute(self._empty(1, side, side))
        return _SPARE * max(self._least, (_peak() - self._before) / side**2)


def _resident() -> int:
    """Return the bytes of memory that this process holds."""
    return int(_STATM.read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE


def _peak() -> int:
    """Return the most that it has held since the peak was cleared."""
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    (line,) = (one for one in lines if one.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def _give_back() -> None:
    """Let the C library return what it keeps, which would be used first and not be seen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)
