"""Whether a latency budget can be met at all: what a call needs, at this device's best.

A lower bound of latency is a call's own overhead and the longer of two times: the arithmetic at the
device's peak, and reading from memory the weights that no cache can hold. Of those, as many bytes
are left out as the stream had that the bandwidth was measured with: a smaller cache holds no more
than that, and with a larger one it was the cache that was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from optimize.budgets.budget import Budget, format_ns
from optimize.feasibility.peaks import STREAM_BYTES, Peaks
from optimize.models.cost import Cost

Precision = Literal["float32", "float16", "bfloat16", "int8", "int4"]
# The clock varies, and another kernel may come nearer to what the circuits can do.
MARGIN = 1.25
# Neighbours on a shared host take bandwidth away for longer than a measurement lasts.
MEMORY_MARGIN = 4.0
# Bytes of one weight. Weights in 4 bits are multiplied in 8, or as floats.
_WEIGHT_BYTES: Mapping[Precision, float] = {
    "float32": 4.0,
    "float16": 2.0,
    "bfloat16": 2.0,
    "int8": 1.0,
    "int4": 0.5,
}


@dataclass(frozen=True)
class Bounds:
    """Lower bounds of one call's latency.

    Attributes:
        cost: what the call needs.
        peaks: what one thread of the device can do.
        threads: of the runtime.
        ms: milliseconds by precision; precisions whose peak is not known are left out.
    """

    cost: Cost
    peaks: Peaks
    threads: int
    ms: Mapping[Precision, float]

    @classmethod
    def of(cls, cost: Cost, peaks: Peaks, threads: int) -> Bounds:
        """The bound of every precision that the device has."""
        pairs = {name: lower_bound(cost, peaks, threads, name) for name in _WEIGHT_BYTES}
        return cls(cost, peaks, threads, {n: ms for n, ms in pairs.items() if ms is not None})

    @property
    def floor_ms(self) -> float:
        """The lowest: no variant of the same operations is faster."""
        return min(self.ms.values())


@dataclass(frozen=True)
class Infeasible:
    """A latency budget that no variant of this architecture can meet.

    Attributes:
        budget: the one that is missed most.
        factor: how many times the budget the lowest bound is.
        reason: one sentence.
    """

    budget: Budget
    factor: float
    reason: str


def lower_bound(cost: Cost, peaks: Peaks, threads: int, precision: Precision) -> float | None:
    """Milliseconds below which no call can be, if its arithmetic is in ``precision``.

    Operands that the graph has in 8 bits already may be computed as such in any case, and a
    narrower type is never assumed to be slower.

    Returns:
        None if the peak of that precision on this device is not known.
    """
    wide, narrow = _rate(peaks, precision), _rate(peaks, "int8")
    if wide is None or narrow is None:
        return None
    narrow = max(wide, narrow)
    needed = cost.winograd if peaks.winograd else cost.direct
    compute_s = 2 * (needed.plain / wide + needed.integer / narrow) / 1e9 / threads
    size = min(cost.weight_bytes, cost.weight_count * _WEIGHT_BYTES[precision])
    bandwidth = peaks.bandwidth_gbs * 1e9 * threads
    memory_s = max(0.0, size - STREAM_BYTES) / bandwidth / MEMORY_MARGIN
    return 1e3 * max(compute_s / MARGIN, memory_s) + overhead_ms(peaks)


def overhead_ms(peaks: Peaks) -> float:
    """The least that a call takes without any work, in milliseconds."""
    return peaks.call_us / 1e3 / MARGIN


def judge_feasibility(budgets: Sequence[Budget], bounds: Bounds) -> Infeasible | None:
    """Say which latency budget no variant can meet; None if none is out of reach.

    A typical call takes at least the bound, hence the median and every percentile above. Budgets of
    size and memory are not judged, and nothing is if the peak in 8 bits is not known.
    """
    limits = [budget for budget in budgets if budget.tail is not None]
    if not limits or "int8" not in bounds.ms:
        return None
    budget = min(limits, key=lambda one: one.limit)
    factor = bounds.floor_ms / (budget.limit / 1e6)
    return Infeasible(budget, factor, _reason(budget, bounds, factor)) if factor > 1 else None


def _reason(budget: Budget, bounds: Bounds, factor: float) -> str:
    floor, asked = format_ns(bounds.floor_ms * 1e6), format_ns(budget.limit)
    needed = bounds.cost.winograd if bounds.peaks.winograd else bounds.cost.direct
    return (
        f"needs {_giga(2 * needed.total)}FLOP; this device peaks at "
        f"{_speeds(bounds)}: {floor} is the floor, {asked} asked ({factor:.2g}x less): "
        f"{_advice(budget, bounds)}"
    )


def _advice(budget: Budget, bounds: Bounds) -> str:
    least = overhead_ms(bounds.peaks)
    room = (budget.limit / 1e6 - least) / (bounds.floor_ms - least)
    if room <= 0:
        return f"an empty call alone takes {format_ns(least * 1e6)}; allow more"
    share = f"{math.ceil(100 * (1 - room))}%" if room > 0.02 else f"all but 1/{1 / room:.0f}"
    return f"prune {share} of it, take a smaller model or another device"


def _speeds(bounds: Bounds) -> str:
    count = bounds.threads
    float32, int8 = (MARGIN * count * bounds.peaks.gops[name] for name in ("float32", "int8"))
    threads = "1 thread" if count == 1 else f"{count} threads"
    return f"{float32:.0f} GFLOP/s float32, {int8:.0f} GOP/s INT8 at most with {threads}"


def _rate(peaks: Peaks, precision: Precision) -> float | None:
    """1e9 operations a second of one thread; no type is assumed slower than float32."""
    known = peaks.gops.get("int8" if precision == "int4" else precision)
    return None if known is None else max(known, peaks.gops["float32"])


def _giga(count: float) -> str:
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count / 1e3:.3g} k"
