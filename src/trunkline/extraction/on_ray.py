"""The shards of a store, computed by workers of a Ray cluster.

A row of Ray's dataset is the number of a shard, and ``map_batches`` hands it to an actor that keeps
its runner and its decoders from shard to shard. Actors write the store themselves, the way the
local engine does, so that the result is the same row for row, and a broken run goes on with either.
Ray's own checkpoints are not used: they remember rows of its dataset, and the store's records say
the same with the proof that the shard is on the disk.

The store must be on a disk that every node mounts; images come from wherever the nodes can read.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from trunkline.errors import ExtractionError, TooManyFailuresError
from trunkline.extraction.jobs import computing_of
from trunkline.extraction.pipeline import Seconds
from trunkline.extraction.plan import Plan
from trunkline.extraction.session import Session, Tally
from trunkline.extraction.store import Store
from trunkline.runtimes.optional import require


class ShardWorker:
    """What an actor is: a session at a store. A batch goes in, what was done comes out.

    Args:
        out: The store, which exists.
        threads: Of the network.
        workers: Processes that decode.
        timeout_seconds: For one image.
    """

    def __init__(self, out: str, threads: int, workers: int, timeout_seconds: float) -> None:
        store = Store(out)
        if not store.begun:
            raise ExtractionError(
                f"{store.home} cannot be seen from this node; put the store on a disk that every "
                "node mounts."
            )
        manifest = store.manifest()
        self._plan: Callable[[], Plan] = lambda: store.plan(manifest)
        self._session = Session(
            store,
            manifest,
            lambda: computing_of(store, manifest, threads),
            store.plan(manifest),
            workers=workers,
            timeout_seconds=timeout_seconds,
            stopping=threading.Event(),
        )
        self._session.__enter__()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Compute shards.

        Args:
            batch: "shard": their numbers; "retry": whether only their failed images.

        Returns:
            What was done: one row.
        """
        tally = self._session.tally = Tally()
        self._session.plan = self._plan()  # it may have grown
        for shard, retry in zip(batch["shard"], batch["retry"], strict=True):
            (self._session.retry if retry else self._session.compute)([int(shard)])
        seconds = asdict(tally.seconds)
        first = float("nan") if tally.first_seconds is None else tally.first_seconds
        return {
            **{
                name: [getattr(tally, name)] for name in ("images", "failed", "shards", "elsewhere")
            },
            "first_seconds": [first],
            **{f"seconds_{name}": [value] for name, value in seconds.items()},
        }


def compute_on_ray(
    store: Store,
    shards: Iterable[int],
    *,
    retry: Sequence[int],
    address: str | None,
    threads: int | None,
    workers: int,
    timeout_seconds: float,
    max_errors: int | None,
    stopping: threading.Event,
    progress: Callable[[Tally], None],
) -> Tally:
    """Compute shards on a cluster.

    Args:
        store: That has a manifest and a runner.
        shards: Numbers of those to compute.
        retry: Numbers of finished ones whose failed images are tried again first.
        address: Of the cluster; None uses one that is connected, or starts Ray on this machine.
        threads: Cores of one actor; None for one core, so that there are as many as cores.
        workers: Decoding processes of one actor, at most one per core that it has.
        timeout_seconds: For one image.
        max_errors: See ``extract``; known after each shard.
        stopping: Once set, no result is waited for any more.
        progress: Is told after each shard.

    Returns:
        What all actors did.

    Raises:
        NotInstalledError: ``pip install "trunkline[ray]"`` was not run.
        TooManyFailuresError: See ``extract``.
    """
    ray = _connected(address)
    data = require("ray.data", "engine='ray'")
    cores = threads or 1
    rows = _rows(store, shards, retry)
    tally = Tally()
    if not rows:
        return tally
    most = max(1, int(ray.cluster_resources().get("CPU", 1)) // cores)
    done = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        ShardWorker,
        fn_constructor_args=(str(store.out), cores, min(workers, cores), timeout_seconds),
        batch_size=1,
        num_cpus=cores,
        compute=data.ActorPoolStrategy(min_size=1, max_size=min(most, len(rows))),
    )
    for row in _until(stopping, done.iter_rows()):
        _add(tally, row)
        progress(tally)
        if max_errors is not None and tally.failed > max_errors:
            raise TooManyFailuresError(
                f"{tally.failed} images failed, and max_errors allows {max_errors}. Finished "
                "shards are kept: mend the source, or allow more, and run the same command again."
            )
    return tally


def _connected(address: str | None) -> Any:
    """Return Ray, connected. What is reported to its makers is switched off."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = require("ray", "engine='ray'")
    data = require("ray.data", "engine='ray'")
    if not ray.is_initialized():
        ray.init(
            address=address,
            log_to_driver=False,
            include_dashboard=False if address is None else None,
            logging_level="ERROR",
        )
    data.DataContext.get_current().enable_progress_bars = False
    return ray


def _rows(store: Store, shards: Iterable[int], retry: Sequence[int]) -> list[dict[str, Any]]:
    again = [{"shard": shard, "retry": True} for shard in retry]
    new = [{"shard": shard, "retry": False} for shard in shards if not store.is_done(shard)]
    return again + new


def _until(stopping: threading.Event, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield row
        if stopping.is_set():
            return


def _add(tally: Tally, row: dict[str, Any]) -> None:
    for name in ("images", "failed", "shards", "elsewhere"):
        setattr(tally, name, getattr(tally, name) + int(row[name]))
    first = float(row["first_seconds"])
    if first == first and tally.first_seconds is None:  # NaN where nothing was computed
        tally.first_seconds = first
    tally.seconds.add(Seconds(**{name: float(row[f"seconds_{name}"]) for name in vars(Seconds())}))
