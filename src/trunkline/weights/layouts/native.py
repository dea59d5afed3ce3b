"""Our own names."""

from __future__ import annotations

import re

from trunkline.weights.layouts.layout import CLASSIFIER_LEFT, MAX_POOL, Drop, Layout, modules

TRUNKLINE = Layout(
    name="trunkline",
    title="trunkline",
    applies=lambda _: True,
    # What a backbone of ours and a linear layer beside it are called in most scripts.
    respell=((r"^(?:head|fc)\.(?:linear\.|fc\.)?(weight|bias)$", r"classifier.\1"),),
    drops=(Drop(re.escape(MAX_POOL), CLASSIFIER_LEFT),),
    rules=lambda _: modules(
        *((name, name) for name in ("stem", "stages", "classifier")),
    ),
)
