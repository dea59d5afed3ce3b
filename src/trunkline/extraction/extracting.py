"""Features of many images in a store: resumable, in bounded memory, never ended by one image."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from trunkline.errors import ConfigError
from trunkline.extraction.asked import Asked, preprocessing_for
from trunkline.extraction.checks import (
    Running,
    check_options,
    checked_backbone,
    checked_bands,
    checked_levels,
)
from trunkline.extraction.decoding import Decoding
from trunkline.extraction.formats import format_of
from trunkline.extraction.jobs import continued, open_job, possible
from trunkline.extraction.listing import Listing
from trunkline.extraction.manifests import Manifest
from trunkline.extraction.places import check_apart, store_at
from trunkline.extraction.plan import Plan
from trunkline.extraction.pooling import check_pool
from trunkline.extraction.progress import told
from trunkline.extraction.records import Dtype
from trunkline.extraction.reports import ExtractReport, Progress
from trunkline.extraction.session import Session, Tally
from trunkline.extraction.sources import source_of
from trunkline.extraction.spooling import is_in_memory, source_in_memory, spooled
from trunkline.extraction.store import Store
from trunkline.images import MAX_BYTES, MAX_PIXELS
from trunkline.photos import Alpha, Decode, Truncated
from trunkline.preprocessing import Preprocessing
from trunkline.rasters import Bands
from trunkline.runtimes.optional import require
from trunkline.runtimes.processor import processor
from trunkline.runtimes.runner import Runner

if TYPE_CHECKING:
    from trunkline.backbones.backbone import Backbone

SHARD_SIZE = 10_000


def extract(  # every option of a job is a keyword of its own, typed and documented here
    src: Any,
    out: str | os.PathLike[str],
    backbone: Backbone | Runner,
    *,
    levels: tuple[int, ...] | None = None,
    pool: str | None = None,
    normalize: bool = False,
    dtype: Dtype | None = None,
    layout: str | None = None,
    preprocessing: Preprocessing | None = None,
    decode: Decode = "exact",
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    alpha: Alpha = "white",
    truncated: Truncated = "refuse",
    bands: Bands | Sequence[int] | None = None,
    white: float | tuple[float, ...] | None = None,
    column: str | None = None,
    key_column: str | None = None,
    runtime: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    calibration: Any = None,
    batch_size: int | None = None,
    workers: int | None = None,
    timeout_seconds: float = 60.0,
    shard_size: int = SHARD_SIZE,
    shard: tuple[int, int] | None = None,
    retry_failed: bool = False,
    max_errors: int | None = None,
    engine: str = "local",
    ray_address: str | None = None,
    progress: bool | Callable[[Progress], None] | None = None,
    stopping: threading.Event | None = None,
    trust: bool = False,
) -> ExtractReport:
    """Compute the features of every image of a source and keep them in a store.

    The same call goes on where an earlier one ended, however it ended: shards that are finished
    stay, the others are computed. Several runs may work on one store at once; each takes shards
    that no other has. An image that cannot be read becomes a row that says why.

    Args:
        src: Folder, glob, list (``.txt``, ``.csv``, ``.jsonl``), Parquet file or folder, tar, or a
            URL of any of them; see ``docs/sources.md``. Or images themselves: a uint8 array
            ``(N, H, W, 3)``, a dataset of PyTorch, an iterable; they are written into
            ``OUT.images.parquet`` first.
        out: ``NAME.parquet`` (a row per image, vectors) or ``NAME.zarr`` (maps); of any other name
            with a layout. Bookkeeping is kept beside it, in ``NAME.parquet.trunkline``.
        backbone: With its weights; or a ``Runner``, which has runtime and precision already.
        levels: Which maps: 0 to 3 are strides 4 to 32, in this order; None all that it returns.
        pool: "avg", "max" or "gem" for vectors (C,), "none" for maps (C, h, w). Default: "none" for
            ``.zarr``, "avg" otherwise.
        normalize: Scale what belongs to one image and level to length 1 (L2).
        dtype: "float32" or "float16". Default: "float16" for ``.zarr``, "float32" otherwise.
        layout: "clip-retrieval" for one level as .npy files with tables beside them.
        preprocessing: None takes what the weights expect.
        decode: "fast" decodes large JPEGs at reduced scale; see ``docs/images.md``.
        max_pixels: Larger images fail.
        max_bytes: Larger files fail; of what comes through a network no more is read.
        alpha: What transparent pixels are laid over, "white" or "black"; "ignore" leaves a channel
            of transparency out, which in a TIFF may be a band of its own.
        truncated: "keep" takes a JPEG whose end is missing as far as it goes, "refuse" lets it
            fail.
        bands: Read rasters of any number of bands and bits, see ``trunkline.images.decode_bands``:
            numbers of bands, the first one is 1, in the order of the channels; or ``Bands``.
        white: Of the bands: the number that is white, such as 10000. All bands without ``bands``.
        column: Of a Parquet source: paths or bytes. None finds it.
        key_column: Of a Parquet source: keys. None takes paths or row numbers.
        runtime: Engine, see ``deploy``.
        precision: "fp32", "bf16" or "int8"; None for the runner's own, or "fp32".
        threads: Of the network; None for all cores.
        calibration: For "int8", see ``deploy``; None takes the first 300 images of the source.
        batch_size: None chooses by threads and memory.
        workers: Processes that decode; None for half the cores. 0 decodes in a thread of this
            process, where none may be started: slower, and ``timeout_seconds`` cannot be kept.
        timeout_seconds: An image that takes longer to read and decode has failed.
        shard_size: Images of a shard, which is computed whole or again.
        shard: (i, n): only shards whose number leaves i when divided by n.
        retry_failed: First try the failed images of finished shards again.
        max_errors: End the run when more images than this have failed in it.
        engine: "local", or "ray" for workers of a Ray cluster.
        ray_address: Of the cluster; None starts Ray on this machine, or uses one that is connected.
        progress: Called after every batch with how far it is. True shows the bar of the command
            line on standard error, where that is a terminal, and nothing elsewhere.
        stopping: Once set, the run ends within a batch; unfinished shards are given up.
        trust: Go on with a store of elsewhere although its runner could run code here: see
            ``load_runner``. Only runners of "inductor", and those of layers of one's own, could.

    Returns:
        What was done.

    Raises:
        ConfigError: An option outside what is allowed; ``out`` and ``src`` in each other's way.
        SourceError: The source cannot be listed, or has no images.
        StoreError: ``out`` belongs to another job, is damaged, or holds what extract did not write.
        UntrustedError: ``out`` was begun elsewhere, with a runner that could run code.
        OutputError: ``out`` cannot be written; finished shards stay. Nothing is written where none
            is missing.
        ExtractionError: The network fails on any image, or processes that decode cannot live.
        TooManyFailuresError: More than ``max_errors`` images failed; finished shards stay.
        NotInstalledError: ``pip install "trunkline[extract]"`` was not run.
        DeploymentError: As ``deploy``.

    Example:
        >>> import tempfile
        >>> from trunkline import create_backbone, extract
        >>> backbone = create_backbone("resnet18", return_idx=(3,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = extract("examples", f"{folder}/f.parquet", backbone, runtime="torch")
        >>> report.images, report.failed, report.levels
        (3, 0, ('stage3_stride_32',))
    """
    began = time.perf_counter()
    kind = format_of(out, layout)
    maps = kind.name == "zarr"
    # All of these before anything is there that only the same options could go on with.
    for library in (
        "pebble",
        "pyarrow",
        *(("zarr",) if maps else ()),
        *(("ray",) if engine == "ray" else ()),
    ):
        require(library, "extracting features")
    store = store_at(out)
    in_memory = is_in_memory(src)
    if in_memory and (column is not None or key_column is not None):
        raise ConfigError("images in memory have no columns; leave out column and key_column.")
    source = (
        source_in_memory(out) if in_memory else source_of(src, column=column, key_column=key_column)
    )
    check_apart(source, store)
    chosen = preprocessing_for(checked_backbone(backbone), preprocessing)
    given = backbone.precision if isinstance(backbone, Runner) else "fp32"
    asked = Asked(
        backbone=backbone,
        source=source,
        decoding=Decoding(
            source=source,
            preprocessing=chosen,
            decode=decode,
            max_pixels=max_pixels,
            max_bytes=max_bytes,
            alpha=alpha,
            truncated=truncated,
            bands=checked_bands(bands, white),
        ),
        levels=checked_levels(levels),
        pool=check_pool(("none" if maps else "avg") if pool is None else pool),
        normalize=normalize,
        dtype=("float16" if maps else "float32") if dtype is None else dtype,
        runtime=runtime,
        precision=given if precision is None else precision,
        batch_size=batch_size,
        calibration=calibration,
        shard_size=shard_size,
        layout=layout,
    )
    running = Running(
        workers=workers,
        timeout_seconds=timeout_seconds,
        shard=shard,
        retry_failed=retry_failed,
        max_errors=max_errors,
        engine=engine,
        ray_address=ray_address,
        threads=threads,
        progress=progress,
        stopping=stopping,
        trust=trust,
    )
    check_options(asked, running)
    asked = possible(asked, store, threads)
    if in_memory:
        spooled(src, out, rasters=asked.decoding.bands is not None)
    with told(progress) as tell:
        return _Run(asked, store, running, tell, began).report()


class _Run:
    """One call of ``extract``."""

    def __init__(
        self,
        asked: Asked,
        store: Store,
        running: Running,
        tell: Callable[[Progress], None] | None,
        began: float,
    ) -> None:
        self._asked = asked
        self._store = store
        self._running = running
        workers = running.workers
        self._workers = max(1, processor().cores // 2) if workers is None else workers
        self._shard = running.shard or (0, 1)
        self._progress = tell
        self._stopping = running.stopping or threading.Event()
        self._began = began
        self._before = 0

    def report(self) -> ExtractReport:
        """Do what is missing, and return what was done."""
        again = self._running.retry_failed
        report = self._finished(retry_failed=again)
        if report is not None:
            return report
        if self._running.engine == "ray":
            return self._on_ray(retry_failed=again)
        return self._here(retry_failed=again)

    def _here(self, *, retry_failed: bool) -> ExtractReport:
        """Compute in this process and its workers."""
        manifest, computing = open_job(
            self._asked, self._store, self._running.threads, trust=self._running.trust
        )
        plan = self._store.plan(manifest)
        before = self._done_before(plan)
        with self._store.owned():
            session = Session(
                self._store,
                manifest,
                computing,
                plan,
                workers=self._workers,
                timeout_seconds=self._running.timeout_seconds,
                stopping=self._stopping,
                began=self._began,
                max_errors=self._running.max_errors,
                progress=lambda tally: self._tell(plan, tally),
            )
            with Listing(plan, self._stopping) as listing, closing(session):
                if retry_failed:
                    session.retry(self._failed_shards())
                session.compute(self._mine(listing))
            return self._report(manifest, plan, session.tally, before)

    def _on_ray(self, *, retry_failed: bool) -> ExtractReport:
        """Compute on a cluster."""
        from trunkline.extraction.on_ray import compute_on_ray

        manifest, _ = open_job(
            self._asked, self._store, self._running.threads, trust=self._running.trust
        )
        plan = self._store.plan(manifest)
        before = self._done_before(plan)
        with self._store.owned(), Listing(plan, self._stopping) as listing:
            tally = compute_on_ray(
                self._store,
                self._mine(listing),
                retry=self._failed_shards() if retry_failed else [],
                address=self._running.ray_address,
                threads=self._running.threads,
                workers=self._workers,
                timeout_seconds=self._running.timeout_seconds,
                max_errors=self._running.max_errors,
                stopping=self._stopping,
                progress=lambda tally: self._tell(plan, tally),
                trust=self._running.trust,
            )
            return self._report(manifest, plan, tally, before)

    def _finished(self, *, retry_failed: bool) -> ExtractReport | None:
        """Return the report of a store that lacks nothing, None of any other.

        Nothing is started, nor written: the store may be one that cannot be written to.
        """
        if not self._store.begun:
            return None
        plan = self._store.plan(self._store.manifest())
        counts = plan.counts()
        if not counts.complete or len(self._store.done()) < counts.shards:
            return None
        if retry_failed and self._failed_shards():
            return None
        manifest = continued(self._asked, self._store)
        self._store.clean()
        return self._report(manifest, plan, Tally(), self._done_before(plan))

    def _mine(self, listing: Listing) -> Iterator[int]:
        part, parts = self._shard
        return (number for number in listing.shards() if number % parts == part)

    def _failed_shards(self) -> list[int]:
        part, parts = self._shard
        return [
            record.shard
            for record in self._store.records()
            if record.failed and record.shard % parts == part
        ]

    def _done_before(self, plan: Plan) -> int:
        done = self._store.done()
        self._before = sum(plan.size(shard) for shard in done)
        return len(done)

    def _tell(self, plan: Plan, tally: Tally) -> None:
        if self._progress is None:
            return
        counts = plan.counts()
        self._progress(
            Progress(
                images=tally.images + tally.under_way,
                failed=tally.failed,
                before=self._before,
                total=counts.images,
                listed=counts.complete,
                seconds=time.perf_counter() - self._began,
            )
        )

    def _report(self, manifest: Manifest, plan: Plan, tally: Tally, before: int) -> ExtractReport:
        counts = plan.counts()
        missing = counts.shards - len(self._store.done())
        complete = counts.complete and not missing
        if complete:
            self._store.format(manifest).finish(counts.images)
        seconds = time.perf_counter() - self._began
        return ExtractReport(
            out=str(self._store.out),
            images=tally.images,
            failed=tally.failed,
            shards=tally.shards,
            shards_before=before,
            shards_missing=missing,
            complete=complete,
            stopped=self._stopping.is_set(),
            seconds=seconds,
            images_per_second=tally.images / seconds,
            first_seconds=tally.first_seconds,
            stages={name: round(value, 3) for name, value in asdict(tally.seconds).items()},
            backbone=self._asked.backbone.variant,
            runtime=manifest.job["runtime"],
            precision=manifest.job["precision"],
            batch_size=manifest.job["batch_size"],
            levels=tuple(one.name for one in manifest.schema.columns),
            passed_over=dict(plan.passed_over.most_common()),
        )
