"""Memory of a runner that is given images of many sizes, one by one.

Run: python benchmarks/many_sizes.py [--runtime openvino] [--sizes 300] [--backbone regnet-x-002]

Prints the resident memory of the process after every hundredth size, each of which is new, and then
after the same sizes once more: what grows the first time and not the second is kept for each size.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch

import trunkline

_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> float:
    """Return MiB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE / 2**20


def main() -> None:
    """Measure, and print a line for every hundred sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", default="openvino")
    parser.add_argument("--backbone", default="regnet-x-002")
    parser.add_argument("--sizes", type=int, default=300)
    given = parser.parse_args()
    torch.manual_seed(0)
    runner = trunkline.deploy(trunkline.create_backbone(given.backbone), given.runtime, threads=2)
    drawn = np.random.default_rng(0)
    sizes = drawn.integers(64, 193, (given.sizes, 2)).tolist()
    largest = np.zeros((1, 3, 192, 192), np.float32)
    runner(largest)
    print(f"{given.runtime}, {given.backbone}: {resident():.0f} MiB after one image of 192x192")
    for turn in ("new", "seen"):
        began = time.perf_counter()
        for number, (height, width) in enumerate(sizes, 1):
            runner(np.zeros((1, 3, height, width), np.float32))
            if number % 100 == 0:
                each = (time.perf_counter() - began) / number
                print(f"{number:4} {turn} sizes: {resident():6.0f} MiB, {1000 * each:.0f} ms each")


if __name__ == "__main__":
    main()
