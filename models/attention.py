"""Whether a model attends: products weighted by a softmax, fused or not."""

from __future__ import annotations

from optimize.models.model import Model, graphs

_FUSED = ("Attention", "MultiHeadAttention", "PackedAttention", "GroupQueryAttention", "QAttention")
# What may stand between a softmax and the product that it weights.
_BETWEEN = ("Dropout", "Identity", "Cast", "Where", "Mul", "Reshape", "Transpose")


def has_attention(model: Model) -> bool:
    """Look for a matrix product of two activations, one of them out of a softmax.

    A classifier's last softmax is none: nothing is multiplied by it.
    """
    names = {name.split("::")[-1] for name, _ in model.op_counts}
    if names & set(_FUSED):
        return True
    if "Softmax" not in names or "MatMul" not in names:
        return False
    import onnx

    proto = onnx.load(str(model.path), load_external_data=False)
    return any(_attends(graph) for graph in graphs(proto.graph))


def _attends(graph: object) -> bool:
    weighted: set[str] = set()
    for node in graph.node:  # type: ignore[attr-defined]  # nodes come in topological order
        if node.op_type == "Softmax" or (node.op_type in _BETWEEN and weighted & set(node.input)):
            weighted.update(node.output)
        elif node.op_type == "MatMul" and weighted & set(node.input):
            return True
    return False
