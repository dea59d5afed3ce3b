"""Libraries that only some users need."""

from __future__ import annotations

import sys
from importlib.metadata import requires

import pytest

from trunkline.errors import NotInstalledError
from trunkline.runtimes import engine, optional
from trunkline.runtimes.engine import engine_class, versions_of


def test_every_extra_is_one_of_the_project() -> None:
    wanted = requires("trunkline") or []
    for module, extra in optional.EXTRAS.items():
        of_extra = [one for one in wanted if one.endswith(f"extra == '{extra}'")]
        distribution = module.split(".")[0]
        assert any(one.startswith(distribution) for one in of_extra), module


def test_what_is_missing_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(
        NotInstalledError,
        match=r"int8 needs nncf, which cannot be imported .*pip install \"trunkline\[quantize\]\"",
    ):
        optional.require("nncf", "int8")


def test_what_is_there_is_imported() -> None:
    assert optional.require("onnx", "a test").__name__ == "onnx"


def test_an_engine_of_pytorch_without_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> object:
        raise ModuleNotFoundError(f"No module named {name!r}", name="torch")

    monkeypatch.setattr(engine, "import_module", absent)
    with pytest.raises(NotInstalledError, match=r"'torch' needs torch, which cannot be imported"):
        engine_class("torch")


def test_a_fault_inside_an_engine_is_not_taken_for_a_missing_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(name: str) -> object:
        raise ImportError("cannot import name 'x' from 'trunkline'", name=name)

    monkeypatch.setattr(engine, "import_module", broken)
    with pytest.raises(ImportError, match="cannot import name 'x'") as caught:
        engine_class("openvino")
    assert not isinstance(caught.value, NotInstalledError)


def test_versions_are_those_that_are_installed() -> None:
    assert versions_of("onnxruntime")["onnxruntime"].count(".") >= 2
