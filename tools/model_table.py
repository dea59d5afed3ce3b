"""Write or check docs/backbones.md and variants.json: all variants, from the meta device.

python tools/model_table.py             # exit 1 where the page is not what the code says
python tools/model_table.py --update    # write it anew
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

import trunkline
from trunkline.facts import FILE

PAGE = Path(__file__).parent.parent / "docs" / "backbones.md"
DATA = Path(trunkline.__file__).parent / FILE
HEAD = """# Backbones

Written by `python tools/model_table.py --update`; `make check` compares it with the code.

Parameters are those of the backbone alone, without a classifier. GMACs are multiply-accumulates of
the convolutions, in thousand millions, for one 224×224 image; floating-point operations are twice
as many. Channels are those of the maps at strides 4, 8, 16 and 32 (`return_idx` 0 to 3); the map at
stride 2 is there with `return_stem=True`. Other names are read with `_` as `-` and without regard
to capitals or to what stands before a slash (`facebook/regnet-y-040`).
"""
TITLES = {"resnet": "ResNet", "dla": "DLA", "regnet": "RegNet"}


def page() -> str:
    """Return the whole page."""
    lines = [HEAD]
    for family, title in TITLES.items():
        lines += [
            f"## {title}\n",
            "| variant | parameters (M) | GMACs | stride 2 | strides 4, 8, 16, 32 | other names |",
            "|---|--:|--:|--:|---|---|",
        ]
        for name in trunkline.list_backbones(family):
            known = trunkline.info(name)
            stem, *stages = (str(level.channels) for level in known.levels)
            aliases = ", ".join(f"`{alias}`" for alias in known.aliases)
            lines.append(
                f"| `{name}` | {known.num_parameters / 1e6:.2f} | {known.macs / 1e9:.2f} "
                f"| {stem} | {', '.join(stages)} | {aliases} |"
            )
        lines.append("")
    return "\n".join(lines)


def data() -> str:
    """Return what the command line reads in the networks' place."""
    known = [trunkline.info(name) for name in trunkline.list_backbones()]
    return msgspec.json.format(msgspec.json.encode(known), indent=1).decode() + "\n"


def main() -> int:
    """Write both files, or say whether they are what the code says."""
    files = {PAGE: page(), DATA: data()}
    if "--update" in sys.argv[1:]:
        for path, content in files.items():
            path.write_text(content, encoding="utf-8")
        return 0
    wrong = [p.name for p, text in files.items() if not p.is_file() or p.read_text("utf-8") != text]
    if not wrong:
        return 0
    print(f"{', '.join(wrong)}: not what the code says: python tools/model_table.py --update")
    return 1


if __name__ == "__main__":
    sys.exit(main())
