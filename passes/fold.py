"""Constant folding, dead code and common subexpressions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from optimize.models.model import Model
from optimize.passes.base import Context, Pass, PassResult, changed_counts
from optimize.passes.files import load_ir, save_ir


@dataclass(frozen=True)
class Fold(Pass):
    """Compute once what does not depend on the inputs, and drop what no output needs."""

    name: ClassVar[str] = "fold"
    summary: ClassVar[str] = "constant folding, dead code, common subexpressions"
    tolerance: ClassVar[float | None] = 1e-5  # float32 constants may be rounded in another order

    def apply(self, model: Model, context: Context) -> PassResult:
        """Fold with onnxscript's optimizer; subgraphs and weights in Constant nodes included."""
        from onnx_ir.passes import common
        from onnxscript import optimizer

        graph = load_ir(model)
        if not model.count(*_SEQUENCES):
            optimizer.optimize_ir(graph, should_fold=_should_fold)
        for clean in (
            common.LiftConstantsToInitializersPass(lift_all_constants=False),
            common.CommonSubexpressionEliminationPass(),
            common.RemoveUnusedNodesPass(),
        ):
            clean(graph)
        result = save_ir(graph, model, context)
        changes = changed_counts(model, result)
        if not changes:
            return PassResult(model, False, ("nothing to fold",))
        removed = -sum(changes.values())
        return PassResult(result, True, (f"{removed} fewer nodes",))


# What onnxscript makes of sequences does not load in onnxruntime; the other clean-ups are safe.
_SEQUENCES = (
    "SplitToSequence",
    "ConcatFromSequence",
    "SequenceConstruct",
    "SequenceAt",
    "SequenceInsert",
    "SequenceErase",
)


def _should_fold(node: Any) -> bool | None:
    # Folding a DequantizeLinear of constant weights would turn INT8 weights back into floats.
    if node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        return False
    return None
