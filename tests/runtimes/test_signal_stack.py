"""OpenVINO takes a thread's signal stack; the thread has it back before anything else happens."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from trunkline import Backbone, deploy, load_runner
from trunkline.runtimes.graphs import example_images
from trunkline.runtimes.signal_stack import signal_stack, signal_stack_kept

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has this stack_t")


def seen() -> tuple[int | None, int, int]:
    found = signal_stack()
    assert found is not None
    return found.start, found.flags, found.size


@pytest.fixture
def tiny(families: dict[str, object]) -> Backbone:
    built: Backbone = families["resnet-basic"].build().eval()  # type: ignore[attr-defined]
    return built


# Of processors without int8 dot products; those that have them do not warn.
@pytest.mark.filterwarnings("ignore::trunkline.runtimes.processor.EmulationWarning")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_runners_leave_the_stack_as_it_was(tiny: Backbone, tmp_path: Path, precision: str) -> None:
    images = example_images(tiny, 2, 32, 32, preprocess=False)
    calibration = images.numpy() if precision == "int8" else None
    before = seen()
    runner = deploy(tiny, "openvino", precision, (2, 32, 32), threads=2, calibration=calibration)
    assert seen() == before
    runner(images)
    loaded = load_runner(runner.save(tmp_path / "runner"))
    loaded(images)
    assert seen() == before
    del runner, loaded
    gc.collect()
    assert seen() == before


def test_a_signal_after_the_last_model_is_gone_in_another_thread(tiny: Backbone) -> None:
    came: list[int] = []
    handler = signal.signal(signal.SIGUSR1, lambda number, _: came.append(number))
    try:
        runners = [deploy(tiny, "openvino", input_shape=(1, 32, 32))]
        thread = threading.Thread(target=runners.clear)
        thread.start()
        thread.join()
        gc.collect()
        os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, handler)
    assert came == [signal.SIGUSR1]


def test_a_block_that_raises_gives_it_back_too() -> None:
    before = seen()
    with pytest.raises(KeyError), signal_stack_kept():
        raise KeyError
    assert seen() == before
