"""The files of a store without what tells one store from another, so that two can be compared.

Two stores of one job differ in nothing but their ids: the manifest has a random one, and every data
file carries it. Here it is replaced by zeros wherever a file says it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

_NOBODY = b"0" * 32
_ARROW = b"ARROW:schema"


def store_id(out: Path) -> str:
    """Return the id of a store."""
    manifest = out.with_name(f"{out.name}.trunkline") / "manifest.json"
    found: str = json.loads(manifest.read_bytes())["id"]
    return found


def nameless(path: Path, identity: str) -> bytes:
    """Return the bytes of a data file with zeros in the place of its store's id.

    Args:
        path: Of the file.
        identity: Of its store.
    """
    content, name = path.read_bytes(), identity.encode()
    if path.suffix == ".parquet":
        from pyarrow import parquet

        # Arrow keeps the schema once more, in base64.
        written = (parquet.read_metadata(path).metadata or {}).get(_ARROW, b"")
        schema = base64.b64decode(written).replace(name, _NOBODY)
        content = content.replace(written, base64.b64encode(schema)) if written else content
    if path.name == "zarr.json":
        about = json.loads(content)
        del about["attributes"]["sha256"]  # a digest of the id as well
        content = json.dumps(about).encode()
    return content.replace(name, _NOBODY)


def data_files(out: Path) -> dict[str, str]:
    """Return the SHA-256 of every data file and of every file of the plan, without the id."""
    home, identity = out.with_name(f"{out.name}.trunkline"), store_id(out)
    found = [path for path in out.rglob("*") if path.is_file()]
    found += [path for path in (home / "plan").rglob("*") if path.is_file()]
    return {
        str(path.relative_to(out.parent)).removeprefix(out.name): hashlib.sha256(
            nameless(path, identity)
        ).hexdigest()
        for path in sorted(found)
    }
