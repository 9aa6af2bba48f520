"""Where a call's time goes, so that two models' operators can be compared.

A profile counts the profiler's own time, and operators have other names once they are fused or
quantized. Here times are brought to what a call takes, and operators to what they compute.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from optimize.explain.evidence import FLOAT_PRODUCTS, INTEGER_PRODUCTS, Evidence

PACKED = "MatMulNBits"
PAIRS = ("QuantizeLinear", "DequantizeLinear")
CONVERSIONS = ("Cast", *PAIRS, "DynamicQuantizeLinear")
CONVOLUTIONS, MATRICES = "convolutions", "matrix products"
_FAMILIES = {
    # The last two are onnxruntime's blocked layout, which its float convolutions need.
    **dict.fromkeys(
        (
            "Conv FusedConv NhwcFusedConv NhwcConv QLinearConv ConvInteger ReorderInput "
            "ReorderOutput"
        ).split(),
        CONVOLUTIONS,
    ),
    # Attention holds the products of its inputs' weights, which are nodes of their own unfused.
    **dict.fromkeys(
        (
            "MatMul FusedMatMul Gemm FusedGemm QLinearMatMul QGemm MatMulInteger "
            "MatMulIntegerToFloat DynamicQuantizeMatMul MatMulNBits Attention QAttention"
        ).split(),
        MATRICES,
    ),
    "DynamicQuantizeLSTM": "LSTM",
    "BiasGelu": "Gelu",
    "SkipLayerNormalization": "LayerNormalization",
}


def family(op: str) -> str:
    """What an operator computes, whatever its number format."""
    return _FAMILIES.get(op, op.removeprefix("QLinear"))


@dataclass(frozen=True)
class Part:
    """Some kernels of a call: their number and nanoseconds."""

    nodes: int = 0
    ns: float = 0.0

    def __add__(self, other: Part) -> Part:
        return Part(self.nodes + other.nodes, self.ns + other.ns)

    def some(self, nodes: int) -> Part:
        """``nodes`` of its nodes, as far as it has them, at its average."""
        kept = min(max(0, nodes), self.nodes)
        return Part(kept, self.ns * kept / self.nodes) if self.nodes else Part()


@dataclass(frozen=True)
class Side:
    """A model's evidence, its kernel times freed of what the profiler added to them."""

    evidence: Evidence

    @cached_property
    def parts(self) -> dict[str, Part]:
        """The kernels of each operator type.

        The profiler adds some microseconds to every node and slows all of them down: first its
        cost for a node is taken off, then all are scaled to what a call has room for.
        """
        rows, overhead = self.evidence.kernels, self.evidence.overhead
        total = sum(row.ns for row in rows)
        room = max(0.0, self.evidence.p50_ns - (self.own_ns or 0.0))
        surplus = max(0.0, total - room) / max(self.nodes, 1)
        cost = min(overhead.profiler_ns, surplus) if overhead else surplus / 2
        net = {row.op: Part(row.nodes, max(0.0, row.ns - cost * row.nodes)) for row in rows}
        left = sum(part.ns for part in net.values())
        scale = min(1.0, room / left) if left else 1.0
        return {op: Part(part.nodes, part.ns * scale) for op, part in net.items()}

    @property
    def nodes(self) -> int:
        """Nodes that a call executes."""
        return sum(row.nodes for row in self.evidence.kernels)

    @property
    def own_ns(self) -> float | None:
        """What the runtime itself takes of a call, for the call and its nodes; None if unknown."""
        overhead = self.evidence.overhead
        return overhead.call_ns + self.nodes * overhead.node_ns if overhead else None

    @cached_property
    def families(self) -> dict[str, Part]:
        """Kernels that do the same work together, in whatever number format."""
        found: dict[str, Part] = {}
        for op, part in self.parts.items():
            found[family(op)] = found.get(family(op), Part()) + part
        return found

    def of(self, ops: Iterable[str]) -> Part:
        """The kernels of some operator types together."""
        return sum((self.parts.get(op, Part()) for op in ops), Part())

    def only(self, ops: Iterable[str]) -> dict[str, Part]:
        """The kernels of some operator types each, those that are executed."""
        return {op: self.parts[op] for op in ops if op in self.parts}

    @cached_property
    def integer(self) -> dict[str, Part]:
        """Executed products of integers."""
        return self.only(sorted(INTEGER_PRODUCTS))

    @cached_property
    def float_products(self) -> dict[str, Part]:
        """Executed products of floats."""
        return self.only(sorted(FLOAT_PRODUCTS))

    @cached_property
    def in_bytes(self) -> dict[str, Part]:
        """Executed operators other than products that take 8-bit tensors."""
        named = {op: part for op, part in self.parts.items() if op.startswith("QLinear")}
        session = self.evidence.session
        unnamed = {
            op: self.parts[op].some(count)
            for op, count in (session.in_bytes if session else ())
            if op in self.parts
        }
        return {op: p for op, p in (named | unnamed).items() if op not in INTEGER_PRODUCTS}

    @property
    def quantized(self) -> bool:
        """Whether weights or arithmetic have 8 bits or less."""
        names = (*PAIRS, "DynamicQuantizeLinear", PACKED, *INTEGER_PRODUCTS)
        return self.evidence.graph.count(*names) > 0

    @property
    def half(self) -> bool:
        """Whether most weights are float16."""
        sizes = dict(self.evidence.graph.weight_bytes)
        return sizes.get("float16", 0) > 0.5 * sum(sizes.values())

    @property
    def between_pairs(self) -> dict[str, Part]:
        """Float products with dequantized inputs: from the session's graph, else by node counts."""
        session = self.evidence.session
        if session is not None:
            counts = [(op, n) for op, n in session.dequantized if op in self.float_products]
            return {op: self.parts[op].some(count) for op, count in counts}
        if self.integer or not self.evidence.graph.count("QuantizeLinear"):
            return {}
        return self.float_products


def total(parts: dict[str, Part]) -> Part:
    """All parts together."""
    return sum(parts.values(), Part())


def named(parts: dict[str, Part]) -> str:
    """In words: the three slowest with their nodes."""
    ordered = sorted(parts.items(), key=lambda item: -item[1].ns)[:3]
    return joined([f"{part.nodes} {op}" for op, part in ordered])


def joined(words: Sequence[str]) -> str:
    """As a sentence lists things: ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def duration(ns: float) -> str:
    """With its unit, to three digits or less."""
    return f"{ns / 1e6:.3g} ms" if ns >= 1e5 else f"{ns / 1e3:.2g} µs"
