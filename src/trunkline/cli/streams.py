"""What a verb prints arrives, or the exit code says that it did not."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from trunkline.cli.output import say
from trunkline.errors import OutputError

_AFTER_SIGPIPE = 128 + 13


@contextmanager
def standard_output() -> Iterator[None]:
    """Let a verb print, and end the program unless all of it has arrived.

    Whoever reads the other end of a pipe may stop reading: then, as after SIGPIPE, nothing is said.
    Other failures, a full disk and an output that is closed among them, are told in one line.
    """
    _open_what_is_closed()
    before = sys.stdout
    if type(before) is not io.TextIOWrapper or os.name == "nt":  # a test's, or a console
        yield
        return
    before.flush()
    raw = _Output(before.fileno(), "w", closefd=False)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw), before.encoding, before.errors, line_buffering=before.line_buffering
    )
    stream = sys.stdout
    try:
        yield
    except OSError:
        if raw.failure is None:
            raise
    finally:
        sys.stdout = before
        with suppress(OSError):  # which is noted
            stream.flush()
        if raw.failure is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), raw.fileno())  # for what is left of it
            _leave(raw.failure)


class _Output(io.FileIO):
    """Standard output that remembers why it could not be written."""

    failure: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.failure = error
            raise


def _open_what_is_closed() -> None:
    """Occupy the numbers of standard streams that are closed, which the next file would get.

    What is printed to a closed standard output fails, as it would without this.
    """
    if sys.stdin is None:
        os.open(os.devnull, os.O_RDONLY)
    if sys.stdout is None:
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w")  # noqa: SIM115 - to the end
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - to the end


def _leave(error: OSError) -> NoReturn:
    if isinstance(error, BrokenPipeError):
        sys.exit(_AFTER_SIGPIPE)
    say(f"trunkline: error: standard output cannot be written: {error.strerror}")
    sys.exit(OutputError.exit_code)
