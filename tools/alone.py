"""Tests that need a process of their own, started by tests of the suite."""

from __future__ import annotations

import subprocess
import sys


def passes_alone(file: str, name: str, marker: str) -> None:
    """Run one test in a process of its own, and make sure that it passes.

    Args:
        file: ``__file__`` of the test.
        name: Of its function.
        marker: That keeps it out of the suite.
    """
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "-m", marker, f"{file}::{name}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    told = done.stdout + done.stderr
    if done.returncode or "1 passed" not in done.stdout:
        raise AssertionError(f"{name} alone ended with {done.returncode}:\n{told}")
