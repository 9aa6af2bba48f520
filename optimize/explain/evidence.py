"""What can be seen of a model that was measured: its graph, its session's graph, its profile.

Nothing here draws a conclusion; :mod:`optimize.explain.why` does, and
:mod:`optimize.explain.facts` looks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from optimize.models.graph import Unfused

Counts = tuple[tuple[str, int], ...]
# Matrix products and convolutions by how they compute.
FLOAT_PRODUCTS = frozenset(
    (
        "Conv FusedConv NhwcFusedConv ConvTranspose MatMul FusedMatMul Gemm FusedGemm Attention "
        "MultiHeadAttention GroupQueryAttention LSTM GRU RNN"
    ).split()
)
INTEGER_PRODUCTS = frozenset(
    (
        "QLinearConv ConvInteger QLinearMatMul QGemm MatMulInteger MatMulIntegerToFloat "
        "DynamicQuantizeMatMul QAttention DynamicQuantizeLSTM"
    ).split()
)


@dataclass(frozen=True)
class Kernel:
    """One row of the runtime's own profile: an operator type, its nodes, nanoseconds a call."""

    op: str
    nodes: int
    ns: float


@dataclass(frozen=True)
class GraphFacts:
    """What an artefact's graph shows without being run.

    Attributes:
        op_counts: nodes of each operator type, as :attr:`optimize.models.model.Model.op_counts`.
        weight_bytes: bytes of the weights of each element type, in numpy's names.
        zeros: share of zeros among the elements of large float weights; None if not counted.
        grouped: convolutions with more than one group, depthwise ones included.
        hidden_weights: products whose weights come out of nodes, though they are constant, as
            ``(product, node)`` with their number: quantizers do not see these weights.
    """

    op_counts: Counts = ()
    weight_bytes: Counts = ()
    zeros: float | None = None
    grouped: int = 0
    hidden_weights: tuple[tuple[tuple[str, str], int], ...] = ()

    def count(self, *operators: str) -> int:
        """How many nodes have one of these operators, in whatever domain."""
        return sum(n for name, n in self.op_counts if name.split("::")[-1] in operators)


@dataclass(frozen=True)
class SessionFacts:
    """The graph as the runtime executes it, after its own optimizations.

    Attributes:
        op_counts: nodes of each operator type.
        products: matrix products and convolutions by ``(operator, element type of weights)``.
        dequantized: float operators that take a dequantized tensor, with their number.
        in_bytes: operators other than products that take 8-bit tensors under their float name.
        signed: integer products that take signed activations, with their number.
        unfused: patterns that the runtime has a fusion for and did not match.
    """

    op_counts: Counts = ()
    products: tuple[tuple[tuple[str, str], int], ...] = ()
    dequantized: Counts = ()
    in_bytes: Counts = ()
    signed: Counts = ()
    unfused: tuple[Unfused, ...] = ()

    def count(self, *operators: str) -> int:
        """How many nodes have one of these operators, in whatever domain."""
        return sum(n for name, n in self.op_counts if name.split("::")[-1] in operators)


@dataclass(frozen=True)
class Overhead:
    """What the runtime itself takes, in nanoseconds.

    Attributes:
        call_ns: for a call, whatever is in it.
        node_ns: for each node.
        profiler_ns: what the profiler adds to each node's time.
    """

    call_ns: float
    node_ns: float
    profiler_ns: float


@dataclass(frozen=True)
class Evidence:
    """All that was seen of one variant.

    Attributes:
        kernels: every row of the profile, not the slowest only. The profiler's own cost is in it.
        p50_ns: of the part of a call that the runtime computes, timed without the profiler.
        session, overhead: None where they were not taken.
    """

    kernels: tuple[Kernel, ...]
    p50_ns: float
    graph: GraphFacts
    session: SessionFacts | None = None
    overhead: Overhead | None = None
    runtime: str = "onnxruntime"
    threads: int = 1


def kernels(rows: Iterable[Mapping[str, Any]]) -> tuple[Kernel, ...]:
    """Take over the rows that the worker's command ``operators`` answers."""
    return tuple(Kernel(row["op"], row["nodes"], row["ns"]) for row in rows)
