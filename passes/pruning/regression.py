"""The two regressions that refit a layer, each with what turns its solution into weights."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from optimize.passes.pruning.graph import Array
from optimize.passes.pruning.layers import Layer
from optimize.passes.pruning.normal import Matrix, Normal
from optimize.passes.pruning.patches import cut_out
from optimize.passes.pruning.rows import channel_rows, some

Solution = tuple[Matrix, Matrix]  # weights (inputs, outputs, kernel), what to add to the bias


class Regression(Protocol):
    """Collects rows and turns coefficients into weights.

    Attributes:
        normals: of the rows to fit to, and of those held out.
        prior: coefficients of the weights as cut.
        weight: see :meth:`Normal.loss`; None for a plain sum of squares.
    """

    normals: tuple[Normal, Normal]
    prior: Matrix
    weight: Matrix | None

    def add(self, held_out: bool, before: Array, wanted: Array, after: Array) -> None:
        """Take rows of a sample: the layer's original input and output, and its input now."""

    def solution(self, coefficients: Matrix) -> Solution:
        """The weights that the coefficients stand for."""


class Direct:
    """Outputs on inputs.

    Args:
        layer: as in the pruned graph.
        weights: as cut, shape (inputs, outputs, kernel).
        kernel: lengths of a convolution's kernel.
        bias: of the layer, which the outputs contain.
        most: rows that are taken of one sample.
        rng: draws them.
    """

    weight: Matrix | None = None

    def __init__(
        self, layer: Layer, weights: Matrix, kernel: tuple[int, ...], bias: Array, most: int,
        rng: np.random.Generator,
    ) -> None:  # fmt: skip
        self._layer, self._kernel, self._bias = layer, kernel, bias
        self._shape, self._most, self._rng = weights.shape, most, rng
        self.prior = as_coefficients((weights, np.zeros(weights.shape[1])))
        size, outputs = len(self.prior) - 1, weights.shape[1]
        self.normals = (Normal.empty(size, outputs), Normal.empty(size, outputs))

    def add(self, held_out: bool, before: Array, wanted: Array, after: Array) -> None:
        """Take rows of a sample."""
        targets = self._layer.rows(wanted)
        places = some(len(targets), self._most, self._rng)
        seen = (
            cut_out(self._layer.node, self._kernel, after, places)
            if self._kernel
            else self._layer.rows(after)[places]
        )
        self.normals[held_out].add(
            seen.astype(np.float64), targets[places].astype(np.float64) - self._bias
        )

    def solution(self, coefficients: Matrix) -> Solution:
        """The coefficients are the weights."""
        inputs, outputs, kernel = self._shape
        turned = coefficients[:-1].reshape(inputs, kernel, outputs).transpose(0, 2, 1)
        return turned, coefficients[-1]


class ByChannel:
    """Original input channels on those that are left.

    Args:
        layer: as in the original graph.
        left: as in the pruned graph.
        weights: original weights with outputs as cut, shape (inputs, outputs, kernel).
        most: rows that are taken of one sample.
        rng: draws them.
    """

    def __init__(
        self, layer: Layer, left: Layer, weights: Matrix, most: int, rng: np.random.Generator
    ) -> None:
        self._layer, self._most, self._rng = layer, most, rng
        channels, self._places = layer.by_channel()
        stays, self._left = left.by_channel()
        self._inputs = len(left.inputs)
        padded = np.concatenate([weights, np.zeros((1, *weights.shape[1:]))])
        self._weights = padded[self._places]  # (m, k, outputs, kernel)
        rows = self._weights.transpose(1, 0, 2, 3).reshape(len(channels), -1)
        self.weight: Matrix | None = rows @ rows.T
        self.prior = np.zeros((len(stays) + 1, len(channels)))
        self.prior[np.arange(len(stays)), np.searchsorted(channels, stays)] = 1
        self.normals = (
            Normal.empty(len(stays), len(channels)),
            Normal.empty(len(stays), len(channels)),
        )

    def add(self, held_out: bool, before: Array, wanted: Array, after: Array) -> None:
        """Take rows of a sample."""
        targets = self._layer.rows(before)
        places = some(len(targets), self._most, self._rng)
        self.normals[held_out].add(
            channel_rows(self._layer.rows(after)[places], self._left),
            channel_rows(targets[places], self._places),
        )

    def solution(self, coefficients: Matrix) -> Solution:
        """Multiply what stands in for each channel into the weights that read it."""
        mixed = np.einsum("jc,mcok->mjok", coefficients[:-1], self._weights, optimize=True)
        matrix = np.zeros((self._inputs + 1, *mixed.shape[2:]))
        for places, weights in zip(self._left, mixed, strict=True):
            matrix[places] = weights  # a place of -1 is the row that is dropped
        bias = np.einsum("c,mcok->o", coefficients[-1], self._weights, optimize=True)
        return matrix[:-1], bias


def as_coefficients(solution: Solution) -> Matrix:
    """Weights and bias as the coefficients of a direct regression."""
    weights, bias = solution
    flat = weights.transpose(0, 2, 1).reshape(-1, weights.shape[1])
    return np.concatenate([flat, bias[None]])
