"""Static INT8 as QDQ pairs, placed where onnxruntime has integer kernels to fuse them into."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimize.errors import NotApplicable, first_cause
from optimize.models.data import Dataset
from optimize.models.model import FILE_NAME, Model, graphs
from optimize.passes.base import Context
from optimize.passes.files import load_proto, needs_side_file
from optimize.passes.quantizers.ranges import Method, activation_ranges

MATMUL = ("MatMul", "Gemm")
_CHANNEL_OPSET, _UPGRADED_OPSET = 13, 17
PREPARED = f"prepared-{FILE_NAME}"


@dataclass(frozen=True)
class Scheme:
    """How integers are chosen.

    Attributes:
        ops: operator types to quantize.
        per_channel: whether weights get a scale for each output channel.
        reduced: weights in 7 bits, where 8 would overflow this device's products.
        symmetric: whether zero lies in the middle of the activations' range.
        ranges: how activation ranges follow from calibration data.
    """

    ops: tuple[str, ...]
    per_channel: bool = True
    reduced: bool = False
    symmetric: bool = False
    ranges: Method = "minmax"


def quantize(
    model: Model, calibration: Dataset, scheme: Scheme, context: Context, path: Path
) -> Path:
    """Write a QDQ model.

    Args:
        model: float32.
        calibration: inputs to estimate ranges from.
        scheme: how.
        context: its folder receives intermediate files.
        path: of the result.

    Returns:
        The prepared float model that the result was made from: the same node and tensor names.
    """
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    large = needs_side_file(model)
    prepared = _prepared(model, context)
    proto = onnx.load(str(prepared), load_external_data=False)
    name_nodes(proto)
    onnx.save(proto, str(prepared))
    ranges = activation_ranges(prepared, scheme.ops, calibration, scheme.ranges, large)
    quantizer = QDQQuantizer(
        onnx.load(str(prepared)),
        scheme.per_channel,
        scheme.reduced,
        QuantType.QInt8,
        # Unsigned activations and signed weights: the pair that x86's dot products take.
        QuantType.QUInt8,
        ranges,
        [],
        [],
        list(scheme.ops),
        {
            "MatMulConstBOnly": True,
            "ActivationSymmetric": scheme.symmetric,
            "OpTypesToExcludeOutputQuantization": _float_outputs(scheme.ops),
            # It would remove a ReLU before a quantized tensor, though a branch reads it.
            "QDQKeepRemovableActivations": len([*graphs(proto.graph)]) > 1,
        },
    )
    quantizer.quantize_model()
    quantizer.model.save_model_to_file(str(path), large)
    return prepared


def _float_outputs(ops: Sequence[str]) -> list[str]:
    """Operators whose results stay in float.

    Where only matrix products are quantized, what follows them is computed in float anyway: an
    8-bit result would cost accuracy, and time to quantize and dequantize it. onnxruntime runs
    such a product as MatMulIntegerToFloat.
    """
    return list(MATMUL) if set(ops) <= set(MATMUL) else []


def name_nodes(proto: Any) -> None:
    """Give every node a name of its own, by which layers are told apart."""
    taken: set[str] = set()
    for number, node in enumerate(proto.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{number}"
        taken.add(node.name)


def _prepared(model: Model, context: Context) -> Path:
    """Infer shapes and fold what onnxruntime would fold at load, so that ranges fit its graph."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = context.folder / PREPARED
    large = needs_side_file(model)
    model = _upgraded(model, context)
    for symbolic in (True, False):
        try:
            if symbolic:
                _load_symbolic_shapes()
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


def _load_symbolic_shapes() -> None:
    """Import onnxruntime's shape inference without torch.

    Its package ``onnxruntime.tools`` imports torch where that is installed, two seconds and some
    200 MB, for a function that nothing here calls; the module itself needs none of it.

    Raises:
        ImportError: there is no sympy.
    """
    package = "onnxruntime.tools"
    if package in sys.modules:
        return
    spec = importlib.util.find_spec(package)
    if spec is None:
        return
    sys.modules[package] = importlib.util.module_from_spec(spec)
    try:
        importlib.import_module(f"{package}.symbolic_shape_infer")
    finally:
        del sys.modules[package]  # whoever imports it after us gets it whole


def _upgraded(model: Model, context: Context) -> Model:
    """Convert to an operator set whose quantize operators know channels, if need be."""
    if model.opset >= _CHANNEL_OPSET:
        return model
    import onnx
    from onnx import version_converter

    path = context.folder / f"upgraded-{FILE_NAME}"
    try:
        converted: Any = version_converter.convert_version(load_proto(model), _UPGRADED_OPSET)
        onnx.save(converted, str(path))
    except Exception as error:
        raise NotApplicable(
            f"the model's operator set {model.opset} has no quantization by channel and cannot be "
            f"converted to {_UPGRADED_OPSET}: {first_cause(error, 120)}"
        ) from error
    return Model.read(path)
