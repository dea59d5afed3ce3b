"""Checkpoints of strangers: bombs, damaged files, odd tensors, words of anything, lookalikes.

A file is read for what it says, or refused. What was read is seen to be in the file, and a network
that could be another one is said to be.
"""

from __future__ import annotations

import io
import json
import pickle
import time
from functools import cache
from pathlib import Path
from typing import Any

import checkpoint_bombs
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from attacks import Chance, Kind, check
from attacks.runners import anything, places, put
from trunkline import TrunklineError, create_backbone, from_pretrained, save_pretrained

BOMB_BYTES, BOMB_SECONDS = 10_000_000, 10.0  # loaded and converted: twice what a file may take
DTYPES = (
    *(torch.int8, torch.uint8, torch.bool, torch.complex64, torch.int64, torch.uint16),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float64, torch.float16, torch.bfloat16),
)
SMALL = {"timm-regnet": "regnet-x-002", "pycls": "regnet-y-002", "timm-dla": "dla46-c"}


def _bomb(chance: Chance, folder: Path) -> str:
    """A file of up to 10 MB that asks for far more work than that."""
    kind = chance.choice(sorted(checkpoint_bombs.BOMBS))
    suffix, make = checkpoint_bombs.BOMBS[kind]
    path = folder / f"bomb{suffix}"
    path.write_bytes(make(chance, chance.choice([10_000, 1_000_000, BOMB_BYTES])))
    began = time.process_time()
    said = checkpoint_bombs.outcome(path)
    took = time.process_time() - began
    check(took < BOMB_SECONDS, f"{kind} took {took:.1f} s")
    return "right" if "read" in said else "refused"


def _torch_file(held: object, *, legacy: bool) -> bytes:
    file = io.BytesIO()
    torch.save(held, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


@cache
def _samples() -> tuple[tuple[str, bytes], ...]:
    """A small file of every format."""
    torch.manual_seed(0)
    state = {"conv1.weight": torch.randn(4, 3, 1, 1), "bn1.num_batches_tracked": torch.tensor(7)}
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    held = {"state_dict": state, "epoch": 3, "arch": "resnet18"}
    return (
        (".safetensors", save(state, {"format": "pt"})),
        (".pth", _torch_file(held, legacy=False)),
        (".pth", _torch_file(held, legacy=True)),
        *((".pkl", pickle.dumps({"model": arrays}, protocol)) for protocol in (0, 2, 4, 5)),
    )


def _damaged(chance: Chance, folder: Path) -> str:
    """Bytes of a small file change, come or go: its numbers are then those of the file, or none."""
    from trunkline.weights.checkpoint import read_checkpoint

    suffix, whole = chance.choice(_samples())
    content = bytearray(whole)
    for _ in range(chance.choice((1, 1, 2, 5))):
        _damage(chance, content)
    path = folder / f"file{suffix}"
    path.write_bytes(content)
    for name, tensor in read_checkpoint(path).tensors.items():
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        as_text = suffix == ".pkl"  # where numbers may be spelled out
        check(as_text or raw in content, f"{name} is made up")
    return "right"


def _damage(chance: Chance, content: bytearray) -> None:
    at, length = chance.randrange(len(content)), chance.choice((1, 1, 4, 22, 60))
    source = chance.randrange(len(content))
    part = content[source : source + length]
    match chance.randrange(6):
        case 0:
            content[at] ^= 1 << chance.randrange(8)
        case 1:
            content[at : at + length] = bytes(chance.randrange(256) for _ in range(length))
        case 2 if len(content) > 100:
            del content[at : at + length]
        case 3:
            content[at:at] = part
        case 4:
            content.extend(part)
        case _:
            content[at : at + length] = part


@cache
def _tensors(layout: str) -> dict[str, Tensor]:
    from upstream_files import upstream_tensors

    return upstream_tensors(layout, SMALL[layout])


def _odd(chance: Chance, folder: Path) -> str:
    """A whole network in which some tensors have another dtype, shape, name or value, or are gone.

    What is loaded is finite, or the report says that it is not.
    """
    from trunkline.heads.classifier import load_classifier
    from trunkline.weights.conversion import convert

    layout = chance.choice(sorted(SMALL))
    variant, tensors = SMALL[layout], dict(_tensors(layout))
    for _ in range(chance.choice((0, 1, 1, 2, 30))):
        _make_odd(chance, tensors)
    path = folder / "file.pth"
    words = {"arch": chance.choice([variant, "resnet50", "x" * 99, 3])}
    torch.save(chance.choice([tensors, {"state_dict": tensors, **words}]), path)
    options: dict[str, Any] = chance.choice(
        [{}, {}, {"in_channels": 1}, {"norm": "frozen"}, {"norm": "group"}, {"return_idx": (1,)}]
    )
    outcomes = []
    for use in (
        lambda: create_backbone(variant, weights=path, **options),
        lambda: convert(path, folder / "out.safetensors", "timm", variant=variant),
        lambda: load_classifier(variant, path),
    ):
        try:
            made = use()
        except TrunklineError as error:
            check(str(error).isprintable(), f"would not print: {error!r}")
            outcomes.append("refused")
            continue
        outcomes.append("right")
        if isinstance(made, torch.nn.Module) and hasattr(made, "load_report"):
            state = [t for t in made.state_dict().values() if t.is_floating_point()]
            finite = all(bool(t.isfinite().all()) for t in state)
            check(finite != ("NOT FINITE" in str(made.load_report)), "NaN without a word")
    return outcomes[0]


def _make_odd(chance: Chance, tensors: dict[str, Tensor]) -> None:
    name = chance.choice(sorted(tensors))
    tensor = tensors[name]
    how = chance.randrange(6)
    if how < 2:
        tensors[name] = tensor.to(chance.choice(DTYPES))
    elif how == 2:
        tensors[name] = tensor[None] if chance.random() < 0.5 else tensor.reshape(-1)
    elif how == 3:
        beside = chance.choice(["_scale", ".zero_point", ".0", "2", ""])
        tensors[chance.choice(["module.", "backbone.", ""]) + name + beside] = tensor
    elif how == 4 and tensor.is_floating_point() and tensor.numel():
        value = chance.choice([float("nan"), float("inf"), -1.0, 3e38])
        tensors[name] = tensor.clone()
        tensors[name].view(-1)[0] = value
    else:
        del tensors[name]


def _words(chance: Chance, folder: Path) -> str:
    """Anything in the words of a file, or in the config of a folder."""
    backbone = create_backbone("regnet-x-002", return_idx=(0,))
    save_pretrained(backbone, folder / "net")
    config, weights = folder / "net" / "config.json", folder / "net" / "model.safetensors"
    if chance.random() < 0.5:
        document: Any = json.loads(config.read_bytes())
    else:
        from safetensors import safe_open

        with safe_open(weights, framework="pt") as file:
            document = json.loads(file.metadata()["trunkline"])
    is_config = "options" in document
    for _ in range(chance.choice((1, 1, 2, 3))):
        place = chance.choice(list(places(document)))
        document = put(document, place, anything(chance))
    try:
        text = json.dumps(document)
    except RecursionError:  # deeper than Python itself writes
        text = "[" * 100_000
    if is_config:
        config.write_text(text, encoding="utf-8")
    else:
        state = {name: tensor.contiguous() for name, tensor in backbone.state_dict().items()}
        save_file(state, weights, {"trunkline": text})
    again = from_pretrained(folder / "net")
    report = again.load_report
    check(report is not None and report.tag is None and report.license is None, "was believed")
    return "right"


@cache
def _variants() -> dict[str, list[tuple[str, str]]]:
    """Every family's variants, each with its layouts, and those whose names are another's too."""
    from upstream_files import shapes_under

    from trunkline import list_backbones
    from trunkline.weights.layouts import layouts_for
    from trunkline.zoo import variant_config

    found: dict[str, list[tuple[str, str]]] = {}
    seen: dict[object, set[str]] = {}
    for name in list_backbones():
        for layout in layouts_for(variant_config(name)):
            found.setdefault(variant_config(name).family, []).append((name, layout.name))
            seen.setdefault(shapes_under(name, layout.name), set()).add(name)
    for alike in seen.values():
        for name in alike if len(alike) > 1 else ():
            layouts = layouts_for(variant_config(name))
            found["alike"] = found.get("alike", []) + [(name, layout.name) for layout in layouts]
    return found


def _other_variant(chance: Chance, _: Path) -> str:
    """A file of one variant for another one: refused, or said, unless they compute the same."""
    from upstream_files import described_tensors, on_meta

    from trunkline.weights.checkpoint import Checkpoint
    from trunkline.weights.layouts import LAYOUTS, layouts_for
    from trunkline.weights.loading import read_for
    from trunkline.weights.lookalikes import computes_alike, lookalikes
    from trunkline.weights.sources import Located
    from trunkline.zoo import variant_config

    family = chance.choice(["alike", "alike", "alike", "resnet", "dla", "regnet"])
    (one, layout), (other, _layout) = chance.choices(_variants()[family], k=2)
    same = computes_alike(variant_config(one), variant_config(other))
    tensors = described_tensors(one, layout)
    said = chance.choice(["", "arch"])
    checkpoint = Checkpoint(tensors, "torch-zip", metadata={said: one} if said else {})
    located = Located(source="given", path=Path("given"), hashing="")
    backbone = on_meta(other, norm=LAYOUTS[layout].norm or "batch")
    asked = chance.choice(["auto", *(known.name for known in layouts_for(variant_config(other)))])
    read = read_for(backbone, located, checkpoint, asked)
    if same:
        return "right"
    if read.match.layout.told:  # who names such a layout has said which network it is
        check(not said or any(one in note for note in read.notes), "a name was not heard")
        return "told"
    check(not said, f"{one} says what it is, and is taken for {other}")
    found = lookalikes(variant_config(other), read.match.layout, list(read.match.found))
    check(one in {alike.variant for alike in found}, f"{one} is no lookalike of {other}")
    check(any(one in note for note in read.notes), f"{one} loads into {other} without a word")
    return "said"


KINDS: dict[str, Kind] = {
    "bombs": _bomb,
    "damaged files": _damaged,
    "odd tensors": _odd,
    "words of anything": _words,
    "files of another variant": _other_variant,
}
