"""Which network a file holds, by nothing but its names and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from trunkline.backbones.backbone import Architecture
from trunkline.weights.layouts import LAYOUTS
from trunkline.weights.layouts.layout import BATCH_COUNTER, Layout
from trunkline.weights.matching import (
    classifier_names,
    is_inside,
    native_shapes,
    own_parts,
    stem_weight,
)
from trunkline.weights.searching import Place, places_like
from trunkline.zoo import list_backbones, variant_config


@dataclass(frozen=True)
class Candidate:
    """A variant, in one upstream's names, and how much of it a file holds.

    Attributes:
        variant: The variant.
        layout: The layout.
        share: Tensors of the whole network that the file holds with the right shape, 0 to 1.
        unexplained: Tensors within the network's own parts that the layout does not explain.
        place: Where in the file.
    """

    variant: str
    layout: Layout
    share: float
    unexplained: int
    place: Place

    @property
    def percent(self) -> int:
        """The share in percent, rounded down: 100 is said of all and of nothing less."""
        return int(100 * self.share)

    @property
    def whole(self) -> bool:
        """Whether the place holds this network, all of it and no more."""
        return self.share == 1 and self.unexplained == 0


def candidates(tensors: Mapping[str, Tensor], variants: Sequence[str] = ()) -> list[Candidate]:
    """Return every variant and layout that a place in a file opens like, the best first.

    Args:
        tensors: All that the file holds, by the keys that lead to them.
        variants: Those to look for; none for all.
    """
    architectures = {name: variant_config(name) for name in variants or list_backbones()}
    found = []
    for place in places_like(tensors, _stems(tuple(architectures.values()))):
        for layout in LAYOUTS.values():
            spelled = _Spelled(place, layout)
            for variant, architecture in architectures.items():
                if layout.applies(architecture) and spelled.opens(architecture):
                    found.append(spelled.score(variant, architecture))
    return sorted(found, key=lambda c: (-c.share, c.unexplained))


@cache
def _stems(architectures: tuple[Architecture, ...]) -> tuple[str, ...]:
    """Return what the stem's weight is called in any layout of any of the networks."""
    return tuple(
        dict.fromkeys(
            layout.names(one, [first])[first].upstream
            for one in architectures
            for first in [stem_weight(one)]
            for layout in LAYOUTS.values()
            if layout.applies(one)
        )
    )


class _Spelled:
    """A file's tensors as the rules of one layout spell their names, looked at once for all."""

    def __init__(self, place: Place, layout: Layout) -> None:
        self._place = place
        self._layout = layout
        self._tensors = {layout.respelled(name): one for name, one in place.tensors.items()}
        self._kept = {name for name in self._tensors if layout.drop_reason(name) is None}

    def opens(self, architecture: Architecture) -> bool:
        """Whether the stem's weight is there: what rules most variants out at once."""
        first = stem_weight(architecture)
        return self._layout.names(architecture, [first])[first].upstream in self._tensors

    def score(self, variant: str, architecture: Architecture) -> Candidate:
        """Count what there is of a network, and what else there is."""
        layout, first = self._layout, stem_weight(architecture)
        shapes = native_shapes(architecture)
        if layout.norm:  # norms without statistics
            shapes = {name: t for name, t in shapes.items() if name.endswith((".weight", ".bias"))}
        names = layout.names(architecture, shapes)
        counted = {native for native in names if not native.endswith(BATCH_COUNTER)}
        held = sum(
            _fits(self._tensors.get(names[native].upstream), shapes[native], native == first)
            for native in counted
        )
        head = classifier_names(layout, architecture).values()
        rest = self._kept - {name.upstream for name in (*names.values(), *head)}
        inside = sum(is_inside(name, own_parts(layout, architecture)) for name in rest)
        return Candidate(variant, layout, held / len(counted), inside, self._place)


def _fits(tensor: Tensor | None, like: Tensor, is_stem: bool) -> bool:
    if tensor is None:
        return False
    # A stem may have been trained on other channels than three.
    return tensor.shape == like.shape or (
        is_stem
        and tensor.ndim == 4
        and (tensor.shape[0], *tensor.shape[2:]) == (like.shape[0], *like.shape[2:])
    )
