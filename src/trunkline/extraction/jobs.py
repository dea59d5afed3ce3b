"""What an extraction computes: from what was asked for to a store's manifest and its runner.

A store belongs to one job. Its fingerprint is everything that decides a number: the network's
tensors and structure, engine, precision and batch size, the preprocessing, levels, pooling, dtype,
and the versions of what decodes and computes. Whoever goes on with a store must bring the same;
what a run leaves to be chosen ("auto", no batch size) the store has chosen already.
"""

from __future__ import annotations

import importlib.metadata
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import trunkline
from trunkline.errors import ConfigError, ImageError, StoreError
from trunkline.extraction.asked import Asked
from trunkline.extraction.computing import Computing
from trunkline.extraction.decoding import Decoding, decode_item
from trunkline.extraction.manifests import MOST_NUMBERS, Manifest, differences, new_id
from trunkline.extraction.places import check_continued, check_place, check_unclaimed
from trunkline.extraction.records import Column, Schema
from trunkline.extraction.sources import list_items
from trunkline.extraction.store import Store
from trunkline.images import normalised
from trunkline.preprocessing import Preprocessing
from trunkline.runtimes.engine import versions_of
from trunkline.runtimes.processor import processor
from trunkline.runtimes.runner import Runner
from trunkline.runtimes.saving import load_runner

if TYPE_CHECKING:
    from trunkline.backbones.backbone import Backbone

_BATCH_BYTES = 512 << 20  # of the maps of one batch
_IMAGES_PER_THREAD, _LARGEST_BATCH = 4, 64
_CALIBRATION_IMAGES = 300


def schema_of(asked: Asked, job: dict[str, Any]) -> Schema:
    """Return what the shards of a store hold.

    Raises:
        ConfigError: Maps of images whose sizes differ, or that are too large.
    """
    size = asked.decoding.size
    if asked.pool == "none" and size is None:
        raise ConfigError(
            "maps of one array have one size, and these images keep sizes of their own; set a "
            "size (backbone.preprocessing.with_size(224), --size 224 or 480x640), or pool them "
            "into vectors."
        )
    columns = []
    for level in asked.kept:
        shape: tuple[int, ...] = (level.channels,)
        if asked.pool == "none" and size is not None:
            shape = (level.channels, *(-(-side // level.stride) for side in size))
        if math.prod(shape) > MOST_NUMBERS:
            raise ConfigError(
                f"a map of {level.name} would have {math.prod(shape)} numbers, and {MOST_NUMBERS} "
                "are the most that a store holds of an image; choose a smaller size, deeper "
                "levels, or a pool."
            )
        columns.append(
            Column(name=f"{level.name}_stride_{level.stride}", stride=level.stride, shape=shape)
        )
    return Schema(
        columns=tuple(columns), dtype=asked.dtype, shard_size=asked.shard_size, made_by=job
    )


def job_of(asked: Asked, runtime: str | None, batch_size: int | None) -> dict[str, Any]:
    """Return the fingerprint, with None where the call leaves it to the store."""
    versions = {"trunkline": trunkline.__version__, "pillow": importlib.metadata.version("pillow")}
    if runtime is not None:
        versions.update(versions_of(runtime))
    return {
        "network": _network(asked.backbone),
        "runtime": runtime,
        "precision": asked.precision,
        "batch_size": batch_size,
        "images": asked.decoding.to_dict(),
        "levels": [level.name for level in asked.kept],
        "strides": [level.stride for level in asked.kept],
        "pool": asked.pool,
        "normalize": asked.normalize,
        "dtype": asked.dtype,
        "versions": versions,
    }


def _network(backbone: Backbone | Runner) -> dict[str, Any]:
    if isinstance(backbone, Runner):
        return {
            "variant": backbone.variant,
            "state_sha256": backbone.provenance["state_sha256"],
            "structure": None,  # which a runner does not know in words
        }
    from trunkline.runtimes.provenance import state_digest

    act = backbone.options.act
    return {
        "variant": backbone.variant,
        "state_sha256": state_digest(backbone),
        "structure": f"{backbone.architecture!r}, act={act if isinstance(act, str) else 'custom'}",
    }


def possible(asked: Asked, store: Store, threads: int | None) -> Asked:
    """Refuse a job that cannot be, while nothing of it has been written.

    Args:
        asked: What the job is. Its source need not be there yet.
        store: Where it shall be kept.
        threads: Of the network; None for all cores.

    Returns:
        The same; of a new store in int8 with the given calibration images decoded.

    Raises:
        ConfigError: A format that cannot hold it, a runner for other sizes.
        DeploymentError: An engine that is missing, or that cannot do this here.
        ImageError: A calibration image that cannot be read.
        StoreError, OutputError: The place cannot be that of a store.
    """
    store.format_for(asked.layout, schema_of(asked, {}))  # refuses what it cannot hold
    if store.begun:
        return asked
    check_place(store)
    backbone = asked.backbone
    if isinstance(backbone, Runner):
        _batch_of_runner(backbone, asked)
        return asked
    from trunkline.runtimes.deployment import check_request

    shape = _input_shape(asked, threads)
    check_request(asked.runtime, asked.precision, shape, threads, asked.calibration)
    if asked.calibration is None:
        if asked.precision == "int8":
            _check_one_size(asked)
        return asked
    from trunkline.runtimes.calibration import calibration_batches

    batches = calibration_batches(
        asked.calibration,
        _with_preprocessing(backbone, asked.decoding.preprocessing),
        preprocess=asked.decoding.bands is None,
        input_shape=None if shape is None else (1, *shape[1:]),
    )
    return replace(asked, calibration=batches)


def open_job(
    asked: Asked, store: Store, threads: int | None, *, trust: bool = False
) -> tuple[Manifest, Callable[[], Computing]]:
    """Begin a store, or make sure that an old one is of this job.

    Args:
        asked: What the job is.
        store: Where it is kept.
        threads: Of the network; None for all cores.
        trust: Of the runner of an old store, see ``load_runner``.

    Returns:
        Its manifest, and what builds the runner: in the process that began the store it exists
        already, elsewhere it is loaded.

    Raises:
        StoreError: The store is of another job, has lost a part of it, or what is there is none.
        ConfigError: The job cannot be: a format that cannot hold it, a runner for other sizes.
    """
    schema = schema_of(asked, {})
    store.format_for(asked.layout, schema)  # refuses what it cannot hold before any work is done
    check_place(store)
    store.create_folders()
    with store.setup_lock():
        if store.begun:
            manifest = continued(asked, store)
            return manifest, lambda: computing_of(store, manifest, threads, trust=trust)
        check_unclaimed(store)
        runner, job = _built(asked, threads)
        manifest = Manifest(
            source=asked.source,
            layout=asked.layout,
            job=job,
            schema=replace(schema, made_by=job, store_id=new_id()),
            machine=processor().describe(),
        )
        if store.runner_folder.exists():  # of a run that died before its manifest
            shutil.rmtree(store.runner_folder)
        runner.save(store.runner_folder)
        store.write_manifest(manifest)
    return manifest, lambda: _computing(runner, manifest)


def computing_of(
    store: Store, manifest: Manifest, threads: int | None = None, *, trust: bool = False
) -> Computing:
    """Load the runner of a store.

    Args:
        store: That has one.
        manifest: Of the store.
        threads: That it may use; None for all cores.
        trust: Whoever wrote the store may run code here, see ``load_runner``.

    Raises:
        StoreError: The runner there computes something else than the store's job.
        UntrustedError: The runner could run code, and this machine did not write it.
        RunnerError: It is damaged, or this machine cannot run it.
    """
    engines = manifest.job["versions"]
    own = threads or (processor().cores if "torch" not in engines else None)
    runner = load_runner(store.runner_folder, threads=own, trust=trust)
    found = {
        "network": {"state_sha256": runner.provenance["state_sha256"]},
        "runtime": runner.runtime,
        "precision": runner.precision,
    }
    if wrong := differences(manifest.job, found):
        raise StoreError(
            f"{store.runner_folder} is not the runner of this store: {'; '.join(wrong)}. Restore "
            "it from where the store was copied, or extract into a new place."
        )
    return _computing(runner, manifest)


def _computing(runner: Runner, manifest: Manifest) -> Computing:
    names = [level.name for level in runner.returned_levels]
    job = manifest.job
    if not {*job["levels"]} <= {*names}:
        raise StoreError(
            f"the runner of the store returns {', '.join(names)}, and its manifest asks for "
            f"{', '.join(job['levels'])}: they do not belong together. Extract into a new place."
        )
    decoding = Decoding.from_dict(manifest.source, job["images"])
    return Computing(
        runner,
        decoding.preprocessing,
        [names.index(name) for name in job["levels"]],
        pool=job["pool"],
        normalize=job["normalize"],
        schema=manifest.schema,
        one_size=decoding.size is not None,
        empty=decoding.empty,
    )


def continued(asked: Asked, store: Store) -> Manifest:
    """Return the manifest of a store that is of the job that is asked for, and whole.

    Raises:
        StoreError: It is of another job, or has lost a part of it.
    """
    manifest = store.manifest()
    _check_same(asked, manifest, store)
    check_continued(store, manifest)
    return manifest


def _check_same(asked: Asked, manifest: Manifest, store: Store) -> None:
    found = []
    if asked.source != manifest.source:
        found += differences(manifest.source.to_dict(), asked.source.to_dict(), "source ")
    if asked.shard_size != manifest.schema.shard_size:
        found.append(f"shard_size {manifest.schema.shard_size} there, {asked.shard_size} now")
    if asked.layout != manifest.layout:
        found.append(f"layout {manifest.layout} there, {asked.layout} now")
    chosen = manifest.job["runtime"]
    given = job_of(asked, chosen, asked.batch_size)
    if isinstance(asked.backbone, Runner):
        given["runtime"] = asked.backbone.runtime
    elif asked.runtime != "auto":
        given["runtime"] = asked.runtime
    found += differences(manifest.job, given)
    if found:
        raise StoreError(
            f"{store.out} belongs to another job: {'; '.join(found)}. Ask for the same, or "
            "extract into a new place."
        )


def _built(asked: Asked, threads: int | None) -> tuple[Runner, dict[str, Any]]:
    """Return the runner for a new store, and the job."""
    backbone = asked.backbone
    if isinstance(backbone, Runner):
        batch_size = _batch_of_runner(backbone, asked)
        return backbone, job_of(asked, backbone.runtime, batch_size)
    from trunkline.runtimes.deployment import deploy

    shape = _input_shape(asked, threads)
    calibration = asked.calibration
    if asked.precision == "int8" and calibration is None:
        calibration = _first_images(asked)
    prepared = _with_preprocessing(backbone, asked.decoding.preprocessing)
    runner = deploy(
        prepared,
        asked.runtime,
        asked.precision,
        shape,
        asked.decoding.bands is None,  # rasters are no 8-bit pictures: they come normalised
        threads,
        calibration,
    )
    batch_size = asked.batch_size or _batch_size(asked, threads)
    return runner, job_of(asked, runner.runtime, batch_size)


def _input_shape(asked: Asked, threads: int | None) -> tuple[int, int, int] | None:
    """Return the (N, H, W) that an engine is built for, None for images of their own sizes."""
    size = asked.decoding.size
    return None if size is None else (asked.batch_size or _batch_size(asked, threads), *size)


def _with_preprocessing(backbone: Backbone, preprocessing: Preprocessing) -> Backbone:
    """Return the backbone with the preprocessing that is asked for; the caller's stays as it is."""
    if backbone.preprocessing == preprocessing:
        return backbone
    import copy

    same = copy.copy(backbone)  # shares every tensor
    same.preprocessing = preprocessing
    return same


def _batch_of_runner(runner: Runner, asked: Asked) -> int:
    size, shape = asked.decoding.size, runner.input_shape
    if asked.runtime not in ("auto", runner.runtime) or asked.precision != runner.precision:
        raise ConfigError(
            f"the runner is {runner.runtime}, {runner.precision}; leave runtime and precision out, "
            "or give the backbone itself."
        )
    if runner.preprocess and asked.decoding.bands is not None:
        raise ConfigError(
            "the runner takes 8-bit pictures (preprocess=True), and bands= makes others; deploy it "
            "with preprocess=False, or give the backbone itself."
        )
    if shape is None:
        return 1 if size is None else asked.batch_size or _batch_size(asked, runner.threads)
    if size != shape[1:] or asked.batch_size not in (None, shape[0]):
        images = "sizes of their own" if size is None else f"{size[0]}x{size[1]}"
        raise ConfigError(
            f"the runner takes batches of {shape[0]} images of {shape[1]}x{shape[2]}, and the "
            f"images have {images}, batch_size={asked.batch_size}; deploy with "
            "input_shape=None, or set the size that it takes."
        )
    return shape[0]


def _batch_size(asked: Asked, threads: int | None) -> int:
    """Choose: enough for every thread to have work, little enough for the memory.

    A rule of thumb, which `benchmarks/extract.py --only batch` checks.
    """
    size = asked.decoding.size
    if size is None:
        return 1
    threads = threads or processor().cores
    numbers = sum(
        level.channels * math.prod(-(-side // level.stride) for side in size)
        for level in asked.returned
    )
    fitting = max(1, _BATCH_BYTES // (4 * numbers))
    wanted = min(_LARGEST_BATCH, _IMAGES_PER_THREAD * threads)
    return wanted if fitting >= wanted else max(1, fitting // threads * threads)


def _check_one_size(asked: Asked) -> None:
    if asked.decoding.size is None:
        raise ConfigError(
            "int8 is fitted to images of one size, and these keep sizes of their own; set a size, "
            "or give calibration images."
        )


def _first_images(asked: Asked) -> NDArray[Any]:
    """Decode images of the source that int8 is fitted to."""
    _check_one_size(asked)
    decoded = (
        decode_item(asked.decoding, item)[1]
        for item in islice(list_items(asked.source), 2 * _CALIBRATION_IMAGES)
    )
    found: Sequence[NDArray[Any]] = list(
        islice((one for one in decoded if one is not None), _CALIBRATION_IMAGES)
    )
    if not found:
        raise ImageError(
            f"none of the first {2 * _CALIBRATION_IMAGES} images of {asked.source.location} can be "
            "read, and int8 is fitted to them; give calibration= a folder of photos."
        )
    pictures = np.stack(found)
    if asked.decoding.bands is None:
        return pictures
    return normalised(pictures, asked.decoding.preprocessing)
