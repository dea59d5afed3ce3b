"""What a run of ``extract`` tells: how far it is, and in the end what it did."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far an extraction is.

    Attributes:
        images: Rows that this run has computed.
        failed: Those of them that failed.
        before: Rows of shards that were finished before.
        total: Rows of the store, as far as the source has been listed.
        listed: Whether the source has been listed to its end.
        seconds: Since the run began.
    """

    images: int
    failed: int
    before: int
    total: int
    listed: bool
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """What a run did.

    Attributes:
        out: The store.
        images: Rows that this run computed.
        failed: Those of them that failed; the reasons are in their rows.
        shards: That this run finished.
        shards_before: That were finished before it.
        shards_missing: That are not finished now: another run has them, or this one was stopped.
        complete: Whether the store has every image of the source.
        stopped: Whether the run was told to stop.
        seconds: From begin to end.
        images_per_second: Of this run.
        first_seconds: From its begin to the first numbers, None where nothing was computed.
        stages: Seconds by stage, see ``pipeline.Seconds``; empty for Ray.
        backbone: Variant.
        runtime: Engine that computed.
        precision: Of the engine.
        batch_size: Images of a batch.
        levels: Columns of the store.
        passed_over: Files of a folder or a tar that are no images, by ending: those that this run
            came by while it listed the source.
    """

    out: str
    images: int
    failed: int
    shards: int
    shards_before: int
    shards_missing: int
    complete: bool
    stopped: bool
    seconds: float
    images_per_second: float
    first_seconds: float | None
    stages: dict[str, float]
    backbone: str | None
    runtime: str
    precision: str
    batch_size: int
    levels: tuple[str, ...]
    passed_over: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return asdict(self)
