"""``classify`` of pictures of more than three bands, in Python and as a verb."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import trunkline
from trunkline import classify, create_classifier
from trunkline.cli.root import app
from trunkline.images import Bands, decode_bands

tifffile = pytest.importorskip("tifffile")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a classifier of four bands, and two scenes."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    own = create_classifier("dla46-c", labels=["field", "lake", "town"], in_channels=4).eval()
    trunkline.save_pretrained(own, "own")
    drawn = np.random.default_rng(0)
    Path("scenes").mkdir()
    for name in ("a", "b"):
        scene = drawn.integers(0, 10_000, (48, 40, 5), dtype=np.uint16)
        tifffile.imwrite(f"scenes/{name}.tif", scene, photometric="minisblack")
    return tmp_path


def run(*arguments: str) -> Any:
    command = ["classify", *arguments, "--backbone", "own", "--size", "32", "--top", "3"]
    return CliRunner().invoke(app, command)


@pytest.mark.usefixtures("here")
def test_scenes_have_the_classes_of_their_bands() -> None:
    done = run("scenes", "--bands", "5,3,2,1", "--white", "10000", "--json")
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)["images"]
    assert [one["image"] for one in said] == ["scenes/a.tif", "scenes/b.tif"]
    classifier = trunkline.load_classifier("own")
    bands = Bands(bands=(5, 3, 2, 1), white=10_000)
    scenes = [decode_bands(one["image"], bands) for one in said]
    for one, guesses in zip(said, classify(scenes, classifier, size=32), strict=True):
        assert [guess["label"] for guess in one["top"]] == [guess.label for guess in guesses]
        told = [guess["probability"] for guess in one["top"]]
        assert told == pytest.approx([guess.probability for guess in guesses], abs=1e-4)
    alone = classify(scenes[1], classifier, size=32)
    assert [guess.label for guess in alone] == [guess["label"] for guess in said[1]["top"]]
    swapped = run("scenes/a.tif", "--bands", "1,2,3,5", "--white", "10000", "--json")
    assert json.loads(swapped.stdout)["top"] != said[0]["top"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        ((), 2, "takes 4 channels, and photos have 3; say with --bands"),
        (("--bands", "3,2,1", "--white", "10000"), 2, "--bands names 3 bands, .* takes 4 channels"),
        (("--bands", "4,3,2,1"), 1, "scenes/b.tif.* white"),
    ],
)
def test_bands_that_do_not_fit_are_refused(flags: tuple[str, ...], code: int, text: str) -> None:
    done = run("scenes", *flags)
    assert done.exit_code == code
    assert re.search(text, done.stderr), done.stderr
