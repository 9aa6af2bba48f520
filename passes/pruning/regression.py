"""The regressions that refit a layer, each with what turns its coefficients into weights."""

from __future__ import annotations

import numpy as np

from optimize.passes.pruning.graph import Array
from optimize.passes.pruning.layers import Layer
from optimize.passes.pruning.normal import Matrix, Normal, Rows
from optimize.passes.pruning.patches import cut_out
from optimize.passes.pruning.rows import channel_rows, some

PRIMAL_MOST = 2304  # unknowns of streamed normal equations: 256 channels under a 3x3 kernel
_ENTRIES = 2**26  # numbers of stored rows: 256 MB
_STORED_MOST = 3072  # rows; a system of that size takes a second
_PER_UNKNOWN, _LEAST = 16, 8192  # rows of normal equations


class Outputs:
    """The layer's original outputs on what it reads now: patches, for convolutions.

    Exact. A part of the samples is stored to judge any coefficients by; the rest is streamed into
    normal equations or, where a large kernel makes too many unknowns, stored as well.

    Args:
        layer: as in the pruned graph.
        kernel: lengths of a convolution's kernel; empty for matrix products.
        weights: as cut, shape (inputs, outputs, kernel).
        bias: of the layer, which the outputs contain.
        samples: how many there will be.
        rng: draws positions.
    """

    def __init__(
        self, layer: Layer, kernel: tuple[int, ...], weights: Matrix, bias: Array, samples: int,
        rng: np.random.Generator,
    ) -> None:  # fmt: skip
        self._layer, self._kernel, self._bias, self._rng = layer, kernel, bias, rng
        size = weights.shape[0] * weights.shape[2]
        primal = size <= PRIMAL_MOST
        self.fitted: Normal | Rows = Normal(size, weights.shape[1]) if primal else Rows()
        self.judge = Rows()
        stored = -(-min(_STORED_MOST, _ENTRIES // size) // samples)
        self._most = (per_sample(size, samples) if primal else stored, 4 * stored)

    def add(self, held_out: bool, wanted: Array, after: Array) -> None:
        """Take rows of a sample: the layer's original output, and its input now."""
        targets = self._layer.rows(wanted)
        places = some(len(targets), self._most[held_out], self._rng)
        seen = (
            cut_out(self._layer.node, self._kernel, after, places)
            if self._kernel
            else self._layer.rows(after)[places]
        )
        rows = self.judge if held_out else self.fitted
        rows.add(seen, targets[places] - np.broadcast_to(self._bias, targets.shape)[places])


class Channels:
    """The layer's original input channels on those that are left, place by place.

    What stands in for a channel is then multiplied into the weights, so that the number of
    unknowns depends neither on the kernel nor on how often a flattened channel is read.

    Args:
        layer: as in the original graph.
        stays: for each index of its input, whether it is left.
        weights: original weights with outputs as cut, shape (inputs, outputs, kernel).
        samples: how many there will be.
        rng: draws positions.
    """

    def __init__(
        self, layer: Layer, stays: Array, weights: Matrix, samples: int, rng: np.random.Generator
    ) -> None:
        self._layer, self._stays, self._rng = layer, stays, rng
        channels, self._places = layer.by_channel()
        left, self._left = Layer(layer.index, layer.node, layer.inputs[stays]).by_channel()
        padded = np.concatenate([weights, np.zeros((1, *weights.shape[1:]))])
        self._weights = padded[self._places]  # (m, k, outputs, kernel)
        self._prior = np.zeros((len(left) + 1, len(channels)))
        self._prior[np.arange(len(left)), np.searchsorted(channels, left)] = 1
        # On the original's channels, which know no error yet, and on those of the pruned graph:
        # the latter corrects errors of earlier layers, but shrinks what is noisy.
        self._normals = [Normal(len(left), len(channels)) for _ in range(2)]
        self._most = per_sample(len(left), samples)

    def add(self, before: Array, after: Array) -> None:
        """Take rows of a sample: the layer's original input, and its input now."""
        rows = self._layer.rows(before)
        places = some(len(rows), self._most, self._rng)
        targets = channel_rows(rows[places], self._places)
        seen = (rows[places][:, self._stays], self._layer.rows(after)[places])
        for normal, regressors in zip(self._normals, seen, strict=True):
            normal.add(channel_rows(regressors, self._left), targets)

    def solutions(self, ridge: float) -> list[Matrix]:
        """Coefficients as :class:`Outputs` has them, one for each regression."""
        return [self._folded(normal.solve(self._prior, ridge)) for normal in self._normals]

    def _folded(self, mix: Matrix) -> Matrix:
        mixed = np.einsum("jc,mcok->mjok", mix[:-1], self._weights, optimize=True)
        matrix = np.zeros((int(self._stays.sum()) + 1, *mixed.shape[2:]))
        for places, weights in zip(self._left, mixed, strict=True):
            matrix[places] = weights  # a place of -1 is the row that is dropped
        bias = np.einsum("c,mcok->o", mix[-1], self._weights, optimize=True)
        return coefficients(matrix[:-1], bias)


def coefficients(weights: Matrix, bias: Matrix) -> Matrix:
    """Weights (inputs, outputs, kernel) and a bias as coefficients of :class:`Outputs`."""
    flat = weights.transpose(0, 2, 1).reshape(-1, weights.shape[1])
    return np.concatenate([flat, bias[None]])


def as_weights(solved: Matrix, kernel: int) -> tuple[Matrix, Matrix]:
    """The inverse of :func:`coefficients`."""
    turned = solved[:-1].reshape(-1, kernel, solved.shape[1]).transpose(0, 2, 1)
    return turned, solved[-1]


def per_sample(unknowns: int, samples: int) -> int:
    """How many rows of each sample normal equations take."""
    return -(-max(_LEAST, _PER_UNKNOWN * unknowns) // samples)
