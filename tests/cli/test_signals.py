"""The second signal ends a run within a second, whatever it waits for."""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

import pytest
from kill_and_resume import command, leftovers, living, save_runner, start, wait_for
from loopback import FileHost, always, drips

from trunkline.cli import signals
from trunkline.cli.signals import Stopping, stopping_on_signals

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")

SOURCES = {  # kind → what the host is asked for; it never answers to the end
    "folder": "/photos/",
    "glob": "/more/*.jpg",
    "list": "/images.txt",
    "parquet": "/table.parquet",
    "tar": "/images.tar",
    "URLs": "/photos/0.jpg",
}
SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_runner(tmp_path_factory.mktemp("saved") / "runner")


@pytest.fixture
def host() -> Iterator[FileHost]:
    """A host that drips, whatever it is asked for."""
    served = FileHost()
    for path in {*SOURCES.values()}:
        served.script[path.replace("/*.jpg", "")] = always(drips())
    yield served
    served.close()


def source(kind: str, host: FileHost, folder: Path) -> str:
    url = host.origin + SOURCES[kind]
    if kind != "URLs":
        return url
    listed = folder / "images.txt"
    listed.write_text(f"{url}\n")
    return str(listed)


@contextmanager
def waiting(kind: str, host: FileHost, folder: Path, runner: Path) -> Iterator[Popen[str]]:
    """A run that waits for the host."""
    arguments = command(source(kind, host, folder), folder / "f.parquet", runner, "--timeout", "99")
    process = start(arguments)
    try:
        wait_for(lambda: any(one[0] == "GET" for one in host.requests), "nothing was asked", 60)
        yield process
    finally:
        if living(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.mark.parametrize("kind", SOURCES)
def test_a_host_that_drips_keeps_no_run_from_ending(
    kind: str, runner: Path, host: FileHost, tmp_path: Path
) -> None:
    with waiting(kind, host, tmp_path, runner) as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, errors = process.communicate(timeout=10)
        wait_for(lambda: not living(process.pid), "workers outlived their run", 10)
        assert time.monotonic() - began < 1
    # Where the first signal was enough within the 0.1 s, the second finds a run that has ended: it
    # is too late (the first one's code), or Python's own to end by.
    ended = (128 + signal.SIGINT, -signal.SIGINT, 128 + signal.SIGTERM)
    assert process.returncode in ended, errors
    assert errors.startswith("Stopping after this batch; once more ends it at once.\n")


def test_one_signal_is_enough_while_a_list_drips(
    runner: Path, host: FileHost, tmp_path: Path
) -> None:
    with waiting("list", host, tmp_path, runner) as process:
        process.send_signal(signal.SIGTERM)
        printed, errors = process.communicate(timeout=10)
        wait_for(lambda: not living(process.pid), "workers outlived their run", 10)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert json.loads(printed)["stopped"] is True
    assert leftovers(tmp_path / "f.parquet") == []


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_second_of_any_two_signals_ends_it(
    first: int, second: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = queue.SimpleQueue[int]()
    monkeypatch.setattr(signals, "_end", ended.put)
    before = [signal.getsignal(one) for one in SIGNALS]
    with stopping_on_signals() as stopping:
        signal.raise_signal(first)
        assert stopping.event.is_set()
        assert ended.empty()
        signal.raise_signal(second)
        assert ended.get(timeout=10) == second
        assert stopping.number == first
    assert [signal.getsignal(one) for one in SIGNALS] == before
    assert capsys.readouterr().err.count("once more ends it at once") == 1


def test_a_signal_is_heard_while_the_main_thread_cannot_listen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As it is inside a library: Python would run the handler when that returns."""
    monkeypatch.setattr(Stopping, "note", note := Noted())
    with stopping_on_signals():
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        assert note.threads.get(timeout=10) != threading.main_thread()


class Noted:
    """Notes in which thread it is called, if that is not the main one."""

    def __init__(self) -> None:
        self.threads = queue.SimpleQueue[threading.Thread]()

    def __call__(self, *_: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            self.threads.put(threading.current_thread())


def test_what_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping_on_signals() as stopping:
            signal.raise_signal(signal.SIGINT)
            assert not stopping.event.is_set()
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_nothing_is_changed() -> None:
    def enter() -> None:
        with stopping_on_signals() as stopping:
            found.append(stopping.event.is_set())
            found.append(signal.getsignal(signal.SIGINT) == before)

    before, found = signal.getsignal(signal.SIGINT), list[bool]()
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [False, True]
