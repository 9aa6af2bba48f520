"""What drift far below the limit, and other percentiles, do to a verdict."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from optimize.budgets.sequential import TailTest, variance_inflation


def test_other_percentiles_have_their_own_tail() -> None:
    assert not TailTest(0.001, 0.01, 0.05).accepts(4000, 0)
    assert TailTest(0.001, 0.01, 0.05).accepts(5500, 0)
    assert TailTest(0.5, 0.01, 0.05).accepts(30, 0)
    assert TailTest(0.5, 0.01, 0.05).rejects(30, 30)


def autocorrelated(phi: float, count: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    values = np.empty(count)
    state = 0.0
    for i, step in enumerate(rng.standard_normal(count) * math.sqrt(1 - phi * phi)):
        state = phi * state + step
        values[i] = state
    return (1e6 * np.exp(0.2 * values)).astype(np.int64)


def test_drift_far_below_the_limit_counts_little() -> None:
    samples = autocorrelated(0.99, 4000)
    assert variance_inflation(samples, 0.01) > 10
    assert variance_inflation(samples, 0.01, limit=1e8) == 5.9
    assert variance_inflation(samples, 0.01, limit=1.5e6) == variance_inflation(samples, 0.01)


def test_a_p99_far_below_its_limit_is_judged_by_what_is_nearer_to_it() -> None:
    samples = autocorrelated(0.8, 4000)
    slow = samples > np.quantile(samples, 0.95)
    means = slow[:3969].reshape(63, 63).mean(axis=1)
    expected = 63 * means.var(ddof=1) / slow.var()
    assert 1 < expected < variance_inflation(samples, 0.01)
    assert variance_inflation(samples, 0.01, limit=1e8) == pytest.approx(expected)


def test_percentiles_beyond_the_p99_count_as_the_p99() -> None:
    samples = autocorrelated(0.9, 300)
    for limit in (None, 1.5e6, 1e8):
        found = variance_inflation(samples, 0.001, limit)
        assert found == variance_inflation(samples, 0.01, limit)


@pytest.mark.parametrize("tail", [0.01, 0.05, 0.1])
def test_drift_counts_for_the_more_the_nearer_the_percentile_is_to_the_median(tail: float) -> None:
    """By the exact inflation of "exceeds the quantile 1 - tail" for phi = .9."""
    z = norm.ppf(1 - tail)
    lags = 0.9 ** np.arange(1, 80)
    joint = [multivariate_normal.cdf([-z, -z], cov=[[1, r], [r, 1]]) for r in lags]
    exact = 1 + 2 * sum((p - tail**2) / (tail * (1 - tail)) for p in joint)
    counted = variance_inflation(autocorrelated(0.99, 4000), tail, limit=1e8)
    assert counted == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_few_or_equal_samples_have_no_inflation(count: int) -> None:
    assert variance_inflation(np.full(count, 7, np.int64), 0.01) == 1.0
