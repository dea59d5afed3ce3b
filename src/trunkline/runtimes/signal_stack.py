"""Gives a thread its signal stack back after OpenVINO has taken it.

OpenVINO's plugin for processors puts a stack for signal handlers into the thread that first
compiles something, in the place of the one that was there, and frees it with the last model, maybe
in another thread. From then on the first signal that Python handles in that thread (Ctrl-C, the
end of a child of a DataLoader) ends the process: the kernel has nowhere to put it. Seen with
OpenVINO 2026.4 on Linux; ``sigaltstack(2)``.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_DISABLED = 2  # SS_DISABLE


class SignalStack(ctypes.Structure):
    """``stack_t`` as Linux has it."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack() -> SignalStack | None:
    """Return this thread's signal stack, None outside Linux."""
    if sys.platform != "linux":
        return None
    found = SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Let the block use OpenVINO, and put this thread's signal stack back at its end."""
    before = signal_stack()
    try:
        yield
    finally:
        if before is not None:
            before.flags &= _DISABLED
            ctypes.CDLL(None).sigaltstack(ctypes.byref(before), None)
