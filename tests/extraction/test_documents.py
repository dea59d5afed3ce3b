"""Whatever JSON stands where a store keeps some, it is read as what it must be or told by name."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_blocks import map_schema, newer_python, pooled_schema, write_kept_store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trunkline.errors import StoreError
from trunkline.extraction.decoding import Decoding
from trunkline.extraction.reader import open_features
from trunkline.extraction.store import Store
from trunkline.extraction.zarr_group import read_array, read_group, sealed
from trunkline.outputs import digest_of

EXAMPLES = 60  # of each document


class Document(NamedTuple):
    """One place where a store keeps JSON."""

    fields: Any  # as it should be
    write: Callable[[str], None]
    read: Callable[[], Any]
    seal: Callable[[Any], str]


def with_digest(fields: Any) -> str:
    """End a document with the digest that it would have, were it meant so."""
    rest = {name: one for name, one in fields.items() if name != "sha256"}
    return json.dumps({**rest, "sha256": digest_of(rest)})


def read_manifest(store: Store) -> None:
    """Read a manifest, and use what it says."""
    manifest = store.manifest()
    Decoding.from_dict(manifest.source, manifest.job["images"])
    store.format(manifest)


def of_file(path: Path, read: Callable[[], Any], seal: Callable[[Any], str]) -> Document:
    def write(text: str) -> None:
        path.write_text(text)

    return Document(json.loads(path.read_bytes()), write, read, seal)


def of_parquet(path: Path, key: bytes, read: Callable[[], Any]) -> Document:
    """A document in the metadata of a table."""
    table = pq.read_table(path)
    metadata = table.schema.metadata

    def write(text: str) -> None:
        changed = {**metadata, key: text.encode(errors="replace")}
        pq.write_table(table.replace_schema_metadata(changed), path)

    return Document(json.loads(metadata[key]), write, read, json.dumps)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    folder = tmp_path_factory.mktemp("stores")
    made = {
        "p": write_kept_store(folder / "p.parquet", pooled_schema(), 25),
        "c": write_kept_store(folder / "c", pooled_schema(levels=1), 25, "clip-retrieval"),
    }
    if sys.version_info >= (3, 11):
        made["z"] = write_kept_store(folder / "z.zarr", map_schema(), 25)
    return made


def document(name: str, stores: dict[str, Store]) -> Document:
    """Return one of the documents that stores have."""
    pooled, clip, maps = stores["p"], stores["c"], stores.get("z", stores["p"])

    def plan() -> Any:
        return pooled.plan(pooled.manifest()).items(0)

    def totals() -> Any:
        return pooled.plan(pooled.manifest())

    array = maps.out / "stage1_stride_8"
    made: dict[str, Callable[[], Document]] = {
        "manifest": lambda: of_file(
            pooled.home / "manifest.json", lambda: read_manifest(pooled), with_digest
        ),
        "record": lambda: of_file(
            pooled.record_path(1), lambda: list(pooled.records()), with_digest
        ),
        "totals": lambda: of_file(pooled.plan_folder / "complete.json", totals, json.dumps),
        "plan": lambda: of_parquet(pooled.plan_folder / "00000.parquet", b"trunkline.plan", plan),
        "part": lambda: of_parquet(
            pooled.out / "part-00000.parquet", b"trunkline", lambda: open_features(pooled.out)
        ),
        "metadata": lambda: of_parquet(
            clip.out / "metadata" / "metadata_00000.parquet",
            b"trunkline",
            lambda: open_features(clip.out),
        ),
        "group": lambda: of_file(maps.out / "zarr.json", lambda: read_group(maps.out), sealed),
        "array": lambda: of_file(array / "zarr.json", lambda: read_array(array), sealed),
    }
    return made[name]()


NAMES = ["manifest", "record", "totals", "plan", "part", "metadata"]
NAMES += [pytest.param(one, marks=newer_python) for one in ("group", "array")]  # type: ignore[misc]
RAW = (  # what no value of Python is written as
    "[" * 100_000,
    "[" * 500 + "]" * 500,
    '{"a":' * 5_000 + "1" + "}" * 5_000,
    "9" * 5_000,
    "1e999",
    "NaN",
    '"\\ud800"',
    '{"a": 1, "a": 2}',
)
STRANGE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.text("./\\\0~*\x1b", max_size=8),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=3),
    st.sampled_from(RAW).map(lambda text: f"RAW{text}"),
)


@st.composite
def changed(draw: st.DrawFn, fields: Any) -> Any:
    """The same with something missing, added or of another kind, at any depth."""
    if not isinstance(fields, dict | list) or not fields or draw(st.integers(0, 4)) == 0:
        return draw(STRANGE)
    if isinstance(fields, list):
        place = draw(st.integers(0, len(fields) - 1))
        one = draw(changed(fields[place]))
        return draw(st.sampled_from([[*fields[:place], one, *fields[place + 1 :]], fields[1:]]))
    name = draw(st.sampled_from(sorted(fields)))
    if draw(st.integers(0, 5)) == 0:
        return {key: one for key, one in fields.items() if key != name}
    return {**fields, name: draw(changed(fields[name]))}


def written(fields: Any, seal: Callable[[Any], str]) -> str:
    """Write a document whose seal is right where it can have one."""
    try:
        text = seal(fields)
    except (AttributeError, KeyError, TypeError):  # it is no object, or has no attributes
        text = json.dumps(fields)
    for raw in RAW:
        text = text.replace(json.dumps(f"RAW{raw}"), raw)
    return text


@pytest.mark.parametrize("name", NAMES)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_json_is_read_or_told(stores: dict[str, Store], name: str, data: st.DataObject) -> None:
    kept = document(name, stores)
    try:
        kept.write(written(data.draw(changed(kept.fields)), kept.seal))
        with suppress(StoreError):
            kept.read()
    finally:
        kept.write(json.dumps(kept.fields, indent=2))
    kept.read()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["", "[]", "nul", "\ufeff{}", "{}", *RAW], ids=range(13))
def test_what_is_no_such_document_is_told(stores: dict[str, Store], name: str, text: str) -> None:
    kept = document(name, stores)
    try:
        kept.write(text)
        is_open = name in ("part", "metadata") and text in ("{}", '{"a": 1, "a": 2}')
        if is_open:  # what decides the numbers may be anything; that all parts agree is told apart
            with pytest.raises(StoreError, match="another job"):
                kept.read()
        else:
            with pytest.raises(StoreError, match=r"\.(json|parquet)"):
                kept.read()
    finally:
        kept.write(json.dumps(kept.fields, indent=2))


def test_documents_that_are_no_files(stores: dict[str, Store]) -> None:
    pooled = stores["p"]
    for path in (pooled.record_path(0), pooled.plan_folder / "complete.json"):
        content = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        try:
            with pytest.raises(StoreError, match="it is no regular file"):
                [pooled.record(0), pooled.plan(pooled.manifest())]
        finally:
            path.unlink()
            path.write_bytes(content)


def test_the_columns_of_a_table_are_those_of_a_store(stores: dict[str, Store]) -> None:
    path = stores["p"].out / "part-00000.parquet"
    content, table = path.read_bytes(), pq.read_table(path)
    level = table.schema.field("stage1_stride_8")
    zero = pa.field(level.name, pa.list_(pa.float32(), 0))
    strange = [
        table.rename_columns(["key", "key", *table.column_names[2:]]),
        table.set_column(0, "key", pa.array(range(10))),
        table.set_column(7, level.name, pa.array([[1.0]] * 10, pa.list_(pa.float64(), 1))),
        table.set_column(7, zero, pa.array([[]] * 10, zero.type)),
        table.append_column(level, table[level.name]),
        table.set_column(0, "key", pa.array([None] * 10, pa.string())),
    ]
    try:
        for one in strange:
            pq.write_table(one.replace_schema_metadata(table.schema.metadata), path)
            with pytest.raises(StoreError, match=r"part-00000\.parquet"):
                open_features(path).table()
        statuses = pa.array(["ok"] * 10)
        pq.write_table(table.set_column(5, "status", statuses), path)
        with pytest.raises(StoreError, match="is not of the rows that are ok"):
            open_features(path).numpy(0)
    finally:
        path.write_bytes(content)
