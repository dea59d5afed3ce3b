"""What containers have of their own, without a container: numbers of processes, names, /dev/shm.

``unshare`` of util-linux makes it, for root alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps it
_SMALL = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
_NAMED = "hostname container"
_INSIDE = "TRUNKLINE_SMALL_SHM"


def require_namespaces() -> None:
    """End the program where namespaces cannot be had.

    Raises:
        SystemExit: This is not Linux, nobody is root, or a sandbox refuses them.
    """
    try:
        subprocess.run(in_container(["true"]), check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"") or b""
        raise SystemExit(
            f"namespaces cannot be had here ({error} {said.decode().strip()}); be root on Linux, "
            "with unshare of util-linux, and not in a sandbox that forbids it."
        ) from error


def in_container(arguments: list[str]) -> list[str]:
    """Return a command that runs another as the first process of a host named "container".

    Killing it kills all that it has started.
    """
    own = ["unshare", "--pid", "--uts", "--mount-proc", "--fork", "--kill-child"]
    return [*own, "sh", "-c", f'{_NAMED} && exec "$@"', "sh", *arguments]


def has_small_shared_memory() -> bool:
    """Say whether this program was started again by ``enter_small_shared_memory``."""
    return _INSIDE in os.environ


def enter_small_shared_memory() -> None:
    """Start this program again with a /dev/shm of 64 MB of its own, empty."""
    require_namespaces()
    again = ["unshare", "--mount", "sh", "-c", f'{_SMALL} && exec "$@"', "sh", sys.executable]
    os.execvpe(again[0], [*again, *sys.argv], {**os.environ, _INSIDE: "1"})  # noqa: S606


def make_shared_memory_read_only() -> None:
    """Let nobody write into the /dev/shm of this program any more."""
    subprocess.run(["mount", "-o", "remount,ro", str(SHARED_MEMORY)], check=True)  # noqa: S607
