"""Weight files on disk: where they lie, and what vouches for them.

::

    TRUNKLINE_HOME                                           default: ~/.cache/trunkline
    └── weights
        ├── download.pytorch.org/models/resnet50-0676ba61.pth    HOST/PATH of the URL
        ├── hf/timm/dla34.in1k/main/model.safetensors            hf/OWNER/REPO/REVISION/FILE
        │   .model.safetensors.sha256.json                       what it was when first seen
        │   .model.safetensors.part                              the beginning of a download
        └── .locks                                               one process downloads, others wait

A file is hashed whenever it is asked for. Names that begin with a dot are never a file's: the
cache's own notes cannot collide with what a host serves.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote

from msgspec import Meta

from trunkline.errors import CheckpointError, IntegrityError, OutputError, WeightsError
from trunkline.files import DocumentError, home, read_document
from trunkline.outputs import sha256_of
from trunkline.weights.files import addresses, download, huggingface, patience
from trunkline.weights.files.recognition import why_no_checkpoint

logger = logging.getLogger(__name__)

OFFLINE = ("TRUNKLINE_OFFLINE", "HF_HUB_OFFLINE")

FROM_NAME = "the hash in its name"
FIRST_SEEN = "recorded when it was first seen"
HUB_RECORD = "the Hub's record"

_LONGEST = 1000  # characters of a place; systems allow some 4000 for a whole path
_OWN_NAME = re.compile(r"q=|[0-9a-f]{16}(-|$)")
_TRUE = frozenset({"1", "on", "true", "yes"})
# torch.hub's convention: resnet50-0676ba61.pth. A date, resnet50-20220101.pth, is not a hash.
_HASH_IN_NAME = re.compile(r"-(?!\d+\.)([0-9a-f]{8,64})\.[A-Za-z0-9.]+$")


@dataclass(frozen=True)
class Claim:
    """The first digits of a sha256, or all of them, and how they are known."""

    digits: str
    known_by: str

    @property
    def is_full(self) -> bool:
        """Whether these are all digits."""
        return len(self.digits) == 64


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is noted beside a cached file when it is first seen."""

    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    size: Annotated[int, Meta(ge=0)]
    source: str
    known_by: str


def weights_home() -> Path:
    """Return the folder of all cached weight files."""
    return home() / "weights"


def is_offline() -> bool:
    """Tell whether the network is switched off: TRUNKLINE_OFFLINE=1 or HF_HUB_OFFLINE=1."""
    return any(os.environ.get(name, "").lower() in _TRUE for name in OFFLINE)


def relative_place(url: str, file_name: str | None = None) -> Path:
    """Return where a URL's file lies below ``weights``. Two addresses never share a place.

    Raises:
        ConfigError: Neither https://, http:// nor hf://, or one that could be misread.
    """
    if url.startswith(huggingface.SCHEME):
        address = huggingface.parse(url)
        names = [*address.repo.split("/"), address.revision, *(address.file or "-").split("/")]
        return _place("hf", [_component(name) for name in names])
    split, asked = addresses.split(url), addresses.origin(url)
    host = _component(asked.host)
    if asked.scheme == "http":
        host = f"{host}+{asked.port}"
    elif asked.port != addresses.DEFAULT_PORTS["https"] or host == "hf":
        host = f"{host}+https+{asked.port}"
    names = split.path.removeprefix("/").split("/")
    parts = [_component(name) for name in names]
    if split.query:  # files?id=1 and files?id=2 differ; a signature is not for file names
        parts.insert(-1, f"q={_digits(split.query)}")
    if file_name and unquote(names[-1]) != file_name:
        parts.append(_component(file_name))
    return _place(host, parts)


def _place(host: str, parts: list[str]) -> Path:
    place = Path(host, *parts)
    return place if len(str(place)) <= _LONGEST else Path(host, _digits("/".join(parts)), parts[-1])


def _component(name: str) -> str:
    """Return a name that is safe on every file system.

    What has to change gets a hash in front, and so does what looks as if it had one.
    """
    safe = re.sub(r"[^A-Za-z0-9._+=-]", "_", unquote(name))[-120:]
    safe = re.sub(r"^\.|\.$", "_", safe)
    same = name and safe == name and not _OWN_NAME.match(name)
    return name if same else f"{_digits(name)}-{safe}"


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_in_name(file_name: str) -> str | None:
    """Return the beginning of a sha256 that a file name carries, torch.hub's way."""
    found = _HASH_IN_NAME.search(file_name)
    return found[1] if found else None


def broken_claim(sha256: str, claims: Iterable[Claim]) -> Claim | None:
    """Return the first claim that a hash does not keep."""
    return next((c for c in claims if not sha256.startswith(c.digits.lower())), None)


def difference(claim: Claim, sha256: str) -> str:
    """Say in what a file differs from what it must be."""
    how = "must be" if claim.is_full else "must begin with"
    return f"its sha256 {how} {claim.digits.lower()} ({claim.known_by}), but is {sha256}"


def mismatch(path: Path, claim: Claim, sha256: str, on_purpose: str) -> IntegrityError:
    """Return the error of a file on disk that is not what it must be."""
    return IntegrityError(
        f"{path} is not the file that it must be, and was not used: {difference(claim, sha256)}. "
        f"Delete it and pull it again; `trunkline weights verify` looks at all files. {on_purpose}"
    )


def accept_change(path: Path) -> str:
    """Say how to make the cache forget what a file once was."""
    return f"If a change was meant, delete {record_file(path)} as well."


def check(path: Path, claims: Sequence[Claim], source: str) -> Record:
    """Hash a cached file, compare it with all that is known, and note what it is at first sight.

    A full hash from the caller outweighs what was once recorded; the record is then renewed.

    Raises:
        IntegrityError: It differs, or it or its record cannot be read.
        CheckpointError: Nothing is known of it, and it is no whole checkpoint.
    """
    noted = read_record(path)
    sha256 = hashed(path)
    known = list(claims)
    if noted is not None and not any(claim.is_full for claim in claims):
        known.append(Claim(noted.sha256, noted.known_by))
    if broken := broken_claim(sha256, known):
        raise mismatch(path, broken, sha256, accept_change(path) if noted else "")
    if noted is not None and noted.sha256 == sha256:
        return noted
    if not known:
        refuse_at_first_sight(path)
    return note(path, sha256, claims, source)


def refuse_at_first_sight(path: Path) -> None:
    """Refuse a file that was put there, of which nothing is known, if it is no whole checkpoint.

    Raises:
        CheckpointError: It is none.
    """
    if fault := why_no_checkpoint(path, path.name):
        raise CheckpointError(
            f"{path} was not used and its hash not recorded: {fault}. Delete it, and put a whole "
            "file there or pull it again."
        )


def is_there(path: Path) -> bool:
    """Tell whether a file is at a place.

    Raises:
        OutputError: Something is there that is no file, or nobody can say.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise OutputError(
            f"{path} cannot be looked at: {error.strerror or error}. Mend that, or choose another "
            "folder with TRUNKLINE_HOME or TRUNKLINE_WEIGHTS."
        ) from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise OutputError(f"{path} is {kind}, where a weights file should lie. Move it away.")
    return True


def hashed(path: Path) -> str:
    """Hash a file that somebody may have damaged.

    Raises:
        IntegrityError: It cannot be read.
    """
    try:
        return sha256_of(path)
    except OSError as error:
        raise IntegrityError(
            f"{path} cannot be read ({error.strerror or error}), and so was not used. Delete it "
            "and pull it again."
        ) from error


def note(path: Path, sha256: str, claims: Sequence[Claim], source: str) -> Record:
    """Record a file's hash beside it. A cache that is read-only is no error, but is said."""
    full = next((c.known_by for c in claims if c.is_full), FIRST_SEEN)
    size = path.stat().st_size
    record = Record(sha256=sha256, size=size, source=source, known_by=full)
    try:
        write_atomically(record_file(path), json.dumps(asdict(record), indent=1) + "\n")
    except OSError as error:
        logger.warning("cannot record the hash of %s: %s", path, error)
    return record


def read_record(path: Path) -> Record | None:
    """Return what was noted of a file when it was first seen, or None.

    Raises:
        IntegrityError: There is a note, but it is not one of trunkline's.
    """
    file = record_file(path)
    try:
        return read_document(file, Record)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, DocumentError) as error:
        raise IntegrityError(
            f"{file}, the record of {path.name}'s hash, cannot be read ({error}). Delete both files"
            " and pull the weights again."
        ) from error


def record_file(path: Path) -> Path:
    """Return where the hash of a cached file is noted."""
    return path.with_name(f".{path.name}.sha256.json")


def part_of(path: Path) -> Path:
    """Return where a file grows while it is downloaded: beside its place, so that it can move."""
    return path.with_name(f".{path.name}.part")


def write_atomically(path: Path, text: str) -> None:
    """Write a small file that other processes read whole or not at all.

    Raises:
        OSError: The disk refuses.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's are the owner's alone; a cache may be shared
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def one_process(key: str) -> Iterator[None]:
    """Let one process at a time do what ``key`` names; a killed one leaves nothing locked.

    Raises:
        WeightsError: Another process is at it for longer than anyone should wait.
        OutputError: Locks cannot be written to the cache.
    """
    from filelock import FileLock, Timeout  # when something is written; importing must stay cheap

    folder = weights_home() / ".locks"
    lock = FileLock(folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=patience.PATIENCE.lock_seconds)
    except Timeout as error:
        raise WeightsError(
            f"another process has been getting {key} for {patience.PATIENCE.lock_seconds:.0f} s; "
            f"end it, then run this again. Its lock is {lock.lock_file}."
        ) from error
    except OSError as error:
        raise download.disk_error(folder, error) from error
    try:
        yield
    finally:
        lock.release()
