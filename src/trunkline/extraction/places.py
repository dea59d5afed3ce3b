"""Where a store may be: apart from its source, over nothing of others, with its bookkeeping.

A store is two folders, the data and the bookkeeping beside it. An id that is in the manifest and in
every data file says that they belong together, whatever they are called and wherever they are
copied to. What cannot be shown to be this store's is never written over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from trunkline.errors import ConfigError, OutputError, StoreError, TrunklineError
from trunkline.extraction.data_files import check_owners
from trunkline.extraction.locations import local_path, split_glob
from trunkline.extraction.manifests import Manifest
from trunkline.extraction.sources import Source, list_items
from trunkline.extraction.store import SUFFIX, Store
from trunkline.extraction.walking import Pattern

_BRACES = re.compile(r"\{[^{}]*\}")
_LINES = 1000  # of a list, that are looked at

Identity = tuple[int, int]
"""Device and number of a file: the same by every name, through links, in capitals or not."""


def store_at(out: str | os.PathLike[str]) -> Store:
    """Return the store of this name, which need not exist.

    Raises:
        ConfigError: It is no name that a folder can have.
        OutputError: It is relative to a working directory that is gone.
    """
    try:
        text = os.fspath(out)
    except TypeError as error:
        raise ConfigError(f"OUT is the path of a folder, not {out!r}.") from error
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigError(f"OUT is the path of a folder, and {text!r} is none.")
    try:
        path = Path(text).absolute()
    except FileNotFoundError as error:
        raise OutputError(
            f"{text} is relative to the working directory, which was removed; go to another "
            "folder, or give an absolute path."
        ) from error
    if path.name in ("", ".."):
        path = path.resolve()
    if not path.name:
        raise ConfigError(f"{text} is the root of the disk; give a folder below it.")
    return Store(path)


def check_apart(source: Source, store: Store) -> None:
    """Make sure that a store and its source are not in each other's way.

    Args:
        source: On this machine or elsewhere.
        store: That shall be written.

    Raises:
        ConfigError: One is the other, or lies where the other is read or written.
    """
    root, pattern = _root_of(source)
    here = local_path(root)
    if here is None:
        return
    for place in (store.out, store.home):
        if _identity(place) in _lineage(here).values():
            raise _in_the_way(source, place, "the source lies in it")
        inside = _below(here, place) if os.path.isdir(here) else None
        if inside is not None and (pattern is None or _looks_into(pattern, inside)):
            raise _in_the_way(source, place, "it lies in the source, which would list it")
    if source.kind == "list" and os.path.isdir(store.out):
        _check_lines(source, store)


def _root_of(source: Source) -> tuple[str, Pattern | None]:
    """Return the file or folder that a source is in, and what of the folder it looks at."""
    location = source.location
    path = local_path(location)
    if source.kind in ("folder", "list") or (path is not None and os.path.lexists(path)):
        return location, None
    root, names = split_glob(_BRACES.sub("*", location))
    return root, Pattern(names) if names else None


def _in_the_way(source: Source, place: Path, how: str) -> ConfigError:
    return ConfigError(
        f"{place} cannot be written while {source.location} is read: {how}, and images or "
        "features would be overwritten or read as each other. Choose an OUT beside the source."
    )


def _identity(path: str | Path) -> Identity | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _lineage(path: str | Path) -> dict[Path, Identity]:
    """Return what is there of a path and the folders above it, links followed."""
    real = Path(os.path.realpath(path))
    found = {one: _identity(one) for one in (real, *real.parents)}
    return {one: identity for one, identity in found.items() if identity is not None}


def _below(folder: str, path: Path) -> tuple[str, ...] | None:
    """Return the names that lead from a folder to a path, None where they do not."""
    wanted = _identity(folder)
    for one, identity in _lineage(path).items():
        if identity == wanted:
            return Path(os.path.realpath(path)).relative_to(one).parts
    return None


def _looks_into(pattern: Pattern, names: tuple[str, ...]) -> bool:
    """Say whether a glob takes files of a folder, or of one in it."""
    states = pattern.start
    for name in names:
        states = pattern.below(states, name)
    return bool(states)


def _check_lines(source: Source, store: Store) -> None:
    """Look at the first lines of a list for images that lie in the store."""
    folder = os.path.realpath(store.out) + os.sep
    try:
        for item in islice(list_items(source), _LINES):
            path = local_path(item.path)
            if path is not None and os.path.realpath(path).startswith(folder):
                raise _in_the_way(source, store.out, f"{item.key} lies in it")
    except ConfigError:
        raise
    except TrunklineError:  # whoever lists the source meets it, and says it then
        return


def check_place(store: Store) -> None:
    """Make sure that a store can be begun or continued here, before anything is changed.

    Raises:
        OutputError: Something that is no folder has the name, or both folders cannot be one store.
        StoreError: Something is there that no manifest tells of, or it lies in another store.
    """
    for place in (store.out, store.home):
        if os.path.lexists(place) and not os.path.isdir(place):
            what = "a link that leads nowhere" if os.path.islink(place) else "no folder"
            raise OutputError(f"{place} cannot be written: it is {what}; give another OUT.")
    if os.path.isdir(store.out):
        beside = store.home if os.path.isdir(store.home) else store.home.parent
        if os.stat(beside).st_dev != os.stat(store.out).st_dev:
            raise OutputError(
                f"{store.out} cannot be written: it is on another disk than {beside}, where files "
                "grow before they are renamed; give the path that it has on its own disk."
            )
    real = Path(os.path.realpath(store.out))
    for folder in (*store.out.parents, *real.parents):
        if folder.name and Store(folder.with_name(folder.name.removesuffix(SUFFIX))).begun:
            raise StoreError(
                f"{store.out} lies in {folder}, a folder of another store, whose readers would "
                "take it for a part; give a place outside."
            )
    if not store.begun:
        check_unclaimed(store)


def check_unclaimed(store: Store) -> None:
    """Make sure that nothing is there where a store shall begin.

    Raises:
        StoreError: There are files without a manifest.
    """
    found = next(_entries(store.out), None)
    if found is not None:
        raise StoreError(
            f"{store.out} is not empty (it holds {found.name}), and there is no manifest of it in "
            f"{store.home.name}: it was not written by trunkline extract, or has lost the folder "
            "beside it. Nothing was changed; put that folder back, or extract into a new place."
        )
    for folder in (store.plan_folder, store.records_folder, store.runner_folder):
        found = next(_entries(folder), None)
        is_runner = os.path.isfile(store.runner_folder / "runner.json")  # of a run that died
        if found is not None and not (folder == store.runner_folder and is_runner):
            raise StoreError(
                f"{store.home} has lost its manifest.json, but still holds "
                f"{folder.name}/{found.name}. Nothing was changed; put the manifest back, or "
                "extract into a new place."
            )


def _entries(folder: Path) -> Iterator[Path]:
    if not os.path.isdir(folder):
        return
    try:
        yield from folder.iterdir()
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be listed: {error.strerror}; set its permissions, or give another "
            "place."
        ) from error


def check_data(store: Store, manifest: Manifest) -> None:
    """Make sure that the data of finished shards are there, and of this manifest.

    Raises:
        StoreError: The folder is gone, or is that of another store.
    """
    done = store.done()
    if not done:
        return
    if not os.path.isdir(store.out):
        raise StoreError(
            f"{store.home} tells of {len(done)} finished shards, and their folder {store.out} is "
            "not there; put it back beside its bookkeeping, or extract into a new place."
        )
    form = store.format(manifest)
    owners = [owner for shard in (done[0], done[-1]) for owner in form.owners(shard).values()]
    told = {owner for owner in owners if owner is not None}
    if told and manifest.id not in told:
        raise StoreError(
            f"{store.out} holds the data of another store than {store.home} tells of: their ids "
            "differ. Nothing was changed; put back the folder that belongs to it, or extract into "
            "a new place."
        )


def check_continued(store: Store, manifest: Manifest) -> None:
    """Make sure that a run can go on: all finished shards are there, and nothing of others.

    Names alone are looked at where a shard is finished; ``verify`` compares bytes.

    Raises:
        StoreError: A file is missing, or stands where a shard shall be written.
    """
    check_data(store, manifest)
    form = store.format(manifest)
    done = {*store.done()}
    found = form.found()  # afterwards: other runs put files in place before they record them
    for shard in sorted(done):
        if found[shard] < form.files_per_shard:
            missing = [one for one in form.files(shard, 0) if not (store.out / one).is_file()]
            raise StoreError(
                f"{store.out / (missing or [''])[0]} is missing, though shard {shard} is finished. "
                f"Put it back; or remove {store.record_path(shard)} and run the same command "
                "again, to have the shard computed anew."
            )
    for shard in sorted(found.keys() - done):
        check_owners(form.owners(shard), manifest.id)
