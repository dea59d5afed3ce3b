"""What is read from the system's own words, and what follows for the precisions."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from trunkline.errors import ConfigError, PrecisionError
from trunkline.runtimes.fidelity import PRECISIONS
from trunkline.runtimes.processor import (
    OFFERED,
    EmulationWarning,
    Processor,
    check_precision,
    container_quota,
    processor,
    read_cpuinfo,
    read_sysctl,
)

OLDER = """\
processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 7763 64-Core Processor
flags\t\t: fpu sse sse2 ssse3 fma avx f16c avx2 bmi2
bugs\t\t: spectre_v1 avx512f
"""
NEWER = """\
processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8480+
flags\t\t: fpu avx avx2 avx_vnni avx512f avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8

processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum 8480+
flags\t\t: fpu avx avx2 avx_vnni avx512f avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8
"""
ARM = """\
processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm aes asimdhp cpuid asimddp sve i8mm bf16
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""
OLD_ARM = "processor\t: 0\nmodel name\t: ARMv7 Processor rev 4\nFeatures\t: half thumb neon vfpv4\n"
APPLE = """\
machdep.cpu.brand_string: Apple M2
hw.optional.AdvSIMD: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_I8MM: 1
"""
INTEL_MAC = """\
machdep.cpu.brand_string: Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz
hw.optional.avx2_0: 1
hw.optional.avx512f: 0
"""

PLAIN = Processor("Plain", 2, ("avx2",))
FULL = Processor("Full", 64, ("amx_bf16", "amx_int8", "avx2", "avx512_vnni"))


@pytest.mark.parametrize(
    ("read", "text", "name", "flags", "bf16", "int8"),
    [
        (read_cpuinfo, OLDER, "AMD EPYC 7763 64-Core Processor", "avx2", False, False),
        (
            read_cpuinfo,
            NEWER,
            "Intel(R) Xeon(R) Platinum 8480+",
            "amx_bf16 amx_int8 avx2 avx512_bf16 avx512_vnni avx512f avx_vnni",
            True,
            True,
        ),
        (read_cpuinfo, ARM, "", "asimd asimddp bf16 i8mm", True, True),
        (read_cpuinfo, OLD_ARM, "ARMv7 Processor rev 4", "neon", False, False),
        (read_cpuinfo, "", "", "", False, False),
        (read_sysctl, APPLE, "Apple M2", "asimd asimddp bf16 i8mm", True, True),
        (read_sysctl, INTEL_MAC, "Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz", "avx2", False, False),
    ],
    ids=["avx2 only", "amx", "arm", "old arm", "nothing", "apple", "intel mac"],
)
def test_name_and_flags_are_read(
    read: Callable[[str], tuple[str, tuple[str, ...]]],
    text: str,
    name: str,
    flags: str,
    bf16: bool,
    int8: bool,
) -> None:
    assert read(text) == (name, tuple(flags.split()))
    found = Processor(name, 1, tuple(flags.split()))
    assert (found.has_bf16, found.has_int8_dot) == (bf16, int8)


def test_only_what_all_cores_have_counts() -> None:
    big_and_little = ARM + "\n" + ARM.replace(" sve i8mm bf16", "")
    assert read_cpuinfo(big_and_little)[1] == ("asimd", "asimddp")


def test_this_machine_is_described() -> None:
    found = processor()
    assert found.name
    assert found.cores >= 1
    assert found.describe().startswith(f"{found.name} ({found.cores} core")
    for flag in found.flags:
        assert flag in found.describe()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux pins so")
def test_cores_are_those_that_the_process_may_use() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from trunkline.runtimes.processor import processor; print(processor().cores)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "1\n"


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2.0),
        ("0::/seen/from/the/host\n", {"cpu.max": "400000 100000\n"}, 4.0),
        (
            "4:memory:/x\n1:cpu,cpuacct:/job\n0::/\n",
            {
                "cpu,cpuacct/job/cpu.cfs_quota_us": "50000\n",
                "cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            "1:cpu:/\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            math.inf,
        ),
        ("", {}, math.inf),
    ],
    ids=["quota", "none", "of a parent", "host's path", "version 1", "none in 1", "no groups"],
)
def test_quota_of_a_container(
    tmp_path: Path, groups: str, files: dict[str, str], quota: float
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert container_quota(groups, tmp_path) == quota


def test_every_offer_is_a_known_precision_and_fp32_is_everywhere() -> None:
    for offered in OFFERED.values():
        assert set(offered) <= set(PRECISIONS)
        assert "fp32" in offered


@pytest.mark.parametrize("runtime", OFFERED)
def test_what_a_full_processor_has_is_neither_refused_nor_warned_of(runtime: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for precision in OFFERED[runtime]:
            check_precision(precision, runtime, FULL)
        check_precision("fp32", runtime, PLAIN)


@pytest.mark.parametrize("runtime", ["torch", "inductor"])
def test_emulated_bf16_is_warned_of(runtime: str) -> None:
    message = (
        rf"precision='bf16' on {runtime}: Plain \(2 cores; avx2\) has no bf16 arithmetic "
        r"\(amx_bf16, .*\), so PyTorch emulates it, slower.*Use precision='fp32' unless"
    )
    with pytest.warns(EmulationWarning, match=message):
        check_precision("bf16", runtime, PLAIN)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_int8_without_dot_products_is_warned_of(runtime: str) -> None:
    message = (
        rf"precision='int8' on {runtime}: Plain .* has no int8 dot products \(amx_int8, .*\), "
        r"so int8 gains less than elsewhere, see docs/precision.md; measure both"
    )
    with pytest.warns(EmulationWarning, match=message):
        check_precision("int8", runtime, PLAIN)


def test_openvino_refuses_bf16_that_it_would_turn_into_fp32() -> None:
    with pytest.raises(
        PrecisionError,
        match=r"'bf16' on openvino: Plain .* has no bf16.* would compute in fp32 without saying "
        r"so; use precision='fp32'",
    ):
        check_precision("bf16", "openvino", PLAIN)


def test_a_system_that_tells_no_flags_counts_as_one_without() -> None:
    silent = Processor("Unknown", 1, ())
    with pytest.raises(
        PrecisionError, match=r"Unknown \(1 core; no instruction set that is known here\) has no"
    ):
        check_precision("bf16", "openvino", silent)


@pytest.mark.parametrize("machine", [PLAIN, FULL], ids=lambda machine: machine.name)
@pytest.mark.parametrize(
    ("precision", "runtime", "message"),
    [
        (
            "bf16",
            "onnxruntime",
            r"'bf16' on onnxruntime: ONNX Runtime has no bf16 convolutions.*; use "
            r"precision='fp32', or runtime='torch' or 'inductor' or 'openvino'\.",
        ),
        (
            "int8",
            "torch",
            r"'int8' on torch: int8 is not offered by the engines of PyTorch; use "
            r"precision='fp32', or runtime='onnxruntime' or 'openvino'\.",
        ),
        ("int8", "inductor", r"'int8' on inductor: int8 is not offered"),
    ],
)
def test_what_an_engine_does_not_offer_is_refused_everywhere(
    machine: Processor, precision: str, runtime: str, message: str
) -> None:
    with pytest.raises(PrecisionError, match=message):
        check_precision(precision, runtime, machine)


def test_unknown_words_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"precision='fp16' is unknown; use one of fp32, bf16"):
        check_precision("fp16", "torch", FULL)
    with pytest.raises(ConfigError, match=r"runtime='tensorrt' is unknown; use one of torch, ind"):
        check_precision("fp32", "tensorrt", FULL)


def test_onnx_runtime_really_has_no_bf16_convolution() -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    kind, shape = onnx.TensorProto.BFLOAT16, [1, 3, 8, 8]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w"], ["y"])],
        "one convolution",
        [onnx.helper.make_tensor_value_info("x", kind, shape)],
        [onnx.helper.make_tensor_value_info("y", kind, [1, 4, 6, 6])],
        [onnx.helper.make_tensor("w", kind, [4, 3, 3, 3], [0.0] * 108)],
    )
    # Opset 22 is the first whose Conv may be bf16 at all.
    opset = onnx.helper.make_opsetid("", 22)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    with pytest.raises(Exception, match=r"NOT_IMPLEMENTED.*Conv\(22\)"):
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_asking_needs_no_pytorch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; "
        "from trunkline.runtimes.processor import check_precision, processor; "
        "check_precision('fp32', 'openvino', processor())"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
