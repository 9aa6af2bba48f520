"""Layers of a quantized model: which there are, and how some are put back to float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optimize.passes.quantizers.static import MATMUL

# What only moves numbers costs no accuracy.
_MOVES = frozenset(
    (
        "QuantizeLinear DequantizeLinear Reshape Transpose Squeeze Unsqueeze Flatten Slice Split "
        "Concat Gather MaxPool Identity"
    ).split()
)
# onnxruntime's optimizer that quantizes float weights between quantized tensors: a layer that was
# put back to float would be quantized again while it is loaded.
REQUANTIZER = "WeightBiasQuantization"


def restore(quantized: Any, reference: Any, nodes: Sequence[str]) -> Any:
    """Put layers of a QDQ model back to float.

    Args:
        quantized: QDQ ``onnx.ModelProto`` made from ``reference``.
        reference: the float model, with the same names of nodes and tensors.
        nodes: names of the layers.

    Returns:
        A copy of ``quantized`` in which these nodes read their float weights, and the float
        activations where the node that makes them still does.
    """
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(quantized)
    originals = {node.name: node for node in reference.graph.node}
    weights = {tensor.name: tensor for tensor in reference.graph.initializer}
    makers, first_makers = _makers(result), _makers(reference)
    added: set[str] = set()
    for node in result.graph.node:
        if node.name not in nodes:
            continue
        for index, name in enumerate(originals[node.name].input):
            if name not in weights:
                if _still_float(makers.get(name), first_makers.get(name), makers):
                    node.input[index] = name
                continue
            # A dequantized bias goes by the name of the original one.
            node.input[index] = f"{name}_float"
            if name not in added:
                added.add(name)
                tensor = result.graph.initializer.add()
                tensor.CopyFrom(weights[name])
                tensor.name = f"{name}_float"
    return _pruned(result)


def _makers(proto: Any) -> dict[str, Any]:
    return {name: node for node in proto.graph.node for name in node.output}


def _still_float(maker: Any, original: Any, makers: Mapping[str, Any]) -> bool:
    """Whether a tensor is what it was, and can be read in float at no other layer's cost.

    A ReLU before a quantized tensor is gone, since the range clips what it would; and a
    convolution or pooling whose result is read in float has no integer kernel. Products have.
    """
    if maker is None or original is None:
        return maker is original  # an input of the model
    if maker.op_type != original.op_type:
        return False
    quantized = any(
        name in makers and makers[name].op_type == "DequantizeLinear" for name in maker.input
    )
    return maker.op_type in MATMUL or not quantized


def _pruned(proto: Any) -> Any:
    """Drop nodes and weights that no output needs any more."""
    import onnx_ir
    from onnx_ir.passes import common

    graph = onnx_ir.from_proto(proto)
    common.RemoveUnusedNodesPass()(graph)
    return onnx_ir.to_proto(graph)


def quantized_layers(quantized: Any, reference: Any) -> list[str]:
    """Names of the nodes that compute on dequantized tensors."""
    dequantized = {
        name
        for node in quantized.graph.node
        if node.op_type == "DequantizeLinear"
        for name in node.output
    }
    known = {node.name for node in reference.graph.node}
    return [
        node.name
        for node in quantized.graph.node
        if node.op_type not in _MOVES and node.name in known and dequantized & set(node.input)
    ]
