"""int8 graphs by post-training quantization: NNCF looks at real images and picks the scales.

What was chosen, and why (figures in docs/precision.md):

- *The range of an activation is that of all images* (least and greatest value). NNCF's default, the
  mean over the images, clips whatever is brighter than usual, and that was most of the error:
  cosines of 0.96 became 0.99.
- *Every branch has its own range.* By default what is added or concatenated shares one, which cost
  DLA's aggregation nodes as much again: 0.989 became 0.998. Other families get the same graph.
- *Asymmetric activations* (the preset "mixed"): behind a ReLU they are as exact as symmetric ones
  and cost as little, behind SiLU and its like symmetric ones waste nearly half the steps.
- *Half the range for the weights of the first convolution* (overflow fix): where a processor has no
  int8 dot products, sums of two products are clipped to 16 bits, and pictures with their broad
  bright areas are where that happens. For all layers it costs more than it saves.
- *Fast bias correction*: the slow one gave the same maps, and cannot read every DLA.
- *Target CPU*, weights per channel. NNCF leaves squeeze-and-excitation in float32; nothing else is.
"""

from __future__ import annotations

import logging
import random
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trunkline.errors import ConfigError
from trunkline.runtimes.graphs import INPUT_NAME
from trunkline.runtimes.optional import require
from trunkline.runtimes.signal_stack import signal_stack_kept
from trunkline.runtimes.telemetry import unreported

_PURPOSE = "int8 quantization"
_lock = threading.Lock()  # what is switched off meanwhile belongs to the process


def quantize_openvino(model: Any, batches: Sequence[NDArray[Any]]) -> Any:
    """Quantize an OpenVINO model to int8.

    Args:
        model: ``openvino.Model`` in float32 with one input; it is left as it is.
        batches: Of ``calibration_batches``, as the model takes them; all of them are used.

    Returns:
        An ``openvino.Model`` with the same input, outputs, names and dynamic axes, whose
        convolutions have int8 weights, but for squeeze-and-excitation. The same batches give the
        same model.

    Raises:
        ConfigError: No batches.
        NotInstalledError: NNCF or OpenVINO is not installed.
    """
    return _quantize("openvino", model, batches, None)


def _folded(model: Any) -> Any:
    """Return a copy whose constants are computed.

    The weights of a grouped convolution come out of an ONNX graph behind a reshape, through which
    NNCF does not see: it would quantize them, and keep them in float32 in the file.
    """
    passes = import_module("openvino.passes")
    copied = model.clone()
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(copied)
    return copied


def quantize_onnx(model: Any, batches: Sequence[NDArray[Any]]) -> Any:
    """Quantize an ONNX model to int8, with QuantizeLinear and DequantizeLinear nodes.

    Args:
        model: ``onnx.ModelProto`` in float32 with the input ``image``; it is left as it is.
        batches: As for ``quantize_openvino``.

    Returns:
        An ``onnx.ModelProto`` with the same input, outputs, names, dynamic axes and metadata.

    Raises:
        ConfigError: No batches.
        NotInstalledError: NNCF, ONNX or ONNX Runtime is not installed.
    """
    return _quantize("onnxruntime", model, batches, lambda batch: {INPUT_NAME: batch})


def _quantize(
    engine: str,
    model: Any,
    batches: Sequence[NDArray[Any]],
    feed: Callable[[NDArray[Any]], Any] | None,
) -> Any:
    if not batches:
        raise ConfigError(
            "int8 quantization got no calibration images; give calibration= a folder or a list "
            "of photos like those that the backbone will see, about 300 of them."
        )
    with _lock, _untouched_process():
        require(engine, _PURPOSE)
        nncf = require("nncf", _PURPOSE)
        if engine == "openvino":
            model = _folded(model)
        with _quiet(nncf):
            return nncf.quantize(
                model,
                nncf.Dataset(batches, feed),
                preset=nncf.QuantizationPreset.MIXED,
                target_device=nncf.TargetDevice.CPU,
                subset_size=len(batches),
                fast_bias_correction=True,
                advanced_parameters=_advanced(nncf),
            )


def _advanced(nncf: Any) -> Any:
    structs = nncf.common.quantization.quantizer_propagation.structs
    return nncf.AdvancedQuantizationParameters(
        overflow_fix=nncf.OverflowFix.FIRST_LAYER,
        quantizer_propagation_rule=structs.QuantizerPropagationRule.DO_NOT_MERGE_BRANCHES,
        activations_range_estimator_params=(
            nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX
        ),
    )


@contextmanager
def _untouched_process() -> Iterator[None]:
    """Put back what NNCF changes: random states, filters, logger class, signal stack."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    logger_class = logging.getLoggerClass()
    try:
        with unreported(), signal_stack_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.setLoggerClass(logger_class)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@contextmanager
def _quiet(nncf: Any) -> Iterator[None]:
    """Keep NNCF from logging and from drawing progress bars."""
    logger = logging.getLogger("nncf")
    bar = nncf.common.logging.track_progress.track
    level, draw = logger.level, bar.__init__

    def draw_nothing(self: Any, *args: Any, **options: Any) -> None:
        draw(self, *args, **{**options, "disable": True})

    logger.setLevel(logging.CRITICAL)
    bar.__init__ = draw_nothing
    try:
        yield
    finally:
        bar.__init__ = draw
        logger.setLevel(level)
