"""Pictures: see ``mutate_images``, which makes them."""

from __future__ import annotations

from pathlib import Path

import mutate_images

from attacks import Chance, Kind, check


def _mutated(chance: Chance, _: Path) -> str:
    number, seed = chance.randrange(1 << 31), chance.randrange(1 << 31)
    tally = next(iter(mutate_images.run(range(number, number + 1), seed).values()))
    check(not tally.wrong, f"mutation {number} of seed {seed}: {tally.wrong}")
    return "right" if tally.decoded else "refused"


KINDS: dict[str, Kind] = {"mutated photos": _mutated}
