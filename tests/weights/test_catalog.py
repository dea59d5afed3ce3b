"""The catalog's rows: against the backbones, the layouts and facts copied by hand."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib import resources
from typing import Any

import pytest

import trunkline
from trunkline import zoo
from trunkline.backbones import dla, regnet, resnet
from trunkline.errors import WeightsNotFoundError
from trunkline.preprocessing import Preprocessing
from trunkline.weights import catalog
from trunkline.weights.layouts import LAYOUTS

ROWS = catalog.entries()
VARIANTS: dict[str, Any] = {**resnet.VARIANTS, **dla.VARIANTS, **regnet.VARIANTS}

# docs/weights.md names those that fit no backbone of ours.
COUNTS = {
    "torchvision": 56,
    "timm": 159,
    "transformers": 35,
    "dla": 10,
    "pycls": 29,
    "rtdetr": 6,
    "detectron2": 10,
    "mmpretrain": 42,
    "vissl": 53,
    "fair": 26,
    "lightly": 10,
    "pass": 6,
    "torchgeo": 46,
    "torchxrayvision": 1,
    "places365": 2,
    "texture-vs-shape": 3,
    "robust": 28,
}

# Parameters of projections that the authors' network computes and discards.
DEAD = {
    "dla34": 41_728,
    "dla46-c": 8_448,
    "dla46x-c": 8_448,
    "dla60x-c": 16_896,
    "dla60": 297_472,
    "dla60x": 297_472,
    "dla102": 462_848,
    "dla102x": 462_848,
    "dla102x2": 462_848,
    "dla169": 599_296,
}


# --- all rows ------------------------------------------------------------------------------------


def test_counts_of_each_upstream() -> None:
    assert Counter(row.source for row in ROWS) == COUNTS
    assert tuple(COUNTS) == catalog.SOURCES


def test_every_file_is_used_and_in_the_order_of_the_zoo() -> None:
    files = {f.name for f in resources.files(catalog).iterdir() if f.name.endswith(".json")}
    assert files == {f"{source}.json" for source in catalog.SOURCES} | {"defaults.json"}
    order = zoo.list_backbones()
    for source in catalog.SOURCES:
        content = json.loads(resources.files(catalog).joinpath(f"{source}.json").read_text("utf-8"))
        places = [order.index(row["variant"]) for row in content["rows"]]
        assert content["source"] == source
        assert places == sorted(places)
        for kind in ("preprocessing", "bands"):
            used = {row[kind] for row in content["rows"] if kind in row}
            assert used == set(content.get(kind, ())), (source, kind)


def test_tags_are_unique_and_no_file_is_listed_twice_by_one_upstream() -> None:
    assert len({(row.variant, row.tag) for row in ROWS}) == len(ROWS)
    assert len({(row.source, row.places[0].url) for row in ROWS}) == len(ROWS)


def test_layouts_are_known_and_have_such_a_network() -> None:
    for row in ROWS:
        for place in row.places:
            assert place.layout in LAYOUTS, (row.variant, row.tag)
            assert LAYOUTS[place.layout].applies(VARIANTS[row.variant]), (row.variant, row.tag)


def test_the_group_norm_layout_has_the_networks_of_its_rows() -> None:
    rows = [row for row in ROWS if row.layout == "caffe2-group-norm"]
    assert [row.variant for row in rows] == ["resnet50", "resnet101"]
    assert all(LAYOUTS[row.layout].applies(VARIANTS[row.variant]) for row in rows)


def test_rows_say_what_they_must() -> None:
    for row in ROWS:
        assert row.facts_source, row.tag
        assert row.upstream_name, row.tag
        where = row.preprocessing
        if where is None:
            continue
        # A mean says by itself in which order its channels are: red is the brightest.
        if len(set(where.mean)) > 1:
            assert (where.mean[0] > where.mean[2]) == (where.channel_order == "RGB"), row.tag
        if row.metric_size is not None and where.crop is not None:
            assert where.crop == (row.metric_size, row.metric_size), row.tag


def test_what_a_file_needs_agrees_with_its_variant_and_layout() -> None:
    for row in ROWS:
        config = VARIANTS[row.variant]
        in_1x1 = isinstance(config, resnet.ResNetConfig) and config.stride_in_1x1
        assert ("stride-in-1x1" in row.requires) == in_1x1, row.tag
        assert ("frozen-norm" in row.requires) == (row.layout == "caffe2-affine"), row.tag
        assert ("group-norm" in row.requires) == row.layout.endswith("-group-norm"), row.tag


def test_hashes_are_those_in_the_file_names() -> None:
    hashed = [place for row in ROWS for place in row.places if place.sha256_prefix]
    assert len(hashed) > 200
    for place in hashed:
        assert str(place.sha256_prefix) in place.file_name


def test_published_parameters_are_those_of_our_networks() -> None:
    compared = 0
    for row in ROWS:
        if row.num_params is None:
            continue
        info = trunkline.info(row.variant)
        classifier = (row.num_classes or 0) * (info.levels[-1].channels + 1)
        dead = DEAD[row.variant] if row.layout == "dla" else 0
        assert row.num_params == info.num_parameters + classifier + dead, (row.variant, row.tag)
        compared += 1
    assert compared > 280


# --- what is no classifier of photographs ---------------------------------------------------------


def test_bands_are_said_where_pictures_are_not_8_bit_rgb() -> None:
    banded = [row for row in ROWS if row.bands is not None]
    assert {row.source for row in banded} == {"torchgeo", "torchxrayvision"}
    assert Counter(row.channels for row in banded if row.channels != 3) == {
        **{1: 1, 2: 5, 6: 4, 7: 8, 9: 8, 11: 4, 12: 1, 13: 7}
    }
    for row in banded:
        assert row.bands is not None
        assert len(set(row.bands.names)) == row.channels, row.tag
        assert row.bands.mean is not None or row.bands.note, row.tag
        described = row.bands.describe()
        assert described.startswith(f"{row.channels} bands ({row.bands.names[0]}"), row.tag
        assert ("no mean and std" in described) == (row.bands.mean is None), row.tag


def test_a_band_has_the_numbers_of_its_upstream() -> None:
    softcon = catalog.find("resnet50", "torchgeo-sentinel2-all-softcon").bands
    assert softcon is not None
    assert softcon.mean is not None
    assert softcon.std is not None
    assert dict(zip(softcon.names, softcon.mean, strict=True))["B8a"] == 2581.0
    assert dict(zip(softcon.names, softcon.std, strict=True))["B10"] == 47.5
    radar = catalog.find("resnet50", "torchgeo-sentinel1-grd-moco").bands
    assert radar is not None
    assert (radar.names, radar.mean, radar.std) == (("VV", "VH"), (-12.59, -20.26), (5.26, 5.91))
    x_ray = catalog.find("resnet50", "resnet50-res512-all").bands
    assert x_ray is not None
    assert x_ray.mean is not None
    assert x_ray.std is not None
    # Upstream: (2 * x / 255 - 1) * 1024.
    assert [(x - x_ray.mean[0]) / x_ray.std[0] for x in (0.0, 127.5, 255.0)] == [-1024, 0, 1024]


def test_satellite_files_are_pinned_to_a_commit() -> None:
    places = [p for row in ROWS if row.source == "torchgeo" for p in row.places]
    assert len(places) == COUNTS["torchgeo"]
    for place in places:
        assert place.hub is not None
        assert re.fullmatch(r"[0-9a-f]{40}", place.hub.revision or ""), place.url


def test_a_hash_in_a_name_that_is_wrong_is_not_believed() -> None:
    (place,) = catalog.find("resnet50", "torchgeo-sentinel2-all-seco-eco").places
    assert place.file_name.endswith("-90ec322f.pth")
    assert place.sha256_prefix is None
    assert (place.sha256 or "").startswith("a273eb78")


def test_accuracies_say_whose_they_are() -> None:
    for row in ROWS:
        if row.metric == "linear":
            assert row.top1 is not None, row.tag
        if row.task == "self-supervised":
            assert row.num_classes is None, row.tag
            assert row.metric == "linear" or row.top1 is None, row.tag
            assert row.dataset is not None, row.tag


def test_two_networks_in_one_file_have_a_prefix() -> None:
    said = {row.tag: row.places[0].prefix for row in ROWS if row.places[0].prefix}
    assert said["moco-v3-1000ep"] == "base_encoder."
    assert said["dino-100ep"] == "teacher.backbone."
    assert said["lightly-dino"] == said["mmpretrain-byol-200ep"] == "backbone."
    assert "lightly-simclr" not in said


def test_licences_are_the_stricter_ones() -> None:
    expected = {
        "swav-800ep": "CC-BY-NC-4.0",
        "moco-v2-800ep": "CC-BY-NC-4.0",
        "vicregl-alpha-09": "CC-BY-NC-4.0",
        "vicreg": "MIT",
        "barlowtwins-1000ep": "MIT",
        "dino": "Apache-2.0",
        "vissl-deepclusterv2-800ep-2x224-6x96": "CC-BY-NC-4.0",
        "vissl-jigsaw-goyal19": "CC-BY-NC-4.0",
        "vissl-simclr-1000ep": "MIT",
        "stylized-imagenet": "unknown",
        "torchgeo-fmow-rgb-gassl": "unknown",
        "torchgeo-sentinel2-all-closp": "LicenseRef-OpenRAIL",
    }
    assert {tag: catalog.find("resnet50", tag).license for tag in expected} == expected


# --- defaults ------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", zoo.list_backbones())
def test_defaults_are_permissive_and_missing_only_where_nothing_is(variant: str) -> None:
    tag, why = catalog.default(variant)
    assert why != "none has been chosen", "give it a line in defaults.json"
    if tag is None:
        assert catalog.entries(variant, license="permissive") == []
        with pytest.raises(WeightsNotFoundError, match=rf"{variant} has no default weights"):
            catalog.find(variant)
    else:
        row = catalog.find(variant, "default")
        assert (row.tag, row.license_class, row.assumed) in (
            (tag, "permissive", ()),
            (tag, "permissive", ("interpolation",)),  # Paddle's, which publishes none
        )


def test_defaults_by_family() -> None:
    assert catalog.default_tag("resnet50") == "torchvision-in1k-v1"
    assert catalog.default_tag("resnet50d") == "timm-ra2-in1k"
    assert catalog.default_tag("resnet50vd") == "rtdetr"
    assert catalog.default_tag("dla34") == "timm-in1k"
    assert catalog.default_tag("regnet-y-040") == "facebook"
    assert catalog.default_tag("regnet_y_8gf") == "torchvision-in1k-v1"
    assert catalog.default_tag("regnet-y-640") == "vissl-supervised"
    assert catalog.default_tag("resnet50-caffe") is None
    assert catalog.default_tag("resnet50t") is None


# --- facts copied by hand ------------------------------------------------------------------------


def prepared(row: catalog.WeightEntry) -> Preprocessing:
    assert row.preprocessing is not None
    return row.preprocessing


def test_torchvision_v1_and_v2() -> None:
    v1, v2 = (catalog.find("resnet50", f"IMAGENET1K_V{n}") for n in (1, 2))
    assert (v1.sha256_prefix, v2.sha256_prefix) == ("0676ba61", "11ad3fa6")
    sizes = [round((row.size_bytes or 0) / 2**20, 3) for row in (v1, v2)]
    assert sizes == [97.781, 97.79]
    assert (prepared(v1).resize, prepared(v2).resize) == (256, 232)
    assert (v1.top1, v2.top1, v1.num_params) == (76.13, 80.858, 25_557_032)
    wide = catalog.find("wide-resnet50-2", "torchvision-in1k-v1")
    assert "float16" in wide.notes
    swag = catalog.find("regnet-y-160", "IMAGENET1K_SWAG_E2E_V1")
    assert (swag.tag, swag.license) == ("torchvision-in1k-swag-e2e-v1", "CC-BY-NC-4.0")
    assert (prepared(swag).resize, prepared(swag).crop) == (384, (384, 384))


def test_timm_sizes_and_means() -> None:
    tv2 = catalog.find("resnet50", "tv2_in1k")
    assert (prepared(tv2).resize, prepared(tv2).crop) == (201, (176, 176))
    assert (tv2.top1, tv2.metric_size) == (79.434, 176)
    assert "At 224 px" in tv2.notes
    halves = (0.5, 0.5, 0.5)
    ra4 = [row for row in ROWS if row.preprocessing and row.preprocessing.mean == halves]
    assert [row.variant for row in ra4] == ["resnet34", "resnet18d", "resnet50d"]
    assert {row.tag for row in ra4} == {"timm-ra4-e3600-r224-in1k"}
    a1 = catalog.find("resnet50", "resnet50.a1_in1k")
    assert (prepared(a1).resize, prepared(a1).interpolation) == (235, "bicubic")
    assert catalog.find("regnet-y-120", "timm-sw-in12k").num_classes == 11_821


def test_channel_orders_and_scales() -> None:
    mm = prepared(catalog.find("regnet-x-004", "mmpretrain-in1k"))
    assert (mm.channel_order, mm.value_range) == ("BGR", "0..255")
    assert (mm.mean, mm.std) == ((103.53, 116.28, 123.675), (57.375, 57.12, 58.395))
    msra = prepared(catalog.find("resnet50-caffe", "MSRA/R-50"))
    assert (msra.channel_order, msra.value_range) == ("BGR", "0..255")
    assert (msra.mean, msra.std) == ((103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
    fair = prepared(catalog.find("resnext101-32x8d", "detectron2-fair"))
    assert fair.std == (57.375, 57.12, 58.395)
    pycls = prepared(catalog.find("regnet-y-040", "pycls"))
    assert (pycls.channel_order, pycls.mean) == ("BGR", (0.406, 0.456, 0.485))


def test_transformers_files_and_the_warp_of_seer() -> None:
    first = {
        variant: catalog.find(variant, "facebook").file_name
        for variant in ("regnet-y-040", "regnet-y-320", "regnet-x-160", "regnet-x-002")
    }
    assert first == {
        "regnet-y-040": "pytorch_model.bin",
        "regnet-y-320": "model.safetensors",
        "regnet-x-160": "model.safetensors",
        "regnet-x-002": "pytorch_model.bin",
    }
    seer = catalog.find("regnet-y-320", "facebook-seer")
    assert (prepared(seer).resize, prepared(seer).crop) == ((384, 384), None)
    assert (seer.license_class, seer.num_classes) == ("noncommercial", None)


def test_the_same_weights_have_another_hash_at_another_host() -> None:
    row = catalog.find("dla34")
    assert row.places[0].hub == ("timm/dla34.in1k", "model.safetensors", None)
    assert [(p.sha256_prefix, p.layout) for p in row.places] == [
        (None, "timm-dla"),
        (None, "timm-dla"),
        ("2b83ff04", "timm-dla"),
        ("ba72cf86", "dla"),
        ("ba72cf86", "dla"),
    ]
    assert row.places[-1].url.startswith("http://dl.yf.io/")
    swag = catalog.find("regnet-y-160", "timm-swag-ft-in1k").places[-1]
    assert (swag.layout, swag.sha256_prefix) == ("torchvision-regnet", "43afe44d")
