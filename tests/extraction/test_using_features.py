"""The code of docs/using-features.md runs, and finds what the page says."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).parents[2]


def test_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (REPOSITORY / "docs" / "using-features.md").read_text(encoding="utf-8")
    pieces = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(pieces) == 5
    shutil.copytree(REPOSITORY / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)  # no network here: random weights tell views of three photos apart as well
    names: dict[str, Any] = {}
    for piece in pieces:
        exec(piece.replace('weights="default"', "weights=None"), names)  # noqa: S102
    assert names["photos"].keys == ["cat.jpg", "coffee.jpg", "rocket.jpg"]
    found = [[names["keys"][place].split("-")[0] for place in row] for row in names["places"]]
    assert found == [[name] * 5 for name in ("cat", "coffee", "rocket")]
    assert [one.key for one in names["near_one"]] == [names["keys"][n] for n in names["places"][0]]
    near = names["near"].fetchall()
    assert [key for key, _ in near] == [names["keys"][place] for place in names["places"][0]]
    assert [one for _, one in near] == pytest.approx(names["similarities"][0].tolist(), abs=1e-5)
    assert names["accuracy"] == 1
    assert "100% of 12 views" in capsys.readouterr().out
