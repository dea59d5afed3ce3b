"""One call: a backbone on the engine that suits the machine."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trunkline.backbones.backbone import Backbone
from trunkline.errors import ConfigError, DeploymentError, PrecisionError, TrunklineError
from trunkline.heads.classifier import Classifier, as_network
from trunkline.preprocessing import is_positive_int
from trunkline.runtimes.calibration import CalibrationSource, calibration_batches
from trunkline.runtimes.engine import (
    ENGINES,
    MAX_PIXELS,
    Engine,
    Maps,
    Spec,
    check_runtime,
    check_threads,
    engine_class,
    takes_threads,
    versions_of,
)
from trunkline.runtimes.fidelity import (
    PRECISIONS,
    LevelFidelity,
    check_fidelity,
    compare_maps,
)
from trunkline.runtimes.graphs import FromPixels, example_images, unfolded_network_of
from trunkline.runtimes.processor import OFFERED, check_precision, processor
from trunkline.runtimes.provenance import provenance_of
from trunkline.runtimes.runner import Runner
from trunkline.runtimes.selection import (
    Candidate,
    Decision,
    measure,
    recall,
    remember,
)

_log = logging.getLogger(__name__)

_PROBES = ((1, 64, 96), (3, 33, 65))  # shapes that a runner for any shape is compared at
_USUAL = (1, 224, 224)  # the shape that it is measured at, where the weights do not say another


@dataclass(frozen=True)
class _Plan:
    """A backbone and how it shall run, but for the engine."""

    backbone: Backbone
    spec: Spec
    batches: Sequence[NDArray[Any]]

    # What the backbone itself makes of the images that every engine is compared with.
    expected: list[tuple[NDArray[Any], Maps]] = field(default_factory=list)

    def for_engine(self, runtime: str) -> _Plan:
        return replace(self, spec=replace(self.spec, runtime=runtime))

    @property
    def measured_shape(self) -> tuple[int, int, int]:
        """The (N, H, W) that engines are timed at."""
        if self.spec.input_shape is not None:
            return self.spec.input_shape
        stated = self.spec.preprocessing
        return (1, *stated.output_size(*stated.crop)) if stated and stated.crop else _USUAL


def deploy(
    backbone: Backbone | Classifier,
    runtime: str = "auto",
    precision: str = "fp32",
    input_shape: tuple[int, int, int] | None = None,
    preprocess: bool = False,
    threads: int | None = None,
    calibration: CalibrationSource | None = None,
    *,
    remeasure: bool = False,
) -> Runner:
    """Put a backbone on an engine, and make sure that it still computes the same maps.

    Args:
        backbone: With its weights; it is left as it is. Of a classifier the runner returns one
            array of logits ``(N, num_classes)``, and has its ``labels``.
        runtime: "torch", "inductor" (PyTorch's compiler, takes a minute), "onnxruntime",
            "openvino", or "auto": the fastest of those that are installed, for this shape, on this
            machine. What it decided is kept for the next time, see ``Runner.decision``.
        precision: "fp32"; "bf16" where the processor has it; "int8" by quantization.
        input_shape: (N, H, W) of all images, which some engines are faster for; None for any.
        preprocess: Take ``(N, H, W, 3)`` uint8 RGB pictures and normalise them inside, as the
            weights want it (``IMAGENET`` where they do not say). They have been resized before.
        threads: That one call uses; None for all cores of this process, for PyTorch's engines for
            as many as ``torch.get_num_threads()`` says: they can use no other number.
        calibration: Images for "int8", about 300 like those to come: see ``calibration_batches``.
        remeasure: Do not use an earlier decision of "auto".

    Returns:
        A runner whose maps agree with the backbone's: within 1e-4 of the largest value of each map
        in fp32, with a cosine of at least 0.999 in bf16 and 0.99 in int8.

    Raises:
        ConfigError: An argument outside what is allowed.
        NotInstalledError: The engine is missing.
        PrecisionError: The engine or the processor lacks the precision.
        FidelityError: The maps differ by more than that.
        DeploymentError: The engine cannot take the backbone, or no engine can.
        ImageError: A calibration image that cannot be read.

    Warns:
        EmulationWarning: A precision that works here but gains little or nothing.

    Example:
        >>> import torch
        >>> from trunkline import create_backbone, deploy
        >>> runner = deploy(create_backbone("resnet18"), runtime="torch")
        >>> [tuple(m.shape) for m in runner(torch.zeros(1, 3, 64, 96))][-1]
        (1, 512, 2, 3)
    """
    backbone = as_network(backbone)
    plan = _plan(backbone, precision, input_shape, preprocess, calibration)
    if runtime == "auto":
        return _deploy_fastest(plan, threads, remeasure=remeasure)
    check_runtime(runtime)
    check_precision(precision, runtime, processor())
    versions_of(runtime)
    return _build(_with_threads(plan.for_engine(runtime), threads))


def check_request(
    runtime: str,
    precision: str,
    input_shape: tuple[int, int, int] | None = None,
    threads: int | None = None,
    calibration: CalibrationSource | None = None,
) -> None:
    """Refuse what ``deploy`` would refuse whatever the backbone, while nothing has been built.

    Args:
        runtime: As for ``deploy``, and so are the others.
        precision: Of the engine.
        input_shape: (N, H, W), None for any.
        threads: None for all cores.
        calibration: Only whether it is wanted, not what it holds.

    Raises:
        ConfigError: An argument outside what is allowed.
        NotInstalledError: The engine is missing.
        PrecisionError: The engine or the processor lacks the precision.
        DeploymentError: No engine can do that here.
    """
    check_runtime(runtime)
    _check_arguments(precision, input_shape, calibration)
    check_threads(threads)
    if runtime == "auto":
        usable, refused = _usable(precision, threads)
        if not usable:
            raise _no_engine(refused)
        return
    check_precision(precision, runtime, processor(), quietly=True)
    versions_of(runtime)
    _chosen_threads(runtime, threads)


def _plan(
    backbone: Backbone,
    precision: str,
    input_shape: tuple[int, int, int] | None,
    preprocess: bool,
    calibration: CalibrationSource | None,
) -> _Plan:
    _check_arguments(precision, input_shape, calibration)
    network = unfolded_network_of(backbone, preprocess=preprocess)  # refuses what is no backbone
    shape = None if input_shape is None else (input_shape[0], input_shape[1], input_shape[2])
    batches: Sequence[NDArray[Any]] = ()
    if precision == "int8":
        one = None if shape is None else (1, *shape[1:])  # the graph that is fitted takes any N
        batches = calibration_batches(calibration, backbone, preprocess=preprocess, input_shape=one)
    spec = Spec(
        variant=backbone.variant,
        runtime="",
        precision=precision,
        levels=backbone.levels,
        returned_levels=backbone.returned_levels,
        in_channels=backbone.in_channels,
        input_shape=shape,
        preprocess=preprocess,
        preprocessing=network.preprocessing
        if isinstance(network, FromPixels)
        else backbone.stated_preprocessing,
        threads=0,
        labels=getattr(backbone, "labels", None),
    )
    plan = _Plan(backbone, spec, batches)
    plan.expected.extend(_expected(network, plan))
    return plan


def _check_arguments(
    precision: str,
    input_shape: tuple[int, int, int] | None,
    calibration: CalibrationSource | None,
) -> None:
    if precision not in PRECISIONS:
        raise ConfigError(
            f"precision={precision!r} is unknown; use one of {', '.join(PRECISIONS)}."
        )
    if input_shape is not None and (
        not isinstance(input_shape, tuple | list)
        or len(input_shape) != 3
        or not all(is_positive_int(size) for size in input_shape)
    ):
        raise ConfigError(
            f"input_shape={input_shape!r} must be (N, H, W), integers from 1 on, or None for any."
        )
    if input_shape is not None and math.prod(input_shape) > MAX_PIXELS:
        raise ConfigError(
            f"input_shape={input_shape!r} has {math.prod(input_shape)} pixels, and {MAX_PIXELS} is "
            "the most of one call; use smaller batches, or input_shape=None."
        )
    if calibration is not None and precision != "int8":
        raise ConfigError(
            f"calibration images are for precision='int8', and precision is {precision!r}; "
            "leave one of them out."
        )


def _expected(network: torch.nn.Module, plan: _Plan) -> list[tuple[NDArray[Any], Maps]]:
    """Run the backbone itself on random images, or on photos where int8 is to be judged."""
    n = None if plan.spec.input_shape is None else plan.spec.input_shape[0]
    if plan.batches:
        photos = list(islice(cycle(plan.batches), n)) if n else plan.batches[:3]
        joined = [np.concatenate(photos)] if n else photos
        images = [torch.from_numpy(batch) for batch in joined]
    else:
        shape = plan.spec.input_shape
        images = [
            example_images(plan.backbone, *size, preprocess=plan.spec.preprocess)
            for size in (_PROBES if shape is None else (shape,))
        ]
    with torch.inference_mode():
        return [(one.numpy(), [m.numpy() for m in network(one)]) for one in images]


def _with_threads(plan: _Plan, threads: int | None) -> _Plan:
    """Settle how many threads a call uses."""
    chosen = _chosen_threads(plan.spec.runtime, threads)
    return replace(plan, spec=replace(plan.spec, threads=chosen))


def _chosen_threads(runtime: str, threads: int | None) -> int:
    check_threads(threads)
    if takes_threads(runtime):
        return threads or processor().cores
    if threads in (None, torch.get_num_threads()):
        return torch.get_num_threads()
    raise ConfigError(
        f"threads={threads} cannot be chosen for runtime={runtime!r}: PyTorch has one number for "
        f"the whole process, now {torch.get_num_threads()}; use torch.set_num_threads, or "
        "runtime='onnxruntime' or 'openvino'."
    )


def _build(plan: _Plan, decision: Decision | None = None) -> Runner:
    """Build an engine and compare its maps with the backbone's."""
    engine = _engine(plan)
    worst: tuple[LevelFidelity, ...] = ()
    for images, expected in plan.expected:
        report = compare_maps(plan.spec.returned_levels, expected, engine.run(images))
        check_fidelity(report, plan.spec.precision, f"runtime {plan.spec.runtime!r}")
        worst = report if not worst else tuple(map(_worse, worst, report))
    provenance = provenance_of(plan.backbone)
    return Runner(engine, plan.spec, worst, provenance=provenance, decision=decision)


def _worse(one: LevelFidelity, other: LevelFidelity) -> LevelFidelity:
    return replace(
        one,
        max_relative=max(one.max_relative, other.max_relative),
        cosine=min(one.cosine, other.cosine),
    )


def _engine(plan: _Plan) -> Engine:
    spec = plan.spec
    kind = engine_class(spec.runtime)
    if not takes_threads(spec.runtime):
        engine: Engine = kind(plan.backbone, spec)
        return engine
    from trunkline.runtimes.onnx_writer import onnx_model

    # Of any size: the engine fixes the shape itself, to that of a thread's part of a batch.
    graph: Any = onnx_model(plan.backbone, preprocess=spec.preprocess)
    if spec.precision == "int8":
        return _quantized(kind, graph, plan)
    made: Engine = kind(graph.SerializeToString(), spec)
    return made


def _quantized(kind: Any, graph: Any, plan: _Plan) -> Engine:
    from trunkline.runtimes.quantization import quantize_onnx, quantize_openvino

    if plan.spec.runtime == "onnxruntime":
        engine: Engine = kind(quantize_onnx(graph, plan.batches).SerializeToString(), plan.spec)
    else:
        engine = kind(
            quantize_openvino(kind.read(graph.SerializeToString()), plan.batches), plan.spec
        )
    return engine


def _deploy_fastest(plan: _Plan, threads: int | None, *, remeasure: bool) -> Runner:
    """Build every engine that there is, time them in turns, and keep the fastest."""
    plans, refused = _possible(plan, threads)
    key = _key(plan, plans)
    known = None if remeasure else recall(key)
    if known is not None and known.chosen in plans:
        _log.info("auto: %s, as decided before", known.chosen)
        return _build(plans[known.chosen], known)
    runners: dict[str, Runner] = {}
    for runtime, one in plans.items():
        _log.info("auto: building %s", runtime)
        try:
            runners[runtime] = _build(one)
        except TrunklineError as error:
            refused.append(Candidate(runtime=runtime, refusal=str(error)))
    if not runners:
        raise _no_engine(refused)
    shape = plan.measured_shape
    images = example_images(plan.backbone, *shape, preprocess=plan.spec.preprocess).numpy()
    decision = measure(runners, images, shape=shape, refused=refused)
    remember(key, decision)
    chosen = runners[decision.chosen]
    chosen.decision = decision
    return chosen


def _no_engine(refused: Sequence[Candidate]) -> DeploymentError:
    reasons = "; ".join(f"{one.runtime}: {one.refusal}" for one in refused)
    return DeploymentError(f"no engine can run the backbone here: {reasons}")


def _possible(plan: _Plan, threads: int | None) -> tuple[dict[str, _Plan], list[Candidate]]:
    """Return a plan for each engine that may be tried, and why the others may not."""
    precision = plan.spec.precision
    usable, refused = _usable(precision, threads)
    if precision == "int8" and usable:
        check_precision("int8", usable[0], processor())
    return {one: _with_threads(plan.for_engine(one), threads) for one in usable}, refused


def _usable(precision: str, threads: int | None) -> tuple[list[str], list[Candidate]]:
    """Return the engines that may be tried, and why the others may not."""
    here = processor()
    if precision == "bf16" and not here.has_bf16:
        raise PrecisionError(
            f"precision='bf16': {here.describe()} has no bf16 arithmetic, so no engine gains by "
            "it; use precision='fp32', or runtime='torch' to rehearse its rounding."
        )
    usable: list[str] = []
    refused: list[Candidate] = []
    for runtime in ENGINES:
        if precision not in OFFERED[runtime]:
            continue
        try:
            check_precision(precision, runtime, here, quietly=True)  # one warning for all, later
            versions_of(runtime)
            _chosen_threads(runtime, threads)
            usable.append(runtime)
        except (DeploymentError, ConfigError) as error:
            refused.append(Candidate(runtime=runtime, refusal=str(error)))
    return usable, refused


def _key(plan: _Plan, plans: dict[str, _Plan]) -> dict[str, Any]:
    """Return all that a decision depends on; the values of the weights are none of it."""
    return {
        "network": repr(plan.backbone.architecture),
        "options": repr(plan.backbone.options),
        "spec": {**plan.spec.to_dict(), "variant": None, "labels": None},
        "measured_shape": plan.measured_shape,
        "threads": {runtime: one.spec.threads for runtime, one in plans.items()},
        "versions": {runtime: versions_of(runtime) for runtime in plans},
        "processor": processor().describe(),
    }
