"""Write or check docs/backbones.md: the table of all variants, from the meta device.

python tools/model_table.py             # exit 1 where the page is not what the code says
python tools/model_table.py --update    # write it anew
"""

from __future__ import annotations

import sys
from pathlib import Path

import trunkline

PAGE = Path(__file__).parent.parent / "docs" / "backbones.md"
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


def main() -> int:
    """Write the page, or say whether it is what the code says."""
    if "--update" in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page():
        return 0
    print(f"{PAGE.name} is not what the code says: python tools/model_table.py --update")
    return 1


if __name__ == "__main__":
    sys.exit(main())
