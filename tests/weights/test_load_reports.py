"""What a load says of itself, and what the catalog adds to it."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import torch
from loopback import FileHost
from upstream_files import (
    hollow_tensors,
    pickled,
    saved,
    upstream_tensors,
)

from trunkline import Preprocessing, create_backbone
from trunkline.errors import (
    LicenseError,
    OfflineError,
    WeightsNotFoundError,
)
from trunkline.heads.classifier import load_classifier
from trunkline.weights import catalog, sources
from trunkline.weights.catalog import Place
from trunkline.weights.checkpoint import file_sha256
from trunkline.weights.loading import LoadReport, load_weights
from trunkline.weights.sources import locate

pytestmark = pytest.mark.usefixtures("weights_home")


def test_the_report_says_what_was_done(tmp_path: Path) -> None:
    tensors = {
        n: t.half() for n, t in upstream_tensors("dla", "dla46-c").items() if "num_b" not in n
    }
    path = tmp_path / "dla46_c-2bfd52c3.pth"
    torch.save({"state_dict": {f"module.{n}": t for n, t in tensors.items()}, "epoch": 3}, path)
    backbone = create_backbone("dla46-c", return_idx=(0,), in_channels=1)
    report = load_weights(backbone, path)
    assert backbone.load_report is report
    assert (report.source, report.path, report.sha256) == (str(path), path, file_sha256(path))
    assert (report.tag, report.license, report.layout) == (None, None, "timm-dla")
    assert report.container == "state_dict"
    assert report.matched == len(backbone.state_dict()) - len(report.filled)
    assert len(report.shapes) == report.matched
    assert report.shapes["stem.0.conv.weight"] == (16, 1, 7, 7)  # as loaded: for one channel
    assert {name.rpartition(".")[2] for name in report.filled} == {"num_batches_tracked"}
    said = str(report)
    assert said.startswith(
        f"{report.matched} tensors from {path.name} (at state_dict), read as timm-dla.\n"
    )
    assert "torch.float16 was cast to torch.float32." in said
    assert "The stem's three input channels were added up for one." in said
    assert "2 left aside: classifier, not part of a backbone." in said
    assert "5 left aside: the original computes this projection and throws the result away." in said
    assert re.search(r"\d+ left aside: in a stage that return_idx does not keep\.", said)


def served(
    monkeypatch: pytest.MonkeyPatch, host: FileHost, variant: str, tag: str, path: Path
) -> None:
    """Let the catalog's row lead to a file of our own host."""
    row = catalog.find(variant, tag)
    url = host.add(f"/{path.name}", path.read_bytes())
    moved = replace(row, places=(Place(url=url, layout=row.layout),))
    monkeypatch.setattr(sources, "find", lambda *_: moved)


def test_preprocessing_of_a_bgr_row_is_turned_with_its_stem(
    tmp_path: Path, file_host: FileHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = catalog.find("regnet-x-002", "pycls")
    assert row.preprocessing is not None
    assert row.preprocessing.channel_order == "BGR"
    tensors = upstream_tensors("pycls", "regnet-x-002")
    path = tmp_path / "RegNetX-200MF.pyth"
    torch.save({"model_state": tensors}, path)
    served(monkeypatch, file_host, "regnet-x-002", "pycls", path)
    backbone = create_backbone("regnet-x-002", weights="pycls")
    given = backbone.preprocessing
    assert given is not None
    assert given.channel_order == "RGB"
    assert given.mean == row.preprocessing.mean[::-1] != row.preprocessing.mean
    assert given.std == row.preprocessing.std[::-1]
    assert torch.equal(
        backbone.state_dict()["stem.conv.weight"], tensors["stem.conv.weight"].flip(1)
    )
    report = backbone.load_report
    assert report is not None
    assert (report.source, report.tag, report.license) == ("pycls", "pycls", "MIT")
    assert report.sha256 == file_sha256(path)


def test_a_bgr_row_does_not_turn_a_file_that_is_rgb_already(
    tmp_path: Path, file_host: FileHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody converted the row's file and put it in its place."""
    tensors = upstream_tensors("timm-regnet", "regnet-x-002")
    path = saved(tmp_path / "converted.safetensors", tensors)
    served(monkeypatch, file_host, "regnet-x-002", "pycls", path)
    backbone = create_backbone("regnet-x-002", weights="pycls")
    assert torch.equal(backbone.state_dict()["stem.conv.weight"], tensors["stem.conv.weight"])


def test_preprocessing_of_an_rgb_row_is_the_rows(
    tmp_path: Path, file_host: FileHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "x.safetensors", upstream_tensors("timm-dla", "dla46-c"))
    served(monkeypatch, file_host, "dla46-c", "timm-in1k", path)
    backbone = create_backbone("dla46-c", weights="default")
    assert backbone.preprocessing == catalog.find("dla46-c").preprocessing
    assert backbone.load_report is not None
    assert backbone.load_report.tag == "timm-in1k"


def test_a_row_says_which_layout_names_alone_would_not_tell(
    tmp_path: Path, file_host: FileHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = upstream_tensors("detectron2", "resnet50")
    small = {n: t for n, t in tensors.items() if not n.startswith(("res3", "res4", "res5"))}
    path = pickled(tmp_path / "R-50.pkl", small)
    served(monkeypatch, file_host, "resnet50", "detectron2-torchvision", path)
    backbone = create_backbone("resnet50", return_idx=(0,), weights="detectron2-torchvision")
    assert backbone.load_report is not None
    assert backbone.load_report.layout == "detectron2"


@pytest.mark.usefixtures("no_sockets")
def test_a_folder_of_weights_gives_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    path = saved(
        folder / "regnet-x-002.safetensors", upstream_tensors("timm-regnet", "regnet-x-002")
    )
    monkeypatch.setenv("TRUNKLINE_WEIGHTS", str(folder))
    backbone = create_backbone("regnet-x-002", weights="default")
    assert backbone.load_report is not None
    assert backbone.load_report.path == path
    assert backbone.load_report.tag is None


def test_a_licence_has_to_be_agreed_to(
    tmp_path: Path, file_host: FileHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = "timm-fb-ssl-yfcc100m-ft-in1k"
    path = saved(tmp_path / "x.safetensors", hollow_tensors("timm-resnet", "resnet18"))
    served(monkeypatch, file_host, "resnet18", tag, path)
    for ask in (
        lambda: create_backbone("resnet18", weights=tag),
        lambda: load_weights(create_backbone("resnet18", return_idx=(0,)), tag),
        lambda: load_classifier("resnet18", tag),
    ):
        with pytest.raises(LicenseError, match=r"CC-BY-NC-4\.0.*allow_noncommercial=True"):
            ask()
    assert not file_host.requests
    backbone = create_backbone("resnet18", weights=tag, allow_noncommercial=True)
    assert backbone.load_report is not None
    assert backbone.load_report.license == "CC-BY-NC-4.0"


@pytest.mark.parametrize(
    ("variant", "weights"),
    [("resnet18", "nonsense"), ("resnet18", "some/where"), ("resnet18", Path("not-here"))],
)
def test_weights_that_are_nowhere(variant: str, weights: str | Path) -> None:
    with pytest.raises(WeightsNotFoundError):
        create_backbone(variant, weights=weights)


def test_preprocessing_is_forgotten_with_the_weights_it_belonged_to(tmp_path: Path) -> None:
    backbone = create_backbone("regnet-x-002")
    backbone.preprocessing = Preprocessing(
        resize=256,
        crop=(224, 224),
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        value_range="0..1",
        channel_order="RGB",
    )
    load_weights(
        backbone, saved(tmp_path / "x.safetensors", upstream_tensors("timm-regnet", "regnet-x-002"))
    )
    assert backbone.stated_preprocessing is None


def test_a_report_is_plain_data_that_stays() -> None:
    report = LoadReport(
        source="s",
        path=Path("f.pth"),
        sha256="0",
        tag=None,
        license=None,
        layout="dla",
        container="",
        matched=3,
    )
    assert str(report) == "3 tensors from f.pth, read as dla."
    with pytest.raises(FrozenInstanceError):
        report.license = "MIT"  # type: ignore[misc]


@pytest.mark.parametrize(
    "address",
    [
        "hf://facebook/regnet-y-640-seer",
        "hf://facebook/regnet-y-640-seer/pytorch_model.bin",
        "hf://facebook/regnet-y-640-seer@main",
    ],
)
def test_the_address_of_a_row_is_no_way_around_its_licence(
    address: str, weights_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUNKLINE_OFFLINE", "1")
    with pytest.raises(LicenseError, match="SEER License Agreement"):
        locate("regnet-y-640", address)
    with pytest.raises(OfflineError):  # agreed to: only the network is missing
        locate("regnet-y-640", address, allow_noncommercial=True)
    assert not weights_home.exists()
