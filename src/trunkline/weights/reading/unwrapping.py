"""From what a file holds to one flat dictionary of plainly named tensors.

Training code wraps a state dict twice: in a container, beside the optimizer and the epoch, and in
prefixes that tell of the wrapper and not of the network. Both are taken off here by fixed rules:

* *Containers* are followed by name, weights averaged over training (EMA) first if they are wanted.
  pycls is the exception: of ``model_state`` and ``ema_state`` the one with the lower error is
  taken, as pycls itself does.
* ``module.``, ``_orig_mod.`` and ``model.`` go where every name has them.
* ``backbone.``, ``resnet.``, ``regnet.`` and ``_feature_blocks.`` go where every name has them but
  a linear classifier's, which keeps its own.
* A whole detector has a ``backbone.`` (in it ``bottom_up.`` or ``body.``) among other parts. Only
  the backbone's tensors are taken, and the notes count what was left aside.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

from trunkline.errors import CheckpointError
from trunkline.weights.reading.records import Array, Inert

Leaf = Array | Tensor

_EMA = ("state_dict_ema", "model_ema", "ema", "ema_state")
_PLAIN = ("state_dict", "model", "model_state", "model_state_dict", "blobs", "net", "network")
_INNER = ("module", "weights")  # too common in networks' own names to come first
_VISSL = ("classy_state_dict", "base_model", "model")
_MAX_DEPTH = 4

# What a file may make us do. The largest network of ours has 1008 tensors, a name in it 50 letters;
# a detector around one has some thousand.
MAX_TENSORS = 10_000
MAX_NAME = 500
_MAX_PREFIXES = 10

_WRAPPERS = ("module.", "_orig_mod.", "model.")
_PARTS = ("backbone.", "resnet.", "regnet.", "_feature_blocks.")
_DETECTOR_PARTS = ("bottom_up.", "body.")
_CLASSIFIER = re.compile(r"(heads\..+|(head(\.fc)?|fc|classifier(\.\d+)?)\.(weight|bias))")
_COUNTERS = ("n_averaged", "steps")  # beside the names of averaged models
_MOMENTUM = "_momentum"  # Caffe2 keeps the optimizer's state among the weights

_SHOWN = 10
_MAX_METADATA = 200


class Unwrapped(NamedTuple):
    """Plain names and their tensors, and what was taken off to get there."""

    leaves: dict[str, Leaf]
    container: str
    prefix: str
    notes: tuple[str, ...]


def unwrap(root: object, *, prefer_ema: bool) -> Unwrapped:
    """Find the state dict in what a file holds, and give its tensors their plain names.

    Args:
        root: What was saved.
        prefer_ema: Take averaged weights where there are both.

    Raises:
        CheckpointError: There is no state dict in it, or two tensors get the same name.
    """
    if type(root) is not dict:
        what = {Array: "one tensor", list: "a list", tuple: "a tuple", Inert: "an object"}
        raise CheckpointError(
            f"holds {what.get(type(root), 'a single value')}, not a dictionary of tensors by name. "
            "Save a state_dict()."
        )
    notes: list[str] = []
    found = _find(root, (), prefer_ema, notes, set())
    if found is None:
        raise CheckpointError(
            f"holds no tensors where a state dict could be. Its keys: {_listed(map(str, root))}. "
            f"Looked for: {', '.join((*_EMA, *_PLAIN))}."
        )
    state, path = found
    leaves = dict(_leaves(state))
    check_names(leaves)
    others = [str(name) for name in state if name not in leaves]
    if others:
        notes.append(f"left out, for they are no tensors: {_listed(others)}")
    plain, prefix = _plain_names(leaves, notes)
    return Unwrapped(plain, ".".join(path), prefix, tuple(notes))


def check_names(names: Collection[str]) -> None:
    """Refuse more tensors, or longer names, than a network has: all of them are looked at often.

    Raises:
        CheckpointError: There are.
    """
    if len(names) > MAX_TENSORS:
        raise CheckpointError(
            f"holds {len(names)} tensors; {MAX_TENSORS} are the most that are read, and no network "
            "of ours has a fifth. Save the backbone's alone."
        )
    if (longest := max(map(len, names), default=0)) > MAX_NAME:
        raise CheckpointError(
            f"names a tensor in {longest} letters; {MAX_NAME} are the most that are read. "
            "Download it again, or rename it."
        )


def scalars(root: object) -> dict[str, str]:
    """Return the numbers and short texts beside a state dict, such as its epoch or author."""
    if type(root) is not dict:
        return {}
    return {
        key: text
        for key, value in root.items()
        if type(key) is str and type(value) in (str, int, float, bool)
        if len(text := str(value)) <= _MAX_METADATA
    }


def _find(
    node: object, path: tuple[str, ...], prefer_ema: bool, notes: list[str], seen: set[int]
) -> tuple[dict[object, object], tuple[str, ...]] | None:
    if type(node) is not dict or len(path) > _MAX_DEPTH or id(node) in seen:
        return None
    seen.add(id(node))  # a dictionary may hold itself
    joined = _vissl(node)
    if joined is not None and any(_leaves(joined)):
        return joined, (*path, *_VISSL, "trunk")
    for key in _order(node, prefer_ema, notes):
        found = _find(node.get(key), (*path, key), prefer_ema, notes, seen)
        if found is not None:
            _note_average(node, key, notes)
            return found
    return (node, path) if any(_leaves(node)) else None


def _order(node: dict[object, object], prefer_ema: bool, notes: list[str]) -> tuple[str, ...]:
    """Return the names to look under, the best first."""
    if not prefer_ema:
        return (*_PLAIN, *_EMA, *_INNER)
    if "model_state" in node and "ema_state" in node:
        plain, average = (_error(node, key) for key in ("test_err", "ema_err"))
        better = "ema_state" if average < plain else "model_state"
        notes.append(
            f"{better} was taken, as pycls does: test_err {plain:g}, ema_err {average:g} "
            "(100 where the file has none)"
        )
        return (better, "model_state", "ema_state")
    return (*_EMA, *_PLAIN, *_INNER)


def _error(node: dict[object, object], key: str) -> float:
    value = node.get(key)
    return float(value) if isinstance(value, int | float) else 100.0


def _note_average(node: dict[object, object], key: str, notes: list[str]) -> None:
    if key not in _EMA or (key == "ema_state" and "model_state" in node):
        return
    other = next((name for name in _PLAIN if type(node.get(name)) is dict), None)
    notes.append(
        f"EMA weights ({key}) were preferred over {other}"
        if other
        else f"EMA weights ({key}): the file has no others"
    )


def _vissl(node: dict[object, object]) -> dict[object, object] | None:
    model: object = node
    for key in _VISSL:
        model = model.get(key) if type(model) is dict else None
    if type(model) is not dict or type(trunk := model.get("trunk")) is not dict:
        return None
    heads = model.get("heads")
    return trunk | {
        f"heads.{name}": value
        for name, value in (heads.items() if type(heads) is dict else ())
        if type(name) is str
    }


def _leaves(node: Mapping[object, object]) -> Iterator[tuple[str, Leaf]]:
    for name, value in node.items():
        if type(name) is not str or not name:
            continue
        if isinstance(value, Tensor) or (type(value) is Array and not value.foreign):
            yield name, value


def _plain_names(leaves: dict[str, Leaf], notes: list[str]) -> tuple[dict[str, Leaf], str]:
    """Take prefixes off until none is left; return the names and all that was taken off."""
    body = _without_state(leaves, notes)
    kept: dict[str, Leaf] = {}
    taken = ""
    for _ in range(_MAX_PREFIXES + 1):
        if (prefix := _prefix(body, taken)) is None:
            break
        rest = {name: leaf for name, leaf in body.items() if not name.startswith(prefix)}
        body = {name[len(prefix) :]: leaf for name, leaf in body.items() if name not in rest}
        taken += prefix
        if all(map(_CLASSIFIER.fullmatch, rest)):
            kept |= rest
            continue
        parts = Counter(name.partition(".")[0] for name in rest)
        shown = _listed(f"{part} {count}" for part, count in parts.items())
        notes.append(
            f"only the {len(body)} tensors under {taken} were taken, "
            f"{len(rest)} others were left aside ({shown})"
        )
    else:
        raise CheckpointError(
            f"wraps its names in more than {_MAX_PREFIXES} prefixes ({taken}…). Save the "
            "state_dict() of the network inside."
        )
    if same := sorted(body.keys() & kept.keys()):
        raise CheckpointError(
            f"is ambiguous: without {taken!r} two tensors are called {_listed(same)}."
        )
    return body | kept, taken


def _without_state(leaves: dict[str, Leaf], notes: list[str]) -> dict[str, Leaf]:
    """Leave out the state of an optimizer or of averaging that lies among the weights."""
    state = [
        name
        for name in leaves
        if name in _COUNTERS
        or (name.endswith(_MOMENTUM) and name.removesuffix(_MOMENTUM) in leaves)
    ]
    if not state or len(state) == len(leaves):
        return leaves
    notes.append(f"left out, for they are the state of training: {_listed(state)}")
    return {name: leaf for name, leaf in leaves.items() if name not in set(state)}


def _prefix(body: dict[str, Leaf], taken: str) -> str | None:
    """Return the next prefix to take off, if there is one."""
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) and name != prefix for name in body):
            return prefix
    parts = _PARTS + _DETECTOR_PARTS if "backbone." in taken else _PARTS
    for prefix in parts:
        rest = [name for name in body if not name.startswith(prefix)]
        if len(rest) == len(body) or prefix in body:
            continue
        in_detector = prefix in ("backbone.", *_DETECTOR_PARTS)
        if in_detector or all(map(_CLASSIFIER.fullmatch, rest)):
            return prefix
    return None


def _listed(names: Iterable[str]) -> str:
    # A name is whatever the file says: no control characters of it reach a terminal.
    printable = (name if name.isprintable() else ascii(name) for name in names)
    ordered = sorted(name if len(name) <= 80 else name[:77] + "..." for name in printable)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return f"{', '.join(ordered[:_SHOWN])}{more}" if ordered else "none"
