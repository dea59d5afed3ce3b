"""A classifier of one's own: trained, saved, loaded, converted, deployed, exported, and run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

import trunkline
from trunkline import Classifier, classify, create_backbone, create_classifier, load_classifier
from trunkline.cli.root import app
from trunkline.errors import CheckpointError, ConfigError, WeightsMismatchError
from trunkline.heads import held
from trunkline.heads.held import imagenet_labels
from trunkline.weights.catalog import entries

CAT = Path(__file__).parents[2] / "examples" / "cat.jpg"
LABELS = ("tabby", "poodle", "wren")
IMAGES = torch.randn((2, 3, 64, 96), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def own() -> Classifier:
    """A classifier whose norms have met images."""
    torch.manual_seed(3)
    classifier = create_classifier("resnet18", labels=LABELS)
    with torch.no_grad():
        for _ in range(3):
            classifier(torch.randn(4, 3, 32, 32))
    return classifier.eval()


def logits(classifier: nn.Module) -> Tensor:
    with torch.inference_mode():
        return torch.as_tensor(classifier(IMAGES))


def test_what_is_asked_for_is_built() -> None:
    classifier = create_classifier("regnet-x-002", 5, in_channels=4, frozen_stages=1, pool="max")
    assert classifier.training
    assert (classifier.num_classes, classifier.labels) == (5, None)
    assert classifier.backbone.frozen_stages == 1
    maps = classifier.backbone(torch.zeros(1, 4, 64, 64))
    assert torch.equal(classifier.head(maps[-1]), classifier.head.linear(maps[-1].amax((2, 3))))
    with pytest.raises(ConfigError, match=r"say how many classes there are: num_classes=N, or lab"):
        create_classifier("resnet18")
    with pytest.raises(ConfigError, match=r"2 labels are given for 3 classes; give one per class"):
        create_classifier("resnet18", 3, labels=["a", "b"])
    with pytest.raises(ConfigError, match=r"num_classes must be an integer of 1 or more, got 0"):
        create_classifier("resnet18", 0)
    with pytest.raises(
        ConfigError, match=r"labels must be a list of names, one per class, in .* got 'ab"
    ):
        create_classifier("resnet18", labels="abc")
    with pytest.raises(ConfigError, match=r"pool='sum' is unknown; allowed: avg, max"):
        create_classifier("resnet18", 2, pool="sum")  # type: ignore[arg-type]


SCRIPTS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda state: state,
    "a trainer's": lambda state: {"model": state, "epoch": 3, "optimizer": {"state": {}}},
    "Lightning": lambda state: {
        "state_dict": {f"model.{name}": tensor for name, tensor in state.items()},
        "hyper_parameters": {"lr": 0.1},
        "pytorch-lightning_version": "2.5.0",
    },
    "DataParallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "AveragedModel": lambda state: {
        "n_averaged": torch.tensor(3),
        **{f"module.{name}": tensor for name, tensor in state.items()},
    },
    "compiled": lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
    "EMA": lambda state: {
        "model": {name: torch.zeros_like(tensor) for name, tensor in state.items()},
        "model_ema": state,
    },
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_scripts_save_of_one_loads_back(tmp_path: Path, own: Classifier, script: str) -> None:
    path = tmp_path / "run.pth"
    torch.save(SCRIPTS[script](dict(own.state_dict())), path)
    loaded = load_classifier("resnet18", path, labels=LABELS)
    assert torch.equal(logits(loaded), logits(own))
    assert loaded.labels == LABELS
    again = create_classifier("resnet18", labels=LABELS, weights=path).eval()
    assert torch.equal(logits(again), logits(own))
    assert create_classifier("resnet18", weights=path).num_classes == 3


def test_a_head_of_one_s_own_beside_our_backbone(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = create_backbone("resnet18", return_idx=(3,))
            self.head = nn.Linear(512, 4)

    net = Net()
    path = tmp_path / "run.safetensors"
    save_file(net.state_dict(), path)
    loaded = load_classifier("resnet18", path)
    assert torch.equal(loaded.head.linear.weight, net.head.weight)


def test_a_new_head_is_said_to_be_new(tmp_path: Path, own: Classifier) -> None:
    path = tmp_path / "run.pth"
    torch.save(own.state_dict(), path)
    other = create_classifier("resnet18", 5, weights=path)
    assert other.num_classes == 5
    assert "The classifier of 5 classes is new: the file has one of 3 classes" in str(
        other.backbone.load_report
    )
    torch.save(own.backbone.state_dict(), path)
    assert "the file has none" in str(
        create_classifier("resnet18", 5, weights=path).backbone.load_report
    )
    with pytest.raises(ConfigError, match=r"holds no classifier; say how many classes there are"):
        create_classifier("resnet18", weights=path)


def test_a_folder_gives_it_back(tmp_path: Path, own: Classifier) -> None:
    folder = trunkline.save_pretrained(own, tmp_path / "own", license="MIT")
    loaded = trunkline.from_pretrained(folder)
    assert isinstance(loaded, Classifier)
    assert torch.equal(logits(loaded), logits(own))
    assert (loaded.labels, loaded.head.pool) == (LABELS, "avg")
    assert "122 tensors" in str(loaded.backbone.load_report)
    card = (folder / "README.md").read_text()
    assert "A classifier of 3 classes (tabby, poodle, wren)" in card
    # The one file is enough, and as a backbone it is one as well.
    single = load_classifier("resnet18", folder / "model.safetensors")
    assert single.labels == LABELS
    backbone = create_backbone("resnet18", weights=folder / "model.safetensors")
    assert torch.equal(backbone.stem.conv.weight, own.backbone.stem.conv.weight)  # type: ignore[union-attr, arg-type]
    config = json.loads((folder / "config.json").read_text())
    config["classifier"]["num_classes"] = 4
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"says 4 classes, and the weights have 3"):
        trunkline.from_pretrained(folder)
    with pytest.raises(ConfigError, match=r"a backbone or a classifier is expected, got Linear"):
        trunkline.save_pretrained(nn.Linear(1, 1), tmp_path / "x")  # type: ignore[arg-type]


def test_max_pools_are_kept(tmp_path: Path) -> None:
    classifier = create_classifier("dla46-c", 2, pool="max").eval()
    loaded = trunkline.from_pretrained(trunkline.save_pretrained(classifier, tmp_path / "own"))
    assert torch.equal(logits(loaded), logits(classifier))
    runner = trunkline.deploy(classifier, runtime="onnxruntime")
    assert torch.allclose(runner(IMAGES)[0], logits(classifier), atol=1e-4)


@pytest.mark.parametrize(
    ("to", "name"),
    [
        *(("timm", "fc.weight"), ("torchvision", "fc.weight"), ("mmpretrain", "head.fc.weight")),
        *(("transformers", "classifier.1.weight"), ("trunkline", "classifier.weight")),
    ],
)
def test_the_head_goes_along_to_every_library(
    tmp_path: Path, own: Classifier, to: str, name: str
) -> None:
    folder = trunkline.save_pretrained(own, tmp_path / "own")
    report = trunkline.convert(folder / "model.safetensors", tmp_path / "x.safetensors", to)
    assert report.classifier
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor(name), own.head.linear.weight)
    back = load_classifier("resnet18", tmp_path / "x.safetensors")
    assert torch.equal(logits(back), logits(own))
    assert back.labels == LABELS


def test_a_library_without_a_classifier_drops_it_only_if_told(
    tmp_path: Path, own: Classifier
) -> None:
    folder = trunkline.save_pretrained(own, tmp_path / "own")
    source, out = folder / "model.safetensors", tmp_path / "x.safetensors"
    report = trunkline.convert(source, tmp_path / "t.safetensors", "timm", classifier=False)
    assert not report.classifier
    other = create_classifier("resnet18vd", 4)
    run = tmp_path / "run.pth"
    torch.save(other.state_dict(), run)
    with pytest.raises(WeightsMismatchError, match=r"holds a classifier, and .*classifier=False, "):
        trunkline.convert(run, out, "rtdetr")
    assert not trunkline.convert(run, out, "rtdetr", classifier=False).classifier


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
def test_runners_give_logits_and_know_the_names(
    tmp_path: Path, own: Classifier, runtime: str
) -> None:
    runner = trunkline.deploy(own, runtime=runtime)
    for one in (runner, trunkline.load_runner(runner.save(tmp_path / "runner"))):
        assert [tuple(made.shape) for made in one(IMAGES)] == [(2, 3)]
        assert torch.allclose(one(IMAGES)[0], logits(own), atol=1e-4)
        assert (one.labels, one.channels, one.strides) == (LABELS, (3,), (0,))
        assert tuple(one(IMAGES[:0])[0].shape) == (0, 3)
        assert classify(CAT, one, 1)[0].label == classify(CAT, own, 1)[0].label


def test_files_have_logits_and_labels(tmp_path: Path, own: Classifier) -> None:
    report = trunkline.export(own, tmp_path / "own.onnx")
    assert report.output_names == ("logits",)
    onnx = pytest.importorskip("onnx")
    model = onnx.load(tmp_path / "own.onnx")
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(said["trunkline.labels"]) == list(LABELS)
    assert [one.name for one in model.graph.output] == ["logits"]
    assert len(model.graph.output[0].type.tensor_type.shape.dim) == 2


# Photos.


def test_several_photos_and_sizes(own: Classifier) -> None:
    photo = Image.new("RGB", (80, 60), "red")
    found = classify([CAT, photo], own, 2)
    assert [len(guesses) for guesses in found] == [2, 2]
    for together, alone in zip(found[0], classify(CAT, own, 2), strict=True):
        assert (together.index, together.label) == (alone.index, alone.label)
        assert together.probability == pytest.approx(alone.probability)
    assert classify(photo, own, 1, size=64) != classify(photo, own, 1, size=32)
    with pytest.raises(
        ConfigError, match=r"a classifier or a runner of one is expected, got ResNet"
    ):
        classify(CAT, own.backbone)
    with pytest.raises(ConfigError, match=r"top must be from 1 to 3"):
        classify(CAT, own, 4)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)


def test_the_verb_takes_folders_files_and_labels(tmp_path: Path, own: Classifier) -> None:
    folder = trunkline.save_pretrained(own, tmp_path / "own")
    done = run("classify", CAT, CAT, "--backbone", folder, "--top", 3, "--json")
    assert done.exit_code == 0, done.output
    held = json.loads(done.stdout)
    assert held["num_classes"] == 3
    assert {one["label"] for one in held["images"][0]["top"]} == set(LABELS)
    state = tmp_path / "run.pth"
    torch.save(own.state_dict(), state)
    texts = {
        "labels.txt": "a\nb\nc\n",
        "labels.json": '["a", "b", "c"]',
        "numbered.json": '{"0": "a", "1": "b", "2": "c"}',
        "class_to_idx.json": '{"c": 2, "a": 0, "b": 1}',
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        done = run(
            *("classify", CAT, "--backbone", "resnet18", "--weights", state, "--top", 3),
            *("--labels", tmp_path / name, "--size", 64),
        )
        assert done.exit_code == 0, done.output
        assert {line.split()[0] for line in done.stdout.splitlines()[-3:]} == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--labels", "two.txt"], "2 labels are given for 3 classes"),
        (["--labels", "none.txt"], "--labels none.txt cannot be read (FileNotFoundError"),
        (["--labels", "number.json"], "--labels number.json cannot be read (ValueError: no list"),
        (["--labels", "empty.txt"], "--labels empty.txt cannot be read (ValueError: no name)"),
        (["--labels", "gap.json"], "ValueError: 3 classes, and number 1 is none of them"),
        (["--weights", "x.pth"], "own brings its own weights, and --weights x.pth was given too"),
    ],
)
def test_the_verb_says_what_is_wrong(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own: Classifier,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    trunkline.save_pretrained(own, "own")
    Path("two.txt").write_text("a\nb\n")
    Path("number.json").write_text("[1, 2, 3]")
    Path("empty.txt").write_text("\n")
    Path("gap.json").write_text('{"0": "a", "2": "b", "3": "c"}')
    with pytest.raises(SystemExit):
        app(["classify", str(CAT), "--backbone", "own", *flags])
    assert said in capsys.readouterr().err


def test_a_folder_without_a_classifier_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trunkline.save_pretrained(create_backbone("resnet18", return_idx=(0,)), tmp_path / "b")
    with pytest.raises(SystemExit):
        app(["classify", str(CAT), "--backbone", str(folder)])
    assert "holds a backbone and no classifier" in capsys.readouterr().err


def test_a_pool_that_a_file_does_not_say_is_given(tmp_path: Path) -> None:
    classifier = create_classifier("resnet18", labels=LABELS, pool="max").eval()
    bare, folder = tmp_path / "run.pt", tmp_path / "folder"
    state = classifier.state_dict()
    del state["head.max_pool"]  # as where a linear layer stands beside a backbone of ours
    torch.save(state, bare)
    assert torch.equal(logits(load_classifier("resnet18", bare, pool="max")), logits(classifier))
    trunkline.save_pretrained(classifier, folder)
    assert load_classifier(str(folder)).head.pool == "max"
    said = r"pool='avg' is asked for, and the classifier of .* was trained with 'max'; leave pool"
    with pytest.raises(ConfigError, match=said):
        load_classifier(str(folder), pool="avg")
    with pytest.raises(ConfigError, match=said):
        load_classifier("resnet18", folder / "model.safetensors", pool="avg")
    with pytest.raises(ConfigError, match=said):
        create_classifier("resnet18", weights=folder / "model.safetensors", pool="avg")
    assert create_classifier("resnet18", weights=folder / "model.safetensors").head.pool == "max"
    for to, name, warned in (
        ("torchvision", "a.pth", "that library's networks take the average"),
        ("torchvision", "a.safetensors", "that library's networks take the average"),
        ("trunkline", "b.pth", "which this kind of file cannot say"),
        ("trunkline", "b.safetensors", ""),
    ):
        report = trunkline.convert(folder / "model.safetensors", tmp_path / name, to=to)
        assert warned in " ".join(report.notes)
        assert bool(warned) == ("max" in " ".join(report.notes))


@pytest.mark.parametrize("kind", SCRIPTS)
def test_a_state_dict_says_that_it_takes_the_maximum(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    classifier = create_classifier("resnet18", labels=LABELS, pool="max").eval()
    file = tmp_path / "run.pt"
    torch.save(SCRIPTS[kind](dict(classifier.state_dict())), file)
    loaded = load_classifier("resnet18", file)
    assert loaded.head.pool == "max"
    assert torch.equal(logits(loaded), logits(classifier))
    assert loaded.state_dict().keys() == classifier.state_dict().keys()
    assert "max_pool" not in str(loaded.backbone.load_report)
    with pytest.raises(ConfigError, match=r"pool='avg' is asked for, and .* trained with 'max'"):
        load_classifier("resnet18", file, pool="avg")
    with pytest.raises(RuntimeError, match=r"Unexpected key.*head\.max_pool"):
        create_classifier("resnet18", 3).load_state_dict(classifier.state_dict())
    backbone = create_backbone("resnet18", weights=file)  # which has nothing to do with it
    assert torch.equal(backbone.stem.conv.weight, classifier.backbone.stem.conv.weight)  # type: ignore[union-attr, arg-type]


def test_a_lost_maximum_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "run.pt"
    torch.save(create_classifier("resnet18", 3, pool="max").state_dict(), file)
    for to, name, said in (
        ("timm", "a.pth", "that library's networks take the average"),
        ("trunkline", "b.pth", "which this kind of file cannot say"),
    ):
        caplog.clear()
        report = trunkline.convert(file, tmp_path / name, to)
        assert said in str(report)
        assert [said in record.getMessage() for record in caplog.records] == [True]
    caplog.clear()
    trunkline.convert(file, tmp_path / "c.safetensors", "trunkline")
    trunkline.convert(file, tmp_path / "d.pth", "timm", classifier=False)
    assert not caplog.records
    assert load_classifier("resnet18", tmp_path / "c.safetensors").head.pool == "max"


def test_a_saved_folder_is_loaded_as_its_file_is(tmp_path: Path, own: Classifier) -> None:
    trunkline.save_pretrained(own, tmp_path / "own")
    loaded = load_classifier(str(tmp_path / "own"), labels=["a", "b", "c"])
    assert torch.equal(logits(loaded), logits(own))
    assert loaded.labels == ("a", "b", "c")
    assert torch.equal(logits(load_classifier(tmp_path / "own")), logits(own))
    said = "is a saved network, and layout and prefix are for files; leave them out"
    with pytest.raises(ConfigError, match=said):
        load_classifier(tmp_path / "own", prefix="backbone")
    trunkline.save_pretrained(own.backbone, tmp_path / "backbone")
    with pytest.raises(WeightsMismatchError, match="holds a backbone and no classifier"):
        load_classifier(str(tmp_path / "backbone"))
    for weights, named in (("run.pt", "'run.pt'"), (own.state_dict(), "'OrderedDict'")):
        with pytest.raises(ConfigError, match=f"has its weights, and weights={named} was given"):
            load_classifier(str(tmp_path / "own"), weights)


def test_a_head_without_a_bias_is_one(tmp_path: Path, own: Classifier) -> None:
    state = own.state_dict()
    del state["head.linear.bias"]
    torch.save(state, tmp_path / "run.pt")
    loaded = load_classifier("resnet18", tmp_path / "run.pt")
    assert not loaded.head.linear.bias.any()
    assert loaded.backbone.load_report is not None
    assert "has no bias; zeros stand for it" in " ".join(loaded.backbone.load_report.notes)
    torch.testing.assert_close(logits(loaded) + own.head.linear.bias, logits(own))
    made = create_classifier("resnet18", weights=tmp_path / "run.pt")
    assert torch.equal(made.head.linear.weight, own.head.linear.weight)


def test_labels_name_the_classes_of_a_file_that_nobody_knows(tmp_path: Path) -> None:
    torch.save(create_classifier("dla46-c", 1000).state_dict(), tmp_path / "run.pt")
    names = [f"class {number}" for number in range(1000)]
    made = create_classifier("dla46-c", labels=names, weights=tmp_path / "run.pt")
    assert made.backbone.load_report is not None
    assert "is kept: nobody says what they are, and the labels name them ('class 0' is" in " ".join(
        made.backbone.load_report.notes
    )


def test_own_labels_on_imagenet_weights_ask_for_a_new_head(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "run.pt"
    old = create_classifier("dla46-c", 1000)
    torch.save(old.state_dict(), file)
    row = next(one for one in entries("dla46-c") if one.classes_dataset == held.IMAGENET_1K)
    monkeypatch.setattr(held, "known_by_hash", lambda _sha256: [row])
    names = ["tench", *(f"class {number}" for number in range(1, 1000))]
    made = create_classifier("dla46-c", num_classes=1000, labels=names, weights=file)
    assert made.labels == tuple(names)
    assert made.training
    assert not torch.equal(made.head.linear.weight, old.head.linear.weight)
    assert torch.equal(next(made.backbone.parameters()), next(old.backbone.parameters()))
    assert made.backbone.load_report is not None
    said = "The classifier of 1000 classes is new: the file's classes have other names ('goldfish'"
    assert said in str(made.backbone.load_report)
    # Its own names, or none at all, keep it; and so does load_classifier under any.
    for kept in (
        create_classifier("dla46-c", labels=list(imagenet_labels()), weights=file),
        create_classifier("dla46-c", 1000, weights=file),
        load_classifier("dla46-c", file, labels=names),
    ):
        assert torch.equal(kept.head.linear.weight, old.head.linear.weight)
    assert kept.labels == tuple(names)
    with pytest.raises(ConfigError, match=r"pool='max' is asked for, and .* trained with 'avg'"):
        create_classifier("dla46-c", 1000, weights=file, pool="max")
    with pytest.raises(ConfigError, match=r"pool='max' is asked for, and .* trained with 'avg'"):
        load_classifier("dla46-c", file, pool="max")


def test_photos_of_one_size_are_classified_together(
    own: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    forward = Classifier.with_maps

    def counted(self: Classifier, images: Tensor) -> Any:
        taken.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Classifier, "with_maps", counted)
    photos = [Image.new("RGB", (40 + 30 * (n > 17), 40), (n * 12, 0, 0)) for n in range(20)]
    together = classify(photos, own, 3)
    assert taken == [16, 4]  # the default size makes all of them alike
    alone = [classify(one, own, 3) for one in photos]
    for several, one in zip(together, alone, strict=True):
        assert [guess.index for guess in several] == [guess.index for guess in one]
        assert [g.probability for g in several] == pytest.approx([g.probability for g in one])


def test_extract_says_where_the_backbone_of_a_classifier_is(
    tmp_path: Path, own: Classifier
) -> None:
    with pytest.raises(ConfigError, match=r"got Classifier, which has one: give its \.backbone"):
        trunkline.extract("examples", tmp_path / "f.parquet", own)  # type: ignore[arg-type]
