"""Kill extractions at random moments, resume them, and compare with one that nobody disturbed.

::

    python tools/kill_and_resume.py --kills 20 --seed 0            # a store of Parquet parts
    python tools/kill_and_resume.py --kills 20 --seed 0 --zarr     # a store of maps
    python tools/kill_and_resume.py --source tar                   # or list, parquet, glob
    python tools/kill_and_resume.py --containers                   # two at once; needs root
    python tools/kill_and_resume.py --small-shm                    # as containers have it; root

Every run is the real command line in a process group of its own, killed with SIGKILL: half of the
time the whole group (what a scheduler does), otherwise the main process alone (what the kernel
does when memory runs out), whose workers then have to end by themselves. Half of the moments fall
anywhere into the start, the others shortly after shards were finished. A store that completes
before it was killed often enough is compared, and another one is begun.

With ``--containers`` two runs work on every store at once, each the first process of a namespace of
its own and on a host of the same name; one of them is killed, the other must go on, and a new one
takes the place. With ``--small-shm`` /dev/shm has 64 MB; batches of 100 MB are computed there, and
some more once it cannot even be written to.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from image_sources import KINDS, pack, write_photos
from namespaces import (
    SHARED_MEMORY,
    enter_small_shared_memory,
    has_small_shared_memory,
    in_container,
    make_shared_memory_read_only,
    require_namespaces,
)
from store_files import data_files

from trunkline.runtimes.optional import require

SIDE = 32  # pixels of what the network gets
_GIVE_UP_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What happened.

    Attributes:
        kills: Runs that were killed.
        group_kills: Those of them whose workers were killed as well.
        resumed_with: Finished shards at each kill.
        stores: Stores that were completed and compared.
        files: Data files of one store, all equal byte for byte.
        rows: Of one store, all equal.
        failed: Rows of one store that tell of an unreadable image.
        seconds: In all.
    """

    kills: int
    group_kills: int
    resumed_with: tuple[int, ...]
    stores: int
    files: int
    rows: int
    failed: int
    seconds: float


def save_runner(
    folder: Path, *, runtime: str = "onnxruntime", batch_size: int = 4, side: int = SIDE
) -> Path:
    """Deploy a tiny seeded ResNet, and save it, so that runs start without PyTorch.

    Args:
        folder: Must not exist.
        runtime: Engine.
        batch_size: Images that it takes at once.
        side: Of the images, in pixels.

    Returns:
        The folder.
    """
    import torch

    from trunkline import ResNet
    from trunkline.backbones.resnet import ResNetConfig
    from trunkline.runtimes.deployment import deploy

    torch.manual_seed(0)
    config = ResNetConfig(depths=(1, 1, 1, 1), bottleneck=False, width=8)
    backbone = ResNet(config, return_idx=(1, 3))
    runner = deploy(backbone, runtime, "fp32", (batch_size, side, side), True, 1)
    return runner.save(folder)


def command(src: str | Path, out: Path, runner: Path, *options: str) -> list[str]:
    """Return the command line of one run."""
    program = [sys.executable, "-m", "trunkline", "extract"]
    fixed = ["--backbone", str(runner), "--size", str(SIDE), "--threads", "1", "--workers", "2"]
    return [*program, str(src), str(out), *fixed, "--json", *options]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """Start a run in a process group of its own."""
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(arguments: list[str]) -> dict[str, object]:
    """Run a command to its end, and return its report."""
    process = start(arguments)
    printed, errors = process.communicate(timeout=_GIVE_UP_SECONDS)
    if process.returncode:
        raise SystemExit(f"a run ended with {process.returncode}:\n{errors}")
    report: dict[str, object] = json.loads(printed)
    return report


def done_shards(out: Path) -> int:
    """Return how many shards of a store are finished."""
    return len(list(out.with_name(f"{out.name}.trunkline").glob("shards/*.json")))


def leftovers(out: Path) -> list[str]:
    """Return the files of a store that were written aside and never put in place."""
    home = out.with_name(f"{out.name}.trunkline")
    aside = [path for path in home.glob("tmp/*") if path.suffix != ".lock"]  # locks stay
    aside += [*home.rglob("*~*"), *out.rglob("*~*"), *home.rglob("*.owner")]
    return sorted({str(path.relative_to(home.parent)) for path in aside})


def kill(process: subprocess.Popen[str], *, group: bool) -> None:
    """Kill a run and wait until nothing of it lives.

    Args:
        process: Of ``start``.
        group: Kill its workers as well, rather than to wait for them to end by themselves.

    Raises:
        SystemExit: A worker outlived its parent.
    """
    if group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.communicate(timeout=_GIVE_UP_SECONDS)
    wait_for(lambda: not living(process.pid), "workers outlived the run that was killed")


def living(group: int) -> list[int]:
    """Return the processes of a group that are at work; what nobody has reaped is not."""
    psutil: Any = require("psutil", "looking for processes that live on")
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            is_member = os.getpgid(process.pid) == group
        except ProcessLookupError:
            continue
        if is_member and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


def wait_for(condition: Callable[[], bool], failure: str, seconds: float = 60.0) -> None:
    """Wait until something is so.

    Raises:
        SystemExit: It is not after ``seconds``.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"{failure} (waited {seconds} s)")
        time.sleep(0.005)


def check(condition: bool, failure: str) -> None:
    """End the program if something is not as it must be."""
    if not condition:
        raise SystemExit(f"FAILED: {failure}")


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a trial is made with.

    Attributes:
        seed: Of the moments.
        images: Of the source.
        shard_size: Images of a shard.
        zarr: Keep maps rather than vectors.
        source: Kind of the source.
        containers: Two runs at once, each in namespaces of its own.
    """

    seed: int = 0
    images: int = 400
    shard_size: int = 7
    zarr: bool = False
    source: str = "folder"
    containers: bool = False


class Trial:
    """Kills and resumes in one folder.

    Args:
        folder: Empty.
        conditions: What is killed.
    """

    def __init__(self, folder: Path, conditions: Conditions) -> None:
        self._folder, self._images = folder, conditions.images
        self._random = random.Random(conditions.seed)  # noqa: S311 - moments, not secrets
        self._suffix = "zarr" if conditions.zarr else "parquet"
        self._options = ["--shard-size", str(conditions.shard_size)]
        photos = write_photos(folder / "photos", conditions.images)
        self._src = pack(photos, conditions.source, folder)
        self._runner = save_runner(folder / "runner")
        self._in_containers = conditions.containers
        self._other: subprocess.Popen[str] | None = None  # that works on the same store
        self._resumed_with: list[int] = []
        self._groups = 0

    def run(self, kills: int) -> Summary:
        """Kill so many runs, and compare what the last ones complete.

        Raises:
            SystemExit: Something differs, was left behind, or lives on.
        """
        began = time.monotonic()
        whole = self._folder / f"whole.{self._suffix}"
        report = finish(self._command(whole))
        self._start_seconds = float(str(report["first_seconds"])) + 1.0
        expected, stores = data_files(whole), 0
        check(done_shards(whole) > 3, "too few shards to kill anything in between")
        while len(self._resumed_with) < kills:
            out = self._folder / f"broken-{stores}.{self._suffix}"
            while len(self._resumed_with) < kills and self._killed(out):
                pass
            self._let_other_finish()
            finish(self._command(out))
            self._compare(out, expected)
            same_rows(whole, out)
            stores += 1
        return Summary(
            kills=len(self._resumed_with),
            group_kills=self._groups,
            resumed_with=tuple(self._resumed_with),
            stores=stores,
            files=len(expected),
            rows=self._images,
            failed=int(str(report["failed"])),
            seconds=time.monotonic() - began,
        )

    def _command(self, out: Path) -> list[str]:
        plain = command(self._src, out, self._runner, *self._options)
        return in_container(plain) if self._in_containers else plain

    def _let_other_finish(self) -> None:
        if self._other is not None:
            _, errors = self._other.communicate(timeout=_GIVE_UP_SECONDS)
            code = self._other.returncode
            check(code == 0, f"a run beside one that was killed ended with {code}:\n{errors}")
            self._other = None

    def _killed(self, out: Path) -> bool:
        """Start a run and kill it at a random moment; return False if it ended before that."""
        done = done_shards(out)
        process = start(self._command(out))
        if self._in_containers:
            self._other = self._other or start(self._command(out))
            if self._random.random() < 0.5:
                process, self._other = self._other, process
        if self._random.random() < 0.5:
            time.sleep(self._random.uniform(0, self._start_seconds))
        else:
            wanted = done + self._random.randint(1, 3)
            wait_for(
                lambda: done_shards(out) >= wanted or process.poll() is not None,
                "a run does nothing",
                _GIVE_UP_SECONDS,
            )
            time.sleep(self._random.uniform(0, 0.05))
        if process.poll() is not None:
            _, errors = process.communicate()
            code = process.returncode
            check(code == 0, f"a resumed run ended with {code}:\n{errors}")
            return False
        group = self._random.random() < 0.5
        kill(process, group=group)
        self._groups += group
        self._resumed_with.append(done_shards(out))
        return True

    def _compare(self, out: Path, expected: dict[str, str]) -> None:
        found = data_files(out)
        differing = sorted(
            name for name in {*found, *expected} if found.get(name) != expected.get(name)
        )
        check(not differing, f"{out} differs from an unbroken run in {differing[:5]}")
        left = leftovers(out)
        check(not left, f"left behind: {left[:5]}")


def same_rows(one: Path, other: Path) -> None:
    """Make sure that two stores have equal rows, read as a user does.

    Raises:
        SystemExit: They differ.
    """
    from trunkline.extraction.reader import open_features

    stores = [open_features(one), open_features(other)]
    tables = [store.table(["key", "path", "sha256", "status", "error"]) for store in stores]
    check(tables[0].equals(tables[1]), f"rows of {other} differ from those of an unbroken run")
    for level in stores[0].levels:
        for first, second in zip(*(store.batches(level, 64) for store in stores), strict=True):
            check(list(first.keys) == list(second.keys), f"keys of {other} differ")
            same = first.values.tobytes() == second.values.tobytes()
            check(same, f"{level} of {other} differs")


def check_shared_memory(folder: Path) -> None:
    """Compute batches that /dev/shm has no room for, leave nothing there, and do without it.

    Raises:
        SystemExit: A run failed, or something was left.
    """
    side, batch_size = 1024, 8  # 25 MB a batch, and four of them under way
    photos = write_photos(folder / "few", 24, bad_every=0)
    runner = save_runner(folder / "large", batch_size=batch_size, side=side)
    for name in ("small", "read-only"):
        asked = command(photos, folder / f"{name}.parquet", runner, "--size", str(side))
        report = finish(asked)
        check(report["images"] == 24 and not report["failed"], f"{name} /dev/shm: {report}")
        left = [path.name for path in SHARED_MEMORY.iterdir()]
        check(not left, f"left in /dev/shm: {left}")
        make_shared_memory_read_only()


def main() -> None:
    """Read the command line, and print a summary."""
    parser = argparse.ArgumentParser(description="Kill extractions, resume them, compare.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--shard-size", type=int, default=7)
    parser.add_argument("--zarr", action="store_true", help="maps, rather than vectors")
    parser.add_argument("--source", choices=KINDS, default="folder")
    parser.add_argument(
        "--containers", action="store_true", help="two at once, as if in containers"
    )
    parser.add_argument("--small-shm", action="store_true", help="a /dev/shm of 64 MB")
    asked = vars(parser.parse_args())
    kills, small = asked.pop("kills"), asked.pop("small_shm")
    if small and not has_small_shared_memory():
        enter_small_shared_memory()
    if asked["containers"]:
        require_namespaces()
    with tempfile.TemporaryDirectory() as folder:
        found = Trial(Path(folder), Conditions(**asked)).run(kills)
        if small:
            check_shared_memory(Path(folder))
            print("batches of 100 MB: computed with a /dev/shm of 64 MB, and with a read-only one")
    print(
        f"{found.kills} runs killed ({found.group_kills} with their workers) and resumed in "
        f"{found.seconds:.0f} s\n"
        f"finished shards at each kill: {', '.join(map(str, found.resumed_with))}\n"
        f"stores completed and compared: {found.stores}\n"
        f"each: {found.files} data and plan files equal byte for byte, {found.rows} rows equal, "
        f"{found.failed} of them failed images\n"
        "no worker outlived its run, and nothing is left"
    )


if __name__ == "__main__":
    main()
