"""Percentile bounds against the exact binomial distribution, in rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from optimize.budgets.profile import Block, Profile, paired_ratio, percentile_bounds

SHARES = {
    0.5: Fraction(1, 2),
    0.9: Fraction(9, 10),
    0.95: Fraction(19, 20),
    0.99: Fraction(99, 100),
    0.999: Fraction(999, 1000),
}


@cache
def at_most(n: int, share: Fraction) -> tuple[Fraction, ...]:
    """P(Bin(n, share) <= k) for every k."""
    total, sums = Fraction(0), []
    for k in range(n + 1):
        total += math.comb(n, k) * share**k * (1 - share) ** (n - k)
        sums.append(total)
    return tuple(sums)


def ranks(n: int, share: float, error: Fraction) -> tuple[int | None, int | None]:
    """Ranks from 1 of the bounds by their definition; None where no order statistic will do."""
    exact = SHARES[share]
    below = [r for r in range(1, n + 1) if at_most(n, exact)[r - 1] <= error]
    above = [k for k in range(n) if at_most(n, 1 - exact)[k] <= error]
    return (max(below) if below else None), (n - max(above) if above else None)


def ascending(n: int) -> NDArray[np.int64]:
    return np.arange(1, n + 1, dtype=np.int64)  # a sample's value is its rank


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(("confidence", "error"), [(0.95, "1/20"), (0.99, "1/100")])
def test_bounds_are_the_sharpest_order_statistics(
    share: float, confidence: float, error: str
) -> None:
    for n in (1, 2, 3, 7, 30, 61, 120):
        got = percentile_bounds(ascending(n), share, confidence)
        assert got == ranks(n, share, Fraction(error)), n


@pytest.mark.parametrize(
    ("confidence", "least"),
    [
        (0.95, {0: 299, 1: 473, 2: 628, 3: 773, 4: 913, 5: 1049, 10: 1693}),
        (0.99, {0: 459, 1: 662, 2: 838, 3: 1001, 4: 1157, 5: 1307, 10: 2010}),
    ],
)
def test_the_published_least_numbers_of_calls(confidence: float, least: dict[int, int]) -> None:
    for over, n in least.items():
        # With n calls, as many as ``over`` may exceed the bound; with one less, one fewer.
        assert percentile_bounds(ascending(n), 0.99, confidence)[1] == n - over
        fewer = percentile_bounds(ascending(n - 1), 0.99, confidence)[1]
        assert fewer == (None if over == 0 else n - 1 - (over - 1))


@pytest.mark.parametrize(("confidence", "n"), [(0.95, 2995), (0.99, 4603)])
def test_a_p999_needs_thousands_of_calls(confidence: float, n: int) -> None:
    assert percentile_bounds(ascending(n), 0.999, confidence)[1] == n
    assert percentile_bounds(ascending(n - 1), 0.999, confidence)[1] is None


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("n", [50, 100, 300])
def test_each_bound_is_wrong_at_most_as_often_as_it_says(share: float, n: int) -> None:
    """Exactly: of continuous samples, those at or below the percentile are Bin(n, share)."""
    lower, upper = percentile_bounds(ascending(n), share, 0.95)
    exact = at_most(n, SHARES[share])
    if lower is not None:  # wrong if fewer than ``lower`` samples are at or below the percentile
        assert exact[int(lower) - 1] <= Fraction(1, 20)
    if upper is not None:  # wrong if the upper one is at or below it as well
        assert 1 - exact[int(upper) - 1] <= Fraction(1, 20)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 10**12), min_size=1, max_size=400),
    st.sampled_from(list(SHARES)),
    st.sampled_from([0.9, 0.95, 0.99]),
)
def test_bounds_enclose_the_percentile(values: list[int], share: float, confidence: float) -> None:
    samples = np.array(values, np.int64)
    percentile = Profile((Block(samples),)).percentile_ns(share)
    lower, upper = percentile_bounds(samples, share, confidence)
    assert lower is None or lower <= percentile
    assert upper is None or upper >= percentile


@settings(deadline=None)
@given(st.permutations(range(1, 200)))
def test_the_order_of_calls_does_not_matter(values: list[int]) -> None:
    samples = np.array(values, np.int64)
    assert percentile_bounds(samples, 0.9, 0.95) == percentile_bounds(ascending(199), 0.9, 0.95)
    assert Profile((Block(samples),)).percentile_ns(0.9) == 180  # .9 * 199 = 179.1


def test_measuring_does_not_reorder_the_samples() -> None:
    samples = np.array([5, 1, 4], np.int64)
    profile = Profile((Block(samples),))
    profile.percentile_ns(0.5)
    percentile_bounds(samples, 0.5, 0.9)
    assert samples.tolist() == [5, 1, 4]
    assert profile.samples_ns.tolist() == [5, 1, 4]


def test_one_call_is_every_percentile_and_no_upper_bound() -> None:
    samples = np.array([7], np.int64)
    profile = Profile((Block(samples),))
    assert [profile.percentile_ns(share) for share in SHARES] == [7.0] * 5
    assert percentile_bounds(samples, 0.99, 0.99)[1] is None
    assert percentile_bounds(samples, 0.5, 0.99) == (None, None)


def test_equal_calls_have_one_percentile_and_bound() -> None:
    samples = np.full(1000, 42, np.int64)
    assert Profile((Block(samples),)).percentile_ns(0.99) == 42
    assert percentile_bounds(samples, 0.99, 0.99) == (42.0, 42.0)


def test_higher_confidence_widens_bounds() -> None:
    samples = np.sort(np.random.default_rng(1).integers(1, 10**9, 3000))
    narrow, wide = (percentile_bounds(samples, 0.99, c) for c in (0.9, 0.999))
    assert narrow[0] is not None
    assert narrow[1] is not None
    assert wide[0] is not None
    assert wide[1] is not None
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_a_speedup_needs_enough_blocks_for_its_interval() -> None:
    def blocks(count: int, latency: int) -> Profile:
        return Profile(
            tuple(Block(np.full(5, latency, np.int64), started_ns=i) for i in range(count))
        )

    # Two-sided at 99%: 2 * (1/2)^n <= 1% from eight blocks on.
    assert paired_ratio(blocks(7, 300), blocks(7, 100), 0.99) == (3.0, None, None)
    assert paired_ratio(blocks(8, 300), blocks(8, 100), 0.99) == (3.0, 3.0, 3.0)
    assert paired_ratio(Profile(()), blocks(8, 100), 0.99) == (None, None, None)
