"""Bounds by hand, their order, and the sentence; peaks are given, so no clock is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimize.budgets.budget import Budget
from optimize.feasibility.peaks import STREAM_BYTES, Peaks, peaks_of
from optimize.feasibility.roofline import (
    MARGIN,
    MEMORY_MARGIN,
    Bounds,
    judge_feasibility,
    lower_bound,
)
from optimize.models.cost import Cost, Needed

GOPS = {"float32": 100.0, "float16": 90.0, "bfloat16": 200.0, "int8": 400.0}
PEAKS = Peaks(GOPS, bandwidth_gbs=20.0, call_us=0.0, winograd=False)
COST = Cost({"MatMul": 10**9}, Needed(10**9), Needed(10**8), 10**6, 4 * 10**6)


def test_bounds_by_hand() -> None:
    by_hand = {"float32": 20.0, "float16": 20.0, "bfloat16": 10.0, "int8": 5.0, "int4": 5.0}
    for threads in (1, 2):
        bounds = Bounds.of(COST, PEAKS, threads).ms
        assert {n: ms * MARGIN * threads for n, ms in bounds.items()} == pytest.approx(by_hand)


def test_operands_in_bytes_are_multiplied_as_such_in_any_case() -> None:
    mixed = replace(COST, direct=Needed(10**9, 10**9))
    assert lower_bound(mixed, PEAKS, 1, "float32") == pytest.approx((20.0 + 5.0) / MARGIN)
    assert lower_bound(mixed, PEAKS, 1, "int8") == pytest.approx(10.0 / MARGIN)


def test_minimal_filtering_counts_where_a_runtime_may_have_it() -> None:
    filtering = replace(PEAKS, winograd=True)
    assert lower_bound(COST, filtering, 1, "float32") == pytest.approx(2.0 / MARGIN)


def test_weights_are_read_from_memory_beyond_what_the_stream_had() -> None:
    large = replace(COST, direct=Needed(), weight_count=10**9, weight_bytes=4 * 10**9)
    for precision, size in (("float32", 4e9), ("int8", 1e9), ("int4", 0.5e9)):
        want = 1e3 * (size - STREAM_BYTES) / 20e9 / MEMORY_MARGIN
        assert lower_bound(large, PEAKS, 1, precision) == pytest.approx(want)  # type: ignore[arg-type]
    cached = replace(large, weight_count=STREAM_BYTES // 4, weight_bytes=STREAM_BYTES)
    assert lower_bound(cached, PEAKS, 1, "float32") == 0


def test_a_precision_without_a_peak_has_no_bound() -> None:
    without = replace(PEAKS, gops={"float32": 100.0, "int8": 400.0})
    assert lower_bound(COST, without, 1, "bfloat16") is None
    assert set(Bounds.of(COST, without, 1).ms) == {"float32", "int8", "int4"}
    blind = Bounds.of(COST, replace(PEAKS, gops={"float32": 100.0}), 1)
    assert judge_feasibility([Budget.parse("p99=1ns")], blind) is None


positive = st.integers(0, 10**12)


@given(positive, positive, positive, st.sampled_from(["float32", "int8", "int4"]))
def test_more_work_is_never_faster(macs: int, more: int, weights: int, precision: str) -> None:
    small = replace(COST, direct=Needed(macs, more), weight_count=weights, weight_bytes=4 * weights)
    large = replace(small, direct=Needed(macs + more, more), weight_count=weights + more)
    large = replace(large, weight_bytes=4 * (weights + more))
    faster = replace(PEAKS, gops={"float32": 200.0, "int8": 800.0}, bandwidth_gbs=40.0)
    at_most = [lower_bound(large, PEAKS, 1, precision)]  # type: ignore[arg-type]
    less = [
        lower_bound(small, PEAKS, 1, precision),  # type: ignore[arg-type]
        lower_bound(large, faster, 1, precision),  # type: ignore[arg-type]
        lower_bound(large, PEAKS, 2, precision),  # type: ignore[arg-type]
        lower_bound(large, PEAKS, 1, "int4"),
    ]
    assert all(bound is not None and bound <= (at_most[0] or 0.0) for bound in less)


def test_the_strictest_percentile_is_judged_and_sizes_are_not() -> None:
    bounds = Bounds.of(COST, PEAKS, 1)  # 4 ms
    size = Budget.parse("size=1kB")
    assert judge_feasibility([size], bounds) is None
    assert judge_feasibility([size, Budget.parse("p99=4.1ms")], bounds) is None
    verdict = judge_feasibility([size, Budget.parse("p99=9ms"), Budget.parse("p50=1ms")], bounds)
    assert verdict is not None
    assert str(verdict.budget) == "p50=1ms"
    assert verdict.factor == pytest.approx(4.0)
    assert verdict.reason == (
        "needs 2 GFLOP; this device peaks at 125 GFLOP/s float32, 500 GOP/s INT8 at most with "
        "1 thread: 4 ms is the floor, 1 ms asked (4x less): prune 75% of it, take a smaller model "
        "or another device"
    )


def test_a_budget_below_an_empty_call_is_not_met_by_pruning() -> None:
    slow = replace(PEAKS, call_us=125.0)
    verdict = judge_feasibility([Budget.parse("p99=50us")], Bounds.of(COST, slow, 1))
    assert verdict is not None
    assert verdict.reason.endswith("an empty call alone takes 100 us; allow more")


def test_peaks_are_no_lower_than_the_instructions_allow() -> None:
    best = {"float32": 100.0, "bfloat16": 30.0, "int8": 90.0, "memory": 9.0, "call": 5e-4, "convolution": 99.0}  # fmt: skip
    peaks = peaks_of(best, "x86_64")
    assert peaks.gops == {"float32": 100.0, "bfloat16": 200.0, "int8": 400.0}
    assert peaks.call_us == pytest.approx(2.0)
    assert not peaks.winograd
    assert peaks_of(best, "aarch64").winograd
    assert peaks_of({**best, "convolution": 150.0}, "x86_64").winograd
    assert peaks_of({**best, "int8": 3000.0}, "x86_64").gops["int8"] == 3000.0
