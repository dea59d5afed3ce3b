"""The shards of a store, computed by workers of a Ray cluster.

A row of Ray's dataset is the number of a shard, and ``map_batches`` hands it to an actor that keeps
its runner and its decoders from shard to shard. Actors write the store themselves, the way the
local engine does, so that the result is the same row for row, and a broken run goes on with either.
Ray's own checkpoints are not used: they remember rows of its dataset, and the store's records say
the same with the proof that the shard is on the disk.

The store must be on a disk that every node mounts; images come from wherever the nodes can read.

In the store's folder for what is not complete, a run has a folder of its own: actors look there
after every batch for the wish to stop, and each has a file there until its processes have ended and
its shared memory is free. Ray ends actors without asking, and would leave that memory behind.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trunkline.errors import ExtractionError, TooManyFailuresError, TrunklineError
from trunkline.extraction.durable import aside, remove, writing
from trunkline.extraction.jobs import computing_of
from trunkline.extraction.pipeline import Seconds
from trunkline.extraction.plan import Plan
from trunkline.extraction.session import Session, Tally
from trunkline.extraction.store import Store
from trunkline.runtimes.optional import require
from trunkline.runtimes.saving import is_trusted

_STOP = "stop"
_ENDING_SECONDS = 20.0  # that actors get to end their processes


class ShardWorker:
    """What an actor is: a session at a store. A batch goes in, what was done comes out.

    Args:
        out: The store, which exists.
        threads: Of the network.
        workers: Processes that decode.
        timeout_seconds: For one image.
        run: Folder of the run.
        trust: Of the store's runner: what the driver knows of it, whose machine may be another.
    """

    def __init__(
        self, out: str, threads: int, workers: int, timeout_seconds: float, run: str, trust: bool
    ) -> None:
        store = Store(out)
        if not store.begun:
            raise ExtractionError(
                f"{store.home} cannot be seen from this node; put the store on a disk that every "
                "node mounts."
            )
        self._stop = Path(run, _STOP)
        self._stopping = threading.Event()
        manifest = store.manifest()
        self._plan: Callable[[], Plan] = lambda: store.plan(manifest)
        self._session = Session(
            store,
            manifest,
            lambda: computing_of(store, manifest, threads, trust=trust),
            store.plan(manifest),
            workers=workers,
            timeout_seconds=timeout_seconds,
            stopping=self._stopping,
            progress=self._look,
        )
        self._alive = Path(run, f"actor-{secrets.token_hex(8)}")
        with writing(store.out):
            self._alive.touch()

    def __del__(self) -> None:
        """Ray Data's way to close an actor: it deletes what it made of the class."""
        if hasattr(self, "_alive"):
            self._session.close()
            self._alive.unlink(missing_ok=True)

    def _look(self, _: Tally) -> None:
        if self._stop.exists():
            self._stopping.set()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Compute shards.

        Args:
            batch: "shard": their numbers; "retry": whether only their failed images.

        Returns:
            What was done: one row.
        """
        tally = self._session.tally = Tally()
        self._session.plan = self._plan()  # it may have grown
        self._look(tally)
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
    trust: bool = False,
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
        stopping: Once set, actors end within a batch.
        progress: Is told after each shard.
        trust: Of the store's runner, see ``load_runner``; actors are told what holds here.

    Returns:
        What all actors did.

    Raises:
        NotInstalledError: ``pip install "trunkline[ray]"`` was not run.
        ExtractionError: Ray cannot be reached or started, or ended the run.
        TooManyFailuresError: See ``extract``.
        TrunklineError: What went wrong in an actor.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    _set_environment(local=address is None)
    require("ray.data", "engine='ray'")  # before anything is begun
    rows = _rows(store, shards, retry)
    tally = Tally()
    if not rows or stopping.is_set():
        return tally
    trusted = is_trusted(store.runner_folder, trust=trust)
    with _connected(address) as ray, _run_folder(store, stopping) as run:
        cores = threads or 1
        most = max(1, int(ray.cluster_resources().get("CPU", 1)) // cores)
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            ShardWorker,
            fn_constructor_args=(
                *(str(store.out), cores, min(workers, cores), timeout_seconds, str(run), trusted),
            ),
            batch_size=1,
            num_cpus=cores,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(most, len(rows))),
        )
        with closing(_results(ray, done)) as results:  # lets go of the actors
            for row in results:
                _add(tally, row)
                progress(tally)
                _check_failures(tally, max_errors)
    return tally


def _set_environment(*, local: bool) -> None:
    """Set what Ray reads when it is imported; what the caller has set stays.

    Nothing is reported to its makers. One that is started here listens on 127.0.0.1 alone.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if local:
        # Without it Ray replaces 127.0.0.1 by the address that other machines see. The name is
        # from the systems where this is the default.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else advice to Ray's makers


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Connect to Ray, quietly; end it afterwards if it was started here."""
    ray = require("ray", "engine='ray'")
    data = require("ray.data", "engine='ray'")
    mine = not ray.is_initialized()
    if mine:
        _start(ray, address)
    context = data.DataContext.get_current()
    wanted = {"enable_progress_bars": False, "raise_original_map_exception": True}
    before = {name: getattr(context, name) for name in wanted if hasattr(context, name)}
    log = logging.getLogger("ray.data")
    level = log.level
    try:
        for name in before:
            setattr(context, name, wanted[name])
        log.setLevel(logging.CRITICAL)
        yield ray
    finally:
        log.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)
        if mine:
            ray.shutdown()


def _start(ray: Any, address: str | None) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        # Where the caller has imported Ray, the environment came too late.
        ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = "on this machine" if address is None else f"at {address}"
        raise ExtractionError(
            f"Ray {where} cannot be used: {error}. Check `ray status`, give another address, or "
            "leave out engine='ray'."
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray puts its own there, which exits


@contextmanager
def _run_folder(store: Store, stopping: threading.Event) -> Iterator[Path]:
    """Make the folder in which a run and its actors find each other, and remove it afterwards."""
    folder = aside(store.scratch, f"ray-{secrets.token_hex(4)}")
    ended = threading.Event()

    def pass_on() -> None:
        while not ended.wait(0.1):
            if stopping.is_set():
                break
        (folder / _STOP).touch()

    with writing(store.out):
        folder.mkdir()
    thread = threading.Thread(target=pass_on, daemon=True)
    thread.start()
    try:
        yield folder
    finally:
        ended.set()
        thread.join()
        limit = time.monotonic() + _ENDING_SECONDS
        while any(folder.glob("actor-*")) and time.monotonic() < limit:
            time.sleep(0.05)
        remove(folder)


def kill_local() -> None:
    """Kill what Ray has started from this process; it would live on for a while without it."""
    psutil = require("psutil", "engine='ray'")  # which Ray brings
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _check_failures(tally: Tally, max_errors: int | None) -> None:
    if max_errors is not None and tally.failed > max_errors:
        raise TooManyFailuresError(
            f"{tally.failed} images failed, and max_errors allows {max_errors}. Finished shards "
            "are kept: mend the source, or allow more, and run the same command again."
        )


def _results(ray: Any, done: Any) -> Generator[dict[str, Any], None, None]:
    """Yield what actors return; their errors become those of the local engine."""
    try:
        yield from done.iter_rows()
    except ray.exceptions.RayError as error:
        ours = _ours(error)
        if ours is not None:
            raise ours from error
        raise ExtractionError(
            f"Ray ended the run: {error}. Finished shards are kept; see `ray status`, and run the "
            "same command again."
        ) from error


def _ours(error: BaseException | None) -> TrunklineError | None:
    """Return the error of this library that an error of Ray stands for."""
    while error is not None:
        cause = getattr(error, "cause", None)
        if isinstance(cause, TrunklineError):
            return cause
        error = cause if isinstance(cause, BaseException) else error.__cause__
    return None


def _rows(store: Store, shards: Iterable[int], retry: Sequence[int]) -> list[dict[str, Any]]:
    again = [{"shard": shard, "retry": True} for shard in retry]
    new = [{"shard": shard, "retry": False} for shard in shards if not store.is_done(shard)]
    return again + new


def _add(tally: Tally, row: dict[str, Any]) -> None:
    for name in ("images", "failed", "shards", "elsewhere"):
        setattr(tally, name, getattr(tally, name) + int(row[name]))
    first = float(row["first_seconds"])
    if first == first and tally.first_seconds is None:  # NaN where nothing was computed
        tally.first_seconds = first
    tally.seconds.add(Seconds(**{name: float(row[f"seconds_{name}"]) for name in vars(Seconds())}))
