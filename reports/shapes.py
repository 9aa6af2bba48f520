"""Numbers behind the plots: axes, tails and thinned series. No drawing here."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from optimize.reports.samples import Timings

Floats = NDArray[np.float64]
# Heights of an axis whose unit is a factor of ten in the share of slower calls.
PERCENTS = {0.0: "0%", 0.5: "50%", 0.9: "90%", 0.95: "95%", 0.99: "99%", 0.999: "99.9%"}
BODY, SLOWEST = 50, 30


def tail_height(share: float | Floats) -> Floats:
    """The height -log10(1 - share): 90% is 1, 99% is 2, so that a tail is as wide as a body."""
    return np.asarray(-np.log10(1 - np.asarray(share, np.float64)))


def tail_curve(samples_ms: Floats, coarse: int = 1) -> tuple[Floats, Floats]:
    """The empirical distribution: latencies in rising order, and the share at or below each.

    The i-th of n has the share (i - 0.5) / n (Hazen), so that the slowest has a finite height.
    The tail is kept whole for its ``SLOWEST`` calls and thinned evenly in height below; both
    counts are divided by ``coarse``.
    """
    many, slowest = BODY // coarse, SLOWEST // coarse
    ordered = np.sort(samples_ms)
    n = ordered.size
    body = np.linspace(0, n - 1, min(n, many)).round()
    heights = np.geomspace(1, n, many) if n else np.empty(0)
    ranks = np.unique(
        np.concatenate([body, n - heights.round(), np.arange(max(0, n - slowest), n)])
    ).astype(int)
    return ordered[ranks], (ranks + 0.5) / n


def thinned(timings: Timings, most: int) -> NDArray[np.int64]:
    """Places of at most ``most`` calls: the slowest hundredth, and the others evenly in time."""
    n = timings.ns.size
    if n <= most:
        return np.arange(n)
    slowest = np.argsort(timings.ns)[-min(most // 2, max(1, n // 100)) :]
    even = np.linspace(0, n - 1, most - slowest.size).round().astype(np.int64)
    return np.unique(np.concatenate([slowest, even]))


def block_medians(timings: Timings) -> tuple[Floats, Floats]:
    """When each block began (seconds) and its median (milliseconds)."""
    if timings.ns.size == 0:
        return np.empty(0), np.empty(0)
    _, first = np.unique(timings.block, return_index=True)
    groups = np.split(timings.ns, first[1:])
    return timings.at_s[first], np.array([np.median(group) for group in groups]) / 1e6


def log_range(values: Iterable[float | None]) -> tuple[float, float]:
    """The ends of a logarithmic axis that holds all positive values, with some air."""
    found = [value for value in values if value is not None and value > 0 and math.isfinite(value)]
    if not found:
        return 0.1, 10.0
    low, high = min(found), max(found)
    air = max((high / low) ** 0.06, 1.12)
    return low / air, high * air


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from ``low`` to ``high``: 1, 2, 5, 10, ..., or powers of ten of a wide range.

    Of a range too narrow for two of them, evenly spaced round numbers.
    """
    decades = math.log10(high / low)
    steps = (1, 2, 5) if decades < 3 else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{step}e{e}") for e in exponents for step in steps]
    inside = [tick for tick in ticks if low <= tick <= high]
    return inside if len(inside) > 2 else _even_ticks(low, high)


def _even_ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 5  # hence at least two ticks, and six at most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first = math.ceil(low / step)
    return [float(f"{step * i:.6g}") for i in range(first, math.floor(high / step) + 1)]


def linear_range(values: Iterable[float | None]) -> tuple[float, float]:
    """The ends of a linear axis that holds all values, with some air."""
    found = [value for value in values if value is not None and math.isfinite(value)]
    if not found:
        return 0.0, 1.0
    low, high = min(found), max(found)
    air = (high - low) * 0.12 or max(abs(high) * 0.02, 1e-6)
    return low - air, high + air
