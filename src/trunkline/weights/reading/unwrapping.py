"""From what a file holds to all of its tensors, each by its whole path.

Training code puts a state dict into containers, beside the optimizer and the epoch, and often
several of them: a student and its teacher, weights as trained and as averaged. Nothing is chosen
here: a tensor's name is the keys that lead to it, joined by dots. Which of them are a backbone's
is for whoever knows what is wanted (``trunkline.weights.searching``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple, cast

from torch import Tensor

from trunkline.errors import CheckpointError, UnsafeCheckpointError
from trunkline.weights.reading.records import Array, Inert, kind_of_tensor

Leaf = Array | Tensor

# What a file may make us do. The largest network of ours has 1008 tensors, a name in it 50 letters;
# a detector around one has some thousand.
MAX_TENSORS = 10_000
MAX_NAME = 500
MAX_DEPTH = 64  # dictionaries within dictionaries

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
            the outermost. A set that keeps its order.
        others: Container → its entries that are no tensors and hold none; objects that were not
            made with their class.
        objects: Containers that are such objects → the class: their attributes may hold tensors.
    """

    leaves: dict[str, Leaf]
    containers: dict[str, None]
    others: dict[str, list[str]]
    objects: dict[str, str]


def flatten(root: object) -> Tree:
    """Find every tensor in what a file holds.

    Args:
        root: What was saved.

    Raises:
        CheckpointError: There is none, or there are more than any network has.
        UnsafeCheckpointError: There are none but such as are no arrays: sparse, quantized, ...
    """
    node = root if type(root) is dict else _container(root)
    if node is None:
        what = {Array: "one tensor", list: "a list", tuple: "a tuple", Inert: "an object"}
        raise CheckpointError(
            f"holds {what.get(type(root), 'a single value')}, not a dictionary of tensors by name. "
            "Save a state_dict()."
        )
    found = Tree({}, {}, {}, {})
    seen: set[int] = set()
    too_deep = no_array = ""
    waiting: list[tuple[str, object, dict[object, object], int]] = [("", root, node, 0)]
    while waiting:
        path, holder, entries, depth = waiting.pop()
        if type(holder) is Inert:
            found.objects[path] = str(holder.kind)
        if id(holder) in seen:  # a dictionary may hold itself, or be there under two names
            continue
        seen.add(id(holder))
        inner: list[tuple[str, object, dict[object, object], int]] = []
        words = {key for key in entries if type(key) is str}
        for key, value in entries.items():
            if isinstance(value, Tensor) or (type(value) is Array and not value.foreign):
                if type(key) is str and key:
                    found.leaves[path + key] = value
                    found.containers[path] = None
                    continue
            elif (word := _word(key)) and (child := _container(value)) is not None:
                if depth == MAX_DEPTH:
                    too_deep = path
                elif word == key or word not in words:  # {"0": ..., 0: ...} has one place named 0
                    words.add(word)
                    inner.append((f"{path}{word}.", value, child, depth + 1))
                    continue
            said = str(key)
            if type(value) is Inert:
                kind = kind_of_tensor(value.kind)
                no_array = no_array or (f"{path}{key} ({value.kind}), {kind}" if kind else "")
                said = f"{key} ({kind or value.kind})"
            found.others.setdefault(path, []).append(said)
        waiting += reversed(inner)  # so that what stands first is looked at first
        _check_count(len(found.leaves))
    if not found.leaves and no_array:
        raise UnsafeCheckpointError(f"holds no tensors but such as {no_array}.")
    if not found.leaves and too_deep:
        raise CheckpointError(
            f"holds dictionaries within dictionaries, more than {MAX_DEPTH} deep: nothing below is "
            "looked at, and above are no tensors. Save the network's state_dict() alone."
        )
    if not found.leaves:
        raise CheckpointError(
            f"holds no tensors where a state dict could be. Its keys: {listed(map(str, node))}. "
            "Save a state_dict()."
        )
    check_names(found.leaves)
    _note_empty(found)
    return found


def _note_empty(tree: Tree) -> None:
    """Count the objects without a tensor in them to what was left out."""
    above = {""}
    for name in tree.leaves:
        while (name := name[: name[:-1].rfind(".") + 1]) not in above:
            above.add(name)
    for path in [path for path in tree.objects if path not in above]:
        holder, _, key = path.removesuffix(".").rpartition(".")
        said = f"{key} ({tree.objects.pop(path)})"
        tree.others.setdefault(f"{holder}." if holder else "", []).append(said)


def _word(key: object) -> str:
    """Return how a container is called in names, "" where it is none that is looked into.

    Keys are texts, numbers (of a fold), or flat tuples of them.
    """
    parts = key if type(key) is tuple else (key,)
    if not all(type(part) in (str, int) and part != "" for part in parts):
        return ""
    word = ".".join(map(str, parts))
    return "" if word.lower().startswith(_TRAINING) else word


def _container(value: object) -> dict[object, object] | None:
    """Return what may hold tensors by name, None for anything else."""
    if type(value) in (list, tuple):
        members = enumerate(cast(Sequence[object], value))
        value = {str(n): one for n, one in members if type(one) in (dict, Inert)}
    elif type(value) is Inert:
        value = value.contents()
    return value if type(value) is dict and value else None


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
