"""What a saved runner says of itself, whether it is whole, and who wrote it.

``runner.json`` holds the manifest, its SHA-256, and a signature over that. The manifest has the
SHA-256 of every other file, so the signature covers all of them. Only the bytes of the manifest are
signed, as they stand in the file: nothing has to be read before it is known who wrote it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from msgspec import Meta, Raw

from trunkline.backbones.levels import LOGITS, Level
from trunkline.errors import RunnerError
from trunkline.files import parse_document, read_document, sign, why_untrusted
from trunkline.preprocessing import Preprocessing
from trunkline.runtimes.engine import MAX_PIXELS, Spec
from trunkline.runtimes.fidelity import LevelFidelity

MANIFEST = "runner.json"

_log = logging.getLogger(__name__)

_FORMAT = 2
_MAX_BYTES = 1 << 20  # it has two thousand or so
_KIND = "runner"  # of signature

# Digests of manifests that this process wrote: it knows them where no key can be kept, too.
_written: set[str] = set()

_Count = Annotated[int, Meta(ge=1, le=1 << 20)]
_Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")]  # in no folder


class Origin(TypedDict):
    """The file that weights came from."""

    tag: str | None
    sha256: str | None
    license: str | None
    layout: str | None


class Provenance(TypedDict):
    """Where weights came from, see ``provenance_of``."""

    weights: Origin | None
    state_sha256: str


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
    provenance: Provenance
    versions: dict[str, str]
    processor: str
    files: dict[str, str]

    def write(self, folder: Path) -> None:
        """Write the file, signed where this machine can keep a key."""
        fields = {
            **asdict(self),
            "spec": self.spec.to_dict(),
            "fidelity": [one.to_dict() for one in self.fidelity],
        }
        text = json.dumps(fields, indent=2, allow_nan=False)
        digest = hashlib.sha256(text.encode()).hexdigest()
        signature = sign(_KIND, digest)
        if signature is None:
            _log.warning(
                "%s cannot be signed, as no key can be kept (set TRUNKLINE_HOME to a folder that "
                "can be written): later, it counts as one from elsewhere.",
                folder,
            )
        about = {"format": _FORMAT, "sha256": digest, "signature": signature}
        envelope = json.dumps(about, indent=2).removesuffix("\n}")
        Path(folder, MANIFEST).write_text(
            f'{envelope},\n  "runner": {text}\n}}\n', encoding="utf-8", newline="\n"
        )
        _written.add(digest)


@dataclass(frozen=True, kw_only=True)
class Signed:
    """A manifest as it was found.

    Attributes:
        manifest: What it says.
        digest: SHA-256 of its bytes, which ties all files of the runner together.
        signature: Over the digest, as the file has it.
    """

    manifest: Manifest
    digest: str
    signature: str | None

    def why_untrusted(self) -> str | None:
        """Say why this machine cannot be told to have written it; None where it has."""
        if self.digest in _written:
            return None
        return why_untrusted(_KIND, self.digest, self.signature)


@dataclass(frozen=True, kw_only=True)
class _Format:
    format: int


@dataclass(frozen=True, kw_only=True)
class _Envelope:
    sha256: str
    signature: str | None
    runner: Raw


@dataclass(frozen=True, kw_only=True)
class _Level:
    name: str
    stride: Annotated[int, Meta(ge=0, le=1 << 20)]  # 0 of logits
    channels: _Count


@dataclass(frozen=True, kw_only=True)
class _Spec:
    """``Spec.to_dict`` as JSON holds it."""

    variant: str | None
    runtime: str
    precision: Literal["fp32", "bf16", "int8"]
    levels: Annotated[tuple[_Level, ...], Meta(max_length=100)]
    returned_levels: Annotated[tuple[str, ...], Meta(min_length=1, max_length=100)]
    in_channels: _Count
    input_shape: tuple[_Count, _Count, _Count] | None
    preprocess: bool
    preprocessing: Preprocessing | None
    threads: _Count
    labels: Annotated[tuple[str, ...], Meta(max_length=1_000_000)] | None = None

    def __post_init__(self) -> None:
        names = [level.name for level in self.levels]
        if len({*names}) < len(names) or not {*self.returned_levels} <= {*names}:
            raise ValueError("returned_levels are not among the levels, each of another name")
        if any((level.stride == 0) != (level.name == LOGITS) for level in self.levels):
            raise ValueError("a level without a stride is no level, unless it is of logits")
        n, height, width = self.input_shape or (1, 1, 1)
        if n * height * width > MAX_PIXELS:
            raise ValueError(f"an input_shape of {n}x{height}x{width} is too large")

    def spec(self) -> Spec:
        """Return what it says."""
        levels = {one.name: Level(one.name, one.stride, one.channels) for one in self.levels}
        given: dict[str, Any] = {
            **vars(self),
            "levels": tuple(levels.values()),
            "returned_levels": tuple(levels[name] for name in self.returned_levels),
        }
        return Spec(**given)


@dataclass(frozen=True, kw_only=True)
class _Manifest:
    spec: _Spec
    fidelity: tuple[LevelFidelity, ...]
    provenance: Provenance
    versions: dict[str, str]
    processor: str
    files: dict[_FileName, _Hash]


def read_manifest(folder: Path) -> Signed:
    """Read the manifest of a runner.

    Raises:
        RunnerError: It is missing, damaged, edited, or of another version of the format.
    """
    path = Path(folder, MANIFEST)
    try:
        content = read_document(path, Raw, max_bytes=_MAX_BYTES)
        written = parse_document(bytes(content), _Format).format
        if written != _FORMAT:
            raise RunnerError(
                f"{path} has format {written} and this version of trunkline reads {_FORMAT}; "
                "save the runner again, or use the version that wrote it."
            )
        envelope = parse_document(bytes(content), _Envelope)
        text = bytes(envelope.runner)
        digest = hashlib.sha256(text).hexdigest()
        if digest != envelope.sha256:
            raise RunnerError(
                f"{path} was changed after it was written; restore it, or save the runner again. "
                "Threads can be chosen with load_runner(folder, threads=...)."
            )
        found = parse_document(text, _Manifest)
    except OSError as error:
        raise RunnerError(
            f"{folder} holds no runner: {MANIFEST} cannot be read ({error.strerror or error}); "
            "give a folder that Runner.save wrote."
        ) from error
    except ValueError as error:  # a DocumentError; a name that no file can have
        raise RunnerError(
            f"{path} is no manifest of a runner ({error}); save the runner again."
        ) from error
    given: dict[str, Any] = {**vars(found), "spec": found.spec.spec()}
    return Signed(manifest=Manifest(**given), digest=digest, signature=envelope.signature)
