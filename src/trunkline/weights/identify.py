"""Which network a file holds, by nothing but its names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from trunkline.backbones.backbone import Architecture
from trunkline.weights.layouts import LAYOUTS
from trunkline.weights.layouts.layout import BATCH_COUNTER, Layout
from trunkline.weights.matching import classifier_names, native_shapes, stem_weight
from trunkline.zoo import list_backbones, variant_config


@dataclass(frozen=True)
class Candidate:
    """A variant, in one upstream's names, and how much of it a file holds.

    Attributes:
        variant: The variant.
        layout: The layout.
        share: Tensors of the whole network that the file holds with the right shape, 0 to 1.
        unexplained: Tensors of the file that the layout does not explain.
    """

    variant: str
    layout: Layout
    share: float
    unexplained: int

    @property
    def percent(self) -> int:
        """The share in percent, rounded down: 100 is said of all and of nothing less."""
        return int(100 * self.share)

    @property
    def whole(self) -> bool:
        """Whether the file holds this network, all of it and nothing else."""
        return self.share == 1 and self.unexplained == 0


def candidates(tensors: Mapping[str, Tensor]) -> list[Candidate]:
    """Return every variant and layout that a file opens like, the best first.

    Args:
        tensors: What the file holds, without wrappers.
    """
    found = []
    for layout in LAYOUTS.values():
        spelled = {layout.respelled(name): tensor for name, tensor in tensors.items()}
        for variant in list_backbones():
            architecture = variant_config(variant)
            if layout.applies(architecture) and _opens(architecture, layout, spelled):
                found.append(_score(variant, architecture, layout, spelled))
    return sorted(found, key=lambda c: (-c.share, c.unexplained))


def candidate(tensors: Mapping[str, Tensor], variant: str, layout: Layout) -> Candidate:
    """Return how much of one variant a file holds, under one layout that has it."""
    spelled = {layout.respelled(name): tensor for name, tensor in tensors.items()}
    return _score(variant, variant_config(variant), layout, spelled)


def _opens(architecture: Architecture, layout: Layout, spelled: Mapping[str, Tensor]) -> bool:
    """Return whether a file has the stem's weight: what rules most variants out at once."""
    first = stem_weight(architecture)
    return layout.names(architecture, [first])[first].upstream in spelled


def _score(
    variant: str, architecture: Architecture, layout: Layout, spelled: Mapping[str, Tensor]
) -> Candidate:
    first = stem_weight(architecture)
    shapes = native_shapes(architecture)
    if layout.norm:  # norms without statistics
        shapes = {name: t for name, t in shapes.items() if name.endswith((".weight", ".bias"))}
    names = layout.names(architecture, shapes)
    counted = {native for native in names if not native.endswith(BATCH_COUNTER)}
    held = sum(
        _fits(spelled.get(names[native].upstream), shapes[native], is_stem=native == first)
        for native in counted
    )
    explained = {
        name.upstream
        for name in (*names.values(), *classifier_names(layout, architecture).values())
    }
    rest = [name for name in spelled.keys() - explained if layout.drop_reason(name) is None]
    return Candidate(variant, layout, held / len(counted), len(rest))


def _fits(tensor: Tensor | None, like: Tensor, *, is_stem: bool) -> bool:
    if tensor is None:
        return False
    # A stem may have been trained on other channels than three.
    return tensor.shape == like.shape or (
        is_stem
        and tensor.ndim == 4
        and (tensor.shape[0], *tensor.shape[2:]) == (like.shape[0], *like.shape[2:])
    )
