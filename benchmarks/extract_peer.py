"""The script that people write today: timm, a DataLoader, the mean of every map, arrays at the end.

    python benchmarks/extract_peer.py photos/ features/ --backbone resnet50 --workers 2

benchmarks/extract.py measures it against ``trunkline extract``. Nothing of trunkline is used here.
It prints one line of JSON: images, seconds from the start of the process, images per second
after the first batch (until the files are written), and those of its beginning.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import psutil


class Photos:
    """A data set of the files of a folder."""

    def __init__(self, folder: Path, transform: Any) -> None:
        self.paths = sorted(folder.rglob("*.jpg"))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Any:
        from PIL import Image

        with Image.open(self.paths[number]) as image:
            return self.transform(image.convert("RGB"))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Extract, and say how long it took."""
    import numpy as np
    import timm
    import torch
    from torch.utils.data import DataLoader

    network = timm.create_model(
        args.backbone, features_only=True, out_indices=(1, 2, 3, 4), pretrained=False
    ).eval()
    config = timm.data.resolve_model_data_config(network)
    dataset = Photos(args.src, timm.data.create_transform(**config, is_training=False))
    loader = DataLoader(dataset, batch_size=args.batch, num_workers=args.workers)  # type: ignore[arg-type, var-annotated]
    collected: list[list[Any]] = [[], [], [], []]
    first: float | None = None
    with torch.inference_mode():
        for images in loader:
            for level, values in zip(collected, network(images), strict=True):
                level.append(values.mean((2, 3)).numpy())
            first = first or time.time()
    args.out.mkdir(parents=True, exist_ok=True)
    for number, arrays in enumerate(collected):
        np.save(args.out / f"level{number}.npy", np.concatenate(arrays))
    ended, began = time.time(), psutil.Process().create_time()
    assert first is not None  # noqa: S101 (the folder has images)
    return {
        "images": len(dataset),
        "whole_seconds": ended - began,
        "first_seconds": first - began,
        "images_per_second": (len(dataset) - min(args.batch, len(dataset))) / (ended - first),
    }


def main() -> None:
    """Read the command line, extract, print."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("src", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--backbone", default="resnet50", help="timm's name")
    parser.add_argument("--workers", type=int, default=0, help="of the DataLoader")
    parser.add_argument("--batch", type=int, default=32)
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()
