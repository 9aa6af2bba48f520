"""Ridge regression towards a prior, in the form that fits the number of unknowns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


class Normal:
    """Normal equations, streamed in float64: for many rows and up to thousands of unknowns."""

    def __init__(self, regressors: int, targets: int) -> None:
        """Sums over no rows; a constant regressor is added as the last."""
        self._gram = np.zeros((regressors + 1, regressors + 1))
        self._cross = np.zeros((regressors + 1, targets))

    def add(self, regressors: NDArray[Any], targets: NDArray[Any]) -> None:
        """Add rows: shapes (r, k) and (r, t)."""
        ones = np.ones((len(regressors), 1))
        x = np.concatenate([regressors.astype(np.float64), ones], 1)
        self._gram += x.T @ x
        self._cross += x.T @ targets.astype(np.float64)

    def solve(self, prior: Matrix, ridge: float) -> Matrix:
        """Coefficients, shape (k + 1, t), that are pulled towards ``prior``.

        Args:
            prior: what stays where the data say nothing.
            ridge: strength of the pull, as a share of the regressors' mean square; the constant's
                coefficient is free.
        """
        k = len(self._gram) - 1
        scale = float(np.trace(self._gram[:k, :k])) / max(k, 1)
        pull = np.full(k + 1, max(ridge * scale, np.finfo(float).tiny))
        pull[k] = 1e-9 * max(float(self._gram[k, k]), 1.0)
        change = np.linalg.solve(self._gram + np.diag(pull), self._cross - self._gram @ prior)
        solved: Matrix = prior + change
        return solved


class Rows:
    """Rows as they are, in float32: to judge by, and to fit more unknowns than there are rows."""

    def __init__(self) -> None:
        self._regressors: list[NDArray[np.float32]] = []
        self._targets: list[NDArray[np.float32]] = []

    def add(self, regressors: NDArray[Any], targets: NDArray[Any]) -> None:
        """Add rows: shapes (r, k) and (r, t)."""
        self._regressors.append(np.asarray(regressors, np.float32))
        self._targets.append(np.asarray(targets, np.float32))

    def __len__(self) -> int:
        return sum(map(len, self._targets))

    def loss(self, coefficients: Matrix) -> float:
        """Sum of squared residuals."""
        weights, bias = coefficients[:-1].astype(np.float32), coefficients[-1]
        return sum(
            float(np.square(y - (x @ weights + bias), dtype=np.float64).sum())
            for x, y in self._pairs()
        )

    def spread(self) -> float:
        """The loss of the best constant."""
        targets = np.concatenate(self._targets).astype(np.float64)
        return float(np.square(targets - targets.mean(0)).sum())

    def solve(self, prior: Matrix, ridge: float) -> Matrix:
        """As :meth:`Normal.solve`, by a system as large as the number of rows.

        With X and R centred, ``X^T (X X^T + p I)^-1 R`` is the ridge solution for the residuals R
        of the prior (the push-through identity).
        """
        x, y = np.concatenate(self._regressors), np.concatenate(self._targets)
        mean = x.mean(0)
        centred = x - mean
        left = y - centred @ prior[:-1].astype(np.float32)  # up to the bias, which is free
        shift = left.mean(0)
        kernel = (centred @ centred.T).astype(np.float64)
        # The same strength as in the normal equations: a share of the mean over unknowns.
        pull = ridge * float(np.trace(kernel)) / x.shape[1]
        kernel[np.diag_indices(len(kernel))] += max(pull, np.finfo(float).tiny)
        duals = np.linalg.solve(kernel, (left - shift).astype(np.float64)).astype(np.float32)
        weights = prior[:-1] + centred.T @ duals
        return np.concatenate([weights, (shift - mean @ weights)[None]])

    def _pairs(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        return zip(self._regressors, self._targets, strict=True)
