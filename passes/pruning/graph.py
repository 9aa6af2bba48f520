"""What pruning needs to know of a graph: plain constants, the shapes of all tensors, values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimize.errors import InputError, NotApplicable, first_cause
from optimize.models.data import Dataset
from optimize.models.nodes import inner_graphs
from optimize.models.run import feed
from optimize.passes.base import INLINE_MOST
from optimize.passes.files import open_session

Array = NDArray[Any]
Shapes = Mapping[str, tuple[int, ...]]
_FOLDED = frozenset(
    (
        "Reshape Transpose Cast Squeeze Unsqueeze Flatten Concat Slice Gather Identity Add Sub Mul "
        "Div Sqrt Neg Reciprocal"
    ).split()
)


def plain(proto: Any) -> Any:
    """A copy whose constants are all initializers.

    What exporters compute from constants alone (a bias that is reshaped, a weight that is
    transposed) becomes an initializer, too: only those can be cut.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graph = copy.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        value = _constant(node, constants)
        if value is None:
            nodes.append(node)
        else:
            value.name = node.output[0]
            constants[value.name] = value
            graph.initializer.append(value)
    _replace(graph.node, nodes)
    _fold(copy)
    return copy


def _fold(proto: Any) -> None:
    """Replace the cheap nodes that read constants only by their values."""
    import onnx
    from onnx import numpy_helper

    graph = proto.graph
    known = {tensor.name for tensor in graph.initializer}
    chosen: list[Any] = []
    others: list[Any] = []
    for node in graph.node:
        fixed = node.op_type in _FOLDED and all(name in known for name in node.input if name)
        (chosen if fixed else others).append(node)
        known |= set(node.output) if fixed else set()
    if not chosen:
        return
    part = onnx.ModelProto()
    part.CopyFrom(proto)
    _replace(part.graph.node, chosen)
    _replace(part.graph.input, [])
    names = [name for node in chosen for name in node.output if name]
    for name, value in zip(names, evaluator(part, names)({}), strict=True):
        graph.initializer.append(numpy_helper.from_array(value, name))
    _replace(graph.node, others)


def _constant(node: Any, constants: Mapping[str, Any]) -> Any | None:
    """The tensor that a Constant, or an Identity of one, holds; None for every other node."""
    import onnx
    from onnx import helper, numpy_helper

    if node.op_type == "Identity" and node.input[0] in constants:
        tensor = onnx.TensorProto()
        tensor.CopyFrom(constants[node.input[0]])
        return tensor
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    attribute = node.attribute[0]
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return value
    if attribute.name in ("value_float", "value_floats"):
        return numpy_helper.from_array(np.asarray(value, np.float32))
    if attribute.name in ("value_int", "value_ints"):
        return numpy_helper.from_array(np.asarray(value, np.int64))
    return None


def _replace(field: Any, items: Sequence[Any]) -> None:
    kept = [_copied(item) for item in items]
    del field[:]
    field.extend(kept)


def constants(proto: Any) -> dict[str, Array]:
    """The values of all initializers of a plain graph, by name."""
    from onnx import numpy_helper

    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def _copied(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def put(proto: Any, name: str, array: Array) -> None:
    """Set an initializer, in place."""
    from onnx import numpy_helper

    tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
    for given in proto.graph.initializer:
        if given.name == name:
            given.CopyFrom(tensor)
            return
    proto.graph.initializer.append(tensor)


def set_nodes(proto: Any, nodes: Sequence[Any]) -> None:
    """Replace the nodes of a graph, in place."""
    _replace(proto.graph.node, nodes)


def evaluator(proto: Any, names: Sequence[str]) -> Callable[[Mapping[str, Array]], list[Any]]:
    """A function from one sample to the values of ``names``, any tensors of the graph.

    Raises:
        NotApplicable: the graph is too large to be held in memory as one message.
        InputError: onnxruntime cannot load it.
    """
    import onnx

    partial = onnx.ModelProto()
    partial.CopyFrom(proto)
    _replace(partial.graph.output, [onnx.ValueInfoProto(name=name) for name in names])
    if partial.ByteSize() > INLINE_MOST:
        raise NotApplicable("models of more than 2 GB cannot be pruned")
    try:
        session = open_session(partial.SerializeToString())
    except Exception as error:
        raise InputError(f"onnxruntime cannot load the graph: {first_cause(error)}") from error
    wanted = list(names)
    needed = {value.name for value in session.get_inputs()}

    def evaluate(sample: Mapping[str, Array]) -> list[Any]:
        given = {name: array for name, array in feed(sample).items() if name in needed}
        values: list[Any] = session.run(wanted, given)
        return values

    return evaluate


def values(proto: Any, names: Sequence[str], samples: Dataset) -> Iterator[list[Array]]:
    """For every sample, the values of ``names``."""
    evaluate = evaluator(proto, names)
    for index in range(len(samples)):
        yield evaluate(samples.sample(index))


def measured_shapes(proto: Any, samples: Dataset) -> Shapes:
    """The shapes of all tensors on the first sample.

    They are run, not inferred: inference leaves what depends on shape arithmetic unknown, and the
    lengths of prunable axes are the same on every sample.
    """
    names = sorted({name for node in proto.graph.node for name in node.output if name})
    found = next(values(proto, names, samples.take([0])))
    shapes = {
        name: tuple(value.shape)
        for name, value in zip(names, found, strict=True)
        if isinstance(value, np.ndarray)
    }
    shapes |= {name: tuple(array.shape) for name, array in samples.sample(0).items()}
    return shapes | {name: array.shape for name, array in constants(proto).items()}


def captured(node: Any) -> Iterable[str]:
    """Names that the node's subgraphs read, their own tensors included."""
    from optimize.models.model import graphs

    for inner in inner_graphs(node):
        for graph in graphs(inner):
            for child in graph.node:
                yield from child.input
            yield from (value.name for value in graph.output)
