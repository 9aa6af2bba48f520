"""What every form of the report shows, worked out once from the report: no drawing here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from optimize.reports.samples import Timings
from optimize.results.choose import may_lead, on_front
from optimize.results.latency import LatencyReport
from optimize.results.report import (
    AccuracyReport,
    BudgetReport,
    Report,
    VariantReport,
    higher_is_better,
)
from optimize.targets.base import Device


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its interval; None where an end is unknown."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Point:
    """A variant in the plane of latency (milliseconds) and accuracy.

    Attributes:
        index: its row in the report.
        on_front: whether no other variant is both faster and more accurate.
    """

    index: int
    variant: VariantReport
    latency: Interval
    accuracy: Interval
    on_front: bool = False


@dataclass(frozen=True)
class Stage:
    """The model after one pass of the chosen chain; the first stage is the source.

    Attributes:
        difference: of its outputs from the source's, in words.
        seconds: what the pass took.
    """

    name: str
    p50_ms: float | None
    p99_ms: float | None
    accuracy: float | None
    size_bytes: int | None
    difference: str | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class View:
    """A report with its timings, and what follows from them.

    Attributes:
        quantity: the percentile that is plotted: the first one with a budget, else p99.
        limit_ms: its budget; None if it has none.
        floor: where the floor is drawn, the least (of an error, the most) accuracy that a variant
            may have; None if there is no floor, or none that can be told. A row that was judged on
            a part of the samples had another one: see :attr:`AccuracyReport.judged`.
        focus: the variant that the page is about: the chosen one, else the nearest miss, else the
            first one that was measured; None if nothing was.
    """

    report: Report
    timings: Mapping[str, Timings] = field(default_factory=dict)

    @property
    def quantity(self) -> str:
        """See the class."""
        return self._tail.quantity if self._tail else "p99"

    @property
    def limit_ms(self) -> float | None:
        """See the class."""
        return self._tail.limit / 1e6 if self._tail else None

    @property
    def _tail(self) -> BudgetReport | None:
        latencies = [budget for budget in self.report.budgets if budget.unit == "ns"]
        return next((b for b in latencies if b.quantity == "p99"), next(iter(latencies), None))

    @property
    def metric(self) -> str:
        """The name of the metric."""
        if self._accuracy:
            return self._accuracy.metric
        return self.report.floor.metric if self.report.floor else "accuracy"

    @property
    def higher_is_better(self) -> bool:
        """Whether more of the metric is better."""
        first = self._accuracy
        return first.judged.higher_is_better if first else higher_is_better(self.metric)

    @property
    def floor(self) -> float | None:
        """See the class."""
        floor, first = self.report.floor, self._accuracy
        if floor is None:
            return None
        if first is None:
            return floor.value if floor.kind == "absolute" else None
        return first.judged.limit(floor.declared)

    @property
    def _accuracy(self) -> AccuracyReport | None:
        """The first row's that has one: the source's, unless it was not evaluated."""
        return next((v.accuracy for v in self.report.variants if v.accuracy), None)

    @property
    def source(self) -> VariantReport | None:
        """The first row: the model as it was given."""
        return next(iter(self.report.variants), None)

    @property
    def chosen(self) -> VariantReport | None:
        """The row that was chosen."""
        named = (v for v in self.report.variants if v.chain == self.report.chosen)
        return next(named, None)

    @property
    def focus(self) -> VariantReport | None:
        """See the class."""
        miss = self.report.nearest_miss or ""
        near = [v for v in self.report.variants if miss.startswith(f"{v.chain}: ")]
        measured = [v for v in self.report.variants if v.latency]
        # Of chains that begin alike, the longest is the one that is meant.
        near.sort(key=lambda v: -len(v.chain))
        return self.chosen or next(iter([*near, *measured]), None)

    def points(self) -> tuple[Point, ...]:
        """Every variant with both a latency and an accuracy, in the report's order."""
        found = [
            Point(
                index,
                variant,
                percentile(variant.latency, self.quantity),
                self._beside_source(variant.accuracy),
            )
            for index, variant in enumerate(self.report.variants)
            if variant.latency and variant.accuracy
        ]
        leading = {variant.chain for variant in may_lead([p.variant for p in found])}
        places = {p.index: self._place(p) for p in found if p.variant.chain in leading}
        front = {index for index, place in places.items() if on_front(place, places.values())}
        return tuple(replace(point, on_front=point.index in front) for point in found)

    def _beside_source(self, accuracy: AccuracyReport) -> Interval:
        """Its accuracy as far from the source's as on the samples that both were evaluated on."""
        source = self.source.accuracy if self.source else None
        moved = source.value - accuracy.source_value if source else 0.0
        return Interval(accuracy.value + moved, accuracy.low + moved, accuracy.high + moved)

    def _place(self, point: Point) -> tuple[float, float]:
        """Where it is drawn, as a front takes it: less is better in both."""
        value = point.accuracy.value
        return point.latency.value, -value if self.higher_is_better else value

    def stages(self) -> tuple[Stage, ...]:
        """The chosen chain pass by pass, the source first; empty if that was not measured."""
        focus, source = self.focus, self.source
        steps = focus.steps if focus else ()
        if not steps or source is None:
            return ()
        found = [
            Stage(s.step, s.p50_ms, s.p99_ms, s.accuracy, s.size_bytes, s.difference, s.seconds)
            for s in steps
        ]
        if found[0].name != "source" and source.latency:
            accuracy = source.accuracy.value if source.accuracy else None
            latency = source.latency
            first = Stage("source", latency.p50_ms, latency.p99_ms, accuracy, source.size_bytes)
            return (first, *found)
        return tuple(found)


def percentile(latency: LatencyReport, quantity: str) -> Interval:
    """A percentile in milliseconds with its bounds."""
    name = "p999_ms" if quantity == "p99.9" else f"{quantity}_ms"
    low, high = latency.bounds_ms.get(quantity, (None, None))
    if quantity == "p99" and low is None and high is None:
        low, high = latency.p99_lower_ms, latency.p99_upper_ms
    return Interval(float(getattr(latency, name)), low, high)


def device_words(device: Device) -> str:
    """The device in one line."""
    cores = f"{device.granted_cores} of {device.cores} cores"
    return f"{device.cpu} ({device.architecture}), {cores}, {device.os}"
