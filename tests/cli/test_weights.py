"""``trunkline weights list`` and ``show``."""

from __future__ import annotations

import json
import re

import pytest
import typer
from typer.testing import CliRunner, Result

from trunkline.cli.root import app
from trunkline.cli.weights import _SHORT
from trunkline.cli.weights import app as weights_app
from trunkline.weights import catalog

FLAGS = {
    "list": [
        *("--channels", "--commercial", "--dataset", "--family", "--help", "--json", "--license"),
        *("--sort", "--source", "--task", "variant"),
    ],
    "show": ["--help", "--json", "tag", "variant"],
}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(
        app, ["weights", *arguments], prog_name="trunkline", catch_exceptions=False
    )


def test_flags_are_these() -> None:
    verbs = getattr(typer.main.get_command(weights_app), "commands")  # noqa: B009 - as in typer
    for name, flags in FLAGS.items():
        with verbs[name].make_context(name, [], resilient_parsing=True) as context:
            parameters = verbs[name].get_params(context)
        found = (next(flag for flag in one.opts if flag != "-h") for one in parameters)
        assert sorted(found) == flags


def test_list_of_everything() -> None:
    result = run("list")
    assert result.exit_code == 0
    rows = catalog.entries()
    lines = result.stdout.splitlines()
    assert re.match(r"variant +tag +licence +task +ch +top-1 +px$", lines[0])
    assert [line.split()[:2] for line in lines[2 : 2 + len(rows)]] == [
        [row.variant, row.tag] for row in rows
    ]
    assert f"{len(rows)} checkpoints" in result.stdout
    assert max(map(len, lines)) <= 100


def test_list_by_task_and_accuracy() -> None:
    result = run("list", "--task", "self-supervised", "--commercial", "--sort", "accuracy")
    first = result.stdout.splitlines()[2].split()
    assert first == ["resnet50", "dino", "Apache-2.0", "self", "3", "75.3", "lin", "224"]
    assert "CC-BY-NC" not in result.stdout
    assert "lin: of a linear classifier" in result.stdout
    rows = json.loads(run("list", "--channels", "13", "--family", "resnet", "--json").stdout)
    assert {row["channels"] for row in rows} == {13}
    assert len(rows) == 7
    places = run("list", "--dataset", "places365").stdout.splitlines()
    assert [line.split()[0] for line in places[2:4]] == ["resnet18", "resnet50"]


def test_every_task_has_a_short_word() -> None:
    assert list(_SHORT) == list(catalog.TASKS)


def test_list_of_one_variant() -> None:
    result = run("list", "resnet_50", "--source", "torchvision")
    assert [line.split() for line in result.stdout.splitlines()[2:5]] == [
        ["resnet50", "torchvision-in1k-v1", "*", "BSD-3-Clause", "sup", "3", "76.13", "224"],
        ["resnet50", "torchvision-in1k-v2", "BSD-3-Clause", "sup", "3", "80.858", "224"],
        ["resnet50", "torchvision-in1k-v1-superseded", "BSD-3-Clause", "sup", "3", "76.13", "224"],
    ]
    assert "3 checkpoints" in result.stdout
    assert "0 checkpoints" in run("list", "resnet50t").stdout


def test_list_as_json_and_by_licence() -> None:
    rows = json.loads(run("list", "regnet-y-1280", "--license", "permissive", "--json").stdout)
    assert [(row["tag"], row["default"]) for row in rows] == [
        ("vissl-supervised", True),
        ("vissl-swav", False),
    ]
    assert rows[0]["license_class"] == "permissive"
    assert rows[0]["places"][0]["url"].startswith("https://dl.fbaipublicfiles.com/vissl/")
    assert rows[0]["preprocessing"]["channel_order"] == "BGR"
    everything = json.loads(run("list", "--license", "any", "--json").stdout)
    assert len(everything) == len(catalog.entries())


def test_show_the_default() -> None:
    result = run("show", "dla34")
    assert result.exit_code == 0
    out = result.stdout
    assert out.startswith("dla34  timm-in1k  (the default)\n")
    assert re.search(r"^licence +BSD-3-Clause \(BSD 3-Clause License; permissive\)$", out, re.M)
    assert re.search(
        r"^preprocessing +shorter side 256 \(bilinear\), centre crop 224x224", out, re.M
    )
    assert re.search(r"^mean +0\.485, 0\.456, 0\.406$", out, re.M)
    assert re.search(r"^accuracy +top-1 74\.632, top-5 92\.052 at 224 px$", out, re.M)
    assert re.search(r"^parameters +15,742,104 \(15\.74 M\)", out, re.M)
    assert re.search(r"^facts from +timm 1\.0\.31", out, re.M)
    places = out.partition("places, in the order to try:\n")[2].splitlines()
    assert places[0] == "  hf://timm/dla34.in1k/model.safetensors"
    assert places[1] == "    no hash published, layout timm-dla"
    assert places[-1] == "    sha256 ba72cf86..., layout dla"


def test_show_what_a_file_needs_and_what_is_assumed() -> None:
    out = run("show", "resnet50-caffe", "caffe2/MSRA/R-50").stdout
    assert re.search(r"^needs +a network with the stride in the first 1×1", out, re.M)
    assert re.search(r"^needs +norm='frozen'", out, re.M)
    assert re.search(r"^unpublished +interpolation: the usual value is assumed$", out, re.M)
    assert re.search(r"^classes +none, or not recorded$", out, re.M)
    assert re.search(r"^accuracy +none published$", out, re.M)
    assert "(the default)" not in out


def test_show_bands_and_where_in_a_file() -> None:
    out = run("show", "resnet50", "torchgeo-sentinel1-grd-moco").stdout
    assert re.search(
        r"^bands +2 bands \(VV, VH\); backscatter in dB; resized to 256x256;", out, re.M
    )
    assert re.search(r"^mean +-12\.59, -20\.26$", out, re.M)
    assert re.search(r"^task +satellite, on ssl4eo-s12$", out, re.M)
    out = run("show", "resnet50", "moco-v3-1000ep").stdout
    assert "layout torchvision-resnet, at prefix base_encoder." in out
    assert re.search(r"^accuracy +top-1 74\.6 at 224 px, of a linear classifier on", out, re.M)


def test_show_as_json() -> None:
    row = json.loads(run("show", "resnet50", "IMAGENET1K_V2", "--json").stdout)
    assert (row["tag"], row["default"]) == ("torchvision-in1k-v2", False)
    assert row["places"] == [
        {
            "url": "https://download.pytorch.org/models/resnet50-11ad3fa6.pth",
            "layout": "torchvision-resnet",
            "file_name": "resnet50-11ad3fa6.pth",
            "sha256": None,
            "sha256_prefix": "11ad3fa6",
            "prefix": "",
        }
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["show", "resnet50", "v3"], r"no weights 'v3' of resnet50\. .*weights list resnet50"),
        (["show", "resnet50t"], r"resnet50t has no default weights: nobody has published any\."),
        (["show", "resnet51"], r"no variant 'resnet51'; closest: "),
        (["list", "--source", "keras"], r"no upstream 'keras'; allowed: torchvision, "),
        (["list", "--task", "sport"], r"no task 'sport' in the catalog; allowed: supervised, "),
        (["list", "--channels", "5"], r"no channels 5 in the catalog; allowed: 1, 2, 3, "),
        (["list", "--sort", "size"], r"no order --sort 'size'; allowed: variant, accuracy\."),
        (["list", "--commercial", "--license", "MIT"], r"--commercial and --license both choose "),
        (["list", "--license", "GPL"], r"no licence 'GPL'; allowed: any, "),
    ],
)
def test_errors_are_one_line(arguments: list[str], text: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert re.fullmatch(rf"trunkline: error: {text}.*\n", result.stderr)
