"""Every published checkpoint that fits a backbone of ours: one row each, in one file an upstream.

The files are data and are read when first asked. ``entry.py`` says what a row may hold,
``lookup.py`` reads the files and finds rows, ``defaults.json`` pins what ``"default"`` means.
"""

from trunkline.weights.catalog.entry import (
    LICENSES,
    METRICS,
    REQUIREMENTS,
    SOURCES,
    TASKS,
    Bands,
    HubFile,
    License,
    Place,
    WeightEntry,
)
from trunkline.weights.catalog.lookup import (
    Default,
    by_accuracy,
    check_license,
    default,
    default_tag,
    entries,
    find,
)

__all__ = [
    "LICENSES",
    "METRICS",
    "REQUIREMENTS",
    "SOURCES",
    "TASKS",
    "Bands",
    "Default",
    "HubFile",
    "License",
    "Place",
    "WeightEntry",
    "by_accuracy",
    "check_license",
    "default",
    "default_tag",
    "entries",
    "find",
]
