"""The sequential test against exact figures and an independent dynamic programme."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimize.budgets.sequential import TailTest, variance_inflation


@pytest.mark.parametrize(("alpha", "calls"), [(0.05, 329), (0.01, 497)])
def test_calls_without_an_exceedance_that_accept(alpha: float, calls: int) -> None:
    test = TailTest(0.01, alpha, 0.05)
    assert test.accepts(calls, 0)
    assert not test.accepts(calls - 1, 0)


@pytest.mark.parametrize(("over", "calls"), [(1, 892), (2, 1122), (3, 1342), (4, 1550)])
def test_calls_that_accept_at_99_percent(over: int, calls: int) -> None:
    test = TailTest(0.01, 0.01, 0.05)
    assert test.accepts(calls, over)
    assert not test.accepts(calls - 1, over)


def evidence(calls: int, over: int, shares: list[tuple[float, float]]) -> float:
    """E(n, k) as it is written in the literature, in plain arithmetic."""
    total = 0.0
    for q, weight in shares:
        total += weight * (q / 0.01) ** over * ((1 - q) / 0.99) ** (calls - over)
    return total


BELOW = [(0.0, 0.5), (0.001, 0.2), (0.002, 0.1), (0.004, 0.1), (0.006, 0.1)]
ABOVE = [(q, 1 / 7) for q in (0.015, 0.02, 0.03, 0.05, 0.1, 0.3, 1.0)]


@given(st.integers(0, 400), st.integers(0, 40))
def test_the_evidence_is_the_mixture_of_likelihood_ratios(calls: int, over: int) -> None:
    over = min(over, calls)
    test = TailTest(0.01, 0.01, 0.05)
    for value, shares in ((test.log_accept, BELOW), (test.log_reject, ABOVE)):
        expected = evidence(calls, over, shares)
        got = value(calls, over)
        assert got == (-math.inf if expected == 0 else pytest.approx(math.log(expected), abs=1e-6))


def exact(q: float, alpha: float, cap: int) -> tuple[float, float, float]:
    """P(accept), P(reject) and mean calls, looking after every call, by dynamic programming."""
    test = TailTest(0.01, alpha, 0.05)
    alive = np.zeros(cap + 2)
    alive[0] = 1.0
    accepted = rejected = calls = 0.0
    most, fewest = -1, 1
    for n in range(1, cap + 1):
        calls += alive.sum()
        alive[1:] = alive[1:] * (1 - q) + alive[:-1] * q
        alive[0] *= 1 - q
        while test.accepts(n, most + 1):
            most += 1
        while fewest <= n and not test.rejects(n, fewest):
            fewest += 1
        accepted += alive[: most + 1].sum()
        rejected += alive[fewest:].sum()
        alive[: most + 1] = 0
        alive[fewest:] = 0
    return accepted, rejected, calls


def test_false_acceptances_at_the_limit_stay_below_alpha() -> None:
    accepted, rejected, _ = exact(0.01, 0.01, 5000)
    assert accepted == pytest.approx(0.0093, abs=0.0006)
    assert 1 - accepted - rejected >= 0.9


def test_false_acceptances_at_twice_the_limit_are_rare() -> None:
    accepted, _, _ = exact(0.02, 0.01, 5000)
    assert accepted <= 0.001


def test_a_good_model_is_accepted_soon() -> None:
    accepted, _, calls = exact(0.001, 0.01, 5000)
    assert accepted >= 0.99
    assert calls == pytest.approx(726, abs=5)


def test_a_bad_model_is_rejected_soon() -> None:
    _, rejected, calls = exact(0.05, 0.01, 5000)
    assert rejected >= 0.99
    assert calls == pytest.approx(106, abs=4)


@given(st.integers(1, 3000), st.integers(0, 60), st.floats(1, 20))
def test_more_exceedances_never_help(calls: int, over: int, inflation: float) -> None:
    over = min(over, calls - 1)
    test = TailTest(0.01, 0.01, 0.05)
    assert test.log_accept(calls, over) >= test.log_accept(calls, over + 1)
    assert test.log_reject(calls, over) <= test.log_reject(calls, over + 1)
    assert test.accepts(calls, over) or not test.accepts(calls, over, inflation)


@settings(max_examples=50)
@given(st.integers(1, 2000), st.integers(0, 3), st.floats(1, 5))
def test_the_forecast_is_what_then_decides(calls: int, over: int, inflation: float) -> None:
    test = TailTest(0.01, 0.01, 0.05)
    more = test.calls_to_accept(calls, over, inflation)
    if more is not None and over == 0:
        assert test.accepts(calls + more, 0, inflation)
        assert more <= 1 or not test.accepts(calls + more - 1, 0, inflation)


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


def test_independent_calls_are_hardly_inflated() -> None:
    assert variance_inflation(autocorrelated(0.0, 4000)) < 1.6


def test_autocorrelated_calls_are() -> None:
    assert variance_inflation(autocorrelated(0.9, 4000)) > 4


def test_drift_far_below_the_limit_counts_little() -> None:
    samples = autocorrelated(0.99, 4000)
    assert variance_inflation(samples) > 10
    assert variance_inflation(samples, limit=1e8) == 5
    assert variance_inflation(samples, limit=1.5e6) == variance_inflation(samples)


@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_few_or_equal_samples_have_no_inflation(count: int) -> None:
    assert variance_inflation(np.full(count, 7, np.int64)) == 1.0
