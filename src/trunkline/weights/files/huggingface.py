"""Files of Hugging Face repositories, through huggingface_hub: ``hf://owner/repo/file@revision``.

The Hub's own client brings the user's token, HF_ENDPOINT, gated repositories and the Hub's chunk
store, which downloads in parallel. What it lacks is added around it: the sha256 that the Hub keeps
of every large file is asked for first, so that it can be checked afterwards.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trunkline.errors import ConfigError
from trunkline.weights.files import download
from trunkline.weights.files.download import PlaceError, Report

SCHEME = "hf://"
USUAL_FILES = ("model.safetensors", "pytorch_model.bin")  # the safe format first

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHOWN = 10


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
    good = good and not {"", ".", ".."}.intersection(parts)
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
    endpoint = _endpoint() or "https://huggingface.co"
    revision = address.revision.replace("/", "%2F")
    return f"{endpoint}/{address.repo}/resolve/{revision}/{address.file}"


def choose_file(address: HubAddress) -> HubAddress:
    """Choose a repository's usual file from its list of files.

    Raises:
        PlaceError: It has none, or the Hub does not answer.
    """
    if address.file is not None:
        return address
    from huggingface_hub import HfApi

    api = HfApi(endpoint=_endpoint(), library_name="trunkline")

    def ask() -> list[str]:
        try:
            info = api.model_info(
                address.repo,
                revision=address.revision,
                timeout=download.PATIENCE.connect_seconds,
            )
        except Exception as error:  # the class depends on the HTTP library that the Hub's uses
            raise _explained(error) from error
        return sorted(file.rfilename for file in info.siblings or ())

    files = download.persist(ask)
    for name in USUAL_FILES:
        if name in files:
            return replace(address, file=name)
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    raise PlaceError(
        f"has neither {' nor '.join(USUAL_FILES)}; name one of its {len(files)} files: "
        f"{', '.join(files[:_SHOWN])}{more}"
    )


def fetch(address: HubAddress, staging: Path, report: Report | None) -> tuple[Path, str | None]:
    """Download a file into a folder of its own.

    Returns:
        The file, and the sha256 that the Hub keeps of it; None for small files, which it keeps in
        git.

    Raises:
        PlaceError: The Hub does not give the file.
        OutputError: The disk does not take it.
    """
    shutil.rmtree(staging, ignore_errors=True)  # what a killed run left cannot be continued
    with download.disk_errors(staging.parent):
        staging.mkdir(parents=True)
        return download.persist(lambda: _attempt(address, staging, report))


def in_hub_cache(address: HubAddress) -> tuple[Path, str] | None:
    """Find a file that another library has downloaded to the Hub's own cache already.

    Only files that are named after their sha256 there: of the others nothing vouches.
    """
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        address.repo,
        address.file or "",
        cache_dir=os.environ.get("HF_HUB_CACHE"),  # huggingface_hub reads it once, at its import
        revision=address.revision,
    )
    if not isinstance(found, str):
        return None
    blob = Path(found).resolve()
    return (blob, blob.name) if _SHA256.fullmatch(blob.name) else None


def _attempt(address: HubAddress, staging: Path, report: Report | None) -> tuple[Path, str | None]:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    file = address.file or ""
    endpoint = _endpoint()
    seconds = download.PATIENCE.connect_seconds
    try:
        url = hf_hub_url(address.repo, file, revision=address.revision, endpoint=endpoint)
        about = get_hf_file_metadata(url, timeout=seconds, endpoint=endpoint, token=_token())
        if about.size is not None:
            download.check_room(staging, about.size)
        path = hf_hub_download(
            address.repo,
            file,
            revision=about.commit_hash or address.revision,  # the file that was asked about
            local_dir=staging,
            endpoint=endpoint,
            etag_timeout=seconds,
            library_name="trunkline",
            tqdm_class=_bar(report),
        )
    except Exception as error:  # the class depends on the HTTP library that the Hub's client uses
        if isinstance(error, OSError) and download.is_disk_error(error):
            raise
        raise _explained(error) from error
    got = Path(path).stat().st_size
    if about.size is not None and got != about.size:
        raise PlaceError(f"cut off at {got} of {about.size} bytes", transient=True)
    return Path(path), about.etag if about.etag and _SHA256.fullmatch(about.etag) else None


def _endpoint() -> str | None:
    """HF_ENDPOINT as it is now; huggingface_hub reads it once, at its import."""
    return os.environ.get("HF_ENDPOINT") or None


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _explained(error: Exception) -> PlaceError:
    from huggingface_hub import errors

    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status is not None:
        reason = f"HTTP {status}"
        if isinstance(error, errors.GatedRepoError):
            reason += ": agree to its terms on its page, then log in with `hf auth login`"
        elif isinstance(error, errors.RevisionNotFoundError):
            reason += ": no such revision"
        elif isinstance(error, errors.EntryNotFoundError):
            reason += ": no such file in the repository"
        elif isinstance(error, errors.RepositoryNotFoundError):
            reason += ": no such repository, or a private one; then log in with `hf auth login`"
        headers = getattr(response, "headers", {})
        return download.status_error(status, reason, headers.get("Retry-After"))
    if isinstance(error, errors.HFValidationError | errors.FileMetadataError):
        return PlaceError(str(error).splitlines()[0])
    if "timeout" in type(error).__name__.lower():
        return PlaceError("timed out", transient=True)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return PlaceError("huggingface_hub was imported while HF_HUB_OFFLINE was set")
    return PlaceError(f"no connection ({type(error).__name__})", transient=True)


def _bar(report: Report | None) -> type:
    """Return a stand-in for tqdm, by its methods, that draws nothing and reports."""

    class Bar:
        def __init__(self, *_: Any, total: int | None = None, initial: int = 0, **__: Any) -> None:
            self.n, self.total = initial, total

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            return

        def update(self, n: float | None = 1) -> None:
            self.n += int(n or 0)
            if report is not None and self.n > 0:
                report(self.n, self.total)

        def ignore(self, *_: Any, **__: Any) -> None:
            return

        # The Hub's chunk store also counts what went over the wire, which is not the file's size.
        update_transfer = set_transfer_postfix_str = set_postfix_str = refresh = close = ignore

    return Bar
