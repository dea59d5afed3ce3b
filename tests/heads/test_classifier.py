"""Logits of whole networks: by hand, from every kind of file, and what a file can get wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import trunkline
from trunkline.errors import ConfigError, WeightsMismatchError
from trunkline.heads.classifier import (
    Classifier,
    ClassifierHead,
    classify,
    imagenet_labels,
    load_classifier,
)
from trunkline.weights import sources
from trunkline.weights.catalog import entries
from trunkline.weights.conversion import convert
from trunkline.weights.sources import Located, locate

CAT = Path(__file__).parents[2] / "examples" / "cat.jpg"
LAYOUTS = {
    "regnet-x-002": ("trunkline", "torchvision", "timm", "transformers", "pycls", "mmpretrain"),
    "dla46-c": ("trunkline", "timm", "dla"),
    "resnet18": ("trunkline", "torchvision", "timm", "transformers", "detectron2"),
}


def state_of(variant: str, classes: int = 1000) -> dict[str, Tensor]:
    """Return a whole network's tensors, by our names, with norms that compute something."""
    torch.manual_seed(1)
    backbone = trunkline.create_backbone(variant)
    state = {
        name: torch.rand_like(tensor) + 0.5 if name.endswith("running_var") else tensor
        for name, tensor in backbone.state_dict().items()
    }
    state["classifier.weight"] = torch.randn((classes, backbone.channels[-1])) / 4
    state["classifier.bias"] = torch.randn(classes)
    return state


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dla46-c with 1000 classes, by our names."""
    path = tmp_path_factory.mktemp("small") / "dla46.safetensors"
    save_file(state_of("dla46-c"), path)
    return path


def test_head_by_hand() -> None:
    head = ClassifierHead(2, 3)
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, -1.0]]))
        head.linear.bias.copy_(torch.tensor([0.0, 10.0, -1.0]))
    feature_map = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[0.0, 0.0], [0.0, 4.0]]]])
    # Means 3 and 1: 3, 2·1 + 10, 3 − 1 − 1.
    assert head(feature_map).tolist() == [[3.0, 12.0, 1.0]]


def test_logits_are_the_mean_of_the_last_map_through_the_linear_layer(small: Path) -> None:
    network = load_classifier("dla46-c", small)
    state = load_file(small)
    images = torch.randn(2, 3, 64, 48)
    backbone = trunkline.create_backbone("dla46-c", weights=small).eval()
    with torch.inference_mode():
        last = backbone(images)[-1].double()
        weight, bias = state["classifier.weight"].double(), state["classifier.bias"].double()
        expected = last.flatten(2).sum(2) / (2 * 2) @ weight.T + bias
        logits, maps = network.with_maps(images)
        assert torch.equal(network(images), logits)
    difference = (logits - expected).abs().max() / expected.abs().max()
    assert float(difference) <= 1e-5  # float32 here, float64 there
    assert [tuple(one.shape) for one in maps] == [(2, 256, 2, 2)]
    assert not network.training


@pytest.mark.parametrize("variant", LAYOUTS)
def test_every_upstreams_file_gives_the_same_logits(variant: str, tmp_path: Path) -> None:
    native = tmp_path / "native.safetensors"
    save_file(state_of(variant), native)
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = load_classifier(variant, native)(images)
        for to in LAYOUTS[variant]:
            for suffix in ("safetensors", "pth"):
                path = tmp_path / f"{to}.{suffix}"
                report = convert(native, path, to, variant=variant)
                assert report.classifier
                layout = report.written_as if to == "detectron2" else "auto"
                network = load_classifier(variant, path, layout=layout)
                assert torch.equal(network(images), expected), (to, suffix)


def test_dla_classifier_is_a_convolution_in_timms_file(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "timm.safetensors"
    convert(small, path, "timm", variant="dla46-c")
    stored = load_file(path)["fc.weight"]
    assert stored.shape == (1000, 256, 1, 1)
    loaded = load_classifier("dla46-c", path).head.linear.weight
    assert torch.equal(loaded, stored[:, :, 0, 0])


def test_report_counts_the_classifier_as_loaded(small: Path) -> None:
    report = load_classifier("dla46-c", small).backbone.load_report
    assert report is not None
    assert report.matched == len(load_file(small))
    assert report.dropped == {}


def test_half_precision_is_widened(small: Path, tmp_path: Path) -> None:
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in load_file(small).items()
    }
    save_file(state, tmp_path / "half.safetensors")
    network = load_classifier("dla46-c", tmp_path / "half.safetensors")
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_network_outlives_its_file(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "short-lived.safetensors"
    path.write_bytes(small.read_bytes())
    network = load_classifier("dla46-c", path)
    path.write_bytes(b"")  # whoever maps the file is killed by the next look at it
    assert torch.equal(network.head.linear.weight, load_file(small)["classifier.weight"])
    assert torch.isfinite(network(torch.zeros(1, 3, 32, 32))).all()


def _without(state: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name not in names}


WRONG: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "none": (
        lambda s: _without(s, "classifier.weight", "classifier.bias"),
        r"holds no classifier; .*create_backbone.*`trunkline weights list dla46-c`",
    ),
    "no weight": (lambda s: _without(s, "classifier.weight"), r"holds no classifier"),
    "inputs": (
        lambda s: {**s, "classifier.weight": torch.zeros(1000, 255)},
        r"weight is 1000×255 and its bias 1000; dla46-c needs N×256 and N\. Its maps can be had",
    ),
    "outputs": (
        lambda s: {**s, "classifier.weight": torch.zeros(999, 256)},
        r"weight is 999×256 and its bias 1000; dla46-c needs N×256 and N",
    ),
    "scalar": (
        lambda s: {**s, "classifier.bias": torch.tensor(0.0)},
        r"weight is 1000×256 and its bias a scalar",
    ),
    "empty": (
        lambda s: {
            **s,
            "classifier.weight": torch.zeros(0, 256),
            "classifier.bias": torch.zeros(0),
        },
        r"weight is 0×256 and its bias 0",
    ),
    "backbone": (lambda s: _without(s, "stem.0.conv.weight"), r"stem\.0\.conv\.weight|looks like"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_files_without_a_fitting_classifier(small: Path, tmp_path: Path, wrong: str) -> None:
    change, message = WRONG[wrong]
    path = tmp_path / "wrong.safetensors"
    save_file(change(load_file(small)), path)
    with pytest.raises(WeightsMismatchError, match=message):
        load_classifier("dla46-c", path)


@pytest.mark.parametrize("top", [0, -1, 8])
def test_top_out_of_range(top: int) -> None:
    network = Classifier(trunkline.create_backbone("dla46-c"), ClassifierHead(256, 7))
    with pytest.raises(ConfigError, match=rf"from 1 to 7, the number of classes, got {top}\."):
        classify(CAT, network, top)


def test_labels_of_a_file_of_ones_own_go_by_the_number_of_classes(
    small: Path, tmp_path: Path
) -> None:
    assert load_classifier("dla46-c", small).labels == imagenet_labels()
    save_file(state_of("dla46-c", classes=21), tmp_path / "other.safetensors")
    network = load_classifier("dla46-c", tmp_path / "other.safetensors")
    assert network.labels is None
    assert {guess.label for guess in classify(CAT, network, 21)} == {str(i) for i in range(21)}


@pytest.mark.parametrize(
    ("dataset", "classes", "named"),
    [("imagenet-1k", 1000, True), ("imagenet-1k", 999, False), ("places", 1000, False)],
)
def test_labels_of_the_catalogs_files_go_by_their_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, classes: int, named: bool
) -> None:
    from dataclasses import replace

    path = tmp_path / "file.safetensors"
    save_file(state_of("dla46-c", classes), path)
    row = replace(entries("dla46-c")[0], classes_dataset=dataset, num_classes=classes)

    def located(variant: str | None, source: str, **_: object) -> Located:
        return replace(locate(variant, path), source=source, entry=row)

    monkeypatch.setattr(sources, "locate", located)
    assert (load_classifier("dla46-c").labels is not None) is named


def test_labels_are_the_thousand_of_imagenet() -> None:
    labels = imagenet_labels()
    assert len(labels) == 1000
    assert (labels[0], labels[281][:5], labels[999]) == ("tench", "tabby", "toilet tissue")
    assert all(labels)


def test_classify_is_deterministic_sorted_and_sums_to_one(small: Path) -> None:
    network = load_classifier("dla46-c", small)
    first, again = classify(CAT, network), classify(CAT, network)
    assert first == again
    assert len(first) == 5
    everything = classify(CAT, network, 1000)
    assert everything[:5] == first
    probabilities = [guess.probability for guess in everything]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1.0, abs=1e-4)
    assert all(guess.label == imagenet_labels()[guess.index] for guess in everything)


def test_classify_uses_the_preprocessing_of_the_weights(small: Path) -> None:
    from trunkline.images import IMAGENET, decode_image, preprocess

    network = load_classifier("dla46-c", small)
    network.backbone.preprocessing = IMAGENET.with_size(96)
    images = preprocess(decode_image(CAT), IMAGENET.with_size(96))[None]
    with torch.inference_mode():
        expected = network(images)[0].softmax(0)
    best = classify(CAT, network, 1)[0]
    assert best.index == int(expected.argmax())
    assert best.probability == pytest.approx(float(expected.max()), rel=1e-5)


def test_training_mode_is_restored_module_by_module(small: Path) -> None:
    network = load_classifier("dla46-c", small)
    network.train()
    network.backbone.stem.eval()
    before = [part.training for part in network.modules()]
    statistics = {name: t.clone() for name, t in network.state_dict().items()}
    classify(CAT, network)
    assert [part.training for part in network.modules()] == before
    assert all(torch.equal(statistics[name], t) for name, t in network.state_dict().items())
