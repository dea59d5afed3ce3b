"""Whether a store holds what its source gives, what it took to compute, and several made one."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.errors import ConfigError, StoreError, UntrustedError
from trunkline.extraction.decoding import Decoding, decode_item
from trunkline.extraction.jobs import computing_of
from trunkline.extraction.pipeline import Seconds
from trunkline.extraction.records import Block, Item
from trunkline.extraction.store import Manifest, Store
from trunkline.preprocessing import is_positive_int

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
        damaged: Data files whose bytes are not those that were written.
        worst: Largest difference.
        bad: Rows that do not agree.
        left_out: Why no rows were computed again, None where they were.
    """

    out: str
    rows: int
    verdicts: dict[str, int]
    damaged: tuple[str, ...]
    worst: float
    bad: tuple[RowCheck, ...]
    left_out: str | None = None

    @property
    def good(self) -> bool:
        """Whether nothing of what was checked disagrees."""
        return not self.bad and not self.damaged

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
    """Compute random rows of a store again, with the runner that is kept in it.

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
        StoreError: No store, one that is damaged, or one without a finished shard.
    """
    if not is_positive_int(count):
        raise ConfigError(f"count={count!r} must be a positive integer.")
    store = Store(Path(out).absolute())
    manifest = store.manifest()
    plan = store.plan(manifest)
    records = list(store.records())
    if not records:
        raise StoreError(f"{store.out} has no finished shard; run the command that makes it first.")
    damaged = _damaged(
        store, {name: digest for one in records for name, digest in one.files.items()}
    )
    places = [  # what is damaged cannot be relied on to be read
        (one.shard, number)
        for one in records
        if one.files.keys().isdisjoint(damaged)
        for number in range(one.images)
    ]
    chosen = sorted(random.Random(seed).sample(places, min(count, len(places))))  # noqa: S311
    left_out = None
    try:
        computing = computing_of(store, manifest, threads, trust=trust)
    except UntrustedError as error:
        chosen, left_out = [], str(error)
    decoding = Decoding.from_dict(manifest.source, manifest.job["images"])
    checks = []
    for shard in sorted({shard for shard, _ in chosen}):
        numbers = [number for one, number in chosen if one == shard]
        items = plan.items(shard)
        stored = _rows(store, manifest, shard, numbers)
        checks += [
            _check(items[number], row, decoding, manifest, computing)
            for number, row in zip(numbers, stored, strict=True)
        ]
    return VerifyReport(
        out=str(store.out),
        rows=len(checks),
        verdicts=dict(Counter(one.verdict for one in checks)),
        damaged=damaged,
        worst=max((one.difference or 0.0 for one in checks), default=0.0),
        bad=tuple(one for one in checks if not one.good),
        left_out=left_out,
    )


def _damaged(store: Store, files: dict[str, str]) -> tuple[str, ...]:
    from trunkline.outputs import sha256_of

    return tuple(
        name
        for name, digest in files.items()
        if not (store.out / name).is_file() or sha256_of(store.out / name) != digest
    )


def _rows(store: Store, manifest: Manifest, shard: int, numbers: Sequence[int]) -> list[Block]:
    """Read single rows of a shard, each as a block of its own."""
    found, begin = [], 0
    wanted = set(numbers)
    for block in store.format(manifest).blocks(shard):
        for place in range(len(block.rows)):
            if begin + place in wanted:
                values = {name: array[place : place + 1] for name, array in block.values.items()}
                found.append(Block([block.rows[place]], values))
        begin += len(block.rows)
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
    if row.status == "failed":
        return RowCheck(key=item.key, verdict="now readable", difference=None)
    batch = np.zeros((manifest.job["batch_size"], *pixels.shape), np.uint8)
    batch[0] = pixels
    computed = computing(batch, Seconds())
    difference = max(
        _difference(stored.values[name][0], values[0]) for name, values in computed.items()
    )
    limit = _TOLERANCE[manifest.schema.dtype]
    verdict = "equal" if difference == 0 else "close" if difference <= limit else "different"
    return RowCheck(key=item.key, verdict=verdict, difference=difference)


def _difference(stored: NDArray[Any], computed: NDArray[Any]) -> float:
    one, other = stored.astype(np.float64), computed.astype(np.float64)
    if not np.array_equal(np.isfinite(one), np.isfinite(other)):
        return float("inf")
    finite = np.isfinite(one)
    largest = np.abs(other[finite]).max(initial=0.0)
    return float(np.abs(one - other)[finite].max(initial=0.0) / (largest or 1.0))


def stats(out: str | os.PathLike[str]) -> StatsReport:
    """Add up what the shards of a store took.

    Args:
        out: A store, finished or not.

    Raises:
        StoreError: No store, or one that is damaged.
    """
    store = Store(Path(out).absolute())
    manifest = store.manifest()
    counts = store.plan(manifest).counts()
    records = list(store.records())
    seconds: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for record in records:
        seconds.update(record.seconds)
        reasons.update(_reason(key, error) for key, error in record.failures)
    images = sum(one.images for one in records)
    stages = {
        "compute": seconds["compute"] + seconds["pool"],
        "decode": seconds["wait"],
        "write": max(0.0, seconds["write"] - seconds["compute"] - seconds["pool"]),
    }
    return StatsReport(
        out=str(store.out),
        images=images,
        failed=sum(one.failed for one in records),
        shards=len(records),
        shards_planned=counts.shards,
        listed=counts.complete,
        bytes=sum(path.stat().st_size for path in store.out.rglob("*") if path.is_file()),
        images_per_second=images / seconds["total"] if seconds["total"] else 0.0,
        seconds={name: round(value, 3) for name, value in seconds.items()},
        bottleneck=max(stages, key=lambda name: stages[name]),
        failures=tuple(reasons.most_common(5)),
        job=manifest.job,
    )


def _reason(key: str, error: str) -> str:
    """Return a reason without the name of the file, so that equal ones can be counted."""
    name = key.rsplit("/", 1)[-1]
    words = ("…" if name in word else word for word in error.split())
    return " ".join("N" if word.isdigit() else word for word in words)
