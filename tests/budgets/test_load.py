"""The rate that a process bears, against queues whose answers are known exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from optimize.budgets.load import highest_rate, waiting

MS = 1e6  # nanoseconds


def exponential(mean_ms: float, count: int = 50_000) -> np.ndarray:
    rng = np.random.default_rng(5)
    return (rng.exponential(mean_ms * MS, count)).astype(np.int64)


@pytest.mark.parametrize("limit_ms", [8.0, 12.0, 30.0])
@pytest.mark.parametrize("share", [0.9, 0.99])
def test_exponential_calls_bear_what_the_m_m_1_queue_bears(limit_ms: float, share: float) -> None:
    # The time in an M/M/1 queue is exponential with rate mu - lambda.
    exact = min(800, 1000 / 1.0 - 1000 * math.log(1 / (1 - share)) / limit_ms)
    found = highest_rate(exponential(1.0), share, limit_ms * MS)
    assert found == pytest.approx(exact, rel=0.05)


def test_constant_calls_bear_what_the_m_d_1_queue_bears() -> None:
    # Half of the requests of an M/D/1 queue wait not at all if it is busy half of the time.
    found = highest_rate(np.full(1000, 1_000_000), 0.5, 1.0 * MS)
    assert found == pytest.approx(500, rel=0.03)


def test_no_process_is_planned_to_be_always_busy() -> None:
    assert highest_rate(np.full(1000, 1_000_000), 0.99, 1e12) == pytest.approx(800, rel=1e-4)


def test_calls_that_are_too_slow_by_themselves_bear_nothing() -> None:
    calls = np.array([1, 1, 1, 30]) * 1_000_000
    assert highest_rate(calls, 0.99, 20 * MS) is None
    assert highest_rate(np.array([], np.int64), 0.99, 20 * MS) is None


def test_a_process_that_bears_nearly_nothing_is_not_told_to_bear_none() -> None:
    calls = np.full(2400, 1_000_000)
    calls[:24] = 5_000_000  # just few enough of all, too many of those that are simulated
    assert highest_rate(calls, 0.99, 2 * MS) is None


def test_slow_spells_cost_more_than_the_same_calls_scattered() -> None:
    rng = np.random.default_rng(0)
    calls = np.where(np.arange(10_000) % 1000 < 50, 8_000_000, 1_000_000)
    together = highest_rate(calls, 0.99, 20 * MS)
    scattered = highest_rate(rng.permutation(calls), 0.99, 20 * MS)
    assert together is not None
    assert scattered is not None
    assert together < 0.8 * scattered


@given(
    arrays.arrays(np.float64, 40, elements=st.floats(0, 100)),
    arrays.arrays(np.float64, 40, elements=st.floats(0, 100)),
)
def test_who_waits_is_told_as_by_a_queue_that_is_walked_through(
    service: np.ndarray, gaps: np.ndarray
) -> None:
    free, now, expected = 0.0, 0.0, []
    for takes, gap in zip(service, np.concatenate([[0.0], gaps[1:]]), strict=True):
        now += gap
        expected.append(max(0.0, free - now))
        free = max(free, now) + takes
    np.testing.assert_allclose(waiting(service, gaps), expected, atol=1e-9)
