"""Keeps engines from reporting to their makers: what this library does is nobody else's business.

Importing is enough: openvino writes an identifier into the user's home folder and sends an event,
by the package ``openvino_telemetry``; onnxruntime (from 1.32 on, Linux and macOS too) does the same
by itself; nncf reports every quantization. What is used here against it is what they offer:
openvino and nncf do without where their reporter cannot be imported, and onnxruntime reads
``ORT_DISABLE_TELEMETRY`` when it starts (its Privacy.md), for the lifetime of the process.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

_REPORTER = "openvino_telemetry"
_SWITCH = "ORT_DISABLE_TELEMETRY"
_lock = threading.RLock()  # modules and environment belong to the process


@contextmanager
def unreported() -> Iterator[None]:
    """Import and use engines without reports, in this process.

    Nothing is written, and all that is changed is put back at the end; an engine that was imported
    meanwhile stays silent. One that the program has imported before keeps what it was told, but
    openvino's and nncf's reporter is suspended meanwhile. A user's own ``ORT_DISABLE_TELEMETRY``
    counts, whatever it says.
    """
    with _lock, ExitStack() as stack:
        if _SWITCH not in os.environ:
            os.environ[_SWITCH] = "1"
            stack.callback(os.environ.pop, _SWITCH, None)
        if _REPORTER not in sys.modules:
            sys.modules[_REPORTER] = None  # type: ignore[assignment]  # makes importing it fail
            stack.callback(sys.modules.pop, _REPORTER)
        elif (reporter := _reporter()) is not None:
            stack.callback(setattr, reporter, "consent", getattr(reporter, "consent", None))
            reporter.consent = False
        yield


def _reporter() -> Any:
    """Return the one reporter of this process, None where nobody has set one up."""
    module = sys.modules[_REPORTER]
    try:
        return None if module is None else module.Telemetry()
    except RuntimeError:  # it wants a name first, which only who sets it up knows
        return None
