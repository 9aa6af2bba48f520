"""Which of the kept variants is chosen, and which miss is the nearest."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimize.budgets.budget import Budget, Floor
from optimize.results.choose import Objective, frontier, nearest_miss, rank
from optimize.results.latency import LatencyReport
from optimize.results.report import AccuracyReport, VariantReport

OBJECTIVES: tuple[Objective, ...] = ("latency", "accuracy", "size")


def latency(
    p99: float, p50: float, lower: float | None, upper: float | None, peak: int | None = None
) -> LatencyReport:
    return LatencyReport(
        p50_ms=p50,
        p90_ms=p99,
        p95_ms=p99,
        p99_ms=p99,
        p999_ms=p99,
        p99_lower_ms=lower,
        p99_upper_ms=upper,
        samples=1000,
        clean_samples=1000,
        processes=3,
        load_ms=1.0,
        first_call_ms=1.0,
        warmup_calls=40,
        steady=True,
        peak_memory_bytes=peak,
    )


def accuracy(value: float, source: float = 0.9) -> AccuracyReport:
    change = value - source
    return AccuracyReport("top1", value, value, value, 1000, source, change, change, change)


def row(
    chain: str,
    p99: float = 10.0,
    *,
    p50: float | None = None,
    spread: float = 0.0,
    value: float = 0.9,
    source: float = 0.9,
    size: int = 1000,
    status: str = "kept",
    reason: str = "measured",
    peak: int | None = None,
) -> VariantReport:
    times = latency(p99, p99 / 2 if p50 is None else p50, p99 - spread, p99 + spread, peak)
    return VariantReport(
        chain,
        "onnxruntime",
        status,  # type: ignore[arg-type]
        reason,
        latency=times,
        accuracy=accuracy(value, source),
        size_bytes=size,
    )


def order(*rows: VariantReport, by: Objective = "latency", higher: bool = True) -> list[str]:
    return [found.chain for found in rank(rows, by, higher)]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    "status", ["too_slow", "too_large", "inaccurate", "undecided", "failed", "skipped"]
)
def test_only_kept_variants_are_ranked(objective: Objective, status: str) -> None:
    rows = [row("best", 1.0, value=1.0, size=1, status=status), row("kept", 10.0)]
    assert order(*rows, by=objective) == ["kept"]
    assert order(rows[0], by=objective) == []


def test_latency_takes_the_lowest_p99_that_is_surely_lower() -> None:
    rows = (row("a", 12, spread=1), row("b", 8, spread=1), row("c", 20, spread=1))
    assert order(*rows) == ["b", "a", "c"]


def test_overlapping_p99s_are_told_apart_by_their_medians() -> None:
    assert order(row("a", 10.0, p50=6, spread=1), row("b", 10.5, p50=4, spread=1)) == ["b", "a"]


def test_a_low_median_does_not_make_up_for_a_tail_that_is_surely_longer() -> None:
    assert order(row("a", 10, p50=6, spread=1), row("b", 15, p50=1, spread=1)) == ["a", "b"]


def test_medians_within_noise_are_told_apart_by_accuracy_then_size() -> None:
    alike = {"spread": 1.0, "p50": 5.0}
    accurate = row("accurate", 10.2, value=0.92, size=5000, **alike)  # type: ignore[arg-type]
    small = row("small", 10.1, value=0.90, size=10, **alike)  # type: ignore[arg-type]
    large = row("large", 10.0, value=0.90, size=5000, **alike)  # type: ignore[arg-type]
    assert order(large, small, accurate) == ["accurate", "small", "large"]
    faster = row("faster", 10.3, p50=4.5, spread=1, value=0.85, size=9000)
    assert order(large, small, accurate, faster)[0] == "faster"


@pytest.mark.parametrize(("median", "first"), [(5.05, "accurate"), (5.25, "quick")])
def test_medians_a_hundredth_apart_are_noise_and_a_twentieth_apart_are_not(
    median: float, first: str
) -> None:
    quick = row("quick", 10, p50=5.0, spread=1, value=0.90)
    accurate = row("accurate", 10, p50=median, spread=1, value=0.91)
    assert order(quick, accurate)[0] == first


def test_an_error_is_better_if_it_is_lower() -> None:
    alike = {"spread": 1.0, "p50": 5.0}
    low, high = row("low", value=0.1, **alike), row("high", value=0.3, **alike)  # type: ignore[arg-type]
    for objective in ("latency", "accuracy"):
        assert order(high, low, by=objective, higher=False)[0] == "low"
        assert order(low, high, by=objective, higher=True)[0] == "high"


def test_a_p99_without_an_upper_bound_is_not_surely_the_lowest() -> None:
    unbounded = row("few calls", 10.0, p50=6)
    assert unbounded.latency is not None
    unbounded = replace(unbounded, latency=replace(unbounded.latency, p99_upper_ms=None))
    bounded = row("bounded", 10.5, p50=2, spread=0.2)
    assert order(unbounded, bounded) == ["bounded", "few calls"]


def test_accuracy_comes_first_then_the_p99() -> None:
    rows = (row("a", 5, value=0.90), row("b", 20, value=0.95), row("c", 10, value=0.95))
    assert order(*rows, by="accuracy") == ["c", "b", "a"]


def test_size_comes_first_then_the_p99() -> None:
    rows = (row("a", 5, size=300), row("b", 20, size=100), row("c", 10, size=100))
    assert order(*rows, by="size") == ["c", "b", "a"]


def test_variants_that_are_wholly_alike_keep_their_order() -> None:
    rows = [row(name) for name in ("source", "fold", "fuse")]
    for objective in OBJECTIVES:
        assert order(*rows, by=objective) == ["source", "fold", "fuse"]


distinct_rows = st.lists(
    st.tuples(
        st.integers(1, 50), st.integers(1, 50), st.integers(0, 8), st.integers(0, 9), st.booleans()
    ),
    max_size=8,
    unique_by=lambda entry: entry[0],
).map(
    lambda entries: [
        row(
            f"v{p99}",
            p99,
            p50=p50,
            spread=spread,
            value=hits / 10,
            size=p99 * 7 % 11 + 1,
            status="kept" if kept else "undecided",
        )
        for p99, p50, spread, hits, kept in entries
    ]
)


@settings(deadline=None)
@given(distinct_rows, st.sampled_from(OBJECTIVES), st.randoms(use_true_random=False))
def test_the_kept_are_ranked_whole_and_whatever_their_order(
    rows: list[VariantReport], objective: Objective, rng: random.Random
) -> None:
    found = order(*rows, by=objective)
    assert sorted(found) == sorted(v.chain for v in rows if v.status == "kept")
    shuffled = rows.copy()
    rng.shuffle(shuffled)
    assert order(*shuffled, by=objective) == found


# Nearest misses

P99 = (Budget.parse("p99=10ms"),)


def test_the_nearest_miss_is_the_one_with_the_smallest_factor() -> None:
    rows = [row("far", 30, status="too_slow"), row("near", 12.5, status="too_slow")]
    found = nearest_miss(rows, P99, None)
    assert found is not None
    assert found.startswith("near: ")
    assert "p99 of 12.5 ms is 1.25x the budget" in found
    assert "2.5 ms too much" in found


def test_of_several_budgets_the_worst_counts() -> None:
    budgets = (Budget.parse("p99=10ms"), Budget.parse("size=1kB"))
    rows = [
        row("large", 11, size=5000, status="too_large"),
        row("both", 12, size=1300, status="too_slow"),
    ]
    found = nearest_miss(rows, budgets, None)
    assert found is not None
    assert found.startswith("both: ")
    assert "p99 of 12 ms" in found
    assert "size of 1.3 kB" in found


@pytest.mark.parametrize("quantity", ["p50", "p90", "p95", "p99", "p99.9"])
def test_every_percentile_is_compared_with_its_own(quantity: str) -> None:
    name = {"p99.9": "p999_ms"}.get(quantity, f"{quantity}_ms")
    slow = row("slow", 1, status="too_slow")
    assert slow.latency is not None
    slow = replace(slow, latency=replace(slow.latency, **{name: 15.0}))  # type: ignore[arg-type]
    found = nearest_miss([slow], (Budget.parse(f"{quantity}=10ms"),), None)
    assert found is not None
    assert f"{quantity} of 15 ms is 1.50x" in found


def test_too_much_memory_is_a_miss_in_memory() -> None:
    budgets = (Budget.parse("memory=100MB"),)
    rows = [
        row("far", 1, status="too_large", peak=300_000_000),
        row("near", 1, status="too_large", peak=120_000_000),
    ]
    found = nearest_miss(rows, budgets, None)
    assert found is not None
    assert found.startswith("near: memory of 120 MB is 1.20x")


def test_the_size_of_a_model_is_not_its_memory() -> None:
    budgets = (Budget.parse("memory=100MB"), Budget.parse("p99=10ms"))
    slow = row("slow", 12, size=200_000_000, status="too_slow", peak=90_000_000)
    found = nearest_miss([slow], budgets, None)
    assert found is not None
    assert "memory" not in found


def test_an_accuracy_that_misses_says_by_how_much() -> None:
    rows = [row("rough", 5, value=0.80, status="inaccurate")]
    found = nearest_miss(rows, P99, Floor.parse("drop=0.01"))
    assert found is not None
    for words in ("rough: top1 of 0.8000", "0.9000 of the source", "drop=0.01"):
        assert words in found


@pytest.mark.parametrize(
    ("floor", "source", "near", "far"),
    [
        ("drop=0.01", 0.9, 0.88, 0.80),
        ("drop=10%", 0.5, 0.44, 0.40),  # the floor lies at 0.45
        ("top1=0.90", 0.8, 0.89, 0.80),  # the source misses it as well
        ("top1=0.90", 0.95, 0.89, 0.70),
    ],
)
@pytest.mark.parametrize("first", ["near", "far"])
def test_the_nearest_to_the_floor_is_named(
    floor: str, source: float, near: float, far: float, first: str
) -> None:
    rows = [
        row("near", 5, value=near, source=source, status="inaccurate"),
        row("far", 5, value=far, source=source, status="inaccurate"),
    ]
    if first == "far":
        rows.reverse()
    found = nearest_miss(rows, P99, Floor.parse(floor))
    assert found is not None
    assert found.startswith("near: ")


def test_an_open_variant_is_nearer_than_any_miss() -> None:
    rows = [
        row("slow", 10.1, status="too_slow"),
        row("open", 9, status="undecided", reason="p99 is open: 0 of 100 calls over 10 ms"),
    ]
    found = nearest_miss(rows, P99, None)
    assert found == "open: p99 is open: 0 of 100 calls over 10 ms"


@pytest.mark.parametrize("status", ["failed", "skipped", "kept"])
def test_what_was_not_judged_or_was_kept_is_no_miss(status: str) -> None:
    assert nearest_miss([row("v", 30, status=status)], P99, None) is None
    assert nearest_miss([], P99, None) is None


def test_what_may_still_hold_comes_before_what_is_shown_to_miss() -> None:
    near = row("near", 10.1, status="too_slow")
    open_ended = row("open", 14, status="undecided")
    found = nearest_miss([near, open_ended], P99, None)
    assert found is not None
    assert found.startswith("open: ")


def test_an_unmeasured_variant_is_no_near_miss() -> None:
    bare = VariantReport("late", "onnxruntime", "undecided", "the time limit ended the run")
    slow = row("slow", 15, status="too_slow")
    found = nearest_miss([bare, slow], P99, None)
    assert found is not None
    assert found.startswith("slow: ")


def test_the_frontier_holds_what_nothing_faster_equals() -> None:
    rows = [
        replace(row("source", 10, p50=4.0, spread=1, value=0.95), speedup=None),
        replace(row("fast", 3, p50=1.0, spread=1, value=0.90), speedup=4.0),
        replace(row("dominated", 4, p50=1.5, spread=1, value=0.90), speedup=3.0),
        replace(row("middle", 5, p50=2.0, spread=1, value=0.93), speedup=2.0),
        replace(row("slower", 20, p50=8.0, spread=1, value=0.96), speedup=0.5),
    ]
    assert [v.chain for v in frontier(rows)] == ["fast", "middle", "source", "slower"]
    assert [v.chain for v in frontier(rows, higher_is_better=False)] == ["fast"]
    assert frontier([replace(rows[0], latency=None)]) == []


def test_what_failed_or_was_not_timed_beside_the_source_is_on_no_frontier() -> None:
    rows = [
        replace(row("source", 10, value=0.90), speedup=None),
        replace(row("broken", 3, value=0.95, status="failed"), speedup=4.0),
        replace(row("untimed", 3, value=0.96), speedup=None),
    ]
    assert [v.chain for v in frontier(rows)] == ["source"]


def test_what_a_part_of_the_samples_shows_is_on_no_frontier() -> None:
    lucky = row("lucky", 3, value=0.99, status="skipped")
    assert lucky.accuracy is not None
    rows = [row("source", 10, value=0.90), replace(lucky, speedup=4.0)]
    assert [v.chain for v in frontier(rows)] == ["lucky"]
    part = replace(lucky, speedup=4.0, accuracy=replace(lucky.accuracy, samples=100))
    assert [v.chain for v in frontier([rows[0], part])] == ["source"]
