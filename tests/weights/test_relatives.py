"""What a file is called, where that is a network that only resembles one of ours."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from record_keys import document, layouts
from torch import Tensor
from upstream_files import described_tensors, on_meta

from trunkline import Backbone, info, list_backbones
from trunkline.errors import WeightsMismatchError
from trunkline.weights.catalog import entries
from trunkline.weights.checkpoint import Checkpoint
from trunkline.weights.loading import Read, read_for
from trunkline.weights.relatives import RELATIVES, Called, called
from trunkline.weights.sources import Located

pytestmark = pytest.mark.usefixtures("weights_home")


def located(name: str = "x.pth", source: str = "given") -> Located:
    return Located(source=source, path=Path(name))


def read(backbone: Backbone, tensors: Mapping[str, Tensor], where: Located, **words: str) -> Read:
    return read_for(
        backbone, where, Checkpoint(tensors=dict(tensors), format="torch-zip", metadata=words)
    )


# Names as timm, mmpretrain, fastai and others write them, and the kind that each is of.
NAMES = {
    "resnetaa50": "average pools",
    "resnetaa101d": "average pools",
    "resnetaa50d.sw_in12k": "average pools",
    "timm/resnetblur50.bt_in1k": "blur pools",
    "ResNetBlur101d": "blur pools",
    "resnextaa101d": "average pools",
    "resnextaa50_32x4d": "average pools",
    "regnety_040_sgn": "group norms, SiLU",
    "regnetv_064": "SiLU",
    "regnetv-040": "SiLU",
    "seresnet50": "squeeze",
    "seresnet152d": "squeeze",
    "seresnext101_32x8d": "squeeze",
    "seresnextaa101d": "squeeze",
    "legacy_seresnet50": "squeeze",
    "ecaresnet50t": "attention",
    "ecaresnet101d.miil_in1k": "attention",
    "gcresnet50t": "attention",
    "skresnet34": "attention",
    "cspresnet50": "cross-stage",
    "cs3darknet": "",
    "resnest50d": "split",
    "res2net50_26w_4s": "several",
    "resnest50d_4s2x40d": "split",
    "res2net50": "several",
    "dla60_res2next": "several",
    "resnetrs50": "squeeze",
    "resnet50_gn": "group norms",
    "resnet50_gn.a1h_in1k": "group norms",
    "resnet50_gn_ws": "standardised",
    "resnext50_32x4d_gn": "group",
    "resnetv2_50": "norms in front",
    "resnetv2_50x1_bitm": "standardised",
    "resnetv2_50x1_bit.goog_in21k": "standardised",
    "BiT_M_R50x1": "standardised",
    "nf_resnet50": "no norms",
    "resnet50_ibn_a": "instance norms",
    "resnet50_clip": "CLIP",
    "xresnet50": "fastai",
    "tresnet_m": "blur",
    "regnetz_040": "inverted",
    **dict.fromkeys(("my-net", "", "resnet", "resnet50x", "vit_base_patch16_224", "x" * 65), ""),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_that_of_its_kind(name: str) -> None:
    found = called(located(), {"arch": name})
    if not NAMES[name]:
        assert found is None
    else:
        assert found is not None
        assert NAMES[name] in found.relative.differs
        assert found.certain


def test_none_of_our_own_names_is_a_relative_s() -> None:
    own = [name for v in list_backbones() for name in (v, *info(v).aliases)]
    upstream = [
        entry["upstream_name"] for one in layouts() for entry in document(one)["variants"].values()
    ]
    rows = [name for row in entries() for name in (row.upstream_name, row.file_name)]
    for name in (*own, *upstream, *rows):
        words = {"arch": name}
        if "_gn" in name or "-GN" in name:  # which needs norm="group", and says so
            continue
        assert called(located(name), words) is None, name
    for row in entries():
        for place in row.places:
            found = called(located(source=place.url), {})
            if row.layout == "timm-resnet-group-norm":  # whose repository is called resnet50_gn
                assert found is None or found.relative.norm == "group", place.url
            else:
                assert found is None, place.url


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("resnetaa50_a1h-4cf422b3.pth", "resnetaa50"),
        ("seresnext50-32x4d_racm-4cf422b3.pth", "seresnext50_32x4d"),
        ("my-seresnet50.pth", "seresnet50"),
        ("run_3_resnetblur50_best.pt", "resnetblur50"),
        ("my_seresnet_teacher_resnet50_student.pth", None),
        ("seresnet50_teacher_resnet50_student.pth", None),
        ("resnet50.pth", None),
        ("notresnetaa50.pth", None),
        ("resnetaa500.pth", "resnetaa500"),
        ("classnet_x.pth", None),
    ],
)
def test_a_file_s_name_is_a_hint(name: str, holds: str | None) -> None:
    found = called(located(name), {})
    assert (found.name if found else None) == holds
    assert found is None or not found.certain


def test_the_surest_word_comes_first() -> None:
    where = located("resnetblur50.pth", "hf://timm/seresnet50.ra2_in1k")
    names = ("arch", "config", "repository", "name")
    found = [
        called(where, {"model_name": "resnetaa50"}, "ecaresnet50t"),
        called(where, {"model_name": "resnet50"}, "ecaresnet50t"),
        called(where, {}),
        called(located("resnetblur50.pth"), {}),
    ]
    for one, name in zip(found, names, strict=True):
        assert isinstance(one, Called), name
    assert [one.name for one in found if one] == [
        *("resnetaa50", "ecaresnet50t", "timm/seresnet50.ra2_in1k", "resnetblur50"),
    ]
    within = called(located(source="hf://me/our-resnetaa50-finetuned"), {})
    assert within is not None
    assert not within.certain


def test_the_same_names_and_another_function_are_refused_on_a_sure_word(tmp_path: Path) -> None:
    tensors = described_tensors("resnet50", "timm-resnet")
    said = (
        r"calls its network resnetaa50 \(average pools in front of its strides\), which has the "
        r"names and shapes of resnet50 and computes something else\. Nothing was loaded; no variant"
    )
    with pytest.raises(WeightsMismatchError, match=said):
        read(on_meta("resnet50"), tensors, located(), arch="resnetaa50")
    with pytest.raises(WeightsMismatchError, match="The repository is called timm/resnetblur50"):
        read(on_meta("resnet50"), tensors, located(source="hf://timm/resnetblur50.bt_in1k"))
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnextaa50_32x4d"}))
    beside = tmp_path / "x.pth"
    beside.touch()
    pooled = described_tensors("resnext50-32x4d", "timm-resnet")
    with pytest.raises(
        WeightsMismatchError, match=r"config\.json beside the file says resnextaa50"
    ):
        read(on_meta("resnext50-32x4d"), pooled, located(str(beside), str(beside)))
    # Of another network it is a word beside the point.
    other = described_tensors("regnet-y-064", "timm-regnet")
    notes = read(on_meta("regnet-y-064"), other, located(str(beside), str(beside))).notes
    assert notes[0].endswith(
        "(average pools in front of its strides); it was taken for regnet-y-064."
    )


def test_what_is_only_a_hint_is_said(caplog: pytest.LogCaptureFixture) -> None:
    tensors = described_tensors("resnet50", "timm-resnet")
    with caplog.at_level(logging.WARNING):
        notes = read(on_meta("resnet50"), tensors, located("resnetaa50-4cf4.pth")).notes
    assert notes[0] == (
        "The file's name holds resnetaa50 (average pools in front of its strides); it was taken "
        "for resnet50. The two have the same names and shapes, so no tensor tells which it is."
    )
    assert "resnetaa50" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        notes = read(on_meta("resnet50"), tensors, located(), arch="seresnet50").notes
    assert notes[0] == (
        "The file calls its network seresnet50 (squeeze-and-excitation); it was taken for resnet50."
    )
    assert not caplog.records
    grouped = described_tensors("resnet50", "timm-resnet-group-norm")
    backbone = on_meta("resnet50", norm="group")  # which is what such a name means
    assert read(backbone, grouped, located("resnet50_gn.pth"), arch="resnet50_gn").notes == ()


@pytest.mark.parametrize(
    ("config", "act", "refused"),
    [
        ({"hidden_act": "silu"}, "relu", "silu"),
        ({"hidden_act": "swish"}, "relu", "silu"),
        ({"hidden_act": "leaky_relu"}, "relu", "leaky-relu"),
        ({"hidden_act": "silu"}, "silu", None),
        ({"hidden_act": "relu"}, "silu", "relu"),
        ({"hidden_act": "relu"}, "relu", None),
        ({"hidden_act": "quick_gelu"}, "relu", None),
        ({"hidden_act": 3}, "relu", None),
        ({}, "relu", None),
    ],
)
def test_the_activation_of_a_config_is_heard(
    tmp_path: Path, config: dict[str, Any], act: str, refused: str | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "regnet", **config}))
    (tmp_path / "model.safetensors").touch()
    where = located(str(tmp_path / "model.safetensors"), str(tmp_path / "model.safetensors"))
    tensors = described_tensors("regnet-y-004", "transformers-regnet")
    backbone = on_meta("regnet-y-004", act=act)
    if refused is None:
        assert read(backbone, tensors, where).notes == ()
    else:
        said = rf"hidden_act .*backbone has act='{act}'.*; build it with act='{refused}'"
        with pytest.raises(WeightsMismatchError, match=said):
            read(backbone, tensors, where)


def test_what_comes_from_memory_has_no_config_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnetaa50"}))
    tensors = described_tensors("resnet50", "timm-resnet")
    where = located("a state dict", "a state dict")
    assert read(on_meta("resnet50"), tensors, where).match.complete


def test_a_strict_load_that_fails_says_what_the_file_is_called() -> None:
    tensors = described_tensors("resnet50", "timm-resnet")
    tensors["layer1.0.se.fc1.weight"] = tensors["conv1.weight"]
    said = r"layer1\.0\.se\.fc1\.weight.*The file calls its network seresnet50 \(squeeze-and-exc"
    with pytest.raises(WeightsMismatchError, match=said):
        read(on_meta("resnet50"), tensors, located(), arch="seresnet50")


def test_the_page_lists_what_no_tensor_tells() -> None:
    page = Path(__file__).parents[2].joinpath("docs/loading.md").read_text(encoding="utf-8")
    for relative in RELATIVES:
        if relative.untold:
            assert relative.differs in page
