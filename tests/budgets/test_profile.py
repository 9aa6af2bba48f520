"""Percentiles and their bounds against numpy and the exact binomial distribution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from optimize.budgets.profile import Block, Profile, paired_ratio, percentile_bounds

samples = st.lists(st.integers(1, 10**6), min_size=1, max_size=300).map(
    lambda values: np.array(values, np.int64)
)
shares = st.sampled_from([0.5, 0.9, 0.95, 0.99, 0.999])


def profile(*blocks: list[int]) -> Profile:
    return Profile(tuple(Block(np.array(b, np.int64), started_ns=i) for i, b in enumerate(blocks)))


@given(samples, shares)
def test_percentiles_are_numpys_inverted_cdf(values: np.ndarray, share: float) -> None:
    expected = np.quantile(values, share, method="inverted_cdf")
    assert Profile((Block(values),)).percentile_ns(share) == expected


@given(samples, shares)
def test_bounds_are_the_exact_order_statistics(values: np.ndarray, share: float) -> None:
    lower, upper = percentile_bounds(values, share, 0.99)
    ordered, n = np.sort(values), len(values)
    ranks = [r for r in range(1, n + 1) if binom.cdf(r - 1, n, share) <= 1 - 0.99]
    assert lower == (ordered[max(ranks) - 1] if ranks else None)
    tops = [k for k in range(n) if binom.cdf(k, n, 1 - share) <= 1 - 0.99]
    assert upper == (ordered[n - 1 - max(tops)] if tops else None)


@pytest.mark.parametrize(
    ("confidence", "over", "calls"),
    [(0.95, 0, 299), (0.95, 1, 473), (0.99, 0, 459), (0.99, 1, 662), (0.99, 4, 1157)],
)
def test_the_fewest_calls_for_a_bound_of_the_p99(confidence: float, over: int, calls: int) -> None:
    values = np.arange(calls, dtype=np.int64)
    assert percentile_bounds(values, 0.99, confidence)[1] == calls - 1 - over
    fewer = percentile_bounds(values[:-1], 0.99, confidence)[1]
    assert fewer is None or fewer == calls - 2 - (over - 1)


def test_no_samples_have_no_bounds() -> None:
    assert percentile_bounds(np.empty(0, np.int64), 0.99, 0.99) == (None, None)
    with pytest.raises(ValueError, match="no samples"):
        Profile(()).percentile_ns(0.99)


def test_disturbed_blocks_are_not_clean() -> None:
    quiet, loud = Block(np.array([1, 2])), Block(np.array([9]), disturbance="noise")
    both = Profile((quiet, loud))
    assert both.samples_ns.tolist() == [1, 2, 9]
    assert both.clean_ns.tolist() == [1, 2]


def test_ratios_pair_blocks_that_ran_at_the_same_time() -> None:
    # The machine halves its speed midway: the ratio stays 2 all along.
    reference = profile(*[[200, 200]] * 20, *[[400, 400]] * 20)
    other = profile(*[[100, 100]] * 20, *[[200, 200]] * 20)
    ratio, low, high = paired_ratio(reference, other, 0.99)
    assert (ratio, low, high) == (2.0, 2.0, 2.0)
    assert paired_ratio(reference, Profile(()), 0.99) == (None, None, None)
