"""Files that belong together, put in place together or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trunkline.errors import OutputError, TrunklineError


@contextmanager
def written_together(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path to write to, and put it and all files beside it in place once the block ends.

    Args:
        path: Where the main file shall be; missing folders are made, old files are replaced.

    Yields:
        A path in a folder of its own beside the target. Files that the block leaves there go to
        the target's folder under their names, the main one last, so that whoever sees it sees the
        others. After an error all old files are as they were.

    Raises:
        OutputError: One of them is a folder, or cannot be written.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".trunkline-", dir=target.parent) as aside:
            written = Path(aside, target.name)
            yield written
            others = sorted(one for one in Path(aside).iterdir() if one != written)
            _replace(others, target.parent)
            try:
                written.replace(target)
            except OSError:
                _restore(others, target.parent)
                raise
    except TrunklineError:
        raise
    except OSError as error:
        raise OutputError(
            f"{target} cannot be written: {error.strerror or error}; choose another place."
        ) from error


def _old(written: Path) -> Path:
    return written.with_name(f"{written.name}.old")


def _replace(files: list[Path], folder: Path) -> None:
    """Move files to a folder, and what they replace to their former places."""
    for position, written in enumerate(files):
        target = folder / written.name
        try:
            if target.is_dir():
                raise OutputError(f"{target} is a folder, and a file has to be there; remove it.")
            if target.exists():
                target.replace(_old(written))
            written.replace(target)
        except OSError:
            _restore(files[: position + 1], folder)
            raise


def _restore(files: list[Path], folder: Path) -> None:
    """Undo ``_replace``, also one that stopped halfway through the last file."""
    for written in files:
        target = folder / written.name
        if _old(written).exists():
            _old(written).replace(target)
        elif not written.exists():
            target.unlink(missing_ok=True)
