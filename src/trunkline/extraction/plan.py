"""Which images an extraction means: the listing of its source, frozen shard by shard.

A shard is frozen into a file before any of it is computed. So a run that resumes means the same
images whatever became of the source meanwhile, and the source is listed once: from where the plan
ends, and never again once it is complete.

A plan is a folder of ``00000.parquet``, ``00001.parquet``, … with the columns of ``Item``, of
``shard_size`` rows each. The first one with fewer rows, even none, ends the plan; then
``complete.json`` says so as well, with the totals.

Several processes may extend one plan, also from several machines. Each lists for itself and links
its file to the final name, which succeeds for one of them; the others take what that one wrote,
and continue behind it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import secrets
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from trunkline.errors import ConfigError, SourceError, StoreError
from trunkline.extraction.data_files import numbers_in
from trunkline.extraction.durable import (
    aside,
    put_text,
    remove,
    remove_leftovers,
    sync,
    writing,
)
from trunkline.extraction.plan_files import PlanFile, read_totals, write_items
from trunkline.extraction.records import Item, told_apart
from trunkline.extraction.sources import Source, list_items

COMPLETE = "complete.json"
CATCH_UP_SHARDS = 16
"""Shards of others that a listing of a folder runs past, rather than to begin again behind them."""

_NAME = re.compile(r"([0-9]{5,})\.parquet")
# What file systems without hard links answer: exFAT, some network and cloud drives.
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PlanCounts:
    """How much is frozen.

    Attributes:
        shards: Complete ones; the last may have fewer images.
        images: In all of them.
        complete: Whether the listing has come to its end, so that these are the totals.
    """

    shards: int = 0
    images: int = 0
    complete: bool = False


class Plan:
    """The images of a source in shards; several threads may share one.

    Args:
        folder: Where its files are; made when the first is written.
        source: What is listed as far as the files do not say it already.
        shard_size: Images of a shard; the last one may have fewer.

    Raises:
        ConfigError: ``shard_size`` is not positive.
        StoreError: The files are damaged, incomplete, or of another ``shard_size``.
    """

    def __init__(self, folder: Path, source: Source, shard_size: int) -> None:
        if shard_size < 1:
            raise ConfigError(f"shard_size={shard_size} must be a positive number of images.")
        self._folder, self._source, self.shard_size = folder, source, shard_size
        self.passed_over: Counter[str] = Counter()  # no images, by ending, as far as this listed
        self._lock = threading.Lock()  # held while listing; what is frozen is read without it
        self._listing: Iterator[Item] | None = None
        self._listed = 0  # the shard that the listing comes to next
        self._is_cleaned = False
        self._counts = self._found()

    def extend(self) -> bool:
        """Freeze one more shard, or take over those that others have frozen since.

        Returns:
            Whether there are more shards now; False once the listing is complete.

        Raises:
            SourceError: The source cannot be listed or has no images.
            OutputError: The plan cannot be written.
            StoreError: A plan file of another process is damaged.
        """
        with self._lock:
            return self._extended()

    def shards(self) -> Iterator[int]:
        """Yield the number of every shard, in order, extending the plan where it ends.

        Raises:
            As ``extend``.
        """
        number = 0
        while True:
            while number >= self._counts.shards:
                if self._counts.complete:
                    return
                with self._lock:  # another thread may have come this far while we waited
                    if number >= self._counts.shards:
                        self._extended()
            yield number
            number += 1

    def items(self, shard: int) -> list[Item]:
        """Read the images of a frozen shard, in order.

        Raises:
            StoreError: Its file is missing or damaged, or the plan does not go so far.
        """
        self._check_frozen(shard)
        return self._file(shard).items()

    def size(self, shard: int) -> int:
        """Return how many images a frozen shard has, without reading them.

        Raises:
            StoreError: The plan does not go so far.
        """
        self._check_frozen(shard)
        return min(self.shard_size, self._counts.images - shard * self.shard_size)

    def counts(self) -> PlanCounts:
        """Return how much is frozen, as far as this process knows; never waits for a listing."""
        return self._counts

    def _check_frozen(self, shard: int) -> None:
        if not 0 <= shard < self._counts.shards:
            raise StoreError(
                f"the plan in {self._folder} has {self._counts.shards} shards so far, and no "
                f"shard {shard}; extend it, or ask for a smaller number."
            )

    def _extended(self) -> bool:
        before = self._counts.shards
        if not self._counts.complete:
            self._adopt()
        if not self._counts.complete and self._counts.shards == before:
            self._freeze()
        if self._counts.complete:
            self._drop_listing()
            self._write_totals()
        return self._counts.shards > before

    def _file(self, shard: int) -> PlanFile:
        return PlanFile(self._path(shard), shard, self.shard_size)

    def _path(self, shard: int) -> Path:
        return self._folder / f"{shard:05d}.parquet"

    def _found(self) -> PlanCounts:
        """Count what is on the disk, from the names and the last file alone."""
        if (self._folder / COMPLETE).exists():
            return self._totals()
        found = numbers_in(self._folder, _NAME)
        number = 0
        while number in found or self._path(number).exists():
            number += 1
        if number < len(found):
            raise StoreError(
                f"{self._path(number)} is missing, though later files of the plan are there; "
                "put it back, or extract into a new place."
            )
        return self._counted(number) if number else PlanCounts()

    def _counted(self, files: int) -> PlanCounts:
        """Count so many files, at least one, of which only the last can be short."""
        rows = self._file(files - 1).rows()
        return PlanCounts(
            shards=files if rows else files - 1,
            images=(files - 1) * self.shard_size + rows,
            complete=rows < self.shard_size,
        )

    def _adopt(self) -> None:
        """Take over what others have frozen."""
        while not self._counts.complete and self._path(self._counts.shards).exists():
            self._counts = self._counted(self._counts.shards + 1)

    def _freeze(self) -> None:
        """List one more shard and publish it, or take what another has published instead."""
        shard = self._counts.shards
        items = self._next_items(shard)
        if not items and shard == 0:
            raise SourceError(
                f"{self._source.location} has no images: it was taken for a "
                f"{self._source.kind}. {_LOOKED_FOR[self._source.kind]}"
            )
        if not self._publish(shard, items) and self._file(shard).items() != items:
            self._drop_listing()  # the source has changed between that listing and ours
        self._counts = self._counted(shard + 1)

    def _next_items(self, shard: int) -> list[Item]:
        after = self._file(shard - 1).items()[-1] if shard else None
        try:
            self._catch_up(shard, after)
            if self._listing is None:
                begun = shard * self.shard_size
                self._listing = list_items(self._source, after, begun, self.passed_over)
            items = told_apart(list(islice(self._listing, self.shard_size)))
        except BaseException:
            self._drop_listing()  # a generator that has raised would seem to be at its end
            raise
        self._listed = shard + 1
        return items

    def _catch_up(self, shard: int, after: Item | None) -> None:
        """Bring the listing to a shard, past those of others; drop it where that is not possible.

        A folder is sorted anew by every listing; in other sources it costs nothing to begin at the
        right place.
        """
        behind = shard - self._listed
        if self._listing is None or not behind:
            return
        is_sorted = self._source.kind in ("folder", "glob")
        if not is_sorted or not 0 < behind <= CATCH_UP_SHARDS:
            self._drop_listing()
            return
        last = None
        for last in islice(self._listing, behind * self.shard_size):  # noqa: B007
            pass
        if last != after:  # a folder gives no key twice
            self._drop_listing()

    def _drop_listing(self) -> None:
        self._listing = None

    def _publish(self, shard: int, items: list[Item]) -> bool:
        """Write a plan file; return False, and leave it, if there is one already."""
        target = self._path(shard)
        written = self._aside(target)
        with writing(target):
            self._folder.mkdir(parents=True, exist_ok=True)
            if not self._is_cleaned:
                remove_leftovers(self._folder)
                self._is_cleaned = True
            try:
                write_items(written, shard, self.shard_size, items)
                sync(written)
                return _put_first(written, target)
            finally:
                remove(written)

    def _aside(self, target: Path) -> Path:
        return aside(self._folder, f"{target.name}~{secrets.token_hex(4)}")  # threads differ too

    def _write_totals(self) -> None:
        target = self._folder / COMPLETE
        if target.exists():
            return
        totals = {"shards": self._counts.shards, "images": self._counts.images}
        with writing(target):
            written = self._aside(target)
            put_text(written, target, json.dumps(totals) + "\n")

    def _totals(self) -> PlanCounts:
        path = self._folder / COMPLETE
        shards, images = read_totals(path, self.shard_size)
        is_short = images % self.shard_size
        counts = self._counted(shards if is_short else shards + 1)
        if (counts.shards, counts.images, counts.complete) != (shards, images, True):
            raise StoreError(
                f"{path} counts {images} images, and the files beside it {counts.images}; "
                "remove it, and it is made again from them."
            )
        return counts


_LOOKED_FOR = {
    "folder": "Files count by their ending (.jpg, .png, …), and hidden ones do not; files without "
    "such an ending can be given as a list in a .txt file.",
    "glob": "Files count if they match and have an image's ending (.jpg, .png, …); others can be "
    "given as a list in a .txt file.",
    "list": "Every line that is not blank counts.",
    "parquet": "Every row counts.",
    "tar": "Members count by their ending (.jpg, .png, …), and hidden ones do not.",
}


def _put_first(written: Path, target: Path) -> bool:
    """Give a file its final name unless another has it; say whether it was given."""
    try:
        os.link(written, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if target.exists():
            return False
        _log.warning(
            "%s is on a file system without hard links: run one process at a time into it.",
            target.parent,
        )
        written.replace(target)
    sync(target.parent)
    return True
