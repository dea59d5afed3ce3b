"""Files of Hugging Face repositories: ``hf://owner/repo/file@revision``.

huggingface_hub knows the user's token and the cache that other libraries share. The bytes come the
way of every other host's (``hosts``, ``download``): its own client reads with a timeout for each
byte alone, unpacks what is sent compressed without a bound, cannot be ended, and has been built on
three HTTP libraries whose errors differ. The Hub says of a file how long it is and which hash it
has, on the way to it; both are compared with what comes.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from trunkline.errors import ConfigError
from trunkline.files import DocumentError, parse_document
from trunkline.outputs import sha256_of
from trunkline.weights.files import addresses, hosts
from trunkline.weights.files.hosts import Question
from trunkline.weights.files.patience import Deadline, PlaceError

logger = logging.getLogger(__name__)

SCHEME = "hf://"
USUAL_FILES = ("model.safetensors", "pytorch_model.bin")  # the safe format first

_OFFICIAL = "https://huggingface.co"
_NAME = re.compile(r"(?!.*(--|\.\.|\.git$))\w([\w.-]{0,94}\w)?", re.ASCII)  # the Hub's own rule
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHOWN = 10
_LISTING_BYTES = 16 << 20
_LOGIN = "; then log in with `hf auth login`"
_MEANINGS = {
    "GatedRepo": f"agree to its terms on its page{_LOGIN}",
    "RevisionNotFound": "no such revision",
    "EntryNotFound": "no such file in the repository",
    "RepoNotFound": f"no such repository, or a private one{_LOGIN}",
}


@dataclass(frozen=True, kw_only=True)
class HubAddress:
    """A file in a repository, or a repository whose usual file is meant."""

    repo: str
    file: str | None
    revision: str

    def __str__(self) -> str:
        file = f"/{self.file}" if self.file else ""
        revision = f"@{self.revision}" if self.revision != "main" else ""
        return f"{SCHEME}{self.repo}{file}{revision}"


@dataclass(frozen=True, kw_only=True)
class _Sibling:
    rfilename: str


@dataclass(frozen=True, kw_only=True)
class _Repository:
    siblings: tuple[_Sibling, ...] = ()


def parse(address: str) -> HubAddress:
    """Read ``hf://owner/repo[/file][@revision]``; without a revision, ``main`` is meant.

    Raises:
        ConfigError: Not of that form.
    """
    path, at, revision = address.removeprefix(SCHEME).partition("@")
    owner, _, rest = path.partition("/")
    repo, _, file = rest.partition("/")
    good = address.startswith(SCHEME) and bool(revision) == bool(at)
    good = good and all(_NAME.fullmatch(part) for part in (owner, repo))
    parts = [*(file.split("/") if file else ()), *(revision.split("/") if at else ())]
    good = good and not {"", ".", ".."}.intersection(parts) and address.isprintable()
    if not good:
        raise ConfigError(
            f"{address!r} is no address on the Hub; write hf://OWNER/REPO, hf://OWNER/REPO/FILE, or"
            " either with @REVISION behind it, such as hf://timm/dla34.in1k/model.safetensors@main."
        )
    return HubAddress(repo=f"{owner}/{repo}", file=file or None, revision=revision or "main")


def candidates(address: HubAddress) -> tuple[HubAddress, ...]:
    """Return the files that an address can mean, before anybody asks the Hub."""
    if address.file is not None:
        return (address,)
    return tuple(replace(address, file=name) for name in USUAL_FILES)


def web_address(address: HubAddress) -> str:
    """Return where a browser gets the file."""
    revision, file = quote(address.revision, safe=""), quote(address.file or "")
    return f"{_endpoint()}/{address.repo}/resolve/{revision}/{file}"


def question(address: HubAddress) -> Question:
    """Return how the Hub is asked for a file."""
    return Question(url=web_address(address), token=_token(), explain=_meaning)


def choose_file(address: HubAddress) -> HubAddress:
    """Choose a repository's usual file from its list of files.

    Raises:
        PlaceError: It has none, or the Hub does not answer.
    """
    if address.file is not None:
        return address
    revision = quote(address.revision, safe="")
    url = f"{_endpoint()}/api/models/{address.repo}/revision/{revision}"
    deadline = Deadline()
    asked = Question(url=url, token=_token(), explain=_meaning)
    files = hosts.persist(lambda: _listed(asked, deadline), deadline)
    for name in USUAL_FILES:
        if name in files:
            return replace(address, file=name)
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    raise PlaceError(
        f"has neither {' nor '.join(USUAL_FILES)}; name one of its {len(files)} files: "
        f"{', '.join(files[:_SHOWN])}{more}"
    )


def confirmed_hash(told: Iterable[Mapping[str, str]], file: Path) -> str | None:
    """Return the sha256 that the Hub keeps of a file that has come; None if it keeps none.

    Large files are known by their sha256. Small ones are kept in git, which has a hash of its own:
    of a file that has it, the sha256 is returned. Mirrors put other things into the same header,
    which prove nothing either way.

    Args:
        told: The headers of the answers that led to it.
        file: What came.

    Raises:
        PlaceError: It has another length than the Hub says.
    """
    size = tag = None
    for headers in told:
        if "X-Repo-Commit" in headers or "X-Linked-ETag" in headers:  # the Hub, not its storage
            size = headers.get("X-Linked-Size", size)
            tag = headers.get("X-Linked-ETag") or headers.get("ETag") or tag
    tag = (tag or "").removeprefix("W/").strip('"')
    if _SHA256.fullmatch(tag):
        return tag
    length = file.stat().st_size
    if size is not None and size != str(length):
        raise PlaceError(f"cut off at {length} of {size} bytes")
    return sha256_of(file) if tag == _git_hash(file) else None


def in_hub_cache(address: HubAddress) -> tuple[Path, str] | None:
    """Find a file that another library has downloaded to the Hub's own cache already.

    Only files that are named after their sha256 there: of the others nothing vouches.
    """
    _endpoint()  # the library parses it at its import, with errors of its own
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(
            address.repo,
            address.file or "",
            cache_dir=os.environ.get("HF_HUB_CACHE"),  # the library reads it once, at its import
            revision=address.revision,
        )
    except (OSError, ValueError) as error:  # also a ref that is no text
        logger.warning("the Hub's own cache cannot be read: %s", error)
        return None
    if not isinstance(found, str):
        return None
    blob = Path(found).resolve()
    return (blob, blob.name) if _SHA256.fullmatch(blob.name) else None


def _listed(asked: Question, deadline: Deadline) -> list[str]:
    """Return the names of a repository's files."""
    with hosts.asked(asked, deadline) as answer:
        content = b""
        for piece in answer.pieces():
            content += piece
            if len(content) > _LISTING_BYTES:
                raise PlaceError(f"refused: its list of files has over {_LISTING_BYTES} bytes")
    if answer.length is not None and len(content) < answer.length:
        raise PlaceError(f"cut off at {len(content)} of {answer.length} bytes", transient=True)
    try:
        found = parse_document(content, _Repository)
    except DocumentError as error:
        raise PlaceError(f"answered with something that lists no files ({error})") from error
    return sorted(file.rfilename for file in found.siblings)


def _endpoint() -> str:
    """Return HF_ENDPOINT as it is now; huggingface_hub reads it once, at its import."""
    named = os.environ.get("HF_ENDPOINT") or _OFFICIAL
    if fault := addresses.why_not(named):
        raise ConfigError(
            f"HF_ENDPOINT is {addresses.shown(named)!r}, which is no address ({fault}); unset it, "
            f"or write one such as {_OFFICIAL}."
        )
    return named.rstrip("/")


def _token() -> str | None:
    from huggingface_hub import constants, get_token

    return None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()


def _meaning(status: int, headers: Mapping[str, str]) -> str:
    """Say what the Hub means by a status."""
    code = headers.get("X-Error-Code") or ("RepoNotFound" if status == 401 else "")
    return _MEANINGS.get(code) or headers.get("X-Error-Message", "")[:200]


def _git_hash(file: Path) -> str:
    content = file.read_bytes() if file.stat().st_size < _LISTING_BYTES else b""
    digest = hashlib.sha1(b"blob %d\0" % len(content), usedforsecurity=False)
    digest.update(content)
    return digest.hexdigest()
