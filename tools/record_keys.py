"""Write or check tests/data/upstream_keys: the state-dict keys of other libraries' networks.

    python tools/record_keys.py             # compare the stored lists with the live peers
    python tools/record_keys.py --update    # write them anew

Needs the environment of ``make parity`` and speaks of timm, torchvision and transformers only. The
other lists were recorded once, by building the upstream's own networks or, where a file's ``how``
says so, from what is known of the published files; each file says from what and how.

A file is ``{"source", "how", "variants"}``, and each variant ``{"upstream_name", "keys"}`` with
keys ``[name, shape]`` in the upstream's order. Everything is floating point but
``num_batches_tracked``, which is int64. ``"like"`` in place of ``"keys"`` names the variant of the
same file that has the same list. Notes in other fields are for people.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from trunkline import Backbone, create_backbone, info, list_backbones

RECORDED = Path(__file__).parent.parent / "tests" / "data" / "upstream_keys"

Keys = dict[str, tuple[int, ...]]
Network = tuple[str, str, Callable[[], nn.Module]]  # variant, upstream's name, builder


def layouts() -> list[str]:
    """Return the layouts that have a recorded list."""
    return sorted(path.name.removesuffix(".json.gz") for path in RECORDED.glob("*.json.gz"))


@cache
def document(layout: str) -> dict[str, Any]:
    """Return all that is recorded of a layout."""
    with gzip.open(RECORDED / f"{layout}.json.gz", "rt", encoding="utf-8") as file:
        loaded: dict[str, Any] = json.load(file)
    return loaded


def recorded_keys(layout: str) -> dict[str, Keys]:
    """Return the recorded keys of every variant of a layout, in the upstream's order."""
    variants = document(layout)["variants"]
    return {
        name: {
            key: tuple(shape) for key, shape in variants[variants[name].get("like", name)]["keys"]
        }
        for name in variants
    }


def dtype_of(key: str) -> torch.dtype:
    """Return the type of a recorded tensor: counters are whole numbers."""
    return torch.int64 if key.endswith("num_batches_tracked") else torch.float32


def listed(module: nn.Module) -> list[list[Any]]:
    """Return the names and shapes of a network's state dict.

    Raises:
        TypeError: A tensor whose type does not follow from its name, which ``dtype_of`` assumes.
    """
    keys: list[list[Any]] = []
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() != dtype_of(name).is_floating_point:
            raise TypeError(f"{name} is {tensor.dtype}")
        keys.append([name, list(tensor.shape)])
    return keys


def collect(networks: Iterator[Network]) -> dict[str, Any]:
    """Return the ``variants`` of a file; a list that is there already is not repeated."""
    variants: dict[str, Any] = {}
    for variant, name, build in networks:
        with torch.device("meta"):
            keys = listed(build())
        same = [v for v, entry in variants.items() if entry.get("keys") == keys]
        variants[variant] = {
            "upstream_name": name,
            **({"like": same[0]} if same else {"keys": keys}),
        }
    return variants


def encode(content: dict[str, Any]) -> bytes:
    """Return a file's bytes, the same for the same content at any time."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False) + "\n"
    return gzip.compress(text.encode(), mtime=0)


def _backbone(variant: str) -> Backbone:
    with torch.device("meta"):
        return create_backbone(variant)


def _timm(family: str) -> Iterator[Network]:
    import timm

    for variant in list_backbones(family):
        name = variant.replace("regnet-", "regnet").replace("-", "_")
        if variant.endswith("vd"):  # the same network as timm's d, but for the depths 18 and 34
            name = name.replace("vd", "d")
            if not getattr(_backbone(variant).architecture, "bottleneck", False):
                continue
        if timm.is_model(name):
            yield variant, name, partial(timm.create_model, name)


def _torchvision_resnet() -> Iterator[Network]:
    from torchvision.models import get_model, list_models

    names = set(list_models())
    for variant in list_backbones("resnet"):
        name = variant.replace("-", "_")
        if name in names:
            yield variant, name, partial(get_model, name, weights=None)


def _torchvision_regnet() -> Iterator[Network]:
    from torchvision.models import get_model, list_models, regnet

    names = set(list_models())
    plan = regnet.BlockParams.from_init_params

    def on_cpu(**arguments: Any) -> Any:  # it reads numbers out of tensors
        with torch.device("cpu"):
            return plan(**arguments)

    with mock.patch.object(regnet.BlockParams, "from_init_params", on_cpu):
        for variant in list_backbones("regnet"):
            for alias in info(variant).aliases:
                name = alias.replace("-", "_")
                if name in names:
                    yield variant, name, partial(get_model, name, weights=None)


def _transformers_resnet() -> Iterator[Network]:
    from transformers import ResNetConfig, ResNetForImageClassification

    for variant in list_backbones("resnet"):
        plan: Any = _backbone(variant).architecture
        plain = plan.stem_widths == (64,) and not (plan.pooled_shortcut or plan.project_first)
        if not plain or (plan.groups, plan.width_per_group) != (1, 64):
            continue
        config = ResNetConfig(
            embedding_size=64,
            hidden_sizes=list(plan.stage_channels),
            depths=list(plan.stage_depths),
            layer_type="bottleneck" if plan.bottleneck else "basic",
            downsample_in_bottleneck=plan.stride_in_1x1,
            num_labels=1000,
        )
        name = variant.replace("resnet", "microsoft/resnet-")
        if plan.stride_in_1x1:
            name = "ResNetConfig(downsample_in_bottleneck=True)"
        yield variant, name, partial(ResNetForImageClassification, config)


def _transformers_regnet() -> Iterator[Network]:
    from transformers import RegNetConfig, RegNetForImageClassification

    for variant in list_backbones("regnet"):
        if variant.endswith("-tv"):
            continue
        plan: Any = _backbone(variant).architecture
        config = RegNetConfig(
            hidden_sizes=list(plan.stage_channels),
            depths=list(plan.stage_depths),
            groups_width=plan.group_width,
            layer_type="y" if plan.squeeze else "x",
            num_labels=1000,
        )
        seer = "-seer-in1k" if variant in ("regnet-y-640", "regnet-y-1280") else ""
        name = f"facebook/{variant}{seer}"
        yield variant, name, partial(RegNetForImageClassification, config)


def _transformers_rtdetr() -> Iterator[Network]:
    from transformers import RTDetrResNetBackbone, RTDetrResNetConfig

    for variant in list_backbones("resnet"):
        plan: Any = _backbone(variant).architecture
        if not plan.project_first:
            continue
        config = RTDetrResNetConfig(
            embedding_size=64,
            hidden_sizes=list(plan.stage_channels),
            depths=list(plan.stage_depths),
            layer_type="bottleneck" if plan.bottleneck else "basic",
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
        yield variant, "RTDetrResNetBackbone", partial(RTDetrResNetBackbone, config)


LIVE: dict[str, Callable[[], Iterator[Network]]] = {
    "timm-resnet": lambda: _timm("resnet"),
    "timm-dla": lambda: _timm("dla"),
    "timm-regnet": lambda: _timm("regnet"),
    "torchvision-resnet": _torchvision_resnet,
    "torchvision-regnet": _torchvision_regnet,
    "transformers-resnet": _transformers_resnet,
    "transformers-regnet": _transformers_regnet,
    "transformers-rtdetr": _transformers_rtdetr,
}


def main() -> int:
    """Compare or write every live peer's list; return the number of differences."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--update", action="store_true", help="write the files anew")
    update = parser.parse_args().update
    wrong = 0
    for layout, networks in LIVE.items():
        library = layout.split("-")[0]
        source = f"{library} {importlib.metadata.version(library)}"
        variants = collect(networks())
        if update:
            content = {"source": source, "how": "instantiated", "variants": variants}
            (RECORDED / f"{layout}.json.gz").write_bytes(encode(content))
            print(f"{layout}: {len(variants)} networks written from {source}")
            continue
        stored = document(layout)["variants"]
        different = sorted(v for v in {*stored, *variants} if stored.get(v) != variants.get(v))
        print(
            f"{layout}: {', '.join(different) + ' DIFFERENT' if different else 'same'} as {source}"
        )
        wrong += len(different)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
