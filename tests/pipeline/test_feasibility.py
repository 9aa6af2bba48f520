"""Bounds by hand, their order, and the sentence; peaks are given, so no clock is asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimize.budgets.budget import Budget
from optimize.feasibility import MARGIN, judge_feasibility, lower_bound, lower_bounds
from optimize.models.cost import Cost
from optimize.peaks import Peaks, cache_bytes

PEAKS = Peaks(1, 100.0, 90.0, 200.0, 400.0, 20.0, 0.0, 32 << 20)
COST = Cost({"MatMul": 10**9}, 10**9, 0, 10**6, 4 * 10**6, 0, ())


def test_bounds_by_hand() -> None:
    bounds = lower_bounds(COST, PEAKS).ms
    by_hand = {"float32": 20.0, "float16": 20.0, "bfloat16": 10.0, "int8": 5.0, "int4": 5.0}
    assert {name: ms * MARGIN for name, ms in bounds.items()} == pytest.approx(by_hand)


def test_weights_beyond_the_cache_are_read_from_memory() -> None:
    large = replace(COST, least_macs=0, weight_count=10**9, weight_bytes=4 * 10**9)
    for precision, size in (("float32", 4e9), ("int8", 1e9), ("int4", 0.5e9)):
        want = 1e3 * (size - (32 << 20)) / 20e9 / MARGIN
        assert lower_bound(large, PEAKS, precision) == pytest.approx(want)


positive = st.integers(0, 10**12)


@given(positive, positive, positive, st.sampled_from(["float32", "int8", "int4"]))
def test_more_work_is_never_faster(macs: int, more: int, weights: int, precision: str) -> None:
    small = replace(COST, least_macs=macs, weight_count=weights, weight_bytes=4 * weights)
    large = replace(small, least_macs=macs + more, weight_count=weights + more)
    large = replace(large, weight_bytes=4 * (weights + more))
    assert lower_bound(small, PEAKS, precision) <= lower_bound(large, PEAKS, precision)
    faster = replace(PEAKS, float32_gflops=200.0, int8_gops=800.0, bandwidth_gbs=40.0)
    assert lower_bound(large, faster, precision) <= lower_bound(large, PEAKS, precision)


def test_the_strictest_percentile_is_judged_and_sizes_are_not() -> None:
    bounds = lower_bounds(COST, PEAKS)  # 4 ms
    size = Budget.parse("size=1kB")
    assert judge_feasibility([size, Budget.parse("p99=4.1ms")], bounds) is None
    verdict = judge_feasibility([size, Budget.parse("p99=9ms"), Budget.parse("p50=1ms")], bounds)
    assert verdict is not None
    assert str(verdict.budget) == "p50=1ms"
    assert verdict.factor == pytest.approx(4.0)
    assert verdict.reason == (
        "needs 2 GFLOP; this device peaks at 100 GFLOP/s float32, 400 GOP/s INT8, 20 GB/s with "
        "1 thread: 4 ms is the floor, 1 ms asked (4x): prune 75% of it or take another device"
    )


def test_caches_that_cores_share_count_once(tmp_path: Path) -> None:
    for cpu in (0, 1):
        for index, (level, size, shared) in enumerate(
            [("1", "32K", cpu), ("2", "1024K", cpu), ("3", "32M", "0-1")]
        ):
            folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, text in (("level", level), ("size", size), ("shared_cpu_list", str(shared))):
                (folder / name).write_text(text + "\n")
    assert cache_bytes(tmp_path) == (2 << 20) + (32 << 20)
    assert cache_bytes(tmp_path / "none") > 1 << 50
