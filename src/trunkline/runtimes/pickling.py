"""Runners in pickles: for processes that are spawned, for joblib, for actors of Ray.

A runner that was loaded is pickled as the folder that it came from, with the digest of what is in
it; a new one as the bytes of what it would save. A pickle runs whatever it says, so it is trusted
input already, and what the runner was trusted with where it was pickled, it is trusted with again.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trunkline.runtimes.saving import opened

if TYPE_CHECKING:
    from trunkline.runtimes.runner import Runner
    from trunkline.runtimes.selection import Decision


def reduced(runner: Runner) -> tuple[Any, ...]:
    """Return what ``pickle`` shall keep of a runner, for ``Runner.__reduce__``."""
    saved = runner.saved
    if saved is not None and not saved.own:
        place = str(saved.folder.absolute())
        return _reopened, (place, saved.digest, saved.trusted, runner.threads, runner.decision)
    with tempfile.TemporaryDirectory(prefix="trunkline-") as folder:
        written = runner.save(Path(folder, "runner"))
        files = {file.name: file.read_bytes() for file in written.iterdir()}
    trusted = saved is None or saved.trusted
    return _unpacked, (files, trusted, runner.threads, runner.decision)


def _reopened(
    folder: str, digest: str, trusted: bool, threads: int, decision: Decision | None
) -> Runner:
    runner = opened(Path(folder), threads, trust=trusted, digest=digest)
    runner.decision = decision
    return runner


def _unpacked(
    files: dict[str, bytes], trusted: bool, threads: int, decision: Decision | None
) -> Runner:
    # Engines open their files again when they need them, so the folder stays as long as the runner.
    folder = tempfile.mkdtemp(prefix="trunkline-")
    try:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        runner = opened(Path(folder), threads, trust=trusted, own=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(runner, shutil.rmtree, folder, ignore_errors=True)
    runner.decision = decision
    return runner
