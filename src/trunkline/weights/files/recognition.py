"""Whether a file is what it should be, where no hash says so: whole, and a checkpoint.

Hosts answer with login pages, error texts, pointers of Git LFS and halves of files, and call all
of them a success. What would be recorded as first seen is therefore read once, by the reader that
would read it later, which runs no code of it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from trunkline.errors import CheckpointError
from trunkline.files import DocumentError, parse_document, read_document

_HEAD_BYTES = 4096
_SHOWN = 120
_MARKUP = re.compile(rb"(\xef\xbb\xbf)?\s*<(!|\?|[a-z])", re.IGNORECASE)
_TITLE = re.compile(rb"<title[^>]*>(.*?)(</title|$)", re.IGNORECASE | re.DOTALL)
_ERROR_CODE = re.compile(rb"<Code>([^<]*)</Code>", re.IGNORECASE)
_POINTER = b"version https://git-lfs"
_PICTURES = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"%PDF": "a PDF document",
}


def page_in(head: bytes) -> str:
    """Say what a body is that begins so, such as "an HTML page …"; "" if it may be weights."""
    if head[5:9] == b"\0\0\0{":  # safetensors; the length of its header may look like anything
        return ""
    if head.startswith(_POINTER):
        return "a Git LFS pointer, which stands for a file that is elsewhere"
    for beginning, what in _PICTURES.items():
        if head.startswith(beginning):
            return what
    head = head[:_HEAD_BYTES]
    if not _MARKUP.match(head):
        return ""
    if found := _TITLE.search(head):
        return f"an HTML page titled {_quoted(found[1])}"
    if found := _ERROR_CODE.search(head):
        return f"an XML document that says {_quoted(found[1])}"
    kind = "an HTML page" if b"<html" in head.lower() else "a page of HTML or XML"
    return f"{kind} that begins {_quoted(head[:60])}"


def looks_like(path: Path) -> str:
    """Say what a file is that is not the one it should be; "" if its head does not show it."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        return "an empty file"
    if page := page_in(head):
        return page
    try:
        parse_document(head, dict[str, Any])
    except DocumentError:
        return ""
    return f"JSON, {_quoted(head)}"


def why_no_checkpoint(path: Path, name: str) -> str:
    """Say why a file is not a whole checkpoint that can be read; "" for one that is.

    Args:
        path: The file.
        name: What it is called where it comes from; ``config.json`` need only be whole JSON.
    """
    if name.endswith(".json"):
        try:
            read_document(path, dict[str, Any])
        except DocumentError as error:
            return f"it is no whole JSON object ({error})"
        return ""
    if found := looks_like(path):
        return f"it is {found}"
    from trunkline.weights.checkpoint import read_checkpoint  # it needs torch; a pull need not

    try:
        read_checkpoint(path)
    except CheckpointError as error:
        clause = error.__cause__ or error  # without the name, which is that of a file that goes
        return f"it {str(clause).rstrip('.')}"
    return ""


def _quoted(text: bytes) -> str:
    plain = " ".join(text.decode("utf-8", "replace").split())
    return repr(plain if len(plain) <= _SHOWN else f"{plain[:_SHOWN]}…")
