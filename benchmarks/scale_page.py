"""docs/scale.md: what a run of a million, or of a thousand million, images would take.

Nobody ran those. The page multiplies what extract.py measured on one machine; every assumption is
on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extract_page import head_lines, table

from trunkline.outputs import written_whole

NODES = (1, 10, 100)
IMAGES = (10**6, 10**8, 10**9)
CORES = 32  # of a node
SHARD = 10_000  # images
LISTED = 1_000  # names that an object store returns per request
GB, GIB = 1e9, 2**30
Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one run needs.

    Attributes:
        nodes: Machines.
        images: Of the source.
        hours: From begin to end.
        speed: Images/s of all nodes.
        read_mb: Megabytes/s that one node reads.
        write_mb: Megabytes/s that all nodes write, float32.
    """

    nodes: int
    images: int
    hours: float
    speed: float
    read_mb: float
    write_mb: float


def needs(plan: Figures) -> Iterator[Need]:
    """Compute the needs of all runs, speed being in proportion to cores.

    Args:
        plan: Figures of the section of that name.
    """
    core_seconds = plan["image_seconds"] * plan["cores"]
    for images in IMAGES:
        for nodes in NODES:
            shards = math.ceil(images / SHARD)
            busy = min(nodes * CORES, shards * CORES)  # a shard keeps no more than a node busy
            speed = busy / core_seconds
            yield Need(
                nodes=nodes,
                images=images,
                hours=images / speed / 3600,
                speed=speed,
                read_mb=speed / nodes * plan["bytes_read"] / 1e6,
                write_mb=speed * plan["float32"] / 1e6,
            )


def write_scale(page: Path, kept: Figures) -> None:
    """Write the page.

    Args:
        page: Where to.
        kept: As ``extract_page.write_page``, with a section "plan".
    """
    plan = kept["plan"]["figures"]
    parts = [
        "# A million images, a thousand million images\n\nWritten by `make bench-extract` "
        "(benchmarks/scale_page.py). **Simulated**: nobody ran these sizes. The page multiplies "
        "what one machine measured; [extract-benchmarks.md](extract-benchmarks.md) has how fast "
        "that was.\n\n" + head_lines(kept, ["plan"]),
        _measured(plan),
        _time(plan),
        _traffic(plan),
        _bookkeeping(plan),
        _BREAKS,
    ]
    with written_whole(page) as path:
        path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _grouped(number: float) -> str:
    return f"{number:,.0f}".replace(",", " ")


def _amount(number: float, unit: str = "") -> str:
    """Return a number with two or three digits that count."""
    text = _grouped(number) if number >= 10 else f"{number:.2g}"
    return f"{text} {unit}".strip()


def _measured(plan: Figures) -> str:
    rows = [
        [
            "core-seconds per image: images/s after the start, times cores",
            f"{plan['image_seconds'] * plan['cores']:.3f} s",
        ],
        ["bytes of an image, 500×375 JPEG", _grouped(plan["bytes_read"])],
        [
            "bytes in the store per image, four levels (3 840 values), float32",
            _grouped(plan["float32"]),
        ],
        ["the same, float16", _grouped(plan["float16"])],
        ["bytes of the plan per image, short names", f"{plan['plan_bytes']:.1f}"],
        ["bytes of a shard's record", _grouped(plan["record_bytes"])],
        ["seconds of the writer per image", f"{plan['write_seconds']:.5f} s"],
        [
            "images a second that a text list is frozen into a plan",
            _grouped(plan["listed_per_second"]),
        ],
        [
            "seconds to read 1 000 records, as every start does with all of them",
            f"{plan['records_1000_seconds']:.3f} s",
        ],
    ]
    return (
        f"## What was measured\n\nresnet50 on {plan['runtime']}, fp32, four levels averaged, "
        f"{plan['cores']} cores.\n\n" + table(["what", "figure"], rows)
    )


def _time(plan: Figures) -> str:
    rows = [
        [
            _grouped(one.images),
            str(one.nodes),
            _grouped(one.speed),
            _amount(one.hours),
            f"{one.hours / 24:.1f}",
            f"{one.read_mb:.0f}",
            f"{one.write_mb:.1f}",
        ]
        for one in needs(plan)
    ]
    columns = [
        "images",
        "nodes",
        "images/s",
        "hours",
        "days",
        "read, MB/s per node",
        "written, MB/s in all",
    ]
    return (
        f"## Time, simulated\n\nAssumed: nodes of {CORES} cores that are each as fast as a core "
        "of the machine above, and speed in proportion to cores. Inside a node that takes several "
        "runs side by side (`--threads 4 --workers 1`, each with shards of its own), because one "
        "network on 32 threads scales worse than eight on four; memory bandwidth is not in the "
        "figure. Start-up and failures are left out: they are minutes. At the end nodes wait for "
        f"the last shards; a shard of {_grouped(SHARD)} images takes a run of four cores "
        f"{SHARD * plan['image_seconds'] * plan['cores'] / 4 / 60:.0f} minutes, and that is what "
        "can be lost by a node that dies, too.\n\n" + table(columns, rows)
    )


def _traffic(plan: Figures) -> str:
    rows = []
    for images in IMAGES:
        shards = math.ceil(images / SHARD)
        rows.append(
            [
                _grouped(images),
                _grouped(images),
                _grouped(math.ceil(images / LISTED)),
                _amount(images * plan["bytes_read"] / GB),
                _grouped(shards),
                _amount(images * plan["float32"] / GB),
                _amount(images * plan["float16"] / GB),
            ]
        )
    columns = ["images", "GET", "LIST", "GB read", "part files", "GB float32", "GB float16"]
    return (
        "## Object store and disk, simulated\n\nOne GET per image, be it an object or a range of "
        "a tar; an image that fails is read once more. One LIST per thousand names, "
        f"once: the plan is kept. A part file per shard of {_grouped(SHARD)}. Maps "
        "instead of vectors are another matter: 3 MB per image in float16 for the four levels of "
        "224×224, 3 000 TB for a thousand million.\n\n" + table(columns, rows)
    )


def _bookkeeping(plan: Figures) -> str:
    rows = []
    for images in IMAGES:
        shards = math.ceil(images / SHARD)
        rows.append(
            [
                _grouped(images),
                _grouped(shards),
                _amount(images * plan["plan_bytes"] / GIB),
                _amount(shards * plan["record_bytes"] / GIB),
                _amount(images / plan["listed_per_second"] / 60),
                _amount(shards / 1000 * plan["records_1000_seconds"]),
            ]
        )
    columns = [
        "images",
        "shards = records",
        "GiB plan",
        "GiB records",
        "minutes to list",
        "seconds to read all records",
    ]
    return (
        "## Bookkeeping, simulated\n\nBy proportion to the figures above. The listing is of a "
        "local text list; a folder must be walked and sorted, and an object store answers "
        "a LIST in 50 to 200 ms.\n\n" + table(columns, rows)
    )


_BREAKS = """## What breaks first

1. **The disk of the store.** All nodes write parts, plan, records and locks to one shared file system. The bytes are few (the
   last column of the first table); the files are not: per shard a part, a plan file, a record, a lock. With 100 000 shards
   that is 400 000 small files, 100 000 in each folder. Local disks and parallel file systems hold this; an
   NFS server lists such a folder in many seconds. Larger shards help: `--shard-size 100000` has a tenth of everything, and
   loses ten times as much when a node dies.
2. **Every start reads all records**, to say how much is done before, and every end looks for all of them. That is the last
   column of the bookkeeping table per run on a local disk; on NFS with 1 ms per file, 100 000 records are
   two minutes per run, and hundreds of runs that start together ask the same server.
3. **Claims** are locks of the operating system. A run tries shards in order, so the hundredth node begins by
   looking at the shards of 99 others; a few thousand failed tries are seconds. Where locks do not reach, `--shard i/n` needs none.
4. **The listing.** One process lists while others compute, so it only has to be faster than the nodes; shards are frozen one
   after the other. A walk of a thousand million objects by LIST is days in one process: give a Parquet
   file or a text list of names, or tars, which are a few thousand names. A folder that has hundreds of millions of files in one
   directory is sorted through a temporary file before its first shard.
5. **The object store.** 100 nodes of small images are thousands of GETs a second on one prefix; S3 states 5 500 per second
   and prefix. Spread the names over prefixes, or use tars.
6. **The network of a node** is not near its limit: see MB/s per node.

For 100 nodes it is simplest to divide the list itself: a store for each of them, then `trunkline extract merge`. Then nothing is
shared while it runs."""
