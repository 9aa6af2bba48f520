"""Ridge regression from streamed normal equations, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(eq=False)
class Normal:
    """Sums over rows of regressors x, a constant one included as the last, and targets y.

    Attributes:
        gram: sum of x x^T, shape (k + 1, k + 1).
        cross: sum of x y^T, shape (k + 1, t).
        targets: sum of y y^T, shape (t, t).
    """

    gram: Matrix
    cross: Matrix
    targets: Matrix

    @classmethod
    def empty(cls, regressors: int, targets: int) -> Normal:
        """Sums over no rows."""
        k = regressors + 1
        return cls(np.zeros((k, k)), np.zeros((k, targets)), np.zeros((targets, targets)))

    def add(self, regressors: Matrix, targets: Matrix) -> None:
        """Add rows: shapes (r, k) and (r, t)."""
        x = np.concatenate([regressors, np.ones((len(regressors), 1))], 1)
        self.gram += x.T @ x
        self.cross += x.T @ targets
        self.targets += targets.T @ targets

    def __add__(self, other: Normal) -> Normal:
        return Normal(
            self.gram + other.gram, self.cross + other.cross, self.targets + other.targets
        )

    @property
    def rows(self) -> float:
        """How many rows were added."""
        return float(self.gram[-1, -1])

    def solve(self, prior: Matrix, ridge: float) -> Matrix:
        """Coefficients, shape (k + 1, t), that are pulled towards ``prior``.

        Args:
            prior: what stays where the data say nothing.
            ridge: strength of the pull, as a share of the regressors' mean square; the constant's
                coefficient is free.
        """
        k = len(self.gram) - 1
        scale = float(np.trace(self.gram[:k, :k])) / max(k, 1)
        pull = np.full(k + 1, max(ridge * scale, np.finfo(float).tiny))
        pull[k] = 1e-9 * max(self.rows, 1.0)
        system = self.gram + np.diag(pull)
        change = np.linalg.solve(system, self.cross - self.gram @ prior)
        solved: Matrix = prior + change
        return solved

    def loss(self, coefficients: Matrix, weight: Matrix | None = None) -> float:
        """Sum of squared residuals, or of ``r^T weight r`` over the residuals r."""
        fit = coefficients.T @ self.cross
        left = self.targets - fit - fit.T + coefficients.T @ self.gram @ coefficients
        return float(np.trace(left) if weight is None else (left * weight).sum())

    def spread(self, weight: Matrix | None = None) -> float:
        """The loss of the best constant: what a share of the error is a share of."""
        sums = self.cross[-1]
        left = self.targets - np.outer(sums, sums) / max(self.rows, 1.0)
        return float(np.trace(left) if weight is None else (left * weight).sum())
