"""Processes that are started without the caller's script.

``spawn`` imports the main script again in every process it starts, so that a script without
``if __name__ == "__main__"`` starts itself over and over. A worker of ours needs nothing of it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import context, process, spawn
from typing import Any, ClassVar

_one_at_a_time = threading.Lock()


@contextmanager
def _main_left_out() -> Iterator[None]:
    original = spawn.get_preparation_data

    def prepared(name: str) -> dict[str, Any]:
        fields = original(name)
        return {key: value for key, value in fields.items() if not key.startswith("init_main")}

    with _one_at_a_time:
        spawn.get_preparation_data = prepared
        try:
            yield
        finally:
            spawn.get_preparation_data = original


class _Process(context.SpawnProcess):
    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> Any:  # noqa: N802 (multiprocessing's name)
        with _main_left_out():
            return context.SpawnProcess._Popen(process_obj)


class WorkerContext(context.SpawnContext):
    """``spawn``, without importing the main script in the new process."""

    Process: ClassVar[type[_Process]] = _Process
