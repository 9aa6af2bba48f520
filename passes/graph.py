"""Small things that several passes do to an ``onnx.ModelProto``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimize.models.model import graphs
from optimize.models.nodes import attribute

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Products:
    """Matrix products with constant weights that share one input.

    Attributes:
        input: name of the tensor.
        nodes: MatMul or Gemm nodes.
        weights: their weights as ``onnx.TensorProto``, in the graph.
    """

    input: str
    nodes: tuple[Any, ...]
    weights: tuple[Any, ...]

    def matrix(self, index: int) -> Array:
        """Weights of one product, shape (inputs, outputs)."""
        from onnx import numpy_helper

        stored: Array = numpy_helper.to_array(self.weights[index])
        return stored.T if attribute(self.nodes[index], "transB", 0) else stored

    def stacked(self) -> Array:
        """Weights of all of them side by side, shape (inputs, all outputs)."""
        return np.concatenate([self.matrix(i) for i in range(len(self.nodes))], axis=1)

    def multiply_rows(self, scale: Array) -> None:
        """Multiply all weights by ``scale``, shape (inputs,), in the graph."""
        from onnx import numpy_helper

        for index, (node, tensor) in enumerate(zip(self.nodes, self.weights, strict=True)):
            scaled = (self.matrix(index) * scale[:, None]).astype(np.float32)
            stored = scaled.T if attribute(node, "transB", 0) else scaled
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(stored), tensor.name))

    def read_from(self, name: str) -> None:
        """Let all of them take another input."""
        for node in self.nodes:
            node.input[0] = name


def products(proto: Any) -> list[Products]:
    """All float32 MatMul and Gemm nodes with constant weights of their own, by input."""
    from onnx import TensorProto

    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    reads = uses(proto)
    found: dict[str, list[Any]] = {}
    for node in proto.graph.node:
        if node.op_type not in ("MatMul", "Gemm") or node.input[0] in weights:
            continue
        tensor = weights.get(node.input[1])
        if tensor is None or len(tensor.dims) != 2 or tensor.data_type != TensorProto.FLOAT:
            continue
        if reads[tensor.name] == 1 and not attribute(node, "transA", 0):
            found.setdefault(node.input[0], []).append(node)
    return [
        Products(name, tuple(nodes), tuple(weights[node.input[1]] for node in nodes))
        for name, nodes in found.items()
    ]


def uses(proto: Any) -> Counter[str]:
    """How often each tensor is read: by nodes, those of subgraphs too, and as an output."""
    reads: Counter[str] = Counter()
    for graph in graphs(proto.graph):
        reads.update(name for node in graph.node for name in node.input)
        reads.update(value.name for value in graph.output)
    return reads


def show(graph: Any, names: Iterable[str]) -> None:
    """Make float tensors outputs of a graph, behind those that it has."""
    from onnx import TensorProto, helper

    given = {value.name for value in graph.output}
    graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in names
        if name not in given
    )


def insert_after(graph: Any, tensor: str, node: Any) -> None:
    """Put ``node`` right behind the one that makes ``tensor``; first if that is an input."""
    position = next((i + 1 for i, n in enumerate(graph.node) if tensor in n.output), 0)
    graph.node.insert(position, node)
