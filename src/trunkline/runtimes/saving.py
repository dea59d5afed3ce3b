"""Runners on disk: a manifest, the engine's files, and the proof that nothing was changed since.

::

    FOLDER/runner.json      what it is: see ``Manifest``
    FOLDER/…                the portable graph, and what the engine made of it on this machine

Nothing here imports PyTorch, and neither does a loaded runner of ONNX Runtime or OpenVINO.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trunkline
from trunkline.errors import ConfigError, RunnerError
from trunkline.outputs import digest_of, folder_written_whole, sha256_of
from trunkline.preprocessing import is_positive_int
from trunkline.runtimes.engine import ENGINES, Engine, Spec, engine_class, versions_of
from trunkline.runtimes.fidelity import LevelFidelity
from trunkline.runtimes.processor import processor

if TYPE_CHECKING:
    from trunkline.runtimes.runner import Runner

MANIFEST = "runner.json"
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What ``runner.json`` says.

    Attributes:
        spec: What the runner computes, see ``Spec``.
        fidelity: How its maps compared with the backbone's when it was built.
        provenance: Digest of the backbone's tensors; file, tag and licence of its weights.
        versions: Of trunkline and of the engine.
        processor: That the compiled files are for, with its instruction sets.
        files: Name → sha256 of every other file.
    """

    spec: Spec
    fidelity: tuple[LevelFidelity, ...]
    provenance: dict[str, Any]
    versions: dict[str, str]
    processor: str
    files: dict[str, str]

    def to_json(self) -> str:
        """Return the text of the file; its last field is the digest of the others."""
        fields = {
            "format": _FORMAT,
            **asdict(self),
            "spec": self.spec.to_dict(),
            "fidelity": [one.to_dict() for one in self.fidelity],
        }
        return json.dumps({**fields, "sha256": digest_of(fields)}, indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read the file back.

        Raises:
            RunnerError: It is missing, damaged, edited, or of another version of the format.
        """
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            digest = fields.pop("sha256")
            written = fields.pop("format")
        except OSError as error:
            raise RunnerError(
                f"{path.parent} holds no runner: {path.name} cannot be read "
                f"({error.strerror or error}); give a folder that Runner.save wrote."
            ) from error
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise RunnerError(
                f"{path} is no manifest of a runner ({error!r}); save the runner again."
            ) from error
        if written != _FORMAT:
            raise RunnerError(
                f"{path} has format {written!r} and this version of trunkline reads {_FORMAT}; "
                "save the runner again, or use the version that wrote it."
            )
        if digest != digest_of({"format": written, **fields}):
            raise RunnerError(
                f"{path} was changed after it was written; restore it, or save the runner again. "
                "Threads can be chosen with load_runner(folder, threads=...)."
            )
        fields["spec"] = Spec.from_dict(fields["spec"])
        fields["fidelity"] = tuple(LevelFidelity(**one) for one in fields["fidelity"])
        return cls(**fields)


def save_runner(runner: Runner, engine: Engine, folder: str | os.PathLike[str]) -> Path:
    """Write a runner into a new folder; see ``Runner.save``."""
    target = Path(folder)
    with folder_written_whole(target) as aside:
        if runner.folder is not None:  # it was loaded, and an engine need not keep its files
            manifest = _read(runner.folder)
            _verify(runner.folder, manifest, manifest.files)
            shutil.copytree(runner.folder, aside, dirs_exist_ok=True)
            return target
        engine.save(aside)
        manifest = Manifest(
            spec=runner.spec,
            fidelity=runner.fidelity,
            provenance=runner.provenance,
            versions=_versions(runner.runtime),
            processor=processor().describe(),
            files={
                file.relative_to(aside).as_posix(): sha256_of(file)
                for file in sorted(aside.rglob("*"))
                if file.is_file()
            },
        )
        Path(aside, MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return target


def load_runner(
    folder: str | os.PathLike[str], *, threads: int | None = None, verify: bool = True
) -> Runner:
    """Open a runner that ``Runner.save`` wrote, without importing PyTorch where it can be.

    Runners of ONNX Runtime and OpenVINO need no PyTorch. What was compiled is used again on a
    processor of the same kind with the same version of the engine; elsewhere it is compiled anew
    from the graph beside it, except for runners of "inductor", which have none.

    Args:
        folder: That was written.
        threads: That one call uses; None as when it was saved.
        verify: Hash the files that are opened and compare, about 0.1 s for 100 MB.

    Returns:
        The runner, as it was saved.

    Raises:
        RunnerError: No runner, one that is incomplete or was edited, or one that this machine or
            these versions cannot run.
        NotInstalledError: Its engine is missing.
        ConfigError: A number of threads below 1.
    """
    from trunkline.runtimes.runner import Runner

    if threads is not None and not is_positive_int(threads):
        raise ConfigError(f"threads={threads!r} must be a positive integer, or None.")
    place = Path(folder)
    manifest = _read(place)
    spec = manifest.spec.with_threads(threads)
    same_machine = (
        manifest.processor == processor().describe()
        and manifest.versions == _versions(spec.runtime)
        and spec.threads == manifest.spec.threads  # some kernels are laid out for a number of them
    )
    kind = engine_class(spec.runtime)
    if verify:
        _verify(place, manifest, kind.files(same_machine=same_machine))
    engine = kind.load(place, spec, same_machine=same_machine)
    return Runner(engine, spec, manifest.fidelity, provenance=manifest.provenance, folder=place)


def _read(folder: Path) -> Manifest:
    """Read the manifest of a runner all of whose files are there."""
    manifest = Manifest.read(Path(folder, MANIFEST))
    if manifest.spec.runtime not in ENGINES:
        raise RunnerError(
            f"{folder} is a runner of {manifest.spec.runtime!r}, which this version of trunkline "
            f"does not know; it knows {', '.join(ENGINES)}."
        )
    for name in manifest.files:
        if not Path(folder, name).is_file():
            raise RunnerError(f"{folder} lacks {name}; copy the whole folder again.")
    return manifest


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
