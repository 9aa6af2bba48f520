"""NNCF's post-training quantization: SmoothQuant and bias correction, for OpenVINO or as ONNX."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from optimize.errors import NotApplicable
from optimize.models.data import Dataset
from optimize.models.model import Model
from optimize.models.run import feed
from optimize.passes.base import Context, PassResult
from optimize.passes.files import load_proto, save_proto, silent


def quantize(
    model: Model, calibration: Dataset, context: Context, transformer: bool, overflows: bool = False
) -> PassResult:
    """Quantize for the runtime that will serve: OpenVINO's own format, or QDQ for onnxruntime.

    ``overflows`` halves the range of onnxruntime's weights, for CPUs whose sums of 8-bit products
    overflow; for OpenVINO, NNCF's default is made.

    Raises:
        NotApplicable: NNCF or OpenVINO is not installed.
    """
    nncf = _nncf()
    options: dict[str, Any] = {"subset_size": len(calibration)}
    if transformer:
        options["model_type"] = nncf.ModelType.TRANSFORMER  # without it, attention is ruined
    samples = nncf.Dataset([feed(calibration.sample(i)) for i in range(len(calibration))])
    note = f"by NNCF {nncf.__version__} on {len(calibration)} samples"
    if context.runtime == "openvino":
        openvino = _openvino()
        with silent():
            quantized = nncf.quantize(
                openvino.Core().read_model(str(model.path)), samples, **options
            )
            path = context.folder / "model.xml"
            openvino.save_model(quantized, str(path), compress_to_fp16=False)
        made = Model.of("openvino", (path, path.with_suffix(".bin")), model.signature)
        return PassResult(made, True, (note,))
    if overflows:
        options["advanced_parameters"] = nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.ENABLE
        )
    with silent():
        proto = nncf.quantize(load_proto(model), samples, **options)
    shifted = unsigned_activations(proto)
    return PassResult(
        save_proto(proto, context),
        True,
        (note, f"{shifted} signed activations made unsigned, as x86's integer products take them"),
    )


def unsigned_activations(proto: Any) -> int:
    """Shift zero points of quantized activations from int8 to uint8; the values stay the same.

    Returns:
        How many activations were shifted.
    """
    from onnx import TensorProto, numpy_helper

    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    signed = {
        node.output[0]
        for node in proto.graph.node
        if node.op_type == "QuantizeLinear"
        and len(node.input) > 2
        and node.input[2] in weights
        and weights[node.input[2]].data_type == TensorProto.INT8
    }
    shifted: dict[str, str] = {}
    for node in proto.graph.node:
        quantizes = node.op_type == "QuantizeLinear" and node.output[0] in signed
        dequantizes = node.op_type == "DequantizeLinear" and node.input[0] in signed
        if not (quantizes or dequantizes):
            continue
        zero = node.input[2]
        if zero not in shifted:
            shifted[zero] = f"{zero}_unsigned"
            value = numpy_helper.to_array(weights[zero]).astype(np.int16) + 128
            proto.graph.initializer.append(
                numpy_helper.from_array(value.astype(np.uint8), shifted[zero])
            )
        node.input[2] = shifted[zero]
    stale = [value for value in proto.graph.value_info if value.name in signed]
    for value in stale:
        proto.graph.value_info.remove(value)
    return len(signed)


def _nncf() -> Any:
    with _unreported():
        try:
            import nncf
        except ImportError as error:
            raise NotApplicable("NNCF is not installed; install tailfit[nncf]") from error
    import logging

    nncf.set_log_level(logging.ERROR)
    return nncf


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise NotApplicable("OpenVINO is not installed; install tailfit[openvino]") from error
    return openvino


@contextlib.contextmanager
def _unreported() -> Iterator[None]:
    """Keep NNCF from reporting its use over the network."""
    import os

    os.environ.setdefault("NNCF_CI", "1")
    yield
