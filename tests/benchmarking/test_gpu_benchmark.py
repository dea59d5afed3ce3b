"""benchmarks/gpu.py without a card: every section runs, and what it cannot measure it names."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from trunkline.benchmarking.peers import find_peer
from trunkline.errors import NotInstalledError
from trunkline.zoo import create_backbone

FOLDER = Path(__file__).parents[2] / "benchmarks"
SECTIONS = ("safety", "peak", "layers", "processor", "photos", "training")


@pytest.fixture(scope="module")
def programs() -> Any:
    """What the benchmark consists of, by name of the file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))

        def load(name: str) -> ModuleType:
            return importlib.import_module(name)

        yield load


def options(**changed: Any) -> argparse.Namespace:
    given = {"device": "cpu", "tiny": True, "rounds": 1, "budget_seconds": 1e4} | changed
    return argparse.Namespace(**given)


def timm_is_there() -> bool:
    try:
        find_peer("timm", create_backbone("resnet18"))
    except NotInstalledError:
        return False
    return True


@pytest.fixture(scope="module")
def trial(programs: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The figures and the page of one trial on the processor."""
    page = tmp_path_factory.mktemp("docs") / "page.md"
    benchmark = programs("gpu").Benchmark(options())
    with programs("gpu_device").measuring_flags():
        benchmark.run(page)
    figures: dict[str, Any] = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    return figures, page.read_text(encoding="utf-8")


def test_every_section_runs_on_the_processor(trial: tuple[dict[str, Any], str]) -> None:
    figures, _ = trial
    assert (figures["failed"], figures["skipped"]) == ({}, {})
    assert all(figures[name] for name in SECTIONS)
    assert list(figures["cells"]) == ["resnet18@2x64", "resnet18@1x32"]


def test_all_ways_compute_the_same_maps(trial: tuple[dict[str, Any], str]) -> None:
    figures, _ = trial
    for row in figures["cells"].values():
        assert set(row["fidelity"]) == {name for name in row["runs"] if name != "peak"}
        for label, levels in row["fidelity"].items():
            assert [level["stride"] for level in levels] == [4, 8, 16, 32]
            least = 0.999999 if label.endswith("fp32") else 0.99
            assert all(level["cosine"] >= least for level in levels), label


def test_what_is_not_installed_is_named_on_the_page(trial: tuple[dict[str, Any], str]) -> None:
    figures, page = trial
    missing = figures["cells"]["resnet18@2x64"]["missing"]
    if timm_is_there():
        assert missing == {}
        return
    assert all(label.startswith("timm") for label in missing)
    assert "timm fp32 took no part everywhere: the comparison with timm needs timm" in page


def test_the_verbs_do_what_is_documented(trial: tuple[dict[str, Any], str]) -> None:
    told = trial[0]["safety"]
    assert not [text for text in told.values() if text.startswith("FAILED")], told
    assert told["deploy"].startswith("runs on the processor, maps agree to")


def test_every_convolution_of_the_network_is_a_layer(trial: tuple[dict[str, Any], str]) -> None:
    layers = trial[0]["layers"]["layers"]
    backbone = create_backbone("resnet18")
    convolutions = [m for m in backbone.modules() if isinstance(m, torch.nn.Conv2d)]
    assert sum(layer["count"] for layer in layers) == len(convolutions)
    assert sum(layer["operations"] for layer in layers) == 2 * 2 * backbone.macs(64, 64)


def test_a_trial_says_that_it_measured_nothing(trial: tuple[dict[str, Any], str]) -> None:
    page = trial[1]
    assert page.count("This is a trial: it shows") == 2
    assert "They are not `deploy`" in page
    assert not re.search(r"nan|Traceback|None", page)


def test_what_the_budget_does_not_allow_for_is_left_out_by_name(
    programs: Any, tmp_path: Path
) -> None:
    benchmark = programs("gpu").Benchmark(options(budget_seconds=0))
    benchmark.run(tmp_path / "page.md")
    assert set(benchmark.figures["skipped"]) == {
        *SECTIONS,
        "resnet18@2x64",
        "resnet18@1x32",
    }
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert re.search(r"- photos: 0 s of the budget were left, and it takes about 60 s", page)


def test_some_sections_can_be_measured_anew_and_the_others_stay(
    programs: Any, trial: tuple[dict[str, Any], str]
) -> None:
    earlier = trial[0] | {"peak": {"old": 1}, "failed": {"photos": "why"}, "training": {"old": 1}}
    benchmark = programs("gpu").Benchmark(options())
    benchmark.take_over(earlier, ["photos", "peak", "resnet18@1x32"])
    assert benchmark.figures["training"] == {"old": 1}
    assert "peak" not in benchmark.figures
    assert benchmark.figures["failed"] == {}
    assert list(benchmark.figures["cells"]) == ["resnet18@2x64"]
    benchmark.run(None, ["peak"])
    assert benchmark.figures["peak"]["tflops"] > 0
    assert "old" in benchmark.figures["training"]
    with pytest.raises(SystemExit, match=r"no section foto; there are safety, peak, resnet18@2x64"):
        benchmark.take_over({}, ["foto"])
    with pytest.raises(SystemExit, match="the kept figures are of a card and this is cpu"):
        benchmark.take_over({"setting": {"device": "a card"}}, ["photos"])


def test_a_section_that_fails_does_not_end_the_others(
    programs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = programs("gpu").Benchmark(options())
    plan = {"training": lambda: 1 / 0, "peak": benchmark.find_peak}
    monkeypatch.setattr(benchmark, "sections", lambda: plan)
    benchmark.run(tmp_path / "page.md")
    assert benchmark.figures["failed"] == {"training": "ZeroDivisionError: division by zero"}
    assert "training: failed: ZeroDivisionError" in (tmp_path / "page.md").read_text("utf-8")
    assert benchmark.figures["peak"]["tflops"] > 0


def test_the_callers_flags_come_back_after_an_error(programs: Any) -> None:
    backends = torch.backends
    before = (backends.cudnn.benchmark, backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32)
    inside = []

    def fail() -> None:
        with programs("gpu_device").measuring_flags():
            inside.append((backends.cudnn.benchmark, backends.cuda.matmul.allow_tf32))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert inside == [(True, False)]
    after = (backends.cudnn.benchmark, backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32)
    assert after == before


def test_a_cell_is_expected_to_take_as_long_as_one_of_its_size(programs: Any) -> None:
    budget = programs("gpu_figures").Budget(100)
    assert budget.expected("dla34@1x224") == programs("gpu_figures").CELL_S
    budget.took |= {"resnet50@128x224": 40.0, "resnet50@1x224": 5.0, "dla60@1x224": 7.0}
    assert budget.expected("dla34@1x224") == 6.0
    assert budget.expected("dla34@16x640") == 40.0
    assert budget.expected("photos") == 60.0


def test_every_run_has_its_turns_and_short_ones_are_repeated(programs: Any) -> None:
    module = programs("gpu_device")
    device = module.Device(torch.device("cpu"))
    order: list[str] = []
    runs = {"a": lambda: order.append("a"), "b": lambda: time.sleep(2 * module.TURN_S)}
    seconds = module.take_turns(device, runs, 3)
    assert [len(times) for times in seconds.values()] == [3, 3]
    warm, turns = module.WARM_UP + 1, 3 * (1 + module.MOST_REPEATS)
    assert len(order) == warm + turns
    assert min(seconds["b"]) >= 2 * module.TURN_S


def test_every_compiled_way_of_the_real_plan_is_compiled_beforehand(programs: Any) -> None:
    benchmark = programs("gpu").Benchmark(options(tiny=False))
    networks = programs("gpu_networks")
    jobs = benchmark.jobs()
    assert len(jobs) == len(set(jobs))
    cells = [*benchmark.first, *benchmark.later]
    assert len(cells) == len(set(cells)) == 25
    wanted = {
        (way.label, cell)
        for cell in cells
        for way in networks.WAYS
        if way.compiled and not way.frozen and way.takes_part(cell)
    }
    assert wanted < set(jobs)
    assert {what for what, _ in set(jobs) - wanted} == {
        networks.POOLED,
        *(networks.STEP + step.label for step in networks.STEPS if step.compiled),
    }


def test_a_compiling_process_does_all_of_its_jobs_and_names_what_failed(programs: Any) -> None:
    networks, device = programs("gpu_networks"), programs("gpu_device").Device(torch.device("cpu"))
    cell = ("resnet18", 1, 32)
    kinds = ("trunkline folded half NHWC compiled graph", networks.POOLED)
    assert networks.warm(device, [(what, cell) for what in kinds]) == []
    step = networks.STEP + "trunkline amp NHWC compiled"
    jobs = [("trunkline half NHWC compiled graph", ("no-net", 1, 32)), (step, ("resnet18", 2, 64))]
    assert re.fullmatch(r"trunkline half .*no-net.*", *networks.warm(device, jobs))
