"""From what a file holds to all of its tensors, each by its whole path.

Training code puts a state dict into containers, beside the optimizer and the epoch, and often
several of them: a student and its teacher, weights as trained and as averaged. Nothing is chosen
here: a tensor's name is the keys that lead to it, joined by dots. Which of them are a backbone's
is for whoever knows what is wanted (``trunkline.weights.searching``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from torch import Tensor

from trunkline.errors import CheckpointError
from trunkline.weights.reading.records import Array, Inert

Leaf = Array | Tensor

# What a file may make us do. The largest network of ours has 1008 tensors, a name in it 50 letters;
# a detector around one has some thousand.
MAX_TENSORS = 10_000
MAX_NAME = 500
_MAX_DEPTH = 12

# Keys whose tensors are the state of training, beginnings in lower case: an optimizer's momentum
# has the names and the shapes of the weights.
_TRAINING = ("optim", "lr_sched", "scheduler", "scaler", "grad_scaler", "amp", "rng_state")

_SHOWN = 10
_MAX_METADATA = 200


class Tree(NamedTuple):
    """All tensors of a file.

    Attributes:
        leaves: By the keys that lead to each, joined by dots, in the file's order.
        containers: The dictionaries that hold tensors themselves, each with a dot behind it; "" for
            the outermost.
        others: Container → its entries that are no tensors and hold none.
    """

    leaves: dict[str, Leaf]
    containers: tuple[str, ...]
    others: dict[str, tuple[str, ...]]


def flatten(root: object) -> Tree:
    """Find every tensor in what a file holds.

    Args:
        root: What was saved.

    Raises:
        CheckpointError: There is none, or there are more than any network has.
    """
    if type(root) in (list, tuple):
        root = _numbered(root) or root  # type: ignore[arg-type]
    if type(root) is not dict:
        what = {Array: "one tensor", list: "a list", tuple: "a tuple", Inert: "an object"}
        raise CheckpointError(
            f"holds {what.get(type(root), 'a single value')}, not a dictionary of tensors by name. "
            "Save a state_dict()."
        )
    leaves: dict[str, Leaf] = {}
    containers: dict[str, None] = {}
    others: dict[str, tuple[str, ...]] = {}
    seen: set[int] = set()
    waiting: list[tuple[str, dict[object, object], int]] = [("", root, 0)]
    while waiting:
        path, node, depth = waiting.pop()
        if id(node) in seen:  # a dictionary may hold itself, or be there under two names
            continue
        seen.add(id(node))
        inner = []
        beside = []
        for key, value in node.items():
            if isinstance(value, Tensor) or (type(value) is Array and not value.foreign):
                if type(key) is str and key:
                    leaves[path + key] = value
                    containers[path] = None
                    continue
            elif (child := _container(key, value)) is not None and depth < _MAX_DEPTH:
                inner.append((f"{path}{key}.", child, depth + 1))
                continue
            beside.append(str(key))
        if beside:
            others[path] = tuple(beside)
        waiting += reversed(inner)  # so that what stands first is looked at first
        _check_count(len(leaves))
    if not leaves:
        raise CheckpointError(
            f"holds no tensors where a state dict could be. Its keys: {listed(map(str, root))}. "
            "Save a state_dict()."
        )
    check_names(leaves)
    return Tree(leaves, tuple(containers), others)


def _container(key: object, value: object) -> dict[object, object] | None:
    """Return what may hold tensors by name, None for anything else."""
    if type(key) is not str or not key or key.lower().startswith(_TRAINING):
        return None
    if type(value) in (list, tuple):
        value = _numbered(value)  # type: ignore[arg-type]
    return value if type(value) is dict and value else None


def _numbered(values: Iterable[object]) -> dict[object, object]:
    return {str(n): value for n, value in enumerate(values) if type(value) is dict}


def check_names(names: Collection[str]) -> None:
    """Refuse more tensors, or longer names, than a network has: all of them are looked at often.

    Raises:
        CheckpointError: There are.
    """
    _check_count(len(names))
    if (longest := max(map(len, names), default=0)) > MAX_NAME:
        raise CheckpointError(
            f"names a tensor in {longest} letters; {MAX_NAME} are the most that are read. "
            "Download it again, or rename it."
        )


def _check_count(count: int) -> None:
    if count > MAX_TENSORS:
        raise CheckpointError(
            f"holds {count} tensors; {MAX_TENSORS} are the most that are read, and no network "
            "of ours has a fifth. Save the backbone's alone."
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


def listed(names: Iterable[str]) -> str:
    """Return names of a file for a sentence, cut at ten, none of them longer than a line."""
    # A name is whatever the file says: no control characters of it reach a terminal.
    printable = (name if name.isprintable() else ascii(name) for name in names)
    ordered = sorted(name if len(name) <= 80 else name[:77] + "..." for name in printable)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return f"{', '.join(ordered[:_SHOWN])}{more}" if ordered else "none"
