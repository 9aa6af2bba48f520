"""How a variant's metric compares with the source's on the same samples, and with a floor."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from optimize.budgets.budget import Floor
from optimize.budgets.metrics import Metric
from optimize.budgets.scores import FEWEST_RESAMPLES, Array, Scores
from optimize.errors import InputError

# Resamples of fewer samples vary far less than samples do: their interval shows nothing.
FEWEST_SAMPLES = 20
ROUNDING = 1e-9  # of decimals: 0.13 - 0.01 is more than 0.12


@dataclass(frozen=True)
class Accuracy:
    """A variant's metric beside the source's, on the same samples.

    Attributes:
        metric: its name.
        value: over all samples.
        low, high: confidence interval of the value.
        samples: how many samples were evaluated.
        source_value: the source model's value.
        change: value - source_value.
        change_low, change_high: paired confidence interval of the change.
        higher_is_better: which way is up.
        provisional: whether only the first samples were evaluated, which show nothing for sure.
        few: whether there are too few samples for resampling to show what they would vary by.
    """

    metric: str
    value: float
    low: float
    high: float
    samples: int
    source_value: float
    change: float
    change_low: float
    change_high: float
    higher_is_better: bool = True
    provisional: bool = False
    few: bool = False

    def meets(self, floor: Floor, strict: bool = False) -> bool | None:
        """Whether the floor holds; None if it is open: more samples, or ``strict``, may tell.

        By default point estimates are compared. ``strict`` demands that the worse end of the
        interval (of the value for absolute floors, of the change for drops) holds too.
        """
        if self.provisional:
            return None
        if not strict:
            return self.room(floor) >= 0
        ends = ((self.low, self.change_low), (self.high, self.change_high))
        if self.few:
            return None
        met = [self._room(floor, value, change) >= 0 for value, change in ends]
        return met[0] if met[0] == met[1] else None

    def limit(self, floor: Floor) -> float:
        """The value of the metric at which the floor lies."""
        if floor.kind == "absolute":
            return floor.value
        drop = floor.value * (abs(self.source_value) if floor.kind == "relative" else 1.0)
        return self.source_value - drop if self.higher_is_better else self.source_value + drop

    def room(self, floor: Floor) -> float:
        """How much better than the floor the value is; below zero exactly if it misses it."""
        return self._room(floor, self.value, self.change)

    def _room(self, floor: Floor, value: float, change: float) -> float:
        reached = value if floor.kind == "absolute" else self.source_value + change
        room = reached - self.limit(floor)
        if abs(room) <= ROUNDING:
            return 0.0
        return room if self.higher_is_better else -room


def compare(metric: Metric, variant: Scores, source: Scores, confidence: float) -> Accuracy:
    """Set a variant's scores beside the source's, with intervals at ``confidence``.

    Zeros and ones get exact binomial intervals; a change of such a mean is the difference of the
    shares of samples won and lost, each bounded at half the error (never empty, even if no sample
    changed). All else gets a paired percentile bootstrap with a fixed seed.

    Raises:
        InputError: the metric is not a finite number.
    """
    values = [_finite(metric.name, scores.value) for scores in (variant, source)]
    exact = variant.binary and source.binary
    if exact:
        interval, change = _exact(variant.rows, source.rows, confidence)
    else:
        interval, change = _bootstrap(variant, source, confidence)
    return Accuracy(
        metric=metric.name,
        value=values[0],
        low=interval[0],
        high=interval[1],
        samples=len(variant.rows),
        source_value=values[1],
        change=values[0] - values[1],
        change_low=change[0],
        change_high=change[1],
        higher_is_better=metric.higher_is_better,
        few=not exact and len(variant.rows) < FEWEST_SAMPLES,
    )


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise InputError(f"metric {name} gave {value}, which is no finite number")
    return value


Interval = tuple[float, float]


def _binomial(hits: int, n: int, error: float) -> Interval:
    """Clopper-Pearson interval of a share, ``error`` split over both sides."""
    from scipy.special import betaincinv

    low = float(betaincinv(hits, n - hits + 1, error / 2)) if hits else 0.0
    high = float(betaincinv(hits + 1, n - hits, 1 - error / 2)) if hits < n else 1.0
    return low, high


def _exact(variant: Array, source: Array, confidence: float) -> tuple[Interval, Interval]:
    n, error = len(variant), 1 - confidence
    won = _binomial(int(np.count_nonzero(variant > source)), n, error / 2)
    lost = _binomial(int(np.count_nonzero(variant < source)), n, error / 2)
    value = _binomial(int(np.count_nonzero(variant)), n, error)
    return value, (won[0] - lost[1], won[1] - lost[0])


def _bootstrap(variant: Scores, source: Scores, confidence: float) -> tuple[Interval, Interval]:
    count = min(variant.resampled.size, source.resampled.size)
    values, sources = variant.resampled[:count], source.resampled[:count]
    usable = np.isfinite(values) & np.isfinite(sources)
    if np.count_nonzero(usable) < min(count, FEWEST_RESAMPLES) / 2:
        raise InputError("the metric is no number on most resamples, hence has no interval")
    values, sources = values[usable], sources[usable]
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(values, ends)
    change_low, change_high = np.quantile(values - sources, ends)
    return (float(low), float(high)), (float(change_low), float(change_high))
