"""Runners on disk: the engine's files, and who may open them.

::

    FOLDER/runner.json      what it is, and who wrote it: see ``trunkline.runtimes.manifest``
    FOLDER/…                the portable graph, and what the engine made of it on this machine

Nothing here imports PyTorch, and neither does a loaded runner of ONNX Runtime or OpenVINO.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import trunkline
from trunkline.errors import RunnerError, UntrustedError
from trunkline.outputs import folder_written_whole, sha256_of
from trunkline.runtimes.engine import (
    ENGINES,
    Engine,
    Spec,
    check_threads,
    engine_class,
    takes_threads,
    versions_of,
)
from trunkline.runtimes.manifest import MANIFEST, Manifest, Signed, read_manifest
from trunkline.runtimes.processor import processor

if TYPE_CHECKING:
    from trunkline.runtimes.runner import Runner


def save_runner(runner: Runner, engine: Engine, folder: str | os.PathLike[str]) -> Path:
    """Write a runner into a new folder; see ``Runner.save``."""
    target = Path(folder)
    if runner.saved is not None:  # it was loaded, and an engine need not keep its files
        return copy_runner(runner.saved.folder, target, digest=runner.saved.digest)
    with folder_written_whole(target) as aside:
        engine.save(aside)
        manifest = Manifest(
            spec=runner.spec,
            fidelity=runner.fidelity,
            provenance=runner.provenance,
            versions=_versions(runner.runtime),
            processor=processor().describe(),
            files={file.name: sha256_of(file) for file in sorted(aside.iterdir())},
        )
        manifest.write(aside)
    return target


def copy_runner(source: Path, target: Path, *, digest: str | None = None) -> Path:
    """Copy a saved runner: what its manifest names, and nothing else that lies there.

    The signature stays what it was: a copy of a stranger's runner is a stranger's.

    Args:
        source: That holds one.
        target: A new folder.
        digest: Of the manifest that must be there, None for any.

    Raises:
        RunnerError: No runner, another one, or one that is incomplete or was edited.
        OutputError: The target exists, or cannot be written.
    """
    names = _read(source).manifest.files
    with folder_written_whole(target) as aside:
        for name in (*names, MANIFEST):
            shutil.copyfile(source / name, aside / name)
        copied = _read(aside)
        check_digest(source, copied, digest)
        _verify(aside, copied.manifest, copied.manifest.files)
    return target


def load_runner(
    folder: str | os.PathLike[str],
    *,
    threads: int | None = None,
    verify: bool = True,
    trust: bool = False,
) -> Runner:
    """Open a runner that ``Runner.save`` wrote, without importing PyTorch where it can be.

    Runners of ONNX Runtime and OpenVINO need no PyTorch. What was compiled is used again on a
    processor of the same kind with the same version of the engine; elsewhere it is compiled anew
    from the graph beside it, except for runners of "inductor", which have none.

    A runner that this user did not write on this machine runs nothing: what was compiled is passed
    over, and where nothing else is there, it is refused.

    Args:
        folder: That was written.
        threads: That one call uses; None as when it was saved.
        verify: Hash the files that are opened and compare, about 0.1 s for 100 MB. Files that could
            run code are always hashed.
        trust: Open it as if this machine had written it: whoever made it may run code here.

    Returns:
        The runner, as it was saved.

    Raises:
        RunnerError: No runner, one that is incomplete or was edited, or one that this machine or
            these versions cannot run.
        UntrustedError: One that could run code, and that this machine did not write.
        NotInstalledError: Its engine is missing.
        ConfigError: A number of threads below 1, or far above that of the cores.
    """
    check_threads(threads)
    return opened(Path(folder), threads, verify=verify, trust=trust)


def is_trusted(folder: Path, *, trust: bool) -> bool:
    """Say whether a saved runner may be opened as this machine's own.

    Args:
        folder: That has one.
        trust: What the caller says of whoever wrote it.

    Raises:
        RunnerError: No runner, or one that is incomplete or was edited.
    """
    return trust or _read(folder).why_untrusted() is None


def opened(
    folder: Path,
    threads: int | None,
    *,
    verify: bool = True,
    trust: bool,
    digest: str | None = None,
    own: bool = False,
) -> Runner:
    """Open a saved runner; see ``load_runner``, ``Saved`` and ``check_digest``."""
    from trunkline.runtimes.runner import Runner, Saved

    signed = _read(folder)
    check_digest(folder, signed, digest)
    manifest = signed.manifest
    distrust = None if trust else signed.why_untrusted()
    spec = manifest.spec.with_threads(threads)
    _check_stored_threads(folder, spec)
    kind = engine_class(spec.runtime)
    compiled = distrust is None and _is_same_machine(manifest, spec)
    names = kind.files(manifest.files, compiled=compiled)
    _check_present(folder, manifest, names)
    risks = [kind.runs_code[name] for name in names if name in kind.runs_code]
    if risks and distrust is not None:
        raise UntrustedError(
            f"{folder} is not opened: {distrust}, and {'; '.join(risks)}. If you trust whoever "
            "made it, say so with trust=True (--trust); else ask for a runner of onnxruntime or "
            "openvino, or deploy the backbone yourself."
        )
    with _settled(folder, names, bool(risks)) as files:
        if verify or risks:
            _verify(files[0].parent, manifest, names)
        engine = kind.load(files, spec, compiled=compiled, ours=distrust is None)
    saved = Saved(folder=folder, digest=signed.digest, trusted=distrust is None, own=own)
    return Runner(engine, spec, manifest.fidelity, provenance=manifest.provenance, saved=saved)


def check_digest(folder: Path, signed: Signed, digest: str | None) -> None:
    """Refuse a folder in which another runner lies than before.

    Raises:
        RunnerError: The digest of its manifest is another one.
    """
    if digest not in (None, signed.digest):
        raise RunnerError(
            f"{folder} holds another runner than when this one was loaded from there; load it "
            "again."
        )


@contextmanager
def _settled(folder: Path, names: Iterable[str], risky: bool) -> Iterator[list[Path]]:
    """Give files that nobody exchanges between the hashing and the opening, where that counts."""
    if not risky:
        yield [folder / name for name in names]
        return
    with TemporaryDirectory(prefix="trunkline-") as own:
        yield [Path(shutil.copyfile(folder / name, Path(own, name))) for name in names]


def _is_same_machine(manifest: Manifest, spec: Spec) -> bool:
    return (
        manifest.processor == processor().describe()
        and manifest.versions == _versions(spec.runtime)
        and spec.threads == manifest.spec.threads  # some kernels are laid out for a number of them
    )


def _check_stored_threads(folder: Path, spec: Spec) -> None:
    if takes_threads(spec.runtime):
        try:
            check_threads(spec.threads)
        except ValueError as error:
            raise RunnerError(
                f"{folder} was saved for {spec.threads} threads, more than make sense here; choose "
                "with load_runner(folder, threads=...)."
            ) from error


def _read(folder: Path) -> Signed:
    """Read the manifest of a runner all of whose files are there."""
    signed = read_manifest(folder)
    if signed.manifest.spec.runtime not in ENGINES:
        raise RunnerError(
            f"{folder} is a runner of {signed.manifest.spec.runtime!r}, which this version of "
            f"trunkline does not know; it knows {', '.join(ENGINES)}."
        )
    _check_present(folder, signed.manifest, signed.manifest.files)
    return signed


def _check_present(folder: Path, manifest: Manifest, names: Iterable[str]) -> None:
    for name in names:
        # Links are followed: the hub's own cache is made of them, and hashes say what must be read.
        if name not in manifest.files or not Path(folder, name).is_file():
            raise RunnerError(f"{folder} lacks {name}; copy the whole folder again.")


def _verify(folder: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """Compare files with their hashes in the manifest."""
    for name in names:
        if sha256_of(Path(folder, name)) != manifest.files[name]:
            raise RunnerError(
                f"{folder / name} is not the file that was saved: its sha256 differs; copy the "
                "folder again."
            )


def _versions(runtime: str) -> dict[str, str]:
    return {"trunkline": trunkline.__version__, **versions_of(runtime)}
