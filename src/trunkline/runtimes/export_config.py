"""What a caller may choose of an exported file, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, TypedDict

from trunkline.errors import ConfigError, PrecisionError
from trunkline.runtimes.fidelity import PRECISIONS
from trunkline.runtimes.graphs import AXES
from trunkline.runtimes.onnx_writer import OPSETS

if TYPE_CHECKING:
    from trunkline.runtimes.calibration import CalibrationSource

FormatName = Literal["onnx", "openvino", "torch-export", "torchscript"]
DEFAULT_OPSET = 18


@dataclass(frozen=True)
class Format:
    """What one format can hold.

    Attributes:
        suffix: How its file names end.
        precisions: Of its weights and arithmetic.
        has_opset: Whether it is made of ONNX's operators, on the way or in the end.
        fixes_sizes: Whether it can hold axes of one size only.
    """

    suffix: str
    precisions: tuple[str, ...]
    has_opset: bool
    fixes_sizes: bool = True


FORMATS: dict[str, Format] = {
    "onnx": Format(".onnx", ("fp32", "int8"), has_opset=True),
    "openvino": Format(".xml", ("fp32", "int8"), has_opset=True),
    "torch-export": Format(".pt2", ("fp32",), has_opset=False),
    "torchscript": Format(".pt", ("fp32",), has_opset=False, fixes_sizes=False),
}


class ExportOptions(TypedDict, total=False):
    """The keyword-only options of an export; ``ExportConfig`` describes and checks them."""

    opset: int
    dynamic: Sequence[str]
    input_shape: Sequence[int]
    preprocess: bool
    precision: Literal["fp32", "bf16", "int8"]
    calibration: CalibrationSource | None


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What a caller may choose of an exported file, checked when it is made.

    Args:
        format: One of ``FORMATS``.
        opset: Version of ONNX's operators, one of ``OPSETS``; for ONNX and OpenVINO.
        dynamic: Which of ``AXES`` take any size, each at most once; all for TorchScript.
        input_shape: (N, H, W) of the axes that are not dynamic, each from 1 on.
        preprocess: Take ``(N, H, W, 3)`` uint8 RGB and normalise inside.
        precision: ``"fp32"``, or ``"int8"`` for ONNX and OpenVINO.
        calibration: Photos that int8 is fitted to, see ``calibration.calibration_batches``; only
            for int8, and needed there.

    Raises:
        ConfigError: A value outside what is allowed, or one that the format has no use for.
        PrecisionError: A precision that the format cannot hold.
    """

    format: str = "onnx"
    opset: int = DEFAULT_OPSET
    dynamic: Sequence[str] = AXES
    input_shape: Sequence[int] = (1, 224, 224)
    preprocess: bool = False
    precision: str = "fp32"
    calibration: CalibrationSource | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ConfigError(
                f"format={self.format!r} is unknown; use one of {', '.join(FORMATS)}."
            )
        if not isinstance(self.preprocess, bool):
            raise ConfigError(f"preprocess must be True or False, got {self.preprocess!r}.")
        self._check_opset()
        self._check_axes()
        self._check_precision()

    @property
    def kind(self) -> Format:
        """What the format can hold."""
        return FORMATS[self.format]

    def sized(self, batch: int, height: int, width: int) -> tuple[int, int, int]:
        """Return (N, H, W) with the sizes of the static axes in their places."""
        free = (batch, height, width)
        n, h, w = (
            size if axis in self.dynamic else static
            for axis, size, static in zip(AXES, free, self.input_shape, strict=True)
        )
        return n, h, w

    def _check_opset(self) -> None:
        if not self.kind.has_opset:
            if self.opset != DEFAULT_OPSET:
                raise ConfigError(
                    f"opset={self.opset!r} says nothing to format={self.format!r}, which holds "
                    "PyTorch's own operators; leave it out, or use onnx or openvino."
                )
        elif type(self.opset) is not int or self.opset not in OPSETS:
            raise ConfigError(
                f"opset={self.opset!r} cannot be written; allowed: {OPSETS[0]} to {OPSETS[-1]}, "
                f"{DEFAULT_OPSET} suits most engines."
            )

    def _check_axes(self) -> None:
        axes, sizes = _as_tuple(self.dynamic), _as_tuple(self.input_shape)
        if axes is None or any(a not in AXES for a in axes) or len(set(axes)) < len(axes):
            raise ConfigError(
                f"dynamic={self.dynamic!r} must be a sequence that names each of "
                f"{', '.join(AXES)} at most once; () fixes all three."
            )
        if sizes is None or len(sizes) != 3 or any(type(n) is not int or n < 1 for n in sizes):
            raise ConfigError(
                f"input_shape={self.input_shape!r} must be (N, H, W), integers from 1 on, "
                "such as (1, 224, 224)."
            )
        if len(axes) < len(AXES) and not self.kind.fixes_sizes:
            raise ConfigError(
                f"format={self.format!r} fixes no sizes, so dynamic={self.dynamic!r} would not "
                "hold; leave it out, or use onnx, openvino or torch-export."
            )
        object.__setattr__(self, "dynamic", axes)
        object.__setattr__(self, "input_shape", sizes)

    def _check_precision(self) -> None:
        if self.precision not in PRECISIONS:
            raise PrecisionError(
                f"precision={self.precision!r} is unknown; {self.format} holds "
                f"{' and '.join(self.kind.precisions)}."
            )
        if self.precision == "bf16":
            raise PrecisionError(
                "precision='bf16' is not written to files: engines choose bf16 when they load an "
                "fp32 file. Export fp32, or use deploy(backbone, precision='bf16')."
            )
        if self.precision not in self.kind.precisions:
            able = [name for name, one in FORMATS.items() if self.precision in one.precisions]
            raise PrecisionError(
                f"format={self.format!r} cannot hold {self.precision}; "
                f"use {' or '.join(able)}, or precision='fp32'."
            )
        if (self.precision == "int8") != (self.calibration is not None):
            raise ConfigError(
                "precision='int8' is fitted to photos; give calibration=, such as a folder of them."
                if self.calibration is None
                else f"calibration= is for precision='int8', got precision={self.precision!r}; "
                "leave it out, or ask for int8."
            )


def config_of(format_name: str, options: ExportOptions) -> ExportConfig:
    """Return the choices of a call.

    Raises:
        ConfigError: An option that does not exist, or a value outside what is allowed.
        PrecisionError: A precision that the format cannot hold.
    """
    known = {field.name for field in fields(ExportConfig)} - {"format"}
    if unknown := sorted(options.keys() - known):
        raise ConfigError(
            f"unknown option {', '.join(unknown)}; allowed: {', '.join(sorted(known))}."
        )
    return ExportConfig(format=format_name, **options)


def _as_tuple(value: object) -> tuple[object, ...] | None:
    """Return a sequence as a tuple, None for what is not one."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else None
