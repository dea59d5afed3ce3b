"""Our own names."""

from __future__ import annotations

from trunkline.weights.layouts.layout import Layout, modules

TRUNKLINE = Layout(
    name="trunkline",
    title="trunkline",
    applies=lambda _: True,
    rules=lambda _: modules(
        *((name, name) for name in ("stem", "stages", "classifier")),
    ),
)
