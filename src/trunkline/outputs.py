"""Files that exist whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trunkline.errors import OutputError


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path to write to, and put what was written in place once the block ends well.

    Args:
        path: Where the file shall be; missing folders are made, an old file is replaced.

    Yields:
        A path in a folder of its own beside the target, so that the last step is a rename within
        one disk. It is gone after an error, and an old file is as it was.

    Raises:
        OutputError: The target is a folder, or cannot be written.
    """
    target = Path(path)
    if target.is_dir():
        raise OutputError(f"{target} is a folder; give the path of a file.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".trunkline-", dir=target.parent) as aside:
            written = Path(aside, target.name)
            yield written
            written.replace(target)
    except OSError as error:
        raise OutputError(
            f"{target} cannot be written: {error.strerror or error}; choose another place."
        ) from error
