"""Checkpoints that ask for far more work than they are large, of every format, from a seed.

    python tools/checkpoint_bombs.py                       # each kind once, at 10 MB
    python tools/checkpoint_bombs.py --seed 3 --kind zip_shared_storage --bytes 1000000

Every file is read into a backbone and converted in a process of its own; what that cost is printed,
the worst last. A file of 10 MB may take 5 seconds and 1 GB. The tests use the same files, small.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import random
import resource
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Bomb = Callable[[random.Random, int], bytes]

SECONDS, MEGABYTES = 5.0, 1000.0  # what a file of 10 MB may cost
STEMS = (
    *("stem.conv.weight", "stem.0.conv.weight", "conv1.weight", "conv1.0.weight", "conv1_w"),
    *("base_layer.0.weight", "embedder.embedder.convolution.weight", "conv1.conv1_1.conv.weight"),
    *("embedder.embedder.0.convolution.weight", "conv1.stem.0.weight", "stem.0.weight"),
    "stem.conv1.weight",
)
"""What every layout calls the weight that it is first looked for by."""

_OLD_MAGIC = 0x1950A86A20F9469CFC6C


def safetensors(names: Iterable[str], words: dict[str, str] | None = None, size: int = 1) -> bytes:
    """Return a file of scalars, or of tensors without numbers."""
    header: dict[str, Any] = {"__metadata__": words} if words else {}
    for index, name in enumerate(dict.fromkeys(names)):
        shape, start = [] if size else [0], 4 * index * size
        entry = {"dtype": "F32", "shape": shape, "data_offsets": [start, start + 4 * size]}
        header[name] = entry
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(4 * size * (len(header) - bool(words)))


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _long(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def torch_tensor(key: str, stored: int, used: int) -> bytes:
    """Return the instructions that describe a tensor of a file of torch's."""
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n"
        + _text(key) + b"X\x03\0\0\0cpu" + _long(stored) + b"tQ" + _long(0) + _long(used)
        + b"\x85" + _long(1) + b"\x85\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip


_ARRAY = (  # of as many numbers as is filled in
    b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01K%c\x85"
    b"cnumpy\ndtype\n(X\x02\0\0\0f4tR\x89C%c%stb"
)


def dictionary(entries: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a pickle of a dictionary whose values are described already."""
    return b"\x80\x02}(" + b"".join(_text(name) + value for name, value in entries) + b"u."


def archive(described: bytes, members: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a zip archive as torch lays one out."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        written.writestr("a/data.pkl", described)
        for name, content in members:
            written.writestr(f"a/data/{name}", content)
    return file.getvalue()


def shared_archive(described: bytes, content: bytes, keys: Iterable[str]) -> bytes:
    """Return an archive in whose directory many members are one and the same."""
    file, rows = io.BytesIO(), []

    def put(name: bytes, body: bytes) -> tuple[int, ...]:
        offset, crc, size = file.tell(), zlib.crc32(body), len(body)
        form = "<4sHHHHHIIIHH"
        file.write(struct.pack(form, b"PK\3\4", 20, 0, 0, 0, 0, crc, size, size, len(name), 0))
        file.write(name + body)
        return offset, crc, size

    def list_(name: bytes, offset: int, crc: int, size: int) -> None:
        numbers = (20, 20, 0, 0, 0, 0, crc, size, size, len(name), 0, 0, 0, 0, 0, offset)
        rows.append(struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", *numbers) + name)

    list_(b"a/data.pkl", *put(b"a/data.pkl", described))
    place = put(b"a/data/0", content)
    for key in keys:
        list_(f"a/data/{key}".encode(), *place)
    start, directory, count = file.tell(), b"".join(rows), min(len(rows), 65535)
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, len(directory), start, 0)
    file.write(directory + end)
    return file.getvalue()


def _names(chance: random.Random, room: int, each: int, form: str = "{}") -> list[str]:
    """Return as many names as there is room for, at a cost of ``each`` bytes beside the name."""
    names: list[str] = []
    while room > 0:
        names.append(form.format(f"{len(names)}{chance.choice('abcdef')}"))
        room -= len(names[-1]) + each
    return names


ENTRY = 75  # bytes of a tensor in the header of a safetensors file, beside its name, and its number


def _one_long_name(chance: random.Random, room: int) -> bytes:
    word = chance.choice(["module.", "backbone.", "model.", "a.", "x", "level1.tree1."])
    return safetensors([word * (room // len(word) - 20) + "w"])


def _long_names(chance: random.Random, room: int) -> bytes:
    word = chance.choice(["module.", "res1.block1-part1.", "heads.", "_momentum", "level1.tree1."])
    limit = chance.choice([490, 500, 510, 4000])
    return safetensors(_names(chance, room, ENTRY, word * (limit // len(word) - 1) + "{}"))


def _many_tensors(chance: random.Random, room: int) -> bytes:
    names = _names(chance, room, ENTRY)[: chance.choice([9_900, 10_000, 10**9])]
    return safetensors([*STEMS, *names][: len(names)], size=chance.choice([0, 1]))


def _patterns(chance: random.Random, room: int) -> bytes:
    """Names that the patterns of layouts begin to match, again and again."""
    word = chance.choice(
        ["res1.block1-part1.", "level1.tree1", ".tree1", "_momentum", "heads.", "fc.", "_bn_gamma"]
    )
    names = _names(chance, room, ENTRY, word * (460 // len(word)) + "{}")[:9_900]
    return safetensors([*STEMS, *names])


def _names_of_all_networks(chance: random.Random, room: int) -> bytes:
    from trunkline.weights.layouts import LAYOUTS
    from trunkline.weights.matching import native_shapes
    from trunkline.zoo import list_backbones, variant_config

    names: dict[str, None] = {}
    for variant in list_backbones():
        architecture = variant_config(variant)
        for layout in LAYOUTS.values():
            if layout.applies(architecture):
                leaves = (".weight", ".bias") if layout.norm else ("",)
                ours = [n for n in native_shapes(architecture) if n.endswith(leaves)]
                named = layout.names(architecture, ours).values()
                names |= dict.fromkeys(name.upstream for name in named)
    chosen = chance.sample(sorted(names), min(9_900, len(names), room // (ENTRY + 40)))
    return safetensors([*STEMS, *chosen])


def _wrapped(chance: random.Random, room: int) -> bytes:
    prefix = chance.choice(["module.", "backbone.", "backbone.bottom_up.", "model.module."])
    depth = chance.choice([9, 10, 11, 40])
    names = _names(chance, room, ENTRY, (prefix * depth)[:450] + "{}")[:9_900]
    return safetensors([*names, *(f"other{n}" for n in range(chance.choice([0, 8])))])


def _words(chance: random.Random, room: int) -> bytes:
    """Metadata that is large, deep, or asks for a network without end."""
    open_, shut = chance.choice([("[", "]"), ('{"a":', "}")])
    depth = room // (2 * len(open_) + 2)
    huge = chance.choice([9**6, 2**63, 10**30])
    config = {
        "resnet": {"depths": [1, 1, 1, huge], "bottleneck": True, "width": huge},
        "dla": {"depths": [1, 2, 40, 1], "channels": [huge] * 4, "bottleneck": False},
        "regnet": dict.fromkeys(("depth", "initial_width", "group_width"), huge)
        | {"width_slope": 1e308, "width_multiplier": 1.0000000000000002},
    }
    family = chance.choice(sorted(config))
    asked = {"format": 2, "layout": "trunkline", "family": family, "architecture": config[family]}
    return safetensors(
        ["stem.conv.weight"],
        chance.choice(
            [
                {"trunkline": open_ * depth},
                {"trunkline": '{"format":2,"preprocessing":' + open_ * depth + shut * depth + "}"},
                {"trunkline": json.dumps(asked)},
                {"trunkline": json.dumps({**asked, "variant": "resnet" * (room // 6)})},
                {"arch": "resnet" * (room // 6), "layout": "x" * 99},
                {f"key{n}": "v" for n in range(room // 20)},
            ]
        ),
    )


def _shared_storage(chance: random.Random, room: int) -> bytes:
    keys = [str(n) for n in range(chance.choice([room // 400, 39_000, 50_000]))]
    keys = keys[: room // 250]
    described = dictionary((key, torch_tensor(key, 1, 1)) for key in keys)
    return shared_archive(described, bytes(room - 250 * len(keys)), keys)


def _many_members(chance: random.Random, room: int) -> bytes:
    names = _names(chance, room // 2, 60)[: chance.choice([39_000, 10**9])]
    return archive(b"\x80\x02}.", ((name, b"") for name in names))


def _many_storages(chance: random.Random, room: int) -> bytes:
    keys = [str(n) for n in range(room // 330)][: chance.choice([9_900, 10**9])]
    described = dictionary((key, torch_tensor(key, 1, 1)) for key in keys)
    return archive(described, ((key, b"1234") for key in keys))


def _views(chance: random.Random, room: int) -> bytes:
    keys = [str(n) for n in range(chance.choice([5, 50, room // 400]))]
    content = bytes(room // 2 // 4 * 4)
    used = chance.choice([1, len(content) // 4])
    described = dictionary((key, torch_tensor("0", len(content) // 4, used)) for key in keys)
    return archive(described, [("0", content)])


def _deflated(_: random.Random, room: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as written:
        written.writestr("a/data.pkl", dictionary([("w", torch_tensor("0", 1, 1))]))
        written.writestr("a/data/0", bytes(min(room * 100, 300_000_000)))
    return file.getvalue()


def _legacy(chance: random.Random, room: int) -> bytes:
    keys = [str(n) for n in range(room // 280)][: chance.choice([9_900, 10**9])]
    head = b"".join(pickle.dumps(p, 2) for p in (_OLD_MAGIC, 1001, {"little_endian": True}))
    described = dictionary((key, torch_tensor(key, 1, 1)) for key in keys)
    return head + described + pickle.dumps(keys, 2) + (struct.pack("<q", 1) + bytes(4)) * len(keys)


def _instructions(chance: random.Random, room: int) -> bytes:
    """The same few instructions for as long as there is room."""
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\nq\0)q\1("
    before, again = chance.choice(
        [
            (b"(", b"N"), (b"(", b"]"), (b"(", b"}K\1Ns"), (b"", b"("), (b"N", b"\x94"),
            (reconstruct, b"h\0h\1R"), (b"(", b"ctorch\nSize\n"), (b"(", b"S'\\x41'\n"),
            (b"(", b"Va\n"), (b"(", b"I" + b"9" * 500 + b"\n"), (b"(", b"U\1a"), (b"(", b"N0"),
            (b"]q\0(", b"h\0\x85"), (b"(", b"F1e999\n"), (b"]", b"]a" * 1), (b")", b"\x85"),
            (b"ccollections\nOrderedDict\nq\1](K\1K\2\x86e\x85q\3(", b"h\1h\3R"),
        ]
    )  # fmt: skip
    return b"\x80\x04" + before + again * (room // len(again)) + b"l."


def _one_string(chance: random.Random, room: int) -> bytes:
    head, again, tail = chance.choice(
        [(b"S'", b"\\x41", b"'\n."), (b"V", b"\\u4141", b"\n."), (b"V", b"a", b""),
         (b"c", b"a.", b"\nb\n."), (b"X" + struct.pack("<I", room), b"\xc3\xa4", b".")]
    )  # fmt: skip
    return b"\x80\x02" + head + again * (room // len(again)) + tail


def _arrays(chance: random.Random, room: int) -> bytes:
    """One array under many names, with a number or without."""
    size = chance.choice([0, 1])
    array = _ARRAY % (size, 4 * size, b"\0" * 4 * size) + b"q\5"
    names = [*STEMS, *_names(chance, room, 7)][: chance.choice([9_900, 10**9])]
    return b"\x80\x03" + array + b"0}(" + b"".join(_text(n) + b"h\5" for n in names) + b"u."


def _tar(_: random.Random, room: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as written:
        for index in range(room // 512):
            written.addfile(tarfile.TarInfo(f"storages/{index}"))
    return file.getvalue()


BOMBS: dict[str, tuple[str, Bomb]] = {
    "one_long_name": (".safetensors", _one_long_name),
    "long_names": (".safetensors", _long_names),
    "many_tensors": (".safetensors", _many_tensors),
    "patterns": (".safetensors", _patterns),
    "names_of_all_networks": (".safetensors", _names_of_all_networks),
    "wrapped": (".safetensors", _wrapped),
    "words": (".safetensors", _words),
    "zip_shared_storage": (".pth", _shared_storage),
    "zip_many_members": (".pth", _many_members),
    "zip_many_storages": (".pth", _many_storages),
    "zip_views": (".pth", _views),
    "zip_deflated": (".pth", _deflated),
    "legacy": (".pth", _legacy),
    "instructions": (".pkl", _instructions),
    "one_string": (".pkl", _one_string),
    "arrays": (".pkl", _arrays),
    "tar": (".tar", _tar),
}
"""Each kind: the ending of its files, and what makes one from a seed and a size in bytes."""


def outcome(path: Path) -> str:
    """Load a file and convert it; return what came of both.

    Raises:
        Exception: Anything but an error of ours.
    """
    from trunkline import TrunklineError, create_backbone
    from trunkline.weights.conversion import convert

    said = []
    actions: tuple[Callable[[], object], ...] = (
        lambda: create_backbone("resnet18", weights=path),
        lambda: convert(path, path.with_name("converted.safetensors"), "timm"),
    )
    for action in actions:
        try:
            action()
            said.append("read")
        except TrunklineError as error:
            said.append(type(error).__name__)
    return ", ".join(said)


def _measure(kind: str, seed: int, room: int) -> None:
    """Print what one file costs this process."""
    import trunkline.weights.conversion  # noqa: F401 - its import is not counted

    suffix, make = BOMBS[kind]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"bomb{suffix}")
        path.write_bytes(make(random.Random(f"{kind} {seed}"), room))  # noqa: S311 - no secrets
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        said = outcome(path)
        seconds = time.process_time() - start
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(json.dumps([seconds, grown, path.stat().st_size, said]))


def main() -> None:
    """Measure every kind, each file in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the first file of each kind")
    parser.add_argument("--files", type=int, default=1, help="of each kind")
    parser.add_argument("--bytes", type=int, default=10_000_000, help="of each file, at most")
    parser.add_argument("--kind", choices=sorted(BOMBS), help="only this one")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        _measure(given.kind, given.seed, given.bytes)
        return
    costs = []
    for kind in [given.kind] if given.kind else BOMBS:
        for seed in range(given.seed, given.seed + given.files):
            command = [sys.executable, __file__, "--child", "--kind", kind, "--seed", str(seed)]
            run = subprocess.run(
                [*command, "--bytes", str(given.bytes)], capture_output=True, text=True
            )
            if run.returncode:
                sys.exit(f"{kind}, seed {seed}, ended with {run.returncode}:\n{run.stderr}")
            costs.append((*json.loads(run.stdout.splitlines()[-1]), kind, seed))
    for seconds, grown, size, said, kind, seed in sorted(costs):
        short = seconds > SECONDS or grown > MEGABYTES
        print(
            f"{'TOO MUCH ' if short else ''}{kind:22} seed {seed:<4} {size / 1e6:5.1f} MB "
            f"{seconds:6.2f} s {grown:6.0f} MB  {said}"
        )
    print(f"{len(costs)} files, the worst {costs and max(costs)[0]:.2f} s")


if __name__ == "__main__":
    main()
