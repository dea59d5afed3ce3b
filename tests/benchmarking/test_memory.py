"""Peak memory of a process of its own."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from trunkline.benchmarking.memory import peak_memory, resident_peak
from trunkline.errors import DeploymentError

MIB = 2**20


def test_the_peak_stays_when_memory_is_given_back() -> None:
    block = np.ones(256 * MIB, np.uint8)
    with_block = resident_peak()
    del block
    assert with_block >= 256 * MIB
    assert resident_peak() >= with_block - 16 * MIB  # the kernel counts in batches of pages


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child may count its parent")
def test_a_process_is_measured_by_itself() -> None:
    ballast = np.ones(900 * MIB, np.uint8)
    peak = peak_memory({"variant": "resnet18", "shape": (1, 3, 32, 32), "threads": 1})
    assert ballast[-1] == 1  # it was there all the time
    assert 100 * MIB < peak < 800 * MIB


def test_a_process_that_fails_says_why() -> None:
    job = {"variant": "resnet19", "shape": (1, 3, 32, 32), "threads": 1}
    with pytest.raises(DeploymentError, match=r"memory failed: .*'resnet19'.*--no-memory"):
        peak_memory(job)
