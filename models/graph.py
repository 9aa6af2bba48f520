"""Look around in an ONNX graph: who makes a tensor, who reads it, which patterns stand there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from optimize.models.nodes import attribute

_MATMUL = frozenset(
    "MatMul FusedMatMul Gemm QLinearMatMul MatMulInteger MatMulIntegerToFloat".split()
)
# What attention fusions expect between the two products, and what does not stand in their way.
_EXPECTED = frozenset(
    "Add Mul Div Where Softmax Transpose Reshape Cast Dropout Identity Unsqueeze".split()
)
_PAIRS = frozenset(("QuantizeLinear", "DequantizeLinear"))
_STEPS = 10  # nodes from a Softmax to its products, at most


@dataclass(frozen=True)
class Unfused:
    """A pattern that a fusion exists for and none matched.

    Attributes:
        pattern: its name.
        count: how often it stands in the graph.
        nodes: types of its nodes, in the order of the data, as at its first place.
        why: what is in the way, in words; empty if the graph does not show it.
    """

    pattern: str
    count: int
    nodes: tuple[str, ...]
    why: str = ""


class Graph:
    """One graph, with its nodes found by the tensors they make and read; subgraphs are left out."""

    def __init__(self, graph: Any) -> None:
        """Index an ``onnx.GraphProto``."""
        self.nodes = tuple(graph.node)
        self.weights = tuple(graph.initializer)
        self.outputs = tuple(value.name for value in graph.output)
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._made = {name: node for node in self.nodes for name in node.output if name}
        self._read: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                self._read.setdefault(name, []).append(node)
        self._types = {
            value.name: value.type.tensor_type.elem_type
            for value in (*graph.value_info, *graph.input, *graph.output)
        } | {tensor.name: tensor.data_type for tensor in graph.initializer}

    def source(self, tensor: str) -> Any | None:
        """The node that makes a tensor; None for inputs and weights."""
        return self._made.get(tensor)

    def sources(self, node: Any) -> list[Any]:
        """The nodes that a node's inputs come from."""
        return [self._made[name] for name in node.input if name in self._made]

    def readers(self, node: Any) -> list[Any]:
        """The nodes that read any output of a node."""
        return [reader for name in node.output for reader in self._read.get(name, ())]

    def type_of(self, tensor: str) -> str:
        """Numpy's name of a tensor's element type; ``unknown`` where the graph does not tell."""
        from onnx import helper

        found = self._types.get(tensor, 0)
        return str(helper.tensor_dtype_to_np_dtype(found)) if found else "unknown"

    def constant(self, tensor: str) -> Any | None:
        """The array of a weight or of a Constant node; None if it is neither."""
        from onnx import numpy_helper

        if tensor in self._constants:
            return numpy_helper.to_array(self._constants[tensor])
        node = self._made.get(tensor)
        if node is not None and node.op_type == "Constant":
            value = attribute(node, "value")
            return None if value is None else numpy_helper.to_array(value)
        return None

    def computed_constant(self, node: Any, place: int) -> Any | None:
        """The node that makes input ``place`` out of nothing but weights; None if none does.

        Quantize/dequantize pairs and casts do not count: they are how weights are stored.
        """
        if len(node.input) <= place:
            return None
        source = self._made.get(node.input[place])
        if source is None or source.op_type in ("DequantizeLinear", "Cast"):
            return None
        return source if self._is_constant(node.input[place], 4) else None

    def _is_constant(self, tensor: str, depth: int) -> bool:
        if not tensor or tensor in self._constants:
            return True
        node = self._made.get(tensor)
        if node is None or depth == 0 or node.op_type.startswith("Random"):
            return False
        return all(self._is_constant(name, depth - 1) for name in node.input)


def unfused_patterns(graph: Graph) -> tuple[Unfused, ...]:
    """Attention, layer normalization, GELU and batch normalization that stand there in pieces."""
    found: dict[str, list[Unfused]] = {}
    for node in graph.nodes:
        for search in _SEARCHES.get(node.op_type, ()):
            pattern = search(graph, node)
            if pattern is not None:
                found.setdefault(pattern.pattern, []).append(pattern)
    return tuple(
        Unfused(name, len(places), places[0].nodes, places[0].why) for name, places in found.items()
    )


def _attention(graph: Graph, softmax: Any) -> Unfused | None:
    """MatMul, …, Softmax, …, MatMul, each step a node that the next one reads."""
    above = _path(softmax, lambda node: graph.sources(node)[:2])
    below = _path(softmax, graph.readers)
    if above is None or below is None:
        return None
    nodes = (*reversed(above), "Softmax", *below)
    odd = [name for name in dict.fromkeys(nodes[1:-1]) if name not in _EXPECTED | _PAIRS]
    why = ""
    if odd:
        why = f"{', '.join(odd)} between its products belongs to no fusion"
    elif _PAIRS & set(nodes) or any(name not in ("MatMul", "FusedMatMul") for name in nodes[::99]):
        why = "it is quantized piece by piece, and only float products are fused"
    return Unfused("attention", 1, nodes, why)


def _path(start: Any, step: Callable[[Any], list[Any]]) -> tuple[str, ...] | None:
    """Types of the nodes from ``start``, left out, to the nearest product, breadth first."""
    edge: list[tuple[Any, tuple[str, ...]]] = [(start, ())]
    for _ in range(_STEPS):
        following = []
        for node, path in edge:
            for other in step(node):
                longer = (*path, other.op_type)
                if other.op_type in _MATMUL:
                    return longer
                following.append((other, longer))
        edge = following[:64]
    return None


def _layer_norm(graph: Graph, mean: Any) -> Unfused | None:
    """The variance of a layer norm: ReduceMean, Sub, Pow or Mul, ReduceMean."""
    for sub in _of(graph.readers(mean), "Sub"):
        for square in _of(graph.readers(sub), "Pow", "Mul"):
            if any(True for _ in _of(graph.readers(square), "ReduceMean")):
                nodes = ("ReduceMean", "Sub", square.op_type, "ReduceMean", "Sqrt", "Div")
                return Unfused("layer normalization", 1, nodes, _axes(graph, mean))
    return None


def _axes(graph: Graph, mean: Any) -> str:
    axes = attribute(mean, "axes")
    if axes is None and len(mean.input) > 1:
        given = graph.constant(mean.input[1])
        axes = None if given is None else [int(axis) for axis in given.ravel()]
    if not axes or list(axes) == [-1]:
        return ""
    shown = ", ".join(map(str, axes))
    return f"it normalizes over axis {shown}, the fused kernel over the last (-1)"


def _gelu(graph: Graph, erf: Any) -> Unfused | None:
    """Div or Mul, Erf, Add, Mul."""
    if not any(True for _ in _of(graph.readers(erf), "Add")):
        return None
    return Unfused("GELU", 1, ("Div", "Erf", "Add", "Mul"))


def _batch_norm(graph: Graph, norm: Any) -> Unfused | None:
    source = graph.source(norm.input[0])
    before = source.op_type if source is not None else "the input"
    if before not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        why = f"it follows {before}, and only a convolution or product before it can take it in"
    elif source is not None and len(graph.readers(source)) > 1:
        why = f"the {before} before it is read by other nodes too"
    else:
        why = ""
    return Unfused("batch normalization", 1, (before, "BatchNormalization"), why)


def _of(nodes: list[Any], *types: str) -> Iterator[Any]:
    return (node for node in nodes if node.op_type in types)


_Search = Callable[[Graph, Any], Unfused | None]
_SEARCHES: dict[str, tuple[_Search, ...]] = {
    "Softmax": (_attention,),
    "ReduceMean": (_layer_norm,),
    "Erf": (_gelu,),
    "BatchNormalization": (_batch_norm,),
}
