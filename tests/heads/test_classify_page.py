"""The code of docs/classify.md runs, and a few steps of training tell three photos apart."""

from __future__ import annotations

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
    page = (REPOSITORY / "docs" / "classify.md").read_text(encoding="utf-8")
    pieces = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(pieces) == 5
    shutil.copytree(REPOSITORY / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for piece in pieces:  # no network here
        exec(piece.replace('weights="default"', "weights=None"), names)  # noqa: S102
    assert names["loss"] < 0.5
    assert torch.equal(names["again"](names["images"]), names["run"](names["images"]))
    assert tuple(names["logits"].shape) == (3, 3)
    assert names["runner"].labels == ("cat", "coffee", "rocket")
    assert len(names["guesses"]) == 2
    assert "('cat', 'coffee', 'rocket')" in capsys.readouterr().out
