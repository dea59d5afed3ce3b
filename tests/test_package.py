"""The package as a whole: its public names, what importing costs, which way imports point."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points, requires, version
from pathlib import Path

import pytest
import torch

import trunkline

SOURCE = Path(trunkline.__file__).parent
ROOT = Path(__file__).parent.parent
FILES = sorted(SOURCE.rglob("*.py"))

# Imports point downwards only: a part may import itself and what stands in a lower row.
PARTS = (
    {"errors"},
    {"preprocessing", "files", "decoders", "modes"},
    {"backbones"},
    {"facts"},
    {"zoo"},
    {"photos"},
    {"rasters", "outputs"},
    {"images"},
    {"pictures"},
    {"weights"},
    {"heads"},
    {"runtimes"},
    {"extraction", "viewing", "benchmarking"},
    {"cli"},
    {"__main__"},
)
RANK = {part: rank for rank, parts in enumerate(PARTS) for part in parts}


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(name: str) -> str:
    """Return the folder or the file below trunkline that a module belongs to."""
    return name.split(".")[1] if "." in name else ""


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Return every trunkline part that a file imports, and whether importing it does so."""

    def walk(node: ast.AST, at_import: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            names: list[str] = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                names = [f"{child.module}.{alias.name}" for alias in child.names]
            for name in names:
                if name.split(".")[0] == "trunkline":
                    yield part_of(name), at_import
            lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
                isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            )
            yield from walk(child, at_import and not lazy)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


def of_the_package(path: Path) -> set[str]:
    """Return which of its names a file takes from the package itself."""
    return {
        node.attr
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "trunkline"
    }


def test_all_names_what_is_public_and_is_sorted() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    public = {
        alias.name
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(trunkline.__all__) == public
    assert trunkline.__all__ == sorted(trunkline.__all__)


@pytest.mark.parametrize("name", trunkline.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(trunkline, name)
    assert value.__name__ == name
    assert value.__module__.startswith("trunkline.")
    assert name in dir(trunkline)


def test_a_name_that_is_not_public_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match=r"module 'trunkline' has no attribute 'resnet50'"):
        trunkline.resnet50  # noqa: B018


def test_the_names_of_the_design_are_there() -> None:
    wanted = {"Backbone", "Level", "ResNet", "DLANet", "RegNet", "create_backbone", "info"}
    assert wanted | {"list_backbones", "TrunklineError"} <= set(trunkline.__all__)


def test_every_error_is_a_trunkline_error() -> None:
    errors = importlib.import_module("trunkline.errors")
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert len(classes) >= 9
    assert all(issubclass(value, trunkline.TrunklineError) for value in classes)
    drawn = errors.__doc__ or ""
    assert [value.__name__ for value in classes if value.__name__ not in drawn] == []


def test_importing_loads_nothing_heavy_but_torch() -> None:
    heavy = ["typer", "rich", "PIL", "safetensors", "huggingface_hub", "torchvision", "timm"]
    code = (
        "import sys, torch; before = set(sys.modules); import trunkline; "
        "trunkline.create_backbone, trunkline.ResNet, trunkline.DLANet, trunkline.RegNet; "
        f"print([name for name in {heavy} if name in set(sys.modules) - before])"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"


def test_importing_prints_nothing_and_leaves_the_random_state_alone() -> None:
    code = (
        "import torch; state = torch.get_rng_state(); import trunkline; "
        "trunkline.create_backbone; assert torch.equal(state, torch.get_rng_state())"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-W", "error::UserWarning", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_downwards(path: Path) -> None:
    own = part_of(module_name(path))
    if not own:
        return  # the package itself hands out names of all parts
    assert own in RANK, f"give {own} a row in PARTS"
    for other, at_import in imports(path):
        if own == "backbones" and other == "weights":
            # pretrained=True: the one upward arrow, and it must not be taken by importing
            assert path.name == "backbone.py"
            assert not at_import
        elif own == "preprocessing" and other == "pictures":
            assert not at_import  # calling one takes photos; importing it must not need Pillow
        elif other == "":
            assert own == "cli" or of_the_package(path) <= {"__version__"}
        elif other != own:
            assert other in RANK, f"{path.name} imports trunkline.{other}; give it a row in PARTS"
            assert RANK[other] < RANK[own], f"{own} must not import {other}"


def test_the_upward_arrow_is_where_the_design_says() -> None:
    tree = ast.parse((SOURCE / "backbones" / "backbone.py").read_text(encoding="utf-8"))
    backbone = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Backbone")
    found = [
        method.name
        for method in backbone.body
        if isinstance(method, ast.FunctionDef) and "from trunkline.weights" in ast.unparse(method)
    ]
    assert found == ["_load"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_examples_in_docstrings_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path.name == "__main__.py":
        return  # importing it is running it
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = importlib.import_module(module_name(path))
    results = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


@pytest.mark.parametrize("name", ["ResNet", "DLANet", "RegNet", "create_backbone"])
def test_what_a_newcomer_calls_has_an_example(name: str) -> None:
    finder = doctest.DocTestFinder(recurse=False)
    assert any(test.examples for test in finder.find(getattr(trunkline, name)))


def test_the_version_is_the_distribution_s() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", trunkline.__version__)
    assert version("trunkline") == trunkline.__version__


def test_the_changelog_knows_this_version() -> None:
    changelog = ROOT / "CHANGELOG.md"
    if not changelog.exists():
        pytest.skip("no CHANGELOG.md beside these tests")
    assert trunkline.__version__ in changelog.read_text(encoding="utf-8")


def test_marker_for_type_checkers_is_shipped() -> None:
    assert (SOURCE / "py.typed").is_file()


def test_command_and_requirements_are_those_of_the_design() -> None:
    commands = {e.name: e.value for e in entry_points(group="console_scripts")}
    assert commands["trunkline"] == "trunkline.cli:main"
    plain = [line for line in requires("trunkline") or [] if "extra ==" not in line]
    required = {re.split(r"[>=<\[; ]", line)[0] for line in plain}
    assert "torch" in required
    assert not required & {"torchvision", "timm", "transformers"}
