"""What one call of a model must compute and read: from its graph and the shapes of a real call.

Shapes come from onnxruntime's own trace of one call with all graph optimizations off. Tried
instead: onnx's shape inference left 44 of 216 values of MiniLM and all convolutions of a voice
detector open, onnxruntime's symbolic inference raised on three of nine models, onnx-tool on four of
six. The trace knows every shape.

What is counted as needed is needed by every call of these shapes and by every runtime: not what is
computed from weights and shapes alone, not what an earlier node has computed, not what no output
depends on, and nothing whose shape or running hangs on values, within If, Loop and Scan or after
them, or after the like of NonZero.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from optimize.errors import InputError, first_cause
from optimize.models.data import Array
from optimize.models.macs import EITHER, INTEGER, RULES, Execution, Macs, Shape
from optimize.models.model import graphs
from optimize.models.nodes import inner_graphs
from optimize.models.run import feed

VERSION = 1
_RANDOM = frozenset({"RandomNormal", "RandomUniform", "Bernoulli", "Multinomial"})
# What they give follows from shapes, which a runtime may know before the call.
_OF_SHAPES = frozenset({"Shape", "Size"})
# Values in 8 bits stay so through these: a runtime moves the quantization across them.
_MOVES = frozenset(
    (
        "Reshape Transpose Squeeze Unsqueeze Flatten Identity Expand Slice Split Concat Gather Pad "
        "MaxPool AveragePool GlobalAveragePool Relu Clip Resize DepthToSpace SpaceToDepth Tile"
    ).split()
)
# What they give has a shape that hangs on values: by themselves, or by operands from this one on.
_SHAPED_BY_VALUES = frozenset({"NonZero", "Unique", "Compress", "NonMaxSuppression", "SequenceAt"})
_SHAPED_BY_OPERANDS = dict.fromkeys(
    (
        "Reshape Slice Expand Tile Pad TopK Resize Upsample Split Squeeze Unsqueeze OneHot "
        "CenterCropPad AffineGrid SplitToSequence"
    ).split(),
    1,
) | {"ConstantOfShape": 0, "Range": 0, "MelWeightMatrix": 0, "MaxUnpool": 2}
# Operators that multiply much, and have no rule.
_HEAVY = frozenset({"DFT", "STFT", "DeformConv", "com.microsoft.GroupQueryAttention"})
_LIGHT = frozenset(
    "com.microsoft." + name
    for name in (
        "BiasGelu BiasSplitGelu DequantizeLinear EmbedLayerNormalization FastGelu Gelu Pad "
        "QEmbedLayerNormalization QLinearAdd QLinearAveragePool QLinearConcat QLinearLeakyRelu "
        "QLinearGlobalAveragePool QLinearMul QLinearReduceMean QLinearSigmoid QLinearSoftmax "
        "QLinearWhere QuantizeLinear QuickGelu RotaryEmbedding SimplifiedLayerNormalization "
        "SkipLayerNormalization SkipSimplifiedLayerNormalization"
    ).split()
)


@dataclass(frozen=True)
class Needed:
    """Multiply-accumulates that every call needs, by what their operands may be computed in.

    Attributes:
        plain: in the type that the graph or the runtime's options give.
        integer: where an operand is in 8 bits or fewer already, so that integers may do.
    """

    plain: int = 0
    integer: int = 0

    @property
    def total(self) -> int:
        """Both."""
        return self.plain + self.integer


@dataclass(frozen=True)
class Cost:
    """What one call needs.

    Attributes:
        macs_by_op: multiply-accumulates by operator, as counters of FLOPs count them.
        direct: those that no direct kernel can leave out.
        winograd: those that are left where convolutions are computed by minimal filtering.
        weight_count, weight_bytes: numbers in the constant operands of these operators, and their
            bytes as the file has them. Tables that are only looked up are not among them.
        half: whether the graph holds weights in float16.
        unknown_ops: operators that may multiply and are not counted.
    """

    macs_by_op: Mapping[str, int]
    direct: Needed
    winograd: Needed
    weight_count: int = 0
    weight_bytes: int = 0
    half: bool = False
    unknown_ops: tuple[str, ...] = ()

    @property
    def macs(self) -> int:
        """All multiply-accumulates by the operators' formulas."""
        return sum(self.macs_by_op.values())

    @classmethod
    def from_json(cls, text: str | bytes) -> Cost:
        """Read what ``json.dumps(asdict(cost))`` wrote."""
        fields = json.loads(text)
        for name in ("direct", "winograd"):
            fields[name] = Needed(**fields[name])
        return cls(**{**fields, "unknown_ops": tuple(fields["unknown_ops"])})


def count_cost(model: Path, sample: Mapping[str, Array]) -> Cost:
    """Run one call of a model and count what it needed.

    Args:
        model: an ONNX file; external data lies beside it.
        sample: its inputs. Their shapes count, not their values.

    Raises:
        InputError: onnxruntime cannot load or run the model.
    """
    import onnx
    import onnx.inliner

    proto = onnx.load(str(model), load_external_data=False)
    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    _sort(proto.graph)
    nodes: dict[str, Any] = {}
    for graph in graphs(proto.graph):
        for node in graph.node:
            node.name = f"cost{len(nodes)}"  # the trace tells nodes apart by name
            nodes[node.name] = node
    known = _Known(proto.graph)
    needed = set(_live(proto.graph)) - known.folded - set(_repeated(proto.graph))
    tally = _Tally(known)
    for name, arguments in _trace(proto, model, sample):
        node = nodes.get(name.removesuffix("_kernel_time"))
        if node is not None and node.name not in known.folded:
            tally.add(node, *_execution(node, arguments), node.name in needed)
    return tally.cost()


def _sort(graph: Any) -> None:
    """Put makers before readers, as the format demands and some converters do not."""
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    wants = {
        i: {makers[name] for name in _reads(node) if name in makers} - {i}
        for i, node in enumerate(graph.node)
    }
    order = list(TopologicalSorter(wants).static_order())
    if order != sorted(order):
        nodes = [type(graph.node[i]).FromString(graph.node[i].SerializeToString()) for i in order]
        del graph.node[:]
        graph.node.extend(nodes)
    for node in graph.node:
        for inner in inner_graphs(node):
            _sort(inner)


def _reads(node: Any) -> Iterator[str]:
    """All names that a node reads, also within its graphs."""
    yield from node.input
    for outer in inner_graphs(node):
        for inner in graphs(outer):
            yield from (name for one in inner.node for name in one.input)
            yield from (value.name for value in inner.output)


class _Known:
    """What a graph knows before it is called.

    Attributes:
        values: names of weights, and of what is computed from weights and shapes alone.
        folded: names of the nodes that compute these.
        quantized: names of values that are in 8 bits or fewer, or were just before.
        varying: names of values whose shapes may differ between calls with inputs of one shape.
        half: whether a weight is in float16.
    """

    def __init__(self, graph: Any) -> None:
        from onnx import TensorProto

        self.values: set[str] = set()
        self.folded: set[str] = set()
        self.quantized: set[str] = set()
        self.varying: set[str] = set()
        self.half = False
        self._origins: dict[str, str] = {}
        self._stored: dict[str, tuple[int, int]] = {}
        for inner in graphs(graph):
            for tensor in inner.initializer:
                self.values.add(tensor.name)
                self._stored[tensor.name] = _stored(tensor)
                self.half |= tensor.data_type == TensorProto.FLOAT16
            for node in inner.node:
                self._visit(node)

    def _visit(self, node: Any) -> None:
        if node.op_type == "DequantizeLinear":
            self._origins[node.output[0]] = node.input[0]
            self.quantized.add(node.output[0])
        elif node.op_type in _MOVES and self.quantized.intersection(node.input):
            self.quantized.update(node.output)
        nested = any(True for _ in inner_graphs(node))
        if nested or self._varies(node):
            self.varying.update(node.output)
            return
        known = node.op_type in _OF_SHAPES or all(n in self.values for n in node.input if n)
        if known and node.op_type not in _RANDOM:
            self.values.update(node.output)
            self.folded.add(node.name)
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.HasField("t"):
                    self._stored[node.output[0]] = _stored(attribute.t)

    def _varies(self, node: Any) -> bool:
        if node.op_type in _SHAPED_BY_VALUES or self.varying.intersection(node.input):
            return True
        first = _SHAPED_BY_OPERANDS.get(node.op_type)
        shaping = [] if first is None else node.input[first:]
        return any(name and name not in self.values for name in shaping)

    def weight(self, name: str, shape: Shape, type_bytes: int) -> tuple[str, int, int]:
        """Identity, numbers and bytes of a constant operand as the file has it."""
        origin = self._origins.get(name, name)
        count = math.prod(shape)
        size = count if origin != name else count * type_bytes
        return origin, *self._stored.get(origin, (count, size))


class _Tally:
    """Sums over executions."""

    def __init__(self, known: _Known) -> None:
        self._known = known
        self._by_op: dict[str, int] = {}
        self._sums = {"direct": [0, 0], "winograd": [0, 0]}  # plain, integer
        self._weights: dict[str, tuple[int, int]] = {}
        self._unknown: set[str] = set()

    def add(self, node: Any, execution: Execution, sizes: list[int], needed: bool) -> None:
        kind = _kind(node)
        if kind not in RULES:
            if kind in _HEAVY or ("." in kind and kind not in _LIGHT):
                self._unknown.add(kind)
            return
        try:
            macs = RULES[kind](execution)
        except (ValueError, KeyError, IndexError):
            self._unknown.add(kind)
            return
        self._by_op[kind] = self._by_op.get(kind, 0) + macs.nominal
        if needed and macs.least and not self._known.varying.intersection(node.input):
            self._need(node, macs)
            self._read(node, execution, sizes)

    def _need(self, node: Any, macs: Macs) -> None:
        small = bool(self._known.quantized.intersection(node.input[:2]))
        integer = small or _kind(node) in INTEGER | EITHER
        self._sums["direct"][integer] += macs.least
        self._sums["winograd"][integer] += macs.winograd

    def _read(self, node: Any, execution: Execution, sizes: list[int]) -> None:
        packed = _kind(node) in EITHER
        for name, shape, size in zip(node.input, execution.inputs, sizes, strict=True):
            if shape is not None and len(shape) > 1 and name in self._known.values:
                origin, count, stored = self._known.weight(name, shape, size)
                two = packed and name == node.input[1]  # in 4 bits, two numbers a byte
                self._weights[origin] = (2 * count if two else count, stored)

    def cost(self) -> Cost:
        return Cost(
            macs_by_op=dict(sorted(self._by_op.items())),
            direct=Needed(*self._sums["direct"]),
            winograd=Needed(*self._sums["winograd"]),
            weight_count=sum(count for count, _ in self._weights.values()),
            weight_bytes=sum(size for _, size in self._weights.values()),
            half=self._known.half,
            unknown_ops=tuple(sorted(self._unknown)),
        )


def _kind(node: Any) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def _stored(tensor: Any) -> tuple[int, int]:
    from onnx import TensorProto, helper

    count = math.prod(tensor.dims)
    if tensor.data_type == TensorProto.STRING:
        return count, 0
    if tensor.data_type in (TensorProto.UINT4, TensorProto.INT4):
        return count, (count + 1) // 2
    return count, count * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


_TYPE_BYTES = {"double": 8, "int64": 8, "uint64": 8, "float": 4, "int32": 4, "uint32": 4}
_TYPE_BYTES |= {"float16": 2, "bfloat16": 2, "int16": 2, "uint16": 2}


def _execution(node: Any, arguments: Mapping[str, Any]) -> tuple[Execution, list[int]]:
    """Shapes by position, as the trace skips inputs that are left out; and bytes of their types."""
    from onnx import helper

    traced = iter(arguments.get("input_type_shape", ()))
    inputs: list[Shape | None] = []
    sizes = []
    for name in node.input:
        kind, shape = next(iter(next(traced, {}).items()), ("", None)) if name else ("", None)
        inputs.append(None if shape is None else tuple(shape))
        sizes.append(_TYPE_BYTES.get(kind, 1))
    outputs = [tuple(s) for o in arguments.get("output_type_shape", ()) for s in o.values()]
    attributes = {
        a.name: _text(helper.get_attribute_value(a)) for a in node.attribute if not a.graphs
    }
    return Execution(inputs, outputs, attributes), sizes


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _live(graph: Any) -> Iterator[str]:
    """Names of the nodes of this graph, not of nested ones, that its outputs depend on."""
    wanted = {value.name for value in graph.output}
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            yield node.name
            wanted.update(_reads(node))


def _repeated(graph: Any) -> Iterator[str]:
    """Names of nodes that compute what an earlier one has computed: runtimes merge them."""
    first: dict[tuple[Any, ...], Any] = {}
    same: dict[str, str] = {}
    for node in graph.node:
        inputs = tuple(same.get(name, name) for name in node.input)
        attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
        seen = first.setdefault((_kind(node), inputs, *attributes), node)
        if seen is not node and node.op_type not in _RANDOM:
            same.update(zip(node.output, seen.output, strict=False))
            yield node.name


def _trace(
    proto: Any, model: Path, sample: Mapping[str, Array]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every kernel of one call: its node's name, and what onnxruntime says of it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling = True
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(model.parent.resolve())
    )
    # Weights that are packed anew are freed, and missing in the trace.
    options.add_session_config_entry("session.disable_prepacking", "1")
    with tempfile.TemporaryDirectory(prefix="optimize-cost-") as folder:
        options.profile_file_prefix = str(Path(folder) / "trace")
        try:
            session = onnxruntime.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            session.run(None, feed(sample))
        except Exception as error:
            raise InputError(f"onnxruntime cannot run {model}: {first_cause(error)}") from error
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            yield event["name"], event["args"]
