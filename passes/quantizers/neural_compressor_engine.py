"""neural-compressor's static INT8 of a torch module, for onnxruntime or AOTInductor.

Its graph is exported as QDQ pairs. onnxruntime runs them in integer kernels only if the weights
are integers in the file and its own fusion of MatMul and Add, which would make float products of
them, is left out.
"""

from __future__ import annotations

import copy
from typing import Any

from optimize.errors import NotApplicable, first_cause
from optimize.models.data import Dataset
from optimize.models.model import Model
from optimize.models.nodes import attribute
from optimize.passes.base import Context, PassResult
from optimize.passes.files import WITHOUT, save_proto, silent

SAMPLES = 32  # its observers keep histograms of all tensors, at about a second a sample
_CONFIG = {WITHOUT: "MatMulAddFusion;SkipLayerNormFusion"}


def quantize(model: Model, calibration: Dataset, context: Context) -> PassResult:
    """Quantize a saved module by the library's pt2e route.

    Raises:
        NotApplicable: the library is not installed, or cannot quantize this module.
    """
    try:
        from neural_compressor.torch import quantization as inc
        from neural_compressor.torch.export import export
    except ImportError as error:
        raise NotApplicable(
            "neural-compressor is not installed; install tailfit[neural-compressor]"
        ) from error
    import torch

    from optimize.models.program import dynamic_shapes, load_program

    calibration = calibration.first(SAMPLES)
    program = load_program(model.path)
    example = program.example
    with silent(), torch.no_grad():
        try:
            graph = export(
                copy.deepcopy(program.module),
                example.args,
                dynamic_shapes=dynamic_shapes(program.loaded, example),
            )
            prepared = inc.prepare(graph, quant_config=inc.StaticQuantConfig())
            for index in range(len(calibration)):
                sample = calibration.sample(index)
                prepared(*(torch.from_numpy(sample[name]) for name in example.names))
            converted = inc.convert(prepared)
            for part in converted.modules():
                part.training = False  # its eval() is not offered; exporters warn otherwise
        except Exception as error:
            raise NotApplicable(
                f"neural-compressor cannot quantize this module: {first_cause(error, 200)}"
            ) from error
        note = f"by neural-compressor on {len(calibration)} samples"
        if context.runtime == "inductor":
            return PassResult(_packaged(converted, program, model, context), True, (note,))
        return PassResult(_exported(converted, program, model, context), True, (note,))


def _packaged(converted: Any, program: Any, model: Model, context: Context) -> Model:
    import torch

    from optimize.models.program import flat_dynamic_shapes
    from optimize.passes.lower import compile_package

    path = context.folder / "model.pt2"
    exported = torch.export.export(
        converted,
        program.example.args,
        dynamic_shapes=flat_dynamic_shapes(program.example),
    )
    compile_package(exported, path)
    return Model.of("inductor", (path,), model.signature)


def _exported(converted: Any, program: Any, model: Model, context: Context) -> Model:
    import torch

    from optimize.models.program import flat_dynamic_shapes

    made = torch.onnx.export(
        converted,
        program.example.args,
        input_names=[spec.name for spec in model.signature.inputs],
        output_names=[spec.name for spec in model.signature.outputs],
        dynamic_shapes=flat_dynamic_shapes(program.example),
        dynamo=True,
        verbose=False,
    )
    if made is None:
        raise NotApplicable("the quantized module cannot be exported to ONNX")
    proto = made.model_proto
    fold_weights(proto)
    return save_proto(proto, context).configured(_CONFIG)


def fold_weights(proto: Any) -> int:
    """Compute quantized weights once: a constant through QuantizeLinear becomes an integer.

    Returns:
        How many weights were folded.
    """
    import numpy as np
    from onnx import numpy_helper

    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    folded = []
    for node in proto.graph.node:
        if node.op_type != "QuantizeLinear" or not all(name in weights for name in node.input):
            continue
        value, scale, zero = (numpy_helper.to_array(weights[name]) for name in node.input[:3])
        axis = attribute(node, "axis", 1)
        if scale.ndim:
            shape = [1] * value.ndim
            shape[axis] = -1
            scale, zero = scale.reshape(shape), zero.reshape(shape)
        limits = np.iinfo(zero.dtype)
        steps = np.rint(value / scale) + zero.astype(np.float32)
        integers = np.clip(steps, limits.min, limits.max).astype(zero.dtype)
        proto.graph.initializer.append(numpy_helper.from_array(integers, node.output[0]))
        folded.append(node)
    for node in folded:
        proto.graph.node.remove(node)
    used = {name for node in proto.graph.node for name in node.input}
    used |= {value.name for value in proto.graph.output}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return len(folded)
