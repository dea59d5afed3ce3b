"""Whether a store holds what its source gives, what it took to compute, and several made one."""

from __future__ import annotations

import os
import random
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.errors import ConfigError, ImageError, StoreError, UntrustedError
from trunkline.extraction.data_files import is_as_written
from trunkline.extraction.decoding import Decoding, decode_item
from trunkline.extraction.formats import ShardFormat
from trunkline.extraction.jobs import computing_of
from trunkline.extraction.manifests import Manifest
from trunkline.extraction.pipeline import Seconds
from trunkline.extraction.places import check_data, store_at
from trunkline.extraction.plan import Plan
from trunkline.extraction.pooling import unfit
from trunkline.extraction.records import Block, Item
from trunkline.extraction.store import Store
from trunkline.preprocessing import is_positive_int

_NAMED = 1000  # damaged files
_TOLERANCE = {"float32": 1e-4, "float16": 2e-3}
"""Largest difference over the largest number of a row: one rounding of float16 is 1e-3 of it."""


@dataclass(frozen=True, kw_only=True)
class RowCheck:
    """One row, computed again.

    Attributes:
        key: Of the image.
        verdict: "equal" (bit by bit), "close", "different", "source changed" (other bytes now),
            "failed again", "now readable", or "unreadable now".
        difference: Largest over the columns, relative to the row's largest number; None where
            nothing was compared.
    """

    key: str
    verdict: str
    difference: float | None

    @property
    def good(self) -> bool:
        """Whether the store agrees with its source."""
        return self.verdict in ("equal", "close", "failed again")


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What ``verify`` found.

    Attributes:
        out: The store.
        rows: That were computed again.
        verdicts: How many of each, see ``RowCheck``.
        damaged: Data files that are missing, or whose bytes are not those that were written; the
            first 1000 of them.
        num_damaged: How many there are.
        worst: Largest difference.
        bad: Rows that do not agree.
        left_out: Why no rows were computed again, None where they were.
    """

    out: str
    rows: int
    verdicts: dict[str, int]
    damaged: tuple[str, ...]
    num_damaged: int
    worst: float
    bad: tuple[RowCheck, ...]
    left_out: str | None = None

    @property
    def good(self) -> bool:
        """Whether nothing of what was checked disagrees."""
        return not self.bad and not self.num_damaged

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {**asdict(self), "good": self.good}


@dataclass(frozen=True, kw_only=True)
class StatsReport:
    """What ``stats`` found.

    Attributes:
        out: The store.
        images: Rows of finished shards.
        failed: Those of them that failed.
        shards: Finished.
        shards_planned: As far as the source was listed.
        listed: Whether it was listed to its end.
        bytes: Of the data.
        images_per_second: Rows over the sum of the shards' times: of one worker.
        seconds: Summed over shards, by stage.
        bottleneck: What computing waited for most: "compute", "decode" or "write".
        failures: The most frequent reasons, with how often; file names are left out.
        job: The fingerprint.
    """

    out: str
    images: int
    failed: int
    shards: int
    shards_planned: int
    listed: bool
    bytes: int
    images_per_second: float
    seconds: dict[str, float]
    bottleneck: str
    failures: tuple[tuple[str, int], ...]
    job: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return asdict(self)


def verify(
    out: str | os.PathLike[str],
    count: int = 20,
    *,
    seed: int = 0,
    threads: int | None = None,
    trust: bool = False,
) -> VerifyReport:
    """Compare every data file with its hash, and compute random rows again.

    The rows are computed by the runner that is kept in the store. Memory does not grow with the
    number of rows.

    A store of elsewhere runs nothing here: where its runner could, files are compared with their
    hashes, and the report says in ``left_out`` why no row was computed.

    Args:
        out: A store.
        count: Rows of undamaged shards; all of them where there are no more.
        seed: Of the choice.
        threads: That the network uses; None for all cores.
        trust: Whoever wrote the store may run code here, see ``load_runner``.

    Returns:
        How they compare. On the processor that computed the store rows are equal bit by bit; on
        another one they are close: within 1e-4 (float32) or 2e-3 (float16) of a row's largest.

    Raises:
        ConfigError: ``count`` is not a positive integer.
        StoreError: No store, one whose bookkeeping is damaged or of other data, or one without a
            finished shard.
    """
    if not is_positive_int(count):
        raise ConfigError(f"count={count!r} must be a positive integer.")
    store = store_at(out)
    manifest = store.manifest()
    plan = store.plan(manifest)
    check_data(store, manifest)
    form = store.format(manifest)
    found = _hashed(store, form, plan)
    if not found.shards:
        raise StoreError(f"{store.out} has no finished shard; run the command that makes it first.")
    picked, left_out = chosen(found.intact, count, seed), None
    try:
        computing = computing_of(store, manifest, threads, trust=trust)
    except UntrustedError as error:
        picked, left_out = iter(()), str(error)
    decoding = Decoding.from_dict(manifest.source, manifest.job["images"])
    checks = []
    for place, numbers in picked:
        shard = found.shards[place]
        items = plan.items(shard)
        stored = _rows(store, form, shard, numbers)
        checks += [
            _check(items[number], row, decoding, manifest, computing)
            for number, row in zip(numbers, stored, strict=True)
        ]
    return VerifyReport(
        out=str(store.out),
        rows=len(checks),
        verdicts=dict(Counter(one.verdict for one in checks)),
        damaged=tuple(found.damaged),
        num_damaged=found.num_damaged,
        worst=max((one.difference or 0.0 for one in checks), default=0.0),
        bad=tuple(one for one in checks if not one.good),
        left_out=left_out,
    )


@dataclass
class _Hashed:
    """What became of the files of all finished shards: two numbers for each, and few names."""

    shards: array[int] = field(default_factory=lambda: array("q"))
    intact: array[int] = field(default_factory=lambda: array("q"))  # rows that can be relied on
    damaged: list[str] = field(default_factory=list)
    num_damaged: int = 0

    def note(self, names: list[str]) -> None:
        """Note damaged files."""
        self.num_damaged += len(names)
        self.damaged += names[: _NAMED - len(self.damaged)]


def _hashed(store: Store, form: ShardFormat, plan: Plan) -> _Hashed:
    found, length = _Hashed(), 0
    for record in store.records():
        store.check_files(form, record)
        length = record.shard * plan.shard_size + record.images
        if record.images != plan.size(record.shard):
            raise StoreError(
                f"{store.record_path(record.shard)} tells of {record.images} images, and the plan "
                f"has {plan.size(record.shard)} of them in that shard; remove it, and run the "
                "command that made the store again to have the shard computed anew."
            )
        names = [
            name
            for name, sha256 in record.files.items()
            if not is_as_written(store.out / name, sha256)
        ]
        found.note(names)
        found.shards.append(record.shard)
        found.intact.append(0 if names else record.images)
    if found.shards:
        counts = plan.counts()
        complete = counts.complete and counts.shards == len(found.shards)
        common = form.damaged(length, complete=complete)
        found.note(common)
        if common:  # no row can be read without them
            found.intact = array("q", bytes(8 * len(found.shards)))
    return found


def chosen(sizes: Sequence[int], count: int, seed: int) -> Iterator[tuple[int, list[int]]]:
    """Choose rows of shards by chance, in memory that ``count`` alone decides.

    Args:
        sizes: Rows of each shard.
        count: Rows to choose; all of them where there are no more.
        seed: Of the choice; the same one gives the same rows.

    Yields:
        For each shard that rows were chosen of its place in ``sizes`` and the numbers of its rows,
        from 0, in order.
    """
    total = sum(sizes)
    drawn = random.Random(seed).sample(range(total), min(count, total))  # noqa: S311
    rows, end = iter(sorted(drawn)), 0
    row = next(rows, None)
    for place, size in enumerate(sizes):
        begin, end = end, end + size
        numbers = []
        while row is not None and row < end:
            numbers.append(row - begin)
            row = next(rows, None)
        if numbers:
            yield place, numbers


def _rows(store: Store, form: ShardFormat, shard: int, numbers: Sequence[int]) -> list[Block]:
    """Read single rows of a shard, each as a block of its own."""
    found, begin = [], 0
    wanted = set(numbers)
    for block in form.blocks(shard):
        for place in range(len(block.rows)):
            if begin + place in wanted:
                values = {name: array[place : place + 1] for name, array in block.values.items()}
                found.append(Block([block.rows[place]], values))
        begin += len(block.rows)
    if len(found) < len(wanted):
        raise StoreError(
            f"the files of shard {shard} have {begin} rows, and their record tells of more; remove "
            f"{store.record_path(shard)} and run the command that made the store again to have the "
            "shard computed anew."
        )
    return found


def _check(
    item: Item, stored: Block, decoding: Decoding, manifest: Manifest, computing: Any
) -> RowCheck:
    row = stored.rows[0]
    decoded, pixels = decode_item(decoding, item)
    if decoded.row.sha256 != row.sha256 and None not in (decoded.row.sha256, row.sha256):
        return RowCheck(key=item.key, verdict="source changed", difference=None)
    if pixels is None:
        verdict = "failed again" if row.status == "failed" else "unreadable now"
        return RowCheck(key=item.key, verdict=verdict, difference=None)
    batch = np.zeros((manifest.job["batch_size"], *pixels.shape), pixels.dtype)
    batch[0] = pixels
    try:
        computed = computing(batch, Seconds())
    except ImageError:  # the network cannot take it, see ``computing``
        verdict = "failed again" if row.status == "failed" else "unreadable now"
        return RowCheck(key=item.key, verdict=verdict, difference=None)
    if unfit({name: values[:1] for name, values in computed.items()}):
        verdict = "failed again" if row.status == "failed" else "different"
        return RowCheck(key=item.key, verdict=verdict, difference=None)
    if row.status == "failed":
        return RowCheck(key=item.key, verdict="now readable", difference=None)
    difference = max(
        _difference(stored.values[name][0], values[0]) for name, values in computed.items()
    )
    limit = _TOLERANCE[manifest.schema.dtype]
    verdict = "equal" if difference == 0 else "close" if difference <= limit else "different"
    return RowCheck(key=item.key, verdict=verdict, difference=difference)


def _difference(stored: NDArray[Any], computed: NDArray[Any]) -> float:
    one, other = stored.astype(np.float64), computed.astype(np.float64)
    if one.shape != other.shape:
        return float("inf")
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return float("inf")  # an infinity is no number that another could equal
    largest = np.abs(other).max(initial=0.0)
    return float(np.abs(one - other).max(initial=0.0) / (largest or 1.0))


def stats(out: str | os.PathLike[str]) -> StatsReport:
    """Add up what the shards of a store took.

    Args:
        out: A store, finished or not.

    Raises:
        StoreError: No store, or one whose bookkeeping is damaged or of other data.
    """
    store = store_at(out)
    manifest = store.manifest()
    counts = store.plan(manifest).counts()
    check_data(store, manifest)
    seconds: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    images = failed = shards = 0
    for record in store.records():
        seconds.update(record.seconds)
        reasons.update(_reason(key, error) for key, error in record.failures)
        images += record.images
        failed += record.failed
        shards += 1
    stages = {
        "compute": seconds["compute"] + seconds["pool"],
        "decode": seconds["wait"],
        "write": max(0.0, seconds["write"] - seconds["compute"] - seconds["pool"]),
    }
    return StatsReport(
        out=str(store.out),
        images=images,
        failed=failed,
        shards=shards,
        shards_planned=counts.shards,
        listed=counts.complete,
        bytes=_bytes(store.out),
        images_per_second=images / seconds["total"] if seconds["total"] else 0.0,
        seconds={name: round(value, 3) for name, value in seconds.items()},
        bottleneck=max(stages, key=lambda name: stages[name]),
        failures=tuple(reasons.most_common(5)),
        job=manifest.job,
    )


def _bytes(folder: str | os.PathLike[str]) -> int:
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # a run that is at work has replaced it
                total += os.lstat(os.path.join(where, name)).st_size
    return total


def _reason(key: str, error: str) -> str:
    """Return a reason without the name of the file, so that equal ones can be counted."""
    name = key.rsplit("/", 1)[-1]
    words = ("…" if name in word else word for word in error.split())
    return " ".join("N" if word.isdigit() else word for word in words)
