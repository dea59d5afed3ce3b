"""Thousands of damaged files: each is read for what it says, or refused with a typed error.

A child process does it, so that a crash is seen and memory can be limited. Every mutant comes from
the seed that a failure names; ``python test_fuzz_checkpoint.py FORMAT SEED`` makes it again.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from trunkline.errors import TrunklineError
from trunkline.weights.checkpoint import Checkpoint, read_checkpoint

MUTANTS = 400  # of each format
SLOWEST_SECONDS = 5.0
MEMORY_BYTES = 256 << 20  # more than what is there before the first file is read


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "conv1.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "bn1.running_mean": torch.rand(4, generator=generator),
        "bn1.num_batches_tracked": torch.tensor(7),
        "fc.weight": torch.randn(5, 4, generator=generator).half(),
    }


def _torch_file(held: object, *, legacy: bool) -> bytes:
    file = io.BytesIO()
    torch.save(held, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def _arrays() -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in _tensors().items()}


FORMATS: dict[str, Callable[[], bytes]] = {
    "safetensors": lambda: save(_tensors(), metadata={"format": "pt"}),
    "zip": lambda: _torch_file({"state_dict": OrderedDict(_tensors())}, legacy=False),
    "zip-pickle": lambda: next(v for k, v in _members().items() if k.endswith("data.pkl")),
    "legacy": lambda: _torch_file({"state_dict": OrderedDict(_tensors())}, legacy=True),
    "pickle0": lambda: pickle.dumps({"model": _arrays()}, protocol=0),
    "pickle2": lambda: pickle.dumps({"model": _arrays()}, protocol=2),
    "pickle4": lambda: pickle.dumps({"model": _arrays()}, protocol=4),
    "pickle5": lambda: pickle.dumps({"blobs": _arrays()}, protocol=5),
}
_DICTIONARY = (
    *(b"\xff" * 4, b"\x00" * 4, b"\xff\xff\xff\x7f", b"\x00" * 8, b"\xff" * 8, b"\x80\x04"),
    *(b"cos\nsystem\n", b"S'touch fuzz-canary'\n", b"(S'touch fuzz-canary'\nios\nsystem\n"),
    *(b"R", b"\x81", b"b", b"o", b"\x93", b"Q", b"\x97", b"\x82\x01", b"2", b"0", b"}", b"(", b"t"),
    *(b"h\x00", b"q\x00", b"\x94", b"s", b"u", b"a", b"e", b"N", b"\x85", b"\x8b", b"."),
    *(b"1000000000000", b"-1", b"[", b"{", b'"', b"F64", b"PK\x03\x04", b"PK\x01\x02"),
)


def mutant(kind: str, seed: int) -> bytes:
    """Return the file of a format with one to five changes."""
    chance = random.Random(f"{kind} {seed}")  # noqa: S311 (mutations, not secrets)
    data = bytearray(FORMATS[kind]())
    # Most of the bytes are numbers of tensors; what says something is in the first part, and in a
    # zip in the last one too.
    said = min(len(data), 1200)
    for _ in range(chance.choice((1, 1, 2, 3, 5))):
        if not data:
            break
        at = chance.randrange(len(data)) if chance.random() < 0.3 else chance.randrange(said)
        if kind == "zip" and chance.random() < 0.3:
            at = len(data) - at
        at = max(0, min(at, len(data) - 1))
        _change(data, at, chance)
    return _archive(bytes(data)) if kind == "zip-pickle" else bytes(data)


def _change(data: bytearray, at: int, chance: random.Random) -> None:
    length = chance.choice((1, 1, 2, 4, 8, 30))
    match chance.randrange(7):
        case 0:
            data[at] ^= 1 << chance.randrange(8)
        case 1:
            data[at] = chance.randrange(256)
        case 2:
            del data[at : at + length]
        case 3:
            data[at:at] = chance.choice(_DICTIONARY)
        case 4:
            word = chance.choice(_DICTIONARY)
            data[at : at + len(word)] = word
        case 5:
            source = chance.randrange(len(data))
            data[at:at] = data[source : source + length]
        case 6:
            if chance.random() < 0.2:
                del data[at:]
            else:
                data[at : at + length] = bytes(chance.randrange(256) for _ in range(length))


def _members() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(FORMATS["zip"]())) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def _archive(pickled: bytes) -> bytes:
    """Put a changed pickle into a sound archive, whose checksums agree."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in _members().items():
            archive.writestr(name, pickled if name.endswith("data.pkl") else content)
    return file.getvalue()


def check(kind: str, seed: int, folder: Path) -> str:
    """Read one mutant; return "read", or the class of its error."""
    content = mutant(kind, seed)
    path = folder / "mutant"
    path.write_bytes(content)
    try:
        checkpoint = read_checkpoint(path)
    except TrunklineError as error:
        refused = error
    else:
        _compare(checkpoint, content, kind)
        return "read"
    assert str(refused).startswith(str(path)), f"does not name the file: {refused}"
    assert str(refused).isprintable(), "would not print"
    return type(refused).__name__


def _compare(checkpoint: Checkpoint, content: bytes, kind: str) -> None:
    """See that the numbers of every tensor are in the file, independently of how it was read."""
    assert checkpoint.tensors
    for name, tensor in checkpoint.tensors.items():
        assert name
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        # Protocols 0 and 2 write bytes as text, and swapped or turned arrays are rearranged.
        plain = kind not in ("pickle0", "pickle2") and tensor.is_contiguous()
        swapped = np.frombuffer(raw, np.uint8).reshape(-1, tensor.element_size())[:, ::-1].tobytes()
        assert not plain or raw in content or swapped in content, f"{name} is made up"


def main(kind: str, seeds: range) -> None:
    """Read all mutants of a format, with limited memory, and print what became of them."""
    warnings.simplefilter("error")
    outcomes: dict[str, int] = {}
    slowest = 0.0
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        for seed in seeds:
            start = time.perf_counter()
            try:
                outcome = check(kind, seed, Path(name))
            except BaseException as error:
                raise AssertionError(f"{kind} {seed}: {error!r}") from error
            slowest = max(slowest, time.perf_counter() - start)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
        assert sorted(os.listdir(name)) == ["mutant"], "something ran"
    print(json.dumps({"outcomes": outcomes, "slowest": slowest}))  # noqa: T201 (to the parent)


def _limit_memory() -> None:
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
@pytest.mark.parametrize("kinds", [list(FORMATS)[:4], list(FORMATS)[4:]], ids=["torch", "numpy"])
def test_mutated_files_are_read_right_or_refused(kinds: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, __file__, *kinds], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, f"exit code {run.returncode}\n{run.stderr[-3000:]}"
    for kind, line in zip(kinds, run.stdout.splitlines(), strict=True):
        told = json.loads(line)
        outcomes = told["outcomes"]
        assert sum(outcomes.values()) == MUTANTS, kind
        assert told["slowest"] < SLOWEST_SECONDS, kind
        # A fuzzer that never gets through, or never finds anything, is broken.
        assert outcomes["read"] > 10, f"{kind}: {outcomes}"
        assert outcomes["CheckpointError"] > 100, f"{kind}: {outcomes}"
        if kind not in ("safetensors", "zip"):
            assert outcomes["UnsafeCheckpointError"] > 5, f"{kind}: {outcomes}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) == 3 and sys.argv[2].isdigit():
        main(sys.argv[1], range(int(sys.argv[2]), int(sys.argv[2]) + 1))
    else:
        _limit_memory()
        for chosen in sys.argv[1:]:
            main(chosen, range(MUTANTS))
