"""Recovery without gradients: refit the layers that read pruned channels by least squares.

Layers are taken in the order of computation. Each is given the inputs that it gets in the pruned
graph, whose earlier layers have been refitted, and the values of the original graph to reproduce,
so that the errors of earlier layers are compensated, too. The regressions in ``regression`` are
tried with several ridges, which pull towards the weights as cut. A fifth of the samples, which
nothing is fitted to, decides which solution is used, and whether any is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimize.models.data import Dataset
from optimize.models.nodes import attribute
from optimize.passes.graph import uses
from optimize.passes.pruning.graph import Array, constants, put, set_nodes, values
from optimize.passes.pruning.groups import Dependencies, Keep, layer_name
from optimize.passes.pruning.layers import Layer, layers
from optimize.passes.pruning.normal import Matrix
from optimize.passes.pruning.patches import explicit_pads
from optimize.passes.pruning.regression import Channels, Outputs, as_weights, coefficients
from optimize.passes.pruning.shrink import finish, kept

RIDGES = (1e-6, 1e-4, 1e-2, 1.0)
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
) -> tuple[Any, list[Refit], list[str]]:
    """Refit all layers that read pruned channels; also name those that cannot be refitted.

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
    done: list[Refit] = []
    left_out: list[str] = []
    known = constants(original)
    for layer in layers(original, found):
        if keep[layer.inputs].all():
            continue
        if not _solvable(layer.node, known):
            left_out.append(layer_name(layer.node))
            continue
        problem = _Problem(
            original, result, layer, _cut_outputs(original, layer, found, keep), keep
        )
        best, report = problem.solved(samples, np.random.default_rng(seed))
        if best is not None:
            _set(result, problem.left, *best)
        done.append(report)
    finish(result)
    return result, done, left_out


def _solvable(node: Any, known: Mapping[str, Array]) -> bool:
    """Scaled products are rare, and the positions of transposed convolutions overlap.

    A computed bias is no constant that could be set.
    """
    scaled = attribute(node, "alpha", 1.0) != 1 or attribute(node, "beta", 1.0) != 1
    fixed = all(name in known for name in node.input[2:] if name)
    return node.op_type != "ConvTranspose" and explicit_pads(node) and fixed and not scaled


@dataclass(frozen=True, eq=False)
class _Original:
    """Weights (inputs, outputs, kernel), and which outputs those are; None for all."""

    weights: Matrix
    outputs: Array | None


def _cut_outputs(original: Any, layer: Layer, found: Dependencies, keep: Keep) -> _Original:
    """The layer's original weights for those of its outputs that stay."""
    weight = constants(original)[layer.node.input[1]]
    axis = 1 - layer.input_axis
    outputs = kept(found.uses[layer.index, 1], keep)[axis]
    cut = weight if outputs is None else np.take(weight, outputs, axis)
    return _Original(layer.matrix(cut), outputs)


class _Problem:
    """One layer to refit."""

    def __init__(
        self, original: Any, pruned: Any, layer: Layer, given: _Original, keep: Keep
    ) -> None:
        self._original, self._pruned, self._layer, self._given = original, pruned, layer, given
        self._stays = keep[layer.inputs]
        nodes = list(pruned.graph.node)
        index = [node.output[0] for node in nodes].index(layer.node.output[0])
        self.left = Layer(index, nodes[index], layer.inputs[self._stays])
        weights = constants(pruned)
        array = weights[self.left.node.input[1]]
        self._kernel = tuple(array.shape[2:])
        self._weights = self.left.matrix(array)
        bias = self.left.node.input[2] if len(self.left.node.input) > 2 else ""
        self._bias = weights.get(bias, np.zeros(1))

    def solved(
        self, samples: Dataset, rng: np.random.Generator
    ) -> tuple[tuple[Matrix, Matrix] | None, Refit]:
        """The best weights and bias to add; None if nothing is better than the weights as cut."""
        count = len(samples)
        outputs = Outputs(self.left, self._kernel, self._weights, self._bias, count, rng)
        channels = Channels(self._layer, self._stays, self._given.weights, count, rng)
        self._collect(outputs, channels, samples)
        plain = coefficients(self._weights, np.zeros(self._weights.shape[1]))
        spread = max(outputs.judge.spread(), np.finfo(float).tiny)
        before = least = outputs.judge.loss(plain)
        best = plain
        for candidate in self._candidates(outputs, channels, plain):
            loss = outputs.judge.loss(candidate)
            if loss < least:
                best, least = candidate, loss
        report = Refit(layer_name(self._layer.node), before / spread, least / spread)
        found = None if best is plain else as_weights(best, self._weights.shape[2])
        return found, report

    def _candidates(self, outputs: Outputs, channels: Channels, plain: Matrix) -> Iterator[Matrix]:
        """All solutions; those with few rows an unknown also start from the best by channel."""
        by_channel = [found for ridge in RIDGES for found in channels.solutions(ridge)]
        yield from by_channel
        start = min((plain, *by_channel), key=outputs.judge.loss)
        for ridge in RIDGES:
            yield outputs.fitted.solve(start, ridge)

    def _collect(self, outputs: Outputs, channels: Channels, samples: Dataset) -> None:
        given, made = self._layer.node.input[0], self._layer.node.output[0]
        pairs = zip(
            values(self._original, [given, made], samples),
            values(self._pruned, [given], samples),
            strict=True,
        )
        few = len(samples) < HELD_OUT
        for index, ((before, wanted), (after,)) in enumerate(pairs):
            if self._given.outputs is not None:
                wanted = np.take(wanted, self._given.outputs, self._layer.channel_axis)
            held_out = index % HELD_OUT == HELD_OUT - 1
            if held_out or few:
                outputs.add(True, wanted, after)
            if not held_out:
                outputs.add(False, wanted, after)
                channels.add(before, after)


def _set(proto: Any, layer: Layer, matrix: Matrix, more: Matrix) -> None:
    """Give a layer its new weights and add to its bias, in place."""
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
    if uses(proto)[output] == 1 and readers and readers[0].op_type == "Add":
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
