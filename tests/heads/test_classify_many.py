"""``trunkline classify`` on folders, globs, lists and archives, some photos damaged."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

import trunkline
from trunkline import Classifier, classify, create_classifier
from trunkline.cli.root import app
from trunkline.errors import ConfigError
from trunkline.heads.guesses import guesses_of


@pytest.fixture(scope="module")
def own() -> Classifier:
    torch.manual_seed(0)
    return create_classifier("dla46-c", labels=["a", "b", "c"]).eval()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: Classifier) -> Path:
    """Work in a folder with a classifier, and five photos and a text below it."""
    monkeypatch.chdir(tmp_path)
    own.backbone.preprocessing = own.backbone.preprocessing  # stated: nothing is to be warned of
    trunkline.save_pretrained(own, "own")
    Path("photos/deep").mkdir(parents=True)
    for n, name in enumerate(("b.png", "a.png", "deep/c.png", "z.JPG", ".hidden.png")):
        Image.new("RGB", (40 + 10 * n, 40), (50 * n, 20, 90)).save(Path("photos", name))
    Path("photos/notes.txt").write_text("b.png\ndeep/c.png\n")
    return tmp_path


def run(*arguments: object) -> Any:
    command = ["classify", *(str(one) for one in arguments), "--backbone", "own", "--top", "1"]
    return CliRunner().invoke(app, [*command, "--size", "32"], catch_exceptions=False)


def names(*arguments: object) -> list[str]:
    done = run(*arguments, "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    return [one["image"] for one in json.loads(done.stdout)["images"]]


@pytest.mark.usefixtures("here")
def test_json_has_the_shape_of_what_was_asked_for() -> None:
    """A folder with one photo is a folder: a script that reads it need not count."""
    assert names("photos/deep") == ["photos/deep/c.png"]
    done = run("photos/deep/c.png", "--json")
    assert json.loads(done.stdout)["image"] == "photos/deep/c.png"


@pytest.mark.usefixtures("here")
def test_folders_globs_and_lists_are_their_photos_in_order() -> None:
    inside = ["photos/a.png", "photos/b.png", "photos/deep/c.png", "photos/z.JPG"]
    assert names("photos") == inside
    assert names("photos/*.png") == inside[:2]
    assert names("photos/notes.txt") == ["b.png", "deep/c.png"]
    assert names("photos/z.JPG", "photos/*.png", "./photos/deep/") == [inside[3], *inside[:3]]
    absolute = str(Path("photos").absolute())
    assert names(absolute)[0] == f"{absolute}/a.png"
    with tarfile.open("photos.tar", "w") as tar:
        tar.add("photos/a.png")
        tar.add("photos/b.png")
    assert names("photos.tar") == ["photos.tar/photos/a.png", "photos.tar/photos/b.png"]


@pytest.mark.usefixtures("here")
def test_each_photo_gets_the_classes_that_it_has_alone(own: Classifier) -> None:
    alone = [
        classify(path, own, 1, size=32)[0]
        for path in ("photos/a.png", "photos/b.png", "photos/deep/c.png", "photos/z.JPG")
    ]
    for size in (1, 3, 16):
        found = json.loads(run("photos", "--json", "--batch-size", size).stdout)["images"]
        for one, guess in zip(found, alone, strict=True):
            assert one["top"][0]["index"] == guess.index
            assert one["top"][0]["probability"] == pytest.approx(guess.probability, abs=1e-5)


@pytest.mark.usefixtures("here")
def test_batches_have_the_size_that_is_asked_for(
    own: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    forward = Classifier.with_maps

    def counted(self: Classifier, images: Tensor) -> Any:
        taken.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Classifier, "with_maps", counted)
    assert run("photos", "--batch-size", "3").exit_code == 0
    assert taken == [3, 1]
    with pytest.raises(ConfigError, match=r"batch_size must be 1 or more, got 0"):
        classify("photos/a.png", own, 1, batch_size=0)


def test_no_more_photos_are_held_than_a_batch(own: Classifier) -> None:
    drawn: list[int] = []

    def images() -> Any:
        for n in range(9):
            drawn.append(n)
            yield torch.zeros(3, 32, 32)

    guesses = guesses_of(images(), own, 1, batch_size=2)
    next(guesses)
    assert len(drawn) == 3


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_damaged_photos_are_reported_and_the_others_classified(batch_size: int) -> None:
    for name in ("0.png", "ab.png", "zz.png"):
        Path("photos", name).write_bytes(b"junk")
    done = run("photos", "--json", "--batch-size", batch_size)
    assert done.exit_code == 1
    found = json.loads(done.stdout)["images"]
    assert [Path(one["image"]).name for one in found] == [
        *("0.png", "a.png", "ab.png", "b.png", "c.png", "z.JPG", "zz.png"),
    ]
    assert [Path(one["image"]).name for one in found if "error" in one] == [
        *("0.png", "ab.png", "zz.png"),
    ]
    assert all(len(one["top"]) == 1 for one in found if "error" not in one)
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("trunkline: error: photos/") for line in lines)
    assert "photos/ab.png is no photo, or only the beginning of one" in lines[1]
    text = run("photos", "--batch-size", batch_size)
    assert text.exit_code == 1
    assert text.stdout.count("probability") == text.stdout.count("image     ") == 4
    assert text.stdout.count("backbone  ") == 1


@pytest.mark.usefixtures("here")
def test_an_archive_names_its_damaged_member() -> None:
    Path("photos/ab.png").write_bytes(b"junk")
    with tarfile.open("photos.tar", "w") as tar:
        tar.add("photos/ab.png")
    done = run("photos.tar", "--json")
    assert done.exit_code == 1
    assert "trunkline: error: photos.tar/photos/ab.png: an image of 4 bytes is no ph" in done.stderr
    assert json.loads(done.stdout)["images"][0]["image"] == "photos.tar/photos/ab.png"


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["photos", "nowhere.png"], "nowhere.png does not exist; check the path"),
        (["empty"], "empty is a folder without photos; give one that has some, or the paths"),
        (["x*.png"], "x*.png is a glob without photos; give one that has some, or the paths"),
        (["bad.png"], "bad.png is no photo"),
        (["photos", "--pool", "sum"], "pool='sum' is asked for, and the classifier of own was"),
        (["photos", "--prefix", "x"], "own is a saved network, and layout and prefix are for"),
        (["photos", "--top", "4"], "top must be from 1 to 3, the number of classes, got 4"),
    ],
)
def test_where_nothing_is_begun_the_exit_code_is_2(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("bad.png").write_bytes(b"junk")
    with pytest.raises(SystemExit) as ended:
        app(["classify", *given, "--backbone", "own"])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""


@pytest.mark.usefixtures("here")
def test_a_pool_can_be_said_where_the_file_does_not(own: Classifier) -> None:
    state = own.state_dict()
    torch.save(state, "run.pth")
    found = {}
    for pool in ("avg", "max"):
        flags = ("--backbone", "dla46-c", "--weights", "run.pth", "--pool", pool, "--json")
        done = CliRunner().invoke(app, ["classify", "photos/z.JPG", "--size", "64", *flags])
        assert len(json.loads(done.stdout)["top"]) == 3  # all that there are
        found[pool] = json.loads(done.stdout)["top"][0]["probability"]
    assert found["avg"] != pytest.approx(found["max"], abs=1e-6)
