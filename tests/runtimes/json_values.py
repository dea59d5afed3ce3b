"""JSON as strangers write it, for the tests of everything that reads some."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

QUIET = settings(
    max_examples=80,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.sampled_from([0, 1, -1, 2**31, 2**63, 10**6])
    | st.floats()
    | st.text(max_size=20)
    | st.just("x" * 5000),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where something can be exchanged, as paths of keys."""
    yield above
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*above, key))


def put(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    """Exchange what is at a place, and return the document."""
    whole = {"document": document}
    inner: Any = whole
    *above, last = ("document", *place)
    for key in above:
        inner = inner[key]
    inner[last] = value
    return whole["document"]
