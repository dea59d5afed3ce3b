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
RUN_CORES = 4  # of one of the runs that share a node
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
    shard_seconds = SHARD * plan["image_seconds"] * plan["cores"] / RUN_CORES
    for images in IMAGES:
        for nodes in NODES:
            runs = nodes * CORES // RUN_CORES
            turns = math.ceil(math.ceil(images / SHARD) / runs)  # the last ones wait for the others
            seconds = turns * shard_seconds
            speed = images / seconds
            yield Need(
                nodes=nodes,
                images=images,
                hours=seconds / 3600,
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
        f"## Time, simulated\n\nAssumed: nodes of {CORES} cores, each as fast as a core of the "
        "machine above, and speed in proportion to cores. A node takes "
        f"{CORES // RUN_CORES} runs side by side (`--threads {RUN_CORES} --workers 1`), each with "
        "shards of its own, because small networks on many threads seldom scale in proportion; "
        "that memory bandwidth is shared is not in the figures, nor are start-up and failures. A "
        f"shard of {_grouped(SHARD)} images takes such a run "
        f"{SHARD * plan['image_seconds'] * plan['cores'] / RUN_CORES / 60:.0f} minutes, which is "
        "what a node that dies loses in each of them; all runs wait for the last shard.\n\n"
        + table(columns, rows)
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


_BREAKS = """\
## What breaks first

1. **The disk of the store.** All nodes write parts, plan, records and locks to one shared file
   system. The bytes are few (last column of the first table); the files are not: per shard a
   part, a plan file, a record and a lock. With 100 000 shards that is 400 000 files in four
   folders. Local disks and parallel file systems hold this; listing such a folder over NFS is
   slow. Larger shards help: `--shard-size 100000` has a tenth of everything, and loses ten times
   as much when a node dies.
2. **Every start reads all records**, to say how much was done before, and every end looks for all
   of them. On a local disk that is the last column of the bookkeeping table; where a file costs 1
   ms, as an NFS server may need, 100 000 records are two minutes for each run, and all runs of a
   large job start together.
3. **Claims** are locks of the operating system. A run tries shards in order, so the last of
   hundreds of runs begins by looking at the shards of all the others, and near the end all of
   them look at what is left. Where locks do not reach, `--shard i/n` needs none.
4. **Few shards for many nodes.** A shard is computed by one run. In the first table a million
   images on 100 nodes leave most of them idle; `--shard-size 1000` gives them work.
5. **The listing.** One process lists while others compute, so it only has to be faster than the
   nodes. At 100 ms per LIST a thousand million objects are more than a day in one process: give a
   Parquet file or a text list of names, or tars, of which there are a few thousand.
6. **The object store.** 100 nodes send thousands of GETs a second; S3's documentation states 5
   500 per second and prefix. Spread the names over prefixes. Tars do not change the number of
   requests, each image is a range of its own, but there are fewer objects to list.
7. **The network of a node** is not near its limit: see MB/s per node.

For 100 nodes it is simplest to divide the list itself, a store for each of them, and then
`trunkline extract merge`: nothing is shared while it runs."""
