"""A backbone is found inside whatever it was trained in, and nothing else is taken for it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trunkline import Backbone, create_backbone, load_weights
from trunkline.errors import UnknownLayoutError, WeightsError, WeightsMismatchError
from trunkline.weights.checkpoint import held_checkpoint
from trunkline.weights.layouts import LAYOUTS, layouts_for
from trunkline.weights.layouts.layout import BATCH_COUNTER
from trunkline.weights.searching import find
from trunkline.weights.translation import to_upstream

FILES = json.loads((Path(__file__).parents[1] / "data" / "upstream_wrappers.json").read_text())
ROWS = {row["name"]: row for row in FILES["files"]}
TINY: dict[str, Any] = {}  # the tiny networks of the whole suite
OF = {  # a tiny network that the upstream has
    "torchvision-resnet": "resnet-bottleneck",
    "torchvision-regnet": "regnet-y",
    "timm-resnet": "resnet-bottleneck",
    "timm-dla": "dla-basic",
    "timm-regnet": "regnet-x",
    "detectron2": "resnet-bottleneck",
    "transformers-regnet": "regnet-y",
    "transformers-rtdetr": "resnet-pooled",
    "trunkline": "regnet-y",
}


@pytest.fixture(autouse=True, scope="module")
def _tiny(families: dict[str, Any]) -> None:
    TINY.update(families)


def named(backbone: Backbone, layout: str) -> dict[str, Tensor]:
    """Return a network's tensors as an upstream names them, without its prefix."""
    known = LAYOUTS[layout]
    written = to_upstream(known, backbone.architecture, backbone.state_dict())
    return {name.removeprefix(known.prefix): tensor.clone() for name, tensor in written.items()}


def upstream_file(row: dict[str, Any]) -> tuple[Backbone, dict[str, Any]]:
    """Return a network, and what an upstream's script would save of a model around it."""
    family = TINY[OF[row["layout"]]]
    backbone = family.build(seed=1)
    state = {}
    for n, prefix in enumerate((row["prefix"], *row["twins"])):
        alike = n == 0 or row["name"] == "robustness"  # one module that is saved twice
        inner = named(backbone if alike else family.build(seed=2), row["layout"])
        for name, tensor in inner.items():
            if row["batch_counters"] or not name.endswith(BATCH_COUNTER):
                state[prefix + name] = tensor
    state |= {name: torch.full((2,), 9.0) for name in row["beside"]}
    beside = {"optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}, "epoch": 3}
    return backbone, {row["container"]: state, **beside} if row["container"] else state


def same(one: Backbone, other: Backbone) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return all(
        torch.equal(tensor, theirs[name])
        for name, tensor in mine.items()
        if not name.endswith(BATCH_COUNTER)
    )


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_a_backbone_is_found_in_the_files_of_well_known_scripts(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    trained, held = upstream_file(row)
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(held, path)
    loaded = TINY[OF[row["layout"]]].build(seed=7)
    layout = "detectron2" if row["layout"] == "detectron2" else "auto"
    report = load_weights(loaded, path, layout)
    assert same(trained, loaded)
    way = ".".join(filter(None, (row["container"], row["prefix"].replace("module.", ""))))
    found = ".".join(filter(None, (report.container, report.prefix)))
    assert found.replace("_orig_mod.", "").strip(".") == way.replace("_orig_mod.", "").strip(".")


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_what_is_missing_inside_is_named_and_where(tmp_path: Path, row: dict[str, Any]) -> None:
    _, held = upstream_file(row)
    state = held[row["container"]] if row["container"] else held
    for twin in row["twins"]:
        for name in [name for name in state if name.startswith(twin)]:
            del state[name]
    inside = [
        name
        for name in state
        if name.startswith(row["prefix"]) and name not in row["beside"] and state[name].ndim == 4
    ]
    gone = inside[len(inside) // 2]
    del state[gone]
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(held, path)
    layout = "detectron2" if row["layout"] == "detectron2" else "auto"
    with pytest.raises(WeightsMismatchError, match="Missing: 1 ") as caught:
        load_weights(TINY[OF[row["layout"]]].build(), path, layout)
    said = str(caught.value)
    assert gone.removeprefix(row["prefix"]) in said
    assert "none of our networks" not in said
    way = row["prefix"].replace("module.", "").replace("_orig_mod.", "").strip(".")
    assert way in said


def test_numbered_children(tmp_path: Path) -> None:
    """``nn.Sequential(*network.children())`` and what fastai makes of it."""
    backbone = create_backbone("resnet18")
    state = named(backbone, "torchvision-resnet")
    number = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    numbered = {f"{number[n.split('.')[0]]}.{n.split('.', 1)[1]}": t for n, t in state.items()}
    path = tmp_path / "model.pth"
    for prefix, beside in (
        ("", {"9.weight": torch.ones(2, 512)}),
        ("0.", {"1.2.weight": torch.ones(1024), "1.4.weight": torch.ones(512, 1024)}),
        ("f.", {"g.0.weight": torch.ones(2, 2)}),
        ("features.", {}),
    ):
        torch.save({prefix + name: t for name, t in numbered.items()} | beside, path)
        loaded = create_backbone("resnet18", weights=path)
        assert same(backbone, loaded)
        assert "Children are numbered: 0 is conv1, 1 is bn1, 4 is layer1" in str(loaded.load_report)


def test_a_stem_in_a_module_of_its_own() -> None:
    backbone = create_backbone("resnet18")
    called = {"conv1.": "layer0.0.", "bn1.": "layer0.1."}
    state = {
        next((new + n[len(old) :] for old, new in called.items() if n.startswith(old)), n): tensor
        for n, tensor in named(backbone, "torchvision-resnet").items()
    }
    loaded = create_backbone("resnet18", weights=state)
    assert same(backbone, loaded)


# What is beside a backbone is left aside, and what is inside is not.


@pytest.mark.parametrize(
    "beside",
    [
        *("fc.weight", "fc.1.weight", "fc.proj.weight_g", "head.fc.weight", "last_linear.bias"),
        *("projection_head.0.weight", "prototypes.weight", "queue", "criterion.center"),
        *("attnpool.positional_embedding", "neck.lateral.weight", "logit_scale", "layer_norm.bias"),
    ],
)
def test_heads_and_losses_are_left_aside(beside: str) -> None:
    backbone = TINY["resnet-basic"].build(seed=1)
    state = named(backbone, "torchvision-resnet") | {beside: torch.ones(3, 3)}
    loaded = TINY["resnet-basic"].build()
    report = load_weights(loaded, state)
    assert same(backbone, loaded)
    assert [beside] in [list(names) for names in report.dropped.values()]


@pytest.mark.parametrize(
    "inside",
    [
        *("layer3.0.se.conv.weight", "layer3.6.conv1.weight", "layer2.scale", "conv1.bias"),
        *("bn1.gamma", "conv2.weight", "maxpool.1.filt", "layer5.0.conv1.weight", "layer0.weight"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "model.encoder."])
def test_what_is_left_over_inside_is_an_error(inside: str, prefix: str) -> None:
    state = named(TINY["resnet-basic"].build(), "torchvision-resnet") | {inside: torch.ones(1)}
    state = {prefix + name: tensor for name, tensor in state.items()} | {"x.y": torch.ones(1)}
    with pytest.raises(WeightsMismatchError, match=rf"Left over: 1 \({inside}\)"):
        load_weights(TINY["resnet-basic"].build(), state)


# Several that fit.


def two(one: str, other: str, *, alike: bool = False) -> dict[str, Tensor]:
    first = named(TINY["resnet-basic"].build(seed=1), "torchvision-resnet")
    second = first if alike else named(TINY["resnet-basic"].build(seed=2), "torchvision-resnet")
    return {one + n: t for n, t in first.items()} | {
        other + n: t.clone() for n, t in second.items()
    }


def test_of_the_same_numbers_the_first_is_taken() -> None:
    loaded = TINY["resnet-basic"].build()
    report = load_weights(loaded, two("rgb.", "thermal.", alike=True))
    assert report.prefix == "rgb."
    assert "thermal" in str(report)


def test_of_different_numbers_nobody_knows_which_is_meant() -> None:
    state = two("rgb.net.", "thermal.net.")
    with pytest.raises(
        WeightsMismatchError,
        match=r"holds 2 networks .* and differ; say which: prefix='rgb.net' and prefix='thermal.n",
    ):
        load_weights(TINY["resnet-basic"].build(), state)
    for prefix, seed in (
        *(("rgb", 1), ("rgb.net", 1), ("rgb.net.", 1), ("thermal", 2), ("thermal.net.", 2)),
        ("module.thermal", 2),
    ):
        loaded = TINY["resnet-basic"].build()
        load_weights(loaded, state, prefix=prefix)
        assert same(TINY["resnet-basic"].build(seed=seed), loaded)
    with pytest.raises(
        WeightsMismatchError, match=r"is at prefix='depth'; something like it is at: 'rgb.net', 't"
    ):
        load_weights(TINY["resnet-basic"].build(), state, prefix="depth")


@pytest.mark.parametrize(
    ("taken", "left"),
    [
        *(("encoder_q.", "encoder_k."), ("base_encoder.", "momentum_encoder.")),
        *(("teacher.backbone.", "student.backbone."), ("online.net.", "target.net.")),
        *(("ema_model.", "model."), ("model_ema.module.", "model.module.")),
        *(("backbone.", "backbone_momentum."), ("encoder.", "target_encoder.")),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_a_convention_decides_and_is_said(taken: str, left: str, swapped: bool) -> None:
    state = two(taken, left)
    if swapped:
        state = dict(reversed(state.items()))
    loaded = TINY["resnet-basic"].build()
    report = load_weights(loaded, state)
    assert same(TINY["resnet-basic"].build(seed=1), loaded)
    word = taken.split(".")[0]
    assert any(word in note and left.split(".")[0] in note for note in report.notes)
    load_weights(loaded, state, prefix=left)
    assert same(TINY["resnet-basic"].build(seed=2), loaded)


@pytest.mark.parametrize(
    ("errors", "taken"),
    [
        ({"test_err": 20.0, "ema_err": 19.5}, "ema_state"),
        ({"test_err": 20.0, "ema_err": 20.0}, "model_state"),
        ({"ema_err": 21.0}, "ema_state"),
        ({}, "model_state"),
    ],
)
def test_of_pycls_the_better_weights_are_taken(errors: dict[str, float], taken: str) -> None:
    first, second = (TINY["regnet-x"].build(seed=n) for n in (1, 2))
    held = {"model_state": named(first, "pycls"), "ema_state": named(second, "pycls")}
    loaded = TINY["regnet-x"].build()
    report = load_weights(loaded, {**held, **errors})
    assert same(second if taken == "ema_state" else first, loaded)
    assert report.container == taken
    assert any(note.startswith(f"{taken} was taken, as pycls does") for note in report.notes)


def test_only_averaged_weights_are_taken_and_said_so() -> None:
    state = named(TINY["resnet-basic"].build(), "torchvision-resnet")
    report = load_weights(TINY["resnet-basic"].build(), {"ema": {"module": state}})
    assert "EMA weights (ema): the file has no others" in report.notes


# Generated ones.

WORDS = ("net", "model", "encoder", "body", "cnn", "trunk", "visual", "0", "img", "extractor", "b")
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
LEFT = ("head", "neck", "queue", "proj", "fc", "criterion", "decoder", "classifier", "prototypes")
BOXES = ("state_dict", "model", "student", "checkpoint", "weights", "net", "params", "runner")


class Case:
    """A seeded file around a tiny network, and what must become of it."""

    def __init__(self, seed: int, hollow: dict[str, tuple[Backbone, dict[str, Tensor]]]) -> None:
        chance = self.chance = random.Random(seed)  # noqa: S311 - cases, no secrets
        self.kind = chance.choice(sorted(hollow))
        self.layout = self.kind.partition(":")[2]
        self.backbone, state = hollow[self.kind]
        self.marker = seed + 1
        self.state = {name: tensor.expand(tensor.shape) for name, tensor in state.items()}
        self.first = next(n for n, t in self.state.items() if t.ndim == 4)
        self.state[self.first] = torch.full_like(self.state[self.first], self.marker)
        self.damage = chance.choice(["none", "none", "none", "missing", "inside", "shape", "twin"])
        self._damage()
        path = [chance.choice(WORDS) for _ in range(chance.randint(0, 4))]
        self.prefix = "".join(f"{word}." for word in path)
        self.held: Any = {self._wrapped(path, name): t for name, t in self.state.items()}
        if self.damage == "twin":
            self.held |= {f"zz.twin.{n}": t + 1 for n, t in self.state.items() if t.ndim}
        for n in range(chance.randint(0, 3)):
            above = "".join(f"{word}." for word in path[: chance.randint(0, len(path))])
            self.held[f"{above}{chance.choice(LEFT)}.{n}.weight"] = torch.ones(1)
        for _ in range(chance.randint(0, 3)):
            self.held = {
                chance.choice(BOXES): self.held,
                "epoch": 3,
                "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}, "param_groups": [{}]},
                "args": {"lr": 0.1},
            }

    def _damage(self) -> None:
        layout = LAYOUTS[self.layout]
        # Of what an upstream computes and throws away, nothing is missed.
        names = [n for n, t in self.state.items() if t.ndim == 4 and not layout.drop_reason(n)]
        if self.damage == "missing":
            del self.state[self.chance.choice(names[1:])]
        elif self.damage == "inside":
            module = self.chance.choice(names[1:]).rpartition(".")[0]
            self.state[f"{module}.unheard_of"] = torch.ones(1)
        elif self.damage == "shape":
            self.state[self.chance.choice(names[1:])] = torch.ones(3, 3, 3, 3)

    def _wrapped(self, path: list[str], name: str) -> str:
        chance = random.Random(self.marker * 7 + len(path))  # noqa: S311
        parts = [*path, *name.split(".")]
        for _ in range(chance.randint(0, 2)):
            parts.insert(chance.randint(0, len(path)), chance.choice(WRAPPERS))
        return ".".join(parts)

    def check(self) -> None:
        """Look for the network in the file."""
        checkpoint = held_checkpoint(self.held)
        if self.damage == "none":
            narrowed, match = find(self.backbone, checkpoint)
            found = {native: narrowed.tensors[n.upstream] for native, n in match.found.items()}
            assert set(found) | set(match.filled) == set(self.backbone.state_dict())
            assert any(int(t.flatten()[0]) == self.marker for t in found.values() if t.ndim == 4)
            return
        with pytest.raises((UnknownLayoutError, WeightsMismatchError)) as caught:
            find(self.backbone, checkpoint)
        expected = {
            "missing": "Missing: 1 ",
            "inside": "Left over: 1 (",
            "shape": "Of another shape: 1 ",
            "twin": "holds 2 networks",
        }[self.damage]
        assert expected in str(caught.value)


@pytest.fixture(scope="module")
def hollow() -> dict[str, tuple[Backbone, dict[str, Tensor]]]:
    """Tiny networks in every layout that has them and needs no telling."""
    found = {}
    for family in TINY.values():
        backbone = family.build()
        for layout in layouts_for(backbone.architecture):
            if layout.told or layout.norm or layout.name.startswith(("caffe2", "detectron2")):
                continue
            found[f"{family.name}:{layout.name}"] = (backbone, named(backbone, layout.name))
    return found


@pytest.mark.parametrize("part", range(8))
def test_generated_files_give_the_right_network_or_a_true_error(
    part: int, hollow: dict[str, tuple[Backbone, dict[str, Tensor]]]
) -> None:
    for seed in range(part * 250, (part + 1) * 250):
        case = Case(seed, hollow)
        try:
            case.check()
        except (AssertionError, WeightsError, pytest.fail.Exception) as error:
            raise AssertionError(
                f"seed {seed}: {case.kind}, {case.damage}, {case.prefix}"
            ) from error
