"""Quantization to 8 bits and less, by onnxruntime."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from optimize.errors import InputError, NotApplicable, first_cause
from optimize.models.data import Dataset
from optimize.models.model import FILE_NAME, Model
from optimize.models.run import feed
from optimize.passes.base import Context, Pass, PassResult
from optimize.passes.files import load_proto, needs_side_file, silent

Mode = Literal["dynamic", "static", "weights"]
_MATMUL = ("MatMul", "Gemm")
_CONV = ("Conv", "ConvTranspose")
_RECURRENT = ("LSTM", "GRU")
_CHANNEL_OPSET, _UPGRADED_OPSET = 13, 17
_HISTOGRAM_SAMPLES = 32  # histogram calibrators keep every activation of every sample in memory
# Integer dot products that do not overflow their 16-bit intermediates.
_DOT_PRODUCT = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve"}


@dataclass(frozen=True)
class Int8(Pass):
    """Integer weights, and with ``dynamic`` and ``static`` integer arithmetic.

    ``dynamic`` takes the range of each activation at run time, ``static`` from calibration data,
    ``weights`` leaves activations in float. ``ops=auto`` is all operators for ``static`` and all
    but convolutions for ``dynamic``, whose integer convolutions are several times slower.
    """

    name: ClassVar[str] = "int8"
    summary: ClassVar[str] = "INT8 quantization: dynamic, static (QDQ) or weight-only (8 or 4 bits)"
    needs: ClassVar[str] = "mode=static: real data to calibrate on"

    mode: Mode = field(default="dynamic", metadata={"always": True})
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    per: Literal["channel", "tensor"] = "channel"
    ops: Literal["auto", "all", "matmul", "conv"] = "auto"
    bits: Literal[8, 4] = 8
    samples: int = 128

    def __post_init__(self) -> None:
        """Reject options that the mode does not have."""
        if self.mode != "static" and (self.calibration != "minmax" or self.samples != 128):
            raise InputError(f"int8: mode={self.mode} takes no calibration")
        if self.mode != "weights" and self.bits != 8:
            raise InputError(f"int8: bits={self.bits} needs mode=weights")
        if self.mode == "weights" and (self.ops != "auto" or self.per != "channel"):
            raise InputError("int8: mode=weights takes bits only")
        if self.samples < 1:
            raise InputError("int8: samples must be at least 1")

    @property
    def needs_calibration(self) -> bool:
        """Only static ranges come from data."""
        return self.mode == "static"

    def apply(self, model: Model, context: Context) -> PassResult:
        """Quantize in the chosen mode."""
        if model.quantized:
            raise NotApplicable("the model is already quantized")
        if self.mode == "weights":
            return self._weights(model, context)
        types = self._operators(model)
        with silent():
            if self.mode == "dynamic":
                self._dynamic(model, context, types)
                notes: tuple[str, ...] = ()
            else:
                notes = self._static(model, context, types)
        result = Model.read(context.folder / FILE_NAME)
        if not result.quantized:
            kinds = ", ".join(types)
            raise NotApplicable(f"none of the model's {kinds} could be quantized{_hint(model)}")
        return PassResult(result, True, (_coverage(model, result, types), *notes))

    def _operators(self, model: Model) -> list[str]:
        """List the operator types to quantize that the model has."""
        from onnxruntime.quantization import registry

        known = (
            set(registry.QDQRegistry) | set(registry.QLinearOpsRegistry)
            if self.mode == "static"
            else set(registry.IntegerOpsRegistry)
        )
        wanted = known
        if self.ops == "matmul":
            wanted = known & set(_MATMUL)
        elif self.ops == "conv":
            wanted = known & set(_CONV)
        elif self.ops == "auto" and self.mode == "dynamic":
            wanted = known - set(_CONV)
        heavy = model.count(*(wanted & {*_MATMUL, *_CONV, *_RECURRENT, "Attention"}))
        heavy += model.count("com.microsoft::Attention") if "Attention" in wanted else 0
        if not heavy:
            what = {"matmul": "MatMul or Gemm", "conv": "convolution"}.get(self.ops, "operator")
            raise NotApplicable(f"the model has no {what} that {self.mode} quantization speeds up")
        names = {name.split("::")[-1] for name, _ in model.op_counts}
        return sorted(wanted & names)

    def _dynamic(self, model: Model, context: Context, types: list[str]) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            str(model.path),
            str(context.folder / FILE_NAME),
            op_types_to_quantize=types,
            per_channel=self.per == "channel",
            reduce_range=not context.isa & _DOT_PRODUCT,
            weight_type=QuantType.QInt8,
            use_external_data_format=needs_side_file(model),
            extra_options={"MatMulConstBOnly": True},
        )

    def _static(self, model: Model, context: Context, types: list[str]) -> tuple[str, ...]:
        from onnxruntime.quantization import (
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quantize_static,
        )

        methods = {
            "minmax": CalibrationMethod.MinMax,
            "entropy": CalibrationMethod.Entropy,
            "percentile": CalibrationMethod.Percentile,
        }
        if context.calibration is None:
            raise NotApplicable("static quantization needs calibration data")
        calibration = context.calibration
        if self.calibration != "minmax":
            # Histogram calibrators stack the activations of all samples.
            calibration = calibration.take(_most_common_shape(calibration)[:_HISTOGRAM_SAMPLES])
        calibration = calibration.take(range(min(len(calibration), self.samples)))
        reduced = not context.isa & _DOT_PRODUCT
        quantize_static(
            str(_prepared(model, context)),
            str(context.folder / FILE_NAME),
            _reader(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=types,
            per_channel=self.per == "channel",
            reduce_range=reduced,
            # Unsigned activations and signed weights: the pair that x86's dot products take.
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=methods[self.calibration],
            use_external_data_format=needs_side_file(model),
            extra_options={"MatMulConstBOnly": True},
        )
        note = ("weights in 7 bits: this device's products would overflow",) if reduced else ()
        return (f"calibrated on {len(calibration)} samples", *note)

    def _weights(self, model: Model, context: Context) -> PassResult:
        import onnx
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        with silent():
            quantizer = MatMulNBitsQuantizer(
                onnx.load(str(model.path)), bits=self.bits, block_size=128, is_symmetric=True
            )
            quantizer.process()
        path = context.folder / FILE_NAME
        quantizer.model.save_model_to_file(str(path), needs_side_file(model))
        result = Model.read(path)
        packed = result.count("com.microsoft::MatMulNBits")
        if not packed:
            raise NotApplicable(f"the model has no MatMul with constant weights{_hint(model)}")
        left = result.count("MatMul")
        return PassResult(result, True, (f"{packed} MatMul in {self.bits} bits, {left} in float",))


def _hint(model: Model) -> str:
    if not model.count("Constant"):
        return ""
    return "; weights in Constant nodes are not seen: put fold before it"


def _coverage(before: Model, after: Model, types: list[str]) -> str:
    total = before.count(*types)
    pairs = after.count("QuantizeLinear", "DynamicQuantizeLinear")
    return f"{', '.join(types)} quantized ({total} nodes; {pairs} activations)"


def _prepared(model: Model, context: Context) -> Path:
    """Infer shapes and fold what onnxruntime would fold at load, so that ranges fit its graph."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = context.folder / f"prepared-{FILE_NAME}"
    large = needs_side_file(model)
    model = _upgraded(model, context)
    for symbolic in (True, False):
        try:
            quant_pre_process(
                str(model.path),
                str(path),
                skip_symbolic_shape=not symbolic,
                auto_merge=True,
                save_as_external_data=large,
                all_tensors_to_one_file=large,
            )
            return path
        except Exception:
            if not symbolic:
                raise
    return path


def _upgraded(model: Model, context: Context) -> Model:
    """Convert to an operator set whose quantize operators know channels, if need be."""
    if model.opset >= _CHANNEL_OPSET:
        return model
    import onnx
    from onnx import version_converter

    path = context.folder / f"upgraded-{FILE_NAME}"
    try:
        onnx.save(version_converter.convert_version(load_proto(model), _UPGRADED_OPSET), str(path))
    except Exception as error:
        raise NotApplicable(
            f"the model's operator set {model.opset} has no quantization by channel and cannot be "
            f"converted to {_UPGRADED_OPSET}: {first_cause(error, 120)}"
        ) from error
    return Model.read(path)


def _most_common_shape(samples: Dataset) -> list[int]:
    """Find the samples that share the shapes which most samples have."""
    groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for index in range(len(samples)):
        shapes = tuple(array.shape for array in samples.sample(index).values())
        groups.setdefault(shapes, []).append(index)
    return max(groups.values(), key=len)


def _reader(samples: Dataset) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        def __init__(self) -> None:
            self._left = iter(range(len(samples)))

        def get_next(self) -> dict[str, Any] | None:
            index = next(self._left, None)
            return None if index is None else feed(samples.sample(index))

    return Reader()
