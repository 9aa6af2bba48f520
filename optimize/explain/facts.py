"""Look at a model: its graph, the graph that its session executes, and what a call costs at least.

Meant for the child process (:class:`optimize.processes.child.Child`), on the device that
serves: what a session makes of a graph depends on the CPU.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from optimize.errors import InputError, first_cause
from optimize.explain.evidence import (
    FLOAT_PRODUCTS,
    INTEGER_PRODUCTS,
    GraphFacts,
    Overhead,
    SessionFacts,
)
from optimize.models.graph import Graph, unfused_patterns
from optimize.models.model import Model
from optimize.models.nodes import attribute
from optimize.worker import session_options

_READ_MOST = 2**31 - 2**26  # weights beyond that are not read just to count their zeros
_COUNTED = 1024  # elements: smaller tensors are biases and scales, whose zeros mean nothing
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_RECURRENT = ("LSTM", "GRU", "RNN")  # which multiply by two weights
_STORES = ("Cast", "Identity", "Transpose", "QuantizeLinear", "DequantizeLinear")


def graph_facts(model: Model) -> GraphFacts:
    """Read an artefact's graph; weights of less than 2 GB are read to count their zeros."""
    import onnx

    readable = model.size_bytes < _READ_MOST
    graph = Graph(onnx.load(str(model.path), load_external_data=readable).graph)
    hidden = Counter(
        (node.op_type, source.op_type)
        for node in graph.nodes
        if node.op_type in ("MatMul", "Gemm", "Conv", "Attention", "LSTM", "GRU")
        and (source := graph.computed_constant(node, 1)) is not None
    )
    sizes: Counter[str] = Counter()
    for tensor in graph.weights:
        sizes[graph.type_of(tensor.name)] += _bytes(tensor)
    return GraphFacts(
        op_counts=model.op_counts,
        weight_bytes=tuple(sorted(sizes.items())),
        zeros=_zeros(graph) if readable else None,
        grouped=sum(attribute(node, "group", 1) > 1 for node in graph.nodes),
        hidden_weights=tuple(sorted(hidden.items())),
    )


def session_graph(
    model: Model, config: Iterable[tuple[str, str]] = (), threads: int = 1
) -> SessionFacts:
    """Let onnxruntime optimize the model as it does at load, and read the graph that it executes.

    Raises:
        InputError: onnxruntime cannot load the model.
    """
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="optimize-session-") as folder:
        path = Path(folder) / "session.onnx"
        options = session_options(dict(config), threads)
        options.optimized_model_filepath = str(path)
        side = "session.optimized_model_external_initializers_file_name"
        options.add_session_config_entry(side, "session.data")
        try:
            onnxruntime.InferenceSession(
                str(model.path), options, providers=["CPUExecutionProvider"]
            )
            graph = Graph(onnx.load(str(path), load_external_data=False).graph)
        except Exception as error:
            raise InputError(
                f"onnxruntime cannot load {model.path}: {first_cause(error)}"
            ) from error
    return _session_facts(graph)


def call_overhead(threads: int = 1) -> Overhead:
    """Time onnxruntime where there is nothing to do: on one and on 65 nodes of one element."""
    few, many = (_median_call_ns(_nothing(nodes, threads)) for nodes in (1, 65))
    node = max(0.0, (many - few) / 64)
    profiled = _profiled_node_ns(_nothing(65, threads, profiled=True))
    return Overhead(max(0.0, few - node), node, max(0.0, profiled - node))


_SIGNED_AT = {"QLinearConv": 2, "QLinearMatMul": 2, "QGemm": 2}  # input that is x's zero point
_DEQUANTIZE = "DequantizeLinear"
_PASS_BYTES_ON = frozenset("MaxPool Transpose Reshape Squeeze Unsqueeze Slice Flatten".split())


def _session_facts(graph: Graph) -> SessionFacts:
    products: Counter[tuple[str, str]] = Counter()
    dequantized: Counter[str] = Counter()
    signed: Counter[str] = Counter()
    for node in graph.nodes:
        if node.op_type in FLOAT_PRODUCTS and len(node.input) > 1:
            products[node.op_type, graph.type_of(node.input[1])] += 1
        if node.op_type != "QuantizeLinear" and any(
            source.op_type == _DEQUANTIZE for source in graph.sources(node)
        ):
            dequantized[node.op_type] += 1
        place = _SIGNED_AT.get(node.op_type)
        if place is not None and graph.type_of(node.input[place]) == "int8":
            signed[node.op_type] += 1
    return SessionFacts(
        op_counts=tuple(sorted(Counter(node.op_type for node in graph.nodes).items())),
        products=tuple(sorted(products.items())),
        dequantized=tuple(sorted(dequantized.items())),
        in_bytes=tuple(sorted(_in_bytes(graph).items())),
        signed=tuple(sorted(signed.items())),
        unfused=unfused_patterns(graph),
    )


def _in_bytes(graph: Graph) -> Counter[str]:
    """Operators that take 8-bit tensors without saying so in their names."""
    found: Counter[str] = Counter()
    in_bytes: set[str] = set()
    for node in graph.nodes:  # in the order of execution
        quantizes = node.op_type == "QuantizeLinear" or node.op_type.startswith("QLinear")
        if node.op_type in _PASS_BYTES_ON and node.input[0] in in_bytes:
            found[node.op_type] += 1
        elif not quantizes:
            continue
        in_bytes.update(node.output)
    return found


def _bytes(tensor: Any) -> int:
    from onnx import helper

    if tensor.raw_data:
        return len(tensor.raw_data)
    size = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(math.prod(tensor.dims) * size)


def _zeros(graph: Graph) -> float:
    """The share among floats that products multiply: a mask's zeros cost no product anything."""
    import numpy as np
    from onnx import numpy_helper

    elements = zeros = 0
    operands = _operands(graph)
    for tensor in graph.weights:
        known = tensor.name in operands and graph.type_of(tensor.name) in _FLOATS
        if known and math.prod(tensor.dims) >= _COUNTED:
            array = numpy_helper.to_array(tensor)
            elements += array.size
            zeros += array.size - int(np.count_nonzero(array))
    return zeros / elements if elements else 0.0


def _operands(graph: Graph) -> set[str]:
    """What products multiply, and what that is made from where it is only stored otherwise."""
    found: set[str] = set()
    for node in reversed(graph.nodes):  # readers come first
        if node.op_type in FLOAT_PRODUCTS | INTEGER_PRODUCTS:
            found.update(node.input[: 3 if node.op_type in _RECURRENT else 2])
        elif node.op_type in _STORES and found & set(node.output):
            found.update(node.input[:1])
    return found


def _nothing(nodes: int, threads: int, profiled: bool = False) -> Any:
    """A session that changes the sign of one number ``nodes`` times."""
    import onnxruntime
    from onnx import TensorProto, helper

    names = ["x", *(f"t{i}" for i in range(nodes))]
    graph = helper.make_graph(
        [helper.make_node("Neg", [names[i]], [names[i + 1]]) for i in range(nodes)],
        "nothing",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, [1])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if profiled:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(tempfile.gettempdir()) / "optimize-overhead")
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _median_call_ns(session: Any) -> float:
    import numpy as np

    feed, taken = {"x": np.ones(1, np.float32)}, []
    for _ in range(500):
        start = time.perf_counter_ns()
        session.run(None, feed)
        taken.append(time.perf_counter_ns() - start)
    return float(np.median(taken[100:]))


def _profiled_node_ns(session: Any) -> float:
    """Mean over nodes but the slowest fifth, which the machine disturbed; first calls left out.

    A median would be a whole number of microseconds, as the profiler's times are.
    """
    import numpy as np

    for _ in range(40):
        session.run(None, {"x": np.ones(1, np.float32)})
    file = Path(session.end_profiling())
    try:
        events = json.loads(file.read_text())
    finally:
        file.unlink()
    taken = [1e3 * e["dur"] for e in events if e["name"].endswith("_kernel_time")]
    steady = np.sort(taken[len(taken) // 2 :])
    return float(np.mean(steady[: 4 * len(steady) // 5]))
