"""Runs that are disturbed: memory that is not there, workers that die, signals, owners, streams."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks import Chance, Kind, check
from trunkline.errors import ImageError

ENGINES = ("torch", "onnxruntime", "openvino")
SOURCES = ("/photos/", "/photos/*.jpg", "/a.txt", "/a.parquet", "/a.tar", "")  # "": URLs in a list
ENDING_SECONDS = 2.0  # one is promised; attacks keep every core busy
PLENTY = 1 << 40


@cache
def _computings() -> dict[str, Any]:
    """Deploy one tiny network on every engine, for images of any size."""
    import torch

    from trunkline import ResNet
    from trunkline.backbones.resnet import ResNetConfig
    from trunkline.extraction.computing import Computing
    from trunkline.extraction.records import Column, Schema
    from trunkline.preprocessing import IMAGENET
    from trunkline.runtimes.deployment import deploy

    torch.manual_seed(0)
    config = ResNetConfig(depths=(1, 1, 1, 1), bottleneck=False, width=8)
    backbone = ResNet(config, return_idx=(3,))
    columns = (Column(name="stage3", stride=32, shape=(backbone.channels[0],)),)
    schema = Schema(columns=columns, dtype="float32", shard_size=10)
    options: dict[str, Any] = {"pool": "avg", "normalize": False, "schema": schema}
    return {
        engine: Computing(
            deploy(backbone, engine, "fp32", None, True, 1),
            IMAGENET,
            [0],
            one_size=False,
            **options,
        )
        for engine in ENGINES
    }


def _vector(engine: str, pixels: NDArray[np.uint8], free: int) -> NDArray[Any]:
    from trunkline.extraction import computing, memory
    from trunkline.extraction.pipeline import Seconds

    for module in (computing, memory):
        setattr(module, "free_memory", lambda: free)  # noqa: B010 - for the type checker
    one = _computings()[engine]
    one._looked = -1e9  # what was free a moment ago is not
    found: NDArray[Any] = one(pixels, Seconds())["stage3"]
    return found


def _scarce(engine: str, chance: Chance, _: Path) -> str:
    """Little memory is free: an image fails, or has the right numbers, and so has the next one."""
    numbers = np.random.default_rng(chance.randrange(1 << 31))
    failed = False
    for _number in range(4):
        sides = (chance.randint(1, 1200), chance.randint(1, 1200))
        pixels = numbers.integers(0, 256, (1, *sides, 3), np.uint8)
        free = PLENTY if chance.random() < 0.4 else int(10 ** chance.uniform(4, 8))
        try:
            found = _vector(engine, pixels, free)
        except ImageError:
            check(free < PLENTY, f"{sides} failed though memory was free")
            failed = True
            continue
        wanted = _vector("onnxruntime", pixels, PLENTY)
        difference = np.abs(found - wanted).max() / np.abs(wanted).max()
        check(difference < 1e-3, f"{sides} with {free} bytes free differ by {difference:.1e}")
    return "refused" if failed else "right"


def _owners(chance: Chance, folder: Path) -> str:
    """Owners that live, that are gone, of other machines, of long ago; and files of others."""
    from trunkline.extraction import owners

    kept, gone, held = list[Path](), list[Path](), list[int]()
    for number in range(chance.randint(1, 12)):
        kind = chance.choice(("lives", "gone", "orphan", "foreign", "old", "stranger"))
        if kind == "stranger":
            name = chance.choice(("notes.txt", "a~b", "zarr.lock", f"x~{'0' * 16}", "é~\n"))
            (folder / f"{number}{name}").touch()
            kept.append(folder / f"{number}{name}")
            continue
        written = folder / owners.owned_name(folder, f"part-{number}")
        written.mkdir() if chance.random() < 0.2 else written.touch()
        owner = owners._owned.pop(folder)
        place, descriptor = folder / f"{owner.token}.owner", owner.descriptor or 0
        if kind in ("foreign", "old"):
            place.write_bytes(b"another machine")
        if kind == "old":
            os.utime(place, (0, 0))
        if kind == "orphan":
            place.unlink()
        if kind == "lives":
            held.append(descriptor)
        else:
            os.close(descriptor)
        stays = kind in ("lives", "foreign")
        (kept if stays else gone).append(written)
    from trunkline.extraction.durable import remove_leftovers

    remove_leftovers(folder)
    for descriptor in held:
        os.close(descriptor)
    check(all(path.exists() for path in kept), f"removed: {[p for p in kept if not p.exists()]}")
    check(not any(path.exists() for path in gone), "what the dead left is still there")
    return "right"


@cache
def _photos() -> Any:
    from image_sources import write_photos

    from trunkline.extraction.sources import source_of

    return source_of(write_photos(Path(tempfile.mkdtemp()) / "photos", 8, bad_every=0))


def _workers(chance: Chance, _: Path) -> str:
    """Workers are killed at any moment: images fail or are right, and nothing hangs."""
    from multiprocessing import active_children
    from threading import Timer

    from trunkline.extraction.decoders import Decoders
    from trunkline.extraction.decoding import Decoding, decode_item
    from trunkline.extraction.sources import list_items
    from trunkline.preprocessing import IMAGENET

    def strike() -> None:
        for process in active_children():
            if process.pid is not None and chance.random() < 0.7:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)

    size = chance.choice((None, 32))
    decoding = Decoding(source=_photos(), preprocessing=IMAGENET.with_size(size))
    items, batch_size = list(list_items(_photos())), 1 if size is None else 4
    strikes = [Timer(chance.uniform(0, 2.5), strike) for _ in range(chance.randint(1, 4))]
    options: dict[str, Any] = {"workers": 2, "batch_size": batch_size, "buffers": 3}
    failed = 0
    with Decoders(decoding, timeout_seconds=20, **options) as decoders:
        for one in strikes:
            one.start()
        for first in range(0, 8, batch_size):
            time.sleep(chance.uniform(0, 0.4))
            batch = decoders.submit(items[first : first + batch_size])
            for place, decoded in enumerate(batch.wait()):
                if decoded.row.status == "failed":
                    failed += 1
                    continue
                wanted, pixels = decode_item(decoding, items[first + place])[1], batch.pixels
                check(pixels is not None and wanted is not None, "an image without pixels")
                same = bool(np.all(np.asarray(pixels)[place] == wanted))
                check(same, "pixels of another image")
            batch.release()
        for one in strikes:
            one.cancel()
    check(not active_children(), "a worker lives on")
    return "some failed" if failed else "right"


@cache
def _runner() -> Path:
    from kill_and_resume import save_runner

    return save_runner(Path(tempfile.mkdtemp()) / "runner")


def _signals(chance: Chance, folder: Path) -> str:
    """Two signals at any moment, while a host drips: nothing lives after a second."""
    from kill_and_resume import command, living, start
    from loopback import FileHost, always, drips

    host, kind = FileHost(), chance.choice(SOURCES)
    for path in ("/photos", "/photos/", "/a.txt", "/a.parquet", "/a.tar", "/0.jpg"):
        host.script[path] = always(drips(chance.choice((100, 1 << 30)), chance.uniform(0.01, 0.5)))
    (folder / "list.txt").write_text(f"{host.origin}/0.jpg\n", encoding="utf-8")
    src = host.origin + kind if kind else str(folder / "list.txt")
    ignored = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a worker of ours hands that on
    process = start(command(src, folder / "f.parquet", _runner(), "--timeout", "99"))
    signal.signal(signal.SIGINT, ignored)
    try:
        limit = time.monotonic() + 20
        while not host.requests and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 1.5))
        process.send_signal(chance.choice((signal.SIGINT, signal.SIGTERM)))
        time.sleep(chance.uniform(0, 0.3))
        process.send_signal(chance.choice((signal.SIGINT, signal.SIGTERM)))
        limit = time.monotonic() + ENDING_SECONDS
        while living(process.pid) and time.monotonic() < limit:
            time.sleep(0.02)
        check(not living(process.pid), f"it goes on after {ENDING_SECONDS} s, listing {src}")
        _, errors = process.communicate(timeout=10)
        check("Traceback" not in errors, errors[-1000:])
    finally:
        host.close()
        if living(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return "ended"


@cache
def _verbs() -> list[list[str]]:
    import typer

    from trunkline.cli.root import app

    def below(command: Any, path: list[str]) -> list[list[str]]:
        inner = getattr(command, "commands", {}).items()
        return [path, *(one for name, verb in inner for one in below(verb, [*path, name]))]

    return below(typer.main.get_command(app), [])


def _streams(chance: Chance, folder: Path) -> str:
    """A verb, with arguments or none, whose output is full, closed, unread, or a file's end."""
    from trunkline.cli.root import app

    words = ["--help", "--json", "nosuch", "--version", "-1", "x.parquet", "\udcff"]
    verbs = [*_verbs(), ["info", "resnet18"]]
    arguments = [*chance.choice(verbs), *chance.sample(words, chance.randint(0, 2))]
    reader, writer = os.pipe()
    os.close(reader)
    how: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace"}
    opened: dict[str, Callable[[], Any]] = {
        "full": lambda: open("/dev/full", "w", **how),  # noqa: SIM115
        "unread": lambda: os.fdopen(os.dup(writer), "w", **how),
        "closed": lambda: None,
        "written": lambda: (folder / "out").open("w", **how),
    }
    before = sys.stdout, sys.stderr
    mine = sys.stdout, sys.stderr = [opened[chance.choice([*opened])]() for _ in range(2)]
    code: object = None
    try:
        app(arguments, prog_name="trunkline")
    except SystemExit as ending:
        code = ending.code
    finally:
        sys.stdout, sys.stderr = before
        os.close(writer)
        for stream in mine:
            with suppress(OSError, AttributeError):
                stream.close()
    check(code in (0, 1, 2, 141), f"{arguments} ended with {code}")
    return f"code {code}"


KINDS: dict[str, Kind] = {
    **{f"scarce memory, {engine}": partial(_scarce, engine) for engine in ENGINES},
    "owners of files": _owners,
    "workers that are killed": _workers,
    "signals while a host drips": _signals,
    "streams that fail": _streams,
}
