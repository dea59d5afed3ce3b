"""Feature stores: damaged files, documents that say anything, and what lies where a store shall be.

Stores are made without a network, so nothing is computed again; who reads, does all else.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from feature_blocks import contents, map_schema, pooled_schema, write_kept_store

from attacks import Chance, Kind, check
from attacks.runners import anything, places, put
from trunkline.errors import TrunklineError
from trunkline.extraction.store import Store
from trunkline.outputs import digest_of

TOTAL = 25
FORMATS = {"Parquet": "p.parquet", "Zarr": "m.zarr", "clip-retrieval": "clip"}


@cache
def kept(name: str) -> Path:
    """Make one store of a format, in a folder of its own."""
    from trunkline.extraction import checking, merging

    for module, called in ((checking, "computing_of"), (merging, "copy_runner")):
        setattr(module, called, lambda *_, **__: lambda *_: {})
    schema = map_schema() if name == "m.zarr" else pooled_schema(levels=1)
    layout = "clip-retrieval" if name == "clip" else None
    folder = Path(tempfile.mkdtemp())
    write_kept_store(folder / name, schema, TOTAL, layout)
    return folder


def _copied(folder: Path, name: str) -> Store:
    shutil.copytree(kept(name), folder / "kept")
    return Store(folder / "kept" / name)


def _read(store: Store) -> tuple[Any, ...]:
    from trunkline.extraction.reader import open_features

    opened = open_features(store.out)
    pieces = [
        (batch.keys, batch.values.tobytes())
        for level in opened.levels
        for batch in opened.batches(level, 7)
    ]
    return opened.table().to_pylist(), opened.keys, opened.num_failed, pieces


@cache
def _intact(name: str) -> tuple[Any, ...]:
    return _read(Store(kept(name) / name))


def _refuses(action: Callable[[], object], text: str) -> None:
    try:
        action()
    except TrunklineError:
        return
    check(False, text)


def _damaged(name: str, chance: Chance, folder: Path) -> str:
    """One file of a store is damaged: nobody vouches for it, and nobody changes anything."""
    from trunkline.extraction.checking import verify
    from trunkline.extraction.merging import merge

    store = _copied(folder, name)
    path = chance.choice(sorted(one for one in store.out.rglob("*") if one.is_file()))
    relative = path.relative_to(store.out).as_posix()
    damage = _damage(chance, path.read_bytes())
    if damage is None and relative == "zarr.json":
        damage = b""  # one that is gone is written again from what the manifest says
    path.unlink() if damage is None else path.write_bytes(damage)
    before = contents(store.out.parent)
    manifest = store.manifest()
    form = store.format(manifest)

    report = verify(store.out, 1)
    check(report.damaged == (relative,), f"verify says {report.damaged} of {relative}")

    def read_for_writing() -> None:
        form.create()
        for shard in store.done():
            list(store.blocks(form, shard))

    _refuses(read_for_writing, f"{relative} would be written anew unseen")
    if path.name != "zarr.json":  # a merged store has others
        _refuses(lambda: merge([store.out], folder / name), f"{relative} was merged")
    same = {key: content for key, content in contents(store.out.parent).items() if key in before}
    check(same == before, "files of the store were changed")
    # Without records a shard that is gone is none; .npy has no checksum. Both are documented.
    if damage is not None and path.suffix != ".npy":
        try:
            check(_read(store) == _intact(name), f"{relative} was read as something else")
        except TrunklineError:
            return "refused"
    return "right"


def _damage(chance: Chance, content: bytes) -> bytes | None:
    kind = chance.randrange(10)
    if kind == 0:
        return None
    if kind == 1:
        return content[: chance.randrange(len(content))]
    if kind == 2:
        return content + bytes(chance.randrange(1, 9))
    flipped = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 5))):
        flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    if bytes(flipped) == content:  # the same bit twice
        flipped[0] ^= 1
    return bytes(flipped)


def _documents(chance: Chance, folder: Path) -> str:
    """A document of the bookkeeping says anything, and its own digest agrees."""
    from trunkline.extraction.checking import stats, verify

    store = _copied(folder, "p.parquet")
    file, digest = chance.choice(
        (
            (store.home / "manifest.json", True),
            (store.record_path(1), True),
            (store.plan_folder / "complete.json", False),
        )
    )
    fields: Any = json.loads(file.read_bytes())
    for _ in range(chance.choice((1, 1, 2))):
        fields = put(fields, chance.choice(list(places(fields))), anything(chance))
    if digest and isinstance(fields, dict):
        fields.pop("sha256", None)
        fields["sha256"] = digest_of(fields)
    file.write_text(json.dumps(fields))
    outcome = "right"
    for ask in (stats, partial(verify, count=1)):
        try:
            ask(store.out)
        except TrunklineError:
            outcome = "refused"
    return outcome


def _occupied(chance: Chance, folder: Path) -> str:
    """Something of somebody's lies where a run shall begin: it is refused, and nothing changes."""
    from trunkline.extraction.places import check_place, check_unclaimed, store_at

    name = chance.choice(("f.parquet", "f.zarr"))
    out, home = folder / name, folder / f"{name}.trunkline"
    inner = (
        *("part-00000.parquet", "zarr.json", "notes.txt", ".hidden", "stage3_stride_32/zarr.json"),
        *("part-00000.parquet~x", "deep/er/photo.jpg", ".trunkline"),
    )
    place = out / chance.choice(inner)
    if chance.random() < 0.2:
        place = out
    elif chance.random() < 0.3:
        place = home / chance.choice(("shards/00000.json", "runner/notes", "plan/x.parquet"))
    kind = chance.choice(("file", "file", "folder", "pipe", "link"))
    if place == out and kind == "folder":
        place = out / "folder"
    place.parent.mkdir(parents=True, exist_ok=True)
    _make(place, kind, chance.randbytes(chance.choice((0, 1, 100))))
    before = sorted(str(path) for path in folder.rglob("*"))

    def begin() -> None:
        store = store_at(out)
        check_place(store)
        check_unclaimed(store)

    _refuses(begin, f"{place.relative_to(folder)}, a {kind}, is in the way and was not seen")
    check(sorted(str(path) for path in folder.rglob("*")) == before, "something was changed")
    return "refused"


def _make(path: Path, kind: str, content: bytes) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(path.with_name("nowhere"))
    else:
        path.write_bytes(content)


KINDS: dict[str, Kind] = {
    **{f"damaged {label}": partial(_damaged, name) for label, name in FORMATS.items()},
    "documents of anything": _documents,
    "places of somebody else": _occupied,
}
