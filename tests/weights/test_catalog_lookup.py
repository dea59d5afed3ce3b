"""The catalog as it is read and asked: names, filters, licences, and every mistake in a file."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest

from trunkline.errors import (
    ConfigError,
    LicenseError,
    UnknownVariantError,
    WeightsNotFoundError,
)
from trunkline.weights import catalog
from trunkline.weights.catalog import Place, WeightEntry, lookup
from trunkline.weights.catalog.lookup import parse

ROWS = catalog.entries()

# A small file of the catalog, to be spoilt in one place.
GOOD: dict[str, Any] = {
    "source": "timm",
    "about": "For tests.",
    "facts_source": "nowhere",
    "preprocessing": {
        "plain": {
            "resize": 256,
            "crop": [224, 224],
            "interpolation": "bicubic",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "value_range": "0..1",
            "channel_order": "RGB",
        }
    },
    "bands": {"two": {"names": ["VV", "VH"], "unit": "dB", "mean": [0, 0], "std": [1, 1]}},
    "rows": [
        {
            "variant": "resnet18",
            "tag": "timm-x",
            "upstream_name": "resnet18.x",
            "places": [{"url": "hf://timm/resnet18.x/model.safetensors@v1"}],
            "license": "MIT",
            "layout": "timm-resnet",
            "preprocessing": "plain",
        }
    ],
}


def spoilt(**fields: Any) -> dict[str, Any]:
    """Return GOOD with fields of its row replaced."""
    content = copy.deepcopy(GOOD)
    content["rows"][0].update(fields)
    return content


# --- looking up ----------------------------------------------------------------------------------


def test_entries_are_filtered() -> None:
    tags = [row.tag for row in catalog.entries("dla34")]
    assert tags == ["timm-in1k", "ucbdrive", "rtdetr"]
    assert [row.tag for row in catalog.entries("DLA34", source="dla")] == ["ucbdrive"]
    assert catalog.entries(license="any") == ROWS
    permissive = catalog.entries(license="permissive")
    assert {row.license for row in permissive} == {
        *("MIT", "Apache-2.0", "BSD-3-Clause", "CC0-1.0", "CC-BY-4.0", "LicenseRef-CC-BY"),
        "ODC-By-1.0",
    }
    assert {row.license for row in catalog.entries(license="cc-by-nc-4.0")} == {"CC-BY-NC-4.0"}
    assert {row.tag for row in catalog.entries(license="unknown")} == {
        *("timm-bamboo", "mmpretrain-in21k-mill", "vissl-npid-lemniscate"),
        *("stylized-imagenet", "stylized-imagenet-and-in1k", "stylized-imagenet-ft-in1k"),
        *("torchgeo-fmow-rgb-gassl", "torchgeo-sentinel1-grd-closp"),
        *("torchgeo-sentinel1-grd-geoclosp", "torchgeo-sentinel2-all-closp"),
        "torchgeo-sentinel2-all-geoclosp",
    }
    assert {row.tag for row in catalog.entries(license="openrail")} == {
        row.tag for row in ROWS if "closp" in row.tag
    }


def test_entries_are_filtered_by_what_they_are_for() -> None:
    assert [row.tag for row in catalog.entries("resnet50", task="medical")] == [
        "torchxrayvision-all-512"
    ]
    twelve = catalog.entries(channels=12)
    assert [row.tag for row in twelve] == ["torchgeo-sentinel2-all-seco-eco"]
    assert [row.variant for row in catalog.entries(dataset="places365")] == ["resnet18", "resnet50"]
    assert {row.variant[:3] for row in catalog.entries(family="dla")} == {"dla"}
    free = catalog.entries(license="commercial")
    assert {row.license_class for row in free} == {"permissive", "share-alike"}
    for row in free:
        catalog.check_license(row)
    assert len(free) + sum(r.license_class in ("noncommercial", "unknown") for r in ROWS) == len(
        ROWS
    )


def test_rows_are_sorted_by_accuracy() -> None:
    rows = catalog.by_accuracy(catalog.entries("resnet50"))
    known = [row.top1 for row in rows if row.top1 is not None]
    assert known == sorted(known, reverse=True)
    assert [row.top1 for row in rows[: len(known)]] == known
    best = catalog.by_accuracy(catalog.entries(task="self-supervised", license="commercial"))
    assert (best[0].metric, best[0].top1) == ("linear", max(r.top1 or 0 for r in best))


@pytest.mark.parametrize(
    ("filters", "text"),
    [
        ({"task": "detection"}, r"no task 'detection' in the catalog; allowed: supervised, "),
        ({"channels": 5}, r"no channels 5 in the catalog; allowed: 1, 2, 3, 6, "),
        ({"dataset": "cifar"}, r"no dataset 'cifar' in the catalog; allowed: .*imagenet-1k"),
        ({"family": "vgg"}, r"no family 'vgg'; allowed: "),
    ],
)
def test_what_nothing_is_for_names_what_there_is(filters: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        catalog.entries(**filters)


def test_a_row_of_bands_says_how_many_channels_it_wants() -> None:
    row = catalog.find("resnet50", "torchgeo-sentinel1-grd-moco")
    assert row.about_channels(2) == ""
    assert row.about_channels(3) == (
        "torchgeo-sentinel1-grd-moco was trained on 2 channels (VV, VH), and this network takes 3: "
        "in_channels=2 loads the stem as it is."
    )
    plain = json.loads(json.dumps(row.to_dict()))
    assert (plain["channels"], plain["dataset"], plain["preprocessing"]) == (2, "ssl4eo-s12", None)
    assert plain["bands"]["names"] == ["VV", "VH"]


@pytest.mark.parametrize(
    ("variant", "spelling", "tag"),
    [
        ("resnet50", "torchvision_IN1K_v1", "torchvision-in1k-v1"),
        ("resnet50", "resnet50.IMAGENET1K_V2", "torchvision-in1k-v2"),
        ("resnet50", "a1_in1k", "timm-a1-in1k"),
        ("resnet50", "timm/resnet50.a1_in1k", "timm-a1-in1k"),
        ("regnety_040", "facebook/regnet-y-040", "facebook"),
        ("regnet-x-016", "RegNetX-1.6GF", "pycls"),
        ("resnet101-caffe", "caffe2/MSRA/R-101", "detectron2-caffe2-msra"),
        ("resnet50", "resnet50-19c8e357", "torchvision-in1k-v1-superseded"),
    ],
)
def test_upstream_spellings_are_aliases(variant: str, spelling: str, tag: str) -> None:
    assert catalog.find(variant, spelling).tag == tag


def test_every_tag_and_every_unambiguous_alias_finds_its_row() -> None:
    for row in ROWS:
        assert catalog.find(row.variant, row.tag) is row
        owners = [r for r in catalog.entries(row.variant) if row.upstream_name == r.upstream_name]
        if len(owners) == 1:
            assert catalog.find(row.variant, row.upstream_name) is row


def test_a_wrong_tag_names_the_closest() -> None:
    text = r"no weights 'torchvsion-v2' of resnet50\. Closest: torchvision-in1k-v2, .*weights list"
    with pytest.raises(WeightsNotFoundError, match=text):
        catalog.find("resnet50", "torchvsion-v2")
    with pytest.raises(WeightsNotFoundError, match=r"For example: timm-in1k, ucbdrive, rtdetr\."):
        catalog.find("dla34", "???")
    with pytest.raises(WeightsNotFoundError, match=r"catalog has none of resnet50t\. Give weights"):
        catalog.find("resnet50t", "timm-a1-in1k")
    with pytest.raises(UnknownVariantError, match="no variant 'resnet51'"):
        catalog.find("resnet51", "default")


def test_weights_with_the_stride_elsewhere_are_not_mistaken_for_those_of_resnet50() -> None:
    with pytest.raises(WeightsNotFoundError, match="weights of resnet50-caffe, another network"):
        catalog.find("resnet50", "detectron2-msra")


def test_an_ambiguous_name_lists_the_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    row = catalog.find("resnet18", "timm-a1-in1k")
    rows = (row, dataclasses.replace(row, tag="mirror-a1"))
    monkeypatch.setattr(lookup, "_rows", lambda: {"resnet18": rows})
    text = r"'a1_in1k' is the name of several weights of resnet18; .* tag: timm-a1-in1k, mirror-a1"
    with pytest.raises(WeightsNotFoundError, match=text):
        catalog.find("resnet18", "a1_in1k")
    assert catalog.find("resnet18", "mirror-a1") is rows[1]


def test_no_default_names_what_there_is() -> None:
    text = r"shared alike .* by its tag: detectron2-msra \(CC-BY-SA-3\.0\), "
    with pytest.raises(WeightsNotFoundError, match=text):
        catalog.find("resnet50-caffe")


def test_wrong_filters_name_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match=r"no upstream 'keras'; allowed: torchvision, timm, "):
        catalog.entries(source="keras")
    with pytest.raises(
        ConfigError, match=r"no licence 'GPL'; allowed: any, commercial, permissive, .*MIT"
    ):
        catalog.entries(license="GPL")


# --- licences ------------------------------------------------------------------------------------


def test_noncommercial_weights_are_refused_until_agreed_to() -> None:
    for tag, name in (("IMAGENET1K_SWAG_E2E_V1", "CC-BY-NC-4.0"), ("vissl-seer", "SEER")):
        row = catalog.find("regnet-y-320", tag)
        text = rf"regnet-y-320 {row.tag} .*non-commercial use only: .*{name}.*allow_noncommercial="
        with pytest.raises(LicenseError, match=text):
            catalog.check_license(row)
        catalog.check_license(row, allow_noncommercial=True)


def test_weights_without_a_licence_are_refused_until_agreed_to() -> None:
    row = catalog.find("resnet50", "bamboo")
    with pytest.raises(LicenseError, match=r"nothing is known to allow commercial use of resnet50"):
        catalog.check_license(row, allow_noncommercial=False)


def test_permissive_and_shared_alike_weights_need_no_agreement() -> None:
    catalog.check_license(catalog.find("resnet50"))
    catalog.check_license(catalog.find("resnet50-caffe", "detectron2-msra"))


# --- reading -------------------------------------------------------------------------------------


def test_a_row_is_read() -> None:
    (row,) = parse("timm.json", GOOD)
    assert isinstance(row, WeightEntry)
    assert row.places[0].hub == ("timm/resnet18.x", "model.safetensors", "v1")
    assert (row.file_name, row.sha256, row.sha256_prefix) == ("model.safetensors", None, None)
    assert row.aliases == {"resnet18.x", "x", "timm/resnet18.x"}
    plain = json.loads(json.dumps(row.to_dict()))
    assert plain["license_class"] == "permissive"
    assert plain["preprocessing"]["crop"] == [224, 224]
    assert plain["facts_source"] == "nowhere"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"lisense": "MIT"}, r"timm\.json, row resnet18 'timm-x': unknown fields \['lisense'\]"),
        ({"preprocessing": "other"}, r"no preprocessing 'other'; the file defines plain"),
        ({"license": "GPL-3.0"}, r"license 'GPL-3\.0' is unknown; allowed: Apache-2\.0"),
        ({"tag": "Timm_X"}, r"a tag is lower case with single hyphens"),
        ({"tag": "default"}, r"and not 'default'"),
        ({"places": []}, r"it needs a place"),
        ({"places": [{"uri": "https://a/b"}]}, r"unknown fields \['uri'\], missing fields \['url'"),
        ({"places": [{"url": "ftp://a/b"}]}, r"place 'ftp://a/b' is no address; write https://"),
        ({"places": [{"url": "hf://timm/b"}]}, r"place 'hf://timm/b' is no address"),
        ({"places": [{"url": "https://a/b", "layout": "dla"}]}, r"first one has the layout"),
        ({"places": [{"url": "https://a/b", "sha256_prefix": "F0"}]}, r"'F0' is no hash; write 8"),
        ({"places": [{"url": "https://a/b", "sha256": "0" * 63}]}, r"is no hash; write 64 digits"),
        ({"num_classes": 1000}, r"num_classes and classes_dataset go together"),
        ({"top1": 76.0}, r"top1 and metric_size go together"),
        ({"top1": 0.76e3, "metric_size": 224}, r"top1 is a percentage, got 760\.0"),
        ({"num_params": 0}, r"num_params must be a positive integer, got 0"),
        ({"requires": ["luck"]}, r"requires 'luck' is unknown; allowed: frozen-norm"),
        ({"task": "sport"}, r"task 'sport' is unknown; allowed: medical, robust"),
        ({"metric": "knn"}, r"metric 'knn' is unknown; allowed: classifier, linear"),
        ({"bands": "radar"}, r"no bands 'radar'; the file defines two"),
        ({"bands": "two"}, r"it needs preprocessing, or bands"),
        ({"assumed": ["tag"]}, r"assumed 'tag' is unknown; allowed: channel_order"),
    ],
)
def test_a_wrong_row_is_an_error_that_names_it(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parse("timm.json", spoilt(**fields))


def test_a_wrong_file_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigError, match=r"timm\.json: unknown fields \['extra'\]"):
        parse("timm.json", {**GOOD, "extra": 1})
    with pytest.raises(ConfigError, match=r"source 'keras' is unknown"):
        parse("timm.json", {**GOOD, "source": "keras"})
    content = copy.deepcopy(GOOD)
    del content["preprocessing"]["plain"]["std"]
    with pytest.raises(ConfigError, match=r"lacks \['std'\]"):
        parse("timm.json", content)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"names": []}, r"bands need names and a unit"),
        ({"unit": ""}, r"bands need names and a unit"),
        ({"mean": [0]}, r"bands VV, VH: mean has 1 numbers; give 2, one per band"),
        ({"std": None}, r"bands VV, VH: mean and std go together"),
        ({"std": [1, 0]}, r"must be positive"),
        ({"wave": 1}, r"timm\.json, bands two: unknown fields \['wave'\]"),
    ],
)
def test_wrong_bands_are_an_error_that_names_them(fields: dict[str, Any], text: str) -> None:
    content = copy.deepcopy(GOOD)
    content["bands"]["two"].update(fields)
    with pytest.raises(ConfigError, match=text):
        parse("timm.json", content)


def test_a_place_keeps_the_name_it_is_given() -> None:
    place = Place(url="https://host/a/b.pth?download=1", layout="dla", file_name="b.pth")
    assert (place.file_name, place.hub) == ("b.pth", None)


def test_importing_the_library_does_not_read_the_catalog() -> None:
    code = "import trunkline, sys; print([m for m in sys.modules if 'weights.catalog' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
