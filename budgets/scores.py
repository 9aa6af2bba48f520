"""One model's statistics on all samples, which any metric and its intervals are made of."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimize.errors import InputError

Array = NDArray[Any]
# One array a sample for every output of the model, in the model's order of outputs.
Outputs = Mapping[str, Sequence[Array]]
RESAMPLES = 1000
# A user's own function may take seconds a call: its interval gets this long, but never less than
# the fewest resamples that an interval can be read from.
RESAMPLE_S = 5.0
FEWEST_RESAMPLES = 40


@dataclass(frozen=True, eq=False)
class Scores:
    """Statistics of one model on all samples.

    Attributes:
        rows: one row a sample, shape (samples, ...).
        reduce: turns rows (any subset, in any order) into the metric's value.
        degrees: whether rows are degrees, hence no outcomes even where all of them are ones.
    """

    rows: Array
    reduce: Callable[[Array], float]
    degrees: bool = False

    @cached_property
    def value(self) -> float:
        """The metric over all samples."""
        return float(self.reduce(self.rows))

    @cached_property
    def resampled(self) -> Array:
        """Values of bootstrap resamples: the n-th takes the same samples for every model."""
        rng = np.random.default_rng(0)
        count = len(self.rows)
        values: list[float] = []
        start = time.monotonic()
        while len(values) < RESAMPLES:
            values.append(self._resample(rng.integers(0, count, count)))
            if len(values) >= FEWEST_RESAMPLES and time.monotonic() - start > RESAMPLE_S:
                break
        return np.array(values, np.float64)

    def _resample(self, index: Array) -> float:
        try:
            return self.reduce(self.rows[index])
        except InputError:
            return math.nan  # such as a ranking of one class only; the others make the interval

    @property
    def binary(self) -> bool:
        """Whether the value is a mean of zeros and ones, which has exact intervals."""
        return self.reduce is mean and not self.degrees and bool(np.isin(self.rows, (0, 1)).all())


def mean(rows: Array) -> float:
    """The mean of all rows; of zeros and ones a share, see :attr:`Scores.binary`."""
    return float(rows.mean())
