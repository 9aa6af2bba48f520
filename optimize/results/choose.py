"""Pick among the kept variants, and say what the nearest miss lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Literal

from optimize.budgets.budget import Budget, Floor
from optimize.results.report import VariantReport

Place = tuple[float, float]
Objective = Literal["latency", "accuracy", "size"]
# Medians timed in turns that are closer than this are not told apart on an ordinary machine.
NOISE = 0.02


def rank(
    variants: Sequence[VariantReport], objective: Objective, higher_is_better: bool = True
) -> list[VariantReport]:
    """The kept variants, best first.

    ``latency`` compares the p99; variants whose p99 bounds overlap with the fastest's are told
    apart by their medians, and those within noise by accuracy, then by size. The others compare
    accuracy or size first and latency next. Latencies count as multiples of the source's at the
    same moment where that is known of all: not all rows were timed side by side.
    """
    kept = [v for v in variants if v.status == "kept" and v.latency and v.size_bytes]
    sign = -1.0 if higher_is_better else 1.0
    if not all(v.relative for v in kept):
        kept = [replace(v, relative=None) for v in kept]
    given = {v.chain: v for v in variants}

    def accuracy(v: VariantReport) -> float:
        # Against the source on the same samples: not all need have been evaluated on as many.
        return sign * v.accuracy.change if v.accuracy else 0.0

    if objective == "accuracy":
        ranked = sorted(kept, key=lambda v: (accuracy(v), _tail(v)))
    elif objective == "size":
        ranked = sorted(kept, key=lambda v: (v.size_bytes or 0, _tail(v)))
    else:
        ranked = _by_latency(kept, accuracy)
    return [given[v.chain] for v in ranked]


def _by_latency(
    kept: Sequence[VariantReport], accuracy: Callable[[VariantReport], float]
) -> list[VariantReport]:
    ranked: list[VariantReport] = []
    left = list(kept)
    while left:
        best = min(left, key=_tail)
        tied = [v for v in left if _lower(v) <= _upper(best)]
        fastest = min(_median(v) for v in tied)
        tied = [v for v in tied if _median(v) <= fastest * (1 + NOISE)]
        pick = min(tied, key=lambda v: (accuracy(v), v.size_bytes or 0, _median(v)))
        ranked.append(pick)
        left = [v for v in left if v is not pick]
    return ranked


def frontier(
    variants: Sequence[VariantReport], higher_is_better: bool = True
) -> list[VariantReport]:
    """The measured variants that no other beats in speed and accuracy, fastest first.

    Speed is that against the source, which is the first, as both were timed in turns.
    """
    sign = -1.0 if higher_is_better else 1.0
    found: list[tuple[Place, VariantReport]] = []
    for variant in may_lead(variants):
        speed = 1.0 if variant is variants[0] else variant.speedup
        if speed is not None and variant.accuracy:
            found.append(((-speed, sign * variant.accuracy.change), variant))
    places = [place for place, _ in found]
    front = [pair for pair in found if on_front(pair[0], places)]
    return [variant for _, variant in sorted(front, key=lambda pair: pair[0])]


def may_lead(variants: Sequence[VariantReport]) -> list[VariantReport]:
    """Who may be on a front: those that run, evaluated on as many samples as any."""
    runs = [v for v in variants if v.latency and v.accuracy and v.status != "failed"]
    whole = max((v.accuracy.samples for v in runs if v.accuracy), default=0)
    return [v for v in runs if v.accuracy and v.accuracy.samples == whole]


def on_front(place: Place, places: Iterable[Place]) -> bool:
    """Whether no place is nowhere worse and somewhere better; less is better in both."""
    return not any(p[0] <= place[0] and p[1] <= place[1] and p != place for p in places)


def nearest_miss(
    variants: Sequence[VariantReport], budgets: Sequence[Budget], floor: Floor | None
) -> str | None:
    """Name the variant that misses by the smallest factor, and what it would have to gain.

    One that is undecided comes before all that are shown to miss.
    """
    candidates = []
    for variant in variants:
        if variant.status in ("failed", "skipped", "kept"):
            continue
        lacks = list(_lacks(variant, budgets, floor))
        if lacks:
            shown = variant.status != "undecided"
            candidates.append(((shown, max(factor for factor, _ in lacks)), variant, lacks))
    if not candidates:
        return None
    _, variant, lacks = min(candidates, key=lambda item: item[0])
    return f"{variant.chain}: {'; '.join(sentence for _, sentence in lacks)}"


def _lacks(
    variant: VariantReport, budgets: Sequence[Budget], floor: Floor | None
) -> list[tuple[float, str]]:
    lacks = []
    for budget in budgets:
        have = _measured(variant, budget)
        if have is not None and have > budget.limit:
            factor = have / budget.limit
            over = budget.amount(have - budget.limit)
            lacks.append(
                (
                    factor,
                    f"{budget.quantity} of {budget.amount(have)} is {factor:.2f}x "
                    f"the budget, {over} too much",
                )
            )
    accuracy = variant.accuracy
    if variant.status == "inaccurate" and accuracy and floor:
        judged = accuracy.judged
        factor = 1 + abs(judged.room(floor)) / max(abs(judged.limit(floor)), 1e-12)
        lacks.append(
            (
                factor,
                f"{accuracy.metric} of {accuracy.value:.4f} against "
                f"{accuracy.source_value:.4f} of the source misses {floor}",
            )
        )
    if not lacks and variant.status == "undecided" and variant.latency:
        lacks.append((1.0, variant.reason))
    return lacks


def _measured(variant: VariantReport, budget: Budget) -> float | None:
    if budget.quantity == "size":
        return float(variant.size_bytes) if variant.size_bytes else None
    if variant.latency is None:
        return None
    if budget.quantity == "memory":
        peak = variant.latency.peak_memory_bytes
        return None if peak is None else float(peak)
    name = {"p99.9": "p999_ms"}.get(budget.quantity, f"{budget.quantity}_ms")
    return float(getattr(variant.latency, name)) * 1e6


def _tail(variant: VariantReport) -> float:
    if variant.relative:
        return variant.relative.p99
    return variant.latency.p99_ms if variant.latency else float("inf")


def _median(variant: VariantReport) -> float:
    if variant.relative:
        return variant.relative.p50
    return variant.latency.p50_ms if variant.latency else float("inf")


def _lower(variant: VariantReport) -> float:
    bound = variant.latency.p99_lower_ms if variant.latency else None
    if variant.relative:
        bound = variant.relative.p99_lower
    return _tail(variant) if bound is None else bound


def _upper(variant: VariantReport) -> float:
    bound = variant.latency.p99_upper_ms if variant.latency else None
    if variant.relative:
        bound = variant.relative.p99_upper
    return float("inf") if bound is None else bound
