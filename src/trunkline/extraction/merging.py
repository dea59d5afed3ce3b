"""Several stores of one job become one: parts that were computed without a common disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace

from trunkline.errors import ConfigError, StoreError
from trunkline.extraction.durable import writing
from trunkline.extraction.formats import format_of
from trunkline.extraction.manifests import Manifest, differences, new_id
from trunkline.extraction.places import check_data, check_place, store_at
from trunkline.extraction.plan import Plan
from trunkline.extraction.store import Store
from trunkline.runtimes.saving import copy_runner


def merge(stores: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> int:
    """Copy the finished shards of several stores of one job into a new one.

    They are parts of one listing: ``shard=(i, n)`` on machines without a common disk, each into a
    store of its own. The result is the store that one machine would have written; where shards are
    still missing, the same ``extract`` goes on with it.

    Every file is compared with its recorded hash before it is read. The new store has an id of its
    own.

    Stores of different sources need no merging: their parts have the same columns, and readers of
    Parquet take any number of folders.

    Args:
        stores: At least one, all of the same job.
        out: A new place of the same kind.

    Returns:
        Rows in the new store.

    Raises:
        ConfigError: No store is given, or ``out`` has a name that no format has.
        StoreError: One of them is none, is damaged, or of another job or listing, or ``out``
            exists, lies in a store, or is of another format.
        RunnerError: The runner of the first one is damaged.
        OutputError: ``out`` cannot be written; give it again after removing what is there.
    """
    given = [store_at(one) for one in stores]
    target = store_at(out)
    if not given:
        raise ConfigError("merge got no store; give at least one, and the place for the result.")
    if os.path.lexists(target.out) or os.path.lexists(target.home):
        raise StoreError(
            f"{target.out} exists already; give a new place, or remove that one first."
        )
    check_place(target)
    manifests = [store.manifest() for store in given]
    for store, its_manifest in zip(given, manifests, strict=True):
        check_data(store, its_manifest)
        _check_same(given[0], manifests[0], store, its_manifest)
    layout = manifests[0].layout
    if format_of(target.out, layout) is not format_of(given[0].out, layout):
        raise StoreError(
            f"{target.out} is another format than {given[0].out}; give a name with the ending "
            f"{given[0].out.suffix!r}."
        )
    plans = [store.plan(manifest) for store, manifest in zip(given, manifests, strict=True)]
    longest = max(range(len(plans)), key=lambda number: plans[number].counts().shards)
    _check_listings(given, plans, longest)
    target.create_folders()
    with writing(target.out):
        unfinished = shutil.ignore_patterns("*~*")
        shutil.copytree(
            given[longest].plan_folder, target.plan_folder, dirs_exist_ok=True, ignore=unfinished
        )
    copy_runner(given[0].runner_folder, target.runner_folder)  # with its signature, or without
    manifest = replace(manifests[0], schema=replace(manifests[0].schema, store_id=new_id()))
    target.write_manifest(manifest)
    pairs = zip(given, manifests, strict=True)
    rows = sum(_copy(store, its_manifest, target, manifest) for store, its_manifest in pairs)
    counts = plans[longest].counts()
    if counts.complete and all(target.is_done(number) for number in range(counts.shards)):
        target.format(manifest).finish(counts.images)
    return rows


def _check_same(first: Store, wanted: Manifest, store: Store, manifest: Manifest) -> None:
    found = differences(wanted.job, manifest.job)
    found += differences(wanted.source.to_dict(), manifest.source.to_dict(), "source ")
    for name, one, other in (
        ("layout", wanted.layout, manifest.layout),
        ("shard_size", wanted.schema.shard_size, manifest.schema.shard_size),
        ("format", first.out.suffix, store.out.suffix),
    ):
        if one != other:
            found.append(f"{name} {one} there, {other} here")
    if found:
        raise StoreError(
            f"{store.out} is not of the same job as {first.out}: {'; '.join(found)}. Merge stores "
            "that one command wrote, with different parts of --shard."
        )


def _check_listings(stores: Sequence[Store], plans: Sequence[Plan], longest: int) -> None:
    """Make sure that a shard's number means the same images in every store."""
    for store, plan in zip(stores, plans, strict=True):
        for record in store.records():
            if plan.items(record.shard) != plans[longest].items(record.shard):
                raise StoreError(
                    f"shard {record.shard} of {store.out} has other images than that of "
                    f"{stores[longest].out}: the source changed between the runs. Extract one of "
                    "them again from the same source."
                )


def _copy(store: Store, its_manifest: Manifest, target: Store, manifest: Manifest) -> int:
    """Write the finished shards of a store into another that does not have them."""
    reader, form = store.format(its_manifest), target.format(manifest)
    form.create()
    rows = 0
    for record in store.records():
        if target.is_done(record.shard):
            continue
        writer = form.writer(record.shard)
        images = 0
        try:
            for block in store.blocks(reader, record.shard):
                writer.append(block)
                images += len(block.rows)
            if images != record.images:
                raise StoreError(
                    f"shard {record.shard} of {store.out} has {images} rows, and its record tells "
                    f"of {record.images}; remove {store.record_path(record.shard)} and run the "
                    "command that made that store again."
                )
            files = writer.commit()
        finally:
            writer.discard()
        target.write_record(replace(record, files=files))
        rows += record.images
    return rows
