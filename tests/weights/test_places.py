"""Places in people's files: which is meant, numbered parts, arrays, hostile trees."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trunkline import Backbone, convert, create_backbone, load_weights
from trunkline.errors import UnknownLayoutError, WeightsMismatchError
from trunkline.weights.layouts import LAYOUTS
from trunkline.weights.lookalikes import computes_alike
from trunkline.weights.translation import to_upstream
from trunkline.zoo import variant_config


@pytest.fixture
def tiny(families: dict[str, Any]) -> Callable[[int], Backbone]:
    """A tiny ResNet of a seed."""
    return lambda seed: families["resnet-basic"].build(seed=seed)


def named(backbone: Backbone, layout: str = "torchvision-resnet") -> dict[str, Tensor]:
    return dict(to_upstream(LAYOUTS[layout], backbone.architecture, backbone.state_dict()))


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor.clone() for name, tensor in state.items()}


def is_same(one: Backbone, other: Backbone) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize(
    ("taken", "left"),
    [
        ("backbone.", "target_net.module.0."),  # mmpretrain's BYOL
        ("backbone.", "encoder_k.0."),
        ("backbone.", "encoder_k."),
        ("base_model.", "momentum_model."),
        ("query_encoder.", "key_encoder."),
        ("backbone_ema.", "backbone."),
        ("ema_net.", "net."),
        ("swa_model.", "model."),
        ("modelTeacher.", "modelStudent."),
        ("teacher_backbone.", "student_backbone."),
        ("backbone.", "student_backbone."),  # lightly's DINO: its teacher is called so
        ("model.online_net.", "model.target_net."),
        ("backbone.", "reid.cnn."),  # a detector with another network in it
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_conventions_of_more_scripts(
    tiny: Callable[[int], Backbone], taken: str, left: str, swapped: bool
) -> None:
    state = under(taken, named(tiny(1))) | under(left, named(tiny(2)))
    loaded = tiny(7)
    report = load_weights(loaded, dict(reversed(state.items())) if swapped else state)
    assert is_same(tiny(1), loaded)
    assert (report.container + report.prefix).endswith(taken)
    other = left.replace("module.", "").removesuffix(".")
    assert any(other.split(".")[-1] in note or other in note for note in report.notes)
    load_weights(loaded, state, prefix=left)
    assert is_same(tiny(2), loaded)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("rgb.backbone.", "thermal.backbone."),
        ("architecture.backbone.", "teacher.backbone."),  # distillation: either may be meant
        ("model.left.", "model.right."),
        ("net1.", "net2."),
    ],
)
def test_without_a_convention_both_are_named(
    tiny: Callable[[int], Backbone], one: str, other: str
) -> None:
    state = under(one, named(tiny(1))) | under(other, named(tiny(2)))
    said = f"say which: prefix='{one[:-1]}' and prefix='{other[:-1]}'"
    with pytest.raises(WeightsMismatchError, match=said.replace(".", r"\.")):
        load_weights(tiny(7), state)


def test_a_network_that_is_saved_twice_goes_by_all_of_its_names(
    tiny: Callable[[int], Backbone],
) -> None:
    """mmselfsup's MoCo: ``backbone`` is the first part of ``encoder_q``."""
    query, key = named(tiny(1)), named(tiny(2))
    state = under("trunk.", query) | under("encoder_q.0.", query) | under("encoder_k.0.", key)
    loaded = tiny(7)
    report = load_weights(loaded, state)
    assert is_same(tiny(1), loaded)
    assert "the same numbers stand at 'encoder_q.0' too" in report.notes
    assert "encoder_q was taken, and another left: prefix='encoder_k.0' takes that" in report.notes


NUMBERS = {
    "children": (("0", "1", "4", "5", "6", "7"), ""),
    "stem in a child": (("0.0", "0.1", "1", "2", "3", "4"), ""),
    "no pool": (("0", "1", "3", "4", "5", "6"), "0, 1, 3, 4, 5, 6, and not 0, 1, 4, 5, 6, 7"),
    "no pool, no activation": (("0", "1", "2", "3", "4", "5"), "0, 1, 2, 3, 4, 5, and not 0, 1, 4"),
    "one module more": (("0", "1", "5", "6", "7", "8"), "0, 1, 5, 6, 7, 8, and not 0, 1, 4"),
}


@pytest.mark.parametrize("case", NUMBERS)
@pytest.mark.parametrize("prefix", ["", "0.", "model.features."])
def test_numbered_parts_stand_where_the_network_has_them(
    tiny: Callable[[int], Backbone], case: str, prefix: str
) -> None:
    """A pool has no weights: only the numbers tell that a network was built without it."""
    numbers, refused = NUMBERS[case]
    parts = dict(
        zip(("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"), numbers, strict=True)
    )
    state = {}
    for name, tensor in named(tiny(1)).items():
        part, _, rest = name.partition(".")
        state[f"{prefix}{parts[part]}.{rest}"] = tensor
    loaded = tiny(7)
    if refused:
        with pytest.raises(WeightsMismatchError, match=f"{refused}.*an activation or a pool"):
            load_weights(loaded, state)
        assert is_same(tiny(7), loaded)
    else:
        report = load_weights(loaded, state)
        assert is_same(tiny(1), loaded)
        assert f"Children are numbered: {numbers[0]} is conv1" in str(report)


def test_groups_beside_a_network_at_the_top_are_counted(tiny: Callable[[int], Backbone]) -> None:
    beside = {"projector.0.weight": torch.ones(2), "projector.2.weight": torch.ones(2)}
    report = load_weights(tiny(7), named(tiny(1)) | beside | {"prototypes.weight": torch.ones(2)})
    assert "3 left aside: beside the backbone, no part of it (projector 2, prototypes 1)." in str(
        report
    )


def test_arrays_of_numpy_of_every_kind(tiny: Callable[[int], Backbone]) -> None:
    """Also counters without a dimension, the other byte order, what must not be written to."""
    arrays = {name: tensor.numpy().copy() for name, tensor in named(tiny(1)).items()}
    swapped = {n: a.astype(a.dtype.newbyteorder(">")) for n, a in arrays.items()}
    columns = {n: np.asfortranarray(a) if a.ndim else a for n, a in arrays.items()}
    for array in arrays.values():
        array.setflags(write=False)
    for state in (arrays, swapped, columns):
        loaded = tiny(7)
        load_weights(loaded, state)
        assert is_same(tiny(1), loaded)


def test_what_is_in_memory_is_copied(tiny: Callable[[int], Backbone]) -> None:
    state = {name: tensor.clone() for name, tensor in named(tiny(1)).items()}
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    for given in (state, arrays):
        loaded = tiny(7)
        load_weights(loaded, given)
        kept = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
        for tensor in state.values():
            tensor.add_(1)
        assert all(torch.equal(t, kept[n]) for n, t in loaded.state_dict().items())
        for tensor in state.values():
            tensor.sub_(1)
    built = create_backbone("resnet18")
    again = create_backbone("resnet18", weights=built.state_dict())
    mine = {tensor.data_ptr() for tensor in again.state_dict().values()}
    assert mine.isdisjoint(tensor.data_ptr() for tensor in built.state_dict().values())


def hostile(kind: str, names: list[str]) -> dict[str, Tensor]:
    nothing = torch.zeros(())
    if kind == "stems":
        return {f"x{n}.conv1.weight": nothing for n in range(4000)}
    if kind == "networks":
        return {f"x{n}.{name}": nothing for n in range(4000 // len(names)) for name in names}
    if kind == "nested":
        return {"a." * n + name: nothing for n in range(4000 // len(names)) for name in names}
    return {f"{'.'.join(map(str, range(n % 50)))}.{n}.0.conv1.weight": nothing for n in range(4000)}


@pytest.mark.parametrize("kind", ["stems", "networks", "nested", "numbered"])
def test_thousands_of_places_are_refused_soon(kind: str) -> None:
    backbone = create_backbone("resnet18")
    state = hostile(kind, list(named(backbone)))
    before = time.process_time()
    with pytest.raises((WeightsMismatchError, UnknownLayoutError)):
        load_weights(backbone, state)
    assert time.process_time() - before < 8  # quadratic when every place was looked at in full


NUMBERED = {
    "resnet18": (
        "torchvision-resnet",
        ("conv1", "bn1", "", "", *(f"layer{n}" for n in range(1, 5))),
    ),
    "dla34": ("timm-dla", ("base_layer", *(f"level{n}" for n in range(6)))),
    "regnet-x-002": ("timm-regnet", ("stem", "s1", "s2", "s3", "s4")),
    "regnet-x-004-tv": ("torchvision-regnet", ("stem", "trunk_output")),
}


def numbered(variant: str, prefix: str) -> dict[str, Tensor]:
    layout, parts = NUMBERED[variant]
    state = named(create_backbone(variant), layout)
    return {
        f"{prefix}{parts.index(name.partition('.')[0])}.{name.partition('.')[2]}": tensor
        for name, tensor in state.items()
    }


@pytest.mark.parametrize("variant", NUMBERED)
def test_numbered_parts_are_known_without_a_name(variant: str, tmp_path: Path) -> None:
    state = numbered(variant, "module.features.")
    torch.save({"state_dict": state | {"module.head.weight": torch.ones(2)}}, tmp_path / "in.pth")
    report = convert(tmp_path / "in.pth", tmp_path / "out.safetensors", to="timm")
    assert computes_alike(variant_config(report.variant), variant_config(variant))
    with pytest.raises(WeightsMismatchError, match=rf"The file holds {variant} .*features'"):
        load_weights(create_backbone("resnet34"), state)


def test_two_networks_of_a_file_are_told_apart_by_name(tmp_path: Path) -> None:
    small, large = (named(create_backbone(name)) for name in ("resnet18", "resnet34"))
    path, out = tmp_path / "distilled.pth", tmp_path / "out.safetensors"
    torch.save({"model": under("student.", small) | under("teacher.", large)}, path)
    with pytest.raises(
        UnknownLayoutError,
        match=r"holds resnet18 at 'model\.student' and resnet34 at 'model\.teacher'; say variant=",
    ):
        convert(path, out, to="timm")
    for variant in ("resnet18", "resnet34"):
        assert convert(path, out, to="timm", variant=variant).variant == variant
