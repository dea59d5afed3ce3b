"""Engines report nothing to their makers, and leave nothing in the home folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trunkline.runtimes.telemetry import unreported

pytest.importorskip("openvino")
pytest.importorskip("nncf")
pytest.importorskip("onnxruntime")

# Every attempt is written down, also by children, and then stopped: reporters send from a process
# of their own and swallow what goes wrong there, so that a blocked socket would prove nothing.
# onnxruntime's own sockets are not seen here, but it first writes who it is into the home folder.
WATCHED = """
import os, sys
def note(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        line = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(line, (event + "\\n").encode())
        os.close(line)
        raise OSError("no network in tests")
sys.addaudithook(note)
"""

QUANTIZE = """
import numpy as np, torch
from trunkline import ResNet
from trunkline.backbones.resnet import ResNetConfig
from trunkline.runtimes.onnx_writer import onnx_model
from trunkline.runtimes.quantization import quantize_onnx, quantize_openvino
from trunkline.runtimes.telemetry import unreported
tiny = ResNet(ResNetConfig(depths=(1, 1, 1, 1), bottleneck=False, width=8))
model = onnx_model(tiny, input_shape=(1, 64, 64))
batches = [np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)]
quantize_onnx(model, batches)
with unreported():
    import openvino
quantize_openvino(openvino.Core().read_model(model.SerializeToString()), batches)
"""

RELU = """
import os
from onnx import TensorProto, helper
from trunkline.runtimes.telemetry import unreported
with unreported():
    import onnxruntime
assert "ORT_DISABLE_TELEMETRY" not in os.environ
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "graph", [x], [y])
opsets = [helper.make_opsetid("", 18)]
model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": [1.0]})
"""


def run(code: str, home: Path) -> tuple[str, list[str]]:
    """Return what code prints, and which attempts to reach the network it made."""
    attempts = home.parent / "attempts"
    # Engines look for signs of a test run and are silent then; here they must not find any.
    signs = ("CI", "TF_BUILD", "JENKINS_URL", "NNCF_CI", "NNCF_DEV", "ORT_DISABLE_TELEMETRY")
    folders = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")
    environment = {k: v for k, v in os.environ.items() if k not in (*signs, *folders)}
    environment |= {"HOME": str(home), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED + code, str(attempts)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=home,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    made = attempts.read_text().splitlines() if attempts.exists() else []
    return done.stdout + done.stderr, made


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def test_quantizing_prints_nothing_reports_nothing_and_leaves_no_file(home: Path) -> None:
    printed, attempts = run(QUANTIZE, home)
    assert printed == ""
    assert attempts == []
    assert list(home.rglob("*")) == []


def test_onnxruntime_stays_silent_after_the_import(home: Path) -> None:
    assert run(RELU, home) == ("", [])
    assert list(home.rglob("*")) == []


@pytest.mark.skipif(sys.platform == "win32", reason="the home folder is not HOME there")
def test_without_it_openvino_does_report(home: Path) -> None:
    pytest.importorskip("openvino_telemetry")
    # What the tests above rely on: these are the traces that they look for.
    _, attempts = run("import openvino, time; time.sleep(1)", home)
    assert attempts != []
    assert list(home.rglob("*")) != []


def test_what_was_masked_can_be_imported_afterwards() -> None:
    code = (
        "import json, sys; from trunkline.runtimes.telemetry import unreported\n"
        "with unreported():\n"
        "    try: import openvino_telemetry\n"
        "    except ImportError: failed = True\n"
        "    with unreported(): pass\n"
        "    inside = 'openvino_telemetry' in sys.modules\n"
        "print(json.dumps([failed, inside, 'openvino_telemetry' in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout) == [True, True, False]


def test_consent_given_before_is_suspended_and_given_back(home: Path) -> None:
    pytest.importorskip("openvino_telemetry")
    code = (
        "from openvino_telemetry import Telemetry\n"
        "from trunkline.runtimes.telemetry import unreported\n"
        "with unreported(): pass  # nobody has set it up yet\n"
        "own = Telemetry(app_name='a', app_version='1', tid='t', backend='ga4', "
        "enable_opt_in_dialog=False)\n"
        "seen = [own.consent]\n"
        "with unreported():\n"
        "    seen.append(own.consent)\n"
        "print(*seen, own.consent)"
    )
    printed, attempts = run(code, home)
    assert printed == "True False True\n"
    assert attempts == []


@pytest.mark.parametrize("own", ["0", "1"])
def test_a_users_own_switch_counts(monkeypatch: pytest.MonkeyPatch, own: str) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", own)
    with unreported():
        assert os.environ["ORT_DISABLE_TELEMETRY"] == own
    assert os.environ["ORT_DISABLE_TELEMETRY"] == own


def test_everything_is_put_back_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    before = sys.modules.get("openvino_telemetry", "absent")
    inside = None

    def fail() -> None:
        nonlocal inside
        with unreported():
            inside = os.environ["ORT_DISABLE_TELEMETRY"]
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert inside == "1"
    assert "ORT_DISABLE_TELEMETRY" not in os.environ
    assert sys.modules.get("openvino_telemetry", "absent") is before
