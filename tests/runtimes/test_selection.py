"""runtime="auto": measures, decides, remembers, explains."""

from __future__ import annotations

import itertools
import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.runtimes.conftest import furthest, own_maps
from tests.runtimes.json_values import QUIET, VALUES, places, put

from trunkline import Backbone, deploy
from trunkline.errors import DeploymentError, PrecisionError
from trunkline.runtimes import deployment, selection
from trunkline.runtimes.engine import ENGINES
from trunkline.runtimes.fidelity import LevelFidelity
from trunkline.runtimes.processor import EmulationWarning, Processor
from trunkline.runtimes.selection import Candidate, Decision, measure, recall, remember
from trunkline.runtimes.timing import Clocks


@pytest.fixture(autouse=True)
def _without_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the engine that takes half a minute to build; it has a test of its own."""
    quick = {name: home for name, home in ENGINES.items() if name != "inductor"}
    monkeypatch.setattr(deployment, "ENGINES", quick)


@pytest.fixture
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure real engines, but do not wait before every turn until their threads sleep.

    Those pauses are most of a measurement; ``test_timing.py`` is about them, and
    ``test_auto_decides_and_says_from_what`` has them.
    """
    clocks = Clocks(busy=lambda: 0.0, sleep=lambda _seconds: None)
    monkeypatch.setattr(deployment, "measure", partial(measure, clocks=clocks))


class Timed:
    """A runner that moves a clock."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        self.clock, self.seconds, self.calls = clock, seconds, 0
        self.fidelity = (LevelFidelity("stage0", 4, 1e-6, 1.0),)

    def __call__(self, _images: object) -> list[object]:
        self.calls += 1
        self.clock[0] += self.seconds
        return []


def of(clock: list[float]) -> Clocks:
    read = partial(clock.__getitem__, 0)
    return Clocks(wall=read, busy=lambda: 0.0, sleep=lambda _seconds: None)


def test_the_smallest_median_wins() -> None:
    clock = [0.0]
    runners = {"slow": Timed(clock, 0.3), "fast": Timed(clock, 0.1), "middle": Timed(clock, 0.2)}
    lost = Candidate(runtime="lost", refusal="not installed")
    decision = measure(runners, None, shape=(1, 2, 3), refused=[lost], clocks=of(clock))
    assert decision.chosen == "fast"
    assert [one.runtime for one in decision.candidates] == ["fast", "middle", "slow", "lost"]
    assert decision.candidates[0].median_ms == pytest.approx(100)
    assert len({runner.calls for runner in runners.values()}) == 1  # they take turns
    assert decision.rounds == 6  # 8 seconds' worth of twice 0.6


def test_slow_engines_get_few_rounds_and_quick_ones_many() -> None:
    rounds = []
    for seconds in (10.0, 0.001):
        clock = [0.0]
        only = {"only": Timed(clock, seconds)}
        decision = measure(only, None, shape=(1, 1, 1), clocks=of(clock))
        rounds.append(decision.rounds)
    assert rounds == [5, 30]


def test_auto_decides_and_says_from_what(tiny: Backbone, images: np.ndarray[Any, Any]) -> None:
    runner = deploy(tiny)
    decision = runner.decision
    assert decision is not None
    assert decision.chosen == runner.runtime
    assert decision.shape == (1, 224, 224)
    assert {one.runtime for one in decision.candidates} == {"onnxruntime", "openvino", "torch"}
    assert all(one.median_ms and one.max_relative is not None for one in decision.candidates)
    assert furthest(own_maps(tiny, images), runner(images)) < 1e-5


@pytest.mark.usefixtures("without_pauses")
def test_a_decision_is_kept_and_used_again(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = deploy(tiny, input_shape=(1, 64, 64)).decision
    kept = list((tmp_path / "home" / "decisions").iterdir())
    assert len(kept) == 1

    def never(*_arguments: object, **_options: object) -> None:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(deployment, "measure", never)
        assert deploy(tiny, input_shape=(1, 64, 64)).decision == first
        with pytest.raises(AssertionError, match="measured again"):
            deploy(tiny, input_shape=(1, 64, 96))
        with pytest.raises(AssertionError, match="measured again"):
            deploy(tiny, input_shape=(1, 64, 64), remeasure=True)


@pytest.mark.usefixtures("without_pauses")
def test_a_damaged_decision_is_measured_again_with_a_word(
    tiny: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deploy(tiny, input_shape=(1, 64, 64))
    (kept,) = (tmp_path / "home" / "decisions").iterdir()
    kept.write_text('{"chosen": 1}')
    with caplog.at_level(logging.WARNING, logger="trunkline"):
        assert deploy(tiny, input_shape=(1, 64, 64)).decision is not None
    assert "the engines are measured again" in caplog.text
    assert json.loads(kept.read_text())["shape"] == [1, 64, 64]


DECISION = Decision(
    chosen="torch",
    shape=(1, 224, 224),
    rounds=5,
    candidates=(
        Candidate(runtime="torch", median_ms=1.5, best_ms=1.0, max_relative=1e-6, cosine=1.0),
        Candidate(runtime="openvino", refusal="not installed"),
    ),
)


@QUIET
@given(data=st.data())
def test_any_json_in_the_place_of_a_decision_is_one_or_none(data: st.DataObject) -> None:
    remember({"a": 1}, DECISION)
    assert recall({"a": 1}) == DECISION
    whole = json.loads(json.dumps(DECISION.to_dict()))
    place = data.draw(st.sampled_from(list(places(whole))))
    text = json.dumps(put(whole, place, data.draw(VALUES)))
    selection._path({"a": 1}).write_text(text)
    found = recall({"a": 1})
    assert found is None or isinstance(found.chosen, str)


@pytest.mark.parametrize("content", ["[" * 10**5, '"' + "x" * (2 << 20) + '"', "", "\0", "nan"])
def test_text_that_is_no_decision(content: str, caplog: pytest.LogCaptureFixture) -> None:
    remember({"a": 1}, DECISION)
    selection._path({"a": 1}).write_text(content)
    with caplog.at_level(logging.WARNING, logger="trunkline"):
        assert recall({"a": 1}) is None
    assert "no earlier decision can be read" in caplog.text


def test_a_user_without_a_home_is_measured_for_each_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TRUNKLINE_HOME", "~nobody-of-this-name")
    with caplog.at_level(logging.WARNING, logger="trunkline"):
        remember({"a": 1}, DECISION)
        assert recall({"a": 1}) is None
    assert "the decision cannot be kept" in caplog.text


@pytest.mark.usefixtures("without_pauses")
def test_a_cache_that_cannot_be_written_is_said_and_survived(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(selection, "write_atomically", full)
    with caplog.at_level(logging.WARNING, logger="trunkline"):
        assert deploy(tiny, input_shape=(1, 64, 64)).decision is not None
    assert "No space left on device" in caplog.text


@pytest.mark.usefixtures("without_pauses")
def test_an_engine_that_fails_is_listed_with_its_reason(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_arguments: object) -> Any:
        raise DeploymentError("cannot take it")

    right = deployment._engine
    monkeypatch.setattr(
        deployment,
        "_engine",
        lambda plan: fails() if plan.spec.runtime == "openvino" else right(plan),
    )
    decision = deploy(tiny, input_shape=(1, 64, 64)).decision
    assert decision is not None
    last = decision.candidates[-1]
    assert (last.runtime, last.refusal, last.median_ms) == ("openvino", "cannot take it", None)
    monkeypatch.setattr(deployment, "_engine", fails)
    with pytest.raises(DeploymentError, match=r"no engine can run .*onnxruntime: cannot take it"):
        deploy(tiny, input_shape=(1, 64, 64), remeasure=True)


@pytest.mark.usefixtures("without_pauses")
def test_threads_that_pytorch_cannot_have_leave_its_engine_out(tiny: Backbone) -> None:
    decision = deploy(tiny, input_shape=(1, 64, 64), threads=3).decision
    assert decision is not None
    refused = {one.runtime: one.refusal for one in decision.candidates if one.refusal}
    assert list(refused) == ["torch"]
    assert "torch.set_num_threads" in str(refused["torch"])


def test_bf16_where_the_processor_lacks_it_is_refused_at_once(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Processor("a processor of 2015", 2, ("avx2",))
    monkeypatch.setattr(deployment, "processor", lambda: old)
    with pytest.raises(PrecisionError, match=r"2015.*no engine gains by it; .*rehearse"):
        deploy(tiny, precision="bf16")


def test_what_a_decision_depends_on(tiny: Backbone, families: dict[str, Any]) -> None:
    def key(backbone: Backbone, **options: Any) -> str:
        arguments = {"precision": "fp32", "input_shape": None, "preprocess": False}
        plan = deployment._plan(backbone, **{**arguments, "calibration": None, **options})
        plans, _ = deployment._possible(plan, None)
        return json.dumps(deployment._key(plan, plans))

    keys = [
        key(tiny),
        key(tiny, input_shape=(1, 64, 64)),
        key(tiny, preprocess=True),
        key(families["resnet-bottleneck"].build(return_idx=(0,))),
        key(families["resnet-bottleneck"].build(act="silu")),
        key(families["dla-basic"].build()),
    ]
    assert all(one != other for one, other in itertools.combinations(keys, 2))
    assert key(families["resnet-bottleneck"].build(seed=7)) == keys[0]  # weights do not matter


@pytest.mark.usefixtures("without_pauses")
def test_auto_warns_of_int8_once(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    old = Processor("a processor of 2015", 2, ("avx2",))
    monkeypatch.setattr(deployment, "processor", lambda: old)
    with pytest.warns(EmulationWarning, match=r"no int8 dot products") as caught:
        runner = deploy(
            tiny, precision="int8", input_shape=(1, 64, 64), calibration=["examples/cat.jpg"]
        )
    assert len(caught) == 1
    assert runner.decision is not None
    assert {one.runtime for one in runner.decision.candidates} == {"onnxruntime", "openvino"}
