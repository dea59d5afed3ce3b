"""What a verb prints arrives, or the exit code says that it did not."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TextIO

from trunkline.cli.output import say
from trunkline.errors import OutputError

_AFTER_SIGPIPE = 128 + 13


@contextmanager
def standard_streams() -> Iterator[None]:
    """Let a verb print, and end the program unless all of its output has arrived.

    Whoever reads the other end of a pipe may stop reading: then, as after SIGPIPE, nothing is said.
    Other failures, a full disk and an output that is closed among them, are told in one line. What
    standard error cannot take is passed over: a run of days does not end for want of a reader.
    """
    _open_what_is_closed()
    before = sys.stdout, sys.stderr
    (sys.stdout, output), (sys.stderr, _) = _noting(sys.stdout), _noting(sys.stderr, passing=True)
    mine = sys.stdout, sys.stderr
    try:
        yield
    except OSError:
        if output is None or output.failure is None:
            raise
    finally:
        for stream in mine:
            with suppress(OSError):  # which is noted
                stream.flush()
        sys.stdout, sys.stderr = before
        if output is not None and output.failure is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())  # for what is left of it
            _leave(output.failure)


class _Output(io.FileIO):
    """A stream that remembers why it could not be written.

    Args:
        descriptor: Which stays open.
        passing: Go on as if it had been written.
    """

    def __init__(self, descriptor: int, *, passing: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.failure: OSError | None = None
        self._passing = passing

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.failure = error
            if self._passing:
                return len(content)
            raise


def _noting(stream: TextIO, *, passing: bool = False) -> tuple[TextIO, _Output | None]:
    """Return a stream in the place of another, and what notes its failures."""
    if type(stream) is not io.TextIOWrapper or os.name == "nt":  # a test's, or a console
        return stream, None
    stream.flush()
    raw = _Output(stream.fileno(), passing=passing)
    buffered = io.BufferedWriter(raw)
    lines = stream.line_buffering
    return io.TextIOWrapper(buffered, stream.encoding, stream.errors, line_buffering=lines), raw


def _open_what_is_closed() -> None:
    """Occupy the numbers of standard streams that are closed, which the next file would get.

    What is printed to a closed standard output fails, as it would without this.
    """
    if sys.stdin is None:
        os.open(os.devnull, os.O_RDONLY)
    if sys.stdout is None:
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w")  # noqa: SIM115 - to the end
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", errors="backslashreplace")  # noqa: SIM115


def _leave(error: OSError) -> NoReturn:
    if isinstance(error, BrokenPipeError):
        sys.exit(_AFTER_SIGPIPE)
    say(f"trunkline: error: standard output cannot be written: {error.strerror}")
    sys.exit(OutputError.exit_code)
