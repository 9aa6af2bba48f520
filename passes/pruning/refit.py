"""Recovery without gradients: refit the layers that read pruned channels by least squares.

Layers are taken in the order of computation. Each is given the inputs that it gets in the pruned
graph, whose earlier layers have been refitted, and the values of the original graph to reproduce,
so that the errors of earlier layers are compensated, too. Two regressions are tried:

- *direct*: the layer's outputs on its inputs (patches of them for convolutions). Exact, but for
  large kernels the patches are too long to solve for, or more than there are positions.
- *channels*: the layer's original input channels on those that it still gets, place by place; what
  stands in for a channel is then multiplied into the weights. The number of unknowns does not
  depend on the kernel or on how often a flattened channel is read.

The ridge pulls both towards the weights as cut. A fifth of the samples decides which regression
and which ridge is used, and whether any is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimize.models.data import Dataset
from optimize.passes.pruning.graph import Array, attribute, constants, put, set_nodes, values
from optimize.passes.pruning.groups import Dependencies, Keep, layer_name
from optimize.passes.pruning.layers import Layer, layers
from optimize.passes.pruning.normal import Matrix, Normal
from optimize.passes.pruning.patches import explicit_pads
from optimize.passes.pruning.regression import (
    ByChannel,
    Direct,
    Regression,
    Solution,
    as_coefficients,
)
from optimize.passes.pruning.shrink import finish, kept

RIDGES = (1e-6, 1e-4, 1e-2, 1.0)
DIRECT_MOST = 2304  # unknowns of a direct regression: 256 channels under a 3x3 kernel
ROWS_PER_UNKNOWN, ROWS_LEAST = 16, 8192
HELD_OUT = 5  # every fifth sample


@dataclass(frozen=True)
class Refit:
    """What a layer's refit did.

    Attributes:
        layer: its name.
        before: squared error of the layer's output before, as a share of the output's variance,
            on samples that were not fitted to.
        after: the same after.
    """

    layer: str
    before: float
    after: float


def refit(
    original: Any, pruned: Any, found: Dependencies, keep: Keep, samples: Dataset, seed: int
) -> tuple[Any, list[Refit]]:
    """Refit all layers that read pruned channels.

    Args:
        original: the plain graph.
        pruned: from :func:`optimize.passes.pruning.shrink.shrink`; it is not changed.
        found: the channels of ``original``.
        keep: which of them stayed.
        samples: calibration data.
        seed: for the positions that are fitted to.
    """
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(pruned)
    done = []
    for layer in layers(original, found):
        node = layer.node
        if keep[layer.inputs].all() or {attribute(node, "alpha", 1), attribute(node, "beta", 1)} != {1}:
            continue
        weights = _cut_outputs(original, layer, found, keep)
        problem = _Problem(original, result, layer, weights, keep)
        best, report = problem.solved(samples, np.random.default_rng(seed))
        if best is not None:
            _set(result, problem.left, best)
        done.append(report)
    finish(result)
    return result, done


def _cut_outputs(original: Any, layer: Layer, found: Dependencies, keep: Keep) -> _Original:
    """The layer's original weights for those of its outputs that stay."""
    weight = constants(original)[layer.node.input[1]]
    places = kept(found.uses[layer.index, 1], keep)
    axis = 1 - layer.input_axis
    outputs = places[axis]
    cut = weight if outputs is None else np.take(weight, outputs, axis)
    return _Original(layer.matrix(cut), outputs)


@dataclass(frozen=True, eq=False)
class _Original:
    """Weights (inputs, outputs, kernel), and which outputs those are; None for all."""

    weights: Matrix
    outputs: Array | None


class _Problem:
    """One layer to refit."""

    def __init__(
        self, original: Any, pruned: Any, layer: Layer, given: _Original, keep: Keep
    ) -> None:
        self._original, self._pruned, self._layer, self._given = original, pruned, layer, given
        nodes = list(pruned.graph.node)
        outputs = [node.output[0] for node in nodes]
        index = outputs.index(layer.node.output[0])
        self.left = Layer(index, nodes[index], layer.inputs[keep[layer.inputs]])
        weights = constants(pruned)
        self._array = weights[self.left.node.input[1]]
        bias = self.left.node.input[2] if len(self.left.node.input) > 2 else ""
        self._bias = np.asarray(weights.get(bias, np.zeros(1)), np.float64)

    def solved(
        self, samples: Dataset, rng: np.random.Generator
    ) -> tuple[Solution | None, Refit]:
        """The best weights and bias, None if nothing is better than the weights as cut."""
        direct, by_channel = self._regressions(len(samples), rng)
        self._collect([r for r in (direct, by_channel) if r is not None], samples)
        judge: Regression = direct or by_channel
        fitted, held_out = judge.normals
        if not held_out.rows:
            held_out = fitted
        plain = held_out.loss(judge.prior, judge.weight)
        losses = {}
        for regression in filter(None, (by_channel, direct)):
            for ridge in RIDGES:
                coefficients = regression.normals[0].solve(regression.prior, ridge)
                if regression is not judge:
                    coefficients = as_coefficients(regression.solution(coefficients))
                losses[regression, ridge] = held_out.loss(coefficients, judge.weight)
        (regression, ridge), least = min(losses.items(), key=lambda item: item[1])
        spread = max(held_out.spread(judge.weight), np.finfo(float).tiny)
        name = layer_name(self._layer.node)
        if not least < plain:
            return None, Refit(name, plain / spread, plain / spread)
        everything: Normal = regression.normals[0] + regression.normals[1]
        best = regression.solution(everything.solve(regression.prior, ridge))
        return best, Refit(name, plain / spread, least / spread)

    def _regressions(
        self, count: int, rng: np.random.Generator
    ) -> tuple[Direct | None, ByChannel]:
        node, kernel = self.left.node, self._array.shape[2:]
        channels = len(np.unique(self.left.inputs))
        by_channel = ByChannel(
            self._layer, self.left, self._given.weights, _rows(channels, count), rng
        )
        size = self.left.inputs.size * int(np.prod(kernel))
        able = node.op_type in ("Gemm", "MatMul") or (node.op_type == "Conv" and explicit_pads(node))
        if not able or size > DIRECT_MOST:
            return None, by_channel
        weights = self.left.matrix(self._array)
        most = _rows(size, count)
        return Direct(self.left, weights, kernel, self._bias, most, rng), by_channel

    def _collect(self, regressions: Sequence[Regression], samples: Dataset) -> None:
        given, made = self._layer.node.input[0], self._layer.node.output[0]
        pairs = zip(
            values(self._original, [given, made], samples),
            values(self._pruned, [given], samples),
            strict=True,
        )
        for index, ((before, wanted), (after,)) in enumerate(pairs):
            if self._given.outputs is not None:
                wanted = np.take(wanted, self._given.outputs, self._layer.channel_axis)
            for regression in regressions:
                regression.add(index % HELD_OUT == HELD_OUT - 1, before, wanted, after)


def _rows(unknowns: int, samples: int) -> int:
    """How many rows to take of each sample."""
    return -(-max(ROWS_LEAST, ROWS_PER_UNKNOWN * unknowns) // samples)


def _set(proto: Any, layer: Layer, solution: Solution) -> None:
    """Give a layer its new weights, in place."""
    matrix, more = solution
    node, known = layer.node, constants(proto)
    old = known[node.input[1]]
    name = f"{node.output[0]}.refit.weight"
    put(proto, name, layer.weight(matrix, old))
    node.input[1] = name
    if node.op_type == "MatMul":
        _add_bias(proto, node, more.astype(old.dtype))
        return
    name = f"{node.output[0]}.refit.bias"
    given = node.input[2] if len(node.input) > 2 else ""
    put(proto, name, (known.get(given, np.zeros(1)) + more).astype(old.dtype))
    node.input[:] = [*node.input[:2], name]


def _add_bias(proto: Any, node: Any, bias: Array) -> None:
    """Add to the constant that is added to a MatMul's result anyway, or add one."""
    from onnx import helper

    output, known = node.output[0], constants(proto)
    readers = [other for other in proto.graph.node if output in other.input]
    outputs = {value.name for value in proto.graph.output}
    if len(readers) == 1 and readers[0].op_type == "Add" and output not in outputs:
        adder = readers[0]
        place = 1 if adder.input[0] == output else 0
        if known.get(adder.input[place], np.zeros(0)).shape == bias.shape:
            put(proto, f"{output}.refit.bias", known[adder.input[place]] + bias)
            adder.input[place] = f"{output}.refit.bias"
            return
    put(proto, f"{output}.refit.bias", bias)
    node.output[0] = f"{output}.refit"
    nodes = list(proto.graph.node)
    at = next(i for i, other in enumerate(nodes) if other.output[0] == node.output[0])
    adder = helper.make_node("Add", [node.output[0], f"{output}.refit.bias"], [output])
    set_nodes(proto, [*nodes[: at + 1], adder, *nodes[at + 1 :]])
