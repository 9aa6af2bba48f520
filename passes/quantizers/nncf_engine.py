"""NNCF's post-training quantization: SmoothQuant and bias correction, for OpenVINO or as ONNX."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimize.errors import NotApplicable
from optimize.models.data import Dataset
from optimize.models.model import Model
from optimize.models.run import feed, run
from optimize.passes.base import Context, PassResult
from optimize.passes.files import load_proto, save_proto, silent
from optimize.passes.quantizers.agreement import Agreement


@dataclass(frozen=True)
class Scheme:
    """What is asked of NNCF.

    Attributes:
        transformer: whether the model has attention, which is ruined if NNCF is not told.
        overflows: halves the range of onnxruntime's weights, for CPUs whose sums of 8-bit products
            overflow; for OpenVINO, NNCF's default is made.
        drop: how far the outputs' cosine to the source's may fall; NNCF's accuracy control puts
            operators back to float until it holds on the calibration samples. 0 for no control.
    """

    transformer: bool
    overflows: bool = False
    drop: float = 0.0


def quantize(model: Model, calibration: Dataset, context: Context, scheme: Scheme) -> PassResult:
    """Quantize for the runtime that will serve: OpenVINO's own format, or QDQ for onnxruntime.

    Raises:
        NotApplicable: NNCF or OpenVINO is not installed.
        TimeoutError: accuracy control did not end by the context's deadline.
    """
    nncf = _nncf()
    note = f"by NNCF {nncf.__version__} on {len(calibration)} samples"
    if scheme.drop:
        note += f", as much in float as a drop of {scheme.drop:g} in the outputs' cosine asks for"
    make = _quantizer(nncf, model, calibration, context, scheme)
    if context.runtime == "openvino":
        openvino = _openvino()
        with silent():
            quantized = make(openvino.Core().read_model(str(model.path)))
            path = context.folder / "model.xml"
            openvino.save_model(quantized, str(path), compress_to_fp16=False)
        made = Model.of("openvino", (path, path.with_suffix(".bin")), model.signature)
        return PassResult(made, True, (note,))
    with silent():
        proto = make(load_proto(model))
    shifted = unsigned_activations(proto)
    return PassResult(
        save_proto(proto, context),
        True,
        (note, f"{shifted} signed activations made unsigned, as x86's integer products take them"),
    )


def _quantizer(
    nncf: Any, model: Model, calibration: Dataset, context: Context, scheme: Scheme
) -> Callable[[Any], Any]:
    """What quantizes a model in NNCF's own form, whatever the runtime."""
    feeds = [feed(calibration.sample(i)) for i in range(len(calibration))]
    options: dict[str, Any] = {"subset_size": len(feeds)}
    if scheme.transformer:
        options["model_type"] = nncf.ModelType.TRANSFORMER
    halves = scheme.overflows and context.runtime != "openvino"
    if halves:
        advanced = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
    if not scheme.drop:
        if halves:
            options["advanced_parameters"] = advanced
        return lambda source: nncf.quantize(source, nncf.Dataset(feeds), **options)
    if halves:
        options["advanced_quantization_parameters"] = advanced
    judge = Agreement(feeds, run(model, calibration), context)
    return lambda source: nncf.quantize_with_accuracy_control(
        source,
        nncf.Dataset(feeds),
        nncf.Dataset(list(range(len(feeds)))),
        judge,
        max_drop=scheme.drop,
        **options,
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
